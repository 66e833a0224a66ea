"""Leaves of a tree as named plain arrays, and back: what a checkpoint holds of the device's memory.

A typed PRNG key becomes its words; everything else keeps its dtype and its bits. Of a leaf in a file
(`ClientRows`) only the rows that were written are saved: the others are drawn again by whoever goes on.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.federation.client_rows import ClientRows
from fedjax_rec.types import PyTree

_ID_BYTES = 8  # of a row's client, before the row


class Leaf(NamedTuple):
    """What one leaf is, besides its bits."""

    name: str  # path in the tree, such as "state/server/tables/item/vector"
    shape: tuple[int, ...]
    dtype: str  # "float32", or "key<fry>" for a typed key
    rows: int | None = None  # so many rows of the first axis are saved, each behind its number; None for all

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
        Leaf(
            jax.tree_util.keystr(path, simple=True, separator="/"),
            jnp.shape(leaf),
            str(_dtype(leaf)),
            len(leaf.written) if isinstance(leaf, ClientRows) else None,
        )
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
        plain arrays in the order of `describe_leaves`; keys as their words uint32[..., W]. Leaves in files stay
        where they are.

    Example:
        >>> [array.tolist() for array in to_arrays((jnp.arange(2), jax.random.key(7)))]
        [[0, 1], [0, 7]]
    """
    return [_to_array(leaf) for leaf in jax.tree.leaves(tree)]


def _to_array(leaf: Any) -> Any:
    if isinstance(leaf, ClientRows):
        return leaf
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def pack(array: Any) -> np.ndarray:
    """An array as it is saved.

    Args:
        array: of `to_arrays`.

    Returns:
        the same; of a leaf in a file uint8[W, 8 + bytes of a row], the written rows behind their clients' numbers.

    Example:
        >>> pack(np.ones(2)).tolist()
        [1.0, 1.0]
    """
    if not isinstance(array, ClientRows):
        return array
    ids = array.written
    packed = np.empty((len(ids), _ID_BYTES + array.row_bytes), np.uint8)
    packed[:, :_ID_BYTES] = ids.astype("<i8")[:, None].view(np.uint8)
    packed[:, _ID_BYTES:] = array[ids].view(np.uint8).reshape(len(ids), array.row_bytes)
    return packed


def packed_width(leaf: Leaf) -> int:
    """Bytes of a row as `pack` gives it.

    Args:
        leaf: in a file.

    Returns:
        of its client's number and of the row.

    Example:
        >>> packed_width(Leaf("a", (24, 2), "float32", 0))
        16
    """
    return _ID_BYTES + int(jnp.dtype(leaf.dtype).itemsize * np.prod(leaf.shape[1:], dtype=np.int64))


class SavedRows(NamedTuple):
    """Rows of a leaf [N, ...] that a checkpoint holds."""

    ids: np.ndarray  # int64[W], whose
    rows: np.ndarray  # [W, ...]


def unpack(array: np.ndarray, leaf: Leaf) -> Any:
    """An array as it was before `pack`.

    Args:
        array: as it was saved.
        leaf: what it is.

    Returns:
        the same; of a leaf in a file its `SavedRows`.

    Raises:
        ValueError: if they are no rows of such a leaf.

    Example:
        >>> unpack(np.ones(2), Leaf("a", (2,), "float64")).tolist()
        [1.0, 1.0]
    """
    if leaf.rows is None:
        return array
    ids = np.ascontiguousarray(array[:, :_ID_BYTES]).view("<i8").reshape(-1)
    if len(ids) and (ids[0] < 0 or ids[-1] >= leaf.shape[0] or (np.diff(ids) <= 0).any()):
        raise ValueError(f"{leaf.name}: rows of clients that there are not")
    rows = np.ascontiguousarray(array[:, _ID_BYTES:]).view(jnp.dtype(leaf.dtype))
    return SavedRows(ids, rows.reshape(leaf.rows, *leaf.shape[1:]))


def from_arrays(arrays: Iterable[Any], template: PyTree) -> PyTree:
    """Put plain arrays back into a tree.

    Args:
        arrays: as `to_arrays` gives them, or `SavedRows`.
        template: a tree of arrays of that structure and those dtypes; rows that were not saved are its own.

    Returns:
        the tree, of jax arrays; where the template has numpy arrays, of the given ones; where it has files, of
        other files.

    Example:
        >>> tree = {"a": jnp.ones(2, jnp.bfloat16), "k": jax.random.key(7)}
        >>> same = from_arrays(to_arrays(tree), tree)
        >>> same["k"] == tree["k"], same["a"].dtype
        (Array(True, dtype=bool), dtype(bfloat16))
    """
    leaves, structure = jax.tree.flatten(template)
    restored = [_restore(array, leaf) for array, leaf in zip(arrays, leaves, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _restore(array: Any, leaf: Any) -> Any:
    if isinstance(leaf, ClientRows):
        restored = leaf.empty()
        ids, rows = array if isinstance(array, SavedRows) else (np.arange(len(array)), array)
        restored[ids] = rows
        return restored
    if isinstance(array, SavedRows):
        whole = np.array(leaf)
        whole[array.ids] = array.rows
        array = whole
    if isinstance(leaf, np.ndarray):
        return array
    if _is_key(leaf):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(leaf))
    return jnp.array(array, dtype=_dtype(leaf))  # a copy: the next block consumes it


def digest(arrays: Sequence[Any]) -> str:
    """The SHA-256 of arrays: their dtypes, shapes and bits, in order.

    Args:
        arrays: plain arrays, or leaves in files, of which all rows count.

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
        blocks = (rows for _, rows in array.blocks()) if isinstance(array, ClientRows) else (array,)
        for block in blocks:
            checksum.update(np.ascontiguousarray(block).reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()
