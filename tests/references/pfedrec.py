"""PFedRec in plain numpy and float64: slow, dense, and written from the paper; an oracle for the compiled engine.

Zhang et al. 2023, "Dual personalization on federated recommendation", algorithm 1: every client copies the whole
item table, trains head and table in turn on each batch, and the server takes the uniform mean of the tables:

    for each client u:                                          # `run_round`
        Q_u, w, b = Q, w_u, b_u
        for each local epoch, for each local batch:             # `train_client`
            (w, b) = (w, b) - eta d/d(w, b) mean loss
            Q_u    = Q_u - eta f I d/dQ mean loss               # with the new head
        w_u, b_u = w, b
    Q = mean_u Q_u

The loss is the cross-entropy of sigmoid(s), whose derivative in s is sigmoid(s) - y wherever the 32-bit sigmoid of
the official code is neither 0 nor 1; these tests stay there, and `cross_entropy_of_sigmoid` is tested by itself.
"""

from collections.abc import Sequence
from math import exp, log1p
from typing import NamedTuple

import numpy as np

Batch = list[tuple[int, float]]  # items, each with its label


class Head(NamedTuple):
    """A client's private leaves."""

    weights: np.ndarray  # [D]
    bias: float


class Rates(NamedTuple):
    """Of head and rows."""

    head: float
    rows: float


def slope(logit: float, label: float) -> float:
    """Derivative of the cross-entropy in the logit: sigmoid(s) - y."""
    return 1.0 / (1.0 + exp(-logit)) - label


def loss_of(logit: float, label: float) -> float:
    """-y log sigmoid(s) - (1 - y) log(1 - sigmoid(s))."""
    return log1p(exp(-logit)) + (1.0 - label) * logit


def step_head(head: Head, table: np.ndarray, batch: Batch, rate: float) -> tuple[Head, float]:
    """One step of the head, and the batch's summed loss before it."""
    weights, bias, loss = np.zeros_like(head.weights), 0.0, 0.0
    for item, label in batch:
        logit = float(table[item] @ head.weights) + head.bias
        loss += loss_of(logit, label)
        weights += slope(logit, label) * table[item] / len(batch)
        bias += slope(logit, label) / len(batch)
    return Head(head.weights - rate * weights, head.bias - rate * bias), loss


def step_table(head: Head, table: np.ndarray, batch: Batch, rate: float) -> np.ndarray:
    """One step of the whole table, through a head that stands still."""
    grad = np.zeros_like(table)
    for item, label in batch:
        logit = float(table[item] @ head.weights) + head.bias
        grad[item] += slope(logit, label) * head.weights / len(batch)
    return table - rate * grad


def train_client(
    head: Head, table: np.ndarray, batches: Sequence[Batch], rates: Rates, epochs: int
) -> tuple[Head, np.ndarray, float]:
    """A client's new head, its own table, and its loss summed over examples and epochs."""
    total = 0.0
    for _ in range(epochs):
        for batch in batches:
            head, loss = step_head(head, table, batch, rates.head)
            table = step_table(head, table, batch, rates.rows)
            total += loss
    return head, table, total


def run_round(
    heads: list[Head], table: np.ndarray, clients: dict[int, list[Batch]], rates: Rates, epochs: int
) -> tuple[list[Head], np.ndarray, float]:
    """New heads, the mean of the clients' tables, and the mean loss per example."""
    heads, tables, losses, examples = list(heads), [], 0.0, 0
    for client, batches in clients.items():
        heads[client], own, loss = train_client(heads[client], table, batches, rates, epochs)
        tables.append(own)
        losses, examples = losses + loss, examples + epochs * sum(map(len, batches))
    return heads, np.mean(tables, axis=0), losses / examples
