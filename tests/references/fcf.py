"""FCF in plain numpy, float64: every client sends its dense gradient of every item, as the paper has it.

Ammad-ud-din et al. 2019, "Federated collaborative filtering" (arXiv:1901.09888), algorithm 1: the exact solution
for the user, f(u, i) = c_ui (r_ui - p_u . y_i) p_u for all items, and the server's Adam. It shares no code with
the library, and knows nothing of its closed form.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Setting(NamedTuple):
    """alpha, lambda and Adam's constants."""

    alpha: float
    regularisation: float
    rate: float
    b1: float
    b2: float
    epsilon: float = 1e-8
    confident: bool = True  # False is wrong on purpose: a gradient without the confidence c_ui


class Memory(NamedTuple):
    """Adam's."""

    turn: int
    first: np.ndarray  # [I, D]
    second: np.ndarray  # [I, D]


def solve_user(setting: Setting, items: np.ndarray, own: Sequence[int]) -> np.ndarray:
    """p_u = (Y^T C_u Y + lambda 1)^-1 Y^T C_u r_u with diagonal matrices written out."""
    wanted = np.zeros(len(items))
    wanted[list(own)] = 1.0
    confidence = np.diag(1 + setting.alpha * wanted)
    matrix = items.T @ confidence @ items + setting.regularisation * np.eye(items.shape[1])
    return np.linalg.inv(matrix) @ items.T @ confidence @ wanted


def gradient(setting: Setting, items: np.ndarray, own: Sequence[int], p: np.ndarray) -> np.ndarray:
    """What a client sends, [I, D]: f(u, i) of every item."""
    sent = np.zeros_like(items)
    for i in range(len(items)):
        wanted = 1.0 if i in own else 0.0
        confidence = 1 + setting.alpha * wanted if setting.confident else 1.0
        sent[i] = confidence * (wanted - p @ items[i]) * p
    return sent


def objective(
    setting: Setting, items: np.ndarray, users: np.ndarray, clients: Sequence[Sequence[int]]
) -> float:
    """J, pair by pair."""
    value = setting.regularisation * float((users**2).sum() + (items**2).sum())
    for p, own in zip(users, clients, strict=True):
        for i in range(len(items)):
            wanted = 1.0 if i in own else 0.0
            value += (1 + setting.alpha * wanted) * float(wanted - p @ items[i]) ** 2
    return value


def run_round(
    setting: Setting, items: np.ndarray, memory: Memory, clients: Sequence[Sequence[int]]
) -> tuple[np.ndarray, Memory, np.ndarray]:
    """One server step; returns the items, Adam's memory and the clients' vectors."""
    users = [solve_user(setting, items, own) for own in clients]
    slope = 2 * setting.regularisation * items
    for p, own in zip(users, clients, strict=True):
        slope = slope - 2 * gradient(setting, items, own, p)
    turn = memory.turn + 1
    first = setting.b1 * memory.first + (1 - setting.b1) * slope
    second = setting.b2 * memory.second + (1 - setting.b2) * slope**2
    corrected = first / (1 - setting.b1**turn), second / (1 - setting.b2**turn)
    items = items - setting.rate * corrected[0] / (np.sqrt(corrected[1]) + setting.epsilon)
    return items, Memory(turn, first, second), np.array(users)
