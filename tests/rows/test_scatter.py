"""Two ways to add rows are one sum, and the rule that chooses among them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.rows.scatter import PATTERNS, STRATEGIES, _draw_ids, choose, measure, sort_and_sum
from fedjax_rec.rows.tables import add_rows


def _expected(table, ids, rows):
    """Row by row in plain numpy, by the padding rule."""
    size = len(table)
    table = np.array(table)
    for at, row in zip(np.asarray(ids), np.asarray(rows), strict=True):
        if 0 <= at < size:
            table[at] += row
    return table


def _case(size, count, shape, low=0):
    """Whole numbers, so that every order of summation gives the same bits; `size` is an empty slot."""
    rng = np.random.default_rng(size + 31 * count)
    table = rng.integers(-9, 9, (size, *shape)).astype(np.float32)
    ids = rng.integers(low, size + 1, count).astype(np.int32)
    return (
        jnp.asarray(table),
        jnp.asarray(ids),
        jnp.asarray(rng.integers(-9, 9, (count, *shape)), jnp.float32),
    )


@pytest.mark.parametrize(
    ("size", "count", "shape"),
    [(1, 1, (3,)), (5, 2, (3,)), (5, 33, ()), (5, 33, (2, 2)), (40, 7, (3,)), (3, 128, (3,)), (4, 0, (3,))],
)
@pytest.mark.parametrize("name", STRATEGIES)
def test_strategies_agree(name, size, count, shape):
    """Each equals numpy, bit for bit, on any shape: one row, no row, all ids alike, more ids than items."""
    table, ids, rows = _case(size, count, shape)
    found = jax.jit(STRATEGIES[name])(table, ids, rows)
    np.testing.assert_array_equal(found, _expected(table, ids, rows))
    np.testing.assert_array_equal(found, add_rows(table, ids, rows))


@pytest.mark.parametrize("name", STRATEGIES)
def test_ids_outside_the_table(name):
    """Ids from I on are dropped, and so are those below 0: none counts from the end."""
    table = jnp.zeros((3, 2))
    ids = jnp.array([3, 4, 2**31 - 1, -1, 2, -3, -4, -(2**31), 3])
    rows = jnp.arange(18.0).reshape(9, 2)
    np.testing.assert_array_equal(STRATEGIES[name](table, ids, rows), _expected(table, ids, rows))
    nothing = STRATEGIES[name](table, jnp.full(9, 3), rows)
    np.testing.assert_array_equal(nothing, table)


@pytest.mark.parametrize("name", STRATEGIES)
def test_real_numbers_agree_to_rounding(name):
    """Orders of summation differ, results do not beyond rounding."""
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, 9, 5000), jnp.int32)
    rows = rng.standard_normal((5000, 4))
    found = STRATEGIES[name](jnp.zeros((8, 4)), ids, jnp.asarray(rows, jnp.float32))
    np.testing.assert_allclose(found, _expected(np.zeros((8, 4)), ids, rows), atol=1e-3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_infinite_rows_stay_where_they_belong(name):
    """A diverged client spoils the rows it sends and no other; an empty slot's row spoils none."""
    ids = jnp.array([1, 0, 3, 1])
    rows = jnp.array([jnp.inf, 1.0, jnp.nan, 1.0])
    assert STRATEGIES[name](jnp.zeros(3), ids, rows).tolist() == [1.0, np.inf, 0.0]


def test_sorted_writes_no_row_twice():
    """The one scatter is declared to have unique ids: that is what makes it free of atomics on GPUs."""
    text = str(jax.make_jaxpr(sort_and_sum)(*_case(5, 33, (3,))))
    assert text.count("scatter-add[") == 1
    assert "unique_indices=True" in text.split("scatter-add[")[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_batch_of_tables(name):
    """Under `vmap` each table gets its own rows."""
    tables, ids, rows = (jnp.stack(x) for x in zip(*[_case(5, 9, (2,), low) for low in (0, -5)], strict=True))
    found = jax.vmap(STRATEGIES[name])(tables, ids, rows)
    for i in range(2):
        np.testing.assert_array_equal(found[i], _expected(tables[i], ids[i], rows[i]))


RULE = {
    ("cuda", "0.10.1"): "scatter",
    ("cuda", "0.10.2"): "sorted",
    ("cuda", "0.10.99"): "sorted",
    ("cuda", "0.11.0"): "sorted",
    ("cuda", "0.11.0.dev20260701+cuda"): "sorted",
    ("cuda", "0.11.1"): "scatter",
    ("cuda", "0.12.0.1"): "scatter",
    ("cuda", "1.0.0"): "scatter",
    ("cuda", "0.9.2"): "scatter",
    ("gpu", "0.11.0"): "sorted",
    ("cpu", "0.11.0"): "scatter",
    ("rocm", "0.11.0"): "scatter",
    ("tpu", "0.11.0"): "scatter",
}


@pytest.mark.parametrize("case", RULE, ids="-".join)
def test_rule(case):
    """NVIDIA with jaxlib 0.10.2 to 0.11.0 sorts, all else scatters."""
    assert choose(*case) == RULE[case]


def test_no_version_is_refused():
    """The error shows what was given and what would do."""
    with pytest.raises(ValueError, match=r"jaxlib_version='unknown' is no version; give one like '0\.11\.1'"):
        choose("cuda", "unknown")


def test_ids_that_are_timed():
    """Popular ids are long-tailed, distinct ones differ within an update; each update has its own."""
    popular, distinct = (_draw_ids(pattern, 500, 400) for pattern in PATTERNS)
    assert popular.shape == distinct.shape
    share = np.sort(np.bincount(popular.ravel(), minlength=500))[::-1] / popular.size
    assert share[0] > 0.1
    assert share[:50].sum() > 0.5
    assert all(len(set(ids)) == 400 for ids in distinct)
    assert (distinct[0] != distinct[1]).any()
    assert min(popular.min(), distinct.min()) >= 0
    assert max(popular.max(), distinct.max()) < 500


@pytest.mark.parametrize("name", STRATEGIES)
def test_measurements_are_ordered(name):
    """The median lies between the least and the most."""
    found = measure(name, 9, "popular", 5, dim=2, seconds=0.0)
    assert 0 < found.min_ns <= found.median_ns <= found.max_ns
