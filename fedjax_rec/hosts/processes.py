"""Processes, one a host, that run one program: how they find each other, agree, and hand arrays over.

Every process calls the same functions in the same order. Their devices make one mesh, over which cohorts are split
(`devices.client_mesh`); what is whole on every device is an array of all processes, made of each one's own equal
copy. What only one of them can know, such as the time, the others are told (`exchange`). All of this runs on the
devices, in the order of the program: another thread must not do it (`mailbox`).
"""

import contextlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.types import PyTree

LIMIT = 60.0  # seconds within which all processes have come
SILENCE = 30  # seconds without a sign of life after which a process counts as dead
_ADDRESS = re.compile(r"(\[[^\]]+\]|[^:\s]+):(\d{1,5})")
_LOST = re.compile(
    r"gloo|nccl|connection|socket|peer|heartbeat|coordination|unavailable|deadline|aborted|cancelled",
    re.IGNORECASE,
)
_SHOWN = 60  # characters of a value that an error shows


def initialize_distributed(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = LIMIT,
) -> None:
    """Join the processes of a run; each calls this first of all, before jax computes anything.

    Without arguments jax finds the cluster (SLURM, Kubernetes, Open MPI, TPU pods). Afterwards `client_mesh()` has
    the devices of all processes; `use_cores()`, if wanted, comes in between.

    Args:
        coordinator: "HOST:PORT" of process 0, at a port that is free there.
        processes: how many there are.
        process_id: which one this is, 0 to processes - 1.
        timeout: seconds within which all of them have come.

    Raises:
        ValueError: if a number is out of range, no cluster was found, or it is too late.
        TimeoutError: (an OSError) if the coordinator did not answer, or not all came.

    Example:
        >>> initialize_distributed("10.0.0.1", 2, 0)
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: coordinator='10.0.0.1' is no HOST:PORT, such as 10.0.0.1:9876
    """
    check_arguments(initialize_distributed, locals())
    _check_place(coordinator, processes, process_id, timeout)
    if jax.distributed.is_initialized():
        raise ValueError("the processes of this run have joined already; call initialize_distributed() once")
    if getattr(jax.config, "jax_cpu_collectives_implementation", None) in (None, "none"):
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # jax would take SIGTERM for itself, and no run would hear of it: here all stop after a block of rounds.
    if hasattr(jax.config, "jax_enable_preemption_service"):
        jax.config.update("jax_enable_preemption_service", False)

    # In a thread, for jax ends a process that waits in vain; what it would print then is for nobody.
    failed: list[Exception] = []

    def join() -> None:
        given = None not in (coordinator, processes, process_id)
        try:
            jax.distributed.initialize(
                coordinator,
                processes,
                process_id,
                cluster_detection_method="deactivate" if given else None,
                initialization_timeout=int(timeout) + 3600,
                heartbeat_timeout_seconds=SILENCE,
            )
        except Exception as problem:
            failed.append(problem)

    joining = threading.Thread(target=join, daemon=True)
    joining.start()
    joining.join(timeout)
    if joining.is_alive():
        which = "this process" if process_id is None else f"process {process_id}"
        where = "" if coordinator is None else f" at {coordinator}"
        raise TimeoutError(
            f"{which} waited {timeout:g} s in vain: the coordinator{where} did not answer, or not all "
            f"{'' if processes is None else f'{processes} '}processes came; start all of them together, and give "
            "each the address of process 0"
        )
    if failed:
        given = {"coordinator": coordinator, "processes": processes, "process_id": process_id}
        raise _why_not_joined(failed[0], [name for name, value in given.items() if value is None])


def _check_place(
    coordinator: str | None, processes: int | None, process_id: int | None, timeout: float
) -> None:
    if coordinator is not None:
        found = _ADDRESS.fullmatch(coordinator)
        if found is None or not 0 < int(found[2]) < 2**16:
            raise ParameterError(
                "{coordinator}={value!r} is no HOST:PORT, such as 10.0.0.1:9876", value=coordinator
            )
    if processes is not None and processes < 1:
        raise ParameterError("{processes} must be at least 1, not {value}", value=processes)
    if process_id is not None and not 0 <= process_id < (processes or 2**31):
        most = "" if processes is None else f" to {processes - 1}"
        raise ParameterError(
            "{process_id}={value} is out of range; the processes are 0{most}", value=process_id, most=most
        )
    if not timeout > 0:
        raise ParameterError("{timeout} must be above 0 seconds, not {value}", value=timeout)


def _why_not_joined(problem: Exception, missing: Sequence[str]) -> Exception:
    text = str(problem).partition("\n")[0]
    if missing and ("should be defined" in text or "must be defined" in text):
        *first, last = ["{" + name + "}" for name in missing]
        names = f"{', '.join(first)} and {last}" if first else last
        also = ", too" if len(missing) < 3 else ""
        return ParameterError(
            "jax finds no cluster here (SLURM, Kubernetes, Open MPI, TPU); give " + f"{names}{also}"
        )
    if "must be called before" in text:
        return ValueError(
            "jax has started already, as one process; call initialize_distributed() before anything is computed"
        )
    return ConnectionError(f"the processes of this run could not join: {text}")


def num_processes() -> int:
    """How many processes run this program; starts no back end where none have joined.

    Returns:
        1 without `initialize_distributed`.

    Example:
        >>> num_processes()
        1
    """
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_first() -> bool:
    """Whether this is process 0, which writes and speaks for all.

    Returns:
        True without `initialize_distributed`.

    Example:
        >>> is_first()
        True
    """
    return num_processes() == 1 or jax.process_index() == 0


