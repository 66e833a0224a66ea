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
from fedjax_rec.data.vocabulary import Vocabulary, Where

_EXACT = 2.0**53  # float64 holds every integer below


class Columns(NamedTuple):
    """The columns that play the four parts."""

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


def gather(chunks: Iterable[pd.DataFrame], most: int, columns: Columns, where: Where) -> Interactions:
    """Codes and checks the columns of a table that comes in chunks; duplicates are left in.

    Args:
        chunks: of the table, in order.
        most: rows that may come, at least as many as do.
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
    names = [Vocabulary(columns.user), Vocabulary(columns.item)]
    codes = np.empty(most, np.int32), np.empty(most, np.int32)
    ratings = None if columns.rating is None else np.empty(most, np.float32)
    times = None if columns.timestamp is None else _Times(most)
    rows = 0
    for chunk in chunks:
        block, here = slice(rows, rows + len(chunk)), _shift(where, rows)
        for vocabulary, column in zip(names, codes, strict=True):
            column[block] = vocabulary.codes(chunk[vocabulary.name], here)
        if ratings is not None:
            ratings[block] = _ratings(chunk[columns.rating], here)
        if times is not None:
            times.put(chunk[columns.timestamp], block, here)
        rows += len(chunk)
    users, items = (column[:rows] for column in codes)
    user_ids, item_ids = (names.pop(0).ids() for _ in range(2))  # a table goes as soon as it was read
    held = None if times is None else times.take(rows, where)
    return Interactions(users, items, None if ratings is None else ratings[:rows], held, user_ids, item_ids)


def _shift(where: Where, start: int) -> Where:
    return lambda row: where(row + start)


def _numbers(values: pd.Series, name: str, where: Where) -> np.ndarray:
    array = _as_numbers(values)
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(bad.argmax())
        value = values.iloc[row]
        shown = repr(value) if isinstance(value, str) else str(value)
        shown = shown if len(shown) < 60 else f"{shown[:50]}..."
        raise DataError(f"{where(row)}: {name} {shown} is not a finite number; correct or delete the line")
    return array


def _as_numbers(values: pd.Series) -> np.ndarray:
    """A plain numeric array; NaN where there is no number."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf":
        return values.to_numpy()
    if pd.api.types.is_bool_dtype(values.dtype):
        return np.full(len(values), np.nan)
    return pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _ratings(values: pd.Series, where: Where) -> np.ndarray:
    array = _numbers(values, "rating", where)
    large = np.abs(array) > np.finfo(np.float32).max
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{where(row)}: rating {array[row]} is too large for float32; correct or delete the line"
        )
    return array.astype(np.float32)


class _Times:
    """Times as int64, or as float64 from the first fraction on.

    Whole seconds may be any int64. Beside numbers in another form (a point, an exponent) all must be below 2^53,
    so that float64 holds each exactly.
    """

    def __init__(self, most: int) -> None:
        self.whole = np.empty(most, np.int64)
        self.floats = False  # whether any chunk came as floats,
        self.fractions: np.ndarray | None = None  # and the times once one of them was no integer

    def put(self, values: pd.Series, block: slice, where: Where) -> None:
        array = _numbers(_seconds(values) if values.dtype.kind == "M" else values, "timestamp", where)
        if array.dtype.kind == "f":
            self.floats = True
            _refuse_large(array, where)
            if self.fractions is None and (array % 1 != 0).any():
                self.fractions = self.whole.view(np.float64)  # in the same place
                self.fractions[: block.start] = self.whole[: block.start].astype(np.float64)
        elif array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any():
            _refuse_large(array.astype(np.float64), where)
        (self.whole if self.fractions is None else self.fractions)[block] = array

    def take(self, rows: int, where: Where) -> np.ndarray:
        times = (self.whole if self.fractions is None else self.fractions)[:rows]
        if self.floats:
            _refuse_large(times, where)
        return times


def _refuse_large(array: np.ndarray, where: Where) -> None:
    large = (array >= _EXACT) | (array <= -_EXACT)
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{where(row)}: timestamp {array[row]} is out of range (whole seconds within int64, or numbers below "
            "2^53); correct or delete the line"
        )


def _seconds(values: pd.Series) -> pd.Series:
    epoch = pd.Timestamp(0, tz=getattr(values.dtype, "tz", None))
    return (values - epoch) / pd.Timedelta(seconds=1)
