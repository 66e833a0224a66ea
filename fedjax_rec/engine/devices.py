"""Devices: a processor core each, and the mesh that a cohort is split over.

XLA runs one CPU device's small operations on one core, or on several with more waiting than work. Splitting the
*clients* over devices of one core each has no such cost, and the law that a mesh is invisible makes it safe.
"""

import contextlib
import os
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_rec.engine.kept_programs import keep_programs
from fedjax_rec.errors import check_arguments
from fedjax_rec.hosts.processes import make_global, num_processes, spans_processes
from fedjax_rec.types import PyTree

AXIS = "clients"  # the mesh axis over which a cohort is split
MOST_CORES = 16  # every device holds the whole model and data set: more copies than cores would use
_CONTAINER = "/sys/fs/cgroup/memory."  # cgroup version 2: max, current, stat
_UNKNOWN = 2**63 - 1  # bytes, where nobody says: nothing is refused
LEAST_SHARE = 16  # clients per device below which another device costs more than it brings


def check_surroundings() -> None:
    """Refuse settings of jax under which rounds do not run as they are meant to.

    Raises:
        ValueError: naming the setting, its variable, and the way out.

    Example:
        >>> check_surroundings()
        >>> with jax.numpy_dtype_promotion("strict"):
        ...     check_surroundings()
        Traceback (most recent call last):
        ValueError: jax_numpy_dtype_promotion (JAX_NUMPY_DTYPE_PROMOTION) is strict, under which ...
    """
    for name, value, problem in (
        ("jax_enable_x64", False, "which would mix numbers of 64 bits into rounds of 32"),
        ("jax_numpy_dtype_promotion", "standard", "under which rounds do not compile"),
        ("jax_disable_jit", False, "under which a round runs operation by operation, for hours"),
        ("jax_threefry_partitionable", True, "under which a seed draws other numbers"),
    ):
        given = getattr(jax.config, name)
        if given != value:
            raise ValueError(
                f"{name} ({name.upper()}) is {given}, {problem}; unset the variable, or "
                f"jax.config.update({name!r}, {value!r})"
            )


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


def find_devices(platform: str | None = None) -> list[jax.Device]:
    """The devices of jax, or one line where it has none of the kind that it was told to use.

    Args:
        platform: as of `jax.devices`.

    Returns:
        the devices.

    Raises:
        ValueError: naming the variable.

    Example:
        >>> len(find_devices("cpu")) > 0
        True
    """
    try:
        return jax.devices(platform)
    except (RuntimeError, AssertionError) as error:  # the latter where a platform's plugin is not installed
        told = getattr(jax.config, "jax_platforms") or platform or "unset"  # noqa: B009 - jax does not declare it
        reason = f" ({str(error).partition(chr(10))[0]})" if str(error) else ""
        raise ValueError(
            f"jax finds no devices: JAX_PLATFORMS is {told!r}{reason}; unset it, or install jax for that platform"
        ) from error


def use_cores(count: int | None = None, *, cache: bool = True) -> int:
    """Give each processor core a jax device of its own; call it before jax computes anything.

    Args:
        count: CPU devices; by default one for each core, at most 16.
        cache: whether to keep compiled programs on the disk for the next process (`engine.kept_programs`).

    Returns:
        the number of CPU devices, 0 if jax was told to have none (`JAX_PLATFORMS=cuda`).

    Raises:
        ValueError: if the count is below 1, or there are no devices of the kind that `JAX_PLATFORMS` names.
        RuntimeError: if jax has started already with fewer.

    Example:
        >>> use_cores(len(jax.devices("cpu"))) == len(jax.devices("cpu"))  # as they are: always allowed
        True
    """
    check_arguments(use_cores, locals())
    wanted = min(available_cores(), MOST_CORES) if count is None else count
    if wanted < 1:
        raise ValueError(f"cores must be at least 1, not {wanted}")
    if cache:
        keep_programs()
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        with contextlib.suppress(RuntimeError):  # jax has started: all is well if it has as many
            jax.config.update("jax_num_cpu_devices", wanted)
    if "cpu" not in (getattr(jax.config, "jax_platforms") or "cpu"):  # noqa: B009 - jax does not declare it
        find_devices()  # jax was told to have none of its own
        return 0
    find_devices("cpu")
    have = jax.local_device_count("cpu")
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
        a number from 1 to that of jax's devices; of several processes as many of each, and at least one.

    Raises:
        ValueError: if the lanes do not divide over the processes.

    Example:
        >>> choose_devices(10)
        1
    """
    hosts = num_processes()
    most = max(1, min(_useful(), cohort // LEAST_SHARE) // hosts)  # of each
    if lanes is None:
        return most * hosts
    if lanes % hosts:
        raise ValueError(f"{lanes} lanes do not divide over {hosts} processes; use a multiple of {hosts}")
    return max(d for d in range(1, most + 1) if lanes % (d * hosts) == 0) * hosts


def _useful() -> int:
    """All accelerators, or as many CPU devices as there are cores; of several processes as many of each."""
    find_devices()
    mine = jax.local_device_count()
    return num_processes() * (min(mine, available_cores()) if jax.default_backend() == "cpu" else mine)


def client_mesh(devices: int | None = None) -> Mesh | None:
    """A mesh over which a cohort is split.

    Args:
        devices: how many, as many of each process; by default all accelerators, or a core each.

    Returns:
        a mesh of one axis, "clients"; None for one device.

    Raises:
        ValueError: if there are not so many, or they do not divide over the processes.

    Example:
        >>> client_mesh(1) is None
        True
    """
    check_arguments(client_mesh, locals())
    found = find_devices()
    count = _useful() if devices is None else devices
    if not 1 <= count <= len(found):
        raise ValueError(f"devices={count}, but jax sees {len(found)}; choose 1 to {len(found)}")
    hosts = num_processes()
    if hosts > 1:
        found = _of_each_process(found, count, hosts)
    return None if count == 1 else Mesh(np.array(found[:count]), (AXIS,))


def _of_each_process(found: list[jax.Device], count: int, hosts: int) -> list[jax.Device]:
    """So many devices, the same number of each process."""
    by_process = [[each for each in found if each.process_index == host] for host in range(hosts)]
    share, rest = divmod(count, hosts)
    fewest = min(map(len, by_process))
    if rest or share > fewest:
        raise ValueError(
            f"devices={count} do not divide over {hosts} processes with at least {fewest} each; choose a multiple "
            f"of {hosts} up to {hosts * fewest}"
        )
    return [each for own in by_process for each in own[:share]]


def device_bytes(devices: int = 1) -> int:
    """Memory that some devices have together, in bytes.

    Args:
        devices: how many; those of a host share its memory.

    Returns:
        what devices like the default one report, else what `host_bytes` says, of as many hosts as processes.

    Example:
        >>> device_bytes() > 2**20
        True
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return devices * int(stats["bytes_limit"])
    return host_bytes() * num_processes()


