"""The runs of a batch of trials: dealt to the devices, each in turn, until it ends by its own curve alone."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from fedjax_rec.client.keys import key_of
from fedjax_rec.client.population import Population
from fedjax_rec.engine.devices import AXIS, LEAST_SHARE, choose_devices, client_mesh, replicate
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.training.divergence import diverged, first_loss, lost
from fedjax_rec.training.search_spaces import TrialSettings
from fedjax_rec.types import Algorithm, PyTree, RoundInfo, State

Factory = Callable[..., Algorithm]
Measure = Callable[[dict, Algorithm, State, Population], PyTree]  # compiled, of one run
Curve = list[tuple[int, tuple[float, ...]]]  # (round, metric of each seed), until the trial ends


class Course(NamedTuple):
    """How a trial went."""

    curve: Curve
    by_user: (
        np.ndarray
    )  # float64[N'], the best round's values of single users, mean over seeds; empty without one


class Objective(NamedTuple):
    """How a state is measured: on device as far as possible, the rest on the host."""

    measure: Measure
    values: Callable[[PyTree], np.ndarray]  # float64[N'], of single users, or squared or absolute errors
    total: Callable[[np.ndarray], float]  # the metric: their mean, or its root


class TrialBudget(NamedTuple):
    """What every trial gets.

    Example:
        >>> TrialBudget(rounds=100, eval_every=10, seeds=(0,), patience=None).rounds
        100
    """

    rounds: int
    eval_every: int
    seeds: tuple[int, ...]
    patience: int | None  # rounds


class TrialBatch:
    """The host's side of one batch: runs [R] = trials x seeds, padded so that every device has as many.

    A run stands in a slot, of which every device has a row; runs change slots when others have ended.
    """

    def __init__(
        self,
        factory: Factory,
        traced: tuple[str, ...],
        objective: Objective,
        budget: TrialBudget,
        sign: float,
    ) -> None:
        self.factory = factory
        self.traced = traced  # names of the settings that are arguments of the program
        self.objective = objective
        self.budget = budget
        self.sign = sign  # -1 where less is better

    def run(
        self,
        trials: list[TrialSettings],
        example: Algorithm,
        population: Population,
        on_rounds: Callable[[int], None],
        is_stopped: Callable[[], bool],
    ) -> list[Course]:
        """Train all trials, and return the course of each, as far as it went where they are stopped."""
        rounds = self.budget.rounds
        num_seeds = len(self.budget.seeds)
        num_runs = len(trials) * num_seeds
        block_size = min(self.budget.eval_every, rounds)

        # The runs' arguments [R], and two programs for all of them, split over the devices.
        mesh = None if example.mesh is not None else client_mesh(choose_devices(LEAST_SHARE * num_runs))
        devices = 1 if mesh is None else mesh.size
        runs = self._arguments(trials, devices)
        run_in_slot = np.arange(len(runs[1]))
        start = _compile_batch(self._start, mesh)
        train_block = _compile_batch(partial(self._train_block, block_size), mesh, donate=True)
        population = replicate(population.without_ids(), mesh or example.mesh)
        states = start(runs, None, population, jnp.zeros(len(run_in_slot), jnp.int32))

        infos: list[RoundInfo] = []
        courses = [Course([], np.zeros(0)) for _ in trials]
        for first in range(0, rounds, block_size):
            count = min(block_size, rounds - first)
            going = [not self._has_ended(course.curve) for course in courses]
            if not any(going):
                on_rounds((rounds - first) * num_runs)
                break

            # Runs of trials that have ended train no rounds, and those that go on are shared evenly again.
            active = np.pad(np.repeat(going, num_seeds), (0, len(run_in_slot) - num_runs))
            for one, other in plan_swaps(active[run_in_slot], devices):
                states = _swap_slots(states, one, other)
                run_in_slot[[one, other]] = run_in_slot[[other, one]]
            in_slots = jax.tree.map(lambda x: x[run_in_slot], runs)
            counts = jnp.asarray(count * active[run_in_slot], jnp.int32)
            states, block_infos, measured = train_block(in_slots, states, population, counts)

            # What came of them, in the order of the runs again.
            slot_of_run = np.argsort(run_in_slot)
            block_infos, measured = jax.tree.map(
                lambda x: np.asarray(x)[slot_of_run],  # noqa: B023 - used at once
                (block_infos, measured),
            )
            infos.append(jax.tree.map(lambda x: x[:, :count], block_infos))  # noqa: B023 - used at once
            for trial in np.flatnonzero(going):
                own = range(trial * num_seeds, (trial + 1) * num_seeds)
                values = [self._values(infos, measured, run) for run in own]
                courses[trial] = self._longer(courses[trial], first + count, values)
            on_rounds(count * num_runs)
            if is_stopped():
                break
        return courses

    def _values(self, infos: list[RoundInfo], measured: PyTree, run: int) -> np.ndarray:
        """Of the users of one run; empty once it has diverged, or where one of them is no finite number."""
        if _has_diverged(infos, run):
            return np.zeros(0)
        values = self.objective.values(jax.tree.map(lambda x: x[run], measured))
        return values if np.isfinite(values).all() else np.zeros(0)

    def _longer(self, course: Course, rounds_done: int, values: list[np.ndarray]) -> Course:
        """A course with one more point, whose users' values it keeps if it is the best until now."""
        totals = tuple(self.objective.total(each) if len(each) else math.nan for each in values)
        best = max((self.sign * value for _, value in over_seeds(course.curve)), default=-math.inf)
        better = self.sign * float(np.mean(totals)) > best
        return Course(
            curve=[*course.curve, (rounds_done, totals)],
            by_user=np.mean(values, axis=0)
            if better
            else course.by_user,  # better is finite, and all have as many
        )

    def _has_ended(self, curve: Curve) -> bool:
        """Whether a trial has diverged, or lost patience."""
        if not curve:
            return False
        means = over_seeds(curve)
        rounds_done, value = means[-1]
        if math.isnan(value):
            return True
        best_round, _ = max(means, key=lambda point: self.sign * point[1])  # of equals the first
        return self.budget.patience is not None and rounds_done - best_round >= self.budget.patience

    def _arguments(self, trials: list[TrialSettings], devices: int) -> PyTree:
        """Traced values and keys of all runs, leaves [R, ...]; the last ones repeat the first."""
        runs = [(trial, seed) for trial in trials for seed in self.budget.seeds]
        runs = [runs[run % len(runs)] for run in range(len(runs) + -len(runs) % devices)]
        values = {name: jnp.asarray([trial[name] for trial, _ in runs], jnp.float32) for name in self.traced}
        return values, jnp.stack([key_of(seed) for _, seed in runs])

    def _start(self, run: PyTree, state: None, population: Population, count: jax.Array) -> State:
        del state, count
        values, key = run
        return self.factory(**values).init(key, population)

    def _train_block(
        self, block_size: int, run: PyTree, state: State, population: Population, count: jax.Array
    ) -> tuple[State, RoundInfo, PyTree]:
        """Some rounds of one run, what they report, and the measured state."""
        values, key = run
        algorithm = self.factory(**values)
        state, infos = run_block(algorithm, block_size, key, state, population, count)
        return state, infos, self._measure(values, algorithm, state, population, count > 0)

    def _measure(
        self, values: dict, algorithm: Algorithm, state: State, population: Population, wanted: jax.Array
    ) -> PyTree:
        """What is measured of a state; zeros, at no cost, of a run that has ended."""

        def measure(state: State) -> PyTree:
            return self.objective.measure(values, algorithm, state, population)

        shapes = jax.eval_shape(measure, state)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.cond(wanted, measure, lambda _: zeros, state)


