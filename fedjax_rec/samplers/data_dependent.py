"""Samplers that look at the clients: at how much data they have, or at the losses that they last sent.

Those of `data_independent` see a key and a number of clients. These are also shown sizes and losses, inside the
compiled round (`tracking.draw_cohort`); their draws still are of (seed, round) and of what the state carries, so
that a resumed run draws the same cohorts. A client without data is never drawn.

===============================  ==============================================================================
`size_capped(cap)`               probability ~ min(n_i, cap): clients with much data do not dominate
`loss_proportional()`            probability ~ the last known loss
`power_of_choice(candidates)`    of so many candidates drawn at random, those with the largest last known loss
===============================  ==============================================================================

"Probability" is that of successive draws without replacement, by the largest of log p_i + a Gumbel number: the
chance to be in the cohort grows more slowly than p_i, and is 1 for all if the cohort is everyone.

Who is drawn depends on the clients' data, which no accountant here can count: with noise they do not build.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.errors import check_arguments
from fedjax_rec.samplers.data_independent import check_cohort
from fedjax_rec.types import Key

MIN_WEIGHT = 1e-6  # of a client whose loss is 0: it may still be drawn


class SizeCapped(NamedTuple):
    """By size, up to a cap: see `size_capped`."""

    cap: int
    cohort: int | None
    needs_losses: bool = False

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Of clients of whom nothing is known."""
        return self.draw(key, *_nothing_known(num_clients))

    def draw(self, key: Key, sizes: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of clients with so many examples."""
        del losses
        return _draw_weighted(key, jnp.minimum(sizes, self.cap), self.cohort)


class LossProportional(NamedTuple):
    """By the last known loss: see `loss_proportional`."""

    cohort: int | None
    needs_losses: bool = True

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Of clients of whom nothing is known."""
        return self.draw(key, *_nothing_known(num_clients))

    def draw(self, key: Key, sizes: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of clients with such losses; one that sent none yet counts with the largest of the others'."""
        known = jnp.isfinite(losses)
        largest = jnp.max(jnp.where(known, losses, 0.0))
        weight = jnp.maximum(jnp.where(known, losses, jnp.where(largest > 0, largest, 1.0)), MIN_WEIGHT)
        return _draw_weighted(key, jnp.where(sizes > 0, weight, 0.0), self.cohort)


class PowerOfChoice(NamedTuple):
    """The worst served of some candidates: see `power_of_choice`."""

    candidates: int
    cohort: int | None
    needs_losses: bool = True

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Of clients of whom nothing is known."""
        return self.draw(key, *_nothing_known(num_clients))

    def draw(self, key: Key, sizes: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Of clients with such losses; one that sent none yet is worse off than all others."""
        cohort = _cohort_size(self.cohort, sizes.shape[0])
        count = min(self.candidates, sizes.shape[0])
        if count < cohort:
            raise ValueError(f"{count} candidates are too few for a cohort of {cohort}; raise the candidates")
        ids, present = _draw_weighted(key, jnp.where(sizes > 0, 1.0, 0.0), count)
        worst, index = jax.lax.top_k(jnp.where(present, losses[ids], -jnp.inf), cohort)
        return ids[index], worst > -jnp.inf


def size_capped(cap: int, *, cohort: int | None = None) -> SizeCapped:
    """Draw clients in proportion to min(n_i, cap), without replacement.

    Args:
        cap: examples beyond which a client is no likelier; 1 draws all clients with data alike.
        cohort: C; by default `default_cohort` of the population.

    Returns:
        a sampler.

    Raises:
        ValueError: if a number is below 1, or the cohort larger than the population.

    Example:
        >>> ids, alive = size_capped(10, cohort=2).draw(jax.random.key(0), jnp.array([0, 3, 900]), jnp.zeros(3))
        >>> sorted(ids.tolist()), alive.tolist()
        ([1, 2], [True, True])

    Source: Yellott 1977, "The relationship between Luce's choice axiom, Thurstone's theory of comparative
    judgment, and the double exponential distribution" (the draw by Gumbel numbers).
    """
    check_arguments(size_capped, locals())
    _at_least_one(cap=cap, cohort=cohort)
    return SizeCapped(cap, cohort)


def loss_proportional(*, cohort: int | None = None) -> LossProportional:
    """Draw clients in proportion to the losses that they last sent, without replacement.

    Args:
        cohort: C; by default `default_cohort` of the population.

    Returns:
        a sampler. A client that never took part counts with the largest known loss.

    Raises:
        ValueError: if the cohort is below 1, or larger than the population.

    Example:
        >>> sizes, losses = jnp.array([4, 4, 4]), jnp.array([1e-3, 9.0, 9.0])
        >>> sorted(loss_proportional(cohort=2).draw(jax.random.key(0), sizes, losses)[0].tolist())
        [1, 2]
    """
    check_arguments(loss_proportional, locals())
    _at_least_one(cohort=cohort)
    return LossProportional(cohort)


def power_of_choice(candidates: int, *, cohort: int | None = None) -> PowerOfChoice:
    """Draw d candidates uniformly, and take the C of them with the largest last known loss.

    Args:
        candidates: d, at least C; d = C is uniform sampling of the clients with data.
        cohort: C; by default `default_cohort` of the population.

    Returns:
        a sampler. A client that never took part goes before all others.

    Raises:
        ValueError: if a number is below 1, or there are fewer candidates than slots in the cohort.

    Example:
        >>> sizes, losses = jnp.array([4, 4, 4]), jnp.array([2.0, 1.0, jnp.inf])
        >>> power_of_choice(3, cohort=2).draw(jax.random.key(0), sizes, losses)[0].tolist()
        [2, 0]

    Source: Cho et al. 2020, "Client selection in federated learning: convergence analysis and power-of-choice
    selection strategies", section 3, pi_rpow-d; there candidates are drawn in proportion to their sizes.
    """
    check_arguments(power_of_choice, locals())
    _at_least_one(candidates=candidates, cohort=cohort)
    if cohort is not None and candidates < cohort:
        raise ValueError(
            f"{candidates} candidates are too few for a cohort of {cohort}; raise the candidates"
        )
    return PowerOfChoice(candidates, cohort)


def _draw_weighted(key: Key, weights: jax.Array, cohort: int | None) -> tuple[jax.Array, jax.Array]:
    """C clients by successive draws in proportion to weights [N]; nobody of weight 0."""
    gumbel = jax.random.gumbel(key, weights.shape)
    scores = jnp.where(weights > 0, jnp.log(jnp.maximum(weights, 1e-30)) + gumbel, -jnp.inf)
    best, ids = jax.lax.top_k(scores, _cohort_size(cohort, weights.shape[0]))
    return ids, best > -jnp.inf


def _nothing_known(num_clients: int) -> tuple[jax.Array, jax.Array]:
    """Equal sizes int32[N], and losses float32[N] that nobody has sent."""
    return jnp.ones(num_clients, jnp.int32), jnp.full(num_clients, jnp.inf, jnp.float32)


def _cohort_size(cohort: int | None, num_clients: int) -> int:
    size = default_cohort(num_clients) if cohort is None else cohort
    check_cohort(size, num_clients)
    return size


def _at_least_one(**numbers: int | None) -> None:
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
