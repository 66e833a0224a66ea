"""Algorithms that this package does not have: of installed packages, of modules at hand, or given in Python.

A package offers its own by entry points, each a factory under a name that runs then know:

    [project.entry-points."fedjax_rec.algorithms"]
    my_algorithm = "my_package.my_module:my_algorithm"

Any other factory is named by where it is defined, `my_package.my_module:my_algorithm`. What such a name leads to
is called only if it says that it returns an `Algorithm`: names also stand in run folders, which may be of others.
"""

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from fedjax_rec.algorithms.registry import ENTRIES, Entry, names
from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.errors import ParameterError
from fedjax_rec.types import Algorithm

GROUP = "fedjax_rec.algorithms"  # of entry points
MADE = "own"  # the name of an algorithm that was given as it is, without a factory
_GIVEN: dict[str, Entry] = {}  # in Python, by the name that runs have for them


def adopt(algorithm: Algorithm | Callable[..., Algorithm] | str) -> str:
    """The name by which `Settings(algorithm=...)` knows an algorithm of one's own.

    Args:
        algorithm: a factory, whose keyword arguments are its settings; an algorithm, which has none; or a name.

    Returns:
        a name: that of a registered factory, MODULE:FACTORY of another, "own" of an algorithm that is made.

    Raises:
        ParameterError: if it is none of these.

    Example:
        >>> from fedjax_rec.algorithms.fedmf import fedmf
        >>> adopt(fedmf), adopt(fedmf(dim=4))
        ('fedmf', 'own')
    """
    if isinstance(algorithm, str):
        return algorithm
    if isinstance(algorithm, Algorithm):
        _GIVEN[MADE] = Entry(lambda: algorithm)
        return MADE
    if not callable(algorithm):
        raise ParameterError(
            "{algorithm} is of type {_kind}; give a factory, an Algorithm that `fr.federate` made, or a name",
            _kind=type(algorithm).__name__,
        )
    registered = ENTRIES.get(getattr(algorithm, "__name__", ""))
    if registered is not None and registered.factory is algorithm:
        return str(algorithm.__name__)
    name = f"{algorithm.__module__}:{getattr(algorithm, '__qualname__', type(algorithm).__name__)}"
    _GIVEN[name] = Entry(algorithm)  # anew, as a cell of a notebook may have changed it
    return name


def find(name: str) -> Entry:
    """An algorithm that was given in Python, that an installed package offers, or at MODULE:FACTORY.

    Args:
        name: of it.

    Returns:
        the entry; rounds and intervals of `register`, if the factory's module has called that.

    Raises:
        ValueError: saying what there is, if there is none of that name.

    Example:
        >>> find("fedjax_rec.algorithms.fedmf:fedmf").rounds
        400
        >>> find("fedjax_rec.algorithms.fedmf:fedfm")
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: fedjax_rec.algorithms.fedmf has no 'fedfm'; did you mean 'fedmf'?
    """
    if name in _GIVEN:
        return _GIVEN[name]
    if name == MADE:
        raise ParameterError(
            "{algorithm} 'own' is one that Python made and no text can name; give it again: algorithm=..."
        )
    module, colon, factory = name.partition(":")
    if colon:
        return _check(name, _factory_at(module, factory))
    point = offered().get(name)
    if point is not None:
        return _check(name, _load(point))
    known = (*names(), *sorted(offered()))
    raise ValueError(
        f"unknown algorithm {name!r}; {did_you_mean(name, known)}known: {', '.join(known)}, or one of "
        f"yours as package.module:factory"
    )


@lru_cache(maxsize=1)
def offered() -> dict[str, importlib.metadata.EntryPoint]:
    """What installed packages offer, by name; nothing of them is imported.

    Returns:
        entry points; what has the name of an algorithm of this package is left out.

    Example:
        >>> "fedmf" in offered()
        False
    """
    points = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point for point in points if point.name not in ENTRIES}


def label_of(name: str) -> str:
    """A short form of an algorithm's name, for tables and folders.

    Args:
        name: as of `adopt`.

    Returns:
        the factory's name, of characters that every file system takes.

    Example:
        >>> label_of("fedmf"), label_of("my_package.my_module:my_algorithm"), label_of("__main__:f.<locals>.g")
        ('fedmf', 'my_algorithm', 'g')
    """
    return re.sub(r"\W", "", name.rpartition(":")[2].rpartition(".")[2]) or MADE


def _factory_at(module: str, factory: str) -> Any:
    """What a module has under a name."""
    if not all(map(str.isidentifier, [*module.split("."), *factory.split(".")])):
        raise ParameterError(
            "{algorithm} {text!r} is no package.module:factory; write names of Python, without .py and folders",
            text=f"{module}:{factory}",
        )
    found = _imported(module, lambda: importlib.import_module(module))
    for name in factory.split("."):
        known = [own for own, value in vars(found).items() if callable(value)]
        if not hasattr(found, name):
            hint = f"; {did_you_mean(name, known)}".rstrip("; ")
            raise ParameterError("{module} has no {name!r}{hint}", module=module, name=name, hint=hint)
        found = getattr(found, name)
    return found


def _load(point: importlib.metadata.EntryPoint) -> Any:
    return _imported(point.value, point.load)


def _imported(what: str, load: Callable[[], Any]) -> Any:
    """A module of somebody else, in which anything may go wrong."""
    try:
        return load()
    except Exception as problem:
        missing = getattr(problem, "name", None) if isinstance(problem, ModuleNotFoundError) else None
        if missing is not None and f"{what}.".startswith(f"{missing}."):
            raise ParameterError(
                "there is no module {what!r} for {algorithm}; is it installed, or in the current folder?",
                what=what,
            ) from problem
        reason = (str(problem).strip().splitlines() or [""])[0]
        raise ParameterError(
            "{what} cannot be imported for {algorithm}: {kind}: {reason}",
            what=what,
            kind=type(problem).__name__,
            reason=reason,
        ) from problem


def _check(name: str, factory: Any) -> Entry:
    """The entry of what a name led to, which must say that it makes algorithms."""
    entry = ENTRIES.get(getattr(factory, "__name__", ""))
    if entry is not None and entry.factory is factory:
        return entry
    if not callable(factory):
        raise ParameterError(
            "{name} is of type {_kind}, not a function", name=name, _kind=type(factory).__name__
        )
    told = str(inspect.signature(factory).return_annotation) if inspect.isfunction(factory) else ""
    if re.search(r"\bAlgorithm\b", told) is None:
        raise ParameterError(
            "{name} does not say that it makes an algorithm; annotate it: def {function}(...) -> "
            "fedjax_rec.types.Algorithm",
            name=name,
            function=getattr(factory, "__name__", "factory"),
        )
    return Entry(factory)
