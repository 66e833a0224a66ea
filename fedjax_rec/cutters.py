"""More ways to cut a rated history into local batches, beside those of `batches`."""

import jax
import jax.numpy as jnp

from fedjax_rec.batches import positives_per_batch, rated, with_negatives
from fedjax_rec.population import Population
from fedjax_rec.types import Batch, Client, LocalBatches


def in_order(batch_size: int = 64) -> LocalBatches:
    """Cut a rated history in the order of the data, the same in every round, for rules that depend on the order.

    Args:
        batch_size: examples in a batch.

    Returns:
        local batches with B = batch_size; `data` holds `rating` and `mask`, float32[B].

    Example:
        >>> in_order(10).num_batches(jnp.int32(11)).item()
        2
    """

    def num_batches(num_examples: jax.Array) -> jax.Array:
        return -(-num_examples // batch_size)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        index = t * batch_size + jnp.arange(batch_size)
        held = index < client.num_examples
        items, ratings = (population.examples[name] for name in ("items", "ratings"))
        place = jnp.where(held, client.offset + index, items.shape[0])
        ids = items.at[place].get(mode="fill", fill_value=population.num_items)
        rating = ratings.at[place].get(mode="fill", fill_value=0)
        return Batch(ids, {"rating": rating, "mask": held.astype(jnp.float32)})

    return LocalBatches(num_batches, batch)


def rated_with_negatives(batch_size: int = 64, num_negatives: int = 1) -> LocalBatches:
    """Cut a rated history into batches of P ratings and P x num_negatives sampled items without one.

    The slots, and the items in them, are those of `with_negatives`.

    Args:
        batch_size: examples in a batch, rated and sampled together; in whole ratings.
        num_negatives: sampled items per rating; 0 samples none.

    Returns:
        local batches with B = P (1 + num_negatives); `data` holds, float32[B], `rating` (0 for a sampled item),
        `own` (1 for a rated item) and `mask` (1 for either, 0 for an empty slot).

    Example:
        >>> rated_with_negatives(10, 1).num_batches(jnp.int32(11)).item()
        3
    """
    positives = positives_per_batch(batch_size, num_negatives)
    cut, ratings = with_negatives(batch_size, num_negatives), rated(positives)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        own = ratings.batch(client, population, t)  # the first P slots of `cut`: both shuffle alike
        both = cut.batch(client, population, t) if num_negatives else own
        none = jnp.zeros(positives * num_negatives)
        mask = (both.ids < population.num_items).astype(jnp.float32)
        rating, held = (jnp.concatenate([own.data[name], none]) for name in ("rating", "mask"))
        return Batch(both.ids, {"rating": rating, "own": held, "mask": mask})

    return LocalBatches(cut.num_batches, batch)


def numbered(cut: LocalBatches) -> LocalBatches:
    """Tell each batch its number, for work that must know where a local epoch begins.

    Args:
        cut: any way to cut.

    Returns:
        the same batches; `data` holds `turn` besides, int32[B], all t.

    Example:
        >>> from fedjax_rec.clients import name_clients
        >>> from fedjax_rec.testing import tiny_population
        >>> population = tiny_population()
        >>> client = jax.tree.map(lambda x: x[0], name_clients(jax.random.key(0), jnp.array([0]), population))
        >>> numbered(in_order(2)).batch(client, population, jnp.int32(3)).data["turn"].tolist()
        [3, 3]
    """

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        plain = cut.batch(client, population, t)
        return plain._replace(data={**plain.data, "turn": jnp.full(plain.ids.shape, t, jnp.int32)})

    return cut._replace(batch=batch)


def first_batches(cut: LocalBatches, most: int) -> LocalBatches:
    """Leave out what comes after each client's first batches.

    Args:
        cut: any way to cut.
        most: batches that are kept.

    Returns:
        the same batches, but not more than `most` of a client.

    Example:
        >>> first_batches(in_order(10), 3).num_batches(25), first_batches(in_order(10), 3).num_batches(99)
        (3, 3)
    """

    def num_batches(num_examples: jax.Array) -> jax.Array:
        count = cut.num_batches(num_examples)
        return count - (count > most) * (count - most)  # the minimum, also of Python integers

    return cut._replace(num_batches=num_batches)
