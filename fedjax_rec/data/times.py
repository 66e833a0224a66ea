"""Times: numbers and dates, as seconds since 1970.

| what | becomes |
|---|---|
| whole seconds within int64 | int64 |
| numbers with a point or an exponent, below 2^53 | float64 from the first fraction on |
| milli-, micro- or nanoseconds: all of them, as such, in the years 1990 to 2099 | seconds |
| dates of numpy, pandas, arrow, Python | seconds; without a zone they are taken for UTC |
| text: ISO 8601, or another of `FORMATS` | the same; the first one says how all are written |
| other text, such as 01/02/2024, which is a day of January or of February | refused |
"""

import datetime as dt
from typing import Any

import numpy as np
import pandas as pd

from fedjax_rec.data.errors import DataError, DataParameterError
from fedjax_rec.data.vocabulary import Where

FORMATS = (  # beside ISO 8601; none may be read in two ways
    "%a %b %d %H:%M:%S %z %Y",  # Tue Apr 03 18:07:30 +0000 2012
    "%a %b %d %H:%M:%S %Y",
    "%a, %d %b %Y %H:%M:%S %z",
    "%Y/%m/%d %H:%M:%S",
    "%Y/%m/%d %H:%M",
    "%Y/%m/%d",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%d-%b-%Y",
    "%d %B %Y",
    "%b %d, %Y",
    "%B %d, %Y",
    "%m %d, %Y",  # 09 13, 2009, as Amazon's reviews have it
)
_EXACT = 2.0**53  # float64 holds every integer below
_UNITS = (10**3, 10**6, 10**9)  # in a second
_YEARS = (631_152_000, 4_102_444_800)  # 1990 and 2100, in seconds
_ADVICE = "write seconds since 1970, or dates such as 2024-01-31 10:00:00"


class Times:
    """A column of times that comes in pieces: int64, or float64 from the first fraction on."""

    def __init__(self, max_rows: int) -> None:
        """An empty column, which has room for so many."""
        self.integers = np.empty(max_rows, np.int64)
        self.came_as_floats = False  # whether any piece did,
        self.fractions: np.ndarray | None = None  # and the times once one of them was no integer
        self.date_format: str | None = None  # of text; None for numbers
        self.is_first = True

    def put(self, values: pd.Series, block: slice, where: Where) -> None:
        """Takes in some more rows.

        Args:
            values: [M], numbers, dates or text.
            block: where they stand in the column.
            where: names a row of these in messages.

        Raises:
            DataError: naming the first row that is no time.
        """
        if self.is_first and _is_text(values):
            self.date_format = _find_format(str(values.iloc[0]).strip(), where(0))
        self.is_first = False
        array = as_numbers(self._seconds(values, where), "timestamp", where)
        if array.dtype.kind == "f":
            self.came_as_floats = True
            _refuse_large(array, where)
            if self.fractions is None and (array % 1 != 0).any():
                self.fractions = self.integers.view(np.float64)  # in the same memory
                self.fractions[: block.start] = self.integers[: block.start].astype(np.float64)
        elif array.dtype.kind == "u" and (array > np.iinfo(np.int64).max).any():
            _refuse_large(array.astype(np.float64), where)
        (self.integers if self.fractions is None else self.fractions)[block] = array

    def take(self, rows: int, where: Where) -> np.ndarray:
        """The times of the first rows.

        Args:
            rows: so many.
            where: names a row of the whole in messages.

        Returns:
            int64[M] or float64[M], seconds.

        Raises:
            DataError: naming the first row whose number is not held exactly.
        """
        times = (self.integers if self.fractions is None else self.fractions)[:rows]
        if self.came_as_floats:
            _refuse_large(times, where)
        return in_seconds(times)

    def _seconds(self, values: pd.Series, where: Where) -> pd.Series:
        """Dates as seconds; numbers as they are."""
        if self.date_format is not None:
            values = _parse_dates(values, self.date_format, where)
        elif isinstance(values.dtype, pd.PeriodDtype):
            values = values.dt.to_timestamp()
        elif values.dtype == object and len(values) and isinstance(values.iloc[0], dt.date):
            values = _to_dates(values)
        if values.dtype.kind != "M":
            return values
        epoch = pd.Timestamp(0, tz=getattr(values.dtype, "tz", None))
        return (values - epoch) / pd.Timedelta(seconds=1)


