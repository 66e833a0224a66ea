"""Local batches: how one client's examples are cut, shuffled and completed with negatives.

A batch is a pure function of (client, t), with no host work and no sort. Negatives follow one rule, used by the
engine, its references and its benchmarks alike: they are drawn once per round through a keyed permutation of the
catalogue, so they are **distinct**, and those that fall on one of the client's own *training* positives are
masked out (never replaced). Held-out items are not special: they can be drawn, as they must be, for a protocol
that spares them leaks the answer (`Split.negatives` "paper-leaky" does so, to reproduce papers).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.permutation import domain, scatter_index, shuffle_index
from fedjax_rec.population import Population, contains
from fedjax_rec.types import Batch, Client, LocalBatches


def positives_per_batch(batch_size: int, num_negatives: int) -> int:
    """Positives in a local batch whose size counts positives and negatives together.

    Args:
        batch_size: wanted number of examples.
        num_negatives: negatives per positive.

    Returns:
        batch_size / (1 + num_negatives), rounded to whole positives, at least 1.

    Example:
        >>> positives_per_batch(64, 4)
        13
    """
    return max(1, round(batch_size / (1 + num_negatives)))


def with_negatives(batch_size: int = 64, num_negatives: int = 4) -> LocalBatches:
    """Cut a history into batches of P positives and P x num_negatives sampled negatives.

    The first P slots of a batch are positives, the rest their negatives, in order; `data["mask"]` (float32[B])
    is 0 for empty slots.

    Args:
        batch_size: examples in a batch, positives and negatives together; rounded to whole positives.
        num_negatives: negatives drawn per positive.

    Returns:
        local batches with B = P (1 + num_negatives).

    Example:
        >>> with_negatives(10, 4).num_batches(jnp.int32(5)).item()
        3
    """
    positives = positives_per_batch(batch_size, num_negatives)

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // positives)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        own = _own_items(client, population, t * positives + jnp.arange(positives))
        draws = t * (positives * num_negatives) + jnp.arange(positives * num_negatives)
        drawn = _negatives(client, population, draws, client.num_examples * num_negatives)
        ids = jnp.concatenate([own, drawn])
        return Batch(ids, {"mask": (ids < population.num_items).astype(jnp.float32)})

    return LocalBatches(num_batches, batch)


def rated(batch_size: int = 64) -> LocalBatches:
    """Cut a rated history into batches; `data` holds `rating` and `mask`, float32[B].

    Args:
        batch_size: examples in a batch.

    Returns:
        local batches with B = batch_size.

    Example:
        >>> rated(10).num_batches(jnp.int32(11)).item()
        2
    """

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // batch_size)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        index = t * batch_size + jnp.arange(batch_size)
        ids = _own_items(client, population, index)
        mask = (ids < population.num_items).astype(jnp.float32)
        place = client.offset + _shuffled(client, population, index)
        rating = population.examples["ratings"].at[place].get(mode="fill", fill_value=0)
        return Batch(ids, {"rating": rating * mask, "mask": mask})

    return LocalBatches(num_batches, batch)


def _shuffled(client: Client, population: Population, index: jax.Array) -> jax.Array:
    return shuffle_index(client.key, index, client.num_examples, population.max_examples)


def _own_items(client: Client, population: Population, index: jax.Array) -> jax.Array:
    place = client.offset + _shuffled(client, population, index)
    items = population.examples["items"].at[place].get(mode="fill", fill_value=0)
    return jnp.where(index < client.num_examples, items, population.num_items)


def _negatives(client: Client, population: Population, index: jax.Array, wanted: jax.Array) -> jax.Array:
    wanted = jnp.minimum(wanted, domain(population.num_items))
    drawn = scatter_index(client.key, index, population.num_items)
    free = (index < wanted) & ~contains(population, client.id, drawn)
    return jnp.where(free, drawn, population.num_items)


def catalogue(num_negatives: int = 4) -> LocalBatches:
    """One local batch that is the whole catalogue, for work whose own gradient is dense in the rows.

    Row i stands in slot i. The `data`, over the I items:

    * `label` float32[I]: 1 for the client's training positives;
    * `mask` float32[I]: 1 for its examples, which are its positives and this round's negatives, the same ones as
      `with_negatives` draws;
    * `order` int32[I]: the place of each example in a keyed random order of the client's examples, 0 to their
      number - 1, and I elsewhere. Mini-batch b of size B holds the examples with `order // B == b`.

    Memory is lanes x I x D, whatever the number of clients.

    Args:
        num_negatives: negatives drawn per positive.

    Returns:
        local batches with B = I; one for each client that has data.

    Example:
        >>> catalogue().num_batches(7), catalogue().num_batches(0)
        (1, 0)
    """

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return (num_examples > 0) * 1

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        del t  # always 0
        items, longest = population.num_items, population.max_examples
        own = _own_items(client, population, jnp.arange(longest))
        draws = jnp.arange(min(domain(items), longest * num_negatives))
        drawn = _negatives(client, population, draws, client.num_examples * num_negatives)
        label = jnp.zeros(items).at[own].set(1.0, mode="drop")
        mask = label.at[drawn].set(1.0, mode="drop")
        return Batch(jnp.arange(items), {"label": label, "mask": mask, "order": _places(client.key, mask)})

    return LocalBatches(num_batches, batch)


def mini_batches(batch: Batch, size: int) -> Callable[[jax.Array], jax.Array]:
    """Cut the examples of a batch of `catalogue` into mini-batches, in their keyed random order.

    Args:
        batch: of one client.
        size: examples in a mini-batch, B.

    Returns:
        number of the mini-batch int32[] -> its items int32[B], I in its empty slots.

    Example:
        >>> data = {"mask": jnp.array([1.0, 0, 1, 1]), "order": jnp.array([2, 4, 0, 1])}
        >>> cut = mini_batches(Batch(jnp.arange(4), data), 2)
        >>> cut(jnp.int32(0)).tolist(), cut(jnp.int32(1)).tolist()
        ([2, 3], [0, 4])
    """
    empty = batch.ids.shape[0]
    # `order` is one to one on the examples, so that turning it round needs no sort
    ordered = jnp.full(empty, empty).at[batch.data["order"]].set(jnp.arange(empty), mode="drop")
    examples = batch.data["mask"].sum().astype(jnp.int32)

    def items(number: jax.Array) -> jax.Array:
        place = number * size + jnp.arange(size)
        return jnp.where(place < examples, ordered.at[place].get(mode="clip"), empty)

    return items


@jax.custom_batching.custom_vmap
def largest_of_lanes(count: jax.Array) -> jax.Array:
    """The largest number of all lanes: a loop's bound that they share, for a body that does nothing past its own.

    Under `vmap` a loop whose bound differs between lanes copies all that it carries in each turn.

    Args:
        count: int32[] of this lane.

    Returns:
        int32[]; without `vmap` the number itself.

    Example:
        >>> jax.vmap(lambda n: n + 10 * largest_of_lanes(n))(jnp.array([1, 3, 2])).tolist()
        [31, 33, 32]
    """
    return count


@largest_of_lanes.def_vmap
def _share_largest(axis_size: int, in_batched: list[bool], count: jax.Array) -> tuple[jax.Array, bool]:
    del axis_size
    return largest_of_lanes(count.max(initial=0) if in_batched[0] else count), False


def _places(key: jax.Array, mask: jax.Array) -> jax.Array:
    """Places 0, 1, ... of the items with mask 1 in a keyed random order, int32[I]; I where the mask is 0."""
    size = mask.shape[0]
    # another key than the negatives', whose order of drawing would be that of training
    sequence = scatter_index(key ^ jnp.uint32(0x5BD1E995), jnp.arange(domain(size)), size)
    held = mask.at[sequence].get(mode="fill", fill_value=0) > 0
    places = jnp.where(held, jnp.cumsum(held) - 1, size)
    return jnp.full(size, size).at[sequence].set(places, mode="drop")
