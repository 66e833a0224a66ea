"""Random: the same chance for every item, by a seed. What an evaluation gives to a model that knows nothing."""

import jax

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Scorer


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

    return Scorer(score_block, jax.random.key(seed))
