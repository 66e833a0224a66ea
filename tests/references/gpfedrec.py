"""GPFedRec in plain numpy and float64: slow, dense, and written from the paper; an oracle for the compiled engine.

Zhang et al. 2024, "GPFedRec: graph-guided personalization for federated recommendation", algorithm 1:

    for each client u:                                          # `run_round`
        Q_u = Q
        for each local epoch, for each mini-batch:              # `train_client`
            descend mean BCE(sigmoid(MLP([p_u; q_i]))) + gamma mean (Q_u - r_u)^2
    A_uv = 1 / |N_u| for v in N_u                               # `neighbourhoods`
    r_u = sum_v A_uv Q_v
    Q   = mean_u r_u
"""

from collections.abc import Sequence
from math import exp, log1p
from typing import NamedTuple

import numpy as np

Batch = list[tuple[int, float]]  # items, each with its label
Layers = list[tuple[np.ndarray, np.ndarray]]  # weights [in, out] and bias [out]


class Client(NamedTuple):
    """A client's private leaves."""

    user: np.ndarray  # [D]
    layers: Layers
    near: np.ndarray  # r_u, [I, D]


class Setting(NamedTuple):
    """All the numbers of a run."""

    epochs: int
    rate: float
    factor: float
    pull: float
    alike: bool
    threshold: float


def forward(layers: Layers, pair: np.ndarray) -> list[np.ndarray]:
    """The input of each layer, and the logit: rectified after every layer but the last."""
    values = [pair]
    for number, (weights, bias) in enumerate(layers):
        out = values[-1] @ weights + bias
        values.append(out if number == len(layers) - 1 else np.maximum(out, 0.0))
    return values


def backward(layers: Layers, values: list[np.ndarray], slope: float) -> tuple[Layers, np.ndarray]:
    """Gradients of the layers and of their input, for a derivative of the loss in the logit."""
    grads: Layers = []
    error = np.array([slope])
    for number in reversed(range(len(layers))):
        if number < len(layers) - 1:
            error = error * (values[number + 1] > 0)
        grads.insert(0, (np.outer(values[number], error), error))
        error = layers[number][0] @ error
    return grads, error


def descend(
    setting: Setting, client: Client, table: np.ndarray, batch: Batch
) -> tuple[Client, np.ndarray, float]:
    """One step on a mini-batch, and its mean loss before."""
    items, dim = table.shape
    user, rows = np.zeros(dim), 2 * setting.pull * (table - client.near) / (items * dim)
    layers = [(np.zeros_like(w), np.zeros_like(b)) for w, b in client.layers]
    loss = setting.pull * float(np.mean((table - client.near) ** 2))
    for item, label in batch:
        values = forward(client.layers, np.concatenate([client.user, table[item]]))
        logit = float(values[-1][0])
        loss += (log1p(exp(-logit)) + (1.0 - label) * logit) / len(batch)
        grads, pair = backward(client.layers, values, (1.0 / (1.0 + exp(-logit)) - label) / len(batch))
        layers = [(w + dw, b + db) for (w, b), (dw, db) in zip(layers, grads, strict=True)]
        user, rows[item] = user + pair[:dim], rows[item] + pair[dim:]
    rate, factor = setting.rate, setting.factor
    moved = [(w - rate * dw, b - rate * db) for (w, b), (dw, db) in zip(client.layers, layers, strict=True)]
    client = client._replace(user=client.user - (rate * factor - rate) * user, layers=moved)
    return client, table - (rate * factor * items - rate) * rows, loss


def train_client(
    setting: Setting, client: Client, table: np.ndarray, batches: Sequence[Batch]
) -> tuple[Client, np.ndarray, float]:
    """A client's new private leaves, its own table, and its loss summed over examples and epochs."""
    total = 0.0
    for _ in range(setting.epochs):
        for batch in batches:
            client, table, loss = descend(setting, client, table, batch)
            total += loss * len(batch)
    return client, table, total


def neighbourhoods(tables: Sequence[np.ndarray], *, alike: bool, threshold: float) -> np.ndarray:
    """A [C, C], by the cosine of the flattened tables."""
    flat = [table.ravel() for table in tables]
    cosine = np.array([[a @ b / np.sqrt((a @ a) * (b @ b)) for b in flat] for a in flat])
    measure = cosine if alike else 1.0 - cosine
    np.fill_diagonal(measure, 1.0 if alike else 0.0)
    links = np.zeros_like(measure)
    for u in range(len(tables)):
        chosen = [v for v in range(len(tables)) if measure[u, v] > threshold * measure.mean()] or [u]
        links[u, chosen] = 1.0 / len(chosen)
    return links


def run_round(
    setting: Setting, clients: list[Client], table: np.ndarray, drawn: dict[int, list[Batch]]
) -> tuple[list[Client], np.ndarray, float]:
    """New private leaves, the new global table, and the mean loss per example."""
    clients, tables, losses, examples = list(clients), [], 0.0, 0
    for number, batches in drawn.items():
        clients[number], own, loss = train_client(setting, clients[number], table, batches)
        tables.append(own)
        losses, examples = losses + loss, examples + setting.epochs * sum(map(len, batches))
    links = neighbourhoods(tables, alike=setting.alike, threshold=setting.threshold)
    near = [sum(links[u, v] * tables[v] for v in range(len(tables))) for u in range(len(tables))]
    for place, number in enumerate(drawn):
        clients[number] = clients[number]._replace(near=near[place])
    return clients, np.mean(near, axis=0), losses / examples
