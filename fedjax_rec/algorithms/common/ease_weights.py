"""EASE's weights, made in the memory of the sum that they follow from."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.inversion import negative_inverse
from fedjax_rec.data.defaults import Size
from fedjax_rec.rows.tables import expand

PANEL = 512  # rows of a table that are changed at once
_BOUND = 200  # numbers that are summed in the time of one of an inversion


def inversion_dominates(size: Size) -> bool:
    """Whether to invert takes longer than to sum all clients' pairs: I^3 numbers against M I.

    Args:
        size: of the data, I items and M events.

    Returns:
        I^2 > 200 M: MovieLens 1M has 14 M, where several devices are worth it, Foursquare's Milan 5,000 M.

    Example:
        >>> inversion_dominates(Size(6040, 3706, 988129)), inversion_dominates(Size(1600, 12307, 30000))
        (False, True)
    """
    return size.num_items**2 > _BOUND * size.num_events


def step_to_weights(pairs: jax.Array, own: jax.Array, ridge: jax.Array | float, old: jax.Array) -> jax.Array:
    """The way to EASE's weights: B_ij = -P_ij / P_jj, B_jj = 0, with P = (G + ridge 1)^-1, less the old ones.

    Args:
        pairs: G, float32[I, I], symmetric, the number of clients that have both items; the step takes its memory.
        own: its diagonal, float32[I]: to read that once more here would take a copy of G.
        ridge: float32[], above 0 unless G is 0.
        old: float32[I, I].

    Returns:
        B - old, float32[I, I]; 0 where G is.

    Example:
        >>> pairs, own = jnp.array([[3.0, 1.0], [1.0, 3.0]]), jnp.array([3.0, 3.0])
        >>> step_to_weights(pairs, own, 1.0, jnp.zeros((2, 2))).tolist()
        [[0.0, 0.25], [0.25, 0.0]]

    Source: Steck 2019, equation 8.
    """
    item = jnp.arange(len(pairs))
    is_any = own.sum() > 0
    ridge = jnp.where(is_any, ridge, 1.0)  # a round of nobody is thrown away, and still computed
    swept = negative_inverse(pairs.at[item, item].set(own + ridge))  # -P
    scale = -jnp.diagonal(swept)

    def to_step(number: jax.Array, rows: jax.Array, old: jax.Array) -> jax.Array:
        weights = jnp.where(number[:, None] == item[None, :], 0.0, rows / scale[None, :])
        return jnp.where(is_any, weights - old, 0.0)

    return change_rows(to_step, swept, old)


def change_rows(
    change: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], table: jax.Array, other: jax.Array
) -> jax.Array:
    """Change a table row by row in its own memory, a panel of rows at a time.

    XLA gives what is computed element by element from the result of a loop a table of its own; not so a loop.

    Args:
        change: (numbers int32[R] of rows, the rows [R, ...], those of `other`) -> new rows.
        table: [I, ...].
        other: of the same length, which is read only.

    Returns:
        the table.

    Example:
        >>> change_rows(lambda number, rows, other: rows - other, jnp.ones((3, 1)), jnp.ones((3, 1))).tolist()
        [[0.0], [0.0], [0.0]]
    """
    size = len(table)
    height = min(PANEL, size)

    def change_panel(number: jax.Array, changed: jax.Array) -> jax.Array:
        start = jnp.minimum(number * height, size - height)
        rows = start + jnp.arange(height)
        old = jax.lax.dynamic_slice_in_dim(changed, start, height)
        new = change(rows, old, jax.lax.dynamic_slice_in_dim(other, start, height))
        done = rows < number * height  # the last panel overlaps with the one before
        return jax.lax.dynamic_update_slice_in_dim(changed, jnp.where(expand(done, old), old, new), start, 0)

    return jax.lax.fori_loop(0, -(-size // height), change_panel, table)
