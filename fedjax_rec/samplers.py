"""Samplers: who takes part in a round, as pure functions of a key, so that they live inside the compiled round."""

import jax
import jax.numpy as jnp

from fedjax_rec.permutation import domain, scatter_index
from fedjax_rec.types import Key, Sampler

LEAST_COHORT = 200


def default_cohort(num_clients: int) -> int:
    """A tenth of the clients, between 200 and 1,000, and never more than there are.

    Args:
        num_clients: N.

    Returns:
        C.

    Example:
        >>> [default_cohort(n) for n in (50, 943, 6040, 1_000_000)]
        [50, 200, 604, 1000]
    """
    return min(num_clients, max(LEAST_COHORT, min(1000, num_clients // 10)))


def uniform(cohort: int | None = None) -> Sampler:
    """Draw a cohort uniformly without replacement.

    The first C values of a keyed permutation of the clients: O(C), whatever the population.

    Args:
        cohort: C, clients in a round; by default `default_cohort` of the population.

    Returns:
        a sampler.

    Raises:
        ValueError: if the cohort is below 1, or larger than the population that it is drawn from.

    Example:
        >>> ids, alive = uniform(3)(jax.random.key(0), 5)
        >>> len(set(ids.tolist())), bool(alive.all())
        (3, True)
    """
    if cohort is not None and cohort < 1:
        raise ValueError(f"a cohort needs at least 1 client, not {cohort}")

    def sample(key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        size = default_cohort(num_clients) if cohort is None else cohort
        _check(size, num_clients)
        words = jax.random.key_data(key).astype(jnp.uint32)
        return _first(words, size, num_clients), jnp.ones(size, bool)

    return sample


def at_most(cohort: int) -> Sampler:
    """Draw a cohort uniformly without replacement, and take everyone of a population that is smaller.

    Args:
        cohort: C, at least 1.

    Returns:
        a sampler with min(C, N) clients.

    Raises:
        ValueError: if the cohort is below 1.

    Example:
        >>> [len(at_most(3)(jax.random.key(0), size)[0]) for size in (2, 5)]
        [2, 3]
    """
    if cohort < 1:
        raise ValueError(f"a cohort needs at least 1 client, not {cohort}")
    return lambda key, num_clients: uniform(min(cohort, num_clients))(key, num_clients)


def everyone() -> Sampler:
    """Take every client, in the population's order.

    Returns:
        a sampler with C = N.

    Example:
        >>> everyone()(jax.random.key(0), 3)[0].tolist()
        [0, 1, 2]
    """

    def sample(key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        del key
        return jnp.arange(num_clients), jnp.ones(num_clients, bool)

    return sample


def _check(cohort: int, num_clients: int) -> None:
    if cohort > num_clients:
        raise ValueError(
            f"a cohort of {cohort} exceeds the population of {num_clients} clients; lower the cohort"
        )


def _first(words: jax.Array, cohort: int, num_clients: int) -> jax.Array:
    """Walk each position through the permutation until it lands inside the population (a few turns at most)."""

    def outside(ids: jax.Array) -> jax.Array:
        return (ids >= num_clients).any()

    def walk(ids: jax.Array) -> jax.Array:
        return jnp.where(ids >= num_clients, scatter_index(words, ids, domain(num_clients)), ids)

    return jax.lax.while_loop(outside, walk, scatter_index(words, jnp.arange(cohort), domain(num_clients)))
