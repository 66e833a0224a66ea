"""Tuning on validation, every trial with the same budget: a batch of settings as one compiled program.

A trial is a run with settings of its own. Trials that differ in numbers only (learning rates, penalties, scales)
share one compiled program, to which these numbers are arguments; what changes shapes or code (dim, epochs, loss)
makes a group of its own. The runs of a group are dealt to the devices and take turns on each (`jax.lax.map`):
`jax.vmap` would give the same, but then the loop over clients runs as long as the longest run of the batch and
selects its whole state in every step.

Which numbers a factory lets be traced is found by tracing it. One that does not (because it asks `if rate > 0`,
say) is treated as a shape is: each of its values makes a group, and the batch becomes a loop.

The budget of a trial is its number of rounds: none gets more, and `patience` stops each by its own curve alone, so
that it does not matter what else is tried. Only validation items are looked at, never test items.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.exactness import assume_rest
from fedjax_rec.client.population import Population, check_order, population_of
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.heldout import heldout_events
from fedjax_rec.data.splits import Split
from fedjax_rec.data.splitters import as_split
from fedjax_rec.engine.cohort import rests_between
from fedjax_rec.engine.devices import LEAST_SHARE, choose_devices
from fedjax_rec.engine.plan import device_bytes, state_bytes
from fedjax_rec.errors import check_arguments, suggest_names
from fedjax_rec.evaluation.evaluator import score_stored_leaves, server_parameters
from fedjax_rec.evaluation.metrics import user_metric
from fedjax_rec.evaluation.pair_ranking import PairRanks
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.ranking import MidRanks, count_rivals, make_ranker
from fedjax_rec.training.checkpoints.signals import defer_interrupt
from fedjax_rec.training.search_spaces import TrialSettings, grid
from fedjax_rec.training.trials import Course, Factory, Objective, TrialBatch, TrialBudget, over_seeds
from fedjax_rec.types import KEY_IMPL, Algorithm, Plan, PyTree, State

ERROR_METRICS = ("rmse", "mae")  # of predicted ratings: less is better
STATES_SHARE = 0.1  # of a device's memory, for the states of a batch: for a moment they are held twice
TOTAL_SHARE = 0.8  # of it, states and work together, for as many runs as there are devices
_USERS_AT_ONCE = 256  # rated


class Trial(NamedTuple):
    """One choice of settings and what it reached."""

    settings: TrialSettings
    validation: float  # the metric in the best round, mean over seeds; NaN if no round had one
    round: int  # the best one; 0 if there is none
    seconds: float  # its share of its batch's wall clock, compilation included
    # (round, metric), mean over seeds, as far as it went; NaN where a run has diverged, which ends it
    curve: tuple[tuple[int, float], ...]
    by_seed: tuple[float, ...] = ()  # the metric of each seed in the best round
    # float64[N'], what the metric is the mean of in the best round (squared errors under rmse), mean over seeds
    by_user: np.ndarray | None = None


class Sweep(NamedTuple):
    """All trials, in the order given."""

    trials: tuple[Trial, ...]
    best: Trial
    metric: str
    rounds: int  # budget of each trial and seed
    seeds: tuple[int, ...]
    seconds: float


class SweepInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, ended a sweep after its block of rounds; `result` has what was done.

    Args:
        result: the trials that were finished, then those under way with their curves so far; the best of the
            finished ones, or, where none was, of those under way. None if no trial has reached a metric.

    Example:
        >>> try:
        ...     raise SweepInterrupted(None, 8)
        ... except KeyboardInterrupt as stop:
        ...     print(stop)
        interrupted before any of 8 trials was measured
    """

    def __init__(self, result: Sweep | None, planned: int) -> None:
        super().__init__(result, planned)
        self.result = result

    def __str__(self) -> str:
        result, planned = self.args
        if result is None:
            return f"interrupted before any of {planned} trials was measured"
        return (
            f"interrupted after {len(result.trials)} of {planned} trials, the last ones perhaps in part, and what "
            "was done is kept; in a notebook: import sys; found = sys.last_value.result"
        )


class _Group(NamedTuple):
    """Trials that share a program."""

    members: list[int]  # their numbers
    static: TrialSettings  # the same for all
    traced: tuple[str, ...]  # names of the settings that are arguments of the program


