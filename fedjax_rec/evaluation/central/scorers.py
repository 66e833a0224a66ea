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


class Histories(NamedTuple):
    """What each user has, in compressed rows."""

    offsets: jax.Array  # int32[N + 1], user u's history is offsets[u]:offsets[u + 1]
    items: jax.Array  # int32[nnz]
    slots: jax.Array  # int32[L], 0 .. L-1


class ItemWeights(NamedTuple):
    """A model that sums, over a user's history, the weights of the items for the item to score."""

    weights: jax.Array  # float32[I, I], row: the item of the history, column: the item to score
    histories: Histories

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.histories.offsets) - 1


class ScoreTable(NamedTuple):
    """A model whose scores are kept as they are."""

    table: jax.Array  # float32[N, I]

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.table)


class Neighbours(NamedTuple):
    """A model in which few items speak for each, of a catalogue too large for a table of items by items."""

    nearest: jax.Array  # int32[I, k], the items that speak for an item
    weights: jax.Array  # float32[I, k]
    histories: Histories

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.histories.offsets) - 1


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
        >>> histories = Histories(jnp.array([0, 1, 3]), jnp.array([1, 0, 1]), jnp.arange(2))
        >>> params = ItemWeights(jnp.array([[0.0, 3.0], [4.0, 0.0]]), histories)
        >>> score_item_weights(params, jnp.array([1, 0])).tolist()
        [[4.0, 3.0], [4.0, 0.0]]
    """
    return _rows_of(params.histories, users, len(params.weights)) @ params.weights


def _rows_of(histories: Histories, users: jax.Array, num_items: int) -> jax.Array:
    """float32[U, I], the users' histories as rows of 0 and 1."""
    # Their items [U, L], I behind the end of a history.
    start = histories.offsets[users][:, None]
    end = histories.offsets[users + 1][:, None]
    positions = start + histories.slots[None, :]
    items = jnp.where(positions < end, histories.items.at[positions].get(mode="clip"), num_items)

    # As rows [U, I].
    rows = jnp.zeros((len(users), num_items))
    return rows.at[jnp.arange(len(users))[:, None], items].set(1.0, mode="drop")


def score_neighbours(params: Neighbours, users: jax.Array) -> jax.Array:
    """Score by few weights an item: s_ui = sum over the j of u's history that speak for i of w_ji.

    Args:
        params: the weights and the histories.
        users: int32[U].

    Returns:
        float32[U, I].

    Example:
        >>> histories = Histories(jnp.array([0, 1, 3]), jnp.array([1, 0, 1]), jnp.arange(2))
        >>> params = Neighbours(jnp.array([[1], [0]]), jnp.array([[4.0], [3.0]]), histories)
        >>> score_neighbours(params, jnp.array([1, 0])).tolist()
        [[4.0, 3.0], [4.0, 0.0]]
    """
    histories = _rows_of(params.histories, users, len(params.nearest)).T  # [I, U]

    def add(scores: jax.Array, column: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        nearest, weights = column
        return scores + weights[:, None] * histories[nearest], None

    # neighbour by neighbour, so that no table of items, neighbours and users is made
    columns = (params.nearest.T, params.weights.T)
    return jax.lax.scan(add, jnp.zeros_like(histories), columns)[0].T


def score_table(params: ScoreTable, users: jax.Array) -> jax.Array:
    """Look scores up.

    Args:
        params: the scores.
        users: int32[U].

    Returns:
        float32[U, I].

    Example:
        >>> score_table(ScoreTable(jnp.array([[1.0, 2.0], [3.0, 4.0]])), jnp.array([1])).tolist()
        [[3.0, 4.0]]
    """
    return params.table[users]


def make_table_scorer(table: np.ndarray) -> Scorer:
    """Put scores on device.

    Args:
        table: float[N, I].

    Returns:
        the scorer.

    Example:
        >>> make_table_scorer(np.ones((2, 3))).params.num_users
        2
    """
    return Scorer(score_table, ScoreTable(jnp.asarray(table, jnp.float32)))


def make_item_scorer(split: Split, weights: np.ndarray) -> Scorer:
    """Put item-item weights and the training histories of a split on device.

    Args:
        split: the split.
        weights: float[I, I], row: the item of the history, column: the item to score.

    Returns:
        the scorer.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> scorer = make_item_scorer(tiny_split(), np.ones((6, 6)))
        >>> scorer.score_block(scorer.params, jnp.arange(1)).tolist()  # two items of the history
        [[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]
    """
    table = jnp.asarray(weights, jnp.float32)
    return Scorer(score_item_weights, ItemWeights(table, _training_histories(split)))


def make_neighbour_scorer(split: Split, nearest: np.ndarray, weights: np.ndarray) -> Scorer:
    """Put few weights an item and the training histories of a split on device.

    Args:
        split: the split.
        nearest: int[I, k], the items that speak for an item.
        weights: float[I, k].

    Returns:
        the scorer.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> scorer = make_neighbour_scorer(tiny_split(), np.zeros((6, 1), int), np.ones((6, 1)))
        >>> scorer.score_block(scorer.params, jnp.arange(4)).sum(axis=1).tolist()  # who has item 0
        [6.0, 0.0, 0.0, 0.0]
    """
    rows = (jnp.asarray(nearest, jnp.int32), jnp.asarray(weights, jnp.float32))
    return Scorer(score_neighbours, Neighbours(*rows, _training_histories(split)))


def _training_histories(split: Split) -> Histories:
    longest = int(np.diff(split.offsets).max(initial=0))
    offsets, items = (jnp.asarray(array, jnp.int32) for array in (split.offsets, split.items))
    return Histories(offsets, items, jnp.arange(longest))


def training_table(split: Split) -> Any:
    """Make the binary training table.

    Args:
        split: the split.

    Returns:
        scipy's csr_array, float64[N, I], 1 where a user has an item.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> training_table(tiny_split()).sum()
        np.float64(8.0)
    """
    from scipy.sparse import csr_array

    shape = (split.num_users, split.num_items)
    return csr_array((np.ones(len(split.items)), split.items, split.offsets), shape=shape)


def gram_matrix(split: Split) -> np.ndarray:
    """Count the users that have both items of each pair: the Gram matrix X^T X of the binary training table.

    Args:
        split: the split; X is its training events, 1 where a user has an item.

    Returns:
        float64[I, I], exact; the diagonal counts each item's users.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> gram_matrix(tiny_split()).diagonal().tolist()
        [1.0, 2.0, 1.0, 1.0, 2.0, 1.0]
    """
    table = training_table(split)
    return (table.T @ table).toarray()


def check_memory(name: str, split: Split, needed: int, *, memory: int | None = None) -> None:
    """Refuse a method whose tables exceed the memory that is free.

    Args:
        name: of the method.
        split: of the data.
        needed: bytes.
        memory: bytes; by default what is free.

    Raises:
        ValueError: if the tables do not fit.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> check_memory("ease", tiny_split(), 3000, memory=2000)
        Traceback (most recent call last):
        ValueError: ease needs 3e-06 GB for 4 users and 6 items of tiny, and there are 2e-06: leave it out
    """
    memory = host_bytes() if memory is None else memory
    if needed > memory:
        raise ValueError(
            f"{name} needs {needed / 1e9:.3g} GB for {split.num_users:,} users and {split.num_items:,} items of "
            f"{split.name}, and there are {memory / 1e9:.3g}: leave it out"
        )
