"""Columns to `Interactions`: codes by first appearance, checked numbers, and the rule for duplicate pairs.

Every reader ends here. A check that fails names its row through `where`, which a file reader turns into
`file:line` only then.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Interactions

Where = Callable[[int], str]

_KEEP = ("error", "first", "last")
_EXACT = 2.0**53  # float64 holds every integer up to here


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
        duplicates: what to do when a user meets an item twice: "error", or keep the "first" or "last" row.

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
    if duplicates not in _KEEP:
        raise DataError(f"duplicates={duplicates!r}: choose one of {', '.join(map(repr, _KEEP))}")
    users, user_ids = encode(frame[columns.user], columns.user, where)
    items, item_ids = encode(frame[columns.item], columns.item, where)
    ratings = None if columns.rating is None else _ratings(frame[columns.rating], where)
    times = None if columns.timestamp is None else _timestamps(frame[columns.timestamp], where)
    events = Interactions(users, items, ratings, times, user_ids, item_ids)
    return _without_duplicates(events, where, duplicates)


def encode(values: pd.Series, name: str, where: Where) -> tuple[np.ndarray, np.ndarray]:
    """Codes a column of ids densely, in the order of first appearance.

    Args:
        values: [M] ids of any type.
        name: the column's name, for messages.
        where: names a row in messages.

    Returns:
        int32[M] codes, and the external ids: int64 where all are integers in plain decimal form, else str.

    Raises:
        DataError: naming the first row whose id is empty.

    Example:
        >>> encode(pd.Series(["7", "07", "7"]), "user", str)
        (array([0, 1, 0], dtype=int32), array(['7', '07'], dtype='<U2'))
    """
    if values.dtype == object:
        values = values.map(str, na_action="ignore")
    codes, uniques = pd.factorize(values)
    ids = _external(pd.Series(uniques))
    empty = codes < 0
    if ids.dtype.kind == "U":
        empty |= (np.char.str_len(np.char.strip(ids)) == 0)[codes]
    if empty.any():
        raise DataError(f"{where(int(empty.argmax()))}: empty {name!r}")
    return codes.astype(np.int32), ids


def _external(uniques: pd.Series) -> np.ndarray:
    if uniques.dtype.kind in "iu" and uniques.max() <= np.iinfo(np.int64).max:
        return uniques.to_numpy(np.int64)
    if uniques.dtype.kind == "f" and (uniques % 1 == 0).all() and uniques.abs().max() <= _EXACT:
        return uniques.to_numpy(np.int64)  # integers that went through a float column
    texts = np.array(uniques.astype(str).tolist(), dtype=np.str_)
    integral = np.char.isdecimal(np.char.replace(texts, "-", "", count=1)) & (np.char.str_len(texts) < 19)
    if integral.all():
        numbers = np.where(np.char.rfind(texts, "-") > 0, "0", texts).astype(np.int64)
        if (numbers.astype(np.str_) == texts).all():
            return numbers
    return texts


def _numbers(values: pd.Series, name: str, where: Where) -> np.ndarray:
    array = _as_numbers(values)
    bad = ~np.isfinite(array)
    if bad.any():
        row = int(bad.argmax())
        value = values.iloc[row]
        shown = repr(value) if isinstance(value, str) else str(value)
        raise DataError(f"{where(row)}: {name} {shown} is not a finite number")
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
        raise DataError(f"{where(row)}: rating {array[row]} is too large for float32")
    return array.astype(np.float32)


def _timestamps(values: pd.Series, where: Where) -> np.ndarray:
    if values.dtype.kind == "M":
        values = _seconds(values)
    array = _numbers(values, "timestamp", where)
    if array.dtype.kind == "i" or ((np.abs(array) <= _EXACT).all() and (array % 1 == 0).all()):
        return array.astype(np.int64)
    return array.astype(np.float64)


def _seconds(values: pd.Series) -> pd.Series:
    epoch = pd.Timestamp(0, tz=getattr(values.dtype, "tz", None))
    return (values - epoch) / pd.Timedelta(seconds=1)


def _without_duplicates(events: Interactions, where: Where, duplicates: str) -> Interactions:
    pairs = pd.Series(events.users.astype(np.int64) * events.num_items + events.items)
    repeated = pairs.duplicated(keep="last" if duplicates == "last" else "first").to_numpy()
    if not repeated.any():
        return events
    if duplicates == "error":
        row = int(repeated.argmax())
        first = int((pairs == pairs.iloc[row]).to_numpy().argmax())
        user, item = events.user_ids[events.users[row]], events.item_ids[events.items[row]]
        raise DataError(
            f"{where(row)}: user {user} already has item {item} at {where(first)}; "
            "pass duplicates='first' or duplicates='last' to keep one of them"
        )
    return _take(events, ~repeated)


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
