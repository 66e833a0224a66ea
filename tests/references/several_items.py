"""Metrics of several held-out items, by writing out every list that ties leave open."""

from itertools import groupby, permutations, product

import numpy as np


def lists(scores, candidates):
    """Every order of the candidates, best first, in which only tied items change places; NaN is worst."""
    keys = {item: -np.inf if np.isnan(scores[item]) else scores[item] for item in candidates}
    ordered = sorted(candidates, key=lambda item: (-keys[item], item))
    groups = [list(group) for _, group in groupby(ordered, key=lambda item: keys[item])]
    for orders in product(*(permutations(group) for group in groups)):
        yield [item for order in orders for item in order]


def measure(ranking, positives, k):
    """The metrics of one list, straight from their definitions."""
    hits = [rank for rank, item in enumerate(ranking[:k]) if item in positives]
    n = len(positives)
    ideal = sum(1 / np.log2(rank + 2) for rank in range(min(k, n)))
    return {
        f"hr@{k}": float(bool(hits)),
        f"precision@{k}": len(hits) / k,
        f"recall@{k}": len(hits) / n,
        f"truncated_recall@{k}": len(hits) / min(k, n),
        f"ndcg@{k}": sum(1 / np.log2(rank + 2) for rank in hits) / ideal,
        f"mrr@{k}": 1 / (hits[0] + 1) if hits else 0.0,
        f"map@{k}": sum((number + 1) / (rank + 1) for number, rank in enumerate(hits)) / n,
    }


def expected(scores, positives, rivals, k):
    """The mean over all lists, NaN positives being behind all rivals."""
    scores = np.array(scores, float)
    worst = np.nanmin(scores, initial=0) - 1
    of_rivals = np.where(np.isnan(scores), worst, scores)  # a NaN rival is better than a NaN positive
    mixed = of_rivals.copy()
    mixed[list(positives)] = np.where(np.isnan(scores), worst - 1, scores)[list(positives)]
    values = [measure(ranking, positives, k) for ranking in lists(mixed, {*positives, *rivals})]
    return {name: float(np.mean([value[name] for value in values])) for name in values[0]}


def auc(scores, positives, rivals):
    """The share of pairs in the right order."""
    pairs = [(scores[p], scores[r]) for p in positives for r in rivals]
    return float(np.mean([float(p > r) + (p == r) / 2 + (not np.isnan(p) and np.isnan(r)) for p, r in pairs]))
