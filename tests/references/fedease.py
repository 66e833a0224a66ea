"""Federated EASE in slow plain numpy: Steck 2019, column by column as regressions."""

import numpy as np


def histories(population):
    """bool[N, I], X."""
    counts = np.diff(np.asarray(population.offsets))
    table = np.zeros((population.num_clients, population.num_items))
    table[np.repeat(np.arange(len(counts)), counts), np.asarray(population.examples["items"])] = 1
    return table


def weights_of(pairs, ridge):
    """EASE in float64, column by column as a regression without the item itself: not by its closed form."""
    size = len(pairs)
    weights = np.zeros((size, size))
    for item in range(size):
        others = np.arange(size) != item
        left = pairs[np.ix_(others, others)] + ridge * np.eye(size - 1)
        weights[others, item] = np.linalg.solve(left, pairs[others, item])
    return weights


def default_ridge(events, clients):
    """lambda, where none is given: the geometric mean of the root of M and of M / N."""
    return np.sqrt(np.sqrt(events) * events / clients)
