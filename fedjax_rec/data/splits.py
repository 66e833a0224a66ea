"""Splits: which of a user's events train, validate and test, and the candidates of sampled ranking.

Leave-one-out by time (He et al. 2017, arXiv:1708.05031): a user's last event is the test item, the last but
one the validation item. The order is a *stable* sort on (user, timestamp), so that equal timestamps keep
the order of the file: 415 of the 943 users of MovieLens 100K tie at their last timestamp, and another rule
is another data set. Candidates are frozen: a user's draw depends on the protocol's seed, the user's code,
the size of the catalogue and the items that this user has met, and not on the other users or the run's
seed. Other rules are in `splitters`.

A split also says what training may draw as negatives. `train`, the default, excludes a client's training items
only. `paper-leaky` excludes its held-out items too, as the code does that PFedRec, GPFedRec and FedRAP share: the
held-out item is then the only untrained one that is never pushed down, so that even a model that learns nothing
from others finds it. It serves to reproduce such numbers; `split._replace(negatives="paper-leaky")` sets it.

Axis legend: `N` users, `I` items, `M` interactions, `n` candidates.
"""

import functools
import hashlib
import json
from typing import NamedTuple

import numpy as np

from fedjax_rec.data.candidates import dedupe, draw_candidates, random_bits
from fedjax_rec.data.filters import filter_events, num_events, take
from fedjax_rec.data.interactions import Dataset, Heldout, Interactions

NEGATIVES = ("train", "paper-leaky")
_MIN_EVENTS = 3  # one each to train, validate and test
_STREAM_VALIDATION, _STREAM_TEST, _STREAM_ITEM = 0, 1, 2  # independent random numbers of one seed


class Split(NamedTuple):
    """Training events by user in compressed rows (CSR), one validation and one test item each."""

    offsets: np.ndarray  # int64[N + 1], user u's training events are offsets[u]:offsets[u + 1]
    items: np.ndarray  # int32[nnz], training items, each user's in order of time
    ratings: np.ndarray | None  # float32[nnz], or None
    validation: np.ndarray  # int32[N], -1 where there is none
    validation_ratings: np.ndarray | None  # float32[N], NaN where there is none, or None
    test: np.ndarray  # int32[N], -1 where there is none
    test_ratings: np.ndarray | None  # float32[N], or None
    candidates_validation: np.ndarray  # int32[N, n], -1 for an empty slot
    candidates_test: np.ndarray  # int32[N, n], -1 for an empty slot
    user_ids: np.ndarray  # [N], external ids
    item_ids: np.ndarray  # [I], external ids
    name: str
    data_hash: str  # of the unfiltered data
    log: tuple[str, ...]  # the filters, with the counts before and after
    negatives: str = "train"  # whose items are no training negatives; "paper-leaky": held-out ones neither

    @property
    def num_users(self) -> int:
        """Number of users N."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return len(self.item_ids)


def leave_one_out(
    dataset: Dataset,
    *,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Hold out each user's last two events.

    Where the data set comes with official test items, these are kept, and so are its official candidates,
    less the repeated ones and the positive itself; the validation item is then the last training event, or,
    without timestamps, a random one.

    Args:
        dataset: the data; `dataset.test` holds the official test items, if any.
        min_user_events: users with fewer events (after `min_rating`, held-out ones included) are dropped.
        min_rating: events rated lower are dropped first, as if they had never happened. Items that a filter
            robs of their last event leave the catalogue.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        num_candidates: n, the size of a random draw of candidates, which are distinct and exclude all of the
            user's interactions; slots stay -1 where too few items remain.
        seed: the protocol's seed, 0 or more, which fixes candidates and random validation items.

    Returns:
        The split.

    Raises:
        ValueError: if a user has fewer than 3 events, no user is left, `min_rating` finds no ratings, or a core is
            asked of official test items.

    Example:
        >>> table = Interactions(
        ...     users=np.array([0, 0, 0, 0], "i4"),
        ...     items=np.array([0, 1, 2, 3], "i4"),
        ...     ratings=None,
        ...     timestamps=np.array([30, 10, 40, 20]),
        ...     user_ids=np.array(["ann"]),
        ...     item_ids=np.array([10, 11, 12, 13, 14]),
        ... )
        >>> split = leave_one_out(Dataset("tiny", table), num_candidates=2)
        >>> split.items, split.validation, split.test
        (array([1, 3], dtype=int32), array([0], dtype=int32), array([2], dtype=int32))
        >>> split.candidates_test
        array([[ 4, -1]], dtype=int32)
    """
    table, heldout, log = filter_events(
        dataset, min_rating=min_rating, min_user_events=min_user_events, core=core
    )
    _require_events(table, heldout)
    table = sort_events(table)
    validation_at, test_at = _hold_out(table, heldout, seed)
    train = np.ones(len(table.items), bool)
    train[validation_at] = train[test_at[test_at >= 0]] = False
    seen = seen_codes(table, heldout)
    split = assemble(
        dataset, table, train, validation_at, test_at, seen=seen, num_candidates=num_candidates, seed=seed
    )._replace(log=log)
    if heldout is None:
        return split
    official = heldout.candidates
    candidates = split.candidates_test if official is None else dedupe(official, heldout.items)
    return split._replace(test=heldout.items, test_ratings=None, candidates_test=candidates)