@suggest_names
def sweep(
    factory: Factory,
    split: Split | Frame,
    settings: Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]],
    *,
    rounds: int = 400,
    eval_every: int = 20,
    seeds: Sequence[int] = (0,),
    metric: str = "ndcg@10",
    patience: int | None = None,
    on_trial: Callable[[Trial], Any] | None = None,
    on_block: Callable[[int, int], Any] | None = None,
) -> Sweep:
    """Try settings on validation, all with the same number of rounds.

    Args:
        factory: settings -> algorithm; by the same seed a trial is the run that `simulate` would make.
        split: its validation items are ranked, over the full catalogue, after every block of rounds; a frame or
            data set is divided by `leave_one_out`.
        settings: a grid {name: values}, or the trials themselves, such as `sample_settings` gives them.
        rounds: T of each trial; 1 where all rounds of an algorithm are the same.
        eval_every: rounds between validations.
        seeds: of the runs of each trial; the metric is their mean.
        metric: hr@k, ndcg@k, mrr@k, mrr or auc; of several validation items a user recall@k, precision@k and
            map@k too (`evaluation.metrics.user_metric`); rmse or mae where scores are predicted ratings.
        patience: a trial ends after so many rounds without a better metric; None: it never does.
        on_trial: called with each trial once it is finished.
        on_block: called after each block with the runs' rounds done or done without, and their number over the
            whole sweep.

    Returns:
        the trials, the best of them (of equals the first), and the budget.

    Raises:
        ValueError: if a setting is refused by the factory, a number is out of range, there is nothing to try or to
            validate on, or no trial reached a metric.
        SweepInterrupted: (a KeyboardInterrupt) if SIGINT stopped it; `result` is what was done until then.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(60, 90))
        >>> found = sweep(fr.fedmf, split, {"dim": [4], "learning_rate": [0.05, 1e30]}, rounds=6, eval_every=3)
        >>> found.best.settings
        {'dim': 4, 'learning_rate': 0.05}
    """
    check_arguments(sweep, locals())
    split = as_split(split, "sweep")
    start_time = time.perf_counter()
    trials = grid(settings) if isinstance(settings, Mapping) else [dict(each) for each in settings]
    _check(trials, split, {"rounds": rounds, "eval_every": eval_every, "patience": patience}, seeds)
    make_objective = _objective_of(metric, split)
    sign = -1.0 if metric in ERROR_METRICS else 1.0
    algorithms = [factory(**each) for each in trials]  # refuses bad settings before anything runs
    _check_predicts_ratings(metric, algorithms)
    population = population_of(split)
    for algorithm in algorithms:
        check_order(algorithm, population)
    if all(algorithm.repeats for algorithm in algorithms):
        rounds = eval_every = 1  # all rounds are the same
    budget = TrialBudget(rounds, eval_every, tuple(seeds), patience)
    on_rounds = _count_rounds(on_block, len(trials) * len(seeds) * rounds)
    finished: dict[int, Trial] = {}

    def result(table: Sequence[Trial], best: Trial) -> Sweep:
        seconds = time.perf_counter() - start_time
        return Sweep(tuple(table), best, metric, rounds, tuple(seeds), seconds)

    with defer_interrupt() as request:
        for group in _group_trials(factory, algorithms, trials, population):
            make = partial(factory, **group.static)
            for members in _batches(group, algorithms, population, len(seeds)):
                tick = time.perf_counter()
                objective = make_objective(factory, group.static)
                batch = TrialBatch(make, group.traced, objective, budget, sign)
                with assume_rest(all(_rests(algorithms[number], population) for number in members)):
                    own = [trials[number] for number in members]
                    example = algorithms[members[0]]
                    courses = batch.run(own, example, population, on_rounds, lambda: bool(request.signal))
                seconds = (time.perf_counter() - tick) / len(members)
                found = [
                    _trial(settings, course, sign, seconds)
                    for settings, course in zip(own, courses, strict=True)
                ]
                if request.signal:
                    done = list(finished.values())
                    measured = [trial for trial in found if trial.round]
                    ranked = [trial for trial in done if trial.round] or measured
                    kept = result([*done, *measured], best_trial(ranked, sign)) if ranked else None
                    raise SweepInterrupted(kept, len(trials))
                for number, trial in zip(members, found, strict=True):
                    finished[number] = trial
                    if on_trial is not None:
                        on_trial(trial)
    table = tuple(finished[number] for number in range(len(trials)))
    return result(table, best_trial(table, sign))


