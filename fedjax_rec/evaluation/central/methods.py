"""The registry of central methods: how each is fit, with which settings, and which others validation may prefer.

`trials` are neighbours of the default settings, few enough to be tried on every data set. iALS is tried at a
small width, which costs a twentieth of the final one: with vectors that start as normal(0, .1 / sqrt(D)) the
order of its settings hardly depends on the width (MovieLens 100K: the same at 32 and at 64). MF has no
trials; its defaults were chosen on the validation items of MovieLens 100K and 1M.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from fedjax_rec.data.errors import nearest
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.chance import fit_random
from fedjax_rec.evaluation.central.ease import default_regularisation, fit_ease
from fedjax_rec.evaluation.central.ials import defaults, fit_ials
from fedjax_rec.evaluation.central.itemknn import fit_itemknn
from fedjax_rec.evaluation.central.mf import fit_mf
from fedjax_rec.evaluation.central.popularity import fit_popularity
from fedjax_rec.evaluation.central.scorers import Scorer

Settings = dict[str, float]
_SUPPLIED = ("seed", "pairs", "on_epoch")  # arguments of a fit that are no settings


def _none(_: Split) -> Settings:
    return {}


class Method(NamedTuple):
    """A central method."""

    fit: Callable[..., Scorer]  # (split, *, settings, and those of seed, pairs, on_epoch that it knows)
    sized: Callable[[Split], Settings] = _none  # defaults that depend on the size of the data
    trials: tuple[Mapping[str, Callable[[float], float]], ...] = ()  # changes of the defaults to try
    small: Mapping[str, float] = {}  # settings of all trials, not of the final fit
    dense: bool = False  # whether its weights are a dense table of items by items, from `count_pairs`


def _times(factor: float) -> Callable[[float], float]:
    return lambda value: value * factor


def _to(value: float) -> Callable[[float], float]:
    return lambda _: value


METHODS: dict[str, Method] = {
    "random": Method(fit_random),
    "popularity": Method(fit_popularity),
    "itemknn": Method(
        fit_itemknn,
        trials=(
            {"neighbours": _to(20)},
            {"neighbours": _to(400)},
            {"shrink": _to(0.0)},
            {"shrink": _to(100.0)},
        ),
        dense=True,
    ),
    "ease": Method(
        fit_ease,
        sized=lambda split: {"regularisation": default_regularisation(split)},
        trials=({"regularisation": _times(1 / 3)}, {"regularisation": _times(3)}),
        dense=True,
    ),
    "ials": Method(
        fit_ials,
        sized=lambda split: dict(zip(("dim", "regularisation"), defaults(split), strict=True)),
        trials=(
            {"regularisation": _times(1 / 3)},
            {"regularisation": _times(3)},
            {"unobserved": _times(1 / 3)},
            {"unobserved": _times(3)},
        ),
        small={"dim": 32},
    ),
    "mf": Method(fit_mf),
}
NAMES = tuple(METHODS)


def parse_names(text: str) -> tuple[str, ...]:
    """Read names of methods.

    Args:
        text: names with commas between them, or "all".

    Returns:
        the names, in the order of the registry, each once.

    Raises:
        ValueError: on an unknown name, with the nearest known one.

    Example:
        >>> parse_names("ease,popularity")
        ('popularity', 'ease')
    """
    asked = [name.strip() for name in text.split(",")]
    if asked == ["all"]:
        return NAMES
    for name in asked:
        if name not in METHODS:
            known = f"did you mean {nearest(name, NAMES)!r}? known: all, {', '.join(NAMES)}"
            raise ValueError(f"unknown baseline {name!r}; {known}")
    return tuple(name for name in NAMES if name in asked)


def parse_settings(texts: Sequence[str]) -> dict[str, Settings]:
    """Read settings as the command line gives them.

    Args:
        texts: METHOD.SETTING=NUMBER each.

    Returns:
        numbers by method and setting; whole ones are int where they are written so.

    Raises:
        ValueError: if a text has another form, or there is no such method.

    Example:
        >>> parse_settings(["ials.dim=32", "ials.unobserved=0.1"])
        {'ials': {'dim': 32, 'unobserved': 0.1}}
    """
    found: dict[str, Settings] = {}
    for text in texts:
        match = re.fullmatch(r"([^.=]+)\.([^.=]+)=(.+)", text)
        try:
            name, setting, number = match.groups() if match else ("", "", "")
            value = int(number) if re.fullmatch(r"[+-]?\d+", number) else float(number)
        except ValueError:
            form = "METHOD.SETTING=NUMBER, such as ease.regularisation=300"
            raise ValueError(f"{text!r} is no setting of a baseline; write {form}") from None
        for method in parse_names(name):
            found.setdefault(method, {})[setting] = value
    return found


def settings_of(name: str, split: Split, changes: Mapping[str, float] | None = None) -> Settings:
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
        >>> settings_of("itemknn", tiny_split(), {"shrink": 5.0})
        {'neighbours': 100, 'shrink': 5.0}
    """
    parameters = inspect.signature(METHODS[name].fit).parameters
    known = {key: p.default for key, p in parameters.items() if key not in ("split", *_SUPPLIED)}
    known |= METHODS[name].sized(split)
    for key, value in (changes or {}).items():
        if key not in known:
            has = f"its settings: {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{name} has no setting {key!r}; {has}")
        if isinstance(known[key], int) and not isinstance(value, int):
            raise ValueError(f"{name}: {key} must be a whole number, not {value}")
    return known | dict(changes or {})


def trials_of(name: str, settings: Settings) -> list[Settings]:
    """List the settings that validation may prefer to some, those first.

    Args:
        name: of the method.
        settings: complete.

    Returns:
        the settings and their neighbours, as tried: at a small width where the method says so. One alone is
        nothing to choose from.

    Example:
        >>> trials_of("ease", {"regularisation": 30.0})
        [{'regularisation': 30.0}, {'regularisation': 10.0}, {'regularisation': 90.0}]
    """
    method = METHODS[name]
    small = {key: min(value, settings[key]) for key, value in method.small.items()}
    neighbours = [
        {key: change(settings[key]) for key, change in changes.items()} for changes in method.trials
    ]
    return [settings | small | change for change in ({}, *neighbours)]


def fit(name: str, split: Split, settings: Settings, **supplied: Any) -> Scorer:
    """Fit a method.

    Args:
        name: of the method.
        split: its training events are all that the method sees.
        settings: complete.
        **supplied: seed, pairs and on_epoch; a method takes those that it knows.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> fit("random", tiny_split(), {}, seed=1).score_block.__name__
        'score_block'
    """
    parameters = inspect.signature(METHODS[name].fit).parameters
    return METHODS[name].fit(
        split, **settings, **{key: value for key, value in supplied.items() if key in parameters}
    )
