"""Metrics of several held-out items per user, from the ranks of all of them, exact where items tie.

With n positives of a user, a list of all positives and rivals, best first, and hits@k the positives among its
first k:

    HR@k               = [hits@k > 0]
    precision@k        = hits@k / k
    recall@k           = hits@k / n              (Dacrema et al. 2021, arXiv:1911.07698)
    truncated_recall@k = hits@k / min(k, n)      (Liang et al. 2018, arXiv:1802.05814, section 4.2)
    NDCG@k             = sum over hits of 1 / log2(rank + 2), over the same sum of min(k, n) hits at the top
    MRR@k              = 1 / (first hit's rank + 1), 0 without a hit
    MAP@k              = 1/n * sum over hits of precision@(rank + 1)    (TREC; never truncated to min(k, n))
    AUC                = share of pairs (positive, rival) in the right order, half of a tie

`multi_positive` measures lists alike. Positives that tie with the same t rivals are a *group*: its m positives and
t rivals take the ranks first .. first + m + t - 1, every order of them equally likely, and each metric is its
exact expectation (McSherry and Najork 2008, doi:10.1007/978-3-540-78646-7_38). So a constant scorer gets chance,
and with one positive a user the values are those of `metrics`. A user without a positive or a rival has NaN.

Axis legend: `N` users, `P` pairs of a user and a positive, `G` groups.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_rec.evaluation.pair_ranking import PairRanks

PAIR_METRICS = ("hr", "precision", "recall", "truncated_recall", "ndcg", "mrr", "map")  # each @k


class _Groups(NamedTuple):
    """Positives that tie with the same rivals, by user and rank."""

    users: np.ndarray  # int64[G]
    positives: np.ndarray  # int64[G], m, 1 or more
    size: np.ndarray  # int64[G], m + t
    first: np.ndarray  # int64[G], the best rank of the group in the whole list
    before: np.ndarray  # int64[G], the user's positives at better ranks


def pair_metrics(
    ranks: PairRanks, ks: Sequence[int], *, rivals: int | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure each user.

    Args:
        ranks: of all pairs.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        float64[N] by name: each of `PAIR_METRICS` @k, `mrr`, `map` and, with `rivals`, `auc`.

    Raises:
        ValueError: if a cut-off is less than 1, or the rivals are of another split.

    Example:
        >>> ranks = PairRanks(np.array([0.0, 1.0]), np.array([0, 0]), np.array([0, 0]), num_users=1)
        >>> values = pair_metrics(ranks, ks=[2], rivals=4)  # positive, rival, positive
        >>> values["recall@2"], values["map"], values["auc"]
        (array([0.5]), array([0.83333333]), array([0.875]))
    """
    mid = np.asarray(ranks.mid, np.float64)
    owners = np.asarray(ranks.owners, np.int64)
    num_users = ranks.num_users
    groups = _group(mid, np.asarray(ranks.tied, np.int64), owners)
    counts = np.bincount(owners[~np.isnan(mid)], minlength=num_users)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k={k} is out of range; cut-offs start at 1")
        values |= _measure(groups, counts, k)
    longest = int((groups.first + groups.size).max(initial=1))
    whole = _measure(groups, counts, longest)
    values |= {"mrr": whole[f"mrr@{longest}"], "map": whole[f"map@{longest}"]}
    if rivals is not None:
        own = np.broadcast_to(rivals, (num_users,))
        if (mid > own[owners]).any():
            raise ValueError(
                "a place lies beyond its rivals: these ranks are of another split than the rivals"
            )
        better = np.bincount(owners, np.nan_to_num(mid), minlength=num_users)
        values["auc"] = 1 - better / np.maximum(counts * own, 1)
    return {name: np.where(counts > 0, value, np.nan) for name, value in values.items()}


