"""EASE: a linear autoencoder with a zero diagonal, in closed form.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (doi:10.1145/3308558.3313710), sections 2
and 3.1: with X the binary training table, the weights B solve

    min |X - X B|^2 + lambda |B|^2    subject to    diag(B) = 0,

whose solution is, with P = (X^T X + lambda I)^-1,

    B_ij = -P_ij / P_jj  for i != j,    B_jj = 0.

A user's scores are the user's row of X B. The one setting is lambda.

**By users.** Where there are fewer users than items the same scores need only a table of users by users: with K =
(X X^T + lambda I)^-1, X P = K X (the push-through identity), and so

    X B = X - K X diag(1 / P_jj),    lambda P_jj = 1 - x_j^T K x_j,

x_j being the column of item j. That inverts N^2 numbers instead of I^2.
"""

from typing import Any

import numpy as np

from fedjax_rec.data.defaults import ease_penalty
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import (
    Scorer,
    check_memory,
    gram_matrix,
    make_item_scorer,
    make_table_scorer,
    training_table,
)

_BLOCK = 1024  # users whose rows are multiplied at once
_BYTES_PER_PAIR = 56  # of items: seven tables of float64, at the most, in the course of a fit
_BYTES_PER_USERS = 16  # a pair of users: the counts, and what is inverted in place


def default_regularisation(split: Split) -> float:
    """Choose lambda by the size of the data, as `fedease` does (`fedjax_rec.data.defaults.ease_penalty`).

    Args:
        split: the split.

    Returns:
        lambda.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> round(default_regularisation(tiny_split()), 2)
        2.38
    """
    return float(max(1.0, ease_penalty(split.size)))


def by_users(split: Split) -> bool:
    """Whether weights are solved for by users: where there are fewer of them than items.

    Args:
        split: the split.

    Returns:
        True or False.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> by_users(tiny_split())  # 4 users, 6 items
        True
    """
    return split.num_users < split.num_items


def check_ease(split: Split, *, memory: int | None = None) -> None:
    """Refuse data whose pairs of items, or of users where there are fewer, exceed the memory that is free.

    Args:
        split: the data.
        memory: bytes; by default what is free.

    Raises:
        ValueError: if they do not fit.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> check_ease(tiny_split(), memory=300)
        Traceback (most recent call last):
        ValueError: ease needs 3.52e-07 GB for 4 users and 6 items of tiny, and there are 3e-07: leave it out
    """
    pairs = _BYTES_PER_PAIR * split.num_items**2
    if by_users(split):
        pairs = _BYTES_PER_USERS * split.num_users**2 + 4 * split.num_users * split.num_items
    check_memory("ease", split, pairs, memory=memory)


def count_shared(split: Split) -> np.ndarray:
    """Count what pairs share: the users of two items, or the items of two users where there are fewer of those.

    Args:
        split: its training events are X.

    Returns:
        X^T X, float64[I, I], or X X^T, float32[N, N]; exact.

    Raises:
        ValueError: if they do not fit, as `check_ease` says.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> count_shared(tiny_split()).diagonal().tolist()  # training events of each user
        [2.0, 2.0, 2.0, 2.0]
    """
    check_ease(split)
    if not by_users(split):
        return gram_matrix(split)
    table = training_table(split).astype(np.float32)
    counts = np.empty((split.num_users, split.num_users), np.float32)
    for start in range(0, split.num_users, _BLOCK):
        counts[start : start + _BLOCK] = (table[start : start + _BLOCK] @ table.T).toarray()
    return counts


def fit_ease(split: Split, *, regularisation: float | None = None, gram: np.ndarray | None = None) -> Scorer:
    """Solve for the weights.

    Args:
        split: its training events are X.
        regularisation: lambda, more than 0; by default `default_regularisation`.
        gram: as `count_shared` counts it, where several fits share it.

    Returns:
        the scorer: with weights [I, I], or with the scores of all users [N, I] where there are fewer of them.

    Raises:
        ValueError: if lambda is not positive or too small for floating point, or there is no memory.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> fit_ease(tiny_split()).params.table.shape
        (4, 6)
    """
    if regularisation is None:
        regularisation = default_regularisation(split)
    if not 0 < regularisation < np.inf:
        raise ValueError(f"ease: regularisation must be a finite number above 0, not {regularisation}")
    gram = count_shared(split) if gram is None else gram
    smallest = np.finfo(float).eps * gram.trace()
    if regularisation < smallest:
        raise ValueError(
            f"ease: regularisation={regularisation} is lost in rounding; give {smallest:.1g} or more"
        )
    if by_users(split):
        return make_table_scorer(_scores_by_users(training_table(split), gram, regularisation))
    return make_item_scorer(split, solve_weights(gram, regularisation))


