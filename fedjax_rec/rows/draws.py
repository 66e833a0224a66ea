"""Tables of random numbers, drawn some rows at a time where at once would take several tables' memory.

A number is a pure function of the key and of where it stands (threefry with partitionable counters, which
`engine.devices.check_surroundings` sees to), so that blocks of rows have the numbers of the whole.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

AT_ONCE = 2**26  # numbers that `jax.random.normal` draws; its counters and bits take four times their memory
BLOCK = 2**20  # numbers that are drawn together beyond that


def normal_rows(key: jax.Array, num_rows: int, *shape: int) -> jax.Array:
    """`jax.random.normal(key, (num_rows, *shape))`, with the memory of the result alone where that is large.

    Args:
        key: of jax's default kind; consumed.
        num_rows: I.
        *shape: of a row.

    Returns:
        float32[I, ...].

    Example:
        >>> normal_rows(jax.random.key(0), 5, 2).shape
        (5, 2)
    """
    width = math.prod(shape)
    if num_rows * width <= AT_ONCE:
        return jax.random.normal(key, (num_rows, *shape))
    rows = min(num_rows, max(1, BLOCK // width))
    words = jax.random.key_data(key)
    draw = partial(_draw_block, words, rows * width)

    def fill(number: jax.Array, table: jax.Array) -> jax.Array:
        first = jnp.minimum(number * rows, num_rows - rows)  # the last block draws some rows again
        block = draw(first, width).reshape(rows, width)
        return jax.lax.dynamic_update_slice_in_dim(table, block, first, axis=0)

    empty = jnp.zeros((num_rows, width), jnp.float32)
    return jax.lax.fori_loop(0, -(-num_rows // rows), fill, empty).reshape(num_rows, *shape)


def _draw_block(words: jax.Array, size: int, first_row: jax.Array, width: int) -> jax.Array:
    """Standard normal numbers float32[size] from that of a row on."""
    high, low = _counters(first_row, width, size)
    bits = threefry_2x32(words, jnp.concatenate([high, low]))
    bits = bits[:size] ^ bits[size:]
    # as `jax.random.uniform` makes floats of bits: a mantissa at random, and from [1, 2) to (-1, 1)
    least = np.nextafter(np.float32(-1.0), np.float32(0.0))
    floats = jax.lax.bitcast_convert_type((bits >> 9) | np.uint32(0x3F800000), jnp.float32) - np.float32(1.0)
    uniform = jnp.maximum(least, floats * (np.float32(1.0) - least) + least)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(uniform)


def _counters(first_row: jax.Array, width: int, size: int) -> tuple[jax.Array, jax.Array]:
    """The 64-bit numbers first_row * width + 0, 1, ... as two words, uint32[size]."""
    row = first_row.astype(jnp.uint32)
    low_product = (row & 0xFFFF) * jnp.uint32(width)  # a row is below 2^31, a width below 2^16
    high_product = (row >> 16) * jnp.uint32(width)
    base = low_product + (high_product << 16)
    carry = (base < low_product).astype(jnp.uint32)
    high = (high_product >> 16) + carry
    low = base + jnp.arange(size, dtype=jnp.uint32)
    return high + (low < base), low