def in_seconds(times: np.ndarray) -> np.ndarray:
    """Times in seconds, where they are plainly of a finer unit: of which all are dates from 1990 to 2099.

    Args:
        times: int64[M] or float64[M], of one unit.

    Returns:
        int64[M], or float64[M] where there are fractions.

    Example:
        >>> in_seconds(np.array([1_260_759_144_000, 1_260_759_145_500]))
        array([1.26075914e+09, 1.26075915e+09])
    """
    if not len(times):
        return times
    unit = unit_of(times.min(), times.max())
    if unit == 1:
        return times
    return (times // unit).astype(np.int64) if (times % unit == 0).all() else times / unit


def unit_of(low: float, high: float) -> int:
    """How many of the units of some times are a second: 1, where they are not plainly of a finer one.

    Args:
        low: the first of the times.
        high: the last.

    Returns:
        the number.

    Example:
        >>> unit_of(1_260_759_144_000, 1_260_759_145_500)
        1000
    """
    return next((unit for unit in _UNITS if _YEARS[0] * unit <= low and high < _YEARS[1] * unit), 1)


def looks_like_time(field: str) -> bool:
    """Whether a field of text can be a time, and a number of it hardly anything else.

    Args:
        field: the text.

    Returns:
        True for dates, and for numbers that are a date from 1990 to 2099 in some unit.

    Example:
        >>> [looks_like_time(field) for field in ("1260759144", "2024-01-31", "4.5", "01/02/2024")]
        [True, True, False, False]
    """
    try:
        number = float(field)
    except ValueError:
        return _format_of(field.strip()) is not None
    return any(_YEARS[0] * unit <= number < _YEARS[1] * unit for unit in (1, *_UNITS))


def show_time(time: float) -> str:
    """A time as a date.

    Args:
        time: seconds since 1970.

    Returns:
        the date in UTC; the number itself where it is hardly one: not of the years 1980 to 2230.

    Example:
        >>> show_time(1_260_759_144.5), show_time(7.0)
        ('2009-12-14 02:52:24.500000', '7')
    """
    if not _YEARS[0] / 2 < time < 2 * _YEARS[1]:
        return f"{time:.15g}"
    return str(dt.datetime.fromtimestamp(time, dt.UTC).replace(tzinfo=None))


def as_numbers(values: pd.Series, name: str, where: Where) -> np.ndarray:
    """Finite numbers of a column.

    Args:
        values: [M].
        name: of what they are, for messages.
        where: names a row in messages.

    Returns:
        [M], a plain numeric array.

    Raises:
        DataError: naming the first row that is no finite number.

    Example:
        >>> as_numbers(pd.Series(["4", "4.5"]), "rating", str)
        array([4. , 4.5])
    """
    array = _plain_numbers(values)
    not_finite = ~np.isfinite(array)
    if not_finite.any():
        row = int(not_finite.argmax())
        value = values.iloc[row]
        shown = repr(value) if isinstance(value, str) else str(value)
        shown = shown if len(shown) < 60 else f"{shown[:50]}..."
        hint = "correct or delete the line"
        if isinstance(value, str) and not value.strip():
            hint += f", or leave the column out with {{{name}=none}}"
        raise DataParameterError(
            "{where}: {_name} {shown} is not a finite number; " + hint,
            where=where(row),
            _name=name,
            shown=shown,
        )
    return array


def _plain_numbers(values: pd.Series) -> np.ndarray:
    """A plain numeric array; NaN where there is no number."""
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "iuf":
        return values.to_numpy()
    if pd.api.types.is_bool_dtype(values.dtype):
        return np.full(len(values), np.nan)
    return pd.to_numeric(values, errors="coerce").to_numpy(np.float64, na_value=np.nan)


def _refuse_large(array: np.ndarray, where: Where) -> None:
    large = (array >= _EXACT) | (array <= -_EXACT)
    if large.any():
        row = int(large.argmax())
        raise DataError(
            f"{where(row)}: timestamp {array[row]} is out of range (whole seconds within int64, or numbers below "
            "2^53); correct or delete the line"
        )


def _is_text(values: pd.Series) -> bool:
    """Whether the first of them is text, and no number."""
    if not len(values) or not isinstance(values.iloc[0], str) or not values.iloc[0].strip():
        return False
    return bool(pd.isna(pd.to_numeric(values.iloc[:1], errors="coerce").iloc[0]))


def _find_format(text: str, where: str) -> str | None:
    """How a date is written; None for what can only be a broken number."""
    found = _format_of(text)
    if found is None and sum(mark.isdigit() for mark in text) >= 4:
        raise DataError(f"{where}: timestamp {text!r} is no date that can be read in one way only; {_ADVICE}")
    return found


def _format_of(text: str) -> str | None:
    if not any(mark.isdigit() for mark in text):
        return None
    ways = ("ISO8601",) if text[:4].isdigit() and text[4:5] == "-" else FORMATS
    return next((way for way in ways if not _to_dates(pd.Series([text]), way).isna().iloc[0]), None)


def _parse_dates(values: pd.Series, date_format: str, where: Where) -> pd.Series:
    text = values.astype(str).str.strip()
    dates = _to_dates(text, date_format)
    unread = dates.isna() | ~text.str.contains(r"\d")  # pandas knows "now"
    if unread.any():
        row = int(unread.to_numpy().argmax())
        shown = "ISO 8601" if date_format == "ISO8601" else date_format
        raise DataError(
            f"{where(row)}: timestamp {values.iloc[row]!r} is not a date as the first one is ({shown}); {_ADVICE}"
        )
    return dates


def _to_dates(values: pd.Series, date_format: Any = None) -> pd.Series:
    return pd.to_datetime(values, format=date_format, utc=True, errors="coerce")