def over_seeds(curve: Curve) -> tuple[tuple[int, float], ...]:
    """The curve of a trial, whose metric is the mean of its seeds.

    Args:
        curve: of the single seeds.

    Returns:
        (round, mean); NaN where a seed has none.

    Example:
        >>> over_seeds([(3, (0.25, 0.75))])
        ((3, 0.5),)
    """
    return tuple((rounds_done, float(np.mean(values))) for rounds_done, values in curve)


def plan_swaps(active: np.ndarray, devices: int) -> list[tuple[int, int]]:
    """Which runs change slots, so that no device has two active ones more than another.

    Args:
        active: bool[R], in which slots runs have not ended; a device has R / devices slots in a row.
        devices: how many.

    Returns:
        pairs of slots, of an active run and of one that has ended.

    Example:
        >>> plan_swaps(np.array([True, True, True, False, False, False]), 2)
        [(2, 3)]
    """
    rows = np.array(active).reshape(devices, -1)
    slots = rows.shape[1]
    swaps: list[tuple[int, int]] = []
    while np.ptp(rows.sum(1)) > 1:
        busiest = rows.sum(1).argmax()
        idlest = rows.sum(1).argmin()
        one = np.flatnonzero(rows[busiest])[-1]
        other = np.flatnonzero(~rows[idlest])[0]
        rows[busiest, one] = False
        rows[idlest, other] = True
        swaps.append((int(busiest * slots + one), int(idlest * slots + other)))
    return swaps


def _swap_slots(states: PyTree, one: int, other: int) -> PyTree:
    """States, leaves [R, ...] split over devices, of which two have changed slots; no other one is moved."""

    def swap(leaf: jax.Array) -> jax.Array:
        by_slot = sorted(leaf.addressable_shards, key=lambda shard: shard.index[0].start)
        shards = [shard.data for shard in by_slot]
        size = len(shards[0])
        values = [shards[slot // size][slot % size] for slot in (one, other)]
        for slot, value in zip((other, one), values, strict=True):
            shard = shards[slot // size]
            shards[slot // size] = _set_slot(shard, slot % size, jax.device_put(value, shard.sharding))
        return jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, shards)

    return jax.tree.map(swap, states)


@partial(jax.jit, donate_argnums=0)
def _set_slot(shard: jax.Array, slot: jax.Array, value: jax.Array) -> jax.Array:
    return shard.at[slot].set(value)


def _has_diverged(infos: list[RoundInfo], run: int) -> bool:
    """Whether a run of a batch has diverged, or lost all rounds: by the reports of its blocks, leaves [R, T]."""
    own = jax.tree.map(lambda *blocks: np.concatenate([block[run] for block in blocks]), *infos)
    return diverged(own, first_loss(own)) or bool(np.asarray(lost(own)).all())


def _compile_batch(function: Callable, mesh: jax.sharding.Mesh | None, *, donate: bool = False) -> Any:
    """Compile a function of one run for a batch of them, which the devices share and each takes in turn."""

    def batch(runs: PyTree, states: PyTree, population: Population, counts: jax.Array) -> PyTree:
        return jax.lax.map(
            lambda each: function(each[0], each[1], population, each[2]), (runs, states, counts)
        )

    if mesh is not None:
        by_slot = PartitionSpec(AXIS)
        replicated = PartitionSpec()
        # check_vma=False as in the engine: gradients with respect to replicated parameters must not be summed
        batch = jax.shard_map(
            batch,
            mesh=mesh,
            in_specs=(by_slot, by_slot, replicated, by_slot),
            out_specs=by_slot,
            check_vma=False,
        )
    return jax.jit(batch, donate_argnums=(1,) if donate else ())
