"""The algorithms by name, for the command line and whatever else chooses one by a string.

A factory registers itself, under its own name, by the decorator `register`. Its keyword arguments are its
settings, and their defaults are the algorithm's own. Algorithms of other packages and of scripts are found, or
given in Python, by `own`.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from fedjax_rec.data.defaults import Size
from fedjax_rec.federation.federate import FederationSettings
from fedjax_rec.types import Algorithm

Factory = TypeVar("Factory", bound=Callable[..., Algorithm])
REQUIRED = inspect.Parameter.empty  # the default of a setting that has none
ROUNDS = 400  # of a run whose algorithm says nothing else,
EVAL_EVERY = 20  # and between its validations


def one_by_size(name: str, rule: Callable[[Size], Any]) -> Callable[..., dict[str, Any]]:
    """The `defaults_by_size` of an algorithm with one such setting.

    Args:
        name: of the setting.
        rule: of `fedjax_rec.data.defaults`.

    Returns:
        (size, what is given) -> the setting, as given or as the rule has it.

    Example:
        >>> defaults = one_by_size("dim", lambda size: size.num_items // 2)
        >>> defaults(Size(4, 6, 16)), defaults(Size(4, 6, 16), dim=8)
        ({'dim': 3}, {'dim': 8})
    """

    def defaults(size: Size, **given: Any) -> dict[str, Any]:
        value = given.get(name)
        return {name: rule(size) if value is None else value}

    return defaults


class Entry(NamedTuple):
    """What is known of an algorithm without making it."""

    factory: Callable[..., Algorithm]
    rounds: int = ROUNDS  # of a run, unless said otherwise
    eval_every: int = EVAL_EVERY  # rounds between validations
    needs_ratings: bool = False  # whatever its settings
    needs_order: bool = False  # of the events in time
    # (size, what is given of them) -> all of them
    defaults_by_size: Callable[..., dict[str, float]] | None = None
    # size -> whether rounds are the server's work, which every device of a mesh would do: runs are then on one
    server_bound: Callable[[Size], bool] | None = None


ENTRIES: dict[str, Entry] = {}


def register(
    *,
    rounds: int = ROUNDS,
    eval_every: int = EVAL_EVERY,
    needs_ratings: bool = False,
    needs_order: bool = False,
    defaults_by_size: Callable[..., dict[str, float]] | None = None,
    server_bound: Callable[[Size], bool] | None = None,
) -> Callable[[Factory], Factory]:
    """Register a factory under its name: `Settings(algorithm=...)`, the laws and the benchmarks then know it.

    Args:
        rounds: of a run, unless said otherwise.
        eval_every: rounds between validations.
        needs_ratings: whether it needs ratings, whatever its settings.
        needs_order: whether it needs the order of events in time.
        defaults_by_size: settings whose defaults follow from the size of the data, by a rule of
            `fedjax_rec.data.defaults`; the factory follows the same rule where it is given None.
        server_bound: whether, on data of a size, rounds are nearly all the server's work, which every device of a
            mesh would do: runs are then on one device, unless said otherwise.

    Returns:
        a decorator, which gives the factory back as it was.

    Raises:
        ValueError: from the decorator, if another factory has the name.

    Example:
        >>> @register(rounds=100)
        ... def fedmine(*, dim: int = 32) -> Algorithm: ...
        >>> accepted("fedmine"), ENTRIES.pop("fedmine").rounds
        ({'dim': 32}, 100)
    """

    def decorate(factory: Factory) -> Factory:
        name = factory.__name__
        known = ENTRIES.get(name)
        if known is not None and known.factory.__module__ != factory.__module__:
            raise ValueError(
                f"algorithm {name!r} is registered by {known.factory.__module__}; give yours another name"
            )
        ENTRIES[name] = Entry(
            factory, rounds, eval_every, needs_ratings, needs_order, defaults_by_size, server_bound
        )
        return factory

    return decorate


def sized_defaults(name: str, size: Size, given: Mapping[str, float] | None = None) -> dict[str, float]:
    """The settings of an algorithm that follow from the size of its data.

    Args:
        name: as of `entry_of`.
        size: of the training data.
        given: those of them that are given, from which others may follow.

    Returns:
        all of them, with those that are given.

    Example:
        >>> sized_defaults("fedease", Size(4, 6, 16)), sized_defaults("fedper", Size(4, 6, 16))
        ({'regularisation': 4.0}, {})
    """
    rule = entry_of(name).defaults_by_size
    return {} if rule is None else rule(size, **(given or {}))


def names() -> tuple[str, ...]:
    """The names of all registered algorithms.

    Returns:
        the names, in alphabetical order.

    Example:
        >>> "fedmf" in names()
        True
    """
    return tuple(sorted(ENTRIES))


def entry_of(name: str) -> Entry:
    """What is known of an algorithm: a registered one, or one's own.

    Args:
        name: in `names()`, an entry point of an installed package, or package.module:factory.

    Returns:
        the entry.

    Raises:
        ValueError: if there is none of that name, or what it names makes no algorithm.

    Example:
        >>> entry_of("fedmf").rounds
        400
    """
    if name in ENTRIES:
        return ENTRIES[name]
    from fedjax_rec.algorithms.own import find  # reads this module

    return find(name)


def factory_of(name: str) -> Callable[..., Algorithm]:
    """The factory of an algorithm.

    Args:
        name: as of `entry_of`.

    Returns:
        the factory.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> factory_of("fedmf").__name__
        'fedmf'
    """
    return entry_of(name).factory


def accepted(name: str) -> dict[str, Any]:
    """The settings that an algorithm's factory takes, those of its federation included.

    Args:
        name: as of `entry_of`.

    Returns:
        default by name; None for what `federate` decides, `REQUIRED` where there is none.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> accepted("fedmf")["num_negatives"], "server_optimizer" in accepted("fedmf")
        (4, True)
    """
    factory = factory_of(name)
    parameters = inspect.signature(factory).parameters.values()
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = {p.name: p.default for p in parameters if p.kind in named}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:  # without an annotation it is what most hand on
            kinds = get_args(get_type_hints(factory).get(parameter.name)) or (FederationSettings,)
            found |= dict.fromkeys(get_type_hints(kinds[0]))
    return found