def assemble(
    dataset: Dataset,
    table: Interactions,
    train: np.ndarray,
    validation_at: np.ndarray,
    test_at: np.ndarray,
    *,
    seen: np.ndarray,
    num_candidates: int,
    seed: int,
) -> Split:
    """Make a split of events that are already divided.

    Args:
        dataset: the unfiltered data.
        table: the M remaining events of N users, as `sort_events` orders them.
        train: bool[M], the training events.
        validation_at: int[N], where each user's validation event stands in the table, -1 for none.
        test_at: the same for the test events.
        seen: int64[S], sorted distinct codes user * I + item that are no candidates.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split, with an empty log.

    Example:
        >>> table = Interactions(np.zeros(2, "i4"), np.arange(2), None, None, np.arange(1), np.arange(2))
        >>> at, none = np.array([1]), np.array([-1])
        >>> options = {"seen": np.arange(2), "num_candidates": 1, "seed": 0}
        >>> split = assemble(Dataset("tiny", table), table, np.array([True, False]), at, none, **options)
        >>> split.validation, split.test
        (array([1], dtype=int32), array([-1], dtype=int32))
    """
    draw = functools.partial(draw_candidates, seen, (table.num_users, num_candidates), table.num_items, seed)
    return Split(
        offsets=_offsets(np.bincount(table.users[train], minlength=table.num_users)),
        items=table.items[train].astype(np.int32),
        ratings=take(table.ratings, train),
        validation=_pick(table.items, validation_at, -1, np.int32),
        validation_ratings=_pick_rating(table, validation_at),
        test=_pick(table.items, test_at, -1, np.int32),
        test_ratings=_pick_rating(table, test_at),
        candidates_validation=draw(_STREAM_VALIDATION),
        candidates_test=draw(_STREAM_TEST),
        user_ids=table.user_ids,
        item_ids=table.item_ids,
        name=dataset.name,
        data_hash=data_hash(dataset.interactions, dataset.test),
        log=(),
    )


def _pick(column: np.ndarray, at: np.ndarray, empty: float, dtype: type) -> np.ndarray:
    return np.where(at >= 0, column[at], empty).astype(dtype)


def _pick_rating(table: Interactions, at: np.ndarray) -> np.ndarray | None:
    return None if table.ratings is None else _pick(table.ratings, at, np.nan, np.float32)


def merge_validation(split: Split) -> Split:
    """Give the validation items to the training events: the split of a refit.

    Args:
        split: a split.

    Returns:
        The split with each validation item behind its user's training events, and no validation items.

    Example:
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> merge_validation(leave_one_out(Dataset("tiny", table))).items
        array([0, 1], dtype=int32)
    """
    held = split.validation >= 0
    ends = split.offsets[1:][held]
    items = np.insert(split.items, ends, split.validation[held])
    ratings, validation_ratings = split.ratings, split.validation_ratings
    if ratings is not None and validation_ratings is not None:
        ratings = np.insert(ratings, ends, validation_ratings[held])
        validation_ratings = np.full_like(validation_ratings, np.nan)
    return split._replace(
        offsets=split.offsets + _offsets(held),
        items=items,
        ratings=ratings,
        validation=np.full_like(split.validation, -1),
        validation_ratings=validation_ratings,
        candidates_validation=np.full_like(split.candidates_validation, -1),
        log=(*split.log, f"merge_validation: training events {len(split.items)} -> {len(items)}"),
    )


