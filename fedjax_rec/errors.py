"""The error whose text names parameters, which its reader may know by other names: the command line says flags.

`check_arguments` raises one of them where an argument is not of the type that its annotation says, or has a name
that nothing takes: at the call, and not rounds later within jax. `check_not_used_up` is for arguments whose arrays
are gone.
"""

import collections.abc
import difflib
import inspect
import numbers
import string
import types
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, wraps
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

LONGEST_VALUE = 60  # characters of a value that an error shows


class ParameterError(ValueError):
    """A refusal whose text names parameters in braces, so that each reader finds the names that he can change.

    Args:
        template: the text. `{dim}` and `{FedBuff.buffer}` are parameters; `{duplicates=last}` is one with a
            value, a text or a number; `{need:,.1f}`, where `need` is among the values, is that value.
        values: what the text shows besides.

    Example:
        >>> error = ParameterError("the model takes {need:.1f} GiB; lower {dim}", need=3)
        >>> str(error)
        'the model takes 3.0 GiB; lower dim'
        >>> error.render({"dim": "--dim"})
        'the model takes 3.0 GiB; lower --dim'
        >>> error = ParameterError("{duplicates=last} keeps one")
        >>> str(error), error.render({"duplicates": "--duplicates"})
        ("duplicates='last' keeps one", '--duplicates last keeps one')
    """

    def __init__(self, template: str, **values: Any) -> None:
        super().__init__(template)
        self.values = values

    def __str__(self) -> str:
        return self.render({})

    def render(self, names: Mapping[str, str]) -> str:
        """The text with other names of parameters.

        Args:
            names: parameter -> what its reader calls it; a parameter that is not there keeps its own name.

        Returns:
            the text, in which no value can reach a terminal as anything but text.
        """
        return printable(fill(self.args[0], names, **self.values))


def printable(text: str) -> str:
    r"""A text that comes from files, with everything escaped that a terminal would obey or cannot show.

    Args:
        text: of ids, names of files, settings.

    Returns:
        the same, where all characters are printable.

    Example:
        >>> print(printable("\x1b[2J"))
        \x1b[2J
    """
    if text.isprintable():
        return text
    return "".join(
        mark if mark.isprintable() else mark.encode("unicode_escape").decode("ascii") for mark in text
    )


class ArgumentError(ParameterError, TypeError):
    """An argument of the wrong type, or with an unknown name."""


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any]) -> None:
    """Compare a call's arguments with the function's annotations.

    Whole numbers are integers of Python or numpy, never booleans or floats; where a float is asked for, any number
    will do, and an array of no axes, which may be traced.

    Args:
        function: annotated; or a record, whose fields are compared.
        arguments: value by parameter, such as `locals()` in the function's first line; of `**settings:
            Unpack[...]`, the dictionary.

    Raises:
        ArgumentError: naming the first argument that has another type, or a name that the function does not take.

    Example:
        >>> import numpy as np
        >>> def fit(rounds: int, *, rate: float | None = None) -> None:
        ...     check_arguments(fit, locals())
        >>> fit(2, rate=np.float32(0.5))
        >>> fit(2.0)
        Traceback (most recent call last):
        fedjax_rec.errors.ArgumentError: rounds is 2.0, a float; fit takes a whole number
    """
    named, unpacked = _parameters_of(function)
    given = dict(arguments)
    for name in unpacked:
        given |= given.pop(name, {})
    caller = getattr(function, "__name__", str(function))
    record = f"{caller}." if isinstance(function, type) else ""
    for name, value in given.items():
        if name not in named:
            raise _unknown_name(caller, name, value, list(named))
        if not _is_of(value, named[name]):
            raise wrong_type(
                caller, record + name, value, _describe(named[name]) + _way_out(name, value, named[name])
            )


Function = TypeVar("Function", bound=Callable[..., Any])


def suggest_names(function: Function) -> Function:
    """A function that says which parameter was meant, where it is given a name that it does not take.

    Args:
        function: without `**settings`.

    Returns:
        the same, with its signature.

    Example:
        >>> @suggest_names
        ... def fit(*, rounds: int = 1) -> int:
        ...     return rounds
        >>> fit(round=3)
        Traceback (most recent call last):
        fedjax_rec.errors.ArgumentError: fit takes no round (given: 3); did you mean rounds?
    """
    names = list(inspect.signature(function).parameters)

    @wraps(function)
    def call(*args: Any, **named: Any) -> Any:
        for name, value in named.items():
            if name not in names:
                raise _unknown_name(function.__name__, name, value, names)
        return function(*args, **named)

    return cast("Function", call)


