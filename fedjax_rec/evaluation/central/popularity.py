"""Popularity: the number of training events of an item. The floor that a personalised model must pass."""

import jax.numpy as jnp

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.baselines import popularity_scores
from fedjax_rec.evaluation.central.scorers import Scorer, score_same


def fit_popularity(split: Split) -> Scorer:
    """Count each item's training events.

    Args:
        split: the split.

    Returns:
        the scorer.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> scorer = fit_popularity(tiny_split())
        >>> scorer.score_block(scorer.params, jnp.arange(1)).tolist()
        [[1.0, 2.0, 1.0, 1.0, 2.0, 1.0]]
    """
    return Scorer(score_same, jnp.asarray(popularity_scores(split)))
