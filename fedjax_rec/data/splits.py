"""Splits: which of a user's events train, validate and test, and the candidates of sampled ranking.

Leave-one-out by time (He et al. 2017, arXiv:1708.05031): a user's last event is the test item, the last but
one the validation item. The order is a *stable* sort on (user, timestamp), so that equal timestamps keep
the order of the file: 415 of the 943 users of MovieLens 100K tie at their last timestamp, and another rule
is another data set. Without timestamps both are drawn at random, unless the lines are said to be in order
(`order`). Candidates are frozen: a user's draw depends on the protocol's seed, the user's code,
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
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.candidates import dedupe, draw_candidates, random_bits
from fedjax_rec.data.defaults import Size
from fedjax_rec.data.filters import filter_events, num_events, take
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.heldout import Events, HeldoutEvents, heldout_events, join_events
from fedjax_rec.data.inputs import as_dataset
from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.data.order import choose_order, sort_events, tell_drawn
from fedjax_rec.data.sorting import sort_distinct
from fedjax_rec.errors import ParameterError, check_arguments

NEGATIVES = ("train", "paper-leaky")
MIN_EVENTS = 3  # one each to train, validate and test
_STREAM_VALIDATION = 0  # of one seed's random numbers: streams are independent
_STREAM_TEST = 1
_STREAM_ITEM = 2


class Split(NamedTuple):
    """Training events by user in compressed rows (CSR), one validation and one test item each, or several.

    `heldout` has them where they are several; `validation` and `test` are then the first of each user.
    """

    offsets: np.ndarray  # int64[N + 1], user u's training events are offsets[u]:offsets[u + 1]
    items: np.ndarray  # int32[nnz], training items, each user's in the order below
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
    order: str = "time"  # of each user's events: one of `order.ORDERS`
    heldout: HeldoutEvents | None = None  # all that is held out, where that is several events a user

    @property
    def num_users(self) -> int:
        """Number of users N."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return len(self.item_ids)

    @property
    def size(self) -> Size:
        """Numbers of users, items and training events: what settings follow from."""
        return Size(self.num_users, self.num_items, len(self.items))

    def __repr__(self) -> str:
        held = sum(int((codes >= 0).sum()) for codes in (self.validation, self.test))
        held = held if self.heldout is None else sum(len(part.items) for part in self.heldout)
        size = f"{self.num_users:,} users, {self.num_items:,} items"
        return f"<Split of {self.name}: {size}, {len(self.items):,} training events, {held:,} held out>"


