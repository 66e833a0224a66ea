"""Splits: which of a user's events train, validate and test, and the candidates of sampled ranking.

Leave-one-out by time (He et al. 2017, arXiv:1708.05031): a user's last event is the test item, the last but
one the validation item. The order is a *stable* sort on (user, timestamp), so that equal timestamps keep
the order of the file: 415 of the 943 users of MovieLens 100K tie at their last timestamp, and another rule
is another data set. Candidates are frozen: a user's draw depends on the protocol's seed, the user's code,
the size of the catalogue and the items that this user has met, and not on the other users or the run's
seed.

Axis legend: `N` users, `I` items, `M` interactions, `n` candidates.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_rec.data.interactions import Dataset, Heldout, Interactions

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
        num_candidates: n, the size of a random draw of candidates, which are distinct and exclude all of the
            user's interactions; slots stay -1 where too few items remain.
        seed: the protocol's seed, 0 or more, which fixes candidates and random validation items.

    Returns:
        The split.

    Raises:
        ValueError: if a user has fewer than 3 events, no user is left, or `min_rating` finds no ratings.

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
    table, heldout, log = _filter(dataset, min_rating, min_user_events)
    _require_events(table, heldout)
    order = _time_order(table)
    users, items, ratings = table.users[order], table.items[order], _take(table.ratings, order)
    validation_at, test_at = _hold_out(table, heldout, seed)
    train = np.ones(len(items), bool)
    train[validation_at] = train[test_at] = False
    shape = (table.num_users, num_candidates)
    draw = functools.partial(_draw, _seen(table, heldout), shape, table.num_items, seed)
    test = items[test_at] if heldout is None else heldout.items
    official = None if heldout is None else heldout.candidates
    return Split(
        offsets=_offsets(_bincount(users[train], table.num_users)),
        items=items[train],
        ratings=_take(ratings, train),
        validation=items[validation_at],
        validation_ratings=_take(ratings, validation_at),
        test=test,
        test_ratings=_take(ratings, test_at) if heldout is None else None,
        candidates_validation=draw(_STREAM_VALIDATION),
        candidates_test=draw(_STREAM_TEST) if official is None else _dedupe(official, test),
        user_ids=table.user_ids,
        item_ids=table.item_ids,
        name=dataset.name,
        data_hash=data_hash(dataset.interactions, dataset.test),
        log=log,
    )


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


def _filter(
    dataset: Dataset, min_rating: float | None, min_user_events: int
) -> tuple[Interactions, Heldout | None, tuple[str, ...]]:
    """Drop events by rating, then users by number of events; log the counts before and after."""
    table, heldout, log = dataset.interactions, dataset.test, []
    if min_rating is not None:
        if table.ratings is None:
            raise ValueError(f"min_rating={min_rating} needs ratings, and {dataset.name!r} has none")
        before, everyone = table, np.ones(table.num_users, bool)
        table, heldout = _restrict(table, heldout, table.ratings >= min_rating, everyone)
        log.append(_log_line(f"min_rating={min_rating}", before, table))
    if min_user_events > 0:
        before, users = table, _num_events(table, heldout) >= min_user_events
        table, heldout = _restrict(table, heldout, users[table.users], users)
        log.append(_log_line(f"min_user_events={min_user_events}", before, table))
    if not table.num_users:
        raise ValueError(f"no user of {dataset.name!r} is left; {'; '.join(log) or 'the data set is empty'}")
    return table, heldout, tuple(log)


def _log_line(name: str, before: Interactions, after: Interactions) -> str:
    users = f"users {before.num_users} -> {after.num_users}"
    items = f"items {before.num_items} -> {after.num_items}"
    return f"{name}: {users}, {items}, events {len(before.users)} -> {len(after.users)}"


def _restrict(
    table: Interactions, heldout: Heldout | None, events: np.ndarray, users: np.ndarray
) -> tuple[Interactions, Heldout | None]:
    """Keep some events and users, and every item but those that thereby lose their last event."""
    had, has = (_bincount(column, table.num_items) > 0 for column in (table.items, table.items[events]))
    kept = has | ~had
    if heldout is not None:
        heldout = _map_heldout(lambda codes: codes[users], heldout)
        for codes in heldout:
            kept[[] if codes is None else codes[codes >= 0]] = True
    user_codes, item_codes = (np.cumsum(mask, dtype=np.int32) - np.int32(1) for mask in (users, kept))
    if heldout is not None:
        heldout = _map_heldout(lambda codes: _recode(item_codes, codes), heldout)
    return Interactions(
        users=user_codes[table.users[events]],
        items=item_codes[table.items[events]],
        ratings=_take(table.ratings, events),
        timestamps=_take(table.timestamps, events),
        user_ids=table.user_ids[users],
        item_ids=table.item_ids[kept],
    ), heldout


def _map_heldout(function: Callable[[np.ndarray], np.ndarray], heldout: Heldout) -> Heldout:
    return Heldout(
        function(heldout.items), None if heldout.candidates is None else function(heldout.candidates)
    )


def _recode(new: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """New codes for old ones; -1 stays."""
    return np.where(codes >= 0, new[codes], np.int32(-1))


def _num_events(table: Interactions, heldout: Heldout | None) -> np.ndarray:
    """int64[N], each user's events, the official test item included."""
    held = 0 if heldout is None else heldout.items >= 0
    return _bincount(table.users, table.num_users) + held


