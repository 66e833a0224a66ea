"""Metrics of one held-out item per user, all functions of its rank.

With r the 0-based rank, which ties may make half-integer, and one relevant item per user:

    HR@k   = [r < k]                     NDCG@k = [r < k] / log2(r + 2)
    MRR@k  = [r < k] / (r + 1)           MRR    = 1 / (r + 1)
    AUC    = 1 - r / number of rivals

(Krichene and Rendle 2020, section 3, doi:10.1145/3394486.3403226). Recall@k of one item is HR@k. Users whose
rank is NaN have nothing to measure and are left out of means and standard errors.
"""

from collections.abc import Sequence

import jax
import numpy as np

KS = (5, 10, 20)  # the cut-offs k that a table shows unless told otherwise


def user_metrics(
    ranks: np.ndarray | jax.Array, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """Measure each user.

    Args:
        ranks: float[N], 0-based ranks, NaN where there is nothing to measure.
        ks: cut-offs, each 1 or more.
        rivals: int or int[N], how many items each positive competed with; None leaves out AUC.

    Returns:
        float64[N] by name: `hr@k`, `ndcg@k`, `mrr@k`, `mrr` and, with `rivals`, `auc`; NaN where the rank is.

    Raises:
        ValueError: if a cut-off is less than 1.

    Example:
        >>> user_metrics(np.array([0.0, 2.0]), ks=[1], rivals=4)["auc"]
        array([1. , 0.5])
    """
    ranks = np.asarray(ranks, np.float64)
    values: dict[str, np.ndarray] = {}
    for k in ks:
        if k < 1:
            raise ValueError(f"k={k} is out of range; cut-offs start at 1")
        hit = np.where(np.isnan(ranks), np.nan, ranks < k)
        values |= {f"hr@{k}": hit, f"ndcg@{k}": hit / np.log2(ranks + 2), f"mrr@{k}": hit / (ranks + 1)}
    values["mrr"] = 1 / (ranks + 1)
    if rivals is not None:
        values["auc"] = 1 - ranks / np.maximum(rivals, 1)
    return values


def metrics_from_ranks(
    ranks: np.ndarray | jax.Array, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Average the metrics over the users that have a positive.

    Args:
        ranks: float[N], 0-based ranks, NaN where there is nothing to measure.
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
    ranks: np.ndarray | jax.Array, ks: Sequence[int] = KS, *, rivals: int | np.ndarray | None = None
) -> dict[str, float]:
    """Standard errors of the means over users: sample deviation (ddof 1) over the root of their number.

    They tell how far the means would move with another draw of users, not with another seed of the run.

    Args:
        ranks: float[N], 0-based ranks, NaN where there is nothing to measure.
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
