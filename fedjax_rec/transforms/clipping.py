"""Clipping an update to a norm, and the noise that a client adds itself."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.errors import check_arguments
from fedjax_rec.transforms.base import Bound, Transform
from fedjax_rec.transforms.flattening import draw_by_row, on_leaves
from fedjax_rec.types import Key, Server, Update


def clip(norm: float) -> Transform:
    """Scale an update down to a norm: delta * min(1, norm / |delta|).

    Args:
        norm: the largest L2 norm, above 0.

    Returns:
        a transform.

    Raises:
        ValueError: if the norm is not above 0.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 4.0]]), jnp.float32(1))
        >>> sent = clip(1.0).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2))))
        >>> [f"{x:.4f}" for x in sent.rows[0].tolist()]
        ['0.6000', '0.8000']

    Source: McMahan et al. 2018, "Learning differentially private recurrent language models", section 3, FlatClip.
    """
    check_arguments(clip, locals())
    if not norm > 0:
        raise ValueError(f"the clipping norm must be above 0, not {norm}")

    def scale(squared_norm: jax.Array) -> jax.Array:
        return shrinkage(norm, squared_norm)

    def update(key: Key, sent: Update, server: Server) -> Update:
        del key, server
        factor = scale(sent.squared_norm())
        return _map(lambda x: factor * x, sent)

    def bound(known: Bound) -> Bound:
        smaller = norm if known.norm is None else min(norm, known.norm)
        return known._replace(norm=smaller, grid=None)

    return Transform(f"clip({norm})", update, scale, bound=bound)


def add_noise(deviation: float) -> Transform:
    """Add normal(0, deviation) to every number that a client sends of its own rows and dense leaves.

    Rows that the client does not touch stay untouched: this hides values, not which rows they are of.

    Args:
        deviation: standard deviation, at least 0.

    Returns:
        a transform.

    Raises:
        ValueError: if the deviation is negative.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 4.0]]), jnp.float32(1))
        >>> add_noise(0.0).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2)))).rows.tolist()
        [[3.0, 4.0]]
    """
    check_arguments(add_noise, locals())
    if not deviation >= 0:
        raise ValueError(f"the noise's deviation must be at least 0, not {deviation}")

    def noisy(key: Key, x: jax.Array) -> jax.Array:
        return x + deviation * draw_by_row(jax.random.normal, key, x.shape)

    def bound(known: Bound) -> Bound:
        if known.deviation > 0:
            raise ValueError(
                f"add_noise({deviation}) is the second noise of {' > '.join(known.after)}; add all of it at once"
            )
        if known.norm is None:
            raise ValueError(
                f"add_noise({deviation}) hides nothing of an update without a bound; put clip(norm) before it, in "
                "a chain"
            )
        if deviation == 0:
            return known
        # noise has no bound, so that its sum with an update has none
        return known._replace(norm=None, grid=None, deviation=deviation, noised_norm=known.norm)

    return Transform(f"add_noise({deviation})", on_leaves(noisy), bound=bound)


def shrinkage(norm: float, squared: jax.Array) -> jax.Array:
    """By what to scale updates down to a norm: min(1, norm / |x|).

    Args:
        norm: the largest norm.
        squared: float32[...], their squared norms.

    Returns:
        float32[...].

    Example:
        >>> shrinkage(5.0, jnp.array([100.0, 4.0, 0.0])).tolist()
        [0.5, 1.0, 1.0]
    """
    return jnp.minimum(1.0, norm / jnp.sqrt(jnp.maximum(squared, 1e-30)))


def _map(function: Callable[[jax.Array], jax.Array], sent: Update) -> Update:
    return sent._replace(shared=jax.tree.map(function, sent.shared), rows=jax.tree.map(function, sent.rows))
