"""A slow float64 reference of federated reconstruction: Singhal et al. 2021, algorithm 1, with SGD on both sides.

Written from the paper's pseudo-code, batch by batch; it shares no code with the library. What is random, a
client's batches and its first vector, is given.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Examples = Sequence[tuple[int, float]]  # (item, rating or label)


class Client(NamedTuple):
    """One client in one round."""

    start: np.ndarray  # [D], its first vector
    batches: Sequence[Examples]
    weight: int  # its query examples


class Setting(NamedTuple):
    """The constants; `joint` trains on the query set and updates on it too: wrong on purpose."""

    loss: str
    recon_epochs: int
    recon_rate: float
    max_steps: int
    epochs: int
    rate: float
    joint: bool = False


def slope(setting: Setting, score: float, target: float) -> float:
    """d loss / d score of one example."""
    return 2 * (score - target) if setting.loss == "mse" else 1 / (1 + np.exp(-score)) - target


def reconstruct(
    setting: Setting, start: np.ndarray, items: np.ndarray, support: Sequence[Examples]
) -> np.ndarray:
    """k steps of SGD on the client's vector, the items frozen."""
    vector, steps = start.copy(), 0
    for _ in range(setting.recon_epochs):
        for batch in support:
            if steps < setting.max_steps:
                gradient = sum(slope(setting, items[i] @ vector, y) * items[i] for i, y in batch)
                vector, steps = vector - setting.recon_rate * gradient / len(batch), steps + 1
    return vector


def update(setting: Setting, vector: np.ndarray, items: np.ndarray, query: Sequence[Examples]) -> np.ndarray:
    """The change of the item vectors by SGD on the query set, the client's vector frozen."""
    changed = items.copy()
    for _ in range(setting.epochs):
        for batch in query:
            gradient = np.zeros_like(items)
            for item, target in batch:
                gradient[item] += slope(setting, changed[item] @ vector, target) * vector
            changed = changed - setting.rate * gradient / len(batch)
    return changed - items


def run_round(setting: Setting, items: np.ndarray, clients: Sequence[Client]) -> np.ndarray:
    """The server's step: the mean of the changes, weighted by query examples, at rate 1."""
    total, weight = np.zeros_like(items), 0
    for client in clients:
        reach = client.batches[: 2 * setting.max_steps]
        support, query = (reach, reach) if setting.joint else (reach[::2], reach[1::2])
        vector = reconstruct(setting, client.start, items, support)
        total += client.weight * update(setting, vector, items, query)
        weight += client.weight
    return items + total / max(weight, 1)