def _group(mid: np.ndarray, tied: np.ndarray, owners: np.ndarray) -> _Groups:
    known = ~np.isnan(mid)
    mid, tied, owners = mid[known], tied[known], owners[known]
    better = np.rint(mid - tied / 2).astype(np.int64)

    # Groups of equal (user, better, tied), in that order.
    order = np.lexsort((tied, better, owners))
    columns = np.stack([owners[order], better[order], tied[order]])
    starts = np.flatnonzero(np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0))[: len(order)])
    users, better, tied = columns[:, starts]
    positives = np.diff(np.append(starts, len(order)))

    # The user's positives before each group: all before it, less those of the users before.
    first_of_user = np.searchsorted(users, users, side="left")
    before = starts - starts[first_of_user]
    return _Groups(users, positives, positives + tied, better + before, before)


def _measure(groups: _Groups, counts: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """All metrics at one cut-off, float64[N]."""
    users, positives, size, first, before = groups
    num_users = len(counts)

    def total(values: np.ndarray) -> np.ndarray:
        return np.bincount(users, values, minlength=num_users)

    # Ranks of a group above the cut-off: first .. end - 1; of each the chance to be a positive's is m / size.
    end = np.clip(k, first, first + size)
    inside = end - first
    share = positives / size
    longest = int(end.max(initial=1))
    discounts = _running(1 / np.log2(np.arange(longest) + 2))
    inverse = _running(1 / (np.arange(longest) + 1.0))
    reciprocal = inverse[end] - inverse[first]  # sum of 1 / (rank + 1)
    hits = total(positives * inside / size)

    # Average precision: at rank j of a group, before + 1 + (j - first) (m - 1) / (size - 1) positives up to there.
    pace = np.where(size > 1, (positives - 1) / np.maximum(size - 1, 1), 0.0)
    steps = inside - (first + 1) * reciprocal  # sum of (j - first) / (j + 1)
    precision = share * ((before + 1) * reciprocal + pace * steps)

    # A user's first hit lies in its first group.
    leads = np.flatnonzero(before == 0)
    any_hit = np.zeros(num_users)
    first_hit = np.zeros(num_users)
    any_hit[users[leads]], first_hit[users[leads]] = _first_hits(
        positives[leads], size[leads], first[leads], inside[leads], inverse
    )
    any_hit = np.maximum(any_hit, total((before > 0) & (inside > 0)) > 0)

    most = np.maximum(np.minimum(counts, k), 1)
    ideal = _running(1 / np.log2(np.arange(int(most.max(initial=1))) + 2))
    return {
        f"hr@{k}": any_hit,
        f"precision@{k}": hits / k,
        f"recall@{k}": hits / np.maximum(counts, 1),
        f"truncated_recall@{k}": hits / most,
        f"ndcg@{k}": total(share * (discounts[end] - discounts[first])) / ideal[most],
        f"mrr@{k}": first_hit,
        f"map@{k}": total(precision) / np.maximum(counts, 1),
    }


def _first_hits(
    positives: np.ndarray, size: np.ndarray, first: np.ndarray, inside: np.ndarray, inverse: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Chance that one of a group's m positives is above the cut-off, and the mean of 1 / (rank + 1) of the best.

    No positive is at the first j places with probability C(size - j, m) / C(size, m).
    """
    any_hit = (inside > 0).astype(np.float64)
    best = np.where(inside > 0, 1.0 / (first + 1), 0.0)

    # Where rivals tie: one positive may be at any place, so that sums are differences of running ones.
    tied = (size > positives) & (inside > 0)
    one = np.flatnonzero(tied & (positives == 1))
    any_hit[one] = inside[one] / size[one]
    best[one] = (inverse[first[one] + inside[one]] - inverse[first[one]]) / size[one]
    for group in np.flatnonzero(tied & (positives > 1)):
        left = size[group] - np.arange(inside[group])
        missed = (
            np.maximum(left - positives[group], 0) / left
        )  # that a place is a rival's, if all before it are
        none_before = np.append(1.0, np.cumprod(missed))
        any_hit[group] = 1 - none_before[-1]
        best[group] = -(np.diff(none_before) / (first[group] + 1 + np.arange(inside[group]))).sum()
    return any_hit, best


def _running(values: np.ndarray) -> np.ndarray:
    """Running totals with a leading 0."""
    return np.concatenate([[0.0], np.cumsum(values)])
