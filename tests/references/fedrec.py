"""A slow float64 reference of FedRec's batch version (Lin et al. 2020) and FedRec++ (Liang et al. 2021).

Written from the papers' pseudo-code, item by item; it shares no code with the library. What is random, the sampled
items, is given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Client(NamedTuple):
    """One client in one round."""

    ratings: dict[int, float]
    sampled: Sequence[int]  # unrated items


class Setting(NamedTuple):
    """The papers' constants."""

    averaging_rounds: int
    local_steps: int
    denoise: bool = False
    gamma: float = 0.8
    decay: float = 0.9
    regularisation: float = 0.001
    divide_by_rated: bool = False  # u's step divided by n_u instead of n_u + n'_u: wrong on purpose


def tune(setting: Setting, rate: float, user: np.ndarray, items: np.ndarray, client: Client) -> np.ndarray:
    """A copy of the user vector after T_local steps of full-batch descent on the rated items."""
    copy = user.copy()
    for _ in range(setting.local_steps):
        gradient = np.zeros_like(copy)
        for item, rating in client.ratings.items():
            error = rating - copy @ items[item]
            gradient += -error * items[item] + setting.regularisation * copy
        copy = copy - rate * gradient / len(client.ratings)
    return copy


def fill(
    setting: Setting, turn: int, user: np.ndarray, items: np.ndarray, client: Client
) -> dict[int, float]:
    """Virtual ratings of the sampled items: the client's mean, later the copy's predictions."""
    if turn > setting.averaging_rounds and setting.local_steps:
        copy = tune(setting, setting.gamma * setting.decay**turn, user, items, client)
        return {item: float(copy @ items[item]) for item in client.sampled}
    return dict.fromkeys(client.sampled, float(np.mean(list(client.ratings.values()))))


def work(
    setting: Setting, turn: int, user: np.ndarray, items: np.ndarray, client: Client
) -> tuple[np.ndarray, dict[int, np.ndarray], dict[int, np.ndarray]]:
    """One client's round: its new vector, its gradients of rated items, and those of sampled ones."""
    virtual = fill(setting, turn, user, items, client)
    own: dict[int, np.ndarray] = {}
    noise: dict[int, np.ndarray] = {}
    gradient, used = np.zeros_like(user), 0
    for ratings, grads, counts in ((client.ratings, own, True), (virtual, noise, not setting.denoise)):
        for item, rating in ratings.items():
            error = rating - user @ items[item]
            grads[item] = -error * user + setting.regularisation * items[item]
            if counts:
                gradient += -error * items[item] + setting.regularisation * user
                used += 1
    rate = setting.gamma * setting.decay**turn
    return user - rate * gradient / (len(client.ratings) if setting.divide_by_rated else used), own, noise


def run_round(
    setting: Setting, turn: int, users: np.ndarray, items: np.ndarray, clients: Sequence[Client]
) -> tuple[np.ndarray, np.ndarray]:
    """All clients from the same item vectors; each row then takes a step by the mean of what was sent for it."""
    users, sums, senders = users.copy(), np.zeros_like(items), np.zeros(len(items))
    for n, client in enumerate(clients):
        if client.ratings:
            users[n], own, noise = work(setting, turn, users[n], items, client)
            for grads in (own,) if setting.denoise else (own, noise):
                for item, gradient in grads.items():
                    sums[item] += gradient
                    senders[item] += 1
    mean = sums / np.maximum(senders, 1)[:, None]
    return users, items - setting.gamma * setting.decay**turn * mean
