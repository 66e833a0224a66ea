"""Plain-numpy references, in float64, of q-FedAvg, AFL and draws in proportion to weights; no jax, no tricks.

q-FedAvg is written as in Li et al. 2020, algorithm 2, with Delta_i = L (w - w_i), not divided by L. Both rules
take the loss of the first local epoch for F_i, as the library says it does.
"""

from collections.abc import Callable, Sequence

import numpy as np

from tests.references.fedmf import (
    Client,
    Setting,
    State,
    Values,
    apply,
    train_client,
    train_cohort,
    weighted_sum,
)

FLOOR = 1e-10


def first_losses(setting: Setting, state: State, clients: Sequence[Client]) -> np.ndarray:
    """F_i: each client's mean loss over one local epoch from the downloaded model."""
    once = setting._replace(epochs=1)
    runs = [train_client(once, client, state.private[client.id], state.server) for client in clients]
    return np.array([loss / examples for _, loss, examples in runs])


def q_fedavg(q: float, lipschitz: float) -> Callable[..., Values]:
    """Li et al. 2020, algorithm 2: what is added to w."""

    def step(sent: Sequence[Values], losses: np.ndarray) -> Values:
        top, below = [], 0.0
        for delta, loss in zip(sent, losses + FLOOR, strict=True):
            big = {name: -lipschitz * array for name, array in delta.items()}  # L (w - w_i)
            squared = sum(float((array**2).sum()) for array in big.values())
            top.append({name: loss**q * array for name, array in big.items()})
            below += q * loss ** (q - 1) * squared + lipschitz * loss**q
        return weighted_sum(top, [-1.0 / below for _ in top])

    return step


def nearest_in_simplex(values: np.ndarray) -> np.ndarray:
    """The Euclidean projection onto the simplex: tau of max(v - tau, 0) found by bisection."""
    low, high = values.min() - 1.0, values.max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.maximum(values - middle, 0).sum() > 1 else (low, middle)
    return np.maximum(values - high, 0)


def mix(weights: np.ndarray, groups: np.ndarray, sent: Sequence[Values], clients: Sequence[Client]) -> Values:
    """sum_g lambda_g mean of g's updates / sum_g lambda_g, over the groups that take part."""
    present = [int(groups[client.id]) for client in clients]
    total = sum(weights[group] for group in set(present))
    share = [weights[group] / present.count(group) / total for group in present]
    return weighted_sum(sent, share)


def ascend(
    weights: np.ndarray, groups: np.ndarray, rate: float, losses: np.ndarray, clients: Sequence[Client]
) -> np.ndarray:
    """Mohri et al. 2019, algorithm 1: lambda of the groups that take part rises by their mean losses."""
    risen = weights.copy()
    for group in {int(groups[client.id]) for client in clients}:
        own = [x for x, client in zip(losses, clients, strict=True) if groups[client.id] == group]
        risen[group] += rate * float(np.mean(own))
    return nearest_in_simplex(risen)


def run_round(
    setting: Setting, state: State, cohort: Sequence[Client], step: Callable[..., Values]
) -> tuple[State, np.ndarray]:
    """A round whose server adds what `step(updates, losses, clients)` makes; and the losses."""
    clients = [client for client in cohort if client.ratings]
    kept, sent, _ = train_cohort(setting, state, clients)
    losses = first_losses(setting, state, clients)
    descent = {name: -array for name, array in step(sent, losses, clients).items()}
    server, memory = apply(setting.server, state.server, descent, state.memory)
    private = list(state.private)
    for client, values in zip(clients, kept, strict=True):
        private[client.id] = values
    return State(server, private, memory), losses


def draw_by_turns(random: np.random.Generator, weights: np.ndarray, cohort: int) -> list[int]:
    """Successive draws without replacement: each in proportion to the weights of those that are left."""
    left, drawn = weights.astype(float).copy(), []
    for _ in range(cohort):
        drawn.append(int(random.choice(len(left), p=left / left.sum())))
        left[drawn[-1]] = 0.0
    return drawn
