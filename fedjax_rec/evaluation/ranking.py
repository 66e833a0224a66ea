"""Ranking on device, by counting: where does each user's held-out item stand among its rivals?

With s+ the positive's score, the 0-based rank is `#(s > s+) + #(s == s+) / 2` over the rivals, which costs
two comparisons per item and no top-k. It is the expected rank under random tie-breaking, and gives a
constant scorer the middle of the list. NaN counts as worst: a NaN positive ranks last, a NaN rival never
counts.

In the *full* ranking the rivals are all items that the user has not met (masked are train + validation when
testing, train when validating), in the *sampled* one the candidates of the split. Sampled metrics can
reverse an order of models (Krichene and Rendle 2020, doi:10.1145/3394486.3403226): they serve comparison
with publications.

Axis legend: `N` users, `I` items, `B` blocks of `U` users, `L` masked entries per block, `n` candidates.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split, sort_distinct

_BLOCK_USERS = 512  # at most, and
_BLOCK_SCORES = 2**24  # at most as many scores: 64 MiB


class Ranks(NamedTuple):
    """0-based ranks, halves included; NaN for a user without a positive or without a rival."""

    full: jax.Array  # float32[N], among all unseen items
    sampled: jax.Array  # float32[N], among the candidates


class Rivals(NamedTuple):
    """How many items each user's positive competes with."""

    full: np.ndarray  # int64[N], unseen items
    sampled: np.ndarray  # int64[N], candidates


class _Block(NamedTuple):
    """What ranks one block of users; a leading axis B where the blocks are stacked."""

    users: jax.Array  # int32[U]
    positives: jax.Array  # int32[U], -1 for none
    rivals: jax.Array  # int32[U], number of unseen items
    rows: jax.Array  # int32[L], places in the block of the masked entries, U for padding
    columns: jax.Array  # int32[L], their items
    candidates: jax.Array  # int32[U, n], -1 for an empty slot


class _Plan(NamedTuple):
    blocks: _Block  # stacked
    places: jax.Array  # int32[N], where user u's rank stands in the flattened blocks


def make_ranker(
    split: Split,
    score_block: Callable[[Any, jax.Array], jax.Array],
    *,
    which: str = "test",
    block_size: int | None = None,
) -> Callable[[Any], Ranks]:
    """Build a compiled function from a model's parameters to the ranks of all users.

    Masks and candidates are laid out once, in O(nnz) memory; the ranker compiles once per structure of the
    parameters and then runs on device from end to end, one block of users after the other.

    Args:
        split: the split.
        score_block: pure function of (parameters, int32[U] users) that gives scores [U, I].
        which: `test` or `validation`.
        block_size: U, users scored at once; by default 512, or fewer where I is large.

    Returns:
        The ranker, a function of the parameters, any pytree.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> ranker = make_ranker(leave_one_out(Dataset("tiny", table)), lambda bias, users: bias[users])
        >>> ranker(jnp.array([[9.0, 9.0, 1.0, 2.0, 1.0]])).full  # 2 competes with 3, which beats it, and 4
        Array([1.5], dtype=float32)
    """
    plan = _make_plan(split, which, block_size)

    @jax.jit
    def rank(params: Any, plan: _Plan) -> Ranks:
        ranks = jax.lax.map(lambda block: _rank_block(score_block(params, block.users), block), plan.blocks)
        return Ranks(*(blocks.reshape(-1)[plan.places] for blocks in ranks))

    return lambda params: rank(params, plan)


def rank_split(
    score_block: Callable[[jax.Array], jax.Array],
    split: Split,
    *,
    which: str = "test",
    block_size: int | None = None,
) -> Ranks:
    """Rank once; `make_ranker` serves models that change.

    Args:
        score_block: pure function of int32[U] users that gives scores [U, I]; it may close over arrays.
        split: the split.
        which: `test` or `validation`.
        block_size: U, users scored at once.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: as `make_ranker`.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table))
        >>> rank_split(lambda users: jnp.zeros((len(users), 5)), split, which="validation").full
        Array([1.5], dtype=float32)
    """
    return make_ranker(split, lambda _, users: score_block(users), which=which, block_size=block_size)(None)


