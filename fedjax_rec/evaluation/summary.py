"""What a run reports of its test ranking besides the means: spread, groups, the catalogue, intervals.

Every number is of the *full* ranking at cut-off 10, but the intervals, which are of both rankings.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.catalogue import beyond_accuracy
from fedjax_rec.evaluation.groups import activity_quantiles, distribution, group_means, head_items
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.ranking import Places, Ranks
from fedjax_rec.evaluation.statistics import bootstrap_intervals

K = 10
METRICS = (f"hr@{K}", f"ndcg@{K}")
MOST_VALUES = 30  # an attribute with more values, such as a zip code, makes no groups


def summarise(
    ranks: Ranks,
    split: Split,
    lists: np.ndarray,
    *,
    sampled: str = "sampled99",
    attributes: Mapping[str, np.ndarray] | None = None,
) -> dict[str, Any]:
    """Summarise a test ranking.

    Args:
        ranks: of all users.
        split: what the tested model was trained on.
        lists: int[N, 10], each user's recommended items, -1 for an empty slot.
        sampled: name of the sampled ranking.
        attributes: str[N] by name, empty where unknown; those with 2 to 30 values make groups.

    Returns:
        `distribution` (p10, median, worst_decile of NDCG@10 over users), `groups` (by name of the grouping and
        group: users, hr@10, ndcg@10), `beyond_accuracy@10`, and `intervals` (by ranking and metric: the limits
        of the 95 % bootstrap interval over users).

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.synthetic(30, 90))
        >>> lists = np.zeros((30, 10), int)
        >>> summary = summarise(fr.popularity_ranks(split), split, lists)
        >>> sorted(summary), sorted(summary["groups"])
        (['beyond_accuracy@10', 'distribution', 'groups', 'intervals'], ['activity', 'item_popularity'])
    """
    values = _values(ranks.full)
    return {
        "distribution": distribution(values[METRICS[1]]),
        "groups": _groups(values, split, attributes or {}),
        f"beyond_accuracy@{K}": beyond_accuracy(lists, _popularity(split), split.num_users),
        "intervals": intervals(ranks, sampled),
    }


def _values(places: Places) -> dict[str, np.ndarray]:
    values = user_metrics(places, [K])
    return {name: values[name] for name in METRICS}


def _popularity(split: Split) -> np.ndarray:
    return np.bincount(split.items, minlength=split.num_items)


def _groups(
    values: Mapping[str, np.ndarray], split: Split, attributes: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    events, held = np.diff(split.offsets), split.test >= 0
    parts = np.where(head_items(_popularity(split))[np.maximum(split.test, 0)], "head", "tail")
    quantiles = activity_quantiles(events)
    activity = group_means(values, quantiles)
    for label, group in activity.items():
        inside = events[quantiles == label]
        group |= {"least_events": int(inside.min()), "most_events": int(inside.max())}
    found = {"activity": activity, "item_popularity": group_means(values, np.where(held, parts, ""))}
    for name, labels in attributes.items():
        if 2 <= len(set(labels.tolist()) - {""}) <= MOST_VALUES:
            found[name] = group_means(values, labels)
    return found


def intervals(ranks: Ranks, sampled: str) -> dict[str, dict[str, list[float]]]:
    """95 % bootstrap intervals over users.

    Args:
        ranks: of all users.
        sampled: name of the sampled ranking.

    Returns:
        [low, high] by ranking and metric, `hr@10` and `ndcg@10`.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.synthetic(30, 90))
        >>> sorted(intervals(fr.popularity_ranks(split), "sampled99"))
        ['full', 'sampled99']
    """
    return {"full": _intervals(ranks.full), sampled: _intervals(ranks.sampled)}


def _intervals(places: Places) -> dict[str, list[float]]:
    values = _values(places)
    found = bootstrap_intervals(np.stack(list(values.values()), axis=1))
    return {name: [low, high] for name, (low, _, high) in zip(values, found, strict=True)}
