"""What is tuned of each algorithm, and which of them predict ratings.

An algorithm without an entry is searched around its own defaults, a factor of 10 either way, in its learning
rates, its penalty and its first scale. Numbers alone are searched, so that all trials of an algorithm share one
program. The first trial is always the algorithm's own defaults.
"""

from typing import Any, NamedTuple

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import ENTRIES, accepted, names, sized_defaults
from fedjax_rec.data.defaults import Size

FACTOR = 10.0
SIZE = Size(943, 1682, 98_114)  # of MovieLens 100K, for the settings that follow from it
SEARCHED = (  # by default, besides all rates
    "regularisation", "init_scale", "network_scale", "base_scale", "head_scale", "item_factor", "alpha",
    "unobserved", "independence", "sparsity", "pull", "spreadout",
)  # fmt: skip


class Variant(NamedTuple):
    """An algorithm, perhaps with settings that make it another method."""

    algorithm: str
    fixed: dict[str, Any]


VARIANTS: dict[str, Variant] = {name: Variant(name, {}) for name in names()} | {
    "fedmf-adam": Variant("fedmf", {"server_optimizer": "fedadam", "server_learning_rate": 0.01}),
    "fedmf-ratings": Variant("fedmf", {"loss": "mse"}),
    "fedrecon": Variant("fedrecon", {"recon_learning_rate": 0.1, "learning_rate": 0.5}),  # fits ratings
    "fedrecon-ranking": Variant(
        "fedrecon", {"loss": "bce", "recon_learning_rate": 0.5, "learning_rate": 5.0}
    ),
    "gpfedrec-sampled": Variant("gpfedrec", {"cohort": 604}),  # a tenth of MovieLens 1M
    "fedmf-wide": Variant("fedmf", {"dim": 128, "num_negatives": 8}),
    "fedals-wide": Variant("fedals", {"dim": 192}),
}
# only run where settings are carried over, and then those of their bases are: sizes are chosen for that data
LATER = {"gpfedrec-sampled": "gpfedrec", "fedmf-wide": "fedmf", "fedals-wide": "fedals"}
# federated ALS has central iALS's objective: what it carries over changes as iALS's default does, .01 to .007
RESCALED = {name: {"regularisation": 0.7} for name in ("fedals", "fedals-wide")}
REPLACED = ("gpfedrec",)  # does not run there: all pairs of all tables of ml-1m-loo do not fit
SPACES: dict[str, dict[str, Any]] = {
    "fedmf": {
        "learning_rate": fr.training.log_uniform(0.003, 0.05),
        "regularisation": fr.training.log_uniform(0.002, 0.05),
        "init_scale": fr.training.log_uniform(0.03, 1.0),
    },
    "fedmf-adam": {
        "learning_rate": fr.training.log_uniform(0.003, 0.1),
        "regularisation": fr.training.log_uniform(0.001, 0.05),
        "server_learning_rate": fr.training.log_uniform(0.001, 0.1),
    },
    "fedals": {
        "regularisation": fr.training.log_uniform(0.001, 0.1),
        "unobserved": fr.training.log_uniform(0.03, 1.0),
    },
    "fcf": {
        "alpha": fr.training.log_uniform(0.4, 40.0),
        "regularisation": fr.training.log_uniform(1.0, 100.0),
        "init_scale": fr.training.log_uniform(0.01, 1.0),
    },
    "fedease": {"regularisation": fr.training.log_uniform(30.0, 3000.0)},
}


def space_of(name: str) -> dict[str, Any]:
    """The search space of a variant.

    Args:
        name: in `VARIANTS`.

    Returns:
        range by setting; empty if it has nothing to tune.
    """
    base = LATER.get(name, name)
    if base in SPACES:
        return SPACES[base]
    known = defaults_of(name)
    return {
        setting: fr.training.log_uniform(value / FACTOR, value * FACTOR)
        for setting, value in known.items()
        if isinstance(value, float) and value > 0 and (setting.endswith("_rate") or setting in SEARCHED)
    }


def defaults_of(name: str) -> dict[str, Any]:
    """A variant's own settings, those that follow from the size of the data on MovieLens 100K.

    Args:
        name: in `VARIANTS`.

    Returns:
        value by setting.
    """
    variant = VARIANTS[name]
    own = {setting: value for setting, value in accepted(variant.algorithm).items() if value is not None}
    # numbers of the factory, which the trials are made by, go first
    return accepted(variant.algorithm) | sized_defaults(variant.algorithm, SIZE) | own | variant.fixed


def trials_of(name: str, count: int, seed: int = 0) -> list[dict[str, Any]]:
    """The settings to try: the defaults, then draws.

    Args:
        name: in `VARIANTS`.
        count: how many; an algorithm with nothing to tune has one trial.
        seed: of the draws.

    Returns:
        the trials.
    """
    space = space_of(name)
    if not space:
        return [{}]
    known = defaults_of(name)
    sampled = fr.training.sample_settings(space, count - 1, seed=seed)
    return [{setting: known[setting] for setting in space}, *sampled]


def carried_of(trials: list[dict[str, Any]], count: int, name: str = "") -> list[dict[str, Any]]:
    """The settings that are carried over from another data set: its best ones, half of all that are to be tried.

    Args:
        trials: of the other data set, best first, each with "settings".
        count: how many are to be tried.
        name: of the method that takes them; those of `RESCALED` take them at another scale.

    Returns:
        the settings.
    """
    scale = RESCALED.get(name, {})
    best = [trial["settings"] for trial in trials[: (count + 1) // 2]]
    return [one | {key: float(f"{one[key] * factor:.4g}") for key, factor in scale.items()} for one in best]


def trials_near(carried: list[dict[str, Any]], count: int, factor: float = 3.0) -> list[dict[str, Any]]:
    """The settings to try where another data set has been searched: its best, then draws around the very best.

    Args:
        carried: of the other data set, best first.
        count: how many.
        factor: how far the draws may go, either way.

    Returns:
        the trials.
    """
    if not carried[0]:
        return [{}]
    near = {
        name: fr.training.log_uniform(value / factor, value * factor) for name, value in carried[0].items()
    }
    return carried + fr.training.sample_settings(near, count - len(carried))


def needs_ratings(name: str) -> bool:
    """Whether a variant fits ratings.

    Args:
        name: in `VARIANTS`.

    Returns:
        whether it does.
    """
    return ENTRIES[VARIANTS[name].algorithm].needs_ratings or defaults_of(name).get("loss") == "mse"
