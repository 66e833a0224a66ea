"""Clients that go wrong: bad numbers, drop-out, and the same clients on other numbers of devices."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import fedjax_rec as fr
from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from fedjax_rec.client.keys import stream
from fedjax_rec.federation.faults import Faults, apply_faults
from fedjax_rec.server.aggregators import fixed_point, total
from fedjax_rec.server.robust import norm_bound
from fedjax_rec.testing import fixed, tiny_population
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.transforms.compression import quantise
from fedjax_rec.types import RoundInfo, State

KEY = jax.random.key(3)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
BAD = (np.nan, np.inf, -np.inf, 1e30)  # what a bad client starts from, so that its update is bad too
DENORMAL = 1e-40
WAYS: dict[str, dict[str, Any]] = {  # by which updates reach the sums
    "lanes": {},
    "waves": {"local_epochs": 2},
    "a clip": {"transform": clip(1.0)},
    "whole updates": {"transform": quantise(8)},
    "a stack": {"aggregator": norm_bound(1.0)},
    "integers": {"aggregator": fixed_point(total(), capacity=24)},
    "a server optimizer": {"server_optimizer": optax.adam(0.1)},
}
EXACT: dict[str, Any] = {"aggregator": fixed_point(total(), capacity=24)}
RATES = (0.0, 0.2, 0.5, 0.9, 1.0)
ALGORITHMS: dict[str, tuple[Callable[..., fr.types.Algorithm], dict[str, Any]]] = {
    "fedmf": (fr.fedmf, {}),
    "fedmf, bpr": (fr.fedmf, {"loss": "bpr", "local_epochs": 2}),
    "fedncf": (fr.fedncf, {"architecture": "gmf"}),
    "fedper": (fr.fedper, {"base_layers": 1}),
    "fedtwotower": (fr.fedtwotower, {"hidden": 4}),
}
DEVICES = (1, 8, 2, 4)  # the first two are tried in the tests


class Round(NamedTuple):
    """A way by which updates reach the sums."""

    start: State
    # (state, who is present bool[N], order int32[N]) -> state and report
    run: Callable[[State, jax.Array, jax.Array], tuple[State, RoundInfo]]


@functools.cache
def _round(way: str) -> Round:
    """A round of everybody, compiled once for all who may be present."""
    population = tiny_population()
    settings = EXACT if way == "exact" else WAYS[way]

    @jax.jit
    def run(state: State, alive: jax.Array, order: jax.Array) -> tuple[State, RoundInfo]:
        algorithm = fr.fedmf(sampler=lambda key, n: (order, alive[order]), **SMALL, **settings)  # noqa: ARG005
        return algorithm.round(KEY, state, population)

    return Round(fr.fedmf(**SMALL, **settings).init(KEY, population), run)


@fault("bad client updates", times=500, short=12)
def bad_numbers(injection: Injection) -> Tally:
    """NaN, infinite, 1e30 and denormal clients, 1 to all of a cohort: the round is that of the others."""
    ways = list(WAYS) if injection.real else list(WAYS)[:1]
    return tally(_spoil(injection.rng, ways[i % len(ways)]) for i in range(injection.times))


def _spoil(rng: np.random.Generator, way: str) -> Outcome:
    start, run = _round(way)
    vectors = np.asarray(start.private["vector"])
    size = len(vectors)
    start = start._replace(round=jnp.int32(rng.integers(10**6)))
    bad = np.isin(np.arange(size), rng.permutation(size)[: rng.integers(1, size + 1)])
    value = rng.choice([*BAD, DENORMAL])
    spoilt = start.private | {"vector": jnp.where(bad[:, None], np.float32(value), vectors)}
    found, info = run(start._replace(private=spoilt), jnp.ones(size, bool), jnp.arange(size))
    if not all(np.isfinite(x).all() for x in jax.tree.leaves(found.server)):
        return "lost"
    if value == DENORMAL:  # small numbers are numbers: nobody is left out
        return "survived" if int(info.unsound) == 0 else "lost"
    expected, _ = run(start, jnp.asarray(~bad), jnp.arange(size))
    return "survived" if _is_same(found, expected, ~bad) else "silent"


@fault("drop-out", times=200, short=10)
def dropped(injection: Injection) -> Tally:
    """None to all of a cohort fail: the sum is exactly that of the survivors, and a round of nobody is skipped."""
    rates = RATES if injection.real else RATES[-2:]
    return tally(_drop(injection.rng, rates[i % len(rates)]) for i in range(injection.times))


@functools.cache
def _faulty(rate: float) -> Callable[[State], tuple[State, RoundInfo]]:
    """A round in which clients fail."""
    population = tiny_population()
    sampler = fixed(np.arange(population.num_clients))
    algorithm = fr.fedmf(sampler=sampler, faults=Faults(drop_out=rate), **SMALL, **EXACT)
    return jax.jit(lambda state: algorithm.round(KEY, state, population))


def _drop(rng: np.random.Generator, rate: float) -> Outcome:
    start, run = _round("exact")
    start = start._replace(round=jnp.int32(rng.integers(10**6)))
    found, info = _faulty(rate)(start)
    present = jnp.asarray(np.diff(tiny_population().offsets) > 0)
    size = len(present)
    work = jnp.ones(size, jnp.int32)
    arrived, _ = apply_faults(
        Faults(drop_out=rate), stream(KEY, "faults"), start.round, jnp.arange(size), present, work, 1
    )
    expected, _ = run(start, arrived, jnp.asarray(rng.permutation(size)))
    counted = (int(info.clients), int(info.skipped)) == (int(arrived.sum()), int(not arrived.any()))
    return "survived" if counted and _is_same(found, expected, np.ones(size, bool)) else "silent"


@fault("devices", times=20, short=2)
def devices(injection: Injection) -> Tally:
    """1, 2, 4 and 8 devices, five algorithms, fixed-point sums: one SHA-256."""
    names = list(ALGORITHMS)
    return tally(_compare_devices(names[i // 4], DEVICES[i % 4]) for i in range(injection.times))


def _compare_devices(name: str, count: int) -> Outcome:
    return "survived" if _hash(name, count) == _hash(name, 1) else "silent"


@functools.cache
def _hash(name: str, count: int) -> str:
    """SHA-256 of the state after two rounds on so many devices."""
    if count > len(jax.devices()):
        raise ValueError(
            f"{count} devices are needed, there are {len(jax.devices())}; start this script anew"
        )
    make, settings = ALGORITHMS[name]
    population = tiny_population()
    sampler = fixed(np.arange(population.num_clients))
    algorithm = make(
        **SMALL | settings, **EXACT, sampler=sampler, lanes=2 * count, mesh=fr.client_mesh(count)
    )
    state, _ = fr.simulate(algorithm, population, rounds=2, eval_every=2)
    return digest(to_arrays((state.server, state.private)))


def _is_same(found: State, expected: State, which: np.ndarray) -> bool:
    """Equal bits of the server, of its optimizer, and of some clients' vectors."""
    vectors = (np.asarray(state.private["vector"])[which] for state in (found, expected))
    pairs = zip(
        jax.tree.leaves((found.server, found.opt_state)),
        jax.tree.leaves((expected.server, expected.opt_state)),
        strict=True,
    )
    return all(np.array_equal(a, b) for a, b in pairs) and np.array_equal(*vectors)
