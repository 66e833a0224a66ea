"""Columns to `Interactions`: codes by first appearance, checked numbers, and the rule for duplicate pairs.

Every reader ends here, with a frame or with the chunks of a file. A check that fails names its row through
`where`, which a file reader turns into `file:line` only then.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.duplicates import KEEP, keep_one
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.times import Times, as_numbers
from fedjax_rec.data.vocabulary import Vocabulary, Where


class Columns(NamedTuple):
    """Which columns hold the users, the items, the ratings and the times."""

    user: str
    item: str
    rating: str | None = None
    timestamp: str | None = None


def to_interactions(frame: pd.DataFrame, columns: Columns, where: Where, duplicates: str) -> Interactions:
    """Codes and checks the columns of a frame.

    Args:
        frame: one row for each event, at least one.
        columns: which columns to take.
        where: names a row of the frame, counted from zero, in messages.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time where there are times.

    Returns:
        The interactions in the frame's order.

    Raises:
        DataError: naming the first row that has an empty id, a number that is not finite, or a pair that an
            earlier row already has.

    Example:
        >>> frame = pd.DataFrame({"u": ["b", "a"], "i": [10**15, 7]})
        >>> events = to_interactions(frame, Columns("u", "i"), str, "error")
        >>> events.users, events.user_ids, events.item_ids[0]
        (array([0, 1], dtype=int32), array(['b', 'a'], dtype='<U1'), np.int64(1000000000000000))
    """
    check_rule(duplicates)
    return keep_one(gather([frame], len(frame), columns, where), where, duplicates)


def check_rule(duplicates: str) -> str:
    """Checks the name of a rule for duplicate pairs.

    Args:
        duplicates: the name.

    Returns:
        The same.

    Raises:
        DataError: if there is no such rule.

    Example:
        >>> check_rule("last")
        'last'
    """
    if duplicates not in KEEP:
        raise DataError(f"duplicates={duplicates!r}: choose one of {', '.join(map(repr, KEEP))}")
    return duplicates


def gather(chunks: Iterable[pd.DataFrame], max_rows: int, columns: Columns, where: Where) -> Interactions:
    """Codes and checks the columns of a table that comes in chunks; duplicates are left in.

    Args:
        chunks: of the table, in order.
        max_rows: of the table, at least as many as come.
        columns: which columns to take.
        where: names a row of the table, counted from zero, in messages.

    Returns:
        The interactions in the table's order.

    Raises:
        DataError: naming the first row of a chunk that has an empty id or a number that is not finite.

    Example:
        >>> halves = (pd.DataFrame({"u": [n], "i": [5]}) for n in (3, 1))
        >>> gather(halves, 2, Columns("u", "i"), str).user_ids
        array([3, 1])
    """
    # Columns as long as they may become, filled from the front.
    vocabularies = [Vocabulary(columns.user), Vocabulary(columns.item)]
    codes = np.empty(max_rows, np.int32), np.empty(max_rows, np.int32)
    ratings = None if columns.rating is None else np.empty(max_rows, np.float32)
    times = None if columns.timestamp is None else Times(max_rows)
    rows = 0
    for chunk in chunks:
        block = slice(rows, rows + len(chunk))
        where_in_chunk = _shift(where, rows)
        for vocabulary, column in zip(vocabularies, codes, strict=True):
            column[block] = vocabulary.codes(chunk[vocabulary.name], where_in_chunk)
        if ratings is not None:
            ratings[block] = _ratings(chunk[columns.rating], where_in_chunk)
        if times is not None:
            times.put(chunk[columns.timestamp], block, where_in_chunk)
        rows += len(chunk)
    # Cut to the rows that came; a vocabulary goes as soon as its ids are written out.
    users, items = (column[:rows] for column in codes)
    user_ids, item_ids = (vocabularies.pop(0).ids() for _ in range(2))
    timestamps = None if times is None else times.take(rows, where)
    return Interactions(
        users, items, None if ratings is None else ratings[:rows], timestamps, user_ids, item_ids
    )


def _shift(where: Where, start: int) -> Where:
    return lambda row: where(row + start)


def _ratings(values: pd.Series, where: Where) -> np.ndarray:
    array = as_numbers(values, "rating", where)
    large = np.abs(array) > np.finfo(np.float32).max
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{where(row)}: rating {array[row]} is too large for float32; correct or delete the line"
        )
    return array.astype(np.float32)
