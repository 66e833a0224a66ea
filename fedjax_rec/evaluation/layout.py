"""How users are laid out for the device: blocks of users, each with the items to look up for them.

A block's scores are one matrix `[U, I]`. What a user has met is scattered over it, and a scatter is the
slowest thing a CPU does, so that ranking only *reads* those places: the items of each user are cut into runs
of at most 16, a run has one owner, and all runs of a block are one gather. Memory grows with the number of
events, not with users times items.

Axis legend: `N` users, `I` items, `B` blocks of `U` users, `R` runs per block of `W` items, `n` candidates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split, sort_distinct

_BLOCK_USERS = 256  # at most: scores then stay in a CPU's cache until they are counted; and
_BLOCK_SCORES = 2**24  # at most as many scores: 64 MiB
_MOST_SCORES: int = 2**31 - 1  # places in a block are int32
_LONGEST_RUN = 16
_RUNS_PER_USER = 8  # about, so that filling up the last run costs about a sixteenth


class Block(NamedTuple):
    """What ranks one block of users; a leading axis B where the blocks are stacked."""

    users: jax.Array  # int32[U]
    positives: jax.Array  # int32[U], -1 for none
    rivals: jax.Array  # int32[U], number of unseen items
    candidates: jax.Array  # int32[U, n], -1 for an empty slot
    owners: jax.Array  # int32[R], the place in the block of each run's user, U for an empty run
    items: jax.Array  # int32[R, W], the runs; the user's filler where a run is shorter
    fillers: jax.Array  # int32[U], how often the filler stands in a user's runs


class Plan(NamedTuple):
    """All blocks, and the way back to the users."""

    blocks: Block  # stacked
    places: jax.Array  # int32[N], where user u stands in the flattened blocks


def positives_of(split: Split, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The held-out items and their candidates.

    Args:
        split: the split.
        which: `test` or `validation`.

    Returns:
        int32[N] items, -1 for none, and int32[N, n] candidates, -1 for an empty slot.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> positives_of(None, "train")
        Traceback (most recent call last):
        ValueError: which='train' is unknown; choose one of 'test', 'validation'
    """
    if which == "test":
        return split.test, split.candidates_test
    if which == "validation":
        return split.validation, split.candidates_validation
    raise ValueError(f"which={which!r} is unknown; choose one of 'test', 'validation'")


def masked_codes(split: Split, which: str) -> np.ndarray:
    """What is no rival of a user's positive: the seen items, and the positive itself.

    Args:
        split: the split.
        which: `test` (train and validation items are seen) or `validation` (train items are).

    Returns:
        int64[S], sorted distinct codes user * I + item.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> masked_codes(leave_one_out(Dataset("tiny", table)), "validation")
        array([0, 1])
    """
    positives, _ = positives_of(split, which)
    users = np.arange(split.num_users)
    held = [positives] if which == "validation" else [positives, split.validation]
    rows = np.concatenate([np.repeat(users, np.diff(split.offsets)), *(users[codes >= 0] for codes in held)])
    columns = np.concatenate([split.items, *(codes[codes >= 0] for codes in held)])
    return sort_distinct(rows * split.num_items + columns)


def lay_out(split: Split, which: str, block_size: int | None, *, lookup: str = "rivals") -> Plan:
    """Lay out the blocks on the host.

    Users are dealt to the blocks back and forth, the most active first, so that all blocks look up about
    equally many items and filling them up to the largest costs little.

    Args:
        split: the split.
        which: `test` or `validation`.
        block_size: U at most; by default 256, or fewer where I is large.
        lookup: `rivals`: the runs hold what is no rival of the positive, the positive itself being the filler;
            `lists`: they hold what may not be recommended, which excludes the positive even where it was met
            before, and the filler is one of these items.

    Returns:
        The plan.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> lay_out(leave_one_out(Dataset("tiny", table)), "test", None).blocks.items
        Array([[[0],
                [1],
                [2]]], dtype=int32)
    """
    positives, candidates = positives_of(split, which)
    masked = masked_codes(split, which)
    num_users, num_items = split.num_users, split.num_items
    activity = np.bincount(masked // num_items, minlength=num_users)
    num_blocks = -(-num_users // _block_users(num_items, block_size))
    size = -(-num_users // num_blocks)
    places = _deal(activity, num_blocks, size)

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        stacked = np.full((num_blocks * size, *values.shape[1:]), empty, np.int32)
        stacked[places] = values
        return jnp.asarray(stacked.reshape(num_blocks, size, *values.shape[1:]))

    filler = np.maximum(positives, 0)
    if lookup == "lists":
        own = np.arange(num_users) * num_items + positives
        masked = masked[~np.isin(masked, own[positives >= 0])]
        filler[masked // num_items] = masked % num_items
    owners, items, fillers = _cut(places[masked // num_items], masked % num_items, num_blocks, size)
    blocks = Block(
        users=stack(np.arange(num_users), 0),
        positives=stack(positives, -1),
        rivals=stack(num_items - activity, 0),
        candidates=stack(candidates, -1),
        owners=jnp.asarray(owners),
        items=jnp.asarray(_fill(items, owners, np.asarray(stack(filler, 0)))),
        fillers=jnp.asarray(fillers),
    )
    return Plan(blocks, jnp.asarray(places, jnp.int32))


def _deal(activity: np.ndarray, num_blocks: int, size: int) -> np.ndarray:
    """int64[N], the users' places in the flattened blocks."""
    laps, turns = np.divmod(np.arange(len(activity)), num_blocks)
    places = np.empty(len(activity), np.int64)
    places[np.argsort(-activity, kind="stable")] = laps + size * np.where(
        laps % 2, num_blocks - 1 - turns, turns
    )
    return places


def _cut(
    places: np.ndarray, items: np.ndarray, num_blocks: int, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 owners [B, R], items [B, R, W] with -1 where a run is shorter, and how many of those [B, U]."""
    order = np.argsort(places, kind="stable")
    places, items = places[order], items[order]
    counts = np.bincount(places, minlength=num_blocks * size)
    mean = len(places) // max(int(np.count_nonzero(counts)), 1)
    width = min(max(mean // _RUNS_PER_USER, 1), _LONGEST_RUN)
    runs = (-(-counts // width)).reshape(num_blocks, size)
    first = (np.cumsum(runs, axis=1) - runs).reshape(-1)
    owners = np.full((num_blocks, runs.sum(axis=1).max(initial=0)), size, np.int32)
    stacked = np.full((*owners.shape, width), -1, np.int32)
    turns, slots = np.divmod(np.arange(len(places)) - (np.cumsum(counts) - counts)[places], width)
    stacked[places // size, first[places] + turns, slots] = items
    owners[places // size, first[places] + turns] = places % size
    return owners, stacked, (runs * width - counts.reshape(num_blocks, size)).astype(np.int32)


def _fill(items: np.ndarray, owners: np.ndarray, fillers: np.ndarray) -> np.ndarray:
    """Put each user's filler [B, U] where its runs have no item; empty runs get item 0."""
    padded = np.concatenate([fillers, np.zeros((len(fillers), 1), np.int32)], axis=1)
    return np.where(items < 0, np.take_along_axis(padded, owners, axis=1)[:, :, None], items).astype(np.int32)


def _block_users(num_items: int, block_size: int | None) -> int:
    if block_size is None:
        return max(1, min(_BLOCK_USERS, _BLOCK_SCORES // num_items))
    if block_size < 1:
        raise ValueError(f"block_size={block_size} is out of range; choose 1 or more")
    return min(block_size, max(1, _MOST_SCORES // num_items))
