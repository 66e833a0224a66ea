"""EASE: a linear autoencoder with a zero diagonal, in closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (doi:10.1145/3308558.3313710), sections 2
and 3.1: with X the binary training table, the weights B solve

    min |X - X B|^2 + lambda |B|^2    subject to    diag(B) = 0,

whose solution is, with P = (X^T X + lambda I)^-1,

    B_ij = -P_ij / P_jj  for i != j,    B_jj = 0.

A user's scores are the user's row of X B. The one setting is lambda.
"""

import numpy as np

from fedjax_rec.data.defaults import ease_penalty
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Scorer, gram_matrix, make_item_scorer


def default_regularisation(split: Split) -> float:
    """Choose lambda by the size of the data, as `fedease` does (`fedjax_rec.data.defaults.ease_penalty`).

    Args:
        split: the split.

    Returns:
        lambda.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> round(4 * default_regularisation(tiny_split()) ** 2)  # training events
        8
    """
    return float(max(1.0, ease_penalty(split.size)))


def fit_ease(split: Split, *, regularisation: float | None = None, gram: np.ndarray | None = None) -> Scorer:
    """Solve for the weights.

    Args:
        split: its training events are X.
        regularisation: lambda, more than 0; by default `default_regularisation`.
        gram: float64[I, I], X^T X, where several fits share it; by default it is counted.

    Returns:
        the scorer.

    Raises:
        ValueError: if lambda is not positive or too small for floating point, or the catalogue is too large for
            dense weights.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> weights = fit_ease(tiny_split()).params.weights
        >>> weights.shape, weights.diagonal().tolist()
        ((6, 6), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    if regularisation is None:
        regularisation = default_regularisation(split)
    if not 0 < regularisation < np.inf:
        raise ValueError(f"ease: regularisation must be a finite number above 0, not {regularisation}")
    gram = gram_matrix(split) if gram is None else gram
    smallest = np.finfo(float).eps * gram.trace()
    if regularisation < smallest:
        raise ValueError(
            f"ease: regularisation={regularisation} is lost in rounding; give {smallest:.1g} or more"
        )
    return make_item_scorer(split, _solve(gram, regularisation))


def _solve(gram: np.ndarray, regularisation: float) -> np.ndarray:
    """float64[I, I], B. A Cholesky inverse has a third of the work, and waits for long on a busy machine."""
    ridge = gram.copy()
    np.fill_diagonal(ridge, gram.diagonal() + regularisation)
    inverse = np.linalg.inv(ridge)  # positive definite, whatever X is
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0.0)
    return weights
