"""What a sweep tries: combinations of values, each checked as a run checks its settings, and how to make them."""

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_type_hints

from fedjax_rec.algorithms.registry import accepted, factory_of, sized_defaults
from fedjax_rec.data.defaults import Size
from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.errors import ParameterError
from fedjax_rec.runs.build import arguments_of, clip_batch_size, with_sized_defaults, with_values
from fedjax_rec.runs.options import parse_options
from fedjax_rec.runs.settings import BY_ALGORITHM, FAIR, Settings, complete
from fedjax_rec.server.optimizers import LOCALS, SERVERS
from fedjax_rec.training.search_spaces import TrialSettings, grid
from fedjax_rec.types import Algorithm

SWEPT = (*BY_ALGORITHM, "imbalance")  # groups of settings that a sweep may try values of
NOT_SWEPT = ("algorithm", "options", "negatives")  # of these: what no trial of one protocol may change
_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
_HINTS = get_type_hints(Settings)
_TRUTHS = {"true": True, "false": False}


def parse_grid(texts: Sequence[str], algorithm: str) -> dict[str, list[Any]]:
    """Read which values of which settings are tried.

    Args:
        texts: NAME=VALUE,VALUE each; names of settings, with - or _, or of the algorithm's own ones.
        algorithm: whose settings they are.

    Returns:
        the values by name, with the types that they have.

    Raises:
        ValueError: if one is malformed, unknown, or there is nothing to try.

    Example:
        >>> parse_grid(["learning-rate=0.01,1", "dim=8"], "fedmf")
        {'learning_rate': [0.01, 1.0], 'dim': [8]}
    """
    if not texts:
        raise ParameterError(
            "nothing to try; add {set} NAME=VALUE,VALUE, such as {set} learning_rate=0.01,0.03"
        )
    found: dict[str, list[Any]] = {}
    for text in texts:
        given, equals, values = text.partition("=")
        name = given.strip().lstrip("-").replace("-", "_")
        words = [value.strip() for value in values.split(",")] if values.strip() else []
        if not name or not equals or not words or not all(words):
            raise ParameterError(
                "{set} {text!r} names no values; write {set} {name}=VALUE,VALUE",
                text=text,
                name=name or "NAME",
            )
        if name in found:
            raise ParameterError("{set} {name} is given twice; put all its values into one", name=name)
        found[name] = [_value(name, word, algorithm) for word in words]
        twice = next((one for number, one in enumerate(found[name]) if one in found[name][:number]), None)
        if twice is not None:
            raise ParameterError("{set} {name} has {value} twice; give each once", name=name, value=twice)
    return found


def trials_of_grid(base: Settings, space: Mapping[str, Sequence[Any]]) -> list[TrialSettings]:
    """Every combination, each checked as the settings of a run; those that share a program stand together.

    Args:
        base: what they share.
        space: values by name.

    Returns:
        the trials.

    Raises:
        ValueError: if one is out of range, or does not go with the others.

    Example:
        >>> trials_of_grid(Settings(), {"learning_rate": [0.1, 0.2], "dim": [8, 16]})[1]
        {'learning_rate': 0.2, 'dim': 8}
    """
    trials = grid(space)
    for trial in trials:
        arguments_of(with_values(base, trial))
    programs = [_static(trial) for trial in trials]
    return sorted(trials, key=lambda trial: programs.index(_static(trial)))


def _static(trial: TrialSettings) -> TrialSettings:
    return {name: value for name, value in trial.items() if not isinstance(value, float)}


def in_chunks(trials: Sequence[TrialSettings], most: int) -> list[list[TrialSettings]]:
    """Cut trials into groups that are saved together: neighbours of one program, at most so many.

    Args:
        trials: in the order of `trials_of_grid`, or some of them.
        most: in a group.

    Returns:
        the groups.

    Example:
        >>> in_chunks([{"rate": 0.1}, {"rate": 0.2}, {"rate": 0.3}, {"rate": 0.1, "dim": 4}], 2)
        [[{'rate': 0.1}, {'rate': 0.2}], [{'rate': 0.3}], [{'rate': 0.1, 'dim': 4}]]
    """
    chunks: list[list[TrialSettings]] = []
    for trial in trials:
        full = not chunks or len(chunks[-1]) == most or _static(chunks[-1][0]) != _static(trial)
        if full:
            chunks.append([])
        chunks[-1].append(trial)
    return chunks


