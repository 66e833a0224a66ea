"""Metrics of several held-out items per user, from top-k lists or from the ranks of all of them.

With n distinct positives of a user, rel_j = 1 where the item at 0-based rank j is one of them, and
hits@k = sum of rel_j over j < k:

    HR@k               = [hits@k > 0]
    precision@k        = hits@k / k
    recall@k           = hits@k / n              (Dacrema et al. 2021, arXiv:1911.07698)
    truncated_recall@k = hits@k / min(k, n)      (Liang et al. 2018, arXiv:1802.05814, section 4.2)
    NDCG@k             = sum_j rel_j / log2(j + 2)  over the same sum for min(k, n) hits at the top
    MRR@k              = 1 / (first hit's rank + 1), 0 without a hit
    MAP@k              = 1/n * sum_j rel_j * precision@(j + 1)   (TREC; never truncated to min(k, n))
    AUC                = share of pairs (positive, other item) in the right order

The two recalls have two names because papers mean either by Recall@k. A user without a positive has NaN
everywhere and is left out of means. Positives and recommendations that occur twice count once, at their best
rank; -1 is an empty slot, which is not relevant but counts in precision.

Axis legend: `N` users, `K` slots of a list, `P` positives of all users.
"""

from collections.abc import Sequence

import numpy as np

from fedjax_rec.data.sorting import order_of_events, sort_distinct
from fedjax_rec.evaluation.metrics import KS


def list_metrics(
    lists: np.ndarray, offsets: np.ndarray, positives: np.ndarray, ks: Sequence[int] = KS
) -> dict[str, np.ndarray]:
    """Measure each user's list.

    Args:
        lists: int[N, K], recommended items, best first, -1 for an empty slot.
        offsets: int[N + 1], user u's positives are offsets[u]:offsets[u + 1].
        positives: int[P], the held-out items.
        ks: cut-offs, from 1 to K; lists of more slots than items (with -1 behind) serve a k beyond the items.

    Returns:
        float64[N] by name: `hr`, `precision`, `recall`, `truncated_recall`, `ndcg`, `mrr`, `map`, each @k.

    Raises:
        ValueError: if a cut-off is less than 1 or exceeds the lists.

    Example:
        >>> values = list_metrics(np.array([[7, 3, 5]]), np.array([0, 2]), np.array([3, 9]), ks=[2])
        >>> values["recall@2"], values["precision@2"], values["mrr@2"]
        (array([0.5]), array([0.5]), array([0.5]))
    """
    lists = np.asarray(lists)
    length = lists.shape[1]
    for k in ks:
        if k > length:
            raise ValueError(f"k={k} exceeds the lists of {length}; make lists of {k} or lower k")
    owners, positives = _distinct(offsets, positives)
    counts = np.bincount(owners, minlength=len(lists))
    stride = int(max(lists.max(initial=0), positives.max(initial=0))) + 1
    row_starts = np.arange(len(lists))[:, None] * stride
    hits = (lists >= 0) & np.isin(row_starts + lists, owners * stride + positives) & ~_repeated(lists)
    users, ranks = np.nonzero(hits)
    return _measure_hits(users, ranks.astype(np.float64), counts, ks)


def multi_positive_metrics(
    ranks: np.ndarray,
    users: np.ndarray,
    num_users: int,
    ks: Sequence[int] = KS,
    *,
    rivals: int | np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Measure each user by the ranks of all positives among all candidates.

    Args:
        ranks: float[P], 0-based, each positive's rank among all candidates, the other positives included;
            mid-ranks where items tie.
        users: int[P], whose positive it is.
        num_users: N.
        ks: cut-offs, 1 or more; beyond the number of candidates everything is a hit.
        rivals: int or int[N], candidates that are no positives; None leaves out AUC.

    Returns:
        float64[N] by the names of `list_metrics`, and without a cut-off `mrr`, `map` and, with `rivals`,
        `auc` (Mann-Whitney: half of a tie), NaN for a user without rivals.

    Raises:
        ValueError: if a cut-off is less than 1.

    Example:
        >>> multi_positive_metrics(np.array([0.0, 2.0]), np.array([0, 0]), 1, ks=[1], rivals=3)["map"]
        array([0.83333333])
    """
    ranks = np.asarray(ranks, np.float64)
    users = np.asarray(users)
    order = order_of_events(users, ranks)
    ranks = ranks[order]
    users = users[order]
    counts = np.bincount(users, minlength=num_users)
    values = _measure_hits(users, ranks, counts, ks)
    without_cutoff = _measure_hits(users, ranks, counts, [np.inf])
    values |= {"mrr": without_cutoff["mrr@inf"], "map": without_cutoff["map@inf"]}
    if rivals is not None:
        inverted = np.bincount(users, ranks, minlength=num_users) - counts * (counts - 1) / 2
        pairs = counts * np.asarray(rivals, np.float64)
        values["auc"] = np.where(pairs > 0, 1 - inverted / np.maximum(pairs, 1), np.nan)
    return values


def _measure_hits(
    users: np.ndarray, ranks: np.ndarray, counts: np.ndarray, ks: Sequence[float]
) -> dict[str, np.ndarray]:
    """All metrics of hits that are sorted by user and rank; `counts` [N] are the positives n."""
    num_positives = np.maximum(counts, 1)
    num_hits = np.bincount(users, minlength=len(counts))
    better_hits = (
        np.arange(len(users)) - (np.cumsum(num_hits) - num_hits)[users]
    )  # of the user, at better ranks
    ideal_gain = np.cumsum(1 / np.log2(np.arange(num_positives.max(initial=1)) + 2))
    values: dict[str, np.ndarray] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k={k} is out of range; cut-offs start at 1")
        inside = ranks < k

        def total(gain: np.ndarray, inside: np.ndarray = inside) -> np.ndarray:
            return np.bincount(users[inside], gain[inside], minlength=len(counts))

        hits = total(np.ones_like(ranks))
        most_hits = np.minimum(num_positives, k).astype(np.int64)
        values |= {
            f"hr@{k}": np.minimum(hits, 1),
            f"precision@{k}": hits / k,
            f"recall@{k}": hits / num_positives,
            f"truncated_recall@{k}": hits / most_hits,
            f"ndcg@{k}": total(1 / np.log2(ranks + 2)) / ideal_gain[most_hits - 1],
            f"mrr@{k}": total((better_hits == 0) / (ranks + 1)),
            f"map@{k}": total((better_hits + 1) / (ranks + 1)) / num_positives,
        }
    return {name: np.where(counts > 0, value, np.nan) for name, value in values.items()}


def _distinct(offsets: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Owners and items of the positives, each pair once."""
    owners = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    stride = int(np.max(items, initial=0)) + 1
    return tuple(np.divmod(sort_distinct(owners * stride + items), stride))  # type: ignore[return-value]


def _repeated(lists: np.ndarray) -> np.ndarray:
    """bool[N, K], whether an item stands at a better rank of its list already."""
    order = np.argsort(lists, axis=1, kind="stable")
    ascending = np.take_along_axis(lists, order, axis=1)
    repeated = np.zeros(lists.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ascending[:, 1:] == ascending[:, :-1], axis=1)
    return repeated
