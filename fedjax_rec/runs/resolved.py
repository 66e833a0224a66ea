"""What a run was made of in the end: its settings, with all that was chosen where nobody said anything."""

import contextlib
import dataclasses
import inspect
from typing import Any

from fedjax_rec.algorithms.registry import accepted, factory_of
from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.runs.availability import FAULTS, FEDBUFF, devices_of
from fedjax_rec.runs.inputs import fold_in_epochs_of, shares_of
from fedjax_rec.runs.settings import FAIR, Settings, complete
from fedjax_rec.server.optimizers import SERVERS
from fedjax_rec.types import Mechanism, Plan

_OWN_AGGREGATOR = {  # of algorithms that have no name of `aggregators.NAMES` for theirs
    "fednova": "sum of what each local step moves, times the mean number of steps",
    "fedrecon": "mean weighted by query examples",
    "gpfedrec": "every client's own change",
    "scaffold": "mean, with what corrects the clients' drift",
}
_OWN_SERVER = {  # of algorithms whose server has a rule of its own
    "colr": "adds the product of the basis and the sum",
    "fcf": "adam(0.01, b1=0.4, b2=0.99) on the summed objective",
    "fedals": "solves the summed equations",
    "fedease": "inverts the sum",
    "fedrap": "takes the mean for the table",
    "fedrec": "a step of each row's mean gradient",
    "gpfedrec": "the mean of the clients' neighbourhoods",
}


def resolve(settings: Settings, plan: Plan, num_clients: int) -> Settings:
    """Fill in what a run has chosen by itself, so that the settings alone say what was computed.

    None stays where no setting has a name for it: `rules_of` then says in words what ran.

    Args:
        settings: of the run.
        plan: the engine's choices.
        num_clients: N.

    Returns:
        settings that make the same run.

    Example:
        >>> found = resolve(Settings(dim=8), Plan(200, 2, 50, "lanes", "scatter", {}), 1000)
        >>> found.cohort, found.server_optimizer, found.server_learning_rate, found.sampler
        (200, 'fedavg', 1.0, 'uniform')
    """
    settings = complete(settings)
    for name, value in _choices(settings, plan, num_clients).items():
        if getattr(settings, name) is None and value is not None:
            with contextlib.suppress(ValueError):  # it does not go with what was asked for, which then holds
                settings = complete(dataclasses.replace(settings, **{name: value}))
    return settings


def rules_of(settings: Settings, mechanism: Mechanism | None) -> dict[str, str]:
    """How a run's rounds were drawn, summed and stepped, in words, whether or not a setting has a name for it.

    Args:
        settings: of the run, resolved.
        mechanism: of the algorithm that ran.

    Returns:
        by part of a round: `sampler`, `aggregator` and `server_optimizer`.

    Example:
        >>> rules = rules_of(Settings(algorithm="fedrecon"), None)
        >>> rules["aggregator"], rules["server_optimizer"]
        ('mean weighted by query examples', 'fedavg(1.0)')
    """
    sampler = None if mechanism is None else mechanism.sampler
    noise = None if mechanism is None else mechanism.noise
    own = _OWN_AGGREGATOR.get(settings.algorithm, "sum")
    if settings.own_options().get("denoise"):
        own = "mean without virtual gradients"
    aggregator = _aggregator(settings) if settings.aggregator is None else settings.aggregator
    if noise is not None:
        aggregator = f"(sum + normal(0, ({noise.multiplier:g} x {noise.norm:g})^2)) / {noise.expected:g}"
    rule = SERVERS[settings.server_optimizer or "fedavg"]
    rate = rule.learning_rate if settings.server_learning_rate is None else settings.server_learning_rate
    server = None if settings.server_optimizer is None else f"{settings.server_optimizer}({rate})"
    return {
        "sampler": "whoever arrives" if sampler is None else repr(sampler),
        "aggregator": aggregator or own,
        "server_optimizer": server or _OWN_SERVER.get(settings.algorithm, f"fedavg({rate})"),
    }


def _choices(settings: Settings, plan: Plan, num_clients: int) -> dict[str, Any]:
    """By setting, in the order in which they may be filled in."""
    known = accepted(settings.algorithm)
    faults, asynchronous = devices_of(vars(settings))
    choices: dict[str, Any] = {
        "lanes": plan.lanes,
        "devices": plan.devices,
        "stream_clients": plan.stream_clients or 0,
        "row_update": plan.row_update,
        "server_rows": "all" if plan.touched_rows is None else "touched",
        "table_shards": plan.table_shards,
        "aggregator": _aggregator(settings),
        **shares_of(settings),
    }
    if settings.private:
        choices["cohort"] = default_cohort(num_clients)
    elif asynchronous is None:
        choices |= {"cohort": plan.cohort, "sampler": "uniform"}  # a cohort of everyone is drawn so, too
    if "server_optimizer" in known and not _has_own_server_rule(settings.algorithm):
        choices["server_optimizer"] = "fedavg"
        choices["server_learning_rate"] = SERVERS[settings.server_optimizer or "fedavg"].learning_rate
    if settings.aggregator == FAIR:
        choices["fairness"] = 1.0
    if settings.splitter == "strong":
        choices["fold_in_epochs"] = fold_in_epochs_of(settings)
    if faults is not None:
        choices |= {setting: getattr(faults, field) for setting, field in FAULTS.items()}
    if asynchronous is not None:
        choices |= {setting: getattr(asynchronous, field) for setting, field in FEDBUFF.items()}
    return choices


def _aggregator(settings: Settings) -> str | None:
    """By name, of algorithms that choose one; None for a rule of their own."""
    if settings.algorithm == "fedmf":
        return "touchers" if settings.loss == "mse" else "sum"
    if settings.algorithm == "fedrec":
        return None if settings.own_options().get("denoise") else "touchers"
    return None


def _has_own_server_rule(algorithm: str) -> bool:
    """Whether the factory has an optimizer of its own where none is given, instead of handing None on."""
    return "server_optimizer" in inspect.signature(factory_of(algorithm)).parameters