class TrialFactory:
    """The algorithm of a run with other settings, of which numbers may be traced.

    Args:
        base: settings of the run, completed, before anything follows from the size of the data.
        size: of the training data.
        longest: examples of the longest client.
        trials: all that will be asked for.

    Example:
        >>> make = TrialFactory(Settings(dim=4), Size(9, 20, 99), 30, [{"learning_rate": 0.5}])
        >>> make(learning_rate=0.5).work.epochs
        1
    """

    def __init__(self, base: Settings, size: Size, longest: int, trials: Sequence[TrialSettings]) -> None:
        self.base = base
        self.size = size
        self.longest = longest
        self.example = dict(trials[0])

    def settings_of(self, tried: TrialSettings) -> Settings:
        """The settings of a trial, as a run would have them."""
        return clip_batch_size(
            with_sized_defaults(complete(with_values(self.base, tried)), self.size), self.longest
        )

    def with_followers(self, trials: Sequence[TrialSettings]) -> list[TrialSettings]:
        """The trials with those settings, too, that follow from what is tried, so that their values are known."""
        names = sized_defaults(self.base.algorithm, self.size)
        values = []
        for trial in trials:
            settings = self.settings_of(trial)
            own = {name: getattr(settings, name, None) for name in names} | settings.own_options()
            values.append({name: own[name] for name in names if name not in trial})
        differing = {name for each in values for name in each if each[name] != values[0].get(name)}
        return [
            trial | {name: value for name, value in each.items() if name in differing}
            for trial, each in zip(trials, values, strict=True)
        ]

    def __call__(self, **tried: Any) -> Algorithm:
        """The algorithm of a trial.

        Args:
            **tried: its settings; numbers that are traced stand for any value.

        Returns:
            the algorithm, on one device: devices are for trials here.

        Raises:
            TypeError: if a setting cannot be traced.
        """
        plain = {
            name: value for name, value in tried.items() if isinstance(value, bool | int | float | str | None)
        }
        traced = {name: value for name, value in tried.items() if name not in plain}
        placeholders = {name: self.example.get(name, 1.0) for name in traced}
        settings = self.settings_of(plain | placeholders)
        given = arguments_of(settings)
        if "mesh" in accepted(settings.algorithm):
            given["mesh"] = None
        for name, value in traced.items():
            if name == "learning_rate" and settings.aggregator == FAIR:
                raise TypeError("the server divides by the clients' rate, which must be a number")
            if (
                name == "learning_rate"
                and settings.local_optimizer is not None
                and "local_optimizer" in given
            ):
                given["local_optimizer"] = LOCALS[settings.local_optimizer](value)
            elif name == "server_learning_rate":
                given["server_optimizer"] = SERVERS[settings.server_optimizer or "fedavg"].make(value)
            elif name in given:
                given[name] = value
            else:
                raise TypeError(f"{name} is no argument of the factory")
        return factory_of(settings.algorithm)(**given)


def _value(name: str, text: str, algorithm: str) -> Any:
    """A value of a setting, of its type."""
    field = _FIELDS.get(name)
    if field is None:
        known = accepted(algorithm)
        if name not in known:
            names = [one for one, each in _FIELDS.items() if each.metadata["group"] in SWEPT and one in known]
            own = [one for one in known if one not in names]
            raise ParameterError(
                "{set}: {algorithm} has no setting {name!r}; {hint}see fedjax-rec algorithms {algorithm}",
                algorithm=algorithm,
                name=name,
                hint=did_you_mean(name, [*names, *own]),
            )
        return parse_options(f"{name}={text}", algorithm, _FIELDS)[name]
    if field.metadata["group"] not in SWEPT or name in NOT_SWEPT:
        raise ParameterError(f"{{set}} {name}: it is the same for all trials; give {{{name}}} instead")
    hint = _HINTS[name]
    kind = (
        next(one for one in get_args(hint) if one is not type(None))
        if isinstance(hint, types.UnionType)
        else hint
    )
    try:
        return _TRUTHS[text.lower()] if kind is bool else kind(text)
    except (ValueError, KeyError):
        raise ParameterError(
            "{set} {name}={text} must be of type {kind}", name=name, text=text, kind=kind.__name__
        ) from None
