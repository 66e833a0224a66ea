"""The algorithms by name, for the command line and whatever else chooses one by a string.

Each name is a module of this package with a factory of the same name. A factory's keyword arguments are its
settings, and their defaults are the algorithm's own.
"""

import importlib
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

from fedjax_rec.types import Algorithm


class Entry(NamedTuple):
    """What is known of an algorithm without making it."""

    rounds: int = 400  # of a run, unless said otherwise
    eval_every: int = 20  # rounds between validations
    ratings: bool = False  # whether it needs ratings, whatever its settings
    ordered: bool = False  # whether it needs the order of time


ENTRIES: dict[str, Entry] = {
    "colr": Entry(),
    "fcf": Entry(),
    "fedals": Entry(rounds=12, eval_every=1),
    "fedease": Entry(rounds=1, eval_every=1),
    "fedgnn": Entry(),
    "fedmf": Entry(),
    "fedncf": Entry(),
    "fednova": Entry(),
    "fedper": Entry(),
    "fedrec": Entry(rounds=100, eval_every=10, ratings=True),
    "fedrecon": Entry(rounds=500),
    "fedsasrec": Entry(rounds=200, eval_every=10, ordered=True),
    "fedsgd_mf": Entry(rounds=100, ratings=True),
    "fedtwotower": Entry(),
    "fedrap": Entry(rounds=60, eval_every=2),
    "gpfedrec": Entry(rounds=100, eval_every=5),
    "pfedrec": Entry(rounds=100, eval_every=5),
    "scaffold": Entry(),
}
NAMES = tuple(ENTRIES)


def factory_of(name: str) -> Callable[..., Algorithm]:
    """The factory of an algorithm.

    Args:
        name: in `NAMES`.

    Returns:
        the factory.

    Raises:
        KeyError: if there is none of that name.

    Example:
        >>> factory_of("fedmf").__name__
        'fedmf'
    """
    if name not in ENTRIES:
        raise KeyError(name)
    return getattr(importlib.import_module(f"fedjax_rec.algorithms.{name}"), name)


def accepted(name: str) -> dict[str, Any]:
    """The settings that an algorithm's factory takes, those of its federation included.

    Args:
        name: in `NAMES`.

    Returns:
        default by name; None for what `federate` decides.

    Example:
        >>> accepted("fedmf")["num_negatives"], "server_optimizer" in accepted("fedmf")
        (4, True)
    """
    factory = factory_of(name)
    parameters = inspect.signature(factory).parameters.values()
    found = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    for parameter in parameters:
        if parameter.kind is parameter.VAR_KEYWORD:
            (kind,) = get_args(get_type_hints(factory)[parameter.name])
            found |= dict.fromkeys(get_type_hints(kind))
    return found
