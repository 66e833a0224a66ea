"""Metrics of held-out items, all functions of their ranks, and errors of predicted ratings.

With one held-out item per user, r being its 0-based rank:

    HR@k   = [r < k]                     NDCG@k = [r < k] / log2(r + 2)
    MRR@k  = [r < k] / (r + 1)           MRR    = 1 / (r + 1)
    AUC    = 1 - r / number of rivals

(Krichene and Rendle 2020, section 3, doi:10.1145/3394486.3403226). Recall@k of one item is HR@k. Where b
rivals are better and t are tied, every order of the tied is equally likely, r is uniform on b .. b + t, and
each metric is its exact expectation, (1 / (t + 1)) * sum of its values over those ranks (McSherry and Najork
2008, section 3, doi:10.1007/978-3-540-78646-7_38). So a constant scorer gets chance: HR@k = k / number of
items. Without ties this is the plain value. Users whose rank is NaN have nothing to measure and are left out
of means and standard errors; a k above the number of items is no error, all ranks hit.

Where a split holds out several items per user, their ranks (`PairRanks`) are measured by `pair_metrics`, which has
more metrics; `user_metric` gives any of them for either kind.

Of predicted ratings:

    RMSE = sqrt(mean of (prediction - rating)^2)        MAE = mean of |prediction - rating|

*Global* errors weigh every rating alike, as the published numbers of MovieLens do; the mean of the *per user*
errors weighs every client alike, which is what a client feels (Koren 2008, doi:10.1145/1401890.1401944, for the
former; the latter is macro-averaging). A NaN *rating* was not held out and is left out; a NaN *prediction*
is a failure of the model and makes the error NaN instead of being dropped.
"""

import re
from collections.abc import Callable, Sequence

import jax
import numpy as np

from fedjax_rec.errors import check_arguments
from fedjax_rec.evaluation.pair_metrics import PAIR_METRICS, pair_metrics
from fedjax_rec.evaluation.pair_ranking import PairRanks
from fedjax_rec.evaluation.ranking import MidRanks

KS = (5, 10, 20)  # the cut-offs k by default
GAINS: dict[str, Callable[[np.ndarray], np.ndarray]] = {  # what a 0-based rank is worth, above the cut-off
    "hr": np.ones_like,
    "ndcg": lambda rank: 1 / np.log2(rank + 2),
    "mrr": lambda rank: 1 / (rank + 1),
}
RankLike = MidRanks | PairRanks | np.ndarray | jax.Array  # plain ranks have no ties
_CUTOFF_NAMES = "|".join(sorted(PAIR_METRICS))
METRIC_NAME = re.compile(rf"(?P<kind>{_CUTOFF_NAMES})@(?P<k>[1-9]\d{{0,8}})|mrr|map|auc")


