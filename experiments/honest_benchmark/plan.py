"""Which units there are, in which order, and on what each depends."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.honest_benchmark import units
from experiments.honest_benchmark.centrals import FACTORS, PREFIX, run_central, tune_central
from experiments.honest_benchmark.spaces import (
    LATER,
    REPLACED,
    VARIANTS,
    carried_of,
    defaults_of,
    needs_ratings,
    space_of,
)
from experiments.honest_benchmark.store import Result, Unit, finished, read
from experiments.honest_benchmark.task import Task
from fedjax_rec.algorithms.registry import ENTRIES
from fedjax_rec.evaluation.central import METHOD_NAMES as CENTRALS
from fedjax_rec.evaluation.central.registry import method_settings

SPARES = 2  # further seeds for runs that fail: they take the failed ones' places, which are told
Runs = tuple[str, Callable[..., Result], tuple[int, ...]]  # policy, the work of (seed, tuned, tell), seeds


class Job(NamedTuple):
    """A unit that is still to do."""

    unit: Unit
    recipe: Result
    work: Callable[[units.Tell], Result]


def jobs(
    tasks: list[Task],
    names: tuple[str, ...],
    seeds: tuple[int, ...],
    folder: Path,
    *,
    leaky: bool = True,
    centrals: tuple[str, ...] = CENTRALS,
) -> Iterator[Job]:
    """What is left to do; a job is looked up when its turn comes, for it may need the one before.

    Args:
        tasks: the data sets.
        names: of the variants.
        seeds: of the runs.
        folder: of the results.
        leaky: whether the leaky table is wanted.
        centrals: names of the central baselines.

    Yields:
        the jobs: of each data set what is known of it, then method by method tuning and runs, central ones first.
    """
    for task in tasks:
        unit, recipe = Unit(task.dataset, "reference", ""), _recipe(task)
        if finished(folder, unit, recipe) is None:
            yield Job(unit, recipe, partial(_refer, task))
        for name in centrals:
            yield from _of_method(_central(task, name, seeds, folder), task, folder)
        for name in names:
            if can_run(name, task):
                yield from _of_method(_variant(task, name, seeds, folder, leaky=leaky), task, folder)


def can_run(name: str, task: Task) -> bool:
    """Whether the data has what a variant learns from, and is of the size that it is for.

    Args:
        name: of the variant.
        task: the data.

    Returns:
        False without ratings or timestamps where they are needed, and where a variant is for other sizes.
    """
    if name in (LATER if task.carry is None else REPLACED):
        return False
    timed = task.source.interactions.timestamps is not None
    ordered = ENTRIES[VARIANTS[name].algorithm].needs_order
    return (timed or not ordered) and (task.split.ratings is not None or not needs_ratings(name))


class _Method(NamedTuple):
    """A method on one data set: how it is tuned, and what is then run."""

    name: str  # of its files
    recipe: Result  # of tuning
    tune: Callable[[units.Tell], Result]
    chosen: Callable[[Result], Result]  # the recipe of a run with what tuning found
    runs: Sequence[Runs]


def _of_method(method: _Method, task: Task, folder: Path) -> Iterator[Job]:
    unit = Unit(task.dataset, method.name, "tune")
    if finished(folder, unit, method.recipe) is None:
        yield Job(unit, method.recipe, method.tune)
    tuned = finished(folder, unit, method.recipe)
    if tuned is None:
        return  # it failed, and its failure is written
    recipe = method.chosen(tuned)
    for policy, work, seeds in method.runs:
        for unit in _with_spares(folder, [Unit(task.dataset, method.name, policy, seed) for seed in seeds]):
            if finished(folder, unit, recipe) is None:
                yield Job(unit, recipe, partial(work, unit.seed, tuned))


def _variant(task: Task, name: str, seeds: tuple[int, ...], folder: Path, *, leaky: bool) -> _Method:
    carried = _carried(task, name, folder)
    known = {setting: value for setting, value in defaults_of(name).items() if value is not None}
    recipe = _recipe(
        task,
        budget=task.budget._asdict(),
        variant=VARIANTS[name]._asdict(),
        defaults=known,
        space=space_of(name),
        carried=carried,
    )

    def chosen(tuned: Result) -> Result:
        pace = {key: tuned[key] for key in ("rounds", "eval_every")}
        return _recipe(task, tuned=tuned["best"], defaults=known, patience=task.budget.patience, **pace)

    def run(work: Callable[..., Result], seed: int, tuned: Result, tell: units.Tell) -> Result:
        return work(task, name, seed, tuned, tell)

    runs: list[Runs] = [("clean", partial(run, units.run_clean), seeds)]
    if leaky and not needs_ratings(name):
        runs.append(("paper-leaky", partial(run, units.run_leaky), seeds))
    return _Method(name, recipe, lambda tell: units.tune(task, name, carried, tell), chosen, runs)


def _central(task: Task, name: str, seeds: tuple[int, ...], folder: Path) -> _Method:
    carried = _carried(task, PREFIX + name, folder)
    defaults = method_settings(name, task.split)
    recipe = _recipe(
        task,
        trials=task.budget.trials,
        defaults=defaults,
        factors=FACTORS.get(name, {}),
        carried=carried,
    )
    return _Method(
        PREFIX + name,
        recipe,
        lambda tell: tune_central(task, name, carried, tell),
        lambda tuned: _recipe(task, tuned=tuned["best"], defaults=defaults),
        [("clean", lambda seed, tuned, tell: run_central(task, name, seed, tuned, tell), seeds)],
    )


def _carried(task: Task, name: str, folder: Path) -> list[Result] | None:
    """The best settings of a method's base on the data set from which they are carried over, if found there."""
    found = None if task.carry is None else read(folder, Unit(task.carry, LATER.get(name, name), "tune"))
    if found is None or "failed" in found:
        return None
    return carried_of(found["trials"], task.budget.trials, name)


def _with_spares(folder: Path, asked: list[Unit]) -> Iterator[Unit]:
    """The units, and another seed for each that turns out to have failed by the time the next one is asked for."""
    spares = [unit._replace(seed=unit.seed + more) for unit in asked[-1:] for more in range(1, SPARES + 1)]
    queue = list(asked)
    for unit in queue:  # which grows
        yield unit
        if spares and "failed" in (read(folder, unit) or {}):
            queue.append(spares.pop(0))


def _refer(task: Task, tell: units.Tell) -> Result:
    del tell
    return units.refer(task)


def _recipe(task: Task, **parts: Any) -> Result:
    return {"protocol_id": task.protocol_id} | parts
