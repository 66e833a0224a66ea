"""Frozen candidates of sampled ranking.

A user's draw depends on the protocol's seed, the user's code, the size of the catalogue and the items that this
user has met, and on nothing else.
"""

from itertools import pairwise

import numpy as np

_BLOCK = 2**12  # users drawn for at once


def draw_candidates(
    seen: np.ndarray, shape: tuple[int, int], num_items: int, seed: int, stream: int
) -> np.ndarray:
    """Draw n distinct unseen items for each user, uniformly; -1 where too few remain.

    Floyd's algorithm (Bentley and Floyd 1987, doi:10.1145/30401.315746) draws distinct ranks among the user's
    unseen items, for all users at once; the ranks are then counted off around the seen items.

    Args:
        seen: int64[S], sorted distinct codes user * I + item.
        shape: (N, n).
        num_items: I.
        seed: the protocol's seed.
        stream: tells the draws of one seed apart.

    Returns:
        int32[N, n].

    Example:
        >>> draw_candidates(np.array([0, 2]), (1, 3), 4, seed=0, stream=1)
        array([[ 1,  3, -1]], dtype=int32)
    """
    # some users at a time: what is computed for them stays in a cache
    num_users, num_candidates = shape
    starts = np.append(np.arange(0, num_users, _BLOCK), num_users)
    bounds = np.searchsorted(seen, starts * num_items)
    candidates = np.empty(shape, np.int32)
    for (first, stop), own in zip(pairwise(starts.tolist()), pairwise(bounds.tolist()), strict=True):
        users = np.arange(first, stop)
        seen_by_these = seen[slice(*own)] - first * num_items
        candidates[first:stop] = _draw(seen_by_these, users, num_candidates, num_items, seed, stream)
    return candidates


def _draw(
    seen: np.ndarray, users: np.ndarray, num_candidates: int, num_items: int, seed: int, stream: int
) -> np.ndarray:
    """int32[U, n], for consecutive users, from whose first the codes `seen` count."""
    # how many unseen items each user has, and how many of them are drawn, int64[U]
    num_users = len(users)
    num_unseen = num_items - np.bincount(seen // num_items, minlength=num_users)
    num_drawn = np.minimum(num_unseen, num_candidates)
    # Floyd: slot j draws a rank from 0 to `last`, and takes `last` itself where an earlier slot has that rank
    ranks = np.full((num_candidates, num_users), -1, np.int32)
    for slot in range(min(num_candidates, int(num_drawn.max(initial=0)))):  # the slots behind stay empty
        last = (num_unseen - num_drawn + slot).astype(np.int32)
        rank = (random_bits(seed, stream, users, slot) % (last + 1).astype(np.uint64)).astype(np.int32)
        rank = np.where((ranks[:slot] == rank).any(0), last, rank)
        ranks[slot] = np.where(slot < num_drawn, rank, -1)
    return _unseen(seen, ranks.T, num_items)


def _unseen(seen: np.ndarray, ranks: np.ndarray, num_items: int) -> np.ndarray:
    """int32[N, n], the items that stand at some ranks (from 0, -1 for none) among each user's unseen items.

    A user's k-th seen item s_k (from 0) has s_k - k unseen ones before it, so that the unseen item of rank r
    is r plus the number of k with s_k - k <= r.
    """
    # `unseen_before` [S]: s_k - k of each seen item
    users = np.arange(len(ranks))[:, None]
    seen_users, seen_items = np.divmod(seen, num_items)
    starts = np.searchsorted(seen_users, users)
    unseen_before = seen_items - (np.arange(len(seen)) - starts[seen_users, 0])
    # it rises within a user, so that one search over all users counts the seen items to skip, [N, n]
    stride = num_items + 1
    keys = seen_users * stride + unseen_before
    skipped = np.searchsorted(keys, users * stride + ranks, side="right") - starts
    return np.where(ranks >= 0, ranks + skipped, -1).astype(np.int32)


def dedupe(candidates: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Empty the slots that repeat a candidate or hold the positive itself, as He's evaluator does.

    Args:
        candidates: int32[N, n], -1 for an empty slot.
        positives: int32[N].

    Returns:
        int32[N, n].

    Example:
        >>> dedupe(np.array([[6, 5, 6, 7]], "i4"), np.array([5], "i4"))
        array([[ 6, -1, -1,  7]], dtype=int32)
    """
    order = np.argsort(candidates, axis=1, kind="stable")
    ranked = np.take_along_axis(candidates, order, axis=1)
    repeated = np.zeros(candidates.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return np.where(repeated | (candidates == positives[:, None]), np.int32(-1), candidates)


def random_bits(*words: int | np.ndarray) -> np.ndarray:
    """Hash words: SplitMix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) over each in turn.

    Args:
        *words: integers or int[N], broadcast.

    Returns:
        uint64[N].

    Example:
        >>> random_bits(0, np.arange(2)).shape
        (2,)
    """
    state = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state
