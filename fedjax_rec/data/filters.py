"""Filters: which events and users remain before anything is held out, with the counts before and after.

They act in one order: ratings, then users by their number of events, then the k-core (Batagelj and Zaversnik 2003,
arXiv:cs/0310049), so that each of these conditions holds in what remains.
"""

from collections.abc import Callable

import numpy as np

from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.errors import ParameterError


def filter_events(
    dataset: Dataset, *, min_rating: float | None = None, min_user_events: int = 0, core: int = 0
) -> tuple[Interactions, Heldout | None, tuple[str, ...]]:
    """Drop events by rating, users by number of events, then users and items to the k-core.

    The k-core is the largest part of the data in which every user and every item has k events or more: users and
    items with fewer are dropped again and again, until none is left.

    Args:
        dataset: the data.
        min_rating: events rated lower are dropped; None drops none.
        min_user_events: users with fewer events, an official test item included, are dropped; 0 drops none.
        core: k; 0 drops none.

    Returns:
        the table, whose items all have an event or never had one, the official test items, and the log: notes of
        the data, a line for each filter with the counts before and after, and one of ratings that are not above 0.

    Raises:
        ValueError: if no user is left, ratings are absent, or a core is asked of official test items.

    Example:
        >>> users, items = np.array([0, 0, 1, 1, 2], "i4"), np.array([0, 1, 0, 1, 2], "i4")
        >>> table = Interactions(users, items, None, None, np.arange(3), np.arange(3))
        >>> filter_events(Dataset("tiny", table), core=2)[2]
        ('core=2: users 3 -> 2, items 3 -> 2, events 5 -> 4',)
    """
    table = dataset.interactions
    heldout = dataset.test
    log = list(dataset.notes)
    if min_rating is not None:
        if table.ratings is None:
            raise ParameterError(
                f"{{min_rating={min_rating:g}}} needs ratings, and {{_name!r}} has none", _name=dataset.name
            )
        before = table
        everyone = np.ones(table.num_users, bool)
        table, heldout = restrict(table, heldout, table.ratings >= min_rating, everyone)
        log.append(log_line(f"min_rating={min_rating}", before, table))
    if min_user_events > 0:
        before = table
        users = num_events(table, heldout) >= min_user_events
        table, heldout = restrict(table, heldout, users[table.users], users)
        log.append(log_line(f"min_user_events={min_user_events}", before, table))
    if core > 0:
        if heldout is not None:
            raise ParameterError(
                f"{{core={core}}} would change the official test of {{_name!r}}; leave it out",
                _name=dataset.name,
            )
        before = table
        table = _core(table, core)
        log.append(log_line(f"core={core}", before, table))
    if table.ratings is not None and (low := int((table.ratings <= 0).sum())):
        log.append(
            f"{low:,} of {len(table.ratings):,} events are rated 0 or below and count as positives; min_rating "
            "(--min-rating) drops them"
        )
    if not table.num_users:
        raise ValueError(f"no user of {dataset.name!r} is left; {'; '.join(log) or 'the data set is empty'}")
    return table, heldout, tuple(log)


def _core(table: Interactions, k: int) -> Interactions:
    """The k-core, recoded."""
    users = table.users
    items = table.items
    # drop the events of users and items that have fewer than k left, until none is dropped
    alive = np.ones(len(users), bool)
    num_alive = -1
    while num_alive != alive.sum():
        num_alive = int(alive.sum())
        for codes in (users, items):
            alive &= np.bincount(codes[alive], minlength=int(codes.max(initial=0)) + 1)[codes] >= k
    kept_items = np.bincount(items[alive], minlength=table.num_items) > 0
    kept_users = np.bincount(users[alive], minlength=table.num_users) > 0
    restricted, _ = restrict(table, None, alive, kept_users, kept_items)
    return restricted


