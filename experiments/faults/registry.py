"""The table of faults: a line here is a line of the report.

A fault is a function of an `Injection` that injects it so many times and returns a `Tally`. To add a row, write
such a function in a module of this folder, decorate it, and name the module in `__main__.MODULES`:

    @fault("zip slip", times=30, short=3)
    def zip_slip(injection: Injection) -> Tally:
        return tally(_unpack(injection) for _ in range(injection.times))
"""

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

Outcome = Literal["survived", "lost", "silent"]


class Tally(NamedTuple):
    """What became of the faults of one kind; injected = survived + lost + silent."""

    injected: int
    survived: int  # named where it must be, and nothing was lost
    lost: int  # work was lost that had been acknowledged, or the error was not the promised one
    silent: int  # wrong numbers were believed


class Injection(NamedTuple):
    """What a fault is injected with."""

    times: int
    folder: Path  # empty, removed afterwards
    rng: np.random.Generator
    real: bool  # a real algorithm with validation, instead of a toy that compiles in no time


class Fault(NamedTuple):
    """A row of the table."""

    inject: Callable[[Injection], Tally]
    times: int
    short: int  # times with `--short`


FAULTS: dict[str, Fault] = {}


def fault(
    name: str, *, times: int, short: int
) -> Callable[[Callable[[Injection], Tally]], Callable[[Injection], Tally]]:
    """Register a fault.

    Args:
        name: of its row.
        times: how often it is injected.
        short: how often with `--short`.

    Returns:
        a decorator that leaves the function as it is.
    """

    def register(inject: Callable[[Injection], Tally]) -> Callable[[Injection], Tally]:
        if name in FAULTS:
            raise ValueError(f"there is a fault {name!r} already")
        FAULTS[name] = Fault(inject, times, short)
        return inject

    return register


def tally(outcomes: Iterable[Outcome]) -> Tally:
    """Count outcomes.

    Args:
        outcomes: one for each injected fault.

    Returns:
        the counts.
    """
    count = Counter(outcomes)
    return Tally(count.total(), count["survived"], count["lost"], count["silent"])
