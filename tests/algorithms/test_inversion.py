"""The inverse in place against numpy in float64, whatever the size has to do with blocks and tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.algorithms.common import ease_weights, inversion


@pytest.mark.parametrize(
    ("size", "block", "tile"),
    [(1, 8, 8), (40, 64, 128), (96, 32, 32), (130, 32, 50), (97, 96, 20), (61, 7, 64)],
)
def test_equals_numpy(size, block, tile, monkeypatch):
    """One block or many, with a rest and without, one tile or many; only the lower triangle is read."""
    monkeypatch.setattr(inversion, "BLOCK", block)
    monkeypatch.setattr(inversion, "TILE", tile)
    rng = np.random.default_rng(size)
    part = rng.normal(size=(size + 5, size))
    matrix = part.T @ part + np.eye(size)
    swept = jax.jit(inversion.negative_inverse)(jnp.tril(jnp.float32(matrix)))
    wanted = -np.linalg.inv(matrix)
    assert np.abs(swept - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert (swept == swept.T).all()


def test_a_batch_equals_one_after_the_other():
    """As in a sweep over penalties."""
    matrices = jnp.eye(5)[None] * jnp.arange(1.0, 4.0)[:, None, None] + 1.0
    each = [inversion.negative_inverse(matrix) for matrix in matrices]
    assert (jax.vmap(inversion.negative_inverse)(matrices) == jnp.stack(each)).all()


def test_needs_no_second_matrix():
    """In memory that may be used again, an inverse takes blocks of columns, and rows are changed in panels."""
    size = 16_101  # 101 rows are in no tile

    def invert(matrix, other):
        swept = inversion.negative_inverse(matrix)
        return ease_weights.change_rows(lambda _, rows, other: rows - other, swept, other)

    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    memory = jax.jit(invert, donate_argnums=0).lower(shape, shape).compile().memory_analysis()
    assert memory is not None
    assert memory.alias_size_in_bytes == 4 * size**2
    assert memory.temp_size_in_bytes < 0.25 * 4 * size**2


@pytest.mark.parametrize("size", [1, 4, 10])
def test_rows_are_changed_once(size, monkeypatch):
    """The last panel overlaps with the one before."""
    monkeypatch.setattr(ease_weights, "PANEL", 4)
    table = jnp.arange(size * 3.0).reshape(size, 3)
    changed = ease_weights.change_rows(
        lambda number, rows, other: 2 * rows + other + number[:, None], table, table
    )
    assert (changed == 3 * table + jnp.arange(size)[:, None]).all()