def log_line(name: str, before: Interactions, after: Interactions) -> str:
    """Say what a filter did.

    Args:
        name: of the filter.
        before: the table that it was given.
        after: what it left.

    Returns:
        one line with the numbers of users, items and events before and after.

    Example:
        >>> table = Interactions(np.zeros(1, "i4"), np.zeros(1, "i4"), None, None, np.arange(1), np.arange(1))
        >>> log_line("core=1", table, table)
        'core=1: users 1 -> 1, items 1 -> 1, events 1 -> 1'
    """
    users = f"users {before.num_users} -> {after.num_users}"
    items = f"items {before.num_items} -> {after.num_items}"
    return f"{name}: {users}, {items}, events {len(before.users)} -> {len(after.users)}"


def restrict(
    table: Interactions,
    heldout: Heldout | None,
    events: np.ndarray,
    users: np.ndarray,
    items: np.ndarray | None = None,
) -> tuple[Interactions, Heldout | None]:
    """Keep some events and users, and every item but those that thereby lose their last event.

    Args:
        table: M events of N users and I items.
        heldout: official test items, if any; they and their candidates keep their items in the catalogue.
        events: bool[M], the events to keep, all of them of kept users.
        users: bool[N], the users to keep.
        items: bool[I], the items to keep, instead of the rule above.

    Returns:
        the table and the test items, recoded.

    Example:
        >>> users, items = np.array([0, 1], "i4"), np.array([1, 0], "i4")
        >>> table = Interactions(users, items, None, None, np.arange(2), np.arange(2))
        >>> restrict(table, None, users == 1, np.array([False, True]))[0].item_ids
        array([0])
    """
    # which items stay: those that have an event, or never had one, or are held out
    had_event, has_event = (
        np.bincount(column, minlength=table.num_items) > 0 for column in (table.items, table.items[events])
    )
    items = has_event | ~had_event if items is None else items
    if heldout is not None:
        heldout = _map_heldout(lambda codes: codes[users], heldout)
        for codes in heldout:
            items[[] if codes is None else codes[codes >= 0]] = True
    # new codes for old ones, of what stays
    user_codes, item_codes = (np.cumsum(mask, dtype=np.int32) - np.int32(1) for mask in (users, items))
    if heldout is not None:
        heldout = _map_heldout(lambda codes: _recode(item_codes, codes), heldout)
    return Interactions(
        users=user_codes[table.users[events]],
        items=item_codes[table.items[events]],
        ratings=take(table.ratings, events),
        timestamps=take(table.timestamps, events),
        user_ids=table.user_ids[users],
        item_ids=table.item_ids[items],
    ), heldout


def _map_heldout(function: Callable[[np.ndarray], np.ndarray], heldout: Heldout) -> Heldout:
    return Heldout(
        function(heldout.items), None if heldout.candidates is None else function(heldout.candidates)
    )


def _recode(new: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """New codes for old ones; -1 stays."""
    return np.where(codes >= 0, new[codes], np.int32(-1))


def num_events(table: Interactions, heldout: Heldout | None) -> np.ndarray:
    """Count each user's events, the official test item included.

    Args:
        table: of N users.
        heldout: official test items, if any.

    Returns:
        int64[N].

    Example:
        >>> table = Interactions(np.zeros(3, "i4"), np.arange(3), None, None, np.arange(2), np.arange(3))
        >>> num_events(table, None)
        array([3, 0])
    """
    num_heldout = 0 if heldout is None else heldout.items >= 0
    return np.bincount(table.users, minlength=table.num_users) + num_heldout


def take(column: np.ndarray | None, index: np.ndarray) -> np.ndarray | None:
    """Index a column that may be absent.

    Args:
        column: [M], or None.
        index: indices or a mask.

    Returns:
        the elements, or None.

    Example:
        >>> take(np.array([3, 4]), np.array([1])), take(None, np.array([1]))
        (array([4]), None)
    """
    return None if column is None else column[index]
