"""Methods that personalise nothing: a random score, and popularity, the floor that a personalised model must pass.

`random` is what an evaluation gives to a model that knows nothing.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.client.keys import key_of
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Scorer, score_nonpersonalised
from fedjax_rec.evaluation.reference_ranks import popularity_scores


def fit_random(split: Split, *, seed: int = 0) -> Scorer:
    """Draw a score for each user and item, uniform on [0, 1).

    A user's scores depend on the seed and the user's code alone, not on the block that the user stands in.

    Args:
        split: says how many items there are.
        seed: of the draw.

    Returns:
        the scorer.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> scorer = fit_random(tiny_split())
        >>> scorer.score_block(scorer.params, jax.numpy.arange(2)).shape
        (2, 6)
    """
    num_items = split.num_items

    def score_block(key: jax.Array, users: jax.Array) -> jax.Array:
        return jax.vmap(lambda user: jax.random.uniform(jax.random.fold_in(key, user), (num_items,)))(users)

    return Scorer(score_block, key_of(seed))


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
    return Scorer(score_nonpersonalised, jnp.asarray(popularity_scores(split)))
