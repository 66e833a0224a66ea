"""User blocks: how users are laid out for ranking on device, each with the items to look up for them.

A block's scores are one matrix `[U, I]`. What a user has met is scattered over it, and a scatter is the
slowest thing a CPU does, so that ranking only *reads* those cells: the items of each user are cut into segments
of at most 16, a segment has one owner, and all segments of a block are one gather. Memory grows with the number
of events, not with users times items.

Axis legend: `N` users, `I` items, `B` blocks of `U` users, `R` segments per block of `W` items, `n` candidates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.heldout import heldout_events
from fedjax_rec.data.sorting import sort_distinct, stable_order
from fedjax_rec.data.splits import Split

_MAX_BLOCK_USERS = 256  # scores then stay in a CPU's cache until they are counted; and
_MAX_BLOCK_SCORES = 2**24  # no more scores than these, 64 MiB, unless a block size is asked for
_MAX_CELLS: int = 2**31 - 1  # cells of a block are addressed by int32
_MAX_SEGMENT = 16
_SEGMENTS_PER_USER = 8  # about, so that filling up the last segment costs about a sixteenth


class UserBlock(NamedTuple):
    """What ranks one block of users; a leading axis B where the blocks are stacked."""

    users: jax.Array  # int32[U]
    positives: jax.Array  # int32[U], -1 for none
    num_rivals: jax.Array  # int32[U], number of unseen items
    candidates: jax.Array  # int32[U, n], -1 for an empty slot
    segment_owners: jax.Array  # int32[R], index in the block of each segment's user, U for an empty segment
    segment_items: jax.Array  # int32[R, W]; the user's filler where a segment is shorter
    num_fillers: jax.Array  # int32[U], how often the filler stands in a user's segments


class UserBlocks(NamedTuple):
    """All blocks, and the way back to the users."""

    blocks: UserBlock  # stacked
    positions: jax.Array  # int32[N], where user u stands in the flattened blocks


def positives_of(split: Split, which: str) -> tuple[np.ndarray, np.ndarray]:
    """The held-out items, the first of each user, and their candidates.

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


def check_users(count: int, split: Split, what: str) -> None:
    """Refuse what was made for other users than a split's.

    Args:
        count: of users that it was made for.
        split: of N users.
        what: named in the error.

    Raises:
        ValueError: naming both numbers.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> check_users(7, tiny_split(), "lists")
        Traceback (most recent call last):
        ValueError: lists of 7 users do not go with tiny, which has 4; ...
    """
    if count != split.num_users:
        raise ValueError(
            f"{what} of {count:,} users do not go with {split.name}, which has {split.num_users:,}; make them of "
            "this split"
        )


def masked_pairs(split: Split, which: str) -> np.ndarray:
    """What is no rival of a user's positives: the seen items, and the positives themselves.

    Args:
        split: the split.
        which: `test` (train and validation items are seen) or `validation` (train items are).

    Returns:
        int64[S], sorted distinct pairs, coded as user * I + item.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> masked_pairs(leave_one_out(Dataset("tiny", table), order="file"), "validation")
        array([0, 1])
    """
    heldout = [heldout_events(split, which)]
    heldout += [heldout_events(split, "validation")] if which == "test" else []
    rows = np.concatenate(
        [
            np.repeat(np.arange(split.num_users), np.diff(split.offsets)),
            *(events.owners for events in heldout),
        ]
    )
    columns = np.concatenate([split.items, *(events.items for events in heldout)])
    return sort_distinct(rows * split.num_items + columns)


