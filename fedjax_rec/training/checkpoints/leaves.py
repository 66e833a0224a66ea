"""Leaves of a tree as named plain arrays, and back: what a checkpoint holds of the device's memory.

A typed PRNG key becomes its words; everything else keeps its dtype and its bits.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.types import PyTree


class Leaf(NamedTuple):
    """What one leaf is, besides its bits."""

    name: str  # path in the tree, such as "state/server/tables/item/vector"
    shape: tuple[int, ...]
    dtype: str  # "float32", or "key<fry>" for a typed key

    def __str__(self) -> str:
        return f"{self.dtype}{list(self.shape)}"


def describe_leaves(tree: PyTree) -> list[Leaf]:
    """Name and describe the leaves of a tree.

    Args:
        tree: arrays, or their shapes and dtypes.

    Returns:
        the leaves, in the order of the tree.

    Example:
        >>> [str(leaf) for leaf in describe_leaves({"a": np.zeros((2, 3), np.float32), "k": jax.random.key(0)})]
        ['float32[2, 3]', 'key<fry>[]']
    """
    return [
        Leaf(jax.tree_util.keystr(path, simple=True, separator="/"), jnp.shape(leaf), str(_dtype(leaf)))
        for path, leaf in jax.tree.leaves_with_path(tree)
    ]


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jax.dtypes.prng_key)


def to_arrays(tree: PyTree) -> list[np.ndarray]:
    """Copy a tree's leaves to the host.

    Args:
        tree: arrays, perhaps typed keys.

    Returns:
        plain arrays in the order of `describe_leaves`; keys as their words uint32[..., W].

    Example:
        >>> [array.tolist() for array in to_arrays((jnp.arange(2), jax.random.key(7)))]
        [[0, 1], [0, 7]]
    """
    return [
        np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf) for leaf in jax.tree.leaves(tree)
    ]


def from_arrays(arrays: Iterable[np.ndarray], template: PyTree) -> PyTree:
    """Put plain arrays back into a tree.

    Args:
        arrays: as `to_arrays` gives them.
        template: a tree of arrays of that structure and those dtypes.

    Returns:
        the tree, of jax arrays; where the template has numpy arrays, of the given ones.

    Example:
        >>> tree = {"a": jnp.ones(2, jnp.bfloat16), "k": jax.random.key(7)}
        >>> same = from_arrays(to_arrays(tree), tree)
        >>> same["k"] == tree["k"], same["a"].dtype
        (Array(True, dtype=bool), dtype(bfloat16))
    """
    leaves, structure = jax.tree.flatten(template)
    restored = [_restore(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _restore(array: np.ndarray, leaf: Any) -> Any:
    if isinstance(leaf, np.ndarray):
        return array
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.array(array, dtype=_dtype(leaf))  # a copy: the next block consumes it


def digest(arrays: Sequence[np.ndarray]) -> str:
    """The SHA-256 of arrays: their dtypes, shapes and bits, in order.

    Args:
        arrays: plain arrays.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> digest([np.zeros(2)]) == digest([np.zeros(2), np.zeros(0)])
        False
    """
    checksum = hashlib.sha256()
    for array in arrays:
        array = array.astype(str) if array.dtype == object else array  # noqa: PLW2901 - objects have no bits
        checksum.update(f"{array.dtype}{array.shape};".encode())
        checksum.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()
