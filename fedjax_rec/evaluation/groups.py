"""Whom a mean hides: the distribution over clients, and means of groups of them.

A federated model serves clients one by one, so that a good mean with a bad tail is a bad model (Li et al.
2020, arXiv:1905.10497, evaluate the worst and best decile of devices). Users whose value is NaN, without a
positive, are in no statistic and no group.
"""

from collections.abc import Mapping

import numpy as np

WORST_SHARE = 0.1  # share of the clients in the worst decile


def distribution(values: np.ndarray) -> dict[str, float]:
    """How a metric is distributed over clients.

    Args:
        values: float[N], each user's value, higher is better.

    Returns:
        `p10`, the 10th percentile (linear interpolation); `median`; `worst_decile`, the mean of the lowest
        tenth of the users, ceil(N / 10) of them; NaN without users.

    Example:
        >>> distribution(np.arange(21.0))
        {'p10': 2.0, 'median': 10.0, 'worst_decile': 1.0}
    """
    values = np.sort(values[~np.isnan(values)])
    if not len(values):
        return dict.fromkeys(("p10", "median", "worst_decile"), np.nan)
    worst = values[: int(np.ceil(len(values) * WORST_SHARE))]
    p10, median = np.quantile(values, [0.1, 0.5])
    return {"p10": float(p10), "median": float(median), "worst_decile": float(worst.mean())}


def activity_quantiles(events: np.ndarray, num_quantiles: int = 4) -> np.ndarray:
    """Label users by the quantile of their number of training events.

    Users with equally many events share a quantile, the lower one, so that quantiles may differ in size and
    a label may have nobody.

    Args:
        events: int[N], training events of each user.
        num_quantiles: 1 or more.

    Returns:
        str[N], `q1` (the least active) to `q{num_quantiles}`.

    Raises:
        ValueError: if `num_quantiles` is less than 1.

    Example:
        >>> activity_quantiles(np.array([1, 2, 3, 4, 9, 9, 9, 9])).tolist()
        ['q1', 'q1', 'q2', 'q2', 'q3', 'q3', 'q3', 'q3']
    """
    if num_quantiles < 1:
        raise ValueError(f"num_quantiles={num_quantiles} is out of range; choose 1 or more")
    shares = np.arange(1, num_quantiles) / num_quantiles
    edges = np.quantile(events, shares) if len(events) else np.zeros(0)
    labels = np.array([f"q{number}" for number in range(1, num_quantiles + 1)])
    return labels[np.searchsorted(edges, events, side="left")]


def head_items(popularity: np.ndarray) -> np.ndarray:
    """Mark the head: the fewest items that hold at least half of the training events; the rest is the tail.

    Of equally popular items at the border those with the lower id belong to the head. "Head" has no common
    definition; this one, the N50 of Kilkki's model of long tails (2007, First Monday 12(5)), gives head and
    tail equal weight in training.

    Args:
        popularity: float[I], training events of each item.

    Returns:
        bool[I].

    Example:
        >>> head_items(np.array([1, 5, 2, 2])).tolist()
        [False, True, False, False]
    """
    popularity = np.asarray(popularity, np.float64)
    order = np.argsort(-popularity, kind="stable")
    cumulated = np.cumsum(popularity[order]) - popularity[order]  # events of the more popular items
    head = np.zeros(len(popularity), bool)
    head[order] = cumulated < popularity.sum() / 2
    return head


def group_means(
    values: Mapping[str, np.ndarray], labels: np.ndarray, include: np.ndarray | None = None
) -> dict[str, dict[str, float]]:
    """Mean of each metric in each group of users.

    Args:
        values: float[N] by name of the metric, NaN together for a user without a positive.
        labels: str[N], the group of each user; an empty label is no group.
        include: bool[N], users to look at; None means all.

    Returns:
        By label, in sorted order: `users`, how many have a value, and the means; NaN for a group without any.

    Example:
        >>> group_means({"hr@10": np.array([1.0, 0.0, np.nan])}, np.array(["F", "M", "M"]))
        {'F': {'users': 1, 'hr@10': 1.0}, 'M': {'users': 1, 'hr@10': 0.0}}
    """
    labels = np.asarray(labels).astype(str)
    include = np.ones(len(labels), bool) if include is None else include
    groups = {}
    for label in sorted(set(labels[include].tolist()) - {""}):
        inside = include & (labels == label)
        present = {name: value[inside & ~np.isnan(value)] for name, value in values.items()}
        means = {name: float(value.mean()) if len(value) else np.nan for name, value in present.items()}
        groups[label] = {"users": len(next(iter(present.values()), [])), **means}
    return groups
