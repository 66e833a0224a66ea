"""A client's history as one sequence: one local batch of its latest items in order of time, and negatives."""

import jax
import jax.numpy as jnp

from fedjax_rec.permutation import scatter_index
from fedjax_rec.population import Population, contains
from fedjax_rec.types import Batch, Client, LocalBatches


def sequences(max_length: int, num_negatives: int) -> LocalBatches:
    """One batch a client: its latest items in order of time, oldest first, and negatives for each of them.

    Args:
        max_length: L.
        num_negatives: K, negatives for each item that is to be predicted; 0 for none, and none is then predicted.

    Returns:
        local batches; the first slots are the L + 1 latest items (the L latest for K = 0), empty slots first, the
        rest K times L negatives; data "mask" float32[B].

    Example:
        >>> sequences(10, 1).num_batches(7)
        1
    """
    length = max_length + (num_negatives > 0)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        del t  # always 0
        items, place = population.num_items, client.num_examples - length + jnp.arange(length)
        own = population.examples["items"].at[client.offset + place].get(mode="clip")
        own = jnp.where(place >= 0, own, items)
        drawn = scatter_index(client.key, jnp.arange(max_length * num_negatives), items)
        wanted = jnp.tile(own[:-1] < items, num_negatives) if num_negatives else jnp.zeros(0, bool)
        free = wanted & ~contains(population, client.id, drawn)
        ids = jnp.concatenate([own, jnp.where(free, drawn, items)])
        return Batch(ids, {"mask": (ids < items).astype(jnp.float32)})

    return LocalBatches(lambda num_examples: (num_examples > 0) * 1, batch)
