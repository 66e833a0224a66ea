"""A slow float64 reference of Chai et al. 2020, "Secure federated matrix factorization", rating by rating.

Written from the paper's section 4 and its authors' published constants; it shares no code with the library.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Ratings = Sequence[tuple[int, float]]  # (item, rating) in the order of the data


class Setting(NamedTuple):
    """The constants of the authors' code."""

    rate: float = 1e-3
    regularisation: float = 1e-4
    quantum: float = 0.0
    updated_user: bool = (
        True  # the item gradient uses the user vector after its step; False is wrong on purpose
    )


def rounder(quantum: float) -> Callable[[np.ndarray], np.ndarray]:
    """The nearest multiple of the quantum; python-paillier encodes with precision=1e-5 in units of 16^-5."""
    return lambda x: np.round(x / quantum) * quantum if quantum else x


def update_user(
    setting: Setting, user: np.ndarray, items: np.ndarray, ratings: Ratings
) -> tuple[np.ndarray, np.ndarray]:
    """One client's pass over its ratings: its new vector, and the gradient [I, D] that it sends."""
    grads = np.zeros_like(items)
    for item, rating in ratings:
        old = user
        error = rating - user @ items[item]
        user = user - setting.rate * (-2 * error * items[item] + 2 * setting.regularisation * user)
        used = user if setting.updated_user else old
        grads[item] = setting.rate * (-2 * error * used + 2 * setting.regularisation * items[item])
    return user, grads


def run(
    setting: Setting, users: np.ndarray, items: np.ndarray, clients: Sequence[Ratings], rounds: int
) -> tuple[np.ndarray, np.ndarray]:
    """All clients in every round, each from the same item vectors."""
    quantise = rounder(setting.quantum)
    users, items = users.copy(), quantise(items)
    for _ in range(rounds):
        total = np.zeros_like(items)
        for n, ratings in enumerate(clients):
            users[n], grads = update_user(setting, users[n], items, ratings)
            total += quantise(grads)
        items = items - total
    return users, items


def squared_errors(users: np.ndarray, items: np.ndarray, clients: Sequence[Ratings]) -> np.ndarray:
    """(r - u . v)^2 of every rating."""
    return np.array([(r - users[n] @ items[i]) ** 2 for n, ratings in enumerate(clients) for i, r in ratings])
