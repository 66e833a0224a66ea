"""Sorting of large columns: integers by value, not by index, which takes a fraction of the time."""

import numpy as np

_INDEX_BITS = 32


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


def stable_order(values: np.ndarray) -> np.ndarray:
    """The stable order of a column: `np.argsort(values, kind="stable")`, of signed integers several times faster.

    Those within a range of 2^31 are sorted together with their index, as one int64.

    Args:
        values: [M].

    Returns:
        int64[M].

    Example:
        >>> stable_order(np.array([2, 1, 2, 0]))
        array([3, 1, 0, 2])
    """
    count = len(values)
    if not count or (values[1:] >= values[:-1]).all():
        return np.arange(count)
    if values.dtype.kind != "i" or count >= 2**_INDEX_BITS:
        return np.argsort(values, kind="stable")
    low = int(values.min())
    if int(values.max()) - low >= 2**31:
        return np.argsort(values, kind="stable")
    codes = values.astype(np.int64)
    codes -= low
    codes <<= _INDEX_BITS
    codes |= np.arange(count)
    codes.sort()
    codes &= 2**_INDEX_BITS - 1
    return codes


def order_of_events(users: np.ndarray, timestamps: np.ndarray | None) -> np.ndarray:
    """The order of events by user, then by time, then as they are.

    Args:
        users: int[M].
        timestamps: [M], or None.

    Returns:
        int64[M].

    Example:
        >>> order_of_events(np.array([1, 0, 1]), np.array([5, 6, 4]))
        array([1, 2, 0])
    """
    if timestamps is None:
        return stable_order(users)
    by_time = stable_order(timestamps)
    return by_time[stable_order(users[by_time])]