def make_user_blocks(
    split: Split, which: str, block_size: int | None, *, lookup: str = "rivals"
) -> UserBlocks:
    """Lay out the blocks on the host.

    Users are dealt to the blocks back and forth, the most active first, so that all blocks look up about
    equally many items and filling them up to the largest costs little.

    Args:
        split: the split.
        which: `test` or `validation`.
        block_size: U at most; by default 256, or fewer where I is large.
        lookup: `rivals`: the segments hold what is no rival of the positive, the positive itself being the filler;
            `lists`: they hold what may not be recommended, which excludes the positives even where they were met
            before, and the filler is one of these items.

    Returns:
        The blocks.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> make_user_blocks(split, "test", None).blocks.segment_items
        Array([[[0],
                [1],
                [2]]], dtype=int32)
    """
    positives, candidates = positives_of(split, which)
    masked = masked_pairs(split, which)
    num_users = split.num_users
    num_items = split.num_items

    # Every user has a position in the flattened blocks [B * U].
    activity = np.bincount(masked // num_items, minlength=num_users)
    num_blocks = -(-num_users // choose_block_size(num_items, block_size))
    size = -(-num_users // num_blocks)
    positions = _deal_users(activity, num_blocks, size)

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        stacked = np.full((num_blocks * size, *values.shape[1:]), empty, np.int32)
        stacked[positions] = values
        return jnp.asarray(stacked.reshape(num_blocks, size, *values.shape[1:]))

    # Each user's filler is an item whose effect is known, so that filling up a segment with it can be undone.
    filler = np.maximum(positives, 0)
    if lookup == "lists":
        held = heldout_events(split, which)
        masked = masked[~np.isin(masked, held.owners * num_items + held.items)]
        filler[masked // num_items] = masked % num_items

    # The masked items in segments [B, R, W], none of two users, filled up.
    mean = len(split.items) // max(int(np.count_nonzero(np.diff(split.offsets))), 1)
    owners, items, num_fillers = _cut_segments(
        positions[masked // num_items], masked % num_items, num_blocks, size, mean
    )
    blocks = UserBlock(
        users=stack(np.arange(num_users), 0),
        positives=stack(positives, -1),
        num_rivals=stack(num_items - activity, 0),
        candidates=stack(candidates, -1),
        segment_owners=jnp.asarray(owners),
        segment_items=jnp.asarray(_fill_segments(items, owners, np.asarray(stack(filler, 0)))),
        num_fillers=jnp.asarray(num_fillers),
    )
    return UserBlocks(blocks, jnp.asarray(positions, jnp.int32))


def _deal_users(activity: np.ndarray, num_blocks: int, size: int) -> np.ndarray:
    """int64[N], the users' positions in the flattened blocks."""
    laps, turns = np.divmod(np.arange(len(activity)), num_blocks)
    block = np.where(laps % 2, num_blocks - 1 - turns, turns)  # back and forth
    positions = np.empty(len(activity), np.int64)
    positions[np.argsort(-activity, kind="stable")] = laps + size * block
    return positions


def _cut_segments(
    positions: np.ndarray, items: np.ndarray, num_blocks: int, size: int, mean: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """int32 owners [B, R], items [B, R, W] with -1 where a segment is shorter, and how many of those [B, U].

    W suits a user with the mean number of training items, and R is a multiple of U: the shapes of validation and
    test are then mostly the same, and what ranks one is compiled for the other.
    """
    # Items in the order of their users' positions.
    order = stable_order(positions)
    positions = positions[order]
    items = items[order]
    counts = np.bincount(positions, minlength=num_blocks * size)
    width = min(max(mean // _SEGMENTS_PER_USER, 1), _MAX_SEGMENT)

    # How many segments each user needs [B, U], and which is the user's first in its block [B * U].
    segments = (-(-counts // width)).reshape(num_blocks, size)
    first = (np.cumsum(segments, axis=1) - segments).reshape(-1)

    # Item by item: its segment within the user's own, and its slot within the segment.
    num_segments = -(-int(segments.sum(axis=1).max(initial=0)) // size) * size
    owners = np.full((num_blocks, num_segments), size, np.int32)
    stacked = np.full((*owners.shape, width), -1, np.int32)
    number_within_user = np.arange(len(positions)) - (np.cumsum(counts) - counts)[positions]
    segment, slot = np.divmod(number_within_user, width)
    stacked[positions // size, first[positions] + segment, slot] = items
    owners[positions // size, first[positions] + segment] = positions % size
    return owners, stacked, (segments * width - counts.reshape(num_blocks, size)).astype(np.int32)


def _fill_segments(items: np.ndarray, owners: np.ndarray, fillers: np.ndarray) -> np.ndarray:
    """Put each user's filler [B, U] where its segments have no item; empty segments get item 0."""
    padded = np.concatenate([fillers, np.zeros((len(fillers), 1), np.int32)], axis=1)
    return np.where(items < 0, np.take_along_axis(padded, owners, axis=1)[:, :, None], items).astype(np.int32)


def choose_block_size(num_items: int, block_size: int | None = None) -> int:
    """How many users are scored at once.

    Args:
        num_items: I.
        block_size: U at most, if anybody asks for one.

    Returns:
        U: 256, or fewer where I is large.

    Raises:
        ValueError: if `block_size` is below 1.

    Example:
        >>> choose_block_size(1000), choose_block_size(1_000_000)
        (256, 16)
    """
    if block_size is None:
        return max(1, min(_MAX_BLOCK_USERS, _MAX_BLOCK_SCORES // num_items))
    if block_size < 1:
        raise ValueError(f"block_size={block_size} is out of range; choose 1 or more")
    return min(block_size, max(1, _MAX_CELLS // num_items))
