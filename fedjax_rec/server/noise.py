"""Noise: a round's Gaussian numbers for a whole aggregate, independent of other rounds' or mixed with them.

A round's numbers are a function of the key and the round alone: nothing is kept between rounds, and a run that is
resumed meets the same. `privacy/banded.py` says which mixing is best and why noise may be mixed at all.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp

from fedjax_rec.types import Key, Server, ServerNoise


def draw_noise(noise: ServerNoise, key: Key, round_: jax.Array, aggregate: Server) -> Server:
    """One round's noise: z C / n times normal numbers, of this round alone or mixed with those before.

    Args:
        noise: of an aggregator.
        key: the run's key for noise.
        round_: int32[]; the round.
        aggregate: its leaves give the shapes.

    Returns:
        float32 numbers in the aggregate's structure.

    Example:
        >>> noise, aggregate = ServerNoise(1.0, 0.0, 4.0, made_for=(sum, sum, 4.0)), Server(jnp.ones(2), None)
        >>> draw_noise(noise, jax.random.key(0), jnp.int32(0), aggregate).shared.shape
        (2,)
    """
    deviation = noise.multiplier * noise.norm / noise.expected
    if noise.mixing:
        drawn = draw_mixed(key, round_, aggregate, noise.mixing)
    else:
        drawn = draw_normal(key, round_, aggregate)
    return jax.tree.map(lambda x: deviation * x, drawn)


@lru_cache(maxsize=64)
def bands_of(mixing: tuple[float, ...]) -> int:
    """In how many rounds in a row a client may take part once: how far the inverse of the mixing reaches.

    Args:
        mixing: the first column of C^-1, a number for each planned round; () for independent noise.

    Returns:
        b, the bands of C; 1 for independent noise.

    Raises:
        ValueError: if a column of C is longer than 1, so that the noise hides more than one client sends.

    Example:
        >>> bands_of(()), bands_of(invert((0.8, 0.6), 5))
        (1, 2)
    """
    if not mixing:
        return 1
    strategy = invert(mixing, len(mixing))
    length = math.sqrt(math.fsum(c * c for c in strategy))
    if not length <= 1 + 1e-6:
        raise ValueError(
            f"mixed noise that hides {length:.6g} times what a client sends is too little; take the mixing of "
            "privacy.banded.noise_coefficients, or scale it so that its inverse has columns of norm 1"
        )
    return max(lag + 1 for lag, c in enumerate(strategy) if abs(c) > 1e-9)


def invert(coefficients: Sequence[float], count: int) -> tuple[float, ...]:
    """The first column of the inverse of a lower triangular Toeplitz matrix.

    x_0 = 1 / c_0,  x_t = -(c_1 x_{t-1} + ... + c_{b-1} x_{t-b+1}) / c_0.

    Args:
        coefficients: c, its first column, as far as it is not 0; c_0 is not 0.
        count: how many numbers to give.

    Returns:
        x, that many numbers.

    Raises:
        ValueError: if c_0 is 0.

    Example:
        >>> invert((1.0, 0.5), 4)
        (1.0, -0.5, 0.25, -0.125)
    """
    head, *tail = coefficients
    if head == 0:
        raise ValueError(
            "a matrix with zeros on its diagonal has no inverse; give a first number that is not 0"
        )
    inverse = [1 / head]
    for t in range(1, count):
        terms = zip(tail, reversed(inverse[max(0, t - len(tail)) : t]), strict=False)
        inverse.append((0.0 - math.fsum(c * x for c, x in terms)) / head)
    return tuple(inverse)


def draw_normal(key: Key, round_: jax.Array, aggregate: Server) -> Server:
    """One round's standard normal numbers, of the aggregate's shapes.

    Args:
        key: the run's key for noise.
        round_: int32[]; the round.
        aggregate: its leaves give the shapes.

    Returns:
        float32 numbers in the aggregate's structure; each leaf has draws of its own.

    Example:
        >>> drawn = draw_normal(jax.random.key(0), jnp.array(3), Server(jnp.zeros((2, 4)), None))
        >>> drawn.shared.shape
        (2, 4)
    """
    leaves, structure = jax.tree.flatten(aggregate)
    round_key = jax.random.fold_in(key, round_)
    keys = (jax.random.fold_in(round_key, number) for number in range(len(leaves)))
    return jax.tree.unflatten(
        structure, [jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )


def draw_mixed(key: Key, round_: jax.Array, aggregate: Server, mixing: Sequence[float]) -> Server:
    """One round's mixed numbers: sum_{k <= t} m_{t-k} w_k, where the earlier rounds' w_k are drawn again.

    Args:
        key: the run's key for noise.
        round_: int32[]; t, the round.
        aggregate: its leaves give the shapes.
        mixing: m, a number for each planned round.

    Returns:
        float32 numbers in the aggregate's structure; not a number after the planned rounds.

    Example:
        >>> key, aggregate = jax.random.key(0), Server(jnp.zeros(2), None)
        >>> mixed = draw_mixed(key, jnp.array(0), aggregate, (1.0, 0.5))
        >>> bool((mixed.shared == draw_normal(key, jnp.array(0), aggregate).shared).all())
        True
    """
    coefficients = jnp.asarray(mixing, jnp.float32)

    def add(k: jax.Array, total: Server) -> Server:
        coefficient = coefficients.at[round_ - k].get(mode="fill", fill_value=jnp.nan)
        return jax.tree.map(lambda x, w: x + coefficient * w, total, draw_normal(key, k, aggregate))

    return jax.lax.fori_loop(0, round_ + 1, add, jax.tree.map(jnp.zeros_like, aggregate))
