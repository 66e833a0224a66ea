"""Sums over an item's clients, item by item: the short way to what `fedals` sums up client by client.

A client sends p_u p_u^T and p_u for each of its own items, D (D + 3) / 2 numbers each, and adding them up row by
row reads and writes as many numbers for every interaction. With the vectors of all clients side by side, they are

    sum over u that own i of w_u p_u p_u^T = P_i^T diag(w) P_i,

a product of matrices for each item, whose rows P_i are read once. It is simulated work that is saved, not traffic.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.engine.cohort import CHUNK
from fedjax_rec.types import DeviceShare, PyTree


class Owners(NamedTuple):
    """The population item by item."""

    owner: jax.Array  # int32[M], clients by the item that they own; N for nobody
    start: jax.Array  # int32[I + 1], where an item's clients start
    ends: jax.Array  # int32[I], chunks of this item and those before it


def moments_by_item(
    population: Population, ids: jax.Array, weight: jax.Array, private: PyTree, share: DeviceShare
) -> PyTree:
    """Weighted sums of 1, p_u and p_u p_u^T over the clients that own each item.

    Args:
        population: the clients.
        ids: int32[C], the cohort.
        weight: float32[C], w_u; who has 0 is absent, whatever its vector.
        private: "vector" float32[C, D], p_u.
        share: which chunks of clients to sum; the shares' results add up to that of all.

    Returns:
        "count" [I], "target" [I, D], and "moment" [I, D (D + 1) / 2], upper triangles.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> population = tiny_population(num_clients=4, num_items=6)
        >>> vectors = {"vector": jnp.ones((4, 2))}
        >>> sums = moments_by_item(population, jnp.arange(4), jnp.ones(4), vectors, DeviceShare(0, 1))
        >>> int(sums["count"].sum()) == int(population.offsets[-1]), sums["moment"].shape
        (True, (6, 3))
    """
    # For each event, sorted by item, the slot of its client in the cohort, int32[M]; C for who is not in it.
    owners = _by_item(population)
    cohort = len(ids)
    present = jnp.where(weight > 0, ids, population.num_clients + 1)
    slot_of = jnp.full(population.num_clients + 1, cohort).at[present].set(jnp.arange(cohort), mode="drop")
    slot = slot_of[owners.owner]
    # Weights [C + 1] and vectors [C + 1, D], of which the last is nobody's.
    factor = jnp.append(weight, 0.0)
    vectors = jnp.concatenate([private["vector"], jnp.zeros_like(private["vector"][:1])])
    # The sums, chunk by chunk of this share.
    dim = vectors.shape[1]
    shapes = {"count": (), "target": (dim,), "moment": (dim * (dim + 1) // 2,)}
    sums = {name: jnp.zeros((population.num_items, *shape)) for name, shape in shapes.items()}
    add = partial(_add_chunk, owners, slot, factor, vectors, share)
    return jax.lax.fori_loop(0, -(-(owners.ends[-1] - share.number) // share.total), add, sums)


def _by_item(population: Population) -> Owners:
    """The population's events sorted by item, by a stable sort inside the program."""
    items = population.examples["items"]
    clients = population.num_clients
    count = jnp.zeros(population.num_items, jnp.int32).at[items].add(1)
    owner = jnp.searchsorted(population.offsets, jnp.arange(len(items)), side="right") - 1
    owner = jnp.where(owner < 0, clients, owner)[jnp.argsort(items)]
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(count)])
    return Owners(owner, start, jnp.cumsum(-(-count // CHUNK)))


def _add_chunk(
    owners: Owners,
    slot: jax.Array,
    factor: jax.Array,
    vectors: jax.Array,
    share: DeviceShare,
    step: jax.Array,
    sums: PyTree,
) -> PyTree:
    """Add some clients of one item; `slot` int32[M] are their slots among the vectors."""
    # The step's chunk is of one item, and names up to CHUNK of its events; those beyond its last are nobody's.
    chunk = share.number + step * share.total
    item = jnp.searchsorted(owners.ends, chunk, side="right")
    chunks_before = jnp.where(item > 0, owners.ends[item - 1], 0)
    event = owners.start[item] + (chunk - chunks_before) * CHUNK + jnp.arange(CHUNK)
    client = jnp.where(event < owners.start[item + 1], slot.at[event].get(mode="clip"), len(vectors) - 1)
    # Their vectors P_i [CHUNK, D] and weights [CHUNK] give the chunk's part of the item's sums.
    rows = vectors[client]
    weight = factor[client]
    weighted = weight[:, None] * rows
    moment = jnp.einsum("cd,ce->de", weighted, rows, precision="highest")
    new = {"count": weight.sum(), "target": weighted.sum(0), "moment": moment[np.triu_indices(rows.shape[1])]}
    return jax.tree.map(lambda total, x: total.at[item].add(x), sums, new)
