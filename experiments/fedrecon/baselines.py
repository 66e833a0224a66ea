"""Predictions that need no vectors: means over the training users, and the unseen user's own offset."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Users(NamedTuple):
    """Users' ratings, user after user."""

    users: np.ndarray  # int[M], 0..n-1 within the group
    items: np.ndarray  # int[M]
    ratings: np.ndarray  # float[M]


Baseline = Callable[
    [Users, Users, Users], np.ndarray
]  # (training, support, query) -> predictions of the query


def global_mean(training: Users, support: Users, query: Users) -> np.ndarray:
    """The mean of all training ratings."""
    del support
    return np.full(len(query.ratings), training.ratings.mean())


def item_mean(training: Users, support: Users, query: Users) -> np.ndarray:
    """The mean of the item's training ratings; the global mean for an item without any."""
    del support
    size = max(training.items.max(), query.items.max()) + 1
    return _item_means(training, size)[query.items]


def user_mean(training: Users, support: Users, query: Users) -> np.ndarray:
    """The mean of the user's own support half."""
    del training
    counts = np.bincount(support.users)
    return (np.bincount(support.users, support.ratings) / counts)[query.users]


def item_mean_and_offset(training: Users, support: Users, query: Users) -> np.ndarray:
    """The item's mean plus how far the user's support half lies above its items' means."""
    size = max(training.items.max(), support.items.max(), query.items.max()) + 1
    means = _item_means(training, size)
    above = np.bincount(support.users, support.ratings - means[support.items]) / np.bincount(support.users)
    return means[query.items] + above[query.users]


def _item_means(training: Users, size: int) -> np.ndarray:
    counts = np.bincount(training.items, minlength=size)
    sums = np.bincount(training.items, training.ratings, minlength=size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), training.ratings.mean())


BASELINES: dict[str, Baseline] = {
    "global mean": global_mean,
    "item mean": item_mean,
    "user mean": user_mean,
    "item mean + offset": item_mean_and_offset,
}
