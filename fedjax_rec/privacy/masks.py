"""Pairwise masks: the arithmetic of secure aggregation, modulo 2^b, in which a server sees only a sum.

Client u sends y_u = x_u + m_u + sum_{v > u} m_uv - sum_{v < u} m_uv, every mask as long as the vector. m_uv comes
of a secret that u and v agreed upon, m_u of u's own seed, and both are shared among all with a threshold t. For
those whose y_u arrived the others reveal the seed of m_u; for those who dropped out after the masks were made,
that of their m_uv; **never both of one client**. Then all masks cancel:

    sum_arrived y_u - sum_arrived m_u - sum_arrived sum_dropped (+-) m_uv = sum_arrived x_u

Simulated is the arithmetic, bit for bit. The cryptography is not: masks are drawn from a key of the simulation,
and what t shareholders would reconstruct is drawn again. `experiments/communication` counts what it would send.

Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", section 4.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.types import Key


def reduce_modulo(x: jax.Array, modulus: int) -> jax.Array:
    """The number modulo 2^b.

    Args:
        x: int32 or uint32, any shape.
        modulus: b, 1 to 32.

    Returns:
        uint32 of that shape, below 2^b.

    Example:
        >>> reduce_modulo(jnp.array([-1, 65537]), 16).tolist()
        [65535, 1]
    """
    return x.astype(jnp.uint32) & jnp.uint32(2**modulus - 1)


def to_signed(x: jax.Array, modulus: int) -> jax.Array:
    """The number between -2^(b - 1) and 2^(b - 1) that is x modulo 2^b.

    Args:
        x: uint32, any shape, below 2^b.
        modulus: b, 1 to 32.

    Returns:
        int32 of that shape.

    Example:
        >>> to_signed(jnp.array([65535, 1], jnp.uint32), 16).tolist()
        [-1, 1]
    """
    unused_bits = 32 - modulus
    return jax.lax.bitcast_convert_type(x << unused_bits, jnp.int32) >> unused_bits


def mask_vectors(key: Key, vectors: jax.Array, modulus: int) -> jax.Array:
    """What every client would send: O(C^2 m) random numbers.

    Args:
        key: of the round's secrets.
        vectors: uint32[C, m].
        modulus: b.

    Returns:
        uint32[C, m].

    Example:
        >>> sent = mask_vectors(jax.random.key(0), jnp.zeros((3, 2), jnp.uint32), 20)
        >>> bool((sent > 0).all()), bool((sent < 2**20).all())
        (True, True)
    """
    count, size = vectors.shape
    everyone = jnp.ones(count, bool)

    def send(client: jax.Array) -> jax.Array:
        masks = _self_mask(key, client, size) + _sum_pair_masks(key, client, everyone, size)
        return reduce_modulo(vectors[client] + masks, modulus)

    return jax.lax.map(send, jnp.arange(count))


def unmask_sum(key: Key, sent: jax.Array, arrived: jax.Array, modulus: int) -> jax.Array:
    """What the server makes of what arrived, once survivors have revealed the seeds that are left over.

    Args:
        key: as for `mask_vectors`.
        sent: uint32[C, m]; of those who did not arrive nothing is read.
        arrived: bool[C].
        modulus: b.

    Returns:
        uint32[m], the sum modulo 2^b of the vectors of those who arrived.

    Example:
        >>> key, vectors = jax.random.key(0), jnp.arange(6, dtype=jnp.uint32).reshape(3, 2)
        >>> unmask_sum(key, mask_vectors(key, vectors, 16), jnp.array([True, False, True]), 16).tolist()
        [4, 6]
    """
    count, size = sent.shape

    def add(client: jax.Array, total: jax.Array) -> jax.Array:
        remaining = _self_mask(key, client, size) + _sum_pair_masks(key, client, ~arrived, size)
        return total + jnp.where(arrived[client], sent[client] - remaining, jnp.uint32(0))

    return reduce_modulo(jax.lax.fori_loop(0, count, add, jnp.zeros(size, jnp.uint32)), modulus)


def _self_mask(key: Key, client: jax.Array, size: int) -> jax.Array:
    return _draw_mask(key, client, client, size)


def _sum_pair_masks(key: Key, client: jax.Array, which: jax.Array, size: int) -> jax.Array:
    """Sum of the masks that a client has with some of the others, uint32[m]."""

    def add(other: jax.Array, total: jax.Array) -> jax.Array:
        mask = _draw_mask(key, jnp.minimum(client, other), jnp.maximum(client, other), size)
        signed = jnp.where(other > client, mask, -mask)
        return total + jnp.where(which[other] & (other != client), signed, jnp.uint32(0))

    return jax.lax.fori_loop(0, which.shape[0], add, jnp.zeros(size, jnp.uint32))


def _draw_mask(key: Key, first: jax.Array, second: jax.Array, size: int) -> jax.Array:
    """The mask of a pair, or of one client where both are the same."""
    return jax.random.bits(jax.random.fold_in(jax.random.fold_in(key, first), second), (size,), jnp.uint32)
