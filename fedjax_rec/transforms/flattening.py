"""Flattening: one client's numbers laid end to end, its dense leaves and then the rows of its slots."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.rows.tables import expand, num_rows
from fedjax_rec.types import Key, PyTree, Server, Update

Draw = Callable[[Callable], jax.Array]  # (kind of random numbers) -> one for each of a client's numbers
# (numbers [n], which are the client's own bool[n], draw) -> what is decoded [n]
Code = Callable[[jax.Array, jax.Array, Draw], jax.Array]


def on_numbers(code: Code) -> Callable[[Key, Update, Server], Update]:
    """Make the `update` of a transform of a function of one client's numbers, laid end to end.

    Args:
        code: (numbers float32[n], which of them are the client's own bool[n], draw) -> what the server decodes of
            them. n = V + R W: the dense leaves' numbers, then W of each slot. `draw` gives random numbers [n] of
            which each depends on its own index only.

    Returns:
        (key, update, global model) -> update; the key is consumed, and empty slots are 0.

    Example:
        >>> one = Update(jnp.array([4.0]), jnp.array([0, 1]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> largest = on_numbers(lambda values, own, draw: jnp.full(3, values.max()))
        >>> largest(jax.random.key(0), one, Server(jnp.zeros(1), jnp.zeros((1, 1)))).rows.tolist()
        [[4.0], [0.0]]
    """

    def update(key: Key, sent: Update, server: Server) -> Update:
        present = sent.ids < num_rows(server.tables)
        # The numbers as two matrices, [1, V] and [R, W].
        dense = as_matrix(jax.tree.map(lambda x: x[None], sent.shared), 1)
        rows = as_matrix(sent.rows, len(present))

        def draw(kind: Callable) -> jax.Array:
            first = kind(jax.random.fold_in(key, 0), dense.shape)
            return jnp.append(first, draw_by_row(kind, jax.random.fold_in(key, 1), rows.shape))

        # The code sees them end to end, [V + R W]; in empty slots its result is dropped.
        own = jnp.append(jnp.ones(dense.size, bool), jnp.repeat(present, rows.shape[1]))
        new = jnp.where(own, code(jnp.append(dense, rows), own, draw), 0.0)
        # Back to leaves of the shapes that were given.
        shared = from_matrix(new[: dense.size][None], jax.tree.map(lambda x: x[None], sent.shared))
        rows = from_matrix(new[dense.size :].reshape(rows.shape), sent.rows)
        return sent._replace(shared=jax.tree.map(lambda x: x[0], shared), rows=rows)

    return update


def as_matrix(rows: PyTree, count: int) -> jax.Array:
    """Lay each row's leaves end to end.

    Args:
        rows: leaves [R, ...].
        count: R, which cannot be read off a tree without leaves.

    Returns:
        float32[R, W].

    Example:
        >>> as_matrix({"bias": jnp.ones(2), "vector": jnp.zeros((2, 3))}, 2).shape
        (2, 4)
    """
    flat = [x.reshape(count, math.prod(x.shape[1:])) for x in jax.tree.leaves(rows)]
    return jnp.concatenate([jnp.zeros((count, 0)), *flat], axis=1)


def from_matrix(matrix: jax.Array, like: PyTree) -> PyTree:
    """Undo `as_matrix`.

    Args:
        matrix: float32[R, W].
        like: leaves [R, ...], for their shapes.

    Returns:
        leaves [R, ...].

    Example:
        >>> from_matrix(jnp.ones((2, 4)), {"bias": jnp.zeros(2), "vector": jnp.zeros((2, 3))})["vector"].shape
        (2, 3)
    """
    leaves, structure = jax.tree.flatten(like)
    columns = []
    start = 0
    for leaf in leaves:
        width = math.prod(leaf.shape[1:])
        columns.append(matrix[:, start : start + width].reshape(leaf.shape))
        start += width
    return jax.tree.unflatten(structure, columns)


def draw_by_row(kind: Callable, key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers of which row j depends on the key and j only, not on how many rows there are.

    Args:
        kind: (key, shape) -> numbers, such as `jax.random.normal`.
        key: consumed.
        shape: [R, ...]; () for a single number.

    Returns:
        numbers of that shape.

    Example:
        >>> few, more = (draw_by_row(jax.random.normal, jax.random.key(0), (rows, 2)) for rows in (1, 3))
        >>> bool((few == more[:1]).all())
        True
    """
    if not shape:
        return kind(key)
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(shape[0]))
    return jax.vmap(lambda k: kind(k, shape[1:]))(keys)


def on_leaves(function: Callable[[Key, jax.Array], jax.Array]) -> Callable[[Key, Update, Server], Update]:
    """Apply a function to each leaf with a key of its own; empty slots stay 0."""

    def update(key: Key, sent: Update, server: Server) -> Update:
        leaves, structure = jax.tree.flatten((sent.shared, sent.rows))
        new = [function(jax.random.fold_in(key, n), leaf) for n, leaf in enumerate(leaves)]
        shared, rows = jax.tree.unflatten(structure, new)
        own = sent.ids < num_rows(server.tables)
        rows = jax.tree.map(lambda x: jnp.where(expand(own, x), x, 0.0), rows)
        return sent._replace(shared=shared, rows=rows)

    return update
