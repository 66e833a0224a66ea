"""What the server knows of its clients between rounds: the losses that they last told, and learnt weights.

Both are carried in `State.known`, so that a checkpoint holds them and a resumed run has their bits. Nothing is
carried, and no client tells its loss, unless the sampler or the aggregator asks for it (`hears_losses`).

The loss of a client is the mean over the examples of its *first local epoch* that counts any (the first pass of an
exact solve counts none), with the loss's regularisation, measured while it trains: an estimate of its loss at the
downloaded model that costs no pass of its own. It is a little too low, since later local batches see what the
earlier ones taught. It is one number more to send, which `traffic` does not count.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.population import Population
from fedjax_rec.samplers import in_turn
from fedjax_rec.types import Aggregator, Informed, Key, Known, Sampler


def hears_losses(sampler: Sampler, aggregator: Aggregator) -> bool:
    """Whether clients must tell their losses.

    Args:
        sampler: who takes part.
        aggregator: how updates become one.

    Returns:
        True or False.

    Example:
        >>> from fedjax_rec.aggregators import total
        >>> from fedjax_rec.samplers import everyone
        >>> hears_losses(everyone(), total())
        False
    """
    return aggregator.hears_losses or (isinstance(sampler, Informed) and sampler.hears_losses)


def init_known(sampler: Sampler, aggregator: Aggregator, population: Population) -> Known:
    """What the server knows before the first round.

    Args:
        sampler: who takes part.
        aggregator: how updates become one.
        population: N clients.

    Returns:
        infinite losses, for a sampler that goes by losses; the mixture's start, for an aggregator with one.

    Example:
        >>> from fedjax_rec.aggregators import total
        >>> from fedjax_rec.informed import power_of_choice
        >>> from fedjax_rec.testing import tiny_population
        >>> init_known(power_of_choice(4, cohort=2), total(), tiny_population()).losses.shape
        (24,)
    """
    known = Known()
    if isinstance(sampler, Informed) and sampler.hears_losses:
        known = known._replace(losses=jnp.full(population.num_clients, jnp.inf, jnp.float32))
    if aggregator.mixture is not None:
        known = known._replace(mixture=aggregator.mixture.init(sizes_of(population)))
    return known


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


def draw_cohort(
    sampler: Sampler, key: Key, population: Population, known: Known, turn: jax.Array | int
) -> tuple[jax.Array, jax.Array]:
    """Draw a round's cohort: a sampler that looks at the clients is shown what the server knows of them.

    Args:
        sampler: plain or informed.
        key: the round's.
        population: N clients.
        known: before the round.
        turn: rounds done.

    Returns:
        ids int32[C] and alive bool[C].

    Example:
        >>> from fedjax_rec.informed import size_capped
        >>> from fedjax_rec.testing import tiny_population
        >>> ids, alive = draw_cohort(size_capped(5, cohort=23), jax.random.key(0), tiny_population(), Known(), 0)
        >>> 3 in ids.tolist(), bool(alive.all())  # client 3 has no data
        (False, True)
    """
    if not isinstance(sampler, Informed):
        return in_turn(sampler, turn)(key, population.num_clients)
    unknown = isinstance(known.losses, tuple)
    losses = jnp.full(population.num_clients, jnp.inf, jnp.float32) if unknown else known.losses
    return sampler.draw(key, sizes_of(population), losses)


def share_of(aggregator: Aggregator, known: Known, ids: jax.Array, present: jax.Array) -> jax.Array | None:
    """The learnt weights of a cohort.

    Args:
        aggregator: perhaps with a mixture.
        known: before the round.
        ids: int32[C].
        present: bool[C], who takes part.

    Returns:
        float32[C]; None without a mixture.

    Example:
        >>> from fedjax_rec.fairness import agnostic
        >>> share_of(agnostic(), Known((), jnp.array([0.2, 0.8])), jnp.array([1]), jnp.array([True])).tolist()
        [0.800000011920929]
    """
    return None if aggregator.mixture is None else aggregator.mixture.weigh(known.mixture, ids, present)


def learn(
    aggregator: Aggregator, known: Known, ids: jax.Array, present: jax.Array, losses: jax.Array
) -> Known:
    """What the server knows after a round.

    Args:
        aggregator: perhaps with a mixture.
        known: before the round.
        ids: int32[C].
        present: bool[C], who took part in a round that counts.
        losses: float32[C], what they told; anything for the others. () where nobody was asked.

    Returns:
        the same, of after the round.

    Example:
        >>> from fedjax_rec.aggregators import total
        >>> known = Known(jnp.array([jnp.inf, 2.0]))
        >>> learn(total(), known, jnp.array([0]), jnp.array([True]), jnp.array([0.5])).losses.tolist()
        [0.5, 2.0]
    """
    if not isinstance(known.losses, tuple):
        place = jnp.where(present, ids, known.losses.shape[0])
        known = known._replace(losses=known.losses.at[place].set(losses, mode="drop"))
    if aggregator.mixture is not None:
        known = known._replace(mixture=aggregator.mixture.learn(known.mixture, ids, present, losses))
    return known