def count_rivals(split: Split, *, which: str = "test") -> Rivals:
    """Count the items that each user's positive competes with, as AUC and the rank of a NaN need.

    Args:
        split: the split.
        which: `test` or `validation`.

    Returns:
        The counts, in full and sampled ranking.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> count_rivals(leave_one_out(Dataset("tiny", table), num_candidates=1))
        Rivals(full=array([2]), sampled=array([1]))
    """
    positives, candidates = _positives(split, which)
    masked = _masked(split, which, positives)
    full = split.num_items - np.bincount(masked // split.num_items, minlength=split.num_users)
    return Rivals(full, (candidates >= 0).sum(axis=1))


def _rank_block(scores: jax.Array, block: _Block) -> Ranks:
    # Without the barrier a compiler may compute a score twice, once for either side, with other last bits.
    scores = jax.lax.optimization_barrier(scores.astype(jnp.float32))
    positive = jnp.take_along_axis(scores, jnp.maximum(block.positives, 0)[:, None], axis=1)
    positive = jnp.where(block.positives[:, None] >= 0, positive, jnp.nan)
    sampled = jnp.take_along_axis(scores, jnp.maximum(block.candidates, 0), axis=1)
    sampled = jnp.where(block.candidates >= 0, sampled, jnp.nan)
    unseen = scores.at[block.rows, block.columns].set(jnp.nan, mode="drop")
    ranks = Ranks(
        _count_above(unseen, positive, block.rivals),
        _count_above(sampled, positive, jnp.sum(block.candidates >= 0, axis=1)),
    )
    return jax.tree.map(lambda rank: jnp.where(block.positives >= 0, rank, jnp.nan), ranks)


def _count_above(scores: jax.Array, positive: jax.Array, rivals: jax.Array) -> jax.Array:
    """float32[U], ranks of scores [U, 1] among scores [U, K], of which NaN ones are beaten or masked."""
    above, level = jnp.sum(scores > positive, axis=1), jnp.sum(scores == positive, axis=1)
    last = rivals.astype(jnp.float32)
    rank = jnp.where(
        jnp.isnan(positive[:, 0]), last, above.astype(jnp.float32) + 0.5 * level.astype(jnp.float32)
    )
    return jnp.where(rivals > 0, rank, jnp.nan)


def _positives(split: Split, which: str) -> tuple[np.ndarray, np.ndarray]:
    """int32[N] held-out items and int32[N, n] candidates."""
    if which == "test":
        return split.test, split.candidates_test
    if which == "validation":
        return split.validation, split.candidates_validation
    raise ValueError(f"which={which!r} is unknown; choose one of 'test', 'validation'")


def _masked(split: Split, which: str, positives: np.ndarray) -> np.ndarray:
    """int64[S], sorted distinct codes user * I + item of what is no rival: seen items and the positive."""
    users = np.arange(split.num_users)
    held = [positives] if which == "validation" else [positives, split.validation]
    rows = np.concatenate([np.repeat(users, np.diff(split.offsets)), *(users[codes >= 0] for codes in held)])
    columns = np.concatenate([split.items, *(codes[codes >= 0] for codes in held)])
    return sort_distinct(rows * split.num_items + columns)


def _make_plan(split: Split, which: str, block_size: int | None) -> _Plan:
    """Lay out the blocks on the host.

    Users are dealt to the blocks back and forth, the most active first, so that all blocks mask about equally
    many entries and padding them to the largest costs little.
    """
    positives, candidates = _positives(split, which)
    masked = _masked(split, which, positives)
    num_users, num_items = split.num_users, split.num_items
    activity = np.bincount(masked // num_items, minlength=num_users)
    num_blocks = -(-num_users // _block_users(num_items, block_size))
    users_per_block = -(-num_users // num_blocks)
    laps, turns = np.divmod(np.arange(num_users), num_blocks)
    places = np.empty(num_users, np.int64)
    places[np.argsort(-activity, kind="stable")] = laps + users_per_block * np.where(
        laps % 2, num_blocks - 1 - turns, turns
    )

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        stacked = np.full((num_blocks * users_per_block, *values.shape[1:]), empty, np.int32)
        stacked[places] = values
        return jnp.asarray(stacked.reshape(num_blocks, users_per_block, *values.shape[1:]))

    rows, columns = _stack_masked(
        places[masked // num_items], masked % num_items, num_blocks, users_per_block
    )
    blocks = _Block(
        users=stack(np.arange(num_users), 0),
        positives=stack(positives, -1),
        rivals=stack(num_items - activity, 0),
        rows=rows,
        columns=columns,
        candidates=stack(candidates, -1),
    )
    return _Plan(blocks, jnp.asarray(places, jnp.int32))


def _stack_masked(
    places: np.ndarray, items: np.ndarray, num_blocks: int, users_per_block: int
) -> tuple[jax.Array, jax.Array]:
    """int32[B, L] rows and columns of the masked entries; padding has row U, which no block has."""
    order = np.argsort(places, kind="stable")
    blocks, rows = np.divmod(places[order], users_per_block)
    counts = np.bincount(blocks, minlength=num_blocks)
    slots = np.arange(len(places)) - (np.cumsum(counts) - counts)[blocks]
    stacked = np.full((2, num_blocks, counts.max()), users_per_block, np.int32)
    stacked[0, blocks, slots], stacked[1, blocks, slots] = rows, items[order]
    return jnp.asarray(stacked[0]), jnp.asarray(stacked[1])


def _block_users(num_items: int, block_size: int | None) -> int:
    if block_size is None:
        return max(1, min(_BLOCK_USERS, _BLOCK_SCORES // num_items))
    if block_size < 1:
        raise ValueError(f"block_size={block_size} is out of range; choose 1 or more")
    return block_size
