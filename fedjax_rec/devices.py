"""Devices: a processor core each, and the mesh that a cohort is split over.

XLA runs one CPU device's small operations on one core, or on several with more waiting than work. Splitting the
*clients* over devices of one core each has no such cost, and the law that a mesh is invisible makes it safe.
"""

import contextlib
import os

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_rec.types import PyTree

AXIS = "clients"  # the mesh axis over which a cohort is split
MOST_CORES = 16  # every device holds the whole model and data set: more copies than cores would use
LEAST_SHARE = 16  # clients per device below which another device costs more than it brings


def available_cores() -> int:
    """Processor cores that this process may use.

    Returns:
        a number, at least 1.

    Example:
        >>> available_cores() >= 1
        True
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


def use_cores(count: int | None = None) -> int:
    """Give each processor core a jax device of its own; call it before jax computes anything.

    Args:
        count: CPU devices; by default one for each core, at most 16.

    Returns:
        the number of CPU devices.

    Raises:
        ValueError: if the count is below 1.
        RuntimeError: if jax has started already with fewer.

    Example:
        >>> use_cores(len(jax.devices("cpu"))) == len(jax.devices("cpu"))  # as they are: always allowed
        True
    """
    wanted = min(available_cores(), MOST_CORES) if count is None else count
    if wanted < 1:
        raise ValueError(f"cores must be at least 1, not {wanted}")
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax has started: all is well if it has as many
            jax.config.update("jax_num_cpu_devices", wanted)
    have = len(jax.devices("cpu"))
    if have < wanted:
        raise RuntimeError(
            f"jax has started with {have} CPU device(s); call use_cores() before any computation"
        )
    return have


def choose_devices(cohort: int, lanes: int | None = None) -> int:
    """How many devices to split a cohort over: all accelerators, or a core each; at least 16 clients a device.

    Args:
        cohort: C.
        lanes: L where it is set by hand: it must divide over the devices.

    Returns:
        a number from 1 to that of jax's devices.

    Example:
        >>> choose_devices(10)
        1
    """
    most = max(1, min(_useful(), cohort // LEAST_SHARE))
    return most if lanes is None else max(d for d in range(1, most + 1) if lanes % d == 0)


def _useful() -> int:
    """All accelerators, or as many CPU devices as there are cores."""
    found = len(jax.devices())
    return min(found, available_cores()) if jax.default_backend() == "cpu" else found


def client_mesh(devices: int | None = None) -> Mesh | None:
    """A mesh over which a cohort is split.

    Args:
        devices: how many; by default all accelerators, or a core each.

    Returns:
        a mesh of one axis, "clients"; None for one device.

    Raises:
        ValueError: if there are not so many.

    Example:
        >>> client_mesh(1) is None
        True
    """
    found = jax.devices()
    count = _useful() if devices is None else devices
    if not 1 <= count <= len(found):
        raise ValueError(f"devices={count}, but jax sees {len(found)}; choose 1 to {len(found)}")
    return None if count == 1 else Mesh(np.array(found[:count]), (AXIS,))


def replicate(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Put a whole copy on every device of a mesh, so that no later call moves or recompiles anything.

    Args:
        tree: arrays.
        mesh: the devices; None changes nothing.

    Returns:
        the same values.

    Example:
        >>> replicate(1, None)
        1
    """
    return tree if mesh is None else jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def keep_replicated(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Inside a compiled function: state that these arrays stay whole on every device.

    Args:
        tree: arrays.
        mesh: the devices; None changes nothing.

    Returns:
        the same values.

    Example:
        >>> keep_replicated(1, None)
        1
    """
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def multiply_in_parts(left: jax.Array, right: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Inside a compiled function: the product of two arrays that every device has, some rows of it by each.

    Args:
        left: float32[R, K].
        right: float32[K, S].
        mesh: the devices; None for one.

    Returns:
        float32[R, S], whole on every device.

    Example:
        >>> multiply_in_parts(jnp.ones((3, 2)), jnp.ones((2, 4)), None).shape
        (3, 4)
    """
    if mesh is None:
        return left @ right
    size = -(-len(left) // mesh.size)
    even = jnp.pad(left, ((0, size * mesh.size - len(left)), (0, 0)))

    def multiply_share(even: jax.Array, right: jax.Array) -> jax.Array:
        # cut by hand and from whole arrays: the same product of two callers is compiled once
        mine = jax.lax.dynamic_slice_in_dim(even, jax.lax.axis_index(AXIS) * size, size)
        return jax.lax.all_gather(mine @ right, AXIS, tiled=True)

    whole = PartitionSpec()
    run = jax.shard_map(multiply_share, mesh=mesh, in_specs=(whole, whole), out_specs=whole, check_vma=False)
    return run(even, right)[: len(left)]
