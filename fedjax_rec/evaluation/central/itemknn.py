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
from fedjax_rec.evaluation.central.scorers import (
    Scorer,
    gram_matrix,
    make_item_scorer,
    make_neighbour_scorer,
    training_table,
)

_DENSE = 10_000  # items up to which a table of all pairs is fast, and small
_BLOCK = 1024  # items compared with all others at once, where there are more


def fit_itemknn(
    split: Split, *, neighbours: int = 100, shrink: float = 10.0, gram: np.ndarray | None = None
) -> Scorer:
    """Find each item's nearest ones.

    Args:
        split: its training events say who has what.
        neighbours: k, 1 or more; a catalogue of fewer items has fewer.
        shrink: pulls similarities that few users support towards 0; 0 or more.
        gram: as `count_shared` counts it, where several fits share it.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range.

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
    num_neighbours = min(neighbours, split.num_items)
    if split.num_items > _DENSE:
        return make_neighbour_scorer(split, *_nearest_by_blocks(split, num_neighbours, shrink))
    gram = gram_matrix(split) if gram is None else gram
    norms = np.sqrt(gram.diagonal())
    similar = similarity(gram, norms, norms, shrink)
    np.fill_diagonal(similar, 0.0)
    nearest = _nearest(similar, num_neighbours)
    weights = np.zeros_like(similar)
    np.put_along_axis(weights, nearest, np.take_along_axis(similar, nearest, axis=1), axis=1)
    return make_item_scorer(split, weights.T)


def count_shared(split: Split) -> np.ndarray | None:
    """Count the users of two items, where fits with other settings may share that.

    Args:
        split: the split.

    Returns:
        float64[I, I]; None for a catalogue that is compared block by block.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> count_shared(tiny_split()).shape
        (6, 6)
    """
    return None if split.num_items > _DENSE else gram_matrix(split)


def _nearest_by_blocks(split: Split, num_neighbours: int, shrink: float) -> tuple[np.ndarray, np.ndarray]:
    """int32[I, k] and float32[I, k], the most similar items and how similar they are."""
    table = training_table(split)
    by_item = table.T.tocsr()
    norms = np.sqrt(np.diff(by_item.indptr))
    nearest = np.empty((split.num_items, num_neighbours), np.int32)
    weights = np.empty((split.num_items, num_neighbours), np.float32)
    for start in range(0, split.num_items, _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, split.num_items))
        similar = similarity((by_item[rows] @ table).toarray(), norms[rows], norms, shrink)
        similar[np.arange(len(rows)), rows] = 0.0
        nearest[rows] = _nearest(similar, num_neighbours)
        weights[rows] = np.take_along_axis(similar, nearest[rows], axis=1)
    return nearest, weights


def similarity(gram: np.ndarray, norms: np.ndarray, other_norms: np.ndarray, shrink: float) -> np.ndarray:
    """Compare items with others.

    Args:
        gram: float64[R, I], the users of both items of a pair.
        norms: float64[R], roots of how many users an item of the rows has.
        other_norms: float64[I], those of the columns.
        shrink: 0 or more.

    Returns:
        float32[R, I], c; 0 for items that nobody has.

    Example:
        >>> similarity(np.array([[4.0, 2.0], [2.0, 1.0]]), np.array([2.0, 1.0]), np.array([2.0, 1.0]), shrink=0.0)
        array([[1., 1.],
               [1., 1.]], dtype=float32)
    """
    bound = np.outer(norms, other_norms) + shrink
    return np.divide(gram, bound, out=np.zeros_like(gram), where=bound > 0).astype(np.float32)


def _nearest(similar: np.ndarray, num_neighbours: int) -> np.ndarray:
    """int32[I, k], the most similar items; top_k puts the lower code first where two are alike."""
    return np.asarray(jax.lax.top_k(jnp.asarray(similar), num_neighbours)[1])
