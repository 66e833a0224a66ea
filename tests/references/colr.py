"""Plain-numpy reference of a round of CoLR (Nguyen et al. 2024, section 4) on matrix factorisation.

Each client holds the whole A [I, r], from 0, and descends on it by the chain rule through Q + A B:

    A <- A - eta sqrt(r / D) (dL/dQ) B^T,    p <- p - eta dL/dp
"""

from collections.abc import Sequence

import numpy as np

from tests.references.rounds import Client, Setting, Tree, combine, regularised


def train_client(
    setting: Setting, private: Tree, table: np.ndarray, basis: np.ndarray, client: Client
) -> tuple[Tree, np.ndarray]:
    """What the client keeps, and its A."""
    rank, width = basis.shape
    factor = np.zeros((len(table), rank))
    for batch in client.batches * setting.epochs:
        own, _, rows = regularised(setting, private, {}, {"vector": table + factor @ basis}, batch)
        factor = factor - setting.rate * np.sqrt(rank / width) * rows["vector"] @ basis.T
        private = combine(lambda p, g: p - setting.rate * g, private, own)
    return private, factor


def run_round(
    setting: Setting, table: np.ndarray, private: list[Tree], basis: np.ndarray, cohort: Sequence[Client]
) -> tuple[np.ndarray, list[Tree]]:
    """Q + mean over its touchers of each row of A, times B; and what the clients keep."""
    private, summed, count = list(private), np.zeros((len(table), len(basis))), np.zeros(len(table))
    for client in cohort:
        private[client.id], factor = train_client(setting, private[client.id], table, basis, client)
        summed = summed + factor
        count[np.unique(np.concatenate([items for items, _ in client.batches]))] += 1
    return table + (summed / np.maximum(count, 1)[:, None]) @ basis, private
