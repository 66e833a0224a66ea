"""FedRAP in plain numpy and float64: slow, dense, and written from the paper; an oracle for the compiled engine.

Li et al. 2024, "Federated recommendation with additive personalization", algorithm 1 and eq. 5:

    for each client u:                                          # `run_round`
        C_u = C
        for each local epoch, for each mini-batch:              # `train_client`
            g = gradient of mean BCE - lambda mean (D_u - C_u)^2 + mu mean |C_u|, over the mini-batch's rows
            every leaf <- leaf - rate (g + L2 leaf)
        stop early where the mean loss so far hardly changes
    C = mean_u C_u

Rates shrink with each step of a client and with each round.
"""

from collections.abc import Sequence
from math import exp, log1p, tanh
from typing import NamedTuple

import numpy as np

Batch = list[tuple[int, float]]  # items, each with its label


class Client(NamedTuple):
    """A client's private leaves."""

    own: np.ndarray  # [I, D]
    weights: np.ndarray  # [D]
    bias: float


class Setting(NamedTuple):
    """All the numbers of a run."""

    epochs: int
    head_rate: float
    table_rate: float
    independence: float
    sparsity: float
    regularisation: float
    round_decay: float
    step_decay: float
    tolerance: float
    curriculum: bool


def gradient(
    setting: Setting, client: Client, common: np.ndarray, batch: Batch
) -> tuple[Client, np.ndarray, float]:
    """Gradients of a mini-batch's mean loss (own table and head; shared table), and that loss, without L2."""
    own, shared, weights = np.zeros_like(common), np.zeros_like(common), np.zeros_like(client.weights)
    bias, loss, entries = 0.0, 0.0, len(batch) * common.shape[1]
    for item, label in batch:
        row, apart = client.own[item] + common[item], client.own[item] - common[item]
        logit = float(row @ client.weights) + client.bias
        slope = (1.0 / (1.0 + exp(-logit)) - label) / len(batch)
        loss += (log1p(exp(-logit)) + (1.0 - label) * logit) / len(batch)
        loss -= setting.independence * float(apart @ apart) / entries
        loss += setting.sparsity * float(np.abs(common[item]).sum()) / entries
        own[item] += slope * client.weights - 2 * setting.independence * apart / entries
        shared[item] += slope * client.weights + 2 * setting.independence * apart / entries
        shared[item] += setting.sparsity * np.sign(common[item]) / entries
        weights += slope * row
        bias += slope
    return Client(own, weights, bias), shared, loss


def train_client(
    setting: Setting, turn: int, client: Client, common: np.ndarray, batches: Sequence[Batch]
) -> tuple[Client, np.ndarray, float, int]:
    """A client's new leaves, its shared table, its summed loss, and how many examples it visited."""
    growth = tanh(turn / 10) if setting.curriculum else 1.0
    setting = setting._replace(independence=setting.independence * growth, sparsity=setting.sparsity * growth)
    step, total, visited, means = 0, 0.0, 0, []
    for _ in range(setting.epochs):
        for batch in batches:
            grads, shared, loss = gradient(setting, client, common, batch)
            shrink = setting.round_decay**turn * setting.step_decay**step
            table, head, decay = (
                shrink * setting.table_rate,
                shrink * setting.head_rate,
                setting.regularisation,
            )
            client = Client(
                client.own - table * (grads.own + decay * client.own),
                client.weights - head * (grads.weights + decay * client.weights),
                client.bias - head * (grads.bias + decay * client.bias),
            )
            common = common - table * (shared + decay * common)
            step, total, visited = step + 1, total + loss * len(batch), visited + len(batch)
        means.append(total / visited)
        if len(means) > 1 and abs(means[-1] - means[-2]) < setting.tolerance * abs(means[-2]):
            break
    return client, common, total, visited


def run_round(
    setting: Setting, turn: int, clients: list[Client], common: np.ndarray, drawn: dict[int, list[Batch]]
) -> tuple[list[Client], np.ndarray, float, int]:
    """New private leaves, the mean of the shared tables, the mean loss, and the examples visited."""
    clients, tables, losses, examples = list(clients), [], 0.0, 0
    for number, batches in drawn.items():
        clients[number], table, loss, visited = train_client(setting, turn, clients[number], common, batches)
        tables.append(table)
        losses, examples = losses + loss, examples + visited
    return clients, np.mean(tables, axis=0), losses / examples, examples