def solve_weights(gram: np.ndarray, regularisation: float) -> np.ndarray:
    """Solve for B by items.

    Args:
        gram: X^T X, float64[I, I].
        regularisation: lambda.

    Returns:
        float64[I, I], B, with a zero diagonal.

    Example:
        >>> solve_weights(np.array([[2.0, 1.0], [1.0, 2.0]]), 1.0).round(3).tolist()
        [[0.0, 0.333], [0.333, 0.0]]
    """
    # A Cholesky inverse has a third of the work, and waits for long on a busy machine.
    ridge = gram.copy()
    np.fill_diagonal(ridge, gram.diagonal() + regularisation)
    inverse = np.linalg.inv(ridge)  # positive definite, whatever X is
    weights = -inverse / inverse.diagonal()
    np.fill_diagonal(weights, 0.0)
    return weights


def _scores_by_users(table: Any, shared: np.ndarray, regularisation: float) -> np.ndarray:
    """float32[N, I], X B, from X and X X^T."""
    # K [N, N], in place
    kernel = shared.astype(np.float64)
    np.fill_diagonal(kernel, kernel.diagonal() + regularisation)
    kernel = invert_spd(kernel)

    # K X [N, I], and the sums x_j^T K x_j [I] of its entries where X is 1
    product = np.empty(table.shape, np.float32)
    explained = np.zeros(table.shape[1])
    for start in range(0, len(kernel), _BLOCK):
        rows = slice(start, start + _BLOCK)
        block = kernel[rows] @ table
        explained += np.asarray(table[rows].multiply(block).sum(axis=0)).ravel()
        product[rows] = block

    # X - K X diag(1 / P_jj)
    scale = regularisation / (1 - explained)
    for start in range(0, len(kernel), _BLOCK):
        rows = slice(start, start + _BLOCK)
        product[rows] = table[rows].toarray() - product[rows] * scale
    return product


def invert_spd(matrix: np.ndarray, block: int = 512) -> np.ndarray:
    """Invert a positive definite matrix in its own memory, by products of matrices alone.

    The sweep operator, block by block: with pivots k and all others i, j, A_ij <- A_ij - A_ik A_kk^-1 A_kj,
    A_ik <- A_ik A_kk^-1 and A_kk <- -A_kk^-1; once every block was swept, A is -A^-1. That is as much work as a
    Cholesky factorisation and its inverse (`dpotrf`, `dpotri`), which have ended the process for 30,000 users
    (OpenBLAS 0.3.30, in scipy 1.17, on one machine).

    Args:
        matrix: float64[N, N], symmetric; it is overwritten.
        block: pivots that are swept at once.

    Returns:
        the inverse, float64[N, N].

    Raises:
        ValueError: if it is not positive definite.

    Example:
        >>> invert_spd(np.array([[2.0, 1.0], [1.0, 2.0]]), block=1).round(3).tolist()
        [[0.667, -0.333], [-0.333, 0.667]]

    Source: Goodnight 1979, "A tutorial on the SWEEP operator" (doi:10.1080/00031305.1979.10482685).
    """
    size = len(matrix)
    for first in range(0, size, block):
        last = min(first + block, size)
        # A_ik of all i, of which those before the pivots stand in their rows
        pivots = matrix[first:last, first:last].copy()
        try:
            np.linalg.cholesky(pivots)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                "ease: the table of users is not positive definite; raise the regularisation"
            ) from error
        columns = np.concatenate([matrix[first:last, :first].T, matrix[first:, first:last]])
        inverse = np.linalg.inv(pivots)
        weighed = columns @ inverse

        # the lower triangle, rows of a block at a time
        for start in range(0, size, block):
            stop = min(start + block, size)
            matrix[start:stop, :stop] -= weighed[start:stop] @ columns[:stop].T
        matrix[first:last, :first] = weighed[:first].T
        matrix[last:, first:last] = weighed[last:]
        matrix[first:last, first:last] = -inverse

    # -A^-1, and the other triangle
    for start in range(0, size, block):
        stop = start + block
        np.negative(matrix[start:stop, :stop], out=matrix[start:stop, :stop])
        matrix[start:stop, stop:] = -matrix[stop:, start:stop].T
        corner = matrix[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return matrix
