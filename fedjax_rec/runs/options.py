"""`options`: the settings of an algorithm that have no flag of their own, as text."""

import ast
from collections.abc import Collection, Mapping
from typing import Any, get_type_hints

from fedjax_rec.algorithms.registry import REQUIRED, accepted
from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.errors import ParameterError
from fedjax_rec.federation.federate import FederationSettings
from fedjax_rec.runs.availability import FAULTS, FEDBUFF

_TAKEN_AS = {  # settings: what a factory takes them as, which one of the user's own may not
    "local_optimizer": "learning_rate",
    "sampler": "sampler",
    "clip": "transform",
    "lanes": "lanes",
    "devices": "mesh",  # one is what every algorithm runs on
    "row_update": "row_update",
    "stream_clients": "stream_clients",
    "server_rows": "server_rows",
    "table_shards": "table_shards",
    **dict.fromkeys(FEDBUFF, "asynchronous"),
    **dict.fromkeys(FAULTS, "faults"),
}
_OF_FEDERATION = get_type_hints(FederationSettings)  # what the options of an algorithm may not be


def parse_options(options: str | None, algorithm: str, settings: Collection[str]) -> dict[str, Any]:
    """The algorithm's settings that have no flag of their own.

    Args:
        options: NAME=VALUE,NAME=VALUE, or nothing.
        algorithm: whose settings they are.
        settings: names of settings, which are no options.

    Returns:
        value by name: numbers, booleans, None, or strings.

    Raises:
        ValueError: if one is malformed or given twice, the algorithm does not have it, or it is the business of
            another setting or of `federate`.

    Example:
        >>> parse_options("layers=2", "fedncf", ["dim"])
        {'layers': 2}
    """
    known, found = accepted(algorithm), {}
    for part in options.split(",") if options else []:
        name, equals, text = (piece.strip() for piece in part.partition("="))
        if not equals or not text:
            raise ParameterError(
                "option {part!r} is no NAME=VALUE; write {options} {name}=VALUE",
                part=part,
                name=name or "NAME",
            )
        if name in settings:
            raise ParameterError(f"{{options}} {name}: that is a setting of its own; use {{{name}}}")
        if name in _OF_FEDERATION:
            raise ParameterError(
                f"{{options}} {name}: cohorts, sums, noise and devices have settings of their own, and values "
                "that no text can give; leave it out, or use Python"
            )
        if name not in known:
            own = [other for other in known if other not in {*settings, *_OF_FEDERATION}]
            hint = (
                f"{did_you_mean(name, own)}it has {', '.join(own)}" if own else "it has none without a flag"
            )
            raise ValueError(f"{algorithm} has no setting {name!r}; {hint}")
        if name in found:
            raise ParameterError(f"{{options}} {name} is given twice; give it once")
        found[name] = _option_value(name, text, known[name])
    return found


def check_taken(settings: Mapping[str, Any], options: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse settings that an algorithm has no parameter for, and parameters that nobody set.

    Args:
        settings: by name; None, or False, where nothing was given.
        options: of `parse_options`.
        known: what the algorithm takes, of `accepted`.

    Raises:
        ParameterError: naming the first of them.

    Example:
        >>> check_taken({"algorithm": "mine", "clip": 1.0}, {}, {"dim": 8})
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: mine takes no transform, so no clip; leave it out, or hand ...
    """
    algorithm = settings["algorithm"]
    for name, parameter in _TAKEN_AS.items():
        given = settings.get(name) not in (None, False) and (name, settings[name]) not in {
            ("devices", 1),
            ("table_shards", 1),
        }
        if given and parameter not in known:
            raise ParameterError(
                "{_algorithm} takes no {_parameter}, so no {"
                + name
                + "}; leave it out, or hand **federation "
                "on to fr.federate",
                _algorithm=algorithm,
                _parameter=parameter,
            )
    for name, default in known.items():
        if default is REQUIRED and name not in options and settings.get(name) is None:
            raise ParameterError(
                "{_algorithm} has no default for {" + name + "}; give one", _algorithm=algorithm
            )


def _option_value(name: str, text: str, default: Any) -> Any:
    """The value of an option, of the type that its default has."""
    value = _literal(text)
    kinds = (float, int) if type(default) is float else (type(default),)
    if type(default) in (bool, int, float, str) and type(value) not in kinds:
        raise ParameterError(
            "{options} {name}={text} must be of type {kind}", name=name, text=text, kind=kinds[0].__name__
        )
    return value


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)
