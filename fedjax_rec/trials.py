"""The runs of a batch of trials: dealt to the devices, each in turn, until it ends by its own curve alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_rec.blocks import run_block
from fedjax_rec.devices import AXIS, LEAST_SHARE, choose_devices, client_mesh, replicate
from fedjax_rec.guard import diverged, first_loss
from fedjax_rec.population import Population
from fedjax_rec.spaces import Settings
from fedjax_rec.types import Algorithm, PyTree, RoundInfo, State

Factory = Callable[..., Algorithm]
Measure = Callable[[dict, Algorithm, State, Population], PyTree]  # compiled, of one run


class Judge(NamedTuple):
    """How a state is measured: on device as far as possible, the rest on the host."""

    measure: Measure
    value: Callable[[PyTree], float]


class Budget(NamedTuple):
    """What every trial gets.

    Example:
        >>> Budget(rounds=100, eval_every=10, seeds=(0,), patience=None).rounds
        100
    """

    rounds: int
    eval_every: int
    seeds: tuple[int, ...]
    patience: int | None  # rounds


class Runs:
    """The host's side of one batch: runs [R] = trials x seeds, padded so that every device has as many."""

    def __init__(
        self, make: Factory, traced: tuple[str, ...], judge: Judge, budget: Budget, sign: float
    ) -> None:
        self.make, self.traced, self.judge, self.budget, self.sign = make, traced, judge, budget, sign

    def go(
        self,
        trials: list[Settings],
        example: Algorithm,
        population: Population,
        tell: Callable[[int], None],
    ) -> list[list[tuple[int, float]]]:
        """The curve of each trial: (round, mean metric over seeds), until it ends."""
        rounds, seeds = self.budget.rounds, self.budget.seeds
        size, count = min(self.budget.eval_every, rounds), len(trials) * len(seeds)
        mesh = None if example.mesh is not None else client_mesh(choose_devices(LEAST_SHARE * count))
        devices = 1 if mesh is None else mesh.size
        runs = self._runs(trials, devices)
        where = np.arange(len(runs[1]))  # which run stands where
        start, block = _spread(self._start, mesh), _spread(partial(self._block, size), mesh, donate=True)
        population = replicate(population, mesh or example.mesh)
        states, infos = start(runs, None, population, jnp.zeros(len(where), jnp.int32)), []
        curves: list[list[tuple[int, float]]] = [[] for _ in trials]
        for first in range(0, rounds, size):
            turns, going = min(size, rounds - first), [not self._ended(curve) for curve in curves]
            if not any(going):
                tell((rounds - first) * count)
                break
            busy = np.pad(np.repeat(going, len(seeds)), (0, len(where) - count))  # an ended run has no turns
            for one, other in swaps(busy[where], devices):
                states, where[[one, other]] = _swap(states, one, other), where[[other, one]]
            here = jax.tree.map(lambda x: x[where], runs)
            each = jnp.asarray(turns * busy[where], jnp.int32)
            states, done, found = block(here, states, population, each)
            place = np.argsort(where)
            done, found = jax.tree.map(lambda x: np.asarray(x)[place], (done, found))  # noqa: B023
            infos.append(jax.tree.map(lambda x: x[:, :turns], done))  # noqa: B023 - used at once
            for trial in np.flatnonzero(going):
                own = range(trial * len(seeds), (trial + 1) * len(seeds))
                values = [math.nan if _diverged(infos, run) else self._value(found, run) for run in own]
                curves[trial].append((first + turns, float(np.mean(values))))
            tell(turns * count)
        return curves

    def _value(self, found: PyTree, run: int) -> float:
        return self.judge.value(jax.tree.map(lambda x: x[run], found))

    def _ended(self, curve: list[tuple[int, float]]) -> bool:
        """Whether a trial has diverged, or lost patience."""
        if not curve or math.isnan(curve[-1][1]):
            return bool(curve)
        best, _ = max(curve, key=lambda point: self.sign * point[1])  # of equals the first
        return self.budget.patience is not None and curve[-1][0] - best >= self.budget.patience

    def _runs(self, trials: list[Settings], devices: int) -> PyTree:
        """Traced values and keys of all runs, leaves [R, ...]; the last ones repeat the first."""
        each = [(trial, seed) for trial in trials for seed in self.budget.seeds]
        each = [each[run % len(each)] for run in range(len(each) + -len(each) % devices)]
        values = {name: jnp.asarray([trial[name] for trial, _ in each], jnp.float32) for name in self.traced}
        return values, jnp.stack([jax.random.key(seed) for _, seed in each])

    def _start(self, run: PyTree, state: None, population: Population, turns: jax.Array) -> State:
        del state, turns
        values, key = run
        return self.make(**values).init(key, population)

    def _block(
        self, size: int, run: PyTree, state: State, population: Population, turns: jax.Array
    ) -> tuple[State, RoundInfo, PyTree]:
        """Some rounds of one run, what they report, and the measured state."""
        values, key = run
        algorithm = self.make(**values)
        state, infos = run_block(algorithm, size, key, state, population, turns)
        return state, infos, self._measure(values, algorithm, state, population, turns > 0)

    def _measure(
        self, values: dict, algorithm: Algorithm, state: State, population: Population, wanted: jax.Array
    ) -> PyTree:
        """What is measured of a state; zeros, at no cost, of a run that has ended."""

        def measure(state: State) -> PyTree:
            return self.judge.measure(values, algorithm, state, population)

        shapes = jax.eval_shape(measure, state)
        nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.cond(wanted, measure, lambda _: nothing, state)


