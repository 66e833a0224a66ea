"""How a run is laid out where memory is short: clients that stream from host memory, and fewer devices."""

from collections.abc import Callable

import jax
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.engine.plan import fits, with_copy, without_host
from fedjax_rec.hosts.processes import num_processes
from fedjax_rec.types import Algorithm, ChunkedRound, Plan, PyTree

STREAMED = 2**30  # bytes of a cohort's copies from which chunks cost no time on a CPU
CHUNK = 30 * 2**20  # bytes of a chunk's largest leaf: glibc keeps no buffer of 32 MiB for its next use


def copies_are_large(plan: Plan) -> bool:
    """Whether rounds in chunks cost no time: on a CPU, where a round copies 1 GiB of what its cohort keeps.

    There chunks stay in buffers that are used again. To and from an accelerator they must be sent.

    Args:
        plan: of rounds in one piece.

    Returns:
        True or False.

    Example:
        >>> copies_are_large(Plan(6040, 2, 4, "lanes", "scatter", {"cohort": 2**26}))
        False
    """
    return jax.default_backend() == "cpu" and plan.num_bytes["cohort"] >= STREAMED


def choose_chunk_size(plan: Plan, store: PyTree) -> int:
    """How many clients of a cohort go to the device at a time, if they stream from host memory.

    Args:
        plan: of rounds in one piece.
        store: shapes of what clients keep between rounds, leaves [N, ...].

    Returns:
        S, a multiple of the devices, and of the lanes if there are that many; no more than the cohort needs.

    Example:
        >>> store = jax.ShapeDtypeStruct((6040, 3706, 32), np.float32)
        >>> [choose_chunk_size(Plan(cohort, 2, 4, "lanes", "scatter", {}), store) for cohort in (6040, 11)]
        [64, 12]
    """
    most = min(chunk_size(store, plan.devices), -(-plan.cohort // plan.devices) * plan.devices)
    return most - most % plan.lanes if most >= plan.lanes else most  # so that all lanes are busy to the end


def chunk_size(store: PyTree, devices: int = 1) -> int:
    """How many clients make a chunk of 30 MiB, by their largest leaf.

    Args:
        store: what clients keep between rounds, or its shapes, leaves [N, ...].
        devices: that share a chunk.

    Returns:
        S, a multiple of the devices.

    Example:
        >>> chunk_size(jax.ShapeDtypeStruct((943, 1682, 32), np.float32))
        146
    """
    each = max(
        (leaf.dtype.itemsize * int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(store)), default=1
    )
    return max(1, CHUNK // each // devices) * devices


def choose_run(algorithm: Algorithm, population: Population) -> tuple[ChunkedRound | None, Plan]:
    """How `simulate` runs rounds, and the memory that it needs.

    Args:
        algorithm: as `federate` returns it.
        population: the clients.

    Returns:
        the chunks of a round, None for one piece; the plan.
    """
    chunked = None if algorithm.streaming is None else algorithm.streaming(population)
    return chunked, algorithm.plan(population) if chunked is None else chunked.plan


def plan_run(algorithm: Algorithm, population: Population) -> Plan:
    """What `simulate` will do: with rounds in chunks, where clients stream from host memory.

    Args:
        algorithm: as `federate` returns it.
        population: the clients.

    Returns:
        the plan.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> plan_run(fr.fedmf(dim=2, stream_clients=8), tiny_population()).stream_clients
        8
    """
    return choose_run(algorithm, population)[1]


def with_best(algorithm: Algorithm, plan: Plan) -> Plan:
    """The plan of a run that holds on to its best state: where all rounds are the same, that is its last one.

    Args:
        algorithm: that is to run.
        plan: of its rounds alone.

    Returns:
        the same with the copy, if there is one.

    Example:
        >>> import fedjax_rec as fr
        >>> plan = Plan(1, 1, 1, "waves", "scatter", {"model": 2})
        >>> [with_best(algorithm, plan).num_bytes for algorithm in (fr.fedease(), fr.fedease(memory=0.5))]
        [{'model': 2}, {'model': 2, 'best': 2}]
    """
    return plan if algorithm.repeats else with_copy(plan)


def on_devices_that_fit(make: Callable[[int], Algorithm], devices: int, population: Population) -> Algorithm:
    """An algorithm on so many devices, or on one of each process where a copy for each does not fit.

    Args:
        make: (number of devices) -> the algorithm.
        devices: how many there may be.
        population: the clients.

    Returns:
        the algorithm. What does not fit on one device either is refused before the first round.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> on_devices_that_fit(lambda n: fr.fedmf(mesh=fr.client_mesh(n)), 1, tiny_population()).mesh is None
        True
    """
    algorithm = make(devices)
    plan = with_best(algorithm, plan_run(algorithm, population))
    return algorithm if fits(plan) or fits(without_host(plan)) else make(num_processes())
