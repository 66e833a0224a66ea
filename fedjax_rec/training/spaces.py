"""Which settings of an algorithm are worth a search, and around what: its own defaults for data of this size.

What is searched are factors of the defaults, a decade either way (the weight of the unobserved in orders of
magnitude, as for central iALS), so that a space fits any data that the defaults fit. A penalty that follows from
another setting (`defaults_by_size`) is searched around what it is for that one. Numbers alone are searched, so
that the trials of an algorithm share compiled programs.
"""

from collections.abc import Mapping
from typing import Any

from fedjax_rec.algorithms.registry import accepted, sized_defaults
from fedjax_rec.data.defaults import UNOBSERVED_FACTORS, Size
from fedjax_rec.training.search_spaces import LogUniform, TrialSettings, log_uniform, sample_settings

FACTORS = (0.1, 10.0)
WIDER = {  # alpha is what an event weighs more than a pair, and so the inverse of a weight of the unobserved
    "unobserved": UNOBSERVED_FACTORS,
    "alpha": (1 / UNOBSERVED_FACTORS[1], 1 / UNOBSERVED_FACTORS[0]),
}
SEARCHED = (  # besides all rates
    "regularisation", "init_scale", "network_scale", "base_scale", "head_scale", "item_factor", "alpha",
    "unobserved", "independence", "sparsity", "pull", "spreadout",
)  # fmt: skip


def space_of(
    algorithm: str, size: Size, given: Mapping[str, Any], *, fixed: tuple[str, ...] = ()
) -> dict[str, LogUniform]:
    """The factors of its defaults among which an algorithm is searched.

    Args:
        algorithm: its name.
        size: of the training data.
        given: settings of the run, around which is searched instead of the defaults; None is not given.
        fixed: names that are not searched.

    Returns:
        a range of factors by setting; empty for an algorithm that has nothing to tune.

    Example:
        >>> sorted(space_of("fedmf", Size(943, 1682, 98114), {}))
        ['init_scale', 'learning_rate', 'regularisation']
        >>> sorted(space_of("fedals", Size(943, 1682, 98114), {}, fixed=("init_scale",)))
        ['regularisation', 'unobserved']
    """
    return {
        name: log_uniform(*WIDER.get(name, FACTORS))
        for name, value in _values(algorithm, size, given).items()
        if isinstance(value, float)
        and value > 0
        and (name.endswith("_rate") or name in SEARCHED)
        and name not in fixed
    }


def trials_of(
    algorithm: str,
    size: Size,
    given: Mapping[str, Any],
    count: int,
    *,
    seed: int = 0,
    fixed: tuple[str, ...] = (),
) -> list[TrialSettings]:
    """The settings to try: what the run would have without a search, then draws from the space.

    Args:
        algorithm: its name.
        size: of the training data.
        given: settings of the run; None is not given.
        count: how many, 1 or more.
        seed: of the draws.
        fixed: names that are not searched.

    Returns:
        the trials, numbers by setting; a single empty one for an algorithm that has nothing to tune.

    Example:
        >>> trials = trials_of("fedease", Size(4, 6, 16), {}, 3)
        >>> trials[0], len(trials)
        ({'regularisation': 4.0}, 3)
    """
    space = space_of(algorithm, size, given, fixed=fixed)
    if not space:
        return [{}]
    base = _values(algorithm, size, given)
    factors = sample_settings(space, count - 1, seed=seed)
    first = {name: base[name] for name in space}
    return [first, *(_apply(algorithm, size, given, first, factor) for factor in factors)]


def _values(algorithm: str, size: Size, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a run has: given ones, those that follow from the size and from them, defaults."""
    own = _chosen(algorithm, size, given)
    return accepted(algorithm) | _known(given) | sized_defaults(algorithm, size, own)


def _chosen(algorithm: str, size: Size, given: Mapping[str, Any]) -> dict[str, float]:
    """Of the settings that may follow from the size, those that are other numbers than it says."""
    chosen: dict[str, float] = {}
    for name in sorted(sized_defaults(algorithm, size), key=_penalty_last):
        value = given.get(name)
        if value is not None and value != sized_defaults(algorithm, size, chosen)[name]:
            chosen[name] = value
    return chosen


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value is not None}


def _penalty_last(name: str) -> bool:
    """It may follow from the others."""
    return name == "regularisation"


def _apply(
    algorithm: str, size: Size, given: Mapping[str, Any], first: TrialSettings, factors: Mapping[str, float]
) -> TrialSettings:
    """Factors times the run's settings; one that follows from another follows from the tried one."""
    chosen = _chosen(algorithm, size, given)
    tried: TrialSettings = {}
    for name in sorted(factors, key=_penalty_last):
        sized = sized_defaults(algorithm, size)
        known = first
        if name in sized and name not in chosen:
            own = chosen | {other: value for other, value in tried.items() if other in sized}
            known = sized_defaults(algorithm, size, own)
        tried[name] = float(f"{known[name] * factors[name]:.4g}")
    return {name: tried[name] for name in factors}
