"""Central methods, tuned as the federated ones are: as many trials on validation, a refit, as many seeds.

What is searched are *factors* of a method's defaults, which depend on the size of the data: so they carry over
from one data set to another. Widths stay, as those of federated methods do.
"""

from typing import Any

import fedjax_rec as fr
from experiments.honest_benchmark.spaces import trials_near
from experiments.honest_benchmark.store import Result
from experiments.honest_benchmark.task import Task
from experiments.honest_benchmark.units import Tell, best_first, facts
from fedjax_rec.evaluation.central import try_baseline
from fedjax_rec.evaluation.central.registry import method_settings
from fedjax_rec.evaluation.summary import name_sampled, user_intervals

PREFIX = "central-"  # of their names in the store
FACTORS: dict[str, dict[str, tuple[float, float]]] = {
    "itemknn": {"neighbours": (0.2, 5.0), "shrink": (0.1, 10.0)},
    "ease": {"regularisation": (0.1, 10.0)},
    "ials": {"epochs": (0.5, 4.0), "regularisation": (0.1, 10.0), "unobserved": (0.1, 3.0)},
    "mf": {"epochs": (0.5, 3.0), "learning_rate": (0.2, 2.0), "regularisation": (0.1, 10.0)},
}


def space_of_central(method: str) -> dict[str, Any]:
    """What is searched of a central method.

    Args:
        method: its name.

    Returns:
        range of factors by setting; empty if it has nothing to tune.
    """
    return {name: fr.training.log_uniform(*limits) for name, limits in FACTORS.get(method, {}).items()}


def factors_to_try(method: str, count: int, carried: list[Result] | None = None) -> list[Result]:
    """The defaults, then draws; or what another data set's search found best, then draws near it.

    Args:
        method: name of a central method.
        count: how many; a method with nothing to tune has one trial.
        carried: factors, best first.

    Returns:
        the trials, factors by setting.
    """
    space = space_of_central(method)
    if not space:
        return [{}]
    if carried:
        return trials_near(carried, count)
    return [dict.fromkeys(space, 1.0), *fr.training.sample_settings(space, count - 1)]


def scaled(method: str, task: Task, factors: Result) -> Result:
    """The settings that factors of the defaults make on this data.

    Args:
        method: name of a central method.
        task: the data, of which the defaults may depend.
        factors: by setting.

    Returns:
        changes of the defaults; whole numbers stay whole, and 1 or more.
    """
    known = method_settings(method, task.split)
    found = {}
    for name, factor in factors.items():
        value = known[name] * factor
        found[name] = max(1, round(value)) if isinstance(known[name], int) else float(f"{value:.4g}")
    return found


def tune_central(task: Task, method: str, carried: list[Result] | None, tell: Tell) -> Result:
    """Choose settings on validation.

    Args:
        task: the data and the budget.
        method: name of a central method.
        carried: the best factors of another data set, if those are tried first.
        tell: called after each trial.

    Returns:
        the trials, best first, with their factors as "settings" and what these make as "values", and the best one.
    """
    factors = factors_to_try(method, task.budget.trials, carried)
    settings = [scaled(method, task, one) for one in factors]
    found = try_baseline(task.split, method, settings, on_trial=tell)
    table: list[Result] = [
        {"settings": one, "values": values, "validation": trial.validation}
        for one, values, trial in zip(factors, settings, found, strict=True)
    ]
    table = best_first(table)
    return {"trials": table, "best": table[0]} | facts(task)


def run_central(task: Task, method: str, seed: int, tuned: Result, tell: Tell) -> Result:
    """Fit on train + validation with the chosen settings, and test.

    Args:
        task: the data.
        method: name of a central method.
        seed: of the fit.
        tuned: what tuning chose.
        tell: called at the end.

    Returns:
        metrics, intervals and settings.
    """
    settings = method_settings(method, task.split, tuned["best"]["values"])
    found = fr.evaluation.run_baselines(
        task.split, names=[method], seed=seed, refit=True, settings={method: settings}
    )
    tell(1, 1)
    one, merged = found[method], fr.data.merge_validation(task.split)
    return {
        "metrics": one.metrics,
        "intervals": user_intervals(one.ranks, name_sampled(merged)),
        "settings": one.settings,
    } | facts(task)