def user_metrics(
    ranks: RankLike, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure each user.

    Args:
        ranks: mid-ranks, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        float64[N] by name: `hr@k`, `ndcg@k`, `mrr@k`, `mrr` and, with `rivals`, `auc`; NaN where the rank is. Of
        several items per user those of `pair_metrics`.

    Raises:
        ValueError: if a cut-off is less than 1, or the rivals are of another split.

    Example:
        >>> user_metrics(np.array([0.0, 2.0]), ks=[1], rivals=4)["auc"]
        array([1. , 0.5])
    """
    check_arguments(user_metrics, locals())
    if isinstance(ranks, PairRanks):
        return pair_metrics(ranks, ks, rivals=rivals)
    mid = np.asarray(ranks, np.float64)
    tied = np.asarray(ranks.tied, np.int64) if isinstance(ranks, MidRanks) else np.zeros(len(mid), np.int64)
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


def user_metric(ranks: RankLike, name: str, *, rivals: int | np.ndarray | None = None) -> np.ndarray:
    """Measure each user by one metric, of one held-out item per user or of several.

    Args:
        ranks: as `user_metrics` takes them.
        name: `hr`, `ndcg`, `mrr`, `recall`, `truncated_recall`, `precision` or `map` @k, `mrr`, `map`, or `auc`,
            which needs rivals.
        rivals: int or int[N], how many items each positive competed with.

    Returns:
        float64[N], NaN where there is nothing to measure.

    Raises:
        ValueError: if the metric is unknown.

    Example:
        >>> user_metric(np.array([0.0, 2.0]), "recall@1")
        array([1., 0.])
    """
    match = METRIC_NAME.fullmatch(name)
    if match is None:
        kinds = ", ".join(f"{kind}@k" for kind in PAIR_METRICS)
        raise ValueError(f"unknown metric {name!r}; known: {kinds}, mrr, map, auc")
    ks = [int(match["k"])] if match["k"] else []
    if not isinstance(ranks, PairRanks) and (name == "map" or (match["kind"] or "mrr") not in GAINS):
        ranks = as_pairs(ranks)
    return user_metrics(ranks, ks, rivals=rivals)[name]


def as_pairs(ranks: MidRanks | np.ndarray | jax.Array) -> PairRanks:
    """The ranks of one held-out item per user as those of as many pairs.

    Args:
        ranks: mid-ranks, or float[N], NaN where there is nothing to measure.

    Returns:
        the ranks of N pairs.

    Example:
        >>> as_pairs(np.array([0.0, 2.0])).owners
        array([0, 1])
    """
    mid = np.asarray(ranks, np.float64)
    tied = np.asarray(ranks.tied) if isinstance(ranks, MidRanks) else np.zeros(len(mid), np.int64)
    return PairRanks(mid, tied, np.arange(len(mid)), num_users=len(mid))  # type: ignore[arg-type]


def _expect(
    gain: Callable[[np.ndarray], np.ndarray], mid: np.ndarray, tied: np.ndarray, k: float
) -> np.ndarray:
    """float64[N], the mean gain over the ranks that the ties leave open; a rank from k on gains nothing."""
    value = np.where(np.isnan(mid), np.nan, np.where(mid < k, gain(mid), 0.0))
    with_ties = np.flatnonzero(tied)
    if not len(with_ties):
        return value

    # Users with ties [n]: ranks first .. end - 1 are equally likely; their gains are differences of running sums.
    num_ties = tied[with_ties]
    first = (mid[with_ties] - num_ties / 2).astype(np.int64)
    end = first + num_ties + 1
    ranks = np.arange(min(int(end.max()), k), dtype=np.float64)
    running = np.concatenate([[0.0], np.cumsum(gain(ranks))])
    last = len(ranks)
    value[with_ties] = (running[np.minimum(end, last)] - running[np.minimum(first, last)]) / (num_ties + 1)
    return value


def metrics_from_ranks(
    ranks: RankLike, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Average the metrics over the users that have a positive.

    Args:
        ranks: mid-ranks, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
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
    check_arguments(metrics_from_ranks, locals())
    values = _drop_nan(user_metrics(ranks, ks, rivals=rivals))
    return {name: float(value.mean()) if len(value) else np.nan for name, value in values.items()}


def standard_errors(
    ranks: RankLike, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Standard errors of the means over users: sample deviation (ddof 1) over the root of their number.

    They tell how far the means would move with another draw of users, not with another seed of the run.

    Args:
        ranks: mid-ranks, or float[N], 0-based ranks without ties; NaN where there is nothing to measure.
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


def rating_errors(
    predictions: np.ndarray, ratings: np.ndarray, users: np.ndarray | None = None
) -> dict[str, float]:
    """Errors over all held-out ratings.

    Args:
        predictions: float[M], in the unit of the ratings.
        ratings: float[M], NaN where none was held out.
        users: int[M], whose rating it is; None leaves out the means over users.

    Returns:
        `rmse` and `mae` over all ratings and, with `users`, `user_rmse` and `user_mae`, the means over users
        of their own errors; NaN without a rating.

    Example:
        >>> errors = rating_errors(np.array([3.0, 5.0, 2.0]), np.array([3.0, 4.0, np.nan]))
        >>> errors["mae"]
        0.5
    """
    error, has_rating = _prediction_errors(predictions, ratings)
    if not len(error):
        names = ("rmse", "mae") if users is None else ("rmse", "mae", "user_rmse", "user_mae")
        return dict.fromkeys(names, np.nan)
    errors = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
    if users is not None:
        num_users = int(np.max(users)) + 1
        present = np.bincount(np.asarray(users)[has_rating], minlength=num_users) > 0
        by_user = user_rating_errors(predictions, ratings, users, num_users)
        errors |= {f"user_{name}": float(value[present].mean()) for name, value in by_user.items()}
    return errors


def user_rating_errors(
    predictions: np.ndarray, ratings: np.ndarray, users: np.ndarray, num_users: int
) -> dict[str, np.ndarray]:
    """Errors of each user.

    Args:
        predictions: float[M], in the unit of the ratings.
        ratings: float[M], NaN where none was held out.
        users: int[M], whose rating it is.
        num_users: N.

    Returns:
        float64[N], `rmse` and `mae`; NaN for a user without a held-out rating.

    Example:
        >>> user_rating_errors(np.array([3.0, 5.0]), np.array([3.0, 4.0]), np.array([0, 0]), 2)["rmse"]
        array([0.70710678,        nan])
    """
    error, has_rating = _prediction_errors(predictions, ratings)
    owners = np.asarray(users)[has_rating]
    counts = np.bincount(owners, minlength=num_users)
    num_ratings = np.where(counts > 0, counts, np.nan)
    squared = np.bincount(owners, error**2, minlength=num_users)
    absolute = np.bincount(owners, np.abs(error), minlength=num_users)
    return {"rmse": np.sqrt(squared / num_ratings), "mae": absolute / num_ratings}


def _prediction_errors(predictions: np.ndarray, ratings: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """float64[M'] errors of the ratings that were held out, and bool[M], which these are."""
    has_rating = ~np.isnan(np.asarray(ratings, np.float64))
    predicted = np.asarray(predictions, np.float64)[has_rating]
    return predicted - np.asarray(ratings, np.float64)[has_rating], has_rating
