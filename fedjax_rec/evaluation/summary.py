"""What a run reports of a ranking of all users: the means, spread, groups, the catalogue, intervals.

The means (`result_metrics`) and the intervals are of both rankings, full and sampled, all else (`summarise`) is of
the *full* one at cut-off 10.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.heldout import PARTS, heldout_events
from fedjax_rec.data.splits import Split
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.catalogue import beyond_accuracy
from fedjax_rec.evaluation.groups import activity_quantiles, distribution, group_means, head_items
from fedjax_rec.evaluation.metrics import metrics_from_ranks, user_metrics
from fedjax_rec.evaluation.pair_ranking import PairRanks
from fedjax_rec.evaluation.ranking import MidRanks, Ranks, count_rivals
from fedjax_rec.evaluation.statistics import bootstrap_intervals
from fedjax_rec.evaluation.user_blocks import check_users

RESULT_KS = (1, 5, 10, 20, 50)  # the cut-offs of a result's means
K = 10  # the cut-off of all else
METRICS = (f"hr@{K}", f"ndcg@{K}")
METRICS_OF_SEVERAL = (f"recall@{K}", f"ndcg@{K}", f"hr@{K}")  # where users have several held-out items
MAX_GROUPS = 30  # an attribute with more values, such as a zip code, makes no groups

Metrics = dict[str, float]


def result_metrics(
    ranks: Ranks, split: Split, sampled: str | None = None, which: str = "test"
) -> dict[str, Metrics]:
    """The metrics that a result holds, of full and of sampled ranking.

    Args:
        ranks: of all users.
        split: says how many rivals each positive had (for AUC).
        sampled: name of the sampled part; by default that of the split, such as "sampled99".
        which: "test" or "validation".

    Returns:
        {"full": {"hr@10": ..., ...}, sampled: {...}}.

    Example:
        >>> from fedjax_rec.evaluation.reference_ranks import popularity_ranks
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> metrics = result_metrics(popularity_ranks(tiny_split()), tiny_split())
        >>> sorted(metrics), metrics["full"]["hr@1"]
        (['full', 'sampled2'], 0.0)
    """
    check_users(len(ranks.full), split, "ranks")
    rivals = count_rivals(split, which=which)
    return {
        "full": metrics_from_ranks(ranks.full, RESULT_KS, rivals=rivals.full),
        sampled or name_sampled(split): metrics_from_ranks(ranks.sampled, RESULT_KS, rivals=rivals.sampled),
    }


def name_sampled(split: Split) -> str:
    """Name the sampled ranking after the size of its candidate lists.

    Args:
        split: the split.

    Returns:
        such as "sampled99".

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> name_sampled(tiny_split(num_candidates=2))
        'sampled2'
    """
    return f"sampled{split.candidates_test.shape[1]}"


class Rivals(NamedTuple):
    """How many items the test items compete with: the fewest and the most of any ranked user."""

    full: tuple[int, int]
    sampled: tuple[int, int]
    ranked: int  # users with a test item that has a rival
    unrivalled: int  # users with a test item that has none: they have met all others


def rivals_of(split: Split) -> Rivals:
    """Count what test items compete with.

    Args:
        split: holds them.

    Returns:
        the counts.

    Raises:
        ValueError: if no user can be ranked.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> rivals_of(tiny_split(num_candidates=99))
        Rivals(full=(2, 2), sampled=(2, 2), ranked=4, unrivalled=0)
    """
    # as `count_rivals` counts them, without going over every event
    tested = split.test >= 0
    held = sum(np.diff(heldout_events(split, which).offsets) for which in PARTS)
    rivals = split.num_items - np.diff(split.offsets) - held
    ranked = tested & (rivals > 0)
    if not ranked.any():
        reason = "everybody has met all other items" if tested.any() else "nobody has a test item"
        raise ParameterError(
            "{name} has nothing to rank: {reason}; use other data", name=split.name, reason=reason
        )
    full = rivals[ranked]
    sampled = (split.candidates_test[ranked] >= 0).sum(axis=1)
    return Rivals(
        full=(int(full.min()), int(full.max())),
        sampled=(int(sampled.min()), int(sampled.max())),
        ranked=int(ranked.sum()),
        unrivalled=int((tested & ~ranked).sum()),
    )


def tell_rivals(split: Split) -> list[str]:
    """What a table does not show: that there are fewer rivals than the name of the sampled ranking says.

    Args:
        split: holds the test items.

    Returns:
        a line if candidates are fewer, and one if some users cannot be ranked.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> tell_rivals(tiny_split(num_candidates=99)), tell_rivals(tiny_split(num_candidates=2))
        (['sampled99: the test items compete with 2 items, not 99: users have not met more'], [])
    """
    rivals = rivals_of(split)
    least, most = rivals.sampled
    wanted = split.candidates_test.shape[1]
    lines = []
    if least < wanted:
        found = f"{least}" if least == most else f"{least} to {most}"
        why = "users have not met more" if rivals.full[0] < wanted else "their lists hold no more"
        lines.append(f"{name_sampled(split)}: the test items compete with {found} items, not {wanted}: {why}")
    if rivals.unrivalled:
        users = rivals.unrivalled + rivals.ranked
        lines.append(f"{rivals.unrivalled:,} of {users:,} users have met all other items, and are not ranked")
    return lines


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
        `rivals` (of the test items, fewest and most by ranking; users ranked, and without any rival),
        `distribution` (p10, median, worst_decile of NDCG@10 over users), `groups` (by name of the grouping and
        group: users, hr@10, ndcg@10), `beyond_accuracy@10`, and `intervals` (by ranking and metric: the limits
        of the 95 % bootstrap interval over users). Of several items per user also recall@10.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> lists = np.zeros((30, 10), int)
        >>> summary = summarise(fr.evaluation.popularity_ranks(split), split, lists)
        >>> sorted(summary), sorted(summary["groups"])
        (['beyond_accuracy@10', 'distribution', 'groups', 'intervals', 'rivals'], ['activity', 'item_popularity'])
    """
    check_users(len(ranks.full), split, "ranks")
    check_users(len(lists), split, "lists")
    values = _values(ranks.full)
    rivals = rivals_of(split)
    return {
        "rivals": {
            "full": list(rivals.full),
            sampled: list(rivals.sampled),
            "users_ranked": rivals.ranked,
            "users_without_rivals": rivals.unrivalled,
        },
        "distribution": distribution(values[METRICS[1]]),
        "groups": _groups(ranks.full, values, split, attributes or {}),
        f"beyond_accuracy@{K}": beyond_accuracy(lists, _popularity(split), split.num_users),
        "intervals": user_intervals(ranks, sampled),
    }


