"""Settings as flags.

Settings become flags by their names, `--learning-rate` for `learning_rate`, with their defaults in `--help`.
Errors name parameters; `in_flags` names the flags that set them instead.
"""

import argparse
import dataclasses
import types
from collections.abc import Collection, Sequence
from typing import Any, get_args, get_type_hints

from fedjax_rec.algorithms.registry import accepted
from fedjax_rec.errors import ParameterError
from fedjax_rec.runs.availability import FAULTS, FEDBUFF
from fedjax_rec.runs.settings import BY_ALGORITHM, Settings

DEFAULT_ALGORITHM = Settings.algorithm


def _flag_of(setting: str) -> str:
    return "--" + setting.replace("_", "-")


FLAGS = {  # parameter, as errors name it: the flag that sets it
    **{field.name: _flag_of(field.name) for field in dataclasses.fields(Settings)},
    **{f"Faults.{field}": _flag_of(setting) for setting, field in FAULTS.items()},
    **{f"FedBuff.{field}": _flag_of(setting) for setting, field in FEDBUFF.items()},
    **{name: _flag_of(name) for name in ("set", "seeds", "budget", "halving")},  # of `sweep`
    **{name: _flag_of(name) for name in ("clients", "items", "events_per_client", "longest")},  # of `plan`
    **{name: _flag_of(name) for name in ("stored", "device", "count")},
    **{name: _flag_of(name) for name in ("coordinator", "processes", "process_id")},  # of `run` and `resume`
    "timeout": "--join-timeout",  # of them, too
    "seconds": "--seconds",  # of `bench`
}


def in_flags(problem: Exception) -> str:
    """What an error says, with flags in the place of parameters.

    Args:
        problem: any error; only a `ParameterError` says which of its words are parameters.

    Returns:
        its text.

    Example:
        >>> in_flags(ParameterError("{Faults.keep}=0 is out of range"))
        '--keep-first=0 is out of range'
    """
    return problem.render(FLAGS) if isinstance(problem, ParameterError) else str(problem)


def add_settings(
    parser: argparse.ArgumentParser,
    only_groups: Sequence[str] = (),
    only_fields: Sequence[str] = (),
    *,
    shown: Collection[str] | None = None,
    given_only: bool = False,
) -> None:
    """Make settings flags: all, or those of some groups and some single ones.

    Args:
        parser: of a command; it gets a group of flags for each group of settings.
        only_groups: titles of groups; empty for all settings.
        only_fields: names of settings to add to these groups.
        shown: names of settings that `--help` shows, as `--help-all` does all; by default all.
        given_only: whether what is not given is not among the parsed arguments, rather than at its default.

    Example:
        >>> from fedjax_rec.cli.argument_parser import Parser
        >>> parser = Parser()
        >>> add_settings(parser)
        >>> parser.parse_args(["--learning-rate", "0.5"]).learning_rate
        0.5
    """
    groups: dict[str, Any] = {}
    hints = get_type_hints(Settings)
    for field in dataclasses.fields(Settings):
        title = field.metadata["group"]
        if only_groups and title not in only_groups and field.name not in only_fields:
            continue
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        several = {"action": Several} if given_only and field.name == "algorithm" else {}
        action = _add_flag(groups[title], field, _value_type(hints[field.name]), **several)
        action.full_help = action.help
        if given_only:
            action.default = argparse.SUPPRESS
        if shown is not None and field.name not in shown:
            action.help = argparse.SUPPRESS


def show_defaults_of(parser: argparse.ArgumentParser, algorithm: str) -> None:
    """Let the help of settings show the defaults of one algorithm.

    Args:
        parser: whose settings are flags.
        algorithm: by name.

    Raises:
        ValueError: if there is no such algorithm.

    Example:
        >>> from fedjax_rec.cli.argument_parser import Parser
        >>> parser = Parser()
        >>> add_settings(parser)
        >>> show_defaults_of(parser, "fedper")
        >>> "by algorithm; fedper" in parser.format_help()
        True
    """
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    for action in parser._actions:  # noqa: SLF001 - argparse has no other way to them
        field = fields.get(action.dest)
        if field is not None and field.metadata["group"] in BY_ALGORITHM:
            action.full_help = f"{field.metadata['help']} {_default_text(field, algorithm)}".strip()  # type: ignore[attr-defined]
            if action.help != argparse.SUPPRESS:
                action.help = action.full_help  # type: ignore[attr-defined]


class Several(argparse.Action):
    """A flag that may be given several times: its values, with commas between them."""

    def __call__(self, _parser: Any, namespace: argparse.Namespace, values: Any, _flag: Any = None) -> None:
        """Add a value to those before it."""
        before = getattr(namespace, self.dest, None)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def _add_flag(group: Any, field: dataclasses.Field, value_type: type, **kind: Any) -> Any:
    flag = _flag_of(field.name)
    text = f"{field.metadata['help']} {_default_text(field)}".strip()
    if value_type is bool:
        return group.add_argument(
            flag, action=argparse.BooleanOptionalAction, default=field.default, help=text
        )
    choices = field.metadata["choices"]
    metavar = "{" + ",".join(choices) + "}" if choices else value_type.__name__.upper()
    return group.add_argument(
        flag, type=value_type, default=field.default, help=text, metavar=metavar, **kind
    )


def _default_text(field: dataclasses.Field, algorithm: str = DEFAULT_ALGORITHM) -> str:
    """What a flag is without being given; nothing where that is no value, and the help says what happens then."""
    if field.default is not None:
        return f"(default: {field.default})"
    defaults = accepted(algorithm) if field.metadata["group"] in BY_ALGORITHM else {}
    value = defaults.get(field.name)
    plain = value is not None and isinstance(value, bool | int | float | str)
    return f"(default: by algorithm; {algorithm} {value})" if plain else ""


def _value_type(hint: Any) -> type:
    """The type of a flag's value: that of the hint without None."""
    if isinstance(hint, types.UnionType):
        return next(member for member in get_args(hint) if member is not type(None))
    return hint


def settings_of(given: argparse.Namespace) -> Settings:
    """The settings among the arguments of a command; those that it has no flag for are left at their defaults.

    Args:
        given: the parsed arguments.

    Returns:
        the settings.

    Raises:
        ValueError: a setting is out of its range, or does not go with another.

    Example:
        >>> settings_of(argparse.Namespace(command="run", rounds=3)).rounds
        3
    """
    names = {field.name for field in dataclasses.fields(Settings)}
    return Settings(**{name: value for name, value in vars(given).items() if name in names})
