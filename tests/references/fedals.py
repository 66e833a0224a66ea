"""Federated ALS in plain numpy, float64: client after client, item after item, nothing packed or batched.

Chien et al. 2021, "Private alternating least squares", algorithm 1 without noise, on the objective of Rendle et
al. 2021, "Revisiting the performance of iALS on item recommendation benchmarks", section 2 (nu = 1). Written from
the papers' equations; it shares no code with the library.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Setting(NamedTuple):
    """reg, w0 and the share of the earlier sums that is kept."""

    regularisation: float
    unobserved: float
    memory: float = 0.0
    scaled: bool = True  # False is wrong on purpose: a ridge that forgets how many events there are


class Sums(NamedTuple):
    """What the server has: for every item, and over all clients."""

    own_moment: np.ndarray  # [I, D, D]
    own_target: np.ndarray  # [I, D]
    own_number: np.ndarray  # [I]
    moment: np.ndarray  # [D, D]
    number: float


def no_sums(num_items: int, dim: int) -> Sums:
    """Sums of nothing."""
    own = np.zeros((num_items, dim, dim)), np.zeros((num_items, dim)), np.zeros(num_items)
    return Sums(*own, np.zeros((dim, dim)), 0.0)


def add(memory: float, old: Sums, new: Sums) -> Sums:
    """memory x old + new."""
    own = [memory * a + b for a, b in zip(old[:3], new[:3], strict=True)]
    return Sums(own[0], own[1], own[2], memory * old.moment + new.moment, memory * old.number + new.number)


def ridge(setting: Setting, events: float, others: float) -> float:
    """The strength reg (n + w0 others) of the term |vector|^2."""
    return setting.regularisation * ((events + setting.unobserved * others) if setting.scaled else 1.0)


def solve_user(setting: Setting, items: np.ndarray, own: Sequence[int]) -> np.ndarray:
    """The p_u that minimises the objective: one term for every item of the catalogue."""
    num_items, dim = items.shape
    matrix, target = ridge(setting, len(own), num_items) * np.eye(dim), np.zeros(dim)
    for i in range(num_items):
        matrix += setting.unobserved * np.outer(items[i], items[i])
        if i in own:
            matrix += np.outer(items[i], items[i])
            target += items[i]
    return np.linalg.solve(matrix, target)


def run_round(
    setting: Setting, items: np.ndarray, sums: Sums, clients: Sequence[Sequence[int]]
) -> tuple[np.ndarray, Sums, list[np.ndarray]]:
    """A sweep over a cohort, each client given by its items.

    Returns:
        the new item vectors, the sums that made them, and the clients' vectors.
    """
    new = no_sums(*items.shape)
    vectors = []
    for own in clients:
        p = solve_user(setting, items, own)
        vectors.append(p)
        new = new._replace(moment=new.moment + np.outer(p, p), number=new.number + 1)
        for i in own:
            new.own_moment[i] += np.outer(p, p)
            new.own_target[i] += p
            new.own_number[i] += 1
    sums = add(setting.memory, sums, new)
    result = np.zeros_like(items)
    for i in range(len(items)):
        matrix = sums.own_moment[i] + setting.unobserved * sums.moment
        matrix += ridge(setting, sums.own_number[i], sums.number) * np.eye(items.shape[1])
        result[i] = np.linalg.solve(matrix, sums.own_target[i])
    return result, sums, vectors
