"""The registry of central methods: how each is fit, with which settings, and which others validation may prefer.

`trials` are neighbours of the default settings, few enough to be tried on every data set; the weight of the
unobserved is tried over orders of magnitude, at an equal penalty. iALS is tried at a
small width, which costs a twentieth of the final one: with vectors that start as normal(0, .1 / sqrt(D)) the
order of its settings hardly depends on the width (MovieLens 100K: the same at 32 and at 64). MF has no
trials; its defaults were chosen on the validation items of MovieLens 100K and 1M.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.defaults import UNOBSERVED_FACTORS, Size, als_ridge_of_one
from fedjax_rec.data.errors import nearest
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central import ease, itemknn
from fedjax_rec.evaluation.central.ease import default_regularisation, fit_ease
from fedjax_rec.evaluation.central.ials import default_settings, fit_ials
from fedjax_rec.evaluation.central.itemknn import fit_itemknn
from fedjax_rec.evaluation.central.mf import fit_mf
from fedjax_rec.evaluation.central.nonpersonalised import fit_popularity, fit_random
from fedjax_rec.evaluation.central.scorers import Scorer

MethodSettings = dict[str, float]
_SUPPLIED = ("seed", "gram", "on_epoch", "goes_on")  # arguments of a fit that are no settings


def _no_settings(split: Split, changes: Mapping[str, float]) -> MethodSettings:
    del split, changes
    return {}


def _of_ials(split: Split, changes: Mapping[str, float]) -> MethodSettings:
    """The penalty follows from a weight of the unobserved that is given."""
    return default_settings(split, unobserved=changes.get("unobserved"))


class Method(NamedTuple):
    """A central method."""

    fit: Callable[..., Scorer]  # (split, *, settings, and those of _SUPPLIED that it takes)
    # defaults that depend on the size of the data, and on what is given
    defaults_by_size: Callable[[Split, Mapping[str, float]], MethodSettings] = _no_settings
    trials: tuple[
        Callable[[Size, MethodSettings], MethodSettings], ...
    ] = ()  # changes of the defaults to try
    trial_overrides: Mapping[str, float] = {}  # settings of all trials, not of the final fit
    space: Mapping[str, tuple[float, float]] = {}  # factors of the defaults, where more are to be tried
    selects_epochs: bool = False  # whether validation chooses the number of epochs, as it does rounds
    shared: Callable[[Split], Any] | None = None  # `gram`, what fits with other settings share
    check: Callable[[Split], None] | None = None  # refuses data for which there is no memory


def _times(name: str, factor: float) -> Callable[[Size, MethodSettings], MethodSettings]:
    return lambda size, settings: {name: settings[name] * factor}  # noqa: ARG005


def _to(name: str, value: float) -> Callable[[Size, MethodSettings], MethodSettings]:
    return lambda size, settings: {name: value}  # noqa: ARG005


def _unobserved_times(factor: float) -> Callable[[Size, MethodSettings], MethodSettings]:
    """Another weight of the unobserved at the same ridge of a mean user, which grows with this weight."""

    def change(size: Size, settings: MethodSettings) -> MethodSettings:
        unobserved = settings["unobserved"] * factor
        ridges = [als_ridge_of_one(size, weight) for weight in (settings["unobserved"], unobserved)]
        strength = settings["regularisation"] * (ridges[0] / ridges[1] if ridges[1] else 1.0)
        return {"unobserved": unobserved, "regularisation": strength}

    return change


METHODS: dict[str, Method] = {
    "random": Method(fit_random),
    "popularity": Method(fit_popularity),
    "itemknn": Method(
        fit_itemknn,
        trials=(
            _to("neighbours", 20),
            _to("neighbours", 400),
            _to("shrink", 0.0),
            _to("shrink", 100.0),
        ),
        space={"neighbours": (0.2, 5.0), "shrink": (0.1, 10.0)},
        shared=itemknn.count_shared,
    ),
    "ease": Method(
        fit_ease,
        defaults_by_size=lambda split, _: {"regularisation": default_regularisation(split)},
        trials=(_times("regularisation", 1 / 3), _times("regularisation", 3)),
        space={"regularisation": (0.1, 10.0)},
        shared=ease.count_shared,
        check=ease.check_ease,
    ),
    "ials": Method(
        fit_ials,
        defaults_by_size=_of_ials,
        trials=(
            _times("regularisation", 1 / 3),
            _times("regularisation", 3),
            *(_unobserved_times(factor) for factor in (10, 3, 1 / 3, 1 / 10, 1 / 30)),
        ),
        trial_overrides={"dim": 32},
        space={"regularisation": (0.1, 10.0), "unobserved": UNOBSERVED_FACTORS},
        selects_epochs=True,
    ),
    "mf": Method(
        fit_mf, space={"epochs": (0.5, 3.0), "learning_rate": (0.2, 2.0), "regularisation": (0.1, 10.0)}
    ),
}
METHOD_NAMES = tuple(METHODS)


def parse_method_names(text: str) -> tuple[str, ...]:
    """Read names of methods.

    Args:
        text: names with commas between them, or "all".

    Returns:
        the names, in the order of the registry, each once.

    Raises:
        ValueError: on an unknown name, with the nearest known one.

    Example:
        >>> parse_method_names("ease,popularity")
        ('popularity', 'ease')
    """
    requested = [name.strip() for name in text.split(",")]
    if requested == ["all"]:
        return METHOD_NAMES
    for name in requested:
        if name not in METHODS:
            known = f"did you mean {nearest(name, METHOD_NAMES)!r}? known: all, {', '.join(METHOD_NAMES)}"
            raise ValueError(f"unknown baseline {name!r}; {known}")
    return tuple(name for name in METHOD_NAMES if name in requested)


def parse_method_settings(texts: Sequence[str]) -> dict[str, MethodSettings]:
    """Read settings as the command line gives them.

    Args:
        texts: METHOD.SETTING=NUMBER each.

    Returns:
        numbers by method and setting; whole ones are int where they are written so.

    Raises:
        ValueError: if a text has another form, or there is no such method.

    Example:
        >>> parse_method_settings(["ials.dim=32", "ials.unobserved=0.1"])
        {'ials': {'dim': 32, 'unobserved': 0.1}}
    """
    settings: dict[str, MethodSettings] = {}
    for text in texts:
        match = re.fullmatch(r"([^.=]+)\.([^.=]+)=(.+)", text)
        try:
            name, setting, number = match.groups() if match else ("", "", "")
            value = int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
        except ValueError:
            form = "METHOD.SETTING=NUMBER, such as ease.regularisation=300"
            raise ValueError(f"{text!r} is no setting of a baseline; write {form}") from None
        for method in parse_method_names(name):
            settings.setdefault(method, {})[setting] = value
    return settings


def method_settings(name: str, split: Split, changes: Mapping[str, float] | None = None) -> MethodSettings:
    """Complete the settings of a method.

    Args:
        name: of the method.
        split: the data, whose size some defaults depend on.
        changes: of the defaults.

    Returns:
        all settings.

    Raises:
        ValueError: if the method has no such setting, or one that is a whole number is none.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> method_settings("itemknn", tiny_split(), {"shrink": 5.0})
        {'neighbours': 100, 'shrink': 5.0}
    """
    parameters = inspect.signature(METHODS[name].fit).parameters
    defaults = {key: p.default for key, p in parameters.items() if key not in ("split", *_SUPPLIED)}
    defaults |= METHODS[name].defaults_by_size(split, changes or {})
    for key, value in (changes or {}).items():
        if key not in defaults:
            has = f"its settings: {', '.join(defaults)}" if defaults else "it has none"
            raise ValueError(f"{name} has no setting {key!r}; {has}")
        if isinstance(defaults[key], int) and not isinstance(value, int):
            raise ValueError(f"{name}: {key} must be a whole number, not {value}")
    return defaults | dict(changes or {})


def trial_settings(name: str, settings: MethodSettings, size: Size) -> list[MethodSettings]:
    """List the settings that validation may prefer to some, those first.

    Args:
        name: of the method.
        settings: complete.
        size: of the training data.

    Returns:
        the settings and their neighbours, as tried: at a small width where the method says so. One alone is
        nothing to choose from.

    Example:
        >>> trial_settings("ease", {"regularisation": 30.0}, Size(4, 6, 8))
        [{'regularisation': 30.0}, {'regularisation': 10.0}, {'regularisation': 90.0}]
    """
    method = METHODS[name]
    overrides = {key: min(value, settings[key]) for key, value in method.trial_overrides.items()}
    neighbours = [change(size, settings) for change in method.trials]
    return [settings | overrides | change for change in ({}, *neighbours)]


def drawn_settings(
    name: str, settings: MethodSettings, size: Size, count: int, *, seed: int = 0
) -> list[MethodSettings]:
    """Draw settings at random from the space of a method, for a search as long as a federated one.

    Args:
        name: of the method.
        settings: complete.
        size: of the training data.
        count: how many, these settings included.
        seed: of the draws.

    Returns:
        the settings, then draws, as tried; alone, where the method has nothing to tune.

    Example:
        >>> found = drawn_settings("ease", {"regularisation": 30.0}, Size(4, 6, 8), 3)
        >>> found[0], len(found)
        ({'regularisation': 30.0}, 3)
    """
    method = METHODS[name]
    first = settings | {key: min(value, settings[key]) for key, value in method.trial_overrides.items()}
    rng = np.random.default_rng(seed)
    return [first, *(_draw(method, first, size, rng) for _ in range(count - 1) if method.space)]


def _draw(method: Method, first: MethodSettings, size: Size, rng: np.random.Generator) -> MethodSettings:
    """Settings times factors whose logarithms are uniform; whole numbers stay whole, and 1 or more."""
    drawn = dict(first)
    for key, limits in method.space.items():
        factor = float(np.exp(rng.uniform(*np.log(limits))))
        if key == "unobserved":
            drawn |= _unobserved_times(factor)(size, drawn)
        else:
            value = drawn[key] * factor
            drawn[key] = max(1, round(value)) if isinstance(first[key], int) else value
    return {key: value if isinstance(value, int) else float(f"{value:.4g}") for key, value in drawn.items()}


def draws(name: str, tune: int | None = None) -> bool:
    """Whether what a method reaches depends on the seed.

    Args:
        name: of the method.
        tune: settings to try, where some are drawn.

    Returns:
        True if its fit draws, or its settings are drawn.

    Example:
        >>> draws("ease"), draws("ease", 4), draws("mf")
        (False, True, True)
    """
    return "seed" in inspect.signature(METHODS[name].fit).parameters or bool(tune and METHODS[name].space)


def fit_method(name: str, split: Split, settings: MethodSettings, **supplied: Any) -> Scorer:
    """Fit a method.

    Args:
        name: of the method.
        split: its training events are all that the method sees.
        settings: complete.
        **supplied: seed, gram, on_epoch and goes_on; a method is given those that it takes.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> fit_method("random", tiny_split(), {}, seed=1).score_block.__name__
        'score_block'
    """
    parameters = inspect.signature(METHODS[name].fit).parameters
    return METHODS[name].fit(
        split, **settings, **{key: value for key, value in supplied.items() if key in parameters}
    )
