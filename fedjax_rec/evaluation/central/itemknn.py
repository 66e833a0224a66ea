"""ItemKNN: items like the ones that a user has, by the cosine of their users.

Sarwar et al. 2001, "Item-based collaborative filtering recommendation algorithms"
(doi:10.1145/371920.372071), section 3.1, with similarities of few users shrunk as in Ferrari Dacrema et al.
2019, "Are we really making much progress?" (doi:10.1145/3298689.3347058, arXiv:1907.06902), "Baselines":

    c_ij = |users of i and j| / (sqrt(|users of i|) sqrt(|users of j|) + shrink),
    s_ui = sum of c_ij over the j in u's history that are among the `neighbours` items most like i.

Of equally similar items the one with the lower code is the nearer.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Scorer, gram_matrix, make_item_scorer


def fit_itemknn(
    split: Split, *, neighbours: int = 100, shrink: float = 10.0, gram: np.ndarray | None = None
) -> Scorer:
    """Find each item's nearest ones.

    Args:
        split: its training events say who has what.
        neighbours: k, 1 or more; a catalogue of fewer items has fewer.
        shrink: pulls similarities that few users support towards 0; 0 or more.
        gram: float64[I, I], |users of i and j|, where several fits share it; by default it is counted.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range, or the catalogue is too large for dense weights.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> weights = fit_itemknn(tiny_split(), neighbours=1).params.weights
        >>> int((weights > 0).sum(axis=0).max())  # a column holds the neighbours of one item
        1
    """
    if neighbours < 1:
        raise ValueError(f"itemknn: neighbours must be at least 1, not {neighbours}")
    if not 0 <= shrink < np.inf:
        raise ValueError(f"itemknn: shrink must be a finite number, at least 0, not {shrink}")
    similar = similarity(gram_matrix(split) if gram is None else gram, shrink)
    nearest = _nearest(similar, min(neighbours, split.num_items))
    weights = np.zeros_like(similar)
    np.put_along_axis(weights, nearest, np.take_along_axis(similar, nearest, axis=1), axis=1)
    return make_item_scorer(split, weights.T)


def similarity(gram: np.ndarray, shrink: float) -> np.ndarray:
    """Compare all pairs of items.

    Args:
        gram: float64[I, I], the users of both items; on the diagonal those of one.
        shrink: 0 or more.

    Returns:
        float32[I, I], c, with a zero diagonal; 0 for items that nobody has.

    Example:
        >>> similarity(np.array([[4.0, 2.0], [2.0, 1.0]]), shrink=0.0)
        array([[0., 1.],
               [1., 0.]], dtype=float32)
    """
    norms = np.sqrt(gram.diagonal())
    bound = np.outer(norms, norms) + shrink
    similar = np.divide(gram, bound, out=np.zeros_like(gram), where=bound > 0)
    np.fill_diagonal(similar, 0.0)
    return similar.astype(np.float32)


def _nearest(similar: np.ndarray, num_neighbours: int) -> np.ndarray:
    """int32[I, k], the most similar items; top_k puts the lower code first where two are alike."""
    return np.asarray(jax.lax.top_k(jnp.asarray(similar), num_neighbours)[1])
