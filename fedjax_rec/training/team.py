"""The processes of one run, which decide alike: process 0 validates, keeps time and writes; the others are told.

A run on one process is a team of one, for which nothing here does anything.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.federation.client_rows import map_rows
from fedjax_rec.hosts.processes import (
    check_same,
    exchange,
    from_first,
    is_first,
    make_local,
    naming_lost_peers,
    of_first,
    spans_processes,
)
from fedjax_rec.training.checkpoints.leaves import from_arrays, to_arrays
from fedjax_rec.training.checkpoints.manager import Best, Checkpoints, Paused, Snapshot
from fedjax_rec.training.checkpoints.signals import StopRequest, catch_stop_signals
from fedjax_rec.types import RoundInfo, State

T = TypeVar("T")


class Team:
    """Who runs a simulation.

    Args:
        mesh: of its algorithm; one with devices of several processes makes a team of them.
        stored: whether the clients are in a store, whose state is never looked at as a whole.

    Example:
        >>> Team(None).of_first(lambda: 3)
        3
    """

    def __init__(self, mesh: Mesh | None, *, stored: bool = False) -> None:
        self.stored = stored
        self.several = spans_processes(mesh)
        self.leads = not self.several or is_first()

    def check_same(self, facts: Callable[[], dict[str, Any]]) -> None:
        """Refuse processes that would not run the same; a team of one asks for no facts.

        Raises:
            ValueError: in every process, naming the one that differs.
        """
        if self.several:
            check_same(facts)

    def of_first(self, make: Callable[[], T]) -> T:
        """What process 0 makes, plain values; what it refuses, all refuse.

        Raises:
            ValueError, OSError: as `make` does, in every process.
        """
        return of_first(make) if self.several else make()

    def of_any(self, word: str) -> str:
        """The first word that is not empty, of all processes."""
        return next(filter(None, exchange(word)), "") if self.several else word

    def local(self, state: State) -> State:
        """The state of a run as this process alone may compute with it."""
        if self.several:
            return make_local(state)
        return state if self.stored else map_rows(state)

    @contextlib.contextmanager
    def working(self) -> Iterator[None]:
        """Where another process that is gone is told in one line.

        Raises:
            ConnectionError: (an OSError) then.
        """
        with naming_lost_peers() if self.several else contextlib.nullcontext():
            yield

    def share(self, restore: Callable[[], Snapshot | None], template: State) -> Snapshot | None:
        """The snapshot that process 0 reads, in all processes.

        Args:
            restore: reads it; None where there is none. Not called by the others.
            template: a state of the run.

        Returns:
            the snapshot; None where there is none.

        Raises:
            ValueError, OSError: as `restore` does, in every process.
        """
        if not self.several:
            return restore()
        found: list[Snapshot] = []

        def describe() -> dict[str, Any] | None:
            snapshot = restore()
            if snapshot is None:
                return None
            found.append(snapshot)
            best, infos = snapshot.best, snapshot.infos
            return {
                "evaluations": snapshot.evaluations,
                "best": [best.value, best.round, best.state is not None],
                "rounds": None
                if infos is None
                else [[str(x.dtype), x.shape] for x in map(np.asarray, infos)],
                "first_round": snapshot.first_round,
                "stopped": snapshot.stopped,
                "seconds": snapshot.seconds,
            }

        told = self.of_first(describe)
        if told is None:
            return None
        value, round_, has_best = told["best"]
        shapes = [] if told["rounds"] is None else told["rounds"]
        arrays: list[Any]
        if found:
            read = found[0]
            arrays = to_arrays(
                (read.state, read.best.state if has_best else (), read.infos if shapes else ())
            )
        else:
            empty = [np.zeros(leaf.shape, leaf.dtype) for leaf in to_arrays(make_local(template))]
            arrays = [*empty, *(empty if has_best else ()), *(np.zeros(s, d) for d, s in shapes)]
        arrays = list(from_first(arrays))
        count = len(jax.tree.leaves(template))
        state = from_arrays(arrays[:count], template)
        best_state = from_arrays(arrays[count : 2 * count], template) if has_best else None
        return Snapshot(
            state=state,
            infos=RoundInfo(*arrays[-len(shapes) :]) if shapes else None,
            evaluations=tuple((rounds_done, metrics) for rounds_done, metrics in told["evaluations"]),
            best=Best(value, round_, best_state),
            first_round=told["first_round"],
            stopped=told["stopped"],
            seconds=told["seconds"],
        )


class Follower:
    """What a process has in the place of a `CheckpointManager` where process 0 writes: it saves nothing.

    Args:
        checkpoints: of the run.
        request: whether a signal asked this process to stop.
    """

    def __init__(self, checkpoints: Checkpoints, request: StopRequest) -> None:
        self.checkpoints = checkpoints
        self.request = request

    def restore(self, _template: Any, _rounds: int) -> None:
        """Nothing: process 0 reads."""

    def save(self, *_: Any, **__: Any) -> None:
        """Nothing: process 0 writes."""

    def pause_if_requested(self, rounds_done: int, _take_snapshot: Any) -> None:
        """Stop where all do.

        Raises:
            Paused: if a signal asked any process to.
        """
        if self.request.signal:
            raise Paused(f"{self.request.signal}: paused after round {rounds_done}, which process 0 saves")


@contextlib.contextmanager
def follow_checkpoints(checkpoints: Checkpoints) -> Iterator[Follower]:
    """As `open_checkpoints`, in the processes that write nothing.

    Args:
        checkpoints: of the run.

    Yields:
        what stands for the manager.
    """
    with catch_stop_signals() as request:
        yield Follower(checkpoints, request)
