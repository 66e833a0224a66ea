"""Errors of predicted ratings, RMSE and MAE, over all ratings and per user.

    RMSE = sqrt(mean of (prediction - rating)^2)        MAE = mean of |prediction - rating|

*Global* errors weigh every rating alike, as the published numbers of MovieLens do; the mean of the *per user*
errors weighs every client alike, which is what a client feels (Koren 2008, doi:10.1145/1401890.1401944, for the
former; the latter is macro-averaging). A NaN *rating* was not held out and is left out; a NaN *prediction*
is a failure of the model and makes the error NaN instead of being dropped.
"""

import numpy as np


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
    held = ~np.isnan(np.asarray(ratings, np.float64))
    error = np.asarray(predictions, np.float64)[held] - np.asarray(ratings, np.float64)[held]
    if not len(error):
        names = ("rmse", "mae") if users is None else ("rmse", "mae", "user_rmse", "user_mae")
        return dict.fromkeys(names, np.nan)
    found = {"rmse": float(np.sqrt(np.mean(error**2))), "mae": float(np.mean(np.abs(error)))}
    if users is not None:
        own = user_rating_errors(predictions, ratings, users, int(np.max(users)) + 1)
        found |= {f"user_{name}": float(value[~_absent(users, held)].mean()) for name, value in own.items()}
    return found


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
    held = ~np.isnan(np.asarray(ratings, np.float64))
    error = np.asarray(predictions, np.float64)[held] - np.asarray(ratings, np.float64)[held]
    owners = np.asarray(users)[held]
    counts = np.bincount(owners, minlength=num_users)
    number = np.where(counts > 0, counts, np.nan)
    squares, sizes = (np.bincount(owners, part, minlength=num_users) for part in (error**2, np.abs(error)))
    return {"rmse": np.sqrt(squares / number), "mae": sizes / number}


def _absent(users: np.ndarray, held: np.ndarray) -> np.ndarray:
    """bool[N], users without a held-out rating."""
    return np.bincount(np.asarray(users)[held], minlength=int(np.max(users)) + 1) == 0
