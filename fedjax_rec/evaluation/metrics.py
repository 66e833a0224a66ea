"""Metrics of one held-out item per user, all functions of its place in the list.

With r the 0-based rank and one relevant item per user:

    HR@k   = [r < k]                     NDCG@k = [r < k] / log2(r + 2)
    MRR@k  = [r < k] / (r + 1)           MRR    = 1 / (r + 1)
    AUC    = 1 - r / number of rivals

(Krichene and Rendle 2020, section 3, doi:10.1145/3394486.3403226). Recall@k of one item is HR@k. Where b
rivals are better and t are tied, every order of the tied is equally likely, r is uniform on b .. b + t, and
each metric is its exact expectation, (1 / (t + 1)) * sum of its values over those places (McSherry and Najork
2008, section 3, doi:10.1007/978-3-540-78646-7_38). So a constant scorer gets chance: HR@k = k / number of
items. Without ties this is the plain value. Users whose rank is NaN have nothing to measure and are left out
of means and standard errors; a k above the number of items is no error, all places hit.
"""

from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_rec.evaluation.ranking import Places

KS = (5, 10, 20)  # the cut-offs k that a table shows unless told otherwise
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # what a 0-based place is worth, above the cut-off
    "hr": np.ones_like,
    "ndcg": lambda place: 1 / np.log2(place + 2),
    "mrr": lambda place: 1 / (place + 1),
}
Standing = Places | np.ndarray | jax.Array  # plain ranks have no ties


def user_metrics(
    ranks: Standing, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure each user.

    Args:
        ranks: places, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        float64[N] by name: `hr@k`, `ndcg@k`, `mrr@k`, `mrr` and, with `rivals`, `auc`; NaN where the rank is.

    Raises:
        ValueError: if a cut-off is less than 1, or the rivals are of another split.

    Example:
        >>> user_metrics(np.array([0.0, 2.0]), ks=[1], rivals=4)["auc"]
        array([1. , 0.5])
    """
    mid = np.asarray(ranks, np.float64)
    tied = np.asarray(ranks.tied, np.int64) if isinstance(ranks, Places) else np.zeros(len(mid), np.int64)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k={k} is out of range; cut-offs start at 1")
        values |= {f"{name}@{k}": _expect(gain, mid, tied, k) for name, gain in GAINS.items()}
    values["mrr"] = _expect(GAINS["mrr"], mid, tied, np.inf)
    if rivals is not None:
        if (mid > rivals).any():
            raise ValueError(
                "a place lies beyond its rivals: these ranks are of another split than the rivals"
            )
        values["auc"] = 1 - mid / np.maximum(rivals, 1)
    return values


def _expect(
    gain: Callable[[np.ndarray], np.ndarray], mid: np.ndarray, tied: np.ndarray, k: float
) -> np.ndarray:
    """float64[N], the mean gain over the places that the ties leave open; a place from k on gains nothing."""
    value = np.where(np.isnan(mid), np.nan, np.where(mid < k, gain(mid), 0.0))
    among = np.flatnonzero(tied)
    if not len(among):
        return value
    first = (mid[among] - tied[among] / 2).astype(np.int64)
    end = first + tied[among] + 1
    places = np.arange(min(int(end.max()), k), dtype=np.float64)
    total = np.concatenate([[0.0], np.cumsum(gain(places))])
    last = len(places)
    value[among] = (total[np.minimum(end, last)] - total[np.minimum(first, last)]) / (tied[among] + 1)
    return value


def metrics_from_ranks(
    ranks: Standing, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Average the metrics over the users that have a positive.

    Args:
        ranks: places, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        The means by the keys of `user_metrics`; NaN if no user has a positive.

    Raises:
        ValueError: if a cut-off is less than 1.

    Example:
        >>> metrics_from_ranks(np.array([0.0, 2.0, np.nan]), ks=[2])
        {'hr@2': 0.5, 'ndcg@2': 0.5, 'mrr@2': 0.5, 'mrr': 0.6666666666666666}
    """
    values = _drop_nan(user_metrics(ranks, ks, rivals=rivals))
    return {name: float(value.mean()) if len(value) else np.nan for name, value in values.items()}


def standard_errors(
    ranks: Standing, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Standard errors of the means over users: sample deviation (ddof 1) over the root of their number.

    They tell how far the means would move with another draw of users, not with another seed of the run.

    Args:
        ranks: places, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        The standard errors by the keys of `user_metrics`; NaN for fewer than two users.

    Raises:
        ValueError: if a cut-off is less than 1.

    Example:
        >>> standard_errors(np.array([0.0, 2.0, np.nan]), ks=[1])["hr@1"]
        0.5
    """
    values = _drop_nan(user_metrics(ranks, ks, rivals=rivals))
    return {
        name: float(value.std(ddof=1) / np.sqrt(len(value))) if len(value) > 1 else np.nan
        for name, value in values.items()
    }


def _drop_nan(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value[~np.isnan(value)] for name, value in values.items()}