def _check(
    trials: list[TrialSettings], split: Split, counts: dict[str, int | None], seeds: Sequence[int]
) -> None:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not trials or not seeds:
        raise ValueError(f"{len(trials)} trials of {len(seeds)} seeds: give one or more of each")
    if not (split.validation >= 0).any():
        raise ValueError(f"{split.name} has no validation items, and a sweep looks at nothing else")


def _check_predicts_ratings(metric: str, algorithms: list[Algorithm]) -> None:
    if metric in ERROR_METRICS and not all(algorithm.model.predicts_ratings for algorithm in algorithms):
        raise ValueError(
            f"{metric} needs scores that are predicted ratings; choose ndcg@10 or another ranking"
        )


def _count_rounds(on_block: Callable[[int, int], Any] | None, total: int) -> Callable[[int], None]:
    """A callback that adds up the runs' rounds, and hands them on."""
    rounds_done = 0

    def on_rounds(count: int) -> None:
        nonlocal rounds_done
        rounds_done += count
        if on_block is not None:
            on_block(rounds_done, total)

    return on_rounds


def best_trial(table: Sequence[Trial], sign: float = 1.0) -> Trial:
    """The trial with the best validation.

    Args:
        table: of trials.
        sign: 1 where a higher metric is better, -1 where a lower one is.

    Returns:
        the trial, of equal ones the first.

    Raises:
        ValueError: if none was measured.

    Example:
        >>> best_trial([Trial({}, 0.1, 20, 1.0, ()), Trial({}, math.nan, 0, 1.0, ())]).validation
        0.1
    """
    known = [trial for trial in table if trial.round]
    if not known:
        raise ValueError(
            f"all {len(table)} trials diverged before their first validation; try lower learning rates"
        )
    return max(known, key=lambda trial: sign * trial.validation)


def _trial(settings: TrialSettings, course: Course, sign: float, seconds: float) -> Trial:
    means = over_seeds(course.curve)
    known = [(rounds_done, value) for rounds_done, value in means if not math.isnan(value)]
    best_round, value = max(known, key=lambda point: sign * point[1], default=(0, math.nan))
    by_seed = dict(course.curve).get(best_round, ())
    return Trial(settings, value, best_round, seconds, means, by_seed, course.by_user)


# --- Objectives ----------------------------------------------------------------------------------------------


def _objective_of(metric: str, split: Split) -> Callable[[Factory, TrialSettings], Objective]:
    """(factory, its static settings) -> how its states are measured."""
    if metric in ERROR_METRICS:
        if split.validation_ratings is None:
            raise ValueError(f"{metric} compares ratings, but {split.name} has none; choose ndcg@10")
        return lambda *_: _error_objective(metric, split)
    Protocol(selection=metric)  # refuses what is no metric
    return partial(_ranking_objective, metric, split)


def _ranking_objective(metric: str, split: Split, factory: Factory, static: TrialSettings) -> Objective:
    def score(params: PyTree, users: jax.Array) -> jax.Array:
        values, prepared = params
        return score_stored_leaves(factory(**static, **values)).score(prepared, users)

    rank = make_ranker(split, score, which="validation")  # made once: its lay-out is no part of the trace
    rivals = count_rivals(split, which="validation").full

    def measure(values: dict, algorithm: Algorithm, state: State, population: Population) -> PyTree:
        return rank((values, server_parameters(algorithm, population).prepare(state))).full

    def values(ranks: MidRanks | PairRanks) -> np.ndarray:
        found = user_metric(ranks, metric, rivals=rivals)
        return found[~np.isnan(found)]

    return Objective(measure, values, lambda found: float(found.mean()))


