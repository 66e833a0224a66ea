"""A client's history as one sequence: one local batch of its latest items in order of time, and negatives."""

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population, contains
from fedjax_rec.rows.permutation import permute_index
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
        # the latest items, oldest first; empty slots before them where the history is shorter
        items = population.num_items
        index = client.num_examples - length + jnp.arange(length)
        own = population.examples["items"].at[client.offset + index].get(mode="clip")
        own = jnp.where(index >= 0, own, items)
        # distinct items outside of the history, where there is an item to predict from
        drawn = permute_index(client.key, jnp.arange(max_length * num_negatives), items)
        predicts = jnp.tile(own[:-1] < items, num_negatives) if num_negatives else jnp.zeros(0, bool)
        is_negative = predicts & ~contains(population, client, drawn)
        ids = jnp.concatenate([own, jnp.where(is_negative, drawn, items)])
        return Batch(ids, {"mask": (ids < items).astype(jnp.float32)})

    return LocalBatches(lambda num_examples: (num_examples > 0) * 1, batch, needs_order=True)
