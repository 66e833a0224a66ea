"""Whether an item is among a client's own: two structures, both built once on the host and read inside the round.

| structure | size | a test reads |
|---|---|---|
| bitmap | N x I bits | one word |
| buckets | about 12 bytes an event, whatever I | one bucket of 8 ids |

The bitmap is taken where it fits in 256 MiB. Buckets are a hash table for each client, back to back: item `i` of
client `n` lies in bucket `starts[n] + (hash(i) mod buckets of n)`, their number a power of two, doubled until none
overflows.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.sorting import stable_order

BITMAP_BYTES = 256 << 20
WIDTH = 8  # ids in a bucket
CHUNK = 2**20  # examples looked at together
_MAX_CELLS = 2**24  # of a bitmap, unpacked
_MAX_DOUBLINGS = 12  # of a client's buckets: distinct items are parted by one or two

Pairs = Callable[[int, int], tuple[np.ndarray, np.ndarray]]


class Membership(NamedTuple):
    """Each client's items, ready to be tested."""

    cells: Any  # bitmap: uint32[N * words]; buckets: int32[all buckets, 8], -1 = free
    starts: Any  # buckets: int32[N + 1], where each client's begin; bitmap: int32[0]


def client_chunks(offsets: np.ndarray, clients_at_once: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Consecutive clients of about 2^20 examples at a time, so that what is computed for them stays in a cache.

    Args:
        offsets: int[N + 1].
        clients_at_once: how many a chunk has at most.

    Returns:
        the first client of each chunk, and the first behind it.

    Example:
        >>> list(client_chunks(np.array([0, 3, 5]), 1))
        [(0, 1), (1, 2)]
    """
    first = 0
    while first < len(offsets) - 1:
        fitting = int(np.searchsorted(offsets, offsets[first] + CHUNK, side="right")) - 1
        stop = min(max(fitting, first + 1), first + clients_at_once, len(offsets) - 1)
        yield first, stop
        first = stop


def make_membership(
    offsets: np.ndarray,
    items: np.ndarray,
    num_items: int,
    *,
    extra_items: np.ndarray | None = None,
    bitmap: bool | None = None,
    num_buckets: np.ndarray | None = None,
    on_device: bool = True,
) -> Membership:
    """Index which client has which items.

    Args:
        offsets: int[N + 1], client n's items are `items[offsets[n] : offsets[n + 1]]`.
        items: int[M], 0 to I - 1, distinct within a client.
        num_items: I.
        extra_items: int[N, k], items that each client has besides; -1 for none.
        bitmap: which structure; by default a bitmap where it fits in 256 MiB.
        num_buckets: of `choose_buckets`, where they have been chosen already.
        on_device: whether its arrays are put on the device; else they stay numpy's.

    Returns:
        the structure.

    Raises:
        ValueError: if a bitmap, or buckets, would be more than 32 bits can count.

    Example:
        >>> make_membership(np.array([0, 2]), np.array([1, 33]), 40).cells.tolist()
        [2, 2]
    """
    num_clients = len(offsets) - 1
    words = -(-num_items // 32)
    if bitmap is None:
        bitmap = num_clients * words * 4 <= BITMAP_BYTES
    if bitmap and num_clients * words >= 2**31:
        raise ValueError(
            f"a bitmap of {num_clients:,} clients and {num_items:,} items has {num_clients * words:,} words, more "
            "than 32 bits can count; use bitmap=False"
        )

    def pairs(first: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Clients, counted from `first`, and the items that each has."""
        clients = np.repeat(np.arange(stop - first), np.diff(offsets[first : stop + 1]))
        owned = items[offsets[first] : offsets[stop]]
        if extra_items is None:
            return clients, owned
        extra = extra_items[first:stop]
        present = extra >= 0
        return np.concatenate([clients, np.nonzero(present)[0]]), np.concatenate([owned, extra[present]])

    made = _bitmap(offsets, pairs, words) if bitmap else _buckets(offsets, pairs, num_buckets)
    return jax.tree.map(jnp.asarray, made) if on_device else made


def choose_buckets(offsets: np.ndarray, items: np.ndarray) -> np.ndarray:
    """How many buckets each client's hash table has.

    Args:
        offsets: int[N + 1].
        items: int[M], distinct within a client.

    Returns:
        int64[N], powers of two.

    Raises:
        ValueError: if a client has an item so often that no number of buckets parts them.

    Example:
        >>> choose_buckets(np.array([0, 2]), np.array([1, 33]))
        array([1])
    """
    clients = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return _count_buckets(clients, items, len(offsets) - 1)


def _bitmap(offsets: np.ndarray, pairs: Pairs, words: int) -> Membership:
    """A bit for each client and item, packed from a table of bytes for some clients at a time."""
    bits = np.zeros((len(offsets) - 1, words), np.uint32)
    for first, stop in client_chunks(offsets, max(1, _MAX_CELLS // max(1, words * 32))):
        has = np.zeros((stop - first, words * 32), bool)
        has[pairs(first, stop)] = True
        bits[first:stop] = np.packbits(has, axis=1, bitorder="little").view("<u4")
    return Membership(bits.reshape(-1), np.zeros(0, np.int32))


def _buckets(offsets: np.ndarray, pairs: Pairs, num_buckets: np.ndarray | None) -> Membership:
    """A hash table for each client, of buckets that do not overflow."""
    # First how many buckets each client needs [N], then what lies in them: no more than the result is held.
    if num_buckets is None:
        num_buckets = np.empty(len(offsets) - 1, np.int64)
        for first, stop in client_chunks(offsets):
            num_buckets[first:stop] = _count_buckets(*pairs(first, stop), stop - first)
    starts = np.concatenate([[0], np.cumsum(num_buckets)])
    if starts[-1] >= 2**31:
        raise ValueError(f"{starts[-1]:,} buckets for {offsets[-1]:,} events are more than 32 bits can count")
    cells = np.full((starts[-1], WIDTH), -1, np.int32)
    for first, stop in client_chunks(offsets):
        clients, items = pairs(first, stop)
        bucket = _find_buckets(clients, items, starts[first : stop + 1])
        # Sorted by bucket, an item's slot is its distance from the first item of its bucket.
        order = stable_order(bucket)
        bucket = bucket[order]
        slot = np.arange(len(order)) - np.searchsorted(bucket, bucket)
        cells[bucket, slot] = items[order]
    return Membership(cells, starts.astype(np.int32))


def _count_buckets(clients: np.ndarray, items: np.ndarray, num_clients: int) -> np.ndarray:
    """int64[N], powers of two: room for twice a client's items, doubled until no bucket overflows."""
    needed = np.maximum(np.bincount(clients, minlength=num_clients), 1) * 2 // WIDTH
    num_buckets = 1 << np.ceil(np.log2(np.maximum(needed, 1))).astype(np.int64)
    for _ in range(_MAX_DOUBLINGS):
        bucket = _find_buckets(clients, items, np.concatenate([[0], np.cumsum(num_buckets)]))
        overflows = np.bincount(bucket)[bucket] > WIDTH
        if not overflows.any():
            return num_buckets
        doubled = np.zeros(num_clients, bool)
        doubled[clients[overflows]] = True
        num_buckets[doubled] *= 2
    raise ValueError("a client holds the same item many times; keep one event per (user, item) pair")


def _find_buckets(clients: np.ndarray, items: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """int64[M], the bucket that each item lies in, of clients whose own begin at `starts` [N + 1]."""
    return starts[clients] + (_hash(items.astype(np.uint32)) & (np.diff(starts)[clients] - 1))


def _hash(ids: Any) -> Any:
    """A bijection of 32 bits, of numpy and jax arrays: distinct items lie apart from some number of buckets on."""
    ids = ids * np.uint32(0x9E3779B1)
    ids = (ids ^ (ids >> 15)) * np.uint32(0x85EBCA77)
    return ids ^ (ids >> 13)


def holds(membership: Membership, client_id: jax.Array, ids: jax.Array, num_items: int) -> jax.Array:
    """Whether items are among one client's own.

    Args:
        membership: of N clients.
        client_id: int32[].
        ids: int32[n], item ids; no client has `I`.
        num_items: I.

    Returns:
        bool[n].

    Example:
        >>> membership = make_membership(np.array([0, 2]), np.array([1, 33]), 40, bitmap=False)
        >>> holds(membership, jnp.int32(0), jnp.array([1, 2, 33, 40]), 40).tolist()
        [True, False, True, False]
    """
    if not membership.starts.size:
        words = -(-num_items // 32)
        word = membership.cells.at[client_id * words + (ids >> 5)].get(
            mode="clip", wrap_negative_indices=False
        )
        return ((word >> (ids & 31).astype(jnp.uint32)) & 1 == 1) & (ids < num_items)
    start = membership.starts[client_id]
    num_buckets = (membership.starts[client_id + 1] - start).astype(jnp.uint32)
    bucket = start + (_hash(ids.astype(jnp.uint32)) & (num_buckets - 1)).astype(jnp.int32)
    return (membership.cells.at[bucket].get(mode="clip", wrap_negative_indices=False) == ids[:, None]).any(1)
