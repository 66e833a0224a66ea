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

from fedjax_rec.data.splits import Split
from fedjax_rec.devices import LEAST_SHARE, choose_devices
from fedjax_rec.engine import rests_between
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.ranking import Places, count_rivals, make_ranker
from fedjax_rec.evaluation.ratings import rating_errors
from fedjax_rec.exactness import assume_rest
from fedjax_rec.plan import device_bytes, state_bytes
from fedjax_rec.population import Population, population_of
from fedjax_rec.spaces import Settings, grid
from fedjax_rec.trials import Budget, Factory, Judge, Runs
from fedjax_rec.types import Algorithm, Plan, PyTree, State

ERRORS = ("rmse", "mae")  # metrics of predicted ratings: less is better
SHARE = 0.1  # of a device's memory that the models of a batch may take: they are held twice for a moment
BESIDE = 0.8  # of it, models and work together, for as many runs as there are devices
_USERS = 256  # rated at once


class Trial(NamedTuple):
    """One choice of settings and what it reached."""

    settings: Settings
    validation: float  # the metric in the best round, mean over seeds; NaN if no round had one
    round: int  # the best one; 0 if there is none
    seconds: float  # its share of its batch's wall clock, compilation included
    # (round, metric), mean over seeds, as far as it went; NaN where a run has diverged, which ends it
    curve: tuple[tuple[int, float], ...]


class Sweep(NamedTuple):
    """All trials, in the order given."""

    trials: tuple[Trial, ...]
    best: Trial
    metric: str
    rounds: int  # budget of each trial and seed
    seeds: tuple[int, ...]
    seconds: float


class _Group(NamedTuple):
    """Trials that share a program."""

    members: list[int]  # their numbers
    static: Settings
    traced: tuple[str, ...]


