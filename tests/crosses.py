"""Crosses of settings, of which some cells are tried in each run of the tests and all in a thorough one."""

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any

import pytest

WHY = "each of its values stands in another cell"


def crossed(*axes: Sequence[Any]) -> list[Any]:
    """All cells of a cross, as parameters; those off the diagonal, along which each value stands, are thorough.

    Example:
        >>> [cell.values for cell in crossed("ab", [1, 2, 3]) if not cell.marks]
        [('a', 1), ('a', 3), ('b', 2)]
    """
    longest = max(map(len, axes))
    diagonal = {tuple(turn % len(axis) for axis in axes) for turn in range(longest)}
    cells = product(*map(range, map(len, axes)))
    return [
        pytest.param(
            *(axis[place] for axis, place in zip(axes, cell, strict=True)),
            marks=() if cell in diagonal else pytest.mark.thorough(WHY),
        )
        for cell in cells
    ]


def sampled(values: Iterable[Any], kept: Iterable[Any], why: str) -> list[Any]:
    """Values as parameters, of which all but those that are kept are thorough.

    Example:
        >>> [value.values for value in sampled(["clip", "qsgd"], ["qsgd"], "one path") if not value.marks]
        [('qsgd',)]
    """
    chosen = list(kept)
    return [
        pytest.param(value, marks=() if value in chosen else pytest.mark.thorough(why)) for value in values
    ]
