"""Settings from files: a TOML file, or the folder of a run that shall be repeated."""

import dataclasses
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rec.algorithms.own import MADE
from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.settings import BY_ALGORITHM, Settings

NOT_REPEATED = ("out", "pause_exit_code")  # of a run: where it was written, and how its process ended
_MOST_BYTES = 2**20  # of a file of settings, which may be a pipe or a device that never ends
NO_SETTINGS = ("rules", "before_tuning")  # what config.json holds besides
_FIELDS = {field.name: field for field in dataclasses.fields(Settings)}
SEARCHABLE = tuple(name for name, field in _FIELDS.items() if field.metadata["group"] in BY_ALGORITHM)


def read_configuration(path: str | Path) -> dict[str, Any]:
    """Read settings from a TOML file, or from a run folder.

    A file has settings by name, with - or _, on its top level or in tables of any name; `options` may be a table,
    and `algorithm` a list.

    Args:
        path: of the file, or of the folder.

    Returns:
        value by setting; what was not given is not there.

    Raises:
        ValueError: naming the file, if it is neither, is malformed, or has a setting that there is not.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "mine.toml"
        ...     _ = path.write_text("rounds = 3" + chr(10) + "[model]" + chr(10) + "learning-rate = 1")
        ...     read_configuration(path)
        {'rounds': 3, 'learning_rate': 1.0}
    """
    path = Path(path).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"{path} is no run folder: config.json is missing; give a folder of run, or a .toml file"
            )
        found = read_json(path / "config.json")
        if "given" in found:
            raise ValueError(f"{path} is a folder of baselines, which is repeated by: fedjax-rec baselines")
        found = before_tuning(found)
        found.pop("rules", None)  # in words, of what the settings say
        values = _flat(found, str(path / "config.json"))
        return {
            name: value for name, value in values.items() if value is not None and name not in NOT_REPEATED
        }
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_BYTES + 1)
        if len(text) > _MOST_BYTES:
            raise ValueError(
                f"{path} has more than {_MOST_BYTES:,} bytes, which no settings take; is it data?"
            )
        found = tomllib.loads(text.decode())
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as problem:
        raise ValueError(f"{path} is no TOML: {problem}") from problem
    return _flat(found, str(path))


def before_tuning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for in a run that searched for its settings.

    Args:
        config: of `config.json`, which has the settings that won.

    Returns:
        the same, with those that stood there before the search; without the rules in words, which follow from
        both. Where nothing was searched it is as it was.

    Raises:
        ValueError: if what it says of the search is malformed.

    Example:
        >>> before_tuning({"dim": 8, "learning_rate": 0.3, "before_tuning": {"learning_rate": None}})
        {'dim': 8, 'learning_rate': None}
    """
    if "before_tuning" not in config:
        return dict(config)
    before = config["before_tuning"]
    if not isinstance(before, dict) or not set(before) <= set(_FIELDS):
        raise ValueError("before_tuning of config.json must have settings and their values")
    left = {name: value for name, value in config.items() if name not in NO_SETTINGS}
    return left | before


def over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a file under those that were given otherwise.

    Args:
        base: of the file.
        given: what holds in any case.

    Returns:
        both; where another algorithm is given, the file's settings of its own one are left out.

    Example:
        >>> over({"algorithm": "fedmf", "dim": 8, "core": 5}, {"algorithm": "fedals"})
        {'core': 5, 'algorithm': 'fedals'}
    """
    other = given.get("algorithm", base.get("algorithm")) != base.get("algorithm")
    kept = {
        name: value
        for name, value in base.items()
        if not (other and "algorithm" in base and _FIELDS[name].metadata["group"] in BY_ALGORITHM)
    }
    return kept | dict(given)


def command_of(settings: Settings, command: str = "run", further: Mapping[str, Any] | None = None) -> str:
    """The command that makes a run of these settings.

    Args:
        settings: of the run.
        command: of `fedjax-rec`.
        further: values by flag, of those that are no settings; a list for one that is repeated.

    Returns:
        one line, for a shell; what is left at its default is left out.

    Example:
        >>> command_of(Settings(dim=8, refit=True, out="my run"))
        "fedjax-rec run --refit --dim 8 --out 'my run'"
    """
    words = ["fedjax-rec", command]
    values = {name: getattr(settings, name) for name in _FIELDS}
    changed = {name: value for name, value in values.items() if value != _FIELDS[name].default}
    for name, value in (changed | dict(further or {})).items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, bool):
                words.append(flag if each else flag.replace("--", "--no-", 1))
            elif each is not None:
                text = str(each)
                words += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(words)


def repeating(
    settings: Settings, command: str = "run", further: Mapping[str, Any] | None = None
) -> str | None:
    """The command that makes a run again, in a new folder.

    Args:
        settings: that were asked for, before anything was chosen by itself.
        command: of `fedjax-rec`.
        further: as of `command_of`.

    Returns:
        one line, for a shell; None where the algorithm was given in Python, and no text leads to it.

    Example:
        >>> repeating(Settings(dim=8, out="my run"))
        'fedjax-rec run --dim 8'
    """
    module, colon, _ = settings.algorithm.partition(":")
    if settings.algorithm == MADE or (colon and (module == "__main__" or "<locals>" in settings.algorithm)):
        return None
    defaults: dict[str, Any] = {name: _FIELDS[name].default for name in NOT_REPEATED}
    return command_of(dataclasses.replace(settings, **defaults), command, further)


def _flat(found: Mapping[str, Any], file: str) -> dict[str, Any]:
    """Settings of all tables, with the types that they have."""
    values: dict[str, Any] = {}
    for key, value in found.items():
        name = key.replace("-", "_")
        inner = _flat(value, file) if isinstance(value, dict) and name != "options" else {name: value}
        twice = sorted(inner.keys() & values.keys())
        if twice:
            raise ValueError(f"{file}: {twice[0]} is set twice; leave one out")
        if name == "options" and isinstance(value, dict):
            values[name] = ",".join(f"{option}={each}" for option, each in value.items())
        elif name == "algorithm" and isinstance(value, list) and all(isinstance(each, str) for each in value):
            values[name] = ",".join(value)
        elif isinstance(value, dict):
            values |= inner
        elif name not in _FIELDS:
            raise ValueError(
                f"{file}: unknown setting {key!r}; {did_you_mean(name, list(_FIELDS))}see run --help-all"
            )
        else:
            is_float = "float" in str(_FIELDS[name].type) and type(value) is int
            values[name] = float(value) if is_float else value
    if not isinstance(values.get("algorithm", ""), str):
        raise ValueError(f"{file}: algorithm must be a name, or a list of names, not {values['algorithm']!r}")
    return values
