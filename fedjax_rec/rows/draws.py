"""Tables of random numbers, drawn some rows at a time where at once would take several tables' memory.

A number is a pure function of the key and of where it stands (threefry with partitionable counters, which
`engine.devices.check_surroundings` sees to), so that blocks of rows have the numbers of the whole.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import threefry_2x32

AT_ONCE = 2**26  # numbers that `jax.random.normal` draws; its counters and bits take four times their memory
BLOCK = 2**20  # numbers that are drawn together beyond that
SHARDS = "tables"  # the mesh axis over which the rows of tables are split, if they are


def normal_rows(key: jax.Array, num_rows: int, *shape: int, scale: Any = 1.0) -> jax.Array:
    """`scale * jax.random.normal(key, (num_rows, *shape))`, in the memory of the result alone where that is large.

    Scaled afterwards it would take that of two: XLA writes the product of a loop's result beside it.

    Args:
        key: of jax's default kind; consumed.
        num_rows: I.
        *shape: of a row.
        scale: the standard deviation.

    Returns:
        float32[I, ...].

    Example:
        >>> normal_rows(jax.random.key(0), 5, 2).shape
        (5, 2)
    """
    width = math.prod(shape)
    shards = jax.sharding.get_abstract_mesh().shape.get(SHARDS, 1)
    if num_rows * width <= AT_ONCE * shards:
        return scale * jax.random.normal(key, (num_rows, *shape))
    each = -(-num_rows // shards)  # rows of a shard: all draw at the same time
    rows = min(each, max(1, BLOCK // width))
    draw = partial(_draw_block, jax.random.key_data(key), rows * width)
    first_rows = each * jnp.arange(shards)

    def fill(number: jax.Array, tables: jax.Array) -> jax.Array:
        first = jnp.minimum(number * rows, each - rows)  # the last block draws some rows again
        blocks = jax.vmap(draw, in_axes=(0, None))(first_rows + first, width).reshape(shards, rows, width)
        return jax.lax.dynamic_update_slice_in_dim(tables, scale * blocks, first, axis=1)

    empty = jnp.zeros((shards, each, width), jnp.float32)
    tables = jax.lax.fori_loop(0, -(-each // rows), fill, empty)
    return tables.reshape(shards * each, *shape)[:num_rows]


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
