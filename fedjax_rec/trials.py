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
        runs = self._runs(trials, 1 if mesh is None else mesh.size)
        start, block = _spread(self._start, mesh), _spread(partial(self._block, size), mesh, donate=True)
        population = replicate(population, mesh or example.mesh)
        nothing = jnp.zeros(len(runs[1]), jnp.int32)
        states, infos = start(runs, None, population, nothing), []
        curves: list[list[tuple[int, float]]] = [[] for _ in trials]
        for first in range(0, rounds, size):
            turns, going = min(size, rounds - first), [not self._ended(curve) for curve in curves]
            if not any(going):
                tell((rounds - first) * count)
                break
            each = np.resize(turns * np.repeat(going, len(seeds)), len(runs[1]))  # an ended run has no turns
            states, done, found = block(runs, states, population, jnp.asarray(each, jnp.int32))
            done, found = jax.tree.map(np.asarray, (done, found))
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