def _values(ranks: MidRanks | PairRanks) -> dict[str, np.ndarray]:
    values = user_metrics(ranks, [K])
    names = METRICS_OF_SEVERAL if isinstance(ranks, PairRanks) else METRICS
    return {name: values[name] for name in names}


def _popularity(split: Split) -> np.ndarray:
    return np.bincount(split.items, minlength=split.num_items)


def _groups(
    ranks: MidRanks | PairRanks,
    values: Mapping[str, np.ndarray],
    split: Split,
    attributes: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    events = np.diff(split.offsets)
    quantiles = activity_quantiles(events)
    activity = group_means(values, quantiles)
    for label, group in activity.items():
        inside = events[quantiles == label]
        group |= {"least_events": int(inside.min()), "most_events": int(inside.max())}
    groups = {
        "activity": activity,
        "item_popularity": _by_popularity(ranks, values, split),
    }
    for name, labels in attributes.items():
        if 2 <= len(set(labels.tolist()) - {""}) <= MAX_GROUPS:
            groups[name] = group_means(values, labels)
    return groups


def _by_popularity(
    ranks: MidRanks | PairRanks, values: Mapping[str, np.ndarray], split: Split
) -> dict[str, dict[str, float]]:
    """Means over users of head and of tail items; of several, those of the other kind are in no list."""
    is_head = head_items(_popularity(split))
    if not isinstance(ranks, PairRanks):
        halves = np.where(is_head[np.maximum(split.test, 0)], "head", "tail")
        return group_means(values, np.where(split.test >= 0, halves, ""))
    in_head = is_head[heldout_events(split, "test").items]
    groups: dict[str, dict[str, float]] = {}
    for label, pairs in (("head", in_head), ("tail", ~in_head)):
        if pairs.any():
            groups |= group_means(_values(ranks.select(pairs)), np.full(split.num_users, label))
    return groups


def user_intervals(ranks: Ranks, sampled: str) -> dict[str, dict[str, list[float]]]:
    """95 % bootstrap intervals over users.

    Args:
        ranks: of all users.
        sampled: name of the sampled ranking.

    Returns:
        [low, high] by ranking and metric, `hr@10` and `ndcg@10`; of several items per user `recall@10` too.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> sorted(user_intervals(fr.evaluation.popularity_ranks(split), "sampled99"))
        ['full', 'sampled99']
    """
    return {"full": _intervals(ranks.full), sampled: _intervals(ranks.sampled)}


def _intervals(ranks: MidRanks | PairRanks) -> dict[str, list[float]]:
    values = _values(ranks)
    limits = bootstrap_intervals(np.stack(list(values.values()), axis=1))
    return {name: [low, high] for name, (low, _, high) in zip(values, limits, strict=True)}
