"""Keyed permutations permute, and look random where it matters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.rows.permutation import MAX_SHUFFLE, domain, permute_index, shuffle_index
from fedjax_rec.samplers.data_independent import uniform


def _keys(count):
    return jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(jax.random.key(0), i)))(
        jnp.arange(count)
    )


@pytest.mark.parametrize("size", [1, 2, 3, 10, 97, 1000, 3706])
def test_scatter_is_a_permutation(size):
    """Over its domain every value stands once, and beyond it slots are empty."""
    values = np.asarray(permute_index(_keys(1)[0], jnp.arange(domain(size) + 5), size))
    assert sorted(values[values < size]) == list(range(size))
    assert (values[domain(size) :] == size).all()
    assert domain(size) < size + np.sqrt(size) + 1


@pytest.mark.parametrize("size", [1, 2, 30, 1024, 1025, 50_000])
def test_shuffle_is_a_permutation(size):
    """Every position is hit once, above and below the 10-bit limb."""
    for key in _keys(3):
        values = np.asarray(shuffle_index(key, jnp.arange(size), jnp.int32(size), size))
        assert sorted(values) == list(range(size))


def test_shuffle_of_the_largest_size():
    """Products stay below 2^32 at the largest size: a spot check against exact integers."""
    index = jnp.arange(MAX_SHUFFLE - 1000, MAX_SHUFFLE)
    size = MAX_SHUFFLE - 3
    key = _keys(1)[0]
    values = np.asarray(shuffle_index(key, index, jnp.int32(size), MAX_SHUFFLE), np.int64)
    first, second = np.asarray(shuffle_index(key, jnp.array([0, 1]), jnp.int32(size), MAX_SHUFFLE), np.int64)
    np.testing.assert_array_equal(values, (first + np.asarray(index, np.int64) * (second - first)) % size)


def test_too_long_a_client_is_refused():
    """The error names the number and the limit."""
    with pytest.raises(ValueError, match="2,000,000 examples"):
        shuffle_index(_keys(1)[0], jnp.arange(2), jnp.int32(2), 2_000_000)


@pytest.mark.parametrize("size", [9, 100, 900, 3706])
def test_draws_are_uniform_and_independent(size):
    """First draws over keys are uniform over items; so are differences of neighbours (chi-square)."""
    draw = jax.jit(jax.vmap(lambda key: permute_index(key, jnp.arange(3), size)))
    values = np.asarray(draw(_keys(100_000)))
    values = values[(values < size).all(axis=1)].astype(int)
    first = np.bincount(values[:, 0], minlength=size)
    gaps = [np.bincount((values[:, i] - values[:, 0]) % size, minlength=size)[1:] for i in (1, 2)]
    for observed in (first, *gaps):
        freedom = len(observed) - 1
        chi = ((observed - observed.mean()) ** 2 / observed.mean()).sum() / freedom
        assert abs(chi - 1) < 5 * np.sqrt(2 / freedom)


@pytest.mark.parametrize(("cohort", "clients"), [(1, 1), (3, 7), (12, 24), (100, 1000)])
def test_uniform_cohorts(cohort, clients):
    """Cohorts hold distinct clients, and every client is equally likely to take part."""
    sample = jax.jit(jax.vmap(lambda key: uniform(cohort)(key, clients)[0]))
    ids = np.asarray(sample(jax.random.split(jax.random.key(1), 4000)))
    assert all(len(set(row)) == cohort for row in ids[:200])
    counts = np.bincount(ids.reshape(-1), minlength=clients)
    assert len(counts) == clients
    deviation = counts / 4000 - cohort / clients
    bound = 5 * np.sqrt(cohort / clients * (1 - cohort / clients) / 4000) + 1e-12
    assert np.abs(deviation).max() <= bound