def leave_one_out(
    dataset: Dataset | Interactions | Frame,
    *,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    order: str | None = None,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Hold out each user's last two events; without timestamps any two of them.

    Where the data set comes with official test items, these are kept, and so are its official candidates,
    less the repeated ones and the positive itself; the validation item is then the last training event, or,
    without timestamps, a random one.

    Args:
        dataset: the data, or a frame of them (pandas, polars, pyarrow, a dict of columns; `data.from_frame` takes
            columns of unusual names); `dataset.test` holds the official test items, if any.
        min_user_events: users with fewer events (after `min_rating`, held-out ones included) are dropped.
        min_rating: events rated lower are dropped first, as if they had never happened. Items that a filter
            robs of their last event leave the catalogue.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        order: of a user's events: "time", "file" for the order of the lines, "random"; by default "time" where
            there are timestamps, and else "random".
        num_candidates: n, the size of a random draw of candidates, which are distinct and exclude all of the
            user's interactions; slots stay -1 where too few items remain.
        seed: the protocol's seed, 0 or more, which fixes candidates and random held-out items.

    Returns:
        The split.

    Raises:
        ValueError: if a user has fewer than 3 events, no user is left, `min_rating` finds no ratings, a core is
            asked of official test items, or the order is unknown or that of times that are not there.

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
        >>> leave_one_out({"user": ["ann"] * 3, "item": ["tea", "rum", "gin"], "timestamp": [3, 1, 2]}).test
        array([0], dtype=int32)
    """
    check_arguments(leave_one_out, locals())
    dataset = as_dataset(dataset, "leave_one_out")
    table, heldout, log = filter_events(
        dataset, min_rating=min_rating, min_user_events=min_user_events, core=core
    )
    _require_events(table, heldout)
    chosen = choose_order(dataset, order)
    keeps_lines = chosen == "random" and heldout is not None  # only the validation item is drawn, below
    table = sort_events(table, "file" if keeps_lines else chosen, seed)
    validation_at, test_at = _hold_out(table, heldout, chosen, seed)
    train = np.ones(len(table.items), bool)
    train[validation_at] = train[test_at[test_at >= 0]] = False
    seen = seen_codes(table, heldout)
    split = assemble(
        dataset, table, train, validation_at, test_at, seen=seen, num_candidates=num_candidates, seed=seed
    )._replace(log=log, order=chosen)
    if heldout is None:
        return split._replace(log=(*log, *tell_drawn(chosen, order)))
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
        >>> merge_validation(leave_one_out(Dataset("tiny", table), order="file")).items
        array([0, 1], dtype=int32)
    """
    held = heldout_events(split, "validation")
    counts = np.diff(held.offsets)
    ends = np.repeat(split.offsets[1:], counts)
    items = np.insert(split.items, ends, held.items)
    ratings = split.ratings
    validation_ratings = split.validation_ratings
    if ratings is not None and held.ratings is not None:
        ratings = np.insert(ratings, ends, held.ratings)
        validation_ratings = np.full(split.num_users, np.nan, np.float32)
    nothing = Events(np.zeros_like(held.offsets), held.items[:0], None if ratings is None else ratings[:0])
    heldout = None if split.heldout is None else split.heldout._replace(validation=nothing)
    return split._replace(
        offsets=split.offsets + _offsets(counts),
        items=items,
        ratings=ratings,
        validation=np.full_like(split.validation, -1),
        validation_ratings=validation_ratings,
        candidates_validation=np.full_like(split.candidates_validation, -1),
        log=(*split.log, f"merge_validation: training events {len(split.items)} -> {len(items)}"),
        heldout=heldout,
    )


def append_users(split: Split, others: Split) -> Split:
    """Put the users of two splits of one catalogue behind each other, such as training and held-out clients.

    Args:
        split: of N users.
        others: of further M users.

    Returns:
        the split of N + M users, without candidates.

    Raises:
        ValueError: if the items differ.

    Example:
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> append_users(split, split._replace(user_ids=np.array([7]))).user_ids
        array([0, 7])
    """
    if not np.array_equal(split.item_ids, others.item_ids):
        raise ValueError(f"{split.name} and {others.name} have other items")
    both = (split, others)

    def join(name: str) -> np.ndarray | None:
        columns = [getattr(each, name) for each in both]
        return None if columns[0] is None or columns[1] is None else np.concatenate(columns)

    columns: dict[str, Any] = {
        name: join(name)
        for name in (
            "items",
            "ratings",
            "validation",
            "validation_ratings",
            "test",
            "test_ratings",
            "user_ids",
        )
    }
    nothing = np.full((len(columns["user_ids"]), 0), -1, np.int32)
    heldout = None
    if split.heldout is not None or others.heldout is not None:
        parts = ([heldout_events(each, which) for each in both] for which in HeldoutEvents._fields)
        heldout = HeldoutEvents(*(join_events(*part) for part in parts))
    return split._replace(
        **columns,
        heldout=heldout,
        offsets=np.concatenate([split.offsets, split.offsets[-1] + others.offsets[1:]]),
        candidates_validation=nothing,
        candidates_test=nothing,
    )


def known_items(interactions: Interactions, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """All that is known of a split's users: every item that they have met, dropped events too.

    Args:
        interactions: the unfiltered data.
        split: names users and items.

    Returns:
        int64[N + 1] offsets and int32[K] items, ascending and each once for each user.

    Example:
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> known_items(table, leave_one_out(Dataset("tiny", table), order="file"))[1]
        array([0, 1, 2], dtype=int32)
    """
    rows = pd.Index(split.user_ids).get_indexer(pd.Index(interactions.user_ids))[interactions.users]
    columns = pd.Index(split.item_ids).get_indexer(pd.Index(interactions.item_ids))[interactions.items]
    kept = (rows >= 0) & (columns >= 0)
    own = np.repeat(np.arange(split.num_users), np.diff(split.offsets)) * split.num_items + split.items
    users = np.arange(split.num_users) * split.num_items
    events_held = (heldout_events(split, which) for which in HeldoutEvents._fields)
    heldout = [users[held.owners] + held.items for held in events_held]
    events = rows[kept].astype(np.int64) * split.num_items + columns[kept]
    pairs = sort_distinct(np.concatenate([own, *heldout, events]))
    counts = np.bincount(pairs // split.num_items, minlength=split.num_users)
    return _offsets(counts), (pairs % split.num_items).astype(np.int32)


def data_hash(
    interactions: Interactions, heldout: Heldout | None = None, parts: np.ndarray | None = None
) -> str:
    """Hash a table's content, order of events and external ids included.

    Args:
        interactions: the table.
        heldout: the official test items that come with it.
        parts: int8[M], the parts of a given split, where one is used.

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
        *([] if parts is None else [(parts, "<i1")]),
    ]
    digest = hashlib.sha256()
    for column, dtype in columns:
        digest.update(b"none" if column is None else str(column.shape).encode())
        digest.update(b"" if column is None else np.ascontiguousarray(column, dtype).tobytes())
    for ids in (interactions.user_ids, interactions.item_ids):
        digest.update(json.dumps(list(map(str, ids))).encode())
    return digest.hexdigest()


def _require_events(table: Interactions, heldout: Heldout | None) -> None:
    """Refuse users whose events do not suffice for a training, a validation and a test item."""
    require_least("leave-one-out", MIN_EVENTS, num_events(table, heldout), table.user_ids)


def require_least(splitter: str, least: int, events: np.ndarray, user_ids: np.ndarray) -> None:
    """Refuse users of fewer events than a splitter needs.

    Args:
        splitter: its name.
        least: what it needs.
        events: int[N], of each user.
        user_ids: [N], external ids.

    Raises:
        ValueError: naming the first such user, and the filter that drops them.
    """
    if len(short := np.flatnonzero(events < least)):
        raise ParameterError(
            f"{splitter} needs {least} events of each user; {len(short)} of {len(user_ids)} users have fewer, the "
            f"first of them {{first!r}} with {events[short[0]]}; {{min_user_events={least}}} drops them",
            first=str(user_ids[short[0]]),
        )


def _hold_out(
    table: Interactions, heldout: Heldout | None, order: str, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] each, where validation and test events stand in their order; -1 for an official test item."""
    counts = np.bincount(table.users, minlength=table.num_users)
    ends = np.cumsum(counts)
    if heldout is None:
        return ends - 2, ends - 1
    elsewhere = np.full(table.num_users, -1)
    if order != "random":
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
