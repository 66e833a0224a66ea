"""The inverse of a large symmetric matrix, in its own memory.

The sweep operator (Goodnight 1979, "A tutorial on the sweep operator", The American Statistician 33) on a block of
pivots K at a time: with C = A[:, K] and P = A[K, K],

    A <- A - C P^-1 C^T,        A[:, K] <- C P^-1,        A[K, :] <- (C P^-1)^T,        A[K, K] <- -P^-1.

After all blocks, A holds -A^-1. Nearly all of its I^3 additions and multiplications are products of matrices, and
besides A itself it needs a few blocks of columns: a factorisation would need A, its factor and its inverse. Only
the lower triangle is kept while it goes on, tile by tile; the upper one follows from it at the end.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.engine.plan import INVERSION_BLOCK

# Pivots that are swept together: with 512, jax 0.10.2 took five times as long for the products.
BLOCK = INVERSION_BLOCK
TILE = 2048  # rows and columns of A that are changed at once, at most


def negative_inverse(matrix: jax.Array) -> jax.Array:
    """Minus the inverse of a symmetric positive definite matrix, in the same memory where that may be used again.

    The sign stays as the sweeps leave it: to change it would take the memory of another matrix. On CPUs a batch is
    inverted one by one, as in `solve.solve_spd`.

    Args:
        matrix: A, float32[I, I], of which the lower triangle is read.

    Returns:
        -A^-1, float32[I, I].

    Example:
        >>> negative_inverse(jnp.array([[4.0, 0.0], [0.0, 16.0]])).tolist()
        [[-0.25, 0.0], [0.0, -0.0625]]

    Source: Goodnight 1979, section 3, with blocks for pivots.
    """
    return jax.lax.platform_dependent(matrix, cpu=_sweep_in_sequence, default=_sweep_all)


def _sweep_all(matrix: jax.Array) -> jax.Array:
    """Sweep block after block, then what is less than a block."""
    size = len(matrix)
    whole = size // BLOCK
    if whole:
        matrix = jax.lax.fori_loop(0, whole, lambda k, swept: _sweep(swept, k * BLOCK, BLOCK), matrix)
    if size % BLOCK:
        matrix = _sweep(matrix, whole * BLOCK, size % BLOCK)
    return _mirror(matrix) if size <= TILE else _mirror_left_over(_over_tiles(_mirror_tile, matrix))


_sweep_in_sequence = jax.custom_batching.sequential_vmap(_sweep_all)


def _sweep(matrix: jax.Array, first: jax.Array | int, width: int) -> jax.Array:
    """Sweep the pivots `first` to `first` + `width` - 1, in the lower triangle."""
    size = len(matrix)
    number = jnp.arange(size)

    # C [I, K]: what is above the pivots stands to their left, for the matrix is symmetric
    left = jax.lax.dynamic_slice(matrix, (first, 0), (width, size))
    below = jax.lax.dynamic_slice(matrix, (0, first), (size, width))
    columns = jnp.where((number < first)[:, None], left.T, below)
    pivots = jax.lax.dynamic_slice(columns, (first, 0), (width, width))
    pivots = _mirror(pivots)
    columns = jax.lax.dynamic_update_slice(columns, pivots, (first, 0))

    # P^-1 [K, K] and C P^-1 [I, K]
    factor = jnp.linalg.cholesky(pivots)
    inverse = jax.scipy.linalg.cho_solve((factor, True), jnp.eye(width))
    weighed = jnp.matmul(columns, inverse, precision="highest")

    # A - C P^-1 C^T, tile by tile, then the rows that are left over
    matrix = _over_tiles(partial(_subtract_tile, weighed, columns), matrix)
    if left_over := size - _tiled(size):
        product = jnp.matmul(weighed[-left_over:], columns.T, precision="highest")
        matrix = matrix.at[-left_over:].add(-product)

    # C P^-1 in the columns and rows of the pivots, -P^-1 where they meet
    old = jax.lax.dynamic_slice(matrix, (0, first), (size, width))
    new = jnp.where((number >= first + width)[:, None], weighed, old)
    matrix = jax.lax.dynamic_update_slice(matrix, new, (0, first))
    old = jax.lax.dynamic_slice(matrix, (first, 0), (width, size))
    new = jnp.where((number < first)[None, :], weighed.T, old)
    new = jax.lax.dynamic_update_slice(new, -inverse, (0, first))
    return jax.lax.dynamic_update_slice(matrix, new, (first, 0))


def _side(size: int) -> int:
    """Rows of a tile: as even a share as whole vectors of a processor's 16 numbers allow."""
    count = -(-size // TILE)
    return size if count == 1 else size // count // 16 * 16


def _tiled(size: int) -> int:
    """Rows that are in tiles; fewer than 16 for each tile of a side are left over."""
    return size // _side(size) * _side(size)


def _over_tiles(
    change: Callable[[jax.Array, jax.Array, jax.Array], jax.Array], matrix: jax.Array
) -> jax.Array:
    """Change the matrix for each tile of its lower triangle: (matrix, its first row, its first column)."""
    side = _side(len(matrix))
    rows, columns = (jnp.asarray(x * side, jnp.int32) for x in np.tril_indices(len(matrix) // side))
    return jax.lax.fori_loop(0, len(rows), lambda k, changed: change(changed, rows[k], columns[k]), matrix)


def _subtract_tile(
    weighed: jax.Array, columns: jax.Array, matrix: jax.Array, row: jax.Array, column: jax.Array
) -> jax.Array:
    """The matrix less a tile of C P^-1 C^T."""
    side, width = _side(len(matrix)), columns.shape[1]
    left = jax.lax.dynamic_slice(weighed, (row, 0), (side, width))
    right = jax.lax.dynamic_slice(columns, (column, 0), (side, width))
    product = jnp.einsum("ik,jk->ij", left, right, precision="highest")
    old = jax.lax.dynamic_slice(matrix, (row, column), (side, side))
    return jax.lax.dynamic_update_slice(matrix, old - product, (row, column))


def _mirror(matrix: jax.Array) -> jax.Array:
    """The symmetric matrix with this lower triangle."""
    return jnp.tril(matrix) + jnp.tril(matrix, -1).T


def _mirror_tile(matrix: jax.Array, row: jax.Array, column: jax.Array) -> jax.Array:
    """The matrix with a tile of its lower triangle in the upper one, too."""
    side = _side(len(matrix))
    lower = jax.lax.dynamic_slice(matrix, (row, column), (side, side))
    upper = jax.lax.dynamic_slice(matrix, (column, row), (side, side))
    is_upper = (column + jnp.arange(side))[:, None] < (row + jnp.arange(side))[None, :]
    return jax.lax.dynamic_update_slice(matrix, jnp.where(is_upper, lower.T, upper), (column, row))


def _mirror_left_over(matrix: jax.Array) -> jax.Array:
    """The matrix with the rows that are in no tile as its last columns, too."""
    first = _tiled(len(matrix))
    rows = matrix[first:]
    corner = _mirror(rows[:, first:])
    return matrix.at[:, first:].set(jnp.concatenate([rows[:, :first].T, corner]))
