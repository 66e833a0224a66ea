"""The run that faults are injected into, a toy with all kinds of leaves or a small real one, and its process."""

import contextlib
import functools
import json
import shutil
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from fedjax_rec.testing import tiny_population
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.store import import_orbax, list_checkpoints, read_arrays
from fedjax_rec.training.history import Progress
from fedjax_rec.types import Algorithm, Key, Model, Plan, RoundInfo, Server, State

EVERY = 2  # rounds between checkpoints
RATE = 0.1  # learning rate
CACHE = Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"
import_orbax()  # a process that is forked from this module has orbax


class Workload(NamedTuple):
    """One run."""

    algorithm: Algorithm
    data: Any
    rounds: int


def toy(rate: float = RATE, dim: int = 4) -> Algorithm:
    """An algorithm that compiles in no time, with every kind of leaf: keys, words, half floats, nothing.

    Args:
        rate: of its steps.
        dim: of its table.

    Returns:
        the algorithm.
    """

    def init(key: Key, population: fr.Population) -> State:
        table = jax.random.normal(key, (population.num_items, dim))
        server = Server({"half": jnp.ones(8, jnp.bfloat16)}, {"item": table})
        rest = {"key": jax.random.key(5), "words": jnp.arange(3, dtype=jnp.uint32), "none": jnp.zeros((0, 2))}
        private = {"user": jnp.zeros((population.num_clients, dim)), "seen": jnp.zeros(3, bool)}
        return State(jnp.int32(0), server, rest, private, {"residual": jnp.zeros((5, 1))})

    def train_round(key: Key, state: State, population: fr.Population) -> tuple[State, RoundInfo]:
        del population
        table = state.server.tables["item"]
        noise = jax.random.normal(jax.random.fold_in(key, state.round), table.shape)
        table = jnp.sin(table + rate * noise)
        rest = state.opt_state | {"key": jax.random.fold_in(state.opt_state["key"], 1)}
        rest["words"] = rest["words"] * jnp.uint32(2654435761) + jnp.uint32(1)
        private = state.private | {"user": state.private["user"] + table.mean(0)[None]}
        server = Server({"half": state.server.shared["half"] * jnp.bfloat16(0.99)}, {"item": table})
        loss = jnp.abs(table).mean()
        one = jnp.int32(1)
        info = RoundInfo(loss, one, loss, one, one, loss, loss, one, loss, *[jnp.int32(0)] * 3)
        return State(state.round + 1, server, rest, private, state.transform_state), info

    def plan(population: fr.Population) -> Plan:
        del population
        return Plan(1, 1, 1, "lanes", "loop", {})

    nobody: Any = None
    return Algorithm(init, train_round, None, Model(nobody, nobody), nobody, plan)


@functools.cache
def workload(*, real: bool) -> Workload:
    """The run.

    Args:
        real: matrix factorisation with validation, instead of the toy.

    Returns:
        algorithm, data and rounds.
    """
    if not real:
        return Workload(toy(), tiny_population(), 24)
    split = fr.leave_one_out(fr.data.synthetic(num_users=60, num_items=80, seed=1))
    return Workload(fr.fedmf(dim=4, cohort=12, lanes=4, learning_rate=RATE), split, 24)


def run(
    task: Workload,
    folder: Path | None,
    *,
    must_match: dict[str, Any] | None = None,
    on_message: Callable[[str], Any] = str,
    **options: Any,
) -> str:
    """Run it, going on from checkpoints if there are some.

    Args:
        task: the run.
        folder: of checkpoints; None for a run without.
        must_match: of the checkpoints.
        on_message: of the checkpoints; nothing by default.
        **options: for `simulate`.

    Returns:
        digest of the final state, and of losses and validations.
    """
    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoints(folder, EVERY, must_match=must_match or {}, on_message=on_message)
    settings = {"rounds": task.rounds, "eval_every": 1, "checkpoint": checkpoint}
    state, history = fr.simulate(task.algorithm, task.data, **settings | options)
    validations = np.frombuffer(repr((history.evaluations, history.selected_round)).encode(), np.uint8)
    return digest([*to_arrays(state), *to_arrays(history.rounds), validations])


def use_cache() -> None:
    """Share compiled programs between processes and runs of this script."""
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def reference(*, real: bool) -> str:
    """What the run gives if nothing happens.

    Args:
        real: as in `workload`.

    Returns:
        as `run`.
    """
    return run(workload(real=real), None)


class Stopped(Exception):  # noqa: N818 - not an error
    """Ends a run in the middle."""


def stop_at(last: int) -> Callable[[Progress], None]:
    """A callback that ends a run.

    Args:
        last: the round after which it does.

    Returns:
        for `simulate`.
    """

    def call(progress: Progress) -> None:
        if progress.round == last:
            raise Stopped

    return call


@functools.cache
def _process_folder() -> tempfile.TemporaryDirectory:
    """A folder for the life of this process."""
    return tempfile.TemporaryDirectory()


@functools.cache
def half_done(*, real: bool) -> Path:
    """Checkpoints of a run that ended in its middle, three of them; to be copied, not to be touched.

    Args:
        real: as in `workload`.

    Returns:
        their folder.
    """
    folder = Path(_process_folder().name) / f"half-{real}"
    task = workload(real=real)
    with contextlib.suppress(Stopped):
        run(task, folder, on_block=stop_at(task.rounds // 2))
    return folder


def copy_half_done(*, real: bool, parent: Path) -> Path:
    """Copy the checkpoints of the half-done run.

    Args:
        real: as in `workload`.
        parent: where to put it, in a folder of its own.

    Returns:
        the copy.
    """
    folder = Path(tempfile.mkdtemp(dir=parent)) / "checkpoints"
    return Path(shutil.copytree(half_done(real=real), folder))


def digests(folder: Path) -> dict[str, str]:
    """What each checkpoint holds.

    Args:
        folder: of checkpoints, all sound.

    Returns:
        digest of its arrays by the checkpoint's name.
    """
    return {path.name: digest(read_arrays(path, _meta(path))) for path in list_checkpoints(folder)}


def _meta(path: Path) -> dict[str, Any]:
    return json.loads((path / "meta.json").read_bytes())


def run_in_child(folder: Path, real: bool, pipe: Connection) -> None:
    """What a process does that will be killed: run, acknowledging each round once it is saved.

    Args:
        folder: of checkpoints.
        real: as in `workload`.
        pipe: is sent the acknowledged rounds, at last the digest.
    """

    def acknowledge(progress: Progress) -> None:
        pipe.send(progress.round // EVERY * EVERY)

    use_cache()
    pipe.send(0)
    pipe.send(run(workload(real=real), folder, on_block=acknowledge))