def _error_objective(metric: str, split: Split) -> Objective:
    held = heldout_events(split, "validation")
    ratings = held.ratings
    assert ratings is not None  # noqa: S101 - `_objective_of` has looked; this tells the type checker

    def measure(values: dict, algorithm: Algorithm, state: State, population: Population) -> PyTree:
        del values
        point = server_parameters(algorithm, population)
        prepared = point.prepare(state)

        def predict(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
            user, item = pair
            return point.score(prepared, user[None])[0, item]

        pairs = jnp.asarray(held.owners, jnp.int32), jnp.asarray(held.items)
        return jax.lax.map(predict, pairs, batch_size=_USERS_AT_ONCE)

    def values(predictions: PyTree) -> np.ndarray:
        errors = (np.asarray(predictions, float) - ratings)[~np.isnan(ratings)]
        return errors**2 if metric == "rmse" else np.abs(errors)

    return Objective(measure, values, lambda found: float(found.mean() ** (0.5 if metric == "rmse" else 1.0)))


# --- Grouping ------------------------------------------------------------------------------------------------


def _group_trials(
    factory: Factory, algorithms: list[Algorithm], trials: list[TrialSettings], population: Population
) -> list[_Group]:
    """Put together what one program can serve."""
    groups: list[_Group] = []
    grouped: set[int] = set()
    for number, settings in enumerate(trials):
        if number in grouped:
            continue
        candidates = [n for n in range(number, len(trials)) if _differ_in_floats_only(settings, trials[n])]
        varied = _varied_names([trials[n] for n in candidates])
        if algorithms[number].mesh is not None:
            varied = ()  # its devices are for clients; there are none left for trials
        traced = _traceable_names(factory, settings, varied, population)
        static = {name: value for name, value in settings.items() if name not in traced}
        members = [
            n
            for n in candidates
            if n not in grouped and all(_is_same(trials[n][name], static[name]) for name in static)
        ]
        grouped.update(members)
        groups.append(_Group(members, static, traced))
    return groups


def _differ_in_floats_only(one: TrialSettings, other: TrialSettings) -> bool:
    return one.keys() == other.keys() and all(
        _is_same(one[name], other[name]) or (isinstance(one[name], float) and isinstance(other[name], float))
        for name in one
    )


def _is_same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _varied_names(trials: list[TrialSettings]) -> tuple[str, ...]:
    first = trials[0]
    return tuple(name for name in first if any(not _is_same(first[name], each[name]) for each in trials))


def _traceable_names(
    factory: Factory, settings: TrialSettings, names: tuple[str, ...], population: Population
) -> tuple[str, ...]:
    """Those of the names whose values may be arguments of a compiled program."""
    if _can_trace(factory, settings, names, population):
        return names
    traceable: tuple[str, ...] = ()
    for name in names:
        if _can_trace(factory, settings, (*traceable, name), population):
            traceable = (*traceable, name)
    return traceable


def _can_trace(
    factory: Factory, settings: TrialSettings, names: tuple[str, ...], population: Population
) -> bool:
    if not names:
        return True
    static = {name: value for name, value in settings.items() if name not in names}

    def one_round(values: TrialSettings, population: Population) -> State:
        algorithm = factory(**static, **values)
        key = jax.random.key(0, impl=KEY_IMPL)
        state, _ = algorithm.round(key, algorithm.init(key, population), population)
        return state._replace(private=server_parameters(algorithm, population).prepare(state))

    try:
        jax.eval_shape(one_round, {name: jnp.float32(settings[name]) for name in names}, population)
    except (TypeError, ValueError, AttributeError):
        return False  # code that needs a number says so; jax's errors are among these
    return True


def _batches(
    group: _Group, algorithms: list[Algorithm], population: Population, num_seeds: int
) -> list[list[int]]:
    """As many trials at once as memory holds, in batches of equal length."""
    plan = algorithms[group.members[0]].plan(population)
    available = device_bytes(plan.devices)
    by_states = int(STATES_SHARE * available / max(num_seeds * state_bytes(plan), 1))
    most = max(1, by_states, _trials_side_by_side(plan, num_seeds, available))
    num_batches = -(-len(group.members) // most)
    size = -(-len(group.members) // num_batches)
    return [group.members[start : start + size] for start in range(0, len(group.members), size)]


def _trials_side_by_side(plan: Plan, num_seeds: int, available: int) -> int:
    """Trials whose runs are one for each device, as far as memory holds their states twice, and their work."""
    if plan.devices > 1:
        return 0
    state = state_bytes(plan)
    work = sum(plan.num_bytes.values()) - state
    devices = choose_devices(LEAST_SHARE * len(jax.devices()))
    fits = [runs for runs in range(1, devices + 1) if runs * (2 * state + work) <= TOTAL_SHARE * available]
    return max(fits, default=0) // num_seeds


def _rests(algorithm: Algorithm, population: Population) -> bool:
    """Whether a zero gradient leaves rows alone with these settings, which can only be tried untraced."""
    if algorithm.work.zero_gradient is None:
        return False
    state = jax.eval_shape(lambda key: algorithm.init(key, population), jax.random.key(0, impl=KEY_IMPL))
    return rests_between(algorithm.work, population, state.server, state.private)
