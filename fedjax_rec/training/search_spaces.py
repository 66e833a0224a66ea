"""What a search may choose from: ranges, choices, and settings drawn from them."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

TrialSettings = dict[str, Any]


class LogUniform(NamedTuple):
    """Numbers whose logarithm is uniform."""

    low: float
    high: float


class Choice(NamedTuple):
    """One of several values, each as likely."""

    options: tuple[Any, ...]


def log_uniform(low: float, high: float) -> LogUniform:
    """A range of numbers of which every factor is as likely as any other: for learning rates and penalties.

    Args:
        low: the smallest, above 0.
        high: the largest.

    Returns:
        the range, for `sample_settings`.

    Raises:
        ValueError: if the limits are out of order or not above 0.

    Example:
        >>> log_uniform(1e-3, 1e-1)
        LogUniform(low=0.001, high=0.1)

    Source: Bergstra & Bengio 2012, "Random search for hyper-parameter optimization", section 2.3.
    """
    if not 0 < low <= high < math.inf:
        raise ValueError(f"log_uniform({low}, {high}): a range needs 0 < low <= high")
    return LogUniform(low, high)


def choice(*options: Any) -> Choice:
    """Values of which each is as likely.

    Args:
        *options: one or more.

    Returns:
        the choice, for `sample_settings`.

    Raises:
        ValueError: if there is none.

    Example:
        >>> choice(32, 64)
        Choice(options=(32, 64))
    """
    if not options:
        raise ValueError("choice() has nothing to choose from; give one value or more")
    return Choice(options)


def sample_settings(space: Mapping[str, Any], count: int, *, seed: int = 0) -> list[TrialSettings]:
    """Draw settings at random, for a random search: of a larger count the first ones are the same.

    Args:
        space: by name a `log_uniform`, a `choice`, or a value that stays as it is.
        count: how many.
        seed: of the draw, 0 or more.

    Returns:
        the settings; numbers have 4 significant digits, so that a table names them in full.

    Raises:
        ValueError: if the count is negative.

    Example:
        >>> sample_settings({"learning_rate": log_uniform(0.01, 0.1), "dim": 8}, 2)
        [{'learning_rate': 0.04335, 'dim': 8}, {'learning_rate': 0.01861, 'dim': 8}]
        >>> sample_settings({"learning_rate": log_uniform(0.01, 0.1), "dim": 8}, 1)
        [{'learning_rate': 0.04335, 'dim': 8}]
    """
    if count < 0:
        raise ValueError(f"count must be at least 0, not {count}")
    rng = np.random.default_rng(seed)
    return [{name: _draw(rng, values) for name, values in space.items()} for _ in range(count)]


def _draw(rng: np.random.Generator, values: Any) -> Any:
    if isinstance(values, LogUniform):
        logarithm = rng.uniform(math.log(values.low), math.log(values.high))
        return float(f"{math.exp(logarithm):.4g}")
    return values.options[rng.integers(len(values.options))] if isinstance(values, Choice) else values


def grid(space: Mapping[str, Sequence[Any]]) -> list[TrialSettings]:
    """Every combination of some values.

    Args:
        space: the values by name.

    Returns:
        the settings, the last name changing fastest.

    Example:
        >>> grid({"dim": [8, 16], "learning_rate": [0.1]})
        [{'dim': 8, 'learning_rate': 0.1}, {'dim': 16, 'learning_rate': 0.1}]
    """
    return [dict(zip(space, values, strict=True)) for values in itertools.product(*space.values())]
