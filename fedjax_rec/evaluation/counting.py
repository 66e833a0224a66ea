"""Counting on device: how many rivals score above a positive, and how many alike; both kinds of ranking share it.

Axis legend: `I` items, `U` users of a block, `K` rivals.
"""

import jax
import jax.numpy as jnp

_CHUNK = 2**15 - 1  # items counted at once: two counts share one int32
_COUNT_BITS = 16  # of the lower one


def check_scores(scores: jax.Array, users: jax.Array, num_items: int) -> jax.Array:
    """Give a block's scores as they will be compared: float32[U, I], computed once.

    Args:
        scores: of the model.
        users: int32[U], the users of the block.
        num_items: I.

    Returns:
        The scores.

    Raises:
        ValueError: if their shape is not [U, I].

    Example:
        >>> check_scores(jnp.zeros((2, 3)), jnp.zeros(2), 4)
        Traceback (most recent call last):
        ValueError: the model scored 2 users with shape (2, 3), not (2, 4): one score for each item
    """
    expected = (len(users), num_items)
    if scores.shape != expected:
        raise ValueError(
            f"the model scored {expected[0]} users with shape {scores.shape}, not {expected}: "
            "one score for each item"
        )
    # Without the barrier a compiler may compute a score twice, once for either side, with other last bits.
    return jax.lax.optimization_barrier(scores.astype(jnp.float32))


def count_better_and_tied(scores: jax.Array, positive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Count rivals by score.

    Args:
        scores: float32[U, K], of the rivals; NaN counts for nothing.
        positive: float32[U].

    Returns:
        int32[U] each, how many are above and equal to the positive's score.

    Example:
        >>> count_better_and_tied(jnp.array([[3.0, 1.0, 1.0]]), jnp.array([1.0]))
        (Array([1], dtype=int32), Array([2], dtype=int32))
    """
    threshold = positive[:, None]
    better = tied = jnp.zeros(len(positive), jnp.int32)
    for start in range(0, scores.shape[1], _CHUNK):
        chunk = scores[:, start : start + _CHUNK]
        # both counts of a chunk in one integer, which costs one reduction instead of two
        both = jnp.sum((chunk > threshold) + ((chunk == threshold).astype(jnp.int32) << _COUNT_BITS), axis=1)
        better = better + (both & (2**_COUNT_BITS - 1))
        tied = tied + (both >> _COUNT_BITS)
    return better, tied


def mid_rank(
    better: jax.Array, tied: jax.Array, positive: jax.Array, items: jax.Array, num_rivals: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mid-ranks by counts; a NaN positive is last, and without an item or a rival there is no rank.

    Args:
        better: int32[U], rivals of a higher score.
        tied: int32[U], rivals of the same score.
        positive: float32[U], the positives' scores.
        items: int32[U], the positives, -1 for none.
        num_rivals: int32[U].

    Returns:
        float32[U] ranks, NaN for none, and int32[U] ties.

    Example:
        >>> one = jnp.ones(1, jnp.int32)
        >>> mid_rank(one, 2 * one, jnp.ones(1), one, 5 * one)
        (Array([2.], dtype=float32), Array([2], dtype=int32))
    """
    is_number = ~jnp.isnan(positive)
    present = (items >= 0) & (num_rivals > 0)
    mid = jnp.where(is_number, better.astype(jnp.float32) + 0.5 * tied.astype(jnp.float32), num_rivals)
    return jnp.where(present, mid, jnp.nan), jnp.where(is_number & present, tied, 0)
