"""Samplers: who takes part in a round, as pure functions of a key, so that they live inside the compiled round.

They are values, so that whoever must know how a cohort was drawn, such as a privacy accountant, can look. Those
that look at the clients' sizes or losses are in `data_dependent`.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.permutation import domain, permute_index
from fedjax_rec.types import CyclicSampler, Key, Sampler


class Uniform(NamedTuple):
    """A cohort of a fixed size, drawn without replacement: see `uniform` and `at_most`."""

    cohort: int | None  # None: `default_cohort` of the population
    fewer: bool  # whether all of a smaller population are taken

    def size(self, num_clients: int) -> int:
        """How many clients of so many."""
        size = default_cohort(num_clients) if self.cohort is None else self.cohort
        return min(size, num_clients) if self.fewer else size

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """The first C values of a keyed permutation of the clients: O(C), whatever the population."""
        size = self.size(num_clients)
        check_cohort(size, num_clients)
        words = jax.random.key_data(key).astype(jnp.uint32)
        return _first(words, size, num_clients), jnp.ones(size, bool)


class Everyone(NamedTuple):
    """All clients: see `everyone`."""

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """In the population's order."""
        del key
        return jnp.arange(num_clients), jnp.ones(num_clients, bool)


class Poisson(NamedTuple):
    """Each client by itself, with a probability: see `poisson`."""

    probability: float
    capacity: int
    num_clients: int | None = None  # N that it is for; None: any number

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Those with the least draws: given that they are below q, draws are in no particular order."""
        _check_population(self.num_clients, num_clients)
        draws = jax.random.uniform(key, (num_clients,))
        negated_draws, ids = jax.lax.top_k(-draws, min(self.capacity, num_clients))
        return ids, -negated_draws < self.probability


class CyclicPoisson(NamedTuple):
    """The clients of one group, group after group, each by itself with a probability: see `cyclic_poisson`."""

    probability: float
    capacity: int
    groups: int
    num_clients: int | None = None  # N that it is for; None: any number

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """A cohort of the first group."""
        return self.draw_round(key, num_clients, jnp.int32(0))

    def draw_round(self, key: Key, num_clients: int, round_: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """A cohort of the round's group: clients g, g + b, g + 2 b, ... in round g, g + b, ..."""
        _check_population(self.num_clients, num_clients)
        size = -(-num_clients // self.groups)
        members = round_ % self.groups + self.groups * jnp.arange(size)
        draws = jnp.where(members < num_clients, jax.random.uniform(key, (size,)), 1.0)
        negated_draws, index = jax.lax.top_k(-draws, min(self.capacity, size))
        return members[index] % num_clients, -negated_draws < self.probability


def bind_round(
    sampler: Sampler, round_: jax.Array | int
) -> Callable[[Key, int], tuple[jax.Array, jax.Array]]:
    """A sampler as it is in one round.

    Args:
        sampler: of the run.
        round_: int32[], rounds done.

    Returns:
        (key, number of clients) -> ids and who is alive.

    Example:
        >>> ids, alive = bind_round(cyclic_poisson(0.5, 2, groups=3), jnp.int32(1))(jax.random.key(0), 6)
        >>> sorted(ids.tolist())
        [1, 4]
    """
    return partial(sampler.draw_round, round_=round_) if isinstance(sampler, CyclicSampler) else sampler


def uniform(cohort: int | None = None) -> Sampler:
    """Draw a cohort uniformly without replacement.

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
    check_arguments(uniform, locals())
    return Uniform(_at_least_one(cohort), fewer=False)


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
    check_arguments(at_most, locals())
    return Uniform(_at_least_one(cohort), fewer=True)


def everyone() -> Sampler:
    """Take every client, in the population's order.

    Returns:
        a sampler with C = N.

    Example:
        >>> everyone()(jax.random.key(0), 3)[0].tolist()
        [0, 1, 2]
    """
    return Everyone()


def poisson(probability: float, capacity: int, *, num_clients: int | None = None) -> Poisson:
    """Draw each client by itself with probability q; of more than the capacity, some dropped uniformly at random.

    The shapes stay the same, whoever is drawn, and the draw is of O(N).

    Args:
        probability: q, above 0 and at most 1; the cohort has q N clients on average.
        capacity: B, most clients of a round; `privacy.calibration.capacity_for` says how many are enough.
        num_clients: N that q and B were chosen for: other populations are then refused; None: any.

    Returns:
        a sampler with min(B, N) slots, of which those that were drawn are alive.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> ids, alive = poisson(0.5, 9)(jax.random.key(0), 9)
        >>> len(ids), 0 < int(alive.sum()) < 9
        (9, True)

    Source: Abadi et al. 2016, "Deep learning with differential privacy", section 3.1.
    """
    check_arguments(poisson, locals())
    if not 0 < probability <= 1:
        raise ValueError(f"the probability must be above 0 and at most 1, not {probability}")
    if capacity < 1:
        raise ValueError(f"the capacity must be at least 1, not {capacity}")
    return Poisson(probability, capacity, num_clients)


def cyclic_poisson(
    probability: float, capacity: int, groups: int, *, num_clients: int | None = None
) -> CyclicPoisson:
    """Draw from one group of clients after the other, so that none takes part twice in so many rounds.

    Client n is in group n mod b, whatever it holds; in round t each client of group t mod b is drawn by itself.

    Args:
        probability: q, above 0 and at most 1; the cohort has q N / b clients on average.
        capacity: B, most clients of a round, as in `poisson`.
        groups: b.
        num_clients: N, as in `poisson`.

    Returns:
        a sampler with min(B, ceil(N / b)) slots.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> ids, alive = cyclic_poisson(1.0, 9, groups=2)(jax.random.key(0), 6)
        >>> sorted(ids.tolist())
        [0, 2, 4]

    Source: Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization", algorithm 2.
    """
    check_arguments(cyclic_poisson, locals())
    if groups < 1:
        raise ValueError(f"groups must be at least 1, not {groups}")
    drawn = poisson(probability, capacity, num_clients=num_clients)
    return CyclicPoisson(drawn.probability, drawn.capacity, groups, drawn.num_clients)


def check_cohort(cohort: int, num_clients: int) -> None:
    """Refuse a cohort that is larger than the population.

    Args:
        cohort: C.
        num_clients: N.

    Raises:
        ValueError: if so.

    Example:
        >>> check_cohort(3, 3)
    """
    if cohort > num_clients:
        raise ValueError(
            f"a cohort of {cohort} exceeds the population of {num_clients} clients; lower the cohort"
        )


def _check_population(meant: int | None, num_clients: int) -> None:
    if meant is not None and meant != num_clients:
        raise ValueError(
            f"cohorts were to be drawn from {meant:,} clients, but the population has {num_clients:,}, so that "
            f"their probability and capacity, and noise chosen for them, do not fit; make them for {num_clients:,}"
        )


def _at_least_one(cohort: int | None) -> int | None:
    if cohort is not None and cohort < 1:
        raise ValueError(f"a cohort needs at least 1 client, not {cohort}")
    return cohort


def _first(words: jax.Array, cohort: int, num_clients: int) -> jax.Array:
    """Walk each position through the permutation until it lands inside the population (a few steps at most)."""

    def outside(walked: tuple[jax.Array, jax.Array]) -> jax.Array:
        is_start, ids = walked
        return is_start | (ids >= num_clients).any()

    def walk(walked: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        is_start, ids = walked
        moved = permute_index(words, ids, domain(num_clients))
        return jnp.zeros_like(is_start), jnp.where(is_start | (ids >= num_clients), moved, ids)

    _, ids = jax.lax.while_loop(outside, walk, (jnp.bool_(True), jnp.arange(cohort)))
    return ids
