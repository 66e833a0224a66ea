"""Whether an item is among a client's own: two structures, both built once on the host and read inside the round.

| structure | size | a test reads |
|---|---|---|
| bitmap | N x I bits | one word |
| buckets | about 12 bytes an event, whatever I | one bucket of 8 ids |

The bitmap is taken where it fits in 256 MiB. Buckets are a hash table for each client, back to back: item `i` of
client `n` lies in bucket `starts[n] + (hash(i) mod buckets of n)`, their number a power of two, doubled until none
overflows.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

BITMAP_BYTES = 256 << 20
WIDTH = 8  # ids in a bucket


class Membership(NamedTuple):
    """Each client's items, ready to be tested."""

    cells: jax.Array  # bitmap: uint32[N * words]; buckets: int32[all buckets, 8], -1 = free
    starts: jax.Array  # buckets: int32[N + 1], where each client's begin; bitmap: int32[0]


def make_membership(
    clients: np.ndarray, items: np.ndarray, num_clients: int, num_items: int, *, bitmap: bool | None = None
) -> Membership:
    """Index who holds what.

    Args:
        clients: int[M], in any order.
        items: int[M], 0 to I - 1, distinct within a client.
        num_clients: N.
        num_items: I.
        bitmap: which structure; by default a bitmap where it fits in 256 MiB.

    Returns:
        the structure.

    Example:
        >>> make_membership(np.array([0, 0]), np.array([1, 33]), 1, 40).cells.tolist()
        [2, 2]
    """
    words = -(-num_items // 32)
    if bitmap is None:
        bitmap = num_clients * words * 4 <= BITMAP_BYTES
    if not bitmap:
        return _buckets(clients, items, num_clients)
    bits = np.zeros((num_clients, words), np.uint32)
    np.bitwise_or.at(bits, (clients, items // 32), np.uint32(1) << (items % 32).astype(np.uint32))
    return Membership(jnp.asarray(bits.reshape(-1)), jnp.zeros(0, jnp.int32))


def _buckets(clients: np.ndarray, items: np.ndarray, num_clients: int) -> Membership:
    hashed = _hash(items.astype(np.uint32))
    needed = np.maximum(np.bincount(clients, minlength=num_clients), 1) * 2 // WIDTH
    number = 1 << np.ceil(np.log2(np.maximum(needed, 1))).astype(np.int64)
    while True:
        starts = np.concatenate([[0], np.cumsum(number)])
        place = starts[clients] + (hashed & (number[clients] - 1))
        load = np.bincount(place, minlength=starts[-1])
        full = np.unique(clients[load[place] > WIDTH])
        if not len(full):
            break
        number[full] *= 2
    order = np.argsort(place, kind="stable")
    first = np.concatenate([[0], np.cumsum(load)])[:-1]
    cells = np.full((starts[-1], WIDTH), -1, np.int32)
    cells[place[order], np.arange(len(order)) - first[place[order]]] = items[order]
    return Membership(jnp.asarray(cells), jnp.asarray(starts, jnp.int32))


def _hash(ids: Any) -> Any:
    """A bijection of 32 bits, of numpy and jax arrays alike: distinct items part at some number of buckets."""
    one, two = np.uint32(0x9E3779B1), np.uint32(0x85EBCA77)
    ids = ids * one
    ids = (ids ^ (ids >> 15)) * two
    return ids ^ (ids >> 13)


def holds(membership: Membership, client_id: jax.Array, ids: jax.Array, num_items: int) -> jax.Array:
    """Whether items are among one client's own.

    Args:
        membership: of N clients.
        client_id: int32[].
        ids: int32[n], item ids; `I` is never held.
        num_items: I.

    Returns:
        bool[n].

    Example:
        >>> found = make_membership(np.array([0, 0]), np.array([1, 33]), 1, 40, bitmap=False)
        >>> holds(found, jnp.int32(0), jnp.array([1, 2, 33, 40]), 40).tolist()
        [True, False, True, False]
    """
    if not membership.starts.size:
        words = -(-num_items // 32)
        word = membership.cells.at[client_id * words + (ids >> 5)].get(mode="clip")
        return ((word >> (ids & 31).astype(jnp.uint32)) & 1 == 1) & (ids < num_items)
    start = membership.starts[client_id]
    number = (membership.starts[client_id + 1] - start).astype(jnp.uint32)
    place = start + (_hash(ids.astype(jnp.uint32)) & (number - 1)).astype(jnp.int32)
    return (membership.cells.at[place].get(mode="clip") == ids[:, None]).any(1)
