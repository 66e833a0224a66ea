"""Pairs that occur more than once: found by sorting, and made one event, or refused.

| rule | a pair's event |
|---|---|
| `error` | must be its only one |
| `first`, `last` | that one: by time, by line where there is none or it is equal |
| `count` | the last, rated by how many there are |
| `sum` | the last, rated by the sum of all ratings |

Besides the events, this takes 8 bytes for each of them, and hardly more where few pairs repeat.
"""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataParameterError
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.vocabulary import Where

KEEP = ("error", "first", "last", "count", "sum")
_BLOCK = 2**16  # rows looked at together


def keep_one(events: Interactions, where: Where, duplicates: str) -> Interactions:
    """Applies the rule for pairs that repeat.

    Args:
        events: in file order.
        where: names a row in messages.
        duplicates: a rule of the table above.

    Returns:
        The events that are kept, in file order, with the vocabulary of what they name.

    Raises:
        DataError: naming the first row whose pair an earlier row already has, and that row; or if there are no
            ratings to add up.

    Example:
        >>> users = items = np.zeros(2, np.int32)
        >>> twice = Interactions(users, items, np.float32([4, 5]), np.array([9, 7]), np.array([3]), np.array([8]))
        >>> keep_one(twice, str, "last").ratings
        array([4.], dtype=float32)
    """
    pairs = _repeated(events)
    if duplicates in ("count", "sum"):
        events = events._replace(ratings=_totals(events, pairs, duplicates))
    if not len(pairs):
        return events
    if duplicates != "error":
        return _take(events, _rows_to_keep(events, pairs, events.timestamps, last=duplicates != "first"))
    row = int((~_rows_to_keep(events, pairs, None, last=False)).argmax())
    same = (events.users == events.users[row]) & (events.items == events.items[row])
    user = events.user_ids[events.users[row]]
    item = events.item_ids[events.items[row]]
    raise DataParameterError(
        "{where}: user {user_id} already has item {item_id} at {before}; {duplicates=first} or {duplicates=last} "
        "keeps one of them, {duplicates=count} or {duplicates=sum} rates them together",
        where=where(row),
        user_id=user,
        item_id=item,
        before=where(int(same.argmax())),
    )


def _repeated(events: Interactions) -> np.ndarray:
    """The pairs that repeat, sorted, as user times items plus item."""
    pairs = events.users.astype(np.int64)
    pairs *= events.num_items
    pairs += events.items
    pairs.sort()
    twice = pairs[1:][pairs[1:] == pairs[:-1]]
    return twice[np.append(True, twice[1:] != twice[:-1])] if len(twice) else twice


def _totals(events: Interactions, pairs: np.ndarray, rule: str) -> np.ndarray:
    """float32[M], of each row the number of its pair's events, or the sum of their ratings."""
    if rule == "sum" and events.ratings is None:
        raise DataParameterError(
            "{duplicates=sum} adds up ratings, and there are none; use count, first or last"
        )
    values = np.ones(len(events.users)) if rule == "count" else np.asarray(events.ratings, np.float64)
    sums = np.zeros(len(pairs))
    if len(pairs):
        for rows, index in _rows_of_pairs(events, pairs):
            np.add.at(sums, index, values[rows])
        for rows, index in _rows_of_pairs(events, pairs):
            values[rows] = sums[index]
    return values.astype(np.float32)


def _rows_of_pairs(events: Interactions, pairs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of repeated pairs, and the index of each row's pair among `pairs`, some rows at a time."""
    for start in range(0, len(events.users), _BLOCK):
        block = slice(start, start + _BLOCK)
        codes = events.users[block].astype(np.int64) * events.num_items + events.items[block]
        index = np.minimum(np.searchsorted(pairs, codes), len(pairs) - 1)
        rows = np.flatnonzero(pairs[index] == codes)
        yield rows + start, index[rows]


def _rows_to_keep(
    events: Interactions, pairs: np.ndarray, times: np.ndarray | None, *, last: bool
) -> np.ndarray:
    """Which rows stay, bool[M]: all whose pair does not repeat, and one of each that does."""
    best = np.full(len(pairs), -1)  # row of each pair, as far as was looked
    for block_rows, block_index in _rows_of_pairs(events, pairs):
        # The block's rows, and the best so far of their pairs, of which -1 is none.
        rows = np.append(best[block_index], block_rows)
        index = np.append(block_index, block_index)
        there = rows >= 0
        rows = rows[there]
        index = index[there]
        # Sorted by pair, time and row, the first or the last of each pair is the new best.
        order = np.lexsort((rows, index) if times is None else (rows, times[rows], index))
        rows = rows[order]
        index = index[order]
        edge = index[1:] != index[:-1]
        chosen = np.append(edge, True) if last else np.append(True, edge)
        if len(rows):
            best[index[chosen]] = rows[chosen]
    keep = np.ones(len(events.users), bool)
    for rows, index in _rows_of_pairs(events, pairs):
        keep[rows] = best[index] == rows
    return keep


def _take(events: Interactions, keep: np.ndarray) -> Interactions:
    """Some events, coded anew."""
    users, user_order = pd.factorize(events.users[keep])
    items, item_order = pd.factorize(events.items[keep])
    return Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        None if events.ratings is None else events.ratings[keep],
        None if events.timestamps is None else events.timestamps[keep],
        events.user_ids[user_order],
        events.item_ids[item_order],
    )
