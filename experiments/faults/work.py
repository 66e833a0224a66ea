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
from fedjax_rec.checkpoints import Checkpoints
from fedjax_rec.leaves import digest, to_arrays
from fedjax_rec.simulate import Progress
from fedjax_rec.steps import library, read_arrays, step_paths
from fedjax_rec.testing import tiny_population
from fedjax_rec.types import Algorithm, Key, Model, Plan, RoundInfo, Server, State

EVERY, RATE = 2, 0.1  # rounds between checkpoints, learning rate
CACHE = Path(tempfile.gettempdir()) / "fedjax_rec-jax-cache"
library()  # a process that is forked from this module has orbax


class Work(NamedTuple):
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

    def turn(key: Key, state: State, population: fr.Population) -> tuple[State, RoundInfo]:
        del population
        own = jax.random.fold_in(key, state.round)
        table = state.server.tables["item"]
        table = jnp.sin(table + rate * jax.random.normal(own, table.shape))
        rest = state.opt_state | {"key": jax.random.fold_in(state.opt_state["key"], 1)}
        rest["words"] = rest["words"] * jnp.uint32(2654435761) + jnp.uint32(1)
        private = state.private | {"user": state.private["user"] + table.mean(0)[None]}
        server = Server({"half": state.server.shared["half"] * jnp.bfloat16(0.99)}, {"item": table})
        loss, one = jnp.abs(table).mean(), jnp.int32(1)
        info = RoundInfo(loss, one, loss, one, one, loss, loss, one, loss, *[jnp.int32(0)] * 3)
        return State(state.round + 1, server, rest, private, state.memory), info

    def plan(population: fr.Population) -> Plan:
        del population
        return Plan(1, 1, 1, "lanes", "loop", {})

    nobody: Any = None
    return Algorithm(init, turn, None, Model(nobody, nobody), nobody, plan)


@functools.cache
def work(*, real: bool) -> Work:
    """The run.

    Args:
        real: matrix factorisation with validation, instead of the toy.

    Returns:
        algorithm, data and rounds.
    """
    if not real:
        return Work(toy(), tiny_population(), 24)
    split = fr.leave_one_out(fr.synthetic(num_users=60, num_items=80, seed=1))
    return Work(fr.fedmf(dim=4, cohort=12, lanes=4, learning_rate=RATE), split, 24)


def run(
    one: Work,
    folder: Path | None,
    *,
    facts: dict[str, Any] | None = None,
    tell: Callable[[str], Any] = str,
    **options: Any,
) -> str:
    """Run it, going on from checkpoints if there are some.

    Args:
        one: the run.
        folder: of checkpoints; None for a run without.
        facts: of the checkpoints.
        tell: of the checkpoints; nothing by default.
        **options: for `simulate`.

    Returns:
        digest of the final state, and of losses and validations.
    """
    kept = None if folder is None else Checkpoints(folder, every=EVERY, facts=facts or {}, tell=tell)
    settings = {"rounds": one.rounds, "eval_every": 1, "checkpoint": kept}
    state, history = fr.simulate(one.algorithm, one.data, **settings | options)
    told = np.frombuffer(repr((history.evaluations, history.selected_round)).encode(), np.uint8)
    return digest([*to_arrays(state), *to_arrays(history.rounds), told])


def use_cache() -> None:
    """Share compiled programs between processes and runs of this script."""
    jax.config.update("jax_compilation_cache_dir", str(CACHE))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def reference(*, real: bool) -> str:
    """What the run gives if nothing happens.

    Args:
        real: as in `work`.

    Returns:
        as `run`.
    """
    return run(work(real=real), None)


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
def _room() -> tempfile.TemporaryDirectory:
    """A folder for the life of this process."""
    return tempfile.TemporaryDirectory()


@functools.cache
def half_done(*, real: bool) -> Path:
    """Checkpoints of a run that ended in its middle, three of them; to be copied, not to be touched.

    Args:
        real: as in `work`.

    Returns:
        their folder.
    """
    folder = Path(_room().name) / f"half-{real}"
    with contextlib.suppress(Stopped):
        run(work(real=real), folder, on_block=stop_at(work(real=real).rounds // 2))
    return folder


def copy(*, real: bool, place: Path) -> Path:
    """Copy the checkpoints of the half-done run.

    Args:
        real: as in `work`.
        place: where to.

    Returns:
        the copy.
    """
    folder = Path(tempfile.mkdtemp(dir=place)) / "checkpoints"
    return Path(shutil.copytree(half_done(real=real), folder))


def contents(folder: Path) -> dict[str, str]:
    """What each step holds.

    Args:
        folder: of checkpoints, all sound.

    Returns:
        digest of its arrays by the step's name.
    """
    return {path.name: digest(read_arrays(path, _meta(path))) for path in step_paths(folder)}


def _meta(path: Path) -> dict[str, Any]:
    return json.loads((path / "meta.json").read_bytes())


def child(folder: Path, real: bool, report: Connection) -> None:
    """What a process does that will be killed: run, telling each round once it is saved.

    Args:
        folder: of checkpoints.
        real: as in `work`.
        report: is sent the acknowledged rounds, at last the digest.
    """

    def tell(progress: Progress) -> None:
        report.send(progress.round // EVERY * EVERY)

    use_cache()
    report.send(0)
    report.send(run(work(real=real), folder, on_block=tell))
