"""Top-k recommendation lists, exact and on device: the best unseen items of each user.

A list is ordered by score, ties by the lower item id; NaN is worst, behind even -inf. What a user has met is
never in it, and a user with fewer than k unseen items has -1 in the last slots. Items are taken in chunks of
32,768: the best k of each chunk are kept and merged, so that the sort never sees the whole catalogue; lists of
several shards of the catalogue are merged by `merge_top_k`.

Axis legend: `N` users, `I` items, `U` users of a block, `S` shards, `K` slots.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.data.splits import Split
from fedjax_rec.engine.devices import map_in_shares, mesh_that_holds
from fedjax_rec.errors import check_arguments
from fedjax_rec.evaluation.counting import check_scores
from fedjax_rec.evaluation.user_blocks import UserBlock, UserBlocks, check_users, make_user_blocks

_CHUNK = 2**15
# The three lowest finite numbers stand for NaN, for -inf, and for themselves; -inf for no item at all.
_KEY_OF_NAN = np.finfo(np.float32).min
_KEY_OF_MINUS_INF = np.nextafter(_KEY_OF_NAN, np.float32(0))
_LEAST_FINITE_KEY = np.nextafter(_KEY_OF_MINUS_INF, np.float32(0))


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
    mesh: Mesh | None = None,
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
        mesh: devices that share the blocks, as in `make_ranker`.

    Returns:
        The recommender, a function of the parameters, any pytree; lists [N, K].

    Raises:
        ValueError: if `k`, `which` or `block_size` is unknown or out of range, or scores have another shape.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> make_recommender(split, lambda bias, users: bias[users], 4)(jnp.array([[9.0, 9, 1, 2, 2]])).items
        Array([[ 3,  4,  2, -1]], dtype=int32)
    """
    check_arguments(make_recommender, locals())
    _check_k(k)
    user_blocks = make_user_blocks(split, which, block_size, lookup="lists")
    recommend = _list_program(score_block, split.num_items, k)

    def recommend_checked(params: Any) -> TopK:
        check_users(getattr(params, "num_users", split.num_users), split, "parameters")
        return recommend(params, user_blocks, mesh_that_holds(params, mesh))

    return recommend_checked


@lru_cache(maxsize=8)
def _list_program(
    score_block: Callable[[Any, jax.Array], jax.Array], num_items: int, k: int
) -> Callable[[Any, UserBlocks, Mesh | None], TopK]:
    def recommend_block(params: Any, block: UserBlock) -> TopK:
        scores = check_scores(score_block(params, block.users), block.users, num_items)
        return top_k(scores, k, seen=(block.segment_owners[:, None], block.segment_items))

    @partial(jax.jit, static_argnums=2)
    def recommend(params: Any, user_blocks: UserBlocks, mesh: Mesh | None) -> TopK:
        lists = map_in_shares(recommend_block, params, user_blocks.blocks, mesh)
        return jax.tree.map(lambda blocks: blocks.reshape(-1, k)[user_blocks.positions], lists)

    return recommend


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
    check_arguments(top_k, locals())
    _check_k(k)
    num_items = scores.shape[1]

    # Keys [U, I] that sort as the scores do; -inf is left for what is no candidate.
    keys = _sort_keys(scores)
    if seen is not None:
        keys = keys.at[seen].set(-jnp.inf, mode="drop")

    # The best of the chunks so far, keys and items [U, min(k, ...)], the best of each further chunk merged in.
    best, items = jax.lax.top_k(keys[:, :_CHUNK], min(k, num_items, _CHUNK))
    for start in range(_CHUNK, num_items, _CHUNK):  # of equal keys `top_k` takes the first: the lower item
        chunk = keys[:, start : start + _CHUNK]
        chunk_best, chunk_items = jax.lax.top_k(chunk, min(k, chunk.shape[1]))
        merged = jnp.append(best, chunk_best, axis=1)
        merged_items = jnp.append(items, chunk_items + start, axis=1)
        best, order = jax.lax.top_k(merged, min(k, merged.shape[1]))
        items = jnp.take_along_axis(merged_items, order, axis=1)

    # Lists [U, K] with the scores themselves; slots are empty where candidates or items ran out.
    is_candidate = best > -jnp.inf
    values = jnp.where(is_candidate, jnp.take_along_axis(scores, items, axis=1), -jnp.inf)
    missing = ((0, 0), (0, k - items.shape[1]))
    return TopK(
        jnp.pad(jnp.where(is_candidate, items, -1), missing, constant_values=-1),
        jnp.pad(values, missing, constant_values=-jnp.inf),
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
    check_arguments(merge_top_k, locals())
    _check_k(k)
    num_shards, num_users, length = lists.items.shape
    if k > length:
        raise ValueError(f"k={k} exceeds the shards' lists of {length}; make those at least as long")
    items, scores = (jnp.moveaxis(field, 0, 1).reshape(num_users, num_shards * length) for field in lists)
    descending = -jnp.where(items >= 0, _sort_keys(scores), -jnp.inf)
    _, items, scores = jax.lax.sort((descending, items, scores), num_keys=2)
    return TopK(items[:, :k], scores[:, :k])


def _sort_keys(scores: jax.Array) -> jax.Array:
    """Keys that sort as the scores do, NaN below -inf, and both above -inf, which is left for no item."""
    finite = jnp.where(scores == 0, 0.0, jnp.maximum(scores, _LEAST_FINITE_KEY))  # -0 and 0 are one number
    keys = jnp.where(scores == -jnp.inf, _KEY_OF_MINUS_INF, finite)
    return jnp.where(jnp.isnan(scores), _KEY_OF_NAN, keys)


def _check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k={k} is out of range; lists have 1 item or more")
