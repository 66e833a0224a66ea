"""Which units there are, in which order, and on what each depends."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from experiments.honest_benchmark import units
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
from fedjax_rec.evaluation.central import NAMES as CENTRALS

LEAKY_SEEDS = {"ml-1m-loo": 1}  # of three: the leak is larger than any spread
SPARES = 2  # further seeds for runs that fail: they take the failed ones' places, which are told


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
        the jobs: of each data set the central baselines, then variant by variant tuning and runs.
    """
    for task in tasks:
        unit, recipe = Unit(task.dataset, "central", ""), _recipe(task, methods=list(centrals))
        if finished(folder, unit, recipe) is None:
            yield Job(unit, recipe, partial(_central, task, centrals))
        for name in names:
            if can_run(name, task):
                yield from _of_variant(task, name, seeds, folder, leaky=leaky)


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
    ordered = ENTRIES[VARIANTS[name].algorithm].ordered
    return (timed or not ordered) and (task.split.ratings is not None or not needs_ratings(name))


def _of_variant(task: Task, name: str, seeds: tuple[int, ...], folder: Path, *, leaky: bool) -> Iterator[Job]:
    carried = None
    if task.carry is not None:
        carried = read(folder, Unit(task.carry, LATER.get(name, name), "tune"))
        carried = None if carried is None or "failed" in carried else carried
    known = {setting: value for setting, value in defaults_of(name).items() if value is not None}
    recipe = _recipe(
        task,
        budget=task.budget._asdict(),
        variant=VARIANTS[name]._asdict(),
        defaults=known,
        space=space_of(name),
        carried=None if carried is None else carried_of(carried["trials"], task.budget.trials),
    )
    unit = Unit(task.dataset, name, "tune")
    if finished(folder, unit, recipe) is None:
        yield Job(unit, recipe, partial(_tune, task, name, carried))
    tuned = finished(folder, unit, recipe)
    if tuned is None:
        return  # it failed, and its failure is written
    policies: list[tuple[str, Any, tuple[int, ...]]] = [("clean", units.run_clean, seeds)]
    if leaky and not needs_ratings(name):
        policies.append(("paper-leaky", units.run_leaky, seeds[: LEAKY_SEEDS.get(task.dataset, len(seeds))]))
    chosen = _of_run(task, tuned, known)
    for policy, work, some in policies:
        for unit in _with_spares(folder, [Unit(task.dataset, name, policy, seed) for seed in some]):
            if finished(folder, unit, chosen) is None:
                yield Job(unit, chosen, partial(_run, work, task, name, unit.seed, tuned))


def _with_spares(folder: Path, asked: list[Unit]) -> Iterator[Unit]:
    """The units, and another seed for each that turns out to have failed by the time the next one is asked for."""
    spares = [unit._replace(seed=unit.seed + more) for unit in asked[-1:] for more in range(1, SPARES + 1)]
    queue = list(asked)
    for unit in queue:  # which grows
        yield unit
        if spares and "failed" in (read(folder, unit) or {}):
            queue.append(spares.pop(0))


def _of_run(task: Task, tuned: Result, known: Result) -> Result:
    pace = {name: tuned[name] for name in ("rounds", "eval_every")}
    return _recipe(task, tuned=tuned["best"], defaults=known, patience=task.budget.patience, **pace)


def _tune(task: Task, name: str, carried: Result | None, tell: units.Tell) -> Result:
    return units.tune(task, name, carried, tell)


def _central(task: Task, centrals: tuple[str, ...], tell: units.Tell) -> Result:
    del tell
    return units.run_central(task, centrals)


def _run(work: Any, task: Task, name: str, seed: int, tuned: Result, tell: units.Tell) -> Result:
    return work(task, name, seed, tuned, tell)


def _recipe(task: Task, **parts: Any) -> Result:
    return {"protocol_id": task.protocol_id} | parts
