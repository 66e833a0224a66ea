"""Top-k recommendation lists, exact and on device: the best unseen items of each user.

A list is ordered by score, ties by the lower item id; NaN is worst, behind even -inf. What a user has met is
never in it, and a user with fewer than k unseen items has -1 in the last slots. Items are taken in chunks of
32,768: the best k of each chunk are kept and merged, so that the sort never sees the whole catalogue; lists of
several shards of the catalogue are merged by `merge_top_k`.

Axis legend: `N` users, `I` items, `U` users of a block, `S` shards, `K` slots.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.layout import Block, Plan, lay_out
from fedjax_rec.evaluation.ranking import check_scores

_CHUNK = 2**15
# The three lowest finite numbers stand for NaN, for -inf, and for themselves; -inf for no item at all.
_LOWEST = np.finfo(np.float32).min
_INFINITE = np.nextafter(_LOWEST, np.float32(0))
_FINITE = np.nextafter(_INFINITE, np.float32(0))


class TopK(NamedTuple):
    """Lists, best first."""

    items: jax.Array  # int32[..., K], -1 for an empty slot
    scores: jax.Array  # float32[..., K], -inf in an empty slot


def make_recommender(
    split: Split,
    score_block: Callable[[Any, jax.Array], jax.Array],
    k: int,
    *,
    which: str = "test",
    block_size: int | None = None,
) -> Callable[[Any], TopK]:
    """Build a compiled function from a model's parameters to the lists of all users.

    The candidates are those of the full ranking: all items but those of train and validation (`which` is
    `test`) or of train (`validation`). A held-out item that the user met before stays a candidate, so that it
    is in the list exactly where its rank is below k.

    Args:
        split: the split.
        score_block: pure function of (parameters, int32[U] users) that gives scores [U, I].
        k: K, 1 or more; beyond the number of items the last slots are empty.
        which: `test` or `validation`.
        block_size: U at most, users scored at once.

    Returns:
        The recommender, a function of the parameters, any pytree; lists [N, K].

    Raises:
        ValueError: if `k`, `which` or `block_size` is unknown or out of range, or scores have another shape.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table))
        >>> make_recommender(split, lambda bias, users: bias[users], 4)(jnp.array([[9.0, 9, 1, 2, 2]])).items
        Array([[ 3,  4,  2, -1]], dtype=int32)
    """
    _check_k(k)
    plan, num_items = lay_out(split, which, block_size, lookup="lists"), split.num_items

    def list_block(params: Any, block: Block) -> TopK:
        scores = check_scores(score_block(params, block.users), block, num_items)
        return top_k(scores, k, seen=(block.owners[:, None], block.items))

    @jax.jit
    def recommend(params: Any, plan: Plan) -> TopK:
        lists = jax.lax.map(lambda block: list_block(params, block), plan.blocks)
        return jax.tree.map(lambda blocks: blocks.reshape(-1, k)[plan.places], lists)

    return lambda params: recommend(params, plan)


def top_k(scores: jax.Array, k: int, *, seen: tuple[jax.Array, jax.Array] | None = None) -> TopK:
    """The best items of each row.

    Args:
        scores: float32[U, I].
        k: K, 1 or more.
        seen: rows and items that are no candidates, int32 of shapes that broadcast; rows from U on are
            ignored.

    Returns:
        Lists [U, K].

    Raises:
        ValueError: if `k` is less than 1.

    Example:
        >>> top_k(jnp.array([[1.0, jnp.nan, 3.0, 3.0]]), 3, seen=(jnp.array([0]), jnp.array([0]))).items
        Array([[2, 3, 1]], dtype=int32)
    """
    _check_k(k)
    num_items = scores.shape[1]
    keys = _order(scores)
    if seen is not None:
        keys = keys.at[seen].set(-jnp.inf, mode="drop")
    best, items = jax.lax.top_k(keys[:, :_CHUNK], min(k, num_items, _CHUNK))
    for start in range(_CHUNK, num_items, _CHUNK):  # of equal keys `top_k` takes the first: the lower item
        chunk = keys[:, start : start + _CHUNK]
        found, at = jax.lax.top_k(chunk, min(k, chunk.shape[1]))
        both, ids = jnp.append(best, found, axis=1), jnp.append(items, at + start, axis=1)
        best, order = jax.lax.top_k(both, min(k, both.shape[1]))
        items = jnp.take_along_axis(ids, order, axis=1)
    kept = best > -jnp.inf
    values = jnp.where(kept, jnp.take_along_axis(scores, items, axis=1), -jnp.inf)
    pad = ((0, 0), (0, k - items.shape[1]))
    return TopK(
        jnp.pad(jnp.where(kept, items, -1), pad, constant_values=-1),
        jnp.pad(values, pad, constant_values=-jnp.inf),
    )


def merge_top_k(lists: TopK, k: int) -> TopK:
    """Merge the lists of several shards of a catalogue, which have no item in common.

    Args:
        lists: of the shards, [S, U, K'], items by their ids in the whole catalogue.
        k: K of the merged lists, at most K' for an exact result.

    Returns:
        Lists [U, K], the same as of the whole catalogue.

    Raises:
        ValueError: if `k` is less than 1 or more than K'.

    Example:
        >>> shards = TopK(jnp.array([[[7, 9]], [[2, -1]]]), jnp.array([[[5.0, 1.0]], [[5.0, -jnp.inf]]]))
        >>> merge_top_k(shards, 2).items
        Array([[2, 7]], dtype=int32)
    """
    _check_k(k)
    shards, rows, length = lists.items.shape
    if k > length:
        raise ValueError(f"k={k} exceeds the shards' lists of {length}; make those at least as long")
    items, scores = (jnp.moveaxis(part, 0, 1).reshape(rows, shards * length) for part in lists)
    falling = -jnp.where(items >= 0, _order(scores), -jnp.inf)
    _, items, scores = jax.lax.sort((falling, items, scores), num_keys=2)
    return TopK(items[:, :k], scores[:, :k])


def _order(scores: jax.Array) -> jax.Array:
    """Keys that sort as the scores do, NaN below -inf, and both above -inf, which is left for no item."""
    finite = jnp.where(scores == 0, 0.0, jnp.maximum(scores, _FINITE))  # -0 and 0 are one number
    keys = jnp.where(scores == -jnp.inf, _INFINITE, finite)
    return jnp.where(jnp.isnan(scores), _LOWEST, keys)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k} is out of range; lists have 1 item or more")
