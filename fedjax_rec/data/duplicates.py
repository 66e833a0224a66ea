"""Pairs that occur more than once: found by sorting, and one event of each kept, or refused.

Besides the events, this takes 8 bytes for each of them, and hardly more where few pairs repeat.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.vocabulary import Where

KEEP = ("error", "first", "last")
_BLOCK = 2**16  # rows looked at together


def keep_one(events: Interactions, where: Where, duplicates: str) -> Interactions:
    """Applies the rule for pairs that repeat.

    Args:
        events: in file order.
        where: names a row in messages.
        duplicates: "error", or keep the "first" or the "last" event of a pair: by time where there are times,
            and by the order of the rows where there are none or they are equal.

    Returns:
        The events that are kept, in file order, with the vocabulary of what they name.

    Raises:
        DataError: naming the first row whose pair an earlier row already has, and that row.

    Example:
        >>> users = items = np.zeros(2, np.int32)
        >>> twice = Interactions(users, items, np.float32([4, 5]), np.array([9, 7]), np.array([3]), np.array([8]))
        >>> keep_one(twice, str, "last").ratings
        array([4.], dtype=float32)
    """
    pairs = _repeated(events)
    if not len(pairs):
        return events
    if duplicates != "error":
        return _take(events, _kept(events, pairs, events.timestamps, last=duplicates == "last"))
    row = int((~_kept(events, pairs, None, last=False)).argmax())
    same = (events.users == events.users[row]) & (events.items == events.items[row])
    user, item = events.user_ids[events.users[row]], events.item_ids[events.items[row]]
    raise DataError(
        f"{where(row)}: user {user} already has item {item} at {where(int(same.argmax()))}; "
        "pass duplicates='first' or duplicates='last' to keep one of them"
    )


def _repeated(events: Interactions) -> np.ndarray:
    """The pairs that repeat, sorted, as user times items plus item."""
    pairs = events.users.astype(np.int64)
    pairs *= events.num_items
    pairs += events.items
    pairs.sort()
    twice = pairs[1:][pairs[1:] == pairs[:-1]]
    return twice[np.append(True, twice[1:] != twice[:-1])] if len(twice) else twice


def _hits(events: Interactions, pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of repeated pairs and the places of their pairs, some rows at a time."""
    for start in range(0, len(events.users), _BLOCK):
        block = slice(start, start + _BLOCK)
        own = events.users[block].astype(np.int64) * events.num_items + events.items[block]
        places = np.minimum(np.searchsorted(pairs, own), len(pairs) - 1)
        rows = np.flatnonzero(pairs[places] == own)
        yield rows + start, places[rows]


def _kept(events: Interactions, pairs: np.ndarray, times: np.ndarray | None, *, last: bool) -> np.ndarray:
    """Which rows stay: all whose pair does not repeat, and one of each that does."""
    best = np.full(len(pairs), -1)  # row of each pair
    for rows, places in _hits(events, pairs):
        rows, places = np.append(best[places], rows), np.append(places, places)  # noqa: PLW2901 - with the best so far
        rows, places = rows[rows >= 0], places[rows >= 0]  # noqa: PLW2901
        order = np.lexsort((rows, places) if times is None else (rows, times[rows], places))
        rows, places = rows[order], places[order]  # noqa: PLW2901
        edge = places[1:] != places[:-1]
        chosen = np.append(edge, True) if last else np.append(True, edge)
        if len(rows):
            best[places[chosen]] = rows[chosen]
    kept = np.ones(len(events.users), bool)
    for rows, places in _hits(events, pairs):
        kept[rows] = best[places] == rows
    return kept


def _take(events: Interactions, kept: np.ndarray) -> Interactions:
    users, user_order = pd.factorize(events.users[kept])
    items, item_order = pd.factorize(events.items[kept])
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        None if events.ratings is None else events.ratings[kept],
        None if events.timestamps is None else events.timestamps[kept],
        events.user_ids[user_order],
        events.item_ids[item_order],
    )