def _unknown_name(function: str, name: str, value: Any, known: Sequence[str]) -> ArgumentError:
    """The error of an argument whose name a function does not take."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return ArgumentError(
        "{function} takes no {name} (given: {value}){known}",
        function=function,
        name=name,
        value=_shorten(value),
        known=f"; did you mean {close[0]}?" if close else f"; it takes {', '.join(known)}",
    )


def check_unused(
    function: Callable[..., Any], arguments: Mapping[str, Any], names: Sequence[str], beside: str, why: str
) -> None:
    """Refuse arguments that change nothing beside another one, where they are not the defaults.

    Args:
        function: whose defaults these are.
        arguments: value by parameter.
        names: of those that change nothing.
        beside: of the other one, as the text shows it.
        why: it leaves them nothing to do.

    Raises:
        ParameterError: naming the first of them that was given.

    Example:
        >>> def fit(*, rate: float = 0.1, rule: str | None = None) -> None:
        ...     if rule is not None:
        ...         check_unused(fit, locals(), ["rate"], "rule", "which has one of its own")
        >>> fit(rule="adam")
        >>> fit(rate=0.2, rule="adam")
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: rate=0.2 changes nothing beside rule, which has one of its own; ...
    """
    parameters = inspect.signature(function).parameters
    for name in names:
        value, default = arguments[name], parameters[name].default
        plain = isinstance(value, (bool, int, float, str, type(None)))
        if value is not default and not (plain and value == default):
            raise ParameterError(
                "{" + name + "}={_value} changes nothing beside {_beside}, {_why}; leave it out",
                _value=_shorten(value),
                _beside=beside,
                _why=why,
            )


def wrong_type(function: str, name: str, value: Any, expected: str) -> ArgumentError:
    """The error of an argument that has another type than it should.

    Args:
        function: that was called.
        name: of the argument.
        value: given for it.
        expected: what it takes, in words.

    Returns:
        the error, to be raised by the caller.

    Example:
        >>> str(wrong_type("fit", "rounds", 2.5, "a whole number"))
        'rounds is 2.5, a float; fit takes a whole number'
    """
    return ArgumentError(
        "{" + name + "} is {_value}, {_kind}; {_function} takes {_expected}",
        _value=_shorten(value),
        _kind=_with_article(type(value).__name__),
        _function=function,
        _expected=expected,
    )


def is_used_up(tree: Any) -> bool:
    """Whether arrays are gone, because a program went on in their memory.

    Args:
        tree: of arrays, which may be traced: these are never gone.

    Returns:
        True if one of them is.
    """
    import jax

    arrays = (leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array))
    return any(array.is_deleted() for array in arrays if not isinstance(array, jax.core.Tracer))


def check_not_used_up(state: Any) -> None:
    """Refuse a state whose memory a run has gone on in.

    Args:
        state: of a run.

    Raises:
        ValueError: saying what used it up, and what to hand over instead.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2), tiny_population()
        >>> state, _ = fr.simulate(algorithm, population, rounds=1)
        >>> last, _ = fr.simulate(algorithm, population, rounds=2, state=state)
        >>> check_not_used_up(last)
        >>> check_not_used_up(state)
        Traceback (most recent call last):
        ValueError: this state was handed to simulate, which uses it up; go on with the one that it returned, ...
    """
    if is_used_up(state):
        raise ValueError(
            "this state was handed to simulate, which uses it up; go on with the one that it returned, or hand it "
            "a copy (jax.tree.map(jnp.copy, state))"
        )


@lru_cache(maxsize=512)
def _parameters_of(function: Callable[..., Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The annotation of each parameter, those of an unpacked dictionary among them, and that dictionary's name."""
    hints = get_type_hints(function)
    named: dict[str, Any] = {}
    unpacked = []
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        if parameter.kind is parameter.VAR_KEYWORD:
            unpacked.append(parameter.name)
            named |= get_type_hints(get_args(hint)[0])
        else:
            named[parameter.name] = hint
    return named, tuple(unpacked)


def _is_of(value: Any, hint: Any) -> bool:
    """Whether a value is of the annotated type, as far as that can be told without looking into it for long."""
    origin = get_origin(hint)
    if hint is Any or isinstance(hint, TypeVar | str):
        return True
    if origin in (Union, types.UnionType):
        return any(_is_of(value, each) for each in get_args(hint))
    if origin is collections.abc.Callable or hint is collections.abc.Callable:
        return callable(value)
    if origin in (Sequence, collections.abc.Iterable, list, tuple):
        return (
            isinstance(value, Sequence | _arrays()[0] | range)
            and not isinstance(value, str | bytes)
            and _hold(value, hint)
        )
    if origin is not None:
        return isinstance(value, origin) if isinstance(origin, type) else True
    return _is_plain(value, hint)