def host_bytes() -> int:
    """Memory that a run may take on this machine, in bytes: what is free, not what there is.

    Returns:
        nine tenths of what other programs leave to this process, and of what its arrays hold already: a run is
        planned as a whole, its data included.

    Example:
        >>> host_bytes() > 2**20
        True
    """
    container = (_read(_CONTAINER + name) for name in ("max", "current", "stat"))
    free = min(_free_bytes(_read("/proc/meminfo")), _container_bytes(*container))
    held = sum(array.nbytes for array in jax.live_arrays()) if jax.default_backend() == "cpu" else 0
    return 9 * (free + held) // 10


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""


def _free_bytes(meminfo: str) -> int:
    """What the kernel says that can be taken without swapping, or all there is where it does not say."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.MULTILINE)
    if found:
        return int(found[1]) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return _UNKNOWN


def _container_bytes(limit: str, used: str, stat: str) -> int:
    """What a container has left, where it has a limit; files that it has read can be forgotten."""
    if not limit.strip().isdecimal() or not used.strip().isdecimal():
        return _UNKNOWN
    files = re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)
    return max(0, int(limit) - int(used) + (int(files[1]) if files else 0))


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
    if mesh is None:
        return tree
    if spans_processes(mesh):
        return make_global(tree, mesh)
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


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


def mesh_that_holds(tree: PyTree, mesh: Mesh | None) -> Mesh | None:
    """The devices that can share work on these arrays: those of a mesh, if each of them holds all of them.

    Args:
        tree: arrays.
        mesh: the devices; None for one.

    Returns:
        the mesh; None where arrays are on one device, in host memory alone, split, or traced.

    Example:
        >>> mesh_that_holds(jnp.ones(3), None) is None
        True
    """
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if mesh is None or not arrays or any(isinstance(array, jax.core.Tracer) for array in arrays):
        return None
    devices = set(mesh.devices.flat)
    shardings = [array.sharding for array in arrays]
    held = all(found.device_set == devices and found.is_fully_replicated for found in shardings)
    return mesh if held else None


def map_in_shares(
    work: Callable[[Any, Any], PyTree],
    common: PyTree,
    blocks: PyTree,
    mesh: Mesh | None,
    *,
    batch_size: int | None = None,
) -> PyTree:
    """Inside a compiled function: the same work for one block after the other, some of them by each device.

    Otherwise every device that holds the arrays would do the work of all.

    Args:
        work: of (common, block), on one device.
        common: arrays for all blocks, replicated.
        blocks: leaves [B, ...], replicated.
        mesh: the devices; None for one.
        batch_size: blocks done at once, where `work` is for one; by default one after the other.

    Returns:
        what the work gives, leaves [B, ...], replicated.

    Example:
        >>> map_in_shares(lambda scale, block: scale * block, 2.0, jnp.arange(3.0), None)
        Array([0., 2., 4.], dtype=float32)
    """

    def map_share(common: PyTree, share: PyTree) -> PyTree:
        return jax.lax.map(partial(work, common), share, batch_size=batch_size)

    if mesh is None:
        return map_share(common, blocks)
    count = len(jax.tree.leaves(blocks)[0])

    def fill_up(leaf: jax.Array) -> jax.Array:
        return jnp.pad(leaf, ((0, -count % mesh.size), *[(0, 0)] * (leaf.ndim - 1)))

    own = PartitionSpec(mesh.axis_names)
    run = jax.shard_map(map_share, mesh=mesh, in_specs=(PartitionSpec(), own), out_specs=own, check_vma=False)
    results = keep_replicated(run(common, jax.tree.map(fill_up, blocks)), mesh)
    return jax.tree.map(lambda leaf: leaf[:count], results)


def multiply_in_shares(left: jax.Array, right: jax.Array, mesh: Mesh | None) -> jax.Array:
    """Inside a compiled function: the product of two arrays that every device has, some rows of it by each.

    Args:
        left: float32[R, K].
        right: float32[K, S].
        mesh: the devices; None for one.

    Returns:
        float32[R, S], whole on every device.

    Example:
        >>> multiply_in_shares(jnp.ones((3, 2)), jnp.ones((2, 4)), None).shape
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
