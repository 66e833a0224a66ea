"""What the server keeps about its clients between rounds: the losses that they last sent, and learnt weights.

Both are carried in `State.tracked`, so that a checkpoint holds them and a resumed run has their bits. Nothing is
carried, and no client sends its loss, unless the sampler or the aggregator asks for it (`needs_losses`).

The loss of a client is the mean over the examples of its *first local epoch* that counts any (the first pass of an
exact solve counts none), with the loss's regularisation, measured while it trains: an estimate of its loss at the
downloaded model that costs no pass of its own. It is a little too low, since later local batches see what the
earlier ones taught. It is one number more to send, which `traffic` does not count.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.samplers.data_independent import bind_round
from fedjax_rec.types import KEY_IMPL, Aggregator, DataDependentSampler, Key, Sampler, Tracked


def needs_losses(sampler: Sampler, aggregator: Aggregator) -> bool:
    """Whether clients must send their losses.

    Args:
        sampler: who takes part.
        aggregator: how updates become one.

    Returns:
        True or False.

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> needs_losses(everyone(), total())
        False
    """
    return aggregator.losses is not None or (
        isinstance(sampler, DataDependentSampler) and sampler.needs_losses
    )


def init_tracked(sampler: Sampler, aggregator: Aggregator, population: Population) -> Tracked:
    """What the server keeps before the first round.

    Args:
        sampler: who takes part.
        aggregator: how updates become one.
        population: N clients.

    Returns:
        infinite losses, for a sampler that goes by losses; the mixture's start, for an aggregator with one.

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> from fedjax_rec.samplers.data_dependent import power_of_choice
        >>> from fedjax_rec.testing import tiny_population
        >>> init_tracked(power_of_choice(4, cohort=2), total(), tiny_population()).losses.shape
        (24,)
    """
    tracked = Tracked()
    if isinstance(sampler, DataDependentSampler) and sampler.needs_losses:
        tracked = tracked._replace(losses=jnp.full(population.num_clients, jnp.inf, jnp.float32))
    if aggregator.mixture is not None:
        tracked = tracked._replace(mixture=aggregator.mixture.init(sizes_of(population)))
    return tracked


def sizes_of(population: Population) -> jax.Array:
    """Examples of every client.

    Args:
        population: N clients.

    Returns:
        int32[N].

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> int(sizes_of(tiny_population())[3])
        0
    """
    return population.offsets[1:] - population.offsets[:-1]


def cohort_size(sampler: Sampler, population: Population) -> int:
    """Slots of a round's cohort, of shapes alone.

    Args:
        sampler: of any kind.
        population: N clients.

    Returns:
        C.

    Example:
        >>> from fedjax_rec.samplers.data_independent import uniform
        >>> from fedjax_rec.testing import tiny_population
        >>> cohort_size(uniform(5), tiny_population())
        5
    """
    ids, _ = jax.eval_shape(
        lambda key: draw_cohort(sampler, key, population, Tracked(), 0), jax.random.key(0, impl=KEY_IMPL)
    )
    return ids.shape[0]


def draw_cohort(
    sampler: Sampler, key: Key, population: Population, tracked: Tracked, round_: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Draw a round's cohort: a sampler that looks at the clients is shown what the server keeps about them.

    Args:
        sampler: of any kind.
        key: the round's.
        population: N clients.
        tracked: before the round.
        round_: int32[], rounds done.

    Returns:
        ids int32[C] and alive bool[C].

    Example:
        >>> from fedjax_rec.samplers.data_dependent import size_capped
        >>> from fedjax_rec.testing import tiny_population
        >>> ids, alive = draw_cohort(size_capped(5, cohort=23), jax.random.key(0), tiny_population(), Tracked(), 0)
        >>> 3 in ids.tolist(), bool(alive.all())  # client 3 has no data
        (False, True)
    """
    ids, alive = _draw(sampler, key, population, tracked, round_)
    # A negative index would count from the end: who is not there is not drawn.
    inside = (ids >= 0) & (ids < population.num_clients)
    return jnp.where(inside, ids, 0), alive & inside


def _draw(
    sampler: Sampler, key: Key, population: Population, tracked: Tracked, round_: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    if not isinstance(sampler, DataDependentSampler):
        return bind_round(sampler, round_)(key, population.num_clients)
    none_tracked = isinstance(tracked.losses, tuple)
    losses = jnp.full(population.num_clients, jnp.inf, jnp.float32) if none_tracked else tracked.losses
    return sampler.draw(key, sizes_of(population), losses)


def mixture_weights(
    aggregator: Aggregator, tracked: Tracked, ids: jax.Array, present: jax.Array
) -> jax.Array | None:
    """The learnt weights of a cohort.

    Args:
        aggregator: perhaps with a mixture.
        tracked: before the round.
        ids: int32[C].
        present: bool[C], who takes part.

    Returns:
        float32[C]; None without a mixture.

    Example:
        >>> from fedjax_rec.server.fairness import agnostic
        >>> tracked, ids = Tracked((), jnp.array([0.2, 0.8])), jnp.array([1])
        >>> mixture_weights(agnostic(), tracked, ids, jnp.array([True])).tolist()
        [0.800000011920929]
    """
    return None if aggregator.mixture is None else aggregator.mixture.weigh(tracked.mixture, ids, present)


def update_tracked(
    aggregator: Aggregator, tracked: Tracked, ids: jax.Array, present: jax.Array, losses: jax.Array
) -> Tracked:
    """What the server keeps after a round.

    Args:
        aggregator: perhaps with a mixture.
        tracked: before the round.
        ids: int32[C].
        present: bool[C], who took part in a round that counts.
        losses: float32[C], what they sent; anything for the others. () where nobody was asked.

    Returns:
        the same, of after the round.

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> tracked = Tracked(jnp.array([jnp.inf, 2.0]))
        >>> update_tracked(total(), tracked, jnp.array([0]), jnp.array([True]), jnp.array([0.5])).losses.tolist()
        [0.5, 2.0]
    """
    if not isinstance(tracked.losses, tuple):
        index = jnp.where(present, ids, tracked.losses.shape[0])
        tracked = tracked._replace(losses=tracked.losses.at[index].set(losses, mode="drop"))
    if aggregator.mixture is not None:
        mixture = aggregator.mixture.learn(tracked.mixture, ids, present, losses)
        tracked = tracked._replace(mixture=mixture)
    return tracked
