"""Reference ranks: the floor of the same ranking, popularity, and on synthetic data its ceiling, the truth.

Popularity is the floor that a personalised model must pass. It counts training events; published numbers
usually train on everything but the test item, which is `popularity_ranks(merge_validation(split))`. The
truth ranks a synthetic population by its own preferences: the next item is drawn with probability
softmax(logits), so that no model can expect a better order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_rec.data.heldout import heldout_events
from fedjax_rec.data.interactions import Dataset, Truth
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.pair_ranking import PairRanks
from fedjax_rec.evaluation.ranking import MidRanks, Ranks, count_rivals, make_ranker
from fedjax_rec.evaluation.user_blocks import masked_pairs, positives_of


def popularity_scores(split: Split) -> np.ndarray:
    """Count each item's training events.

    Args:
        split: the split.

    Returns:
        float32[I], the counts.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> popularity_scores(leave_one_out(Dataset("tiny", table), order="file"))
        array([1., 0., 0.], dtype=float32)
    """
    return np.bincount(split.items, minlength=split.num_items).astype(np.float32)


def popularity_ranks(split: Split, *, which: str = "test") -> Ranks:
    """Rank every user's items by popularity.

    Args:
        split: the split.
        which: `test` or `validation`.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> popularity_ranks(split).full.mid  # nobody else met 2, 3 or 4
        Array([1.], dtype=float32)
    """
    return rank_common_scores(popularity_scores(split), split, which=which)


def rank_common_scores(scores: np.ndarray, split: Split, *, which: str = "test") -> Ranks:
    """Rank by scores that are the same for all users: on the host, by sorting the items once.

    Args:
        scores: float[I], without NaN.
        split: the split.
        which: `test` or `validation`.

    Returns:
        The ranks of all users, as `make_ranker` counts them.

    Raises:
        ValueError: if `which` is unknown, a score is NaN, or there is not one for each item.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> ranks = rank_common_scores(np.array([9.0, 9, 1, 2, 1]), split).full
        >>> ranks.mid, ranks.tied
        (Array([1.5], dtype=float32), Array([1], dtype=int32))
    """
    if np.shape(scores) != (split.num_items,):
        raise ValueError(
            f"scores of shape {np.shape(scores)} are not one for each of the {split.num_items:,} items of "
            f"{split.name}"
        )
    if np.isnan(scores).any():
        raise ValueError("a score that all users share is NaN; give numbers")
    held = heldout_events(split, which)
    owners = held.owners
    positive_score = scores[held.items]
    rivals = count_rivals(split, which=which)

    # Full ranking: where a positive's score would stand among all sorted scores, less what the user has met, which
    # is sorted by user and score, so that one search over all users counts it.
    ascending, levels = np.unique(scores, return_inverse=True)
    more = np.append(np.cumsum(np.bincount(levels)[::-1])[::-1], 0)  # items of a level or above
    level = levels[held.items]
    users, items = np.divmod(masked_pairs(split, which), split.num_items)
    met = np.sort(users * len(ascending) + levels[items])
    own = owners * len(ascending) + level
    not_above = np.searchsorted(met, own, side="right")
    masked_better = np.searchsorted(met, (owners + 1) * len(ascending)) - not_above
    masked_tied = not_above - np.searchsorted(met, own)
    better = more[level + 1] - masked_better
    tied = more[level] - more[level + 1] - masked_tied
    full = _mid_ranks(split, owners, better, tied, rivals.full)

    # Sampled ranking: the candidates alone.
    _, candidates = positives_of(split, which)
    candidate_scores = np.where(candidates >= 0, scores[np.maximum(candidates, 0)], np.nan)[owners]
    better = (candidate_scores > positive_score[:, None]).sum(1)
    tied = (candidate_scores == positive_score[:, None]).sum(1)
    return Ranks(full, _mid_ranks(split, owners, better, tied, rivals.sampled))


def _mid_ranks(
    split: Split, owners: np.ndarray, better: np.ndarray, tied: np.ndarray, num_rivals: np.ndarray
) -> MidRanks | PairRanks:
    """Ranks of the pairs, by user where each has one at most."""
    present = num_rivals[owners] > 0
    mid = np.where(present, better + tied / 2, np.nan).astype(np.float32)
    tied = np.where(present, tied, 0).astype(np.int32)
    if split.heldout is not None:
        users = jnp.asarray(owners, jnp.int32)
        return PairRanks(jnp.asarray(mid), jnp.asarray(tied), users, split.num_users)
    by_user = np.full(split.num_users, np.nan, np.float32), np.zeros(split.num_users, np.int32)
    for column, values in zip(by_user, (mid, tied), strict=True):
        column[owners] = values
    return MidRanks(*map(jnp.asarray, by_user))


def truth_of(dataset: Dataset, split: Split) -> Truth:
    """Select the true preferences of the users and items that the split kept.

    Args:
        dataset: a synthetic data set.
        split: a split of it.

    Returns:
        The truth, by the codes of the split.

    Raises:
        ValueError: if the data set is not synthetic, or the split is of another one.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> truth = Truth(np.ones((1, 1), "f4"), np.ones((3, 1), "f4"), np.arange(3, dtype="f4"))
        >>> dataset = Dataset("tiny", table, truth=truth)
        >>> truth_of(dataset, leave_one_out(dataset)).item_bias
        array([0., 1., 2.], dtype=float32)
    """
    if dataset.truth is None:
        raise ValueError(
            f"the true preferences of {dataset.name!r} are unknown; only synthetic data has them"
        )
    users = pd.Index(dataset.interactions.user_ids).get_indexer(pd.Index(split.user_ids))
    items = pd.Index(dataset.interactions.item_ids).get_indexer(pd.Index(split.item_ids))
    for name, found in (("users", users), ("items", items)):
        if (found < 0).any():
            raise ValueError(
                f"{split.name} has {name} that {dataset.name!r} does not have; give a split of it"
            )
    truth = dataset.truth
    return Truth(truth.user_factors[users], truth.item_factors[items], truth.item_bias[items])


def truth_ranks(dataset: Dataset, split: Split, *, which: str = "test") -> Ranks:
    """Rank every user's items by the true preferences: the best expected result that any model can reach.

    Args:
        dataset: a synthetic data set.
        split: a split of it.
        which: `test` or `validation`.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: if the data set is not synthetic, or `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> truth = Truth(np.ones((1, 1), "f4"), np.ones((5, 1), "f4"), np.array([0, 0, 2, 1, 3], "f4"))
        >>> dataset = Dataset("tiny", table, truth=truth)
        >>> truth_ranks(dataset, leave_one_out(dataset, order="file")).full.mid
        Array([1.], dtype=float32)
    """
    truth = jax.tree.map(jnp.asarray, truth_of(dataset, split))
    return make_ranker(split, _score_truth, which=which)(truth)


def _score_truth(truth: Truth, users: jax.Array) -> jax.Array:
    """`Truth.scores` on device."""
    return (
        jnp.asarray(truth.user_factors)[users] @ jnp.asarray(truth.item_factors).T + truth.item_bias[None, :]
    )
