"""Reference points of the same ranking: the floor and, on synthetic data, the ceiling.

Popularity is the floor that a personalised model must pass. It counts training events; published numbers
usually train on everything but the test item, which is `popularity_ranks(merge_validation(split))`. The
truth ranks a synthetic population by its own preferences: the next item is drawn with probability
softmax(logits), so that no model can expect a better order.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_rec.data.interactions import Dataset, Truth
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.layout import masked_codes, positives_of
from fedjax_rec.evaluation.ranking import Places, Ranks, count_rivals, make_ranker


def popularity_scores(split: Split) -> np.ndarray:
    """Count each item's training events.

    Args:
        split: the split.

    Returns:
        float32[I], the counts.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> popularity_scores(leave_one_out(Dataset("tiny", table)))
        array([1., 0., 0.], dtype=float32)
    """
    return np.bincount(split.items, minlength=split.num_items).astype(np.float32)


def popularity_ranks(split: Split, *, which: str = "test") -> Ranks:
    """Rank every user's items by popularity.

    Args:
        split: the split.
        which: `test` or `validation`.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> popularity_ranks(leave_one_out(Dataset("tiny", table))).full.mid  # nobody else met 2, 3 or 4
        Array([1.], dtype=float32)
    """
    return rank_common_scores(popularity_scores(split), split, which=which)


def rank_common_scores(scores: np.ndarray, split: Split, *, which: str = "test") -> Ranks:
    """Rank by scores that are the same for all users: on the host, by sorting the items once.

    Args:
        scores: float[I], without NaN.
        split: the split.
        which: `test` or `validation`.

    Returns:
        The ranks of all users, as `make_ranker` counts them.

    Raises:
        ValueError: if `which` is unknown or a score is NaN.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> places = rank_common_scores(np.array([9.0, 9, 1, 2, 1]), leave_one_out(Dataset("tiny", table))).full
        >>> places.mid, places.tied
        (Array([1.5], dtype=float32), Array([1], dtype=int32))
    """
    if np.isnan(scores).any():
        raise ValueError("a score that all users share is NaN; give numbers")
    positives, candidates = positives_of(split, which)
    bar = scores[np.maximum(positives, 0)]
    ends = [np.searchsorted(np.sort(scores), bar, side=side) for side in ("left", "right")]
    users, items = np.divmod(masked_codes(split, which), split.num_items)
    seen = [
        np.bincount(users[inside], minlength=split.num_users)
        for inside in (scores[items] > bar[users], scores[items] == bar[users])
    ]
    rivals = count_rivals(split, which=which)
    shown = np.where(candidates >= 0, scores[np.maximum(candidates, 0)], np.nan)
    return Ranks(
        _places(split.num_items - ends[1] - seen[0], ends[1] - ends[0] - seen[1], positives, rivals.full),
        _places((shown > bar[:, None]).sum(1), (shown == bar[:, None]).sum(1), positives, rivals.sampled),
    )


def _places(above: np.ndarray, level: np.ndarray, positives: np.ndarray, rivals: np.ndarray) -> Places:
    present = (positives >= 0) & (rivals > 0)
    mid = np.where(present, above + level / 2, np.nan)
    return Places(jnp.asarray(mid, jnp.float32), jnp.asarray(np.where(present, level, 0), jnp.int32))


def truth_of(dataset: Dataset, split: Split) -> Truth:
    """Select the true preferences of the users and items that the split kept.

    Args:
        dataset: a synthetic data set.
        split: a split of it.

    Returns:
        The truth, by the codes of the split.

    Raises:
        ValueError: if the data set is not synthetic.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> truth = Truth(np.ones((1, 1), "f4"), np.ones((3, 1), "f4"), np.arange(3, dtype="f4"))
        >>> dataset = Dataset("tiny", table, truth=truth)
        >>> truth_of(dataset, leave_one_out(dataset)).item_bias
        array([0., 1., 2.], dtype=float32)
    """
    if dataset.truth is None:
        raise ValueError(
            f"the true preferences of {dataset.name!r} are unknown; only synthetic data has them"
        )
    users = pd.Index(dataset.interactions.user_ids).get_indexer(pd.Index(split.user_ids))
    items = pd.Index(dataset.interactions.item_ids).get_indexer(pd.Index(split.item_ids))
    truth = dataset.truth
    return Truth(truth.user_factors[users], truth.item_factors[items], truth.item_bias[items])


def truth_ranks(dataset: Dataset, split: Split, *, which: str = "test") -> Ranks:
    """Rank every user's items by the true preferences: the best expected result that any model can reach.

    Args:
        dataset: a synthetic data set.
        split: a split of it.
        which: `test` or `validation`.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: if the data set is not synthetic, or `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> truth = Truth(np.ones((1, 1), "f4"), np.ones((5, 1), "f4"), np.array([0, 0, 2, 1, 3], "f4"))
        >>> dataset = Dataset("tiny", table, truth=truth)
        >>> truth_ranks(dataset, leave_one_out(dataset)).full.mid
        Array([1.], dtype=float32)
    """
    truth = jax.tree.map(jnp.asarray, truth_of(dataset, split))
    return make_ranker(split, _score_truth, which=which)(truth)


def _score_truth(truth: Truth, users: jax.Array) -> jax.Array:
    """`Truth.scores` on device."""
    return (
        jnp.asarray(truth.user_factors)[users] @ jnp.asarray(truth.item_factors).T + truth.item_bias[None, :]
    )
