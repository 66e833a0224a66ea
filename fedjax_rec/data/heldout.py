"""What is held out of each user's events: one item, or several in compressed rows.

A `Split` names one validation and one test item a user. Where a splitter holds out several events
(`positives="all"`), `Split.heldout` has all of them, and `validation` and `test` are the first of each user, so
that "has this user a test item" is asked in one way. Whatever must know *all* held-out items asks
`heldout_events`, for either kind.

Axis legend: `N` users, `P` held-out events of all users.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from fedjax_rec.data.interactions import Interactions
    from fedjax_rec.data.splits import Split

POSITIVES = ("all", "first")  # which of a user's held-out events count
PARTS = ("validation", "test")


class Events(NamedTuple):
    """Some events of each user in compressed rows (CSR), a user's in order."""

    offsets: np.ndarray  # int64[N + 1], user u's events are offsets[u]:offsets[u + 1]
    items: np.ndarray  # int32[P]
    ratings: np.ndarray | None = None  # float32[P], or None

    @property
    def owners(self) -> np.ndarray:
        """int64[P], the user of each event."""
        return np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets))


class HeldoutEvents(NamedTuple):
    """All events that are held out of a split, several a user; a user has an item at most once in each part."""

    validation: Events
    test: Events


def heldout_events(split: Split, which: str) -> Events:
    """All held-out events of a split, whether it holds out one a user or several.

    Args:
        split: of N users.
        which: `test` or `validation`.

    Returns:
        the events.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.splitters import ratio
        >>> data = {"user": [1] * 10, "item": list(range(10)), "timestamp": list(range(10))}
        >>> heldout_events(ratio(data, test_share=0.3), "test").items
        array([7, 8, 9], dtype=int32)
        >>> heldout_events(ratio(data, test_share=0.3, positives="first"), "test").items
        array([7], dtype=int32)
    """
    if which not in PARTS:
        raise ValueError(f"which={which!r} is unknown; choose one of 'test', 'validation'")
    if split.heldout is not None:
        return getattr(split.heldout, which)
    items = getattr(split, which)
    ratings = getattr(split, f"{which}_ratings")
    has_item = items >= 0
    return Events(
        offsets=_offsets(has_item),
        items=items[has_item],
        ratings=None if ratings is None else ratings[has_item],
    )


def select_events(table: Interactions, chosen: np.ndarray) -> Events:
    """Some events of a table, each item of a user once.

    Args:
        table: M events of N users, user after user.
        chosen: bool[M].

    Returns:
        the events; of a pair that repeats the first.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> users, items = np.array([0, 0, 1]), np.array([4, 4, 2])
        >>> table = Interactions(users, items, None, None, np.arange(2), np.arange(5))
        >>> select_events(table, np.ones(3, bool))
        Events(offsets=array([0, 1, 2]), items=array([4, 2], dtype=int32), ratings=None)
    """
    at = np.flatnonzero(chosen)
    pairs = table.users[at].astype(np.int64) * table.num_items + table.items[at]
    at = at[~pd.Series(pairs).duplicated().to_numpy()]
    counts = np.bincount(table.users[at], minlength=table.num_users)
    ratings = None if table.ratings is None else table.ratings[at].astype(np.float32)
    return Events(_offsets(counts), table.items[at].astype(np.int32), ratings)


def keep_users(events: Events, users: np.ndarray) -> Events:
    """The same, without those of some users.

    Args:
        events: of N users.
        users: bool[N], whose events stay.

    Returns:
        events of N users.

    Example:
        >>> keep_users(Events(np.array([0, 1, 3]), np.array([7, 8, 9])), np.array([False, True])).offsets
        array([0, 0, 2])
    """
    kept = users[events.owners]
    counts = np.where(users, np.diff(events.offsets), 0)
    ratings = None if events.ratings is None else events.ratings[kept]
    return Events(_offsets(counts), events.items[kept], ratings)


def join_events(first: Events, second: Events) -> Events:
    """Events of two groups of users, one behind the other.

    Args:
        first: of N users.
        second: of M further users.

    Returns:
        events of N + M users; ratings where both have them.

    Example:
        >>> one = Events(np.array([0, 1]), np.array([7]))
        >>> join_events(one, one).offsets
        array([0, 1, 2])
    """
    rated = first.ratings is not None and second.ratings is not None
    return Events(
        offsets=np.concatenate([first.offsets, first.offsets[-1] + second.offsets[1:]]),
        items=np.concatenate([first.items, second.items]),
        ratings=np.concatenate([first.ratings, second.ratings]) if rated else None,
    )


def first_of(events: Events) -> tuple[np.ndarray, np.ndarray | None]:
    """Each user's first event.

    Args:
        events: of N users.

    Returns:
        int32[N] items, -1 for none, and float32[N] ratings, NaN for none, or None.

    Example:
        >>> first_of(Events(np.array([0, 2, 2]), np.array([7, 8], np.int32)))
        (array([ 7, -1], dtype=int32), None)
    """
    has_event = np.diff(events.offsets) > 0
    at = events.offsets[:-1][has_event]
    items = np.full(len(has_event), -1, np.int32)
    items[has_event] = events.items[at]
    if events.ratings is None:
        return items, None
    ratings = np.full(len(has_event), np.nan, np.float32)
    ratings[has_event] = events.ratings[at]
    return items, ratings


def hold_out_all(split: Split, validation: Events, test: Events) -> Split:
    """A split in which these events are held out, and all of them count.

    Args:
        split: of N users.
        validation: of N users.
        test: of N users.

    Returns:
        the split.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> split = tiny_split()
        >>> hold_out_all(split, *(heldout_events(split, which) for which in PARTS)).test is split.test
        False
    """
    first = dict(zip(PARTS, map(first_of, (validation, test)), strict=True))
    return split._replace(
        heldout=HeldoutEvents(validation, test),
        validation=first["validation"][0],
        validation_ratings=first["validation"][1],
        test=first["test"][0],
        test_ratings=first["test"][1],
    )


def _offsets(counts: np.ndarray) -> np.ndarray:
    """int64[N + 1], running totals with a leading 0."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