def sweep(
    factory: Factory,
    split: Split,
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
        split: its validation items are ranked, over the full catalogue, after every block of rounds.
        settings: a grid {name: values}, or the trials themselves, such as `draws` gives them.
        rounds: T of each trial.
        eval_every: rounds between validations.
        seeds: of the runs of each trial; the metric is their mean.
        metric: hr@k, ndcg@k, mrr@k, mrr or auc; rmse or mae where scores are predicted ratings.
        patience: a trial ends after so many rounds without a better metric; None: it never does.
        on_trial: called with each trial once it is finished.
        on_block: called after each block with the runs' rounds done or done without, and their number over the
            whole sweep.

    Returns:
        the trials, the best of them (of equals the first), and the budget.

    Raises:
        ValueError: if a setting is refused by the factory, a number is out of range, there is nothing to try or to
            validate on, or no trial reached a metric.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.synthetic(60, 90))
        >>> found = sweep(fr.fedmf, split, {"dim": [4], "learning_rate": [0.05, 1e30]}, rounds=6, eval_every=3)
        >>> found.best.settings
        {'dim': 4, 'learning_rate': 0.05}
    """
    began = time.perf_counter()
    trials = grid(settings) if isinstance(settings, Mapping) else [dict(each) for each in settings]
    _check(trials, split, {"rounds": rounds, "eval_every": eval_every, "patience": patience}, seeds)
    judge, sign = _judge(metric, split), -1.0 if metric in ERRORS else 1.0
    algorithms = [factory(**each) for each in trials]  # refuses bad settings before anything runs
    _check_rates(metric, algorithms)
    population, budget = population_of(split), Budget(rounds, eval_every, tuple(seeds), patience)
    tell = _teller(on_block, len(trials) * len(seeds) * rounds)
    found: dict[int, Trial] = {}
    for group in _group(factory, algorithms, trials, population):
        for members in _chunks(group, algorithms, population, len(seeds)):
            tick = time.perf_counter()
            run = Runs(
                partial(factory, **group.static), group.traced, judge(factory, group.static), budget, sign
            )
            with assume_rest(all(_rests(algorithms[number], population) for number in members)):
                curves = run.go([trials[n] for n in members], algorithms[members[0]], population, tell)
            seconds = (time.perf_counter() - tick) / len(members)
            for number, curve in zip(members, curves, strict=True):
                found[number] = _trial(trials[number], curve, sign, seconds)
                if on_trial is not None:
                    on_trial(found[number])
    table = tuple(found[number] for number in range(len(trials)))
    return Sweep(table, _best(table, sign), metric, rounds, tuple(seeds), time.perf_counter() - began)


def _check(trials: list[Settings], split: Split, counts: dict[str, int | None], seeds: Sequence[int]) -> None:
    for name, value in counts.items():
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"{name} must be at least 1, not {value}")
    if not trials or not seeds:
        raise ValueError(f"{len(trials)} trials of {len(seeds)} seeds: give one or more of each")
    if not (split.validation >= 0).any():
        raise ValueError(f"{split.name} has no validation items, and a sweep looks at nothing else")


def _check_rates(metric: str, algorithms: list[Algorithm]) -> None:
    if metric in ERRORS and not all(algorithm.model.rates for algorithm in algorithms):
        raise ValueError(
            f"{metric} needs scores that are predicted ratings; choose ndcg@10 or another ranking"
        )


def _teller(on_block: Callable[[int, int], Any] | None, budget: int) -> Callable[[int], None]:
    """Adds up the rounds done, and tells of them."""
    done = 0

    def tell(count: int) -> None:
        nonlocal done
        done += count
        if on_block is not None:
            on_block(done, budget)

    return tell


def _best(table: tuple[Trial, ...], sign: float) -> Trial:
    known = [trial for trial in table if trial.round]
    if not known:
        raise ValueError(
            f"all {len(table)} trials diverged before their first validation; try lower learning rates"
        )
    return max(known, key=lambda trial: sign * trial.validation)


def _trial(settings: Settings, curve: list[tuple[int, float]], sign: float, seconds: float) -> Trial:
    known = [(done, value) for done, value in curve if not math.isnan(value)]
    done, value = max(known, key=lambda point: sign * point[1], default=(0, math.nan))
    return Trial(settings, value, done, seconds, tuple(curve))


# --- Judging -------------------------------------------------------------------------------------------------


def _judge(metric: str, split: Split) -> Callable[[Factory, Settings], Judge]:
    """(factory, its static settings) -> how its states are measured."""
    if metric in ERRORS:
        if split.validation_ratings is None:
            raise ValueError(f"{metric} compares ratings, but {split.name} has none; choose ndcg@10")
        return lambda *_: _error_judge(metric, split)
    Protocol(selection=metric)  # refuses what is no metric
    return partial(_rank_judge, metric, split)


def _rank_judge(metric: str, split: Split, factory: Factory, static: Settings) -> Judge:
    def score(params: PyTree, users: jax.Array) -> jax.Array:
        values, prepared = params
        return server_parameters(factory(**static, **values)).score(prepared, users)

    rank = make_ranker(split, score, which="validation")  # made once: its lay-out is no part of the trace
    rivals = count_rivals(split, which="validation").full
    cutoffs = [int(metric.partition("@")[2])] if "@" in metric else []

    def measure(values: dict, algorithm: Algorithm, state: State, population: Population) -> PyTree:
        return rank((values, server_parameters(algorithm, population).prepare(state))).full

    def value(places: Places) -> float:
        return metrics_from_ranks(places, cutoffs, rivals=rivals)[metric]

    return Judge(measure, value)


def _error_judge(metric: str, split: Split) -> Judge:
    ratings, items = split.validation_ratings, np.maximum(split.validation, 0)
    assert ratings is not None  # noqa: S101 - `_judge` has looked; this tells the type checker

    def measure(values: dict, algorithm: Algorithm, state: State, population: Population) -> PyTree:
        del values
        point, held = server_parameters(algorithm, population), jnp.asarray(items)
        prepared = point.prepare(state)
        users = jnp.arange(len(items))
        return jax.lax.map(lambda u: point.score(prepared, u[None])[0, held[u]], users, batch_size=_USERS)

    return Judge(measure, lambda predictions: rating_errors(np.asarray(predictions), ratings)[metric])


# --- Grouping ------------------------------------------------------------------------------------------------


def _group(
    factory: Factory, algorithms: list[Algorithm], trials: list[Settings], population: Population
) -> list[_Group]:
    """Put together what one program can serve."""
    groups: list[_Group] = []
    for number in range(len(trials)):
        if any(number in group.members for group in groups):
            continue
        alike = [n for n in range(number, len(trials)) if _alike(trials[number], trials[n])]
        varied = _varied([trials[n] for n in alike])
        if algorithms[number].mesh is not None:
            varied = ()  # its devices are for clients; there are none left for trials
        traced = _traceable(factory, trials[number], varied, population)
        fixed = {name: value for name, value in trials[number].items() if name not in traced}
        members = [n for n in alike if all(_same(trials[n][name], fixed[name]) for name in fixed)]
        members = [n for n in members if not any(n in group.members for group in groups)]
        groups.append(_Group(members, fixed, traced))
    return groups


def _alike(one: Settings, other: Settings) -> bool:
    """Whether two trials differ in floats only."""
    return one.keys() == other.keys() and all(
        _same(one[name], other[name]) or (isinstance(one[name], float) and isinstance(other[name], float))
        for name in one
    )


def _same(one: Any, other: Any) -> bool:
    return one is other or (type(one) is type(other) and bool(one == other))


def _varied(trials: list[Settings]) -> tuple[str, ...]:
    return tuple(name for name in trials[0] if any(not _same(trials[0][name], t[name]) for t in trials))


def _traceable(
    factory: Factory, settings: Settings, names: tuple[str, ...], population: Population
) -> tuple[str, ...]:
    """Those of the names whose values may be arguments of a compiled program."""
    if _traces(factory, settings, names, population):
        return names
    kept: tuple[str, ...] = ()
    for name in names:
        if _traces(factory, settings, (*kept, name), population):
            kept = (*kept, name)
    return kept


def _traces(factory: Factory, settings: Settings, names: tuple[str, ...], population: Population) -> bool:
    if not names:
        return True
    static = {name: value for name, value in settings.items() if name not in names}

    def one_round(values: Settings, population: Population) -> State:
        algorithm, key = factory(**static, **values), jax.random.key(0)
        state, _ = algorithm.round(key, algorithm.init(key, population), population)
        return state._replace(private=server_parameters(algorithm, population).prepare(state))

    try:
        jax.eval_shape(one_round, {name: jnp.float32(settings[name]) for name in names}, population)
    except (
        TypeError,
        ValueError,
        AttributeError,
    ):  # what code says that needs a number; jax's errors are among them
        return False
    return True


def _chunks(
    group: _Group, algorithms: list[Algorithm], population: Population, seeds: int
) -> list[list[int]]:
    """As many trials at once as memory holds, in parts of equal length."""
    plan = algorithms[group.members[0]].plan(population)
    room = device_bytes(plan.devices)
    most = max(1, int(SHARE * room / max(seeds * state_bytes(plan), 1)), _side_by_side(plan, seeds, room))
    parts = -(-len(group.members) // most)
    size = -(-len(group.members) // parts)
    return [group.members[start : start + size] for start in range(0, len(group.members), size)]


def _side_by_side(plan: Plan, seeds: int, room: int) -> int:
    """Trials whose runs are one for each device, as far as memory holds their states twice, and their work."""
    state, devices = state_bytes(plan), choose_devices(LEAST_SHARE * len(jax.devices()))
    work = sum(plan.memory.values()) - state
    fits = [runs for runs in range(1, devices + 1) if runs * (2 * state + work) <= BESIDE * room]
    return max(fits, default=0) // seeds if plan.devices == 1 else 0


def _rests(algorithm: Algorithm, population: Population) -> bool:
    """Whether a zero gradient leaves rows alone with these settings, which can only be tried untraced."""
    if algorithm.work.rests is None:
        return False
    state = jax.eval_shape(lambda key: algorithm.init(key, population), jax.random.key(0))
    return rests_between(algorithm.work, population, state.server, state.private)
