"""The engine's side of a measurement: one compiled block of rounds, ready to be put on the clock."""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from experiments.benchmarks.task import SEED, checksum
from fedjax_rec.engine.devices import replicate
from fedjax_rec.federation.blocks import Compilations, run_block
from fedjax_rec.types import Algorithm, RoundInfo, State


class Side(NamedTuple):
    """What can be run again and again, and what it is."""

    run: Callable[[], float]  # one repeat -> seconds
    clients: int  # in a repeat
    facts: dict[str, Any]  # lanes, compile seconds, ...
    infos: Callable[[], RoundInfo]  # of the last repeat
    compilations: Callable[[], int]


def engine_side(
    algorithm: Algorithm, population: fr.Population, cohort: int, rounds: int, *, after: int = 5
) -> Side:
    """Compile a block of rounds.

    Args:
        algorithm: to run.
        population: its clients.
        cohort: C.
        rounds: in the block.
        after: rounds before the checksum.

    Returns:
        the side.
    """
    key = jax.random.key(SEED)
    population = replicate(population, algorithm.mesh)
    block = jax.jit(partial(run_block, algorithm, rounds), donate_argnums=1)
    state, none, counted = (
        jax.jit(algorithm.init)(key, population),
        jnp.int32(0),
        Compilations(run_block.__name__),
    )
    tick = time.perf_counter()
    with counted:
        state, _ = jax.block_until_ready(block(key, state, population, none))
    seconds = time.perf_counter() - tick
    state, infos = jax.block_until_ready(block(key, state, population, jnp.int32(min(after, rounds))))
    held: dict[str, Any] = {"state": state, "infos": infos}
    plan = algorithm.plan(population)
    facts = {
        "lanes": plan.lanes,
        "devices": plan.devices,
        "schedule": plan.schedule,
        "compile_seconds": seconds,
        "planned_bytes": sum(plan.num_bytes.values()),
        "checksum": checksum(np.asarray(_table(state))),
    }

    def run() -> float:
        tick, turns = time.perf_counter(), jnp.int32(rounds)
        with counted:
            held["state"], held["infos"] = jax.block_until_ready(block(key, held["state"], population, turns))
        return time.perf_counter() - tick

    def compilations() -> int:
        return counted.count

    return Side(run, cohort * rounds, facts, lambda: held["infos"], compilations)


def _table(state: State) -> jax.Array:
    return state.server.tables["vector"]


def race(sides: dict[str, Side], repeats: int) -> dict[str, dict[str, Any]]:
    """Run all sides in turns, so that what disturbs one disturbs the others.

    Args:
        sides: by name.
        repeats: turns.

    Returns:
        by name: the spread of clients per second, and the side's facts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, side in sides.items():
            seconds[name].append(side.run())
    return {name: _result(side, seconds[name]) for name, side in sides.items()}


def _result(side: Side, seconds: list[float]) -> dict[str, Any]:
    rates = [side.clients / s for s in seconds]
    infos = side.infos()
    done = max(float(np.sum(infos.clients)), 1.0)
    return {
        **spread(rates),
        **side.facts,
        "rounds_per_second": median(rates) * len(np.asarray(infos.clients)) / done,
        "examples_per_second": median(rates) * float(np.sum(infos.examples)) / done,
        "lane_efficiency": float(np.sum(infos.batches)) / max(float(np.sum(infos.lane_steps)), 1.0),
        "compilations": side.compilations(),
    }


def spread(rates: list[float]) -> dict[str, float]:
    """Median, least and most of some rates.

    Args:
        rates: clients per second.

    Returns:
        the three.
    """
    return {"clients_per_second": median(rates), "min": min(rates), "max": max(rates)}
