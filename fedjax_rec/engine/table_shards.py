"""Item tables split by rows over the devices that train: each holds some rows, and all lend them to a round.

The devices are those of the cohort's mesh, looked at as copies of S shards, so that every one of them trains
clients and none holds a whole table:

    device  0 1 2 3 4 5 6 7    axis "clients" of the cohort's mesh: clients are dealt to all of them
    shard   0 1 2 3 0 1 2 3    axis "tables" of this one, S = 4: shard s has rows s I/S to (s + 1) I/S, here twice

A round names the rows that it touches (`federation.touched`), gathers these into a table that all devices have,
trains on it as on any, and every shard takes its own rows back. Leaves are filled up to as many rows for each
shard, [I', ...]: in the loop of rounds and in evaluations alone, for whoever is outside sees them whole.

Source: Mehta et al. 2021, "ALX: Large Scale Matrix Factorization on TPUs", arXiv:2112.02194, section 4.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_rec.errors import ParameterError
from fedjax_rec.rows.draws import SHARDS
from fedjax_rec.rows.tables import read_rows, set_rows
from fedjax_rec.types import PyTree

_COPIES = "copies"
_SPLIT = PartitionSpec(SHARDS)
_WHOLE = PartitionSpec()
_DEALT = PartitionSpec((_COPIES, SHARDS))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SplitRows:
    """A leaf [I, ...] whose rows lie on several devices."""

    leaf: Any  # [I', ...], filled up
    num_rows: int = dataclasses.field(metadata={"static": True})  # I


def table_mesh(mesh: Mesh | None, shards: int | None) -> Mesh | None:
    """The devices of a mesh as copies of some shards.

    Args:
        mesh: over which a cohort is split; None for one device.
        shards: S; None or 1 for whole tables.

    Returns:
        a mesh of axes "copies" and "tables"; None for whole tables.

    Raises:
        ParameterError: if S is below 1, or the devices are no multiple of it.

    Example:
        >>> table_mesh(None, 1) is None
        True
        >>> table_mesh(None, 2)
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: table_shards=2 do not divide over 1 device(s); use a multiple of 2 ...
    """
    if shards is None or shards == 1:
        return None
    if shards < 1:
        raise ParameterError("{table_shards}={shards} must be at least 1, for whole tables", shards=shards)
    count = 1 if mesh is None else mesh.size
    if mesh is None or count % shards:
        raise ParameterError(
            "{table_shards}={shards} do not divide over {count} device(s); use a multiple of {shards} {devices}",
            shards=shards,
            count=count,
        )
    return Mesh(mesh.devices.reshape(-1, shards), (_COPIES, SHARDS))


def num_shards(mesh: Mesh | None) -> int | None:
    """S of a mesh of `table_mesh`; None for whole tables."""
    return None if mesh is None else mesh.shape[SHARDS]


def deal_clients(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put what some clients keep on the devices, a part on each.

    Args:
        tree: leaves [S, ...], S a multiple of the devices.
        mesh: of `table_mesh`.

    Returns:
        the same values.
    """
    return jax.device_put(tree, NamedSharding(mesh, _DEALT))


