"""Row-sparse access to item-indexed tables, and the one padding rule.

A row id equal to `I` (the table's length) is an empty slot: **reading it gives 0, writing it does nothing**. It is
jax's `mode="fill"` and `mode="drop"`: code that these functions do not fit (rows of one of several models, or of
one of several clients) passes the same two modes. No id counts from the end: a negative one is empty, too, and no
program has the three operations per access that would turn it round.
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

Tree = TypeVar("Tree")


def num_rows(tables: Tree) -> int:
    """Length of the item axis.

    Args:
        tables: leaves [I, ...].

    Returns:
        I; 0 for a model without tables.

    Example:
        >>> num_rows({"embedding": jnp.zeros((7, 2))})
        7
    """
    leaves = jax.tree.leaves(tables)
    return leaves[0].shape[0] if leaves else 0


def read_rows(tables: Tree, ids: jax.Array) -> Tree:
    """Gather rows; an empty slot reads 0.

    Args:
        tables: leaves [I, ...].
        ids: int32[...], row ids, `I` for an empty slot.

    Returns:
        leaves [..., ...], the rows.

    Example:
        >>> read_rows(jnp.array([1.0, 2.0]), jnp.array([1, 2])).tolist()
        [2.0, 0.0]
    """
    return jax.tree.map(
        lambda t: t.at[ids].get(mode="fill", fill_value=0, wrap_negative_indices=False), tables
    )


def take_rows(tables: Tree, index: jax.Array) -> Tree:
    """Gather rows at positions that are known to lie within.

    Args:
        tables: leaves [n, ...].
        index: int32[...], from 0 to n - 1; anything else reads some row.

    Returns:
        leaves [..., ...], the rows.

    Example:
        >>> take_rows({"weight": jnp.array([1.0, 2.0])}, jnp.array([1, 0]))["weight"].tolist()
        [2.0, 1.0]
    """
    return jax.tree.map(
        lambda t: t.at[index].get(mode="promise_in_bounds", wrap_negative_indices=False), tables
    )


def add_rows(tables: Tree, ids: jax.Array, rows: Tree) -> Tree:
    """Scatter-add rows; an empty slot is dropped, and repeated ids add up.

    Args:
        tables: leaves [I, ...].
        ids: int32[n], row ids, `I` for an empty slot.
        rows: leaves [n, ...], what to add.

    Returns:
        leaves [I, ...].

    Example:
        >>> add_rows(jnp.zeros(2), jnp.array([1, 1, 2]), jnp.array([1.0, 2.0, 4.0])).tolist()
        [0.0, 3.0]
    """
    return jax.tree.map(lambda t, r: t.at[ids].add(r, mode="drop", wrap_negative_indices=False), tables, rows)


def set_rows(tables: Tree, ids: jax.Array, rows: Any) -> Tree:
    """Write rows; an empty slot is dropped.

    Args:
        tables: leaves [I, ...].
        ids: int32[n], row ids, each at most once, `I` for an empty slot.
        rows: leaves [n, ...], what to write, or numbers for all.

    Returns:
        leaves [I, ...].

    Example:
        >>> set_rows(jnp.zeros(2), jnp.array([1, 2]), jnp.array([5.0, 4.0])).tolist()
        [0.0, 5.0]
    """
    return jax.tree.map(lambda t, r: t.at[ids].set(r, mode="drop", wrap_negative_indices=False), tables, rows)


def expand(mask: jax.Array, like: jax.Array) -> jax.Array:
    """Append unit axes to a mask until it broadcasts against an array.

    Args:
        mask: [], [n] or [n, m].
        like: [n, m, ...].

    Returns:
        the mask, with as many axes as `like`.

    Example:
        >>> expand(jnp.ones(3, bool), jnp.zeros((3, 2, 5))).shape
        (3, 1, 1)
    """
    return mask.reshape(mask.shape + (1,) * (like.ndim - mask.ndim))


def select(mask: jax.Array, new: Tree, old: Tree) -> Tree:
    """Take `new` where the mask holds and `old` elsewhere, leaf by leaf along the leading axes.

    Args:
        mask: bool[n], bool[n, m], or bool[] for all or nothing.
        new: leaves [n, m, ...], or with a leading axis of 1 for the same everywhere.
        old: leaves [n, m, ...].

    Returns:
        leaves [n, m, ...].

    Example:
        >>> select(jnp.array([True, False]), jnp.array([1, 2]), jnp.array([3, 4])).tolist()
        [1, 4]
    """
    return jax.tree.map(lambda a, b: jnp.where(expand(mask, a), a, b), new, old)