@contextlib.contextmanager
def naming_lost_peers() -> Iterator[None]:
    """Tell what jax raises when another process is gone in one line.

    Raises:
        ConnectionError: (an OSError) instead of jax's own error.

    Example:
        >>> with naming_lost_peers():
        ...     pass
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as problem:
        text = str(problem).partition("\n")[0]
        if num_processes() == 1 or not _LOST.search(text):
            raise
        raise ConnectionError(
            f"process {jax.process_index()} of {jax.process_count()} lost another one, which ended or cannot be "
            f"reached; see what that one says ({text[:200]})"
        ) from problem


def exchange(value: Any) -> list[Any]:
    """Tell all processes a value, and hear theirs; all must call it.

    Args:
        value: anything that JSON holds; floats keep their bits.

    Returns:
        the values, by process.

    Raises:
        ConnectionError: if another process is gone.

    Example:
        >>> exchange({"rounds": 3})
        [{'rounds': 3}]
    """
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    if num_processes() == 1:
        return [json.loads(text.tobytes())]
    with naming_lost_peers():
        sizes = np.asarray(multihost_utils.process_allgather(np.int32(len(text))))
        room = 1 << max(6, int(sizes.max() - 1).bit_length())  # few sizes, so few programs
        padded = np.zeros(room, np.uint8)
        padded[: len(text)] = text
        texts = np.asarray(multihost_utils.process_allgather(padded))
    return [json.loads(text[:size].tobytes()) for text, size in zip(texts, sizes, strict=True)]


def of_first(make: Callable[[], Any]) -> Any:
    """What process 0 makes, told to all; what it refuses, all refuse. All must call it.

    Args:
        make: gives what JSON holds; only process 0 calls it.

    Returns:
        the same in every process.

    Raises:
        ValueError, OSError: as `make` does.
        ConnectionError: if another process is gone.

    Example:
        >>> of_first(lambda: 3)
        3
    """
    if num_processes() == 1:
        return make()
    mine: Exception | None = None
    told: dict[str, Any] = {}
    if is_first():
        try:
            told = {"made": make()}
        except (ValueError, OSError) as problem:
            told, mine = {"problem": str(problem)}, problem
    heard = exchange(told)[0]
    if "problem" in heard:
        raise mine or ValueError(heard["problem"])
    return heard["made"]


def check_same(facts: Callable[[], Mapping[str, Any]]) -> None:
    """Refuse to go on with processes that have other data, versions or settings; all must call it.

    Args:
        facts: gives plain values by name, the most telling first; one process alone asks for none.

    Raises:
        ValueError: in every process, naming the one that differs from process 0, and in what.

    Example:
        >>> check_same(lambda: {"data_hash": "5f0c"})
    """
    if num_processes() == 1:
        return
    plain = json.loads(json.dumps(dict(facts()), default=str))
    found = exchange({"facts": plain, "host": socket.gethostname()})
    first = found[0]["facts"]
    for number, other in enumerate(found[1:], 1):
        theirs = other["facts"]
        for name in (*first, *theirs):
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"process {number} ({other['host']}) differs from process 0 ({found[0]['host']}): {name} is "
                    f"{_shown(theirs.get(name))} there, not {_shown(first.get(name))}; give all processes the "
                    "same command, data, versions and settings"
                )


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def from_first(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Give all processes the arrays of process 0, bit for bit; all must call it.

    Args:
        arrays: of process 0; of the others arrays of the same shapes and dtypes, which are not read.

    Returns:
        the arrays of process 0.

    Raises:
        ConnectionError: if another process is gone.

    Example:
        >>> from_first([np.float32([-0.0])])[0].tolist()
        [-0.0]
    """
    if num_processes() == 1:
        return list(arrays)
    # As bytes: jax adds the others' zeros up, which would turn a float's -0.0 into 0.0.
    sent = [np.ascontiguousarray(array).reshape(-1).view(np.uint8) for array in arrays]
    with naming_lost_peers():
        got = [
            np.asarray(multihost_utils.broadcast_one_to_all(one)).astype(np.uint8) if one.size else one
            for one in sent
        ]
    return [one.view(array.dtype).reshape(array.shape) for one, array in zip(got, arrays, strict=True)]


def spans_processes(mesh: Mesh | None) -> bool:
    """Whether a mesh has devices of several processes.

    Args:
        mesh: the devices; None for one.

    Returns:
        True or False.

    Example:
        >>> spans_processes(None)
        False
    """
    return mesh is not None and bool(mesh.is_multi_process)


def make_global(tree: PyTree, mesh: Mesh) -> PyTree:
    """Put each process's own copy on its devices, and call them one array, whole on every device of all.

    Args:
        tree: arrays, equal in all processes.
        mesh: the devices of all processes.

    Returns:
        the same values.

    Example:
        >>> make_global(np.arange(2), Mesh(np.array(jax.devices()[:1]), ("clients",))).tolist()
        [0, 1]
    """
    whole = NamedSharding(mesh, PartitionSpec())

    def put(leaf: Any) -> Any:
        if getattr(leaf, "sharding", None) == whole:
            return leaf
        value = np.asarray(leaf)
        value = value.astype(jax.dtypes.canonicalize_dtype(value.dtype), copy=False)
        return jax.make_array_from_callback(value.shape, whole, lambda index: value[index])

    return jax.tree.map(put, tree)


def make_local(tree: PyTree) -> PyTree:
    """The same values as arrays of this process alone, with which it may compute what the others do not.

    Args:
        tree: arrays, whole on every device of all processes, or on the host.

    Returns:
        the same values, on this process's first device of each.

    Example:
        >>> make_local(np.arange(2)).tolist()
        [0, 1]
    """

    def take(leaf: Any) -> Any:
        is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
        return leaf.addressable_data(0) if is_global else leaf

    return jax.tree.map(take, tree)