def _require_events(table: Interactions, heldout: Heldout | None) -> None:
    """Refuse users whose events do not suffice for a training, a validation and a test item."""
    events = _num_events(table, heldout)
    if len(short := np.flatnonzero(events < _MIN_EVENTS)):
        first = short[0]
        raise ValueError(
            f"leave-one-out needs {_MIN_EVENTS} events of each user; {len(short)} of {table.num_users} users "
            f"have fewer, the first of them {str(table.user_ids[first])!r} with {events[first]}; "
            f"min_user_events={_MIN_EVENTS} drops them"
        )


def _time_order(table: Interactions) -> np.ndarray:
    """int64[M], the stable order by (user, timestamp), or by user alone without timestamps."""
    keys = (table.users,) if table.timestamps is None else (table.timestamps, table.users)
    return np.lexsort(keys)


def _hold_out(table: Interactions, heldout: Heldout | None, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] and int64[N or 0], where validation and test events stand in the order of time."""
    counts = _bincount(table.users, table.num_users)
    ends = np.cumsum(counts)
    if heldout is None:
        return ends - 2, ends - 1
    if table.timestamps is not None:
        return ends - 1, ends[:0]
    back = _random_bits(seed, _STREAM_ITEM, np.arange(table.num_users)) % counts.astype(np.uint64)
    return ends - 1 - back.astype(np.int64), ends[:0]


def _seen(table: Interactions, heldout: Heldout | None) -> np.ndarray:
    """int64[S], sorted distinct codes user * I + item of all interactions, test items included."""
    codes = table.users.astype(np.int64) * table.num_items + table.items
    if heldout is not None:
        users = np.flatnonzero(heldout.items >= 0)
        codes = np.concatenate([codes, users * table.num_items + heldout.items[users]])
    return sort_distinct(codes)


def _draw(seen: np.ndarray, shape: tuple[int, int], num_items: int, seed: int, stream: int) -> np.ndarray:
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
    """
    num_users, num_candidates = shape
    users = np.arange(num_users)
    free = num_items - _bincount(seen // num_items, num_users)
    size = np.minimum(free, num_candidates)
    ranks = np.full((num_candidates, num_users), -1, np.int64)
    for slot in range(min(num_candidates, int(size.max(initial=0)))):  # later slots stay empty
        last = free - size + slot
        rank = (_random_bits(seed, stream, users, slot) % (last + 1).astype(np.uint64)).astype(np.int64)
        rank = np.where((ranks[:slot] == rank).any(0), last, rank)
        ranks[slot] = np.where(slot < size, rank, -1)
    return _unseen(seen, ranks.T, num_items)


def _unseen(seen: np.ndarray, ranks: np.ndarray, num_items: int) -> np.ndarray:
    """int32[N, n], the items that stand at some ranks (from 0, -1 for none) among each user's unseen items.

    A user's k-th seen item s_k (from 0) has s_k - k unseen ones before it, so that the unseen item of rank r
    is r plus the number of k with s_k - k <= r.
    """
    users = np.arange(len(ranks))[:, None]
    seen_users, seen_items = np.divmod(seen, num_items)
    starts = np.searchsorted(seen_users, users)
    before = seen_items - (np.arange(len(seen)) - starts[seen_users, 0])
    stride = num_items + 1
    passed = np.searchsorted(seen_users * stride + before, users * stride + ranks, side="right") - starts
    return np.where(ranks >= 0, ranks + passed, -1).astype(np.int32)


def _dedupe(candidates: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Empty the slots that repeat a candidate or hold the positive itself, as He's evaluator does."""
    order = np.argsort(candidates, axis=1, kind="stable")
    ranked = np.take_along_axis(candidates, order, axis=1)
    repeated = np.zeros(candidates.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], axis=1)
    return np.where(repeated | (candidates == positives[:, None]), np.int32(-1), candidates)


def _random_bits(*words: int | np.ndarray) -> np.ndarray:
    """uint64[N], a hash of the broadcast words: SplitMix64 (Steele et al. 2014) over each in turn."""
    state = np.zeros(1, np.uint64)
    for word in words:
        state = (state ^ np.asarray(word).astype(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return state


def _take(column: np.ndarray | None, at: np.ndarray) -> np.ndarray | None:
    return None if column is None else column[at]


def _bincount(codes: np.ndarray, length: int) -> np.ndarray:
    return np.bincount(codes, minlength=length)


def _offsets(counts: np.ndarray) -> np.ndarray:
    """int64[N + 1], running totals with a leading 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