def keep_dealt(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside a compiled function: state that leaves are as `deal_clients` puts them."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, _DEALT))


# Rows laid out on the devices, and back -----------------------------------------------------------------------


def split_rows(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put a tree's rows on the devices, each on its own: no device is sent others.

    Args:
        tree: leaves [n, ...], in host memory or on devices.
        mesh: of `table_mesh`.

    Returns:
        the leaves as `SplitRows`.
    """

    def put(leaf: Any) -> SplitRows:
        size = _filled(len(leaf), mesh)

        def rows_of(index: Any) -> np.ndarray:
            rows = np.asarray(leaf[index[0]])
            missing = len(range(*index[0].indices(size))) - len(rows)
            return np.pad(rows, ((0, missing), *[(0, 0)] * (rows.ndim - 1))) if missing else rows

        shape = (size, *leaf.shape[1:])
        return SplitRows(jax.make_array_from_callback(shape, NamedSharding(mesh, _SPLIT), rows_of), len(leaf))

    return jax.tree.map(put, tree)


def keep_split(tree: PyTree, mesh: Mesh) -> PyTree:
    """Inside a compiled function: fill rows up and state that each device has its own; as `split_rows`."""

    def keep(leaf: jax.Array) -> SplitRows:
        rows = jnp.pad(leaf, ((0, _filled(len(leaf), mesh) - len(leaf)), *[(0, 0)] * (leaf.ndim - 1)))
        return SplitRows(jax.lax.with_sharding_constraint(rows, NamedSharding(mesh, _SPLIT)), len(leaf))

    return jax.tree.map(keep, tree)


def join_rows(tree: PyTree) -> PyTree:
    """Inside a compiled function: split leaves as leaves [n, ...], which the compiler keeps split."""
    return _of_split(lambda split: split.leaf[: split.num_rows], tree)


def rows_to_host(tree: PyTree) -> PyTree:
    """Split leaves as numpy leaves [n, ...]; no device gathers them. All else stays as it is."""
    return _of_split(lambda split: np.asarray(split.leaf)[: split.num_rows], tree)


def is_split(leaf: Any) -> bool:
    """Whether something in a tree is a leaf of split rows."""
    return isinstance(leaf, SplitRows)


def _of_split(change: Callable[[SplitRows], Any], tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: change(leaf) if is_split(leaf) else leaf, tree, is_leaf=is_split)


def _filled(rows: int, mesh: Mesh) -> int:
    return rows + -rows % mesh.shape[SHARDS]


# Rows of a round ----------------------------------------------------------------------------------------------
#
# To a shard, rows that lie elsewhere are empty slots (`rows.tables`): reading them gives 0, writing does nothing.


def gather_rows(mesh: Mesh, rows: list[SplitRows], ids: jax.Array) -> list[jax.Array]:
    """Some rows of split leaves, on every device.

    Args:
        mesh: of `table_mesh`.
        rows: the leaves.
        ids: int32[K]; behind the last row that one is read.

    Returns:
        leaves [K, ...].
    """

    def gather(split: SplitRows, ids: jax.Array) -> jax.Array:
        found = read_rows(split.leaf, _place(split, jnp.minimum(ids, split.num_rows - 1)))
        # Zeros but for one shard's row, added as integers: a sum of floats would turn -0.0 into 0.0.
        bits = jax.lax.bitcast_convert_type(found, f"uint{8 * found.dtype.itemsize}")
        return jax.lax.bitcast_convert_type(jax.lax.psum(bits, SHARDS), found.dtype)

    def gather_all(rows: list[SplitRows], ids: jax.Array) -> list[jax.Array]:
        return [gather(split, ids) for split in rows]

    return _on_shards(mesh, gather_all, (_SPLIT, _WHOLE), _WHOLE)(rows, ids)


def scatter_rows(mesh: Mesh, rows: list[SplitRows], ids: jax.Array, new: list[jax.Array]) -> list[SplitRows]:
    """Write some rows of split leaves, each where it lies; in place where the leaves are donated.

    Args:
        mesh: of `table_mesh`.
        rows: the leaves.
        ids: int32[K], I for a row that is not written: it ends in what fills up the last shard.
        new: leaves [K, ...], on every device.

    Returns:
        the leaves.
    """

    def scatter_all(rows: list[SplitRows], ids: jax.Array, new: list[jax.Array]) -> list[SplitRows]:
        return [
            dataclasses.replace(split, leaf=set_rows(split.leaf, _place(split, ids), each))
            for split, each in zip(rows, new, strict=True)
        ]

    return _on_shards(mesh, scatter_all, (_SPLIT, _WHOLE, _WHOLE), _SPLIT)(rows, ids, new)


def _on_shards(mesh: Mesh, function: Any, in_specs: Any, out_specs: Any) -> Any:
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _place(split: SplitRows, ids: jax.Array) -> jax.Array:
    """Where in this shard rows are, int32[K]; out of it for those that lie elsewhere."""
    return ids - jax.lax.axis_index(SHARDS) * len(split.leaf)
