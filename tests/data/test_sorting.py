"""Sorting large columns gives what numpy's own sorts give."""

import numpy as np
import pytest

from fedjax_rec.data.sorting import order_of_events, sort_distinct, stable_order


@pytest.fixture
def rng():
    """A generator with a fixed seed."""
    return np.random.default_rng(0)


def test_sort_distinct_is_unique(rng):
    """Against numpy, empty columns included."""
    codes = rng.integers(0, 50, 200)
    np.testing.assert_array_equal(sort_distinct(codes), np.unique(codes))
    assert len(sort_distinct(codes[:0])) == 0


@pytest.mark.parametrize("dtype", ["i1", "i4", "i8", "u4", "u8", "f4", "f8"])
def test_stable_order_is_the_stable_argsort(rng, dtype):
    """Equal values keep their order; of any type and range, ordered or not, and none at all."""
    values = rng.integers(0, 40, 500).astype(dtype)
    ends = [np.iinfo(dtype).max, np.iinfo(dtype).min] if values.dtype.kind in "iu" else [0.5, np.nan]
    wide = np.append(values, np.array(ends, dtype))
    apart = np.where(values > 20, wide[-2], values)
    for column in (values, np.sort(values), wide, values[:1], values[:0], apart):
        np.testing.assert_array_equal(stable_order(column), np.argsort(column, kind="stable"))


def test_events_are_ordered_by_user_and_time(rng):
    """Against `np.lexsort`, with times that repeat, whole or not."""
    users = rng.integers(0, 9, 300).astype(np.int32)
    for times in (rng.integers(0, 20, 300), rng.integers(0, 20, 300) / 3, np.full(300, np.nan)):
        np.testing.assert_array_equal(order_of_events(users, times), np.lexsort((times, users)))
    np.testing.assert_array_equal(order_of_events(users, None), np.argsort(users, kind="stable"))