def swaps(busy: np.ndarray, devices: int) -> list[tuple[int, int]]:
    """Which runs change places, so that no device has two busy ones more than another.

    Args:
        busy: bool[R], which runs have not ended; a device has R / devices places in a row.
        devices: how many.

    Returns:
        pairs of places, of a busy run and one that has ended.

    Example:
        >>> swaps(np.array([True, True, True, False, False, False]), 2)
        [(2, 3)]
    """
    shares = np.array(busy).reshape(devices, -1)
    found: list[tuple[int, int]] = []
    while np.ptp(shares.sum(1)) > 1:
        most, least = shares.sum(1).argmax(), shares.sum(1).argmin()
        one, other = np.flatnonzero(shares[most])[-1], np.flatnonzero(~shares[least])[0]
        shares[most, one], shares[least, other] = False, True
        found.append((int(most * shares.shape[1] + one), int(least * shares.shape[1] + other)))
    return found


def _swap(states: PyTree, one: int, other: int) -> PyTree:
    """States, leaves [R, ...] split over devices, of which two runs have changed places; no other one is moved."""

    def swap(leaf: jax.Array) -> jax.Array:
        parts = [part.data for part in sorted(leaf.addressable_shards, key=lambda part: part.index[0].start)]
        size = len(parts[0])
        values = [parts[place // size][place % size] for place in (one, other)]
        for place, value in zip((other, one), values, strict=True):
            part = parts[place // size]
            parts[place // size] = _put(part, place % size, jax.device_put(value, part.sharding))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, parts)

    return jax.tree.map(swap, states)


@partial(jax.jit, donate_argnums=0)
def _put(part: jax.Array, place: jax.Array, value: jax.Array) -> jax.Array:
    return part.at[place].set(value)


def _diverged(infos: list[RoundInfo], run: int) -> bool:
    """Whether a run of a batch has diverged, from the reports of its blocks, leaves [R, T]."""
    own = jax.tree.map(lambda *x: np.concatenate([part[run] for part in x]), *infos)
    return diverged(own, first_loss(own))


def _spread(one: Callable, mesh: jax.sharding.Mesh | None, *, donate: bool = False) -> Any:
    """Compile a function of one run for a batch of them, which the devices share and each takes in turn."""

    def batch(runs: PyTree, states: PyTree, population: Population, turns: jax.Array) -> PyTree:
        return jax.lax.map(lambda each: one(*each[:2], population, each[2]), (runs, states, turns))

    if mesh is not None:
        split, whole = PartitionSpec(AXIS), PartitionSpec()
        # check_vma=False as in the engine: gradients with respect to replicated parameters must not be summed
        batch = jax.shard_map(
            batch, mesh=mesh, in_specs=(split, split, whole, split), out_specs=split, check_vma=False
        )
    return jax.jit(batch, donate_argnums=(1,) if donate else ())
