"""Banded matrix factorisation: noise that later rounds take back in part, for sums over rounds that are nearer.

Choquette-Choo et al. 2023, "(Amplified) banded matrix factorization: a unified approach to private training"
(NeurIPS, arXiv:2306.08153), algorithms 2 and 9. A model after t rounds is a sum of t aggregates x_1 + ... + x_t,
so that what counts is the noise of the *sums*. With a lower triangular C of columns of norm 1 at most,

    round t releases  x_t + z C_clip sum_{k <= t} (C^-1)_{t k} n_k,      n_k standard normal for every number,

which is as private as x_t + z C_clip (C n)_t would be: the mechanism C x + z n, solved for x. C is Toeplitz with b
bands, its coefficients chosen for the least mean squared error of the sums (`jax_privacy`). A client takes part in
one of b consecutive rounds at most (`samplers.cyclic_poisson` with b groups), so that its own columns do not
overlap, and T rounds cost what T / b rounds with independent noise and the b-fold probability cost (theorem 4).

The noise of a round is made of all n_k so far, which are drawn again each time: nothing has to be kept, and a run
that is resumed meets the same. After the planned rounds it is not a number, and the round is not taken.
"""

import math
from functools import lru_cache

from fedjax_rec.server.noise import invert

_INSTALL_HINT = "banded noise needs jax-privacy; pip install 'fedjax_rec[banded]'"


@lru_cache(maxsize=8)
def noise_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """The first column of C^-1, by whose shifts the noise of a round is mixed.

    Args:
        rounds: T, the planned ones.
        bands: b, at most T; 1 for independent noise.

    Returns:
        T numbers.

    Raises:
        ValueError: if a number is out of range.
        ImportError: without jax-privacy, if b > 1.

    Example:
        >>> noise_coefficients(3, 1)
        (1.0, 0.0, 0.0)
    """
    if rounds < 1 or not 1 <= bands <= rounds:
        raise ValueError(f"bands={bands} must be between 1 and the {rounds} rounds that are planned")
    return invert(strategy_coefficients(rounds, bands), rounds)


def strategy_coefficients(rounds: int, bands: int) -> tuple[float, ...]:
    """The first column of C: b numbers of norm 1, the best for sums over the rounds.

    Args:
        rounds: T.
        bands: b.

    Returns:
        b numbers.

    Raises:
        ImportError: without jax-privacy, if b > 1.

    Example:
        >>> strategy_coefficients(10, 1)
        (1.0,)
    """
    if bands == 1:
        return (1.0,)
    try:
        from jax_privacy.matrix_factorization import toeplitz
    except ImportError as problem:
        raise ImportError(_INSTALL_HINT) from problem
    coefficients = [float(x) for x in toeplitz.optimize_banded_toeplitz(rounds, bands)]
    norm = math.sqrt(math.fsum(x * x for x in coefficients))
    return tuple(
        x / norm for x in coefficients
    )  # of norm 1 in double precision too: the guarantee rests on it
