"""What a fitted baseline hands to the ranker: parameters, and a pure function that scores a block of users.

Three shapes cover them all: one score for everybody, a product of factors, and a sum of item-item weights over
a user's history, which stays in compressed rows until a block of users is scored.

Axis legend: `N` users, `I` items, `U` users of a block, `D` factors, `L` the longest history.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.engine.devices import host_bytes

_BYTES_PER_PAIR = 56  # of items: seven tables of float64, at the most, in the course of a fit


class DivergedError(ValueError):
    """A fit whose numbers are no longer finite: other settings may do."""


class Scorer(NamedTuple):
    """A fitted model, in the shape that `make_ranker` takes."""

    score_block: Callable[[Any, jax.Array], jax.Array]  # (params, int32[U] users) -> float32[U, I]
    params: Any  # any pytree


class Factors(NamedTuple):
    """A model whose score is a dot product and a bias."""

    users: jax.Array  # float32[N, D]
    items: jax.Array  # float32[I, D]
    bias: jax.Array  # float32[I]

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.users)


class ItemWeights(NamedTuple):
    """A model that sums, over a user's history, the weights of the items for the item to score."""

    weights: jax.Array  # float32[I, I], row: the item of the history, column: the item to score
    offsets: jax.Array  # int32[N + 1], user u's history is offsets[u]:offsets[u + 1]
    items: jax.Array  # int32[nnz]
    history_slots: jax.Array  # int32[L], 0 .. L-1

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.offsets) - 1


def score_nonpersonalised(scores: jax.Array, users: jax.Array) -> jax.Array:
    """Score for everybody alike.

    Args:
        scores: float32[I].
        users: int32[U].

    Returns:
        float32[U, I], the scores in every row.

    Example:
        >>> score_nonpersonalised(jnp.array([1.0, 2.0]), jnp.array([5, 6])).tolist()
        [[1.0, 2.0], [1.0, 2.0]]
    """
    return jnp.broadcast_to(scores[None, :], (len(users), len(scores)))


def score_factors(params: Factors, users: jax.Array) -> jax.Array:
    """Score by factors: s_ui = p_u . q_i + b_i.

    Args:
        params: the factors.
        users: int32[U].

    Returns:
        float32[U, I].

    Example:
        >>> params = Factors(jnp.eye(2), jnp.eye(2), jnp.array([0.0, 5.0]))
        >>> score_factors(params, jnp.array([0])).tolist()
        [[1.0, 5.0]]
    """
    return params.users[users] @ params.items.T + params.bias[None, :]


def score_item_weights(params: ItemWeights, users: jax.Array) -> jax.Array:
    """Score by item-item weights: s_ui = sum over j in u's history of w_ji.

    Args:
        params: the weights and the histories.
        users: int32[U].

    Returns:
        float32[U, I].

    Example:
        >>> params = ItemWeights(
        ...     jnp.array([[0.0, 3.0], [4.0, 0.0]]), jnp.array([0, 1, 3]), jnp.array([1, 0, 1]), jnp.arange(2)
        ... )
        >>> score_item_weights(params, jnp.array([1, 0])).tolist()
        [[4.0, 3.0], [4.0, 0.0]]
    """
    # The users' items [U, L], I behind the end of a history.
    start = params.offsets[users][:, None]
    end = params.offsets[users + 1][:, None]
    positions = start + params.history_slots[None, :]
    num_items = len(params.weights)
    items = jnp.where(positions < end, params.items.at[positions].get(mode="clip"), num_items)

    # Their histories as rows of 0 and 1 [U, I].
    histories = jnp.zeros((len(users), num_items))
    histories = histories.at[jnp.arange(len(users))[:, None], items].set(1.0, mode="drop")
    return histories @ params.weights


def make_item_scorer(split: Split, weights: np.ndarray) -> Scorer:
    """Put item-item weights and the training histories of a split on device.

    Args:
        split: the split.
        weights: float[I, I], row: the item of the history, column: the item to score.

    Returns:
        the scorer.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(3))
        >>> scorer = make_item_scorer(leave_one_out(Dataset("tiny", table), order="file"), np.ones((3, 3)))
        >>> scorer.score_block(scorer.params, jnp.arange(1)).tolist()
        [[1.0, 1.0, 1.0]]
    """
    longest = int(np.diff(split.offsets).max(initial=0))
    params = ItemWeights(
        weights=jnp.asarray(weights, jnp.float32),
        offsets=jnp.asarray(split.offsets, jnp.int32),
        items=jnp.asarray(split.items, jnp.int32),
        history_slots=jnp.arange(longest),
    )
    return Scorer(score_item_weights, params)


def gram_matrix(split: Split) -> np.ndarray:
    """Count the users that have both items of each pair: the Gram matrix X^T X of the binary training table.

    Args:
        split: the split; X is its training events, 1 where a user has an item.

    Returns:
        float64[I, I], exact; the diagonal counts each item's users.

    Raises:
        ValueError: if the catalogue is too large, as `check_dense` says.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(4, "i4"), np.arange(4, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(4))
        >>> gram_matrix(leave_one_out(Dataset("tiny", table), order="file"))[:2, :3]
        array([[1., 1., 0.],
               [1., 1., 0.]])
    """
    from scipy.sparse import csr_array

    check_dense(split)
    shape = (split.num_users, split.num_items)
    table = csr_array((np.ones(len(split.items)), split.items, split.offsets), shape=shape)
    return (table.T @ table).toarray()


def check_dense(split: Split, *, memory: int | None = None) -> None:
    """Refuse a catalogue whose weights of items by items exceed the memory that is free.

    Args:
        split: of the catalogue.
        memory: bytes; by default what is free.

    Raises:
        ValueError: if the weights do not fit.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> check_dense(tiny_split(), memory=2000)
        Traceback (most recent call last):
        ValueError: itemknn and ease need 2.02e-06 GB for 6 x 6 items of tiny, and there are 2e-06: leave them out
    """
    memory = host_bytes() if memory is None else memory
    needed = _BYTES_PER_PAIR * split.num_items**2
    if needed > memory:
        raise ValueError(
            f"itemknn and ease need {needed / 1e9:.3g} GB for {split.num_items:,} x {split.num_items:,} items of "
            f"{split.name}, and there are {memory / 1e9:.3g}: leave them out"
        )
