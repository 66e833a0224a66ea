"""A client's history as bits, and what follows from it: a sum of its own rows, and the pairs of a cohort's items.

A history is a set of items. As a bit an item it is small beside anything else with an axis of items, and what
would be a product of it with a table [I, K] is a sum of few rows.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.types import DeviceShare, PyTree

BITS = 32  # of a word
TILE = 64  # own items of a client whose pairs with as many others are counted at once


def num_words(num_items: int) -> int:
    """Words that hold a bit an item.

    Args:
        num_items: I.

    Returns:
        I / 32, rounded up.

    Example:
        >>> num_words(33)
        2
    """
    return -(-num_items // BITS)


def pack_history(history: jax.Array) -> jax.Array:
    """The bits of a history: item i is bit i mod 32 of word i / 32.

    Args:
        history: [I], not 0 where an item is in it.

    Returns:
        uint32[I / 32].

    Example:
        >>> pack_history(jnp.zeros(40).at[jnp.array([1, 33])].set(1.0)).tolist()
        [2, 2]
    """
    count = num_words(len(history))
    own = jnp.pad(history != 0, (0, count * BITS - len(history))).reshape(count, BITS)
    bits = own.astype(jnp.uint32) << jnp.arange(BITS, dtype=jnp.uint32)[None, :]
    return bits.sum(1, dtype=jnp.uint32)


def sum_own_rows(history: jax.Array, table: jax.Array) -> jax.Array:
    """The sum of a table's rows over the items of a history, one row after the other.

    On CPUs a batch is summed client by client: together, all would take as many steps as the longest.

    Args:
        history: bits, uint32[I / 32].
        table: float32[I, K].

    Returns:
        float32[K].

    Example:
        >>> history = pack_history(jnp.array([1.0, 0.0, 1.0]))
        >>> sum_own_rows(history, jnp.array([[1.0], [2.0], [4.0]])).tolist()
        [5.0]
    """
    return jax.lax.platform_dependent(history, table, cpu=_sum_in_sequence, default=_sum_rows)


def _sum_rows(history: jax.Array, table: jax.Array) -> jax.Array:
    def add_next(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        words, total = carry
        # the first word with a bit left, and its lowest bit
        place = jnp.argmax(words != 0)
        word = words[place]
        lowest = word & -word
        item = place * BITS + jax.lax.population_count(lowest - 1).astype(place.dtype)
        return words.at[place].set(word ^ lowest), total + table[item]

    start = history, jnp.zeros(table.shape[1:])
    return jax.lax.while_loop(lambda carry: (carry[0] != 0).any(), add_next, start)[1]


_sum_in_sequence = jax.custom_batching.sequential_vmap(_sum_rows)


def pairs_by_item(
    population: Population, ids: jax.Array, weight: jax.Array, private: PyTree, share: DeviceShare
) -> PyTree:
    """Weighted numbers of clients that have both items, G = sum over u of w_u x_u x_u^T.

    Row i is the sum of x_u over the clients that have item i: what each of them sends for it. The sum over all
    rows of a client takes n_u^2 additions here and n_u I there; of whole numbers both are the same to the bit.

    Args:
        population: the clients.
        ids: int32[C], the cohort's places in it.
        weight: float32[C], w_u; who has 0 is absent.
        private: unused: the histories are the population's.
        share: which clients to sum; the shares' results add up to that of all.

    Returns:
        "pairs" [I, I].

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> population = tiny_population(num_clients=4, num_items=6)
        >>> pairs = pairs_by_item(population, jnp.arange(4), jnp.ones(4), {}, DeviceShare(0, 1))["pairs"]
        >>> int(jnp.trace(pairs)) == int(population.offsets[-1])
        True
    """
    del private
    num_items = population.num_items
    starts = population.offsets.at[ids].get(mode="clip")
    ends = population.offsets.at[ids + 1].get(mode="clip")

    def add_client(turn: jax.Array, pairs: jax.Array) -> jax.Array:
        # the client's history in tiles of items; none of who is absent
        slot = share.number + turn * share.total
        start, end = starts[slot], ends[slot]
        tiles = jnp.where(weight[slot] > 0, -(-(end - start) // TILE), 0)

        def items_of(tile: jax.Array) -> jax.Array:
            event = start + tile * TILE + jnp.arange(TILE)
            return jnp.where(event < end, population.examples["items"].at[event].get(mode="clip"), num_items)

        def add_tile(number: jax.Array, pairs: jax.Array) -> jax.Array:
            rows, columns = items_of(number // tiles), items_of(number % tiles)
            return pairs.at[rows[:, None], columns[None, :]].add(weight[slot], mode="drop")

        return jax.lax.fori_loop(0, tiles * tiles, add_tile, pairs)

    turns = -(-(len(ids) - share.number) // share.total)
    pairs = jax.lax.fori_loop(0, turns, add_client, jnp.zeros((num_items, num_items)))
    return {"pairs": pairs}