def data_hash(interactions: Interactions, heldout: Heldout | None = None) -> str:
    """Hash a table's content, order of events and external ids included.

    Args:
        interactions: the table.
        heldout: the official test items that come with it.

    Returns:
        The sha256 over the columns in one canonical type each, 64 hexadecimal digits.

    Example:
        >>> table = Interactions(np.zeros(3, "i4"), np.arange(3), None, None, np.arange(1), np.arange(3))
        >>> data_hash(table) == data_hash(table._replace(user_ids=np.array(["1"])))
        False
    """
    test, candidates = heldout or (None, None)
    columns: list[tuple[np.ndarray | None, str]] = [
        (interactions.users, "<i4"),
        (interactions.items, "<i4"),
        (interactions.ratings, "<f4"),
        (interactions.timestamps, "<f8"),
        (test, "<i4"),
        (candidates, "<i4"),
    ]
    digest = hashlib.sha256()
    for column, dtype in columns:
        digest.update(b"none" if column is None else str(column.shape).encode())
        digest.update(b"" if column is None else np.ascontiguousarray(column, dtype).tobytes())
    for ids in (interactions.user_ids, interactions.item_ids):
        digest.update(json.dumps(list(map(str, ids))).encode())
    return digest.hexdigest()


def sort_distinct(codes: np.ndarray) -> np.ndarray:
    """Sort codes and drop the repeated ones, as `np.unique` does, which is ten times slower on large columns.

    Args:
        codes: int[S], codes from 0 up.

    Returns:
        int[S'], the distinct codes in ascending order.

    Example:
        >>> sort_distinct(np.array([3, 0, 3]))
        array([0, 3])
    """
    codes = np.sort(codes)
    return codes[np.diff(codes, prepend=-1) > 0]


def _require_events(table: Interactions, heldout: Heldout | None) -> None:
    """Refuse users whose events do not suffice for a training, a validation and a test item."""
    events = num_events(table, heldout)
    if len(short := np.flatnonzero(events < _MIN_EVENTS)):
        first = short[0]
        raise ValueError(
            f"leave-one-out needs {_MIN_EVENTS} events of each user; {len(short)} of {table.num_users} users "
            f"have fewer, the first of them {str(table.user_ids[first])!r} with {events[first]}; "
            f"min_user_events={_MIN_EVENTS} drops them"
        )


def sort_events(table: Interactions) -> Interactions:
    """Order events by user, then by time; equal timestamps, or none at all, keep the order of the file.

    Args:
        table: M events.

    Returns:
        the same events.

    Example:
        >>> times = np.array([2, 1])
        >>> table = Interactions(np.zeros(2, "i4"), np.arange(2), None, times, np.arange(1), np.arange(2))
        >>> sort_events(table).items
        array([1, 0])
    """
    keys = (table.users,) if table.timestamps is None else (table.timestamps, table.users)
    order = np.lexsort(keys)
    return table._replace(
        users=table.users[order],
        items=table.items[order],
        ratings=take(table.ratings, order),
        timestamps=take(table.timestamps, order),
    )


def _hold_out(table: Interactions, heldout: Heldout | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] each, where validation and test events stand in the order of time; -1 for an official test item."""
    counts = np.bincount(table.users, minlength=table.num_users)
    ends = np.cumsum(counts)
    if heldout is None:
        return ends - 2, ends - 1
    elsewhere = np.full(table.num_users, -1)
    if table.timestamps is not None:
        return ends - 1, elsewhere
    back = random_bits(seed, _STREAM_ITEM, np.arange(table.num_users)) % counts.astype(np.uint64)
    return ends - 1 - back.astype(np.int64), elsewhere


def seen_codes(table: Interactions, heldout: Heldout | None = None) -> np.ndarray:
    """Name what each user has met, test items included.

    Args:
        table: the events.
        heldout: official test items, if any.

    Returns:
        int64[S], sorted distinct codes user * I + item.

    Example:
        >>> seen_codes(Interactions(np.ones(2, "i4"), np.arange(2), None, None, np.arange(2), np.arange(5)))
        array([5, 6])
    """
    codes = table.users.astype(np.int64) * table.num_items + table.items
    if heldout is not None:
        users = np.flatnonzero(heldout.items >= 0)
        codes = np.concatenate([codes, users * table.num_items + heldout.items[users]])
    return sort_distinct(codes)


def _offsets(counts: np.ndarray) -> np.ndarray:
    """int64[N + 1], running totals with a leading 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