def _hold(values: Any, hint: Any) -> bool:
    """Whether the elements of a sequence are of the annotated type."""
    args = get_args(hint)
    if len(args) > 1 and args[1] is not ...:
        return len(values) == len(args) and all(map(_is_of, values, args))
    return not args or all(_is_of(value, args[0]) for value in values)


def _is_plain(value: Any, hint: type) -> bool:
    """The same for what is no union, sequence or function."""
    is_array = isinstance(value, _arrays())
    if hint in _scalars():
        accepted, refused = _scalars()[hint]
        scalar = hint is float and is_array and value.ndim == 0
        return scalar or (isinstance(value, accepted) and not isinstance(value, refused))
    if hint in _arrays():
        return is_array
    if getattr(hint, "_is_protocol", False):
        return not isinstance(value, str | bytes | numbers.Number | None)
    fields = getattr(hint, "_fields", ())  # a record of one's own that has them will do
    return isinstance(value, hint) or (bool(fields) and all(hasattr(value, field) for field in fields))


@lru_cache(maxsize=1)
def _arrays() -> tuple[type, type]:
    """Arrays of numpy and of jax, which take half of the time that a command needs to say its version."""
    import jax
    import numpy as np

    return np.ndarray, jax.Array


@lru_cache(maxsize=1)
def _scalars() -> dict[type, tuple[Any, Any]]:
    """By kind, what is one, and what is none though it looks like one."""
    import numpy as np

    return {bool: (bool | np.bool_, ()), int: (numbers.Integral, bool), float: (numbers.Real, bool)}


def _describe(hint: Any) -> str:
    """What an annotation asks for, in words."""
    if get_origin(hint) in (Union, types.UnionType):
        texts = dict.fromkeys(_describe(each) for each in get_args(hint) if each is not type(None))
        if "a number" in texts:
            texts.pop("a jax array", None)
        none = ["None"] if type(None) in get_args(hint) else []
        return " or ".join([*texts, *none])
    if get_origin(hint) in (Sequence, collections.abc.Iterable, list, tuple):
        return "a sequence"
    if get_origin(hint) is not None:
        return "a function" if get_origin(hint) is collections.abc.Callable else str(hint)
    words = {
        int: "a whole number",
        float: "a number",
        str: "a text",
        bool: "True or False",
        _arrays()[1]: "a jax array",
    }
    name = getattr(hint, "__name__", str(hint))
    if name == "GradientTransformation":
        return "an optax transformation, such as optax.adam(0.01)"
    return words.get(hint, _with_article(name))


def _way_out(name: str, value: Any, hint: Any) -> str:
    """Where what was given leads to what is asked for: how to get there."""
    wanted = {getattr(each, "__name__", "") for each in (hint, *get_args(hint))}
    if inspect.isfunction(value) and "Algorithm" in wanted:
        short = "fr." * value.__module__.startswith("fedjax_rec.algorithms.")
        return f"; call it: {short}{value.__name__}()"
    if name == "server_optimizer" and isinstance(value, str):
        rule = value if value.startswith("fed") and value.isidentifier() else "fedadam"
        return f", or a rule of fr.server, such as fr.server.{rule}()"
    return ""


def _with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def _shorten(value: Any) -> str:
    """A value on one line, and not a long one."""
    named = inspect.isfunction(value) and not value.__name__.startswith("<")
    text = " ".join((value.__name__ if named else repr(value)).split())
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}..."


def fill(template: str, names: Mapping[str, str], **values: Any) -> str:
    """Put names of parameters, and values, into a text.

    Args:
        template: as of `ParameterError`.
        names: parameter -> what its reader calls it.
        values: what the text shows besides.

    Returns:
        the text.

    Example:
        >>> fill("{one!r} needs {FedBuff.buffer}", {"FedBuff.buffer": "--async-buffer"}, one="x")
        "'x' needs --async-buffer"
    """
    return _Filler(names).vformat(template, (), values)


def _as_argument(value: str) -> str:
    """How Python writes a value that a template has as text: numbers as they are, else in quotes."""
    try:
        float(value)
    except ValueError:
        return repr(value)
    return value


class _Filler(string.Formatter):
    """Takes a field for a value, if there is one of that name, and else for a parameter."""

    def __init__(self, names: Mapping[str, str]) -> None:
        self.names = names

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        del args
        name, given, value = field_name.partition("=")
        if given:  # as a flag is given, or an argument
            flag = self.names.get(name)
            return f"{name}={_as_argument(value)}" if flag is None else f"{flag} {value}", name
        return kwargs.get(field_name, self.names.get(field_name, field_name)), field_name
