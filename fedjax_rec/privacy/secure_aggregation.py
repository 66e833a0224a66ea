"""Secure aggregation, simulated exactly: the server learns the sum of a round and nothing else.

On the client: clip to a norm, round stochastically to multiples of 2^-bits (`clip_to_grid`). Sums are of integers
modulo 2^b (`secure_sum`, which is `aggregators.fixed_point`), and cannot wrap. So three ways give the same bits:

* the plain integer sum, O(C) and sparse rows: what a simulation uses;
* `masked=True`: every client's whole vector, masked, summed and opened as in the protocol (`masks`), O(C^2 m);
* a sum of 64-bit integers in numpy, in the tests.

A client that fails after the masks were made (`fr.Faults`) is one whose vector did not arrive. With fewer clients
than the threshold nobody can open the sum: the round is skipped, and counted in `RoundInfo.skipped`.

What it does not hide: the sum itself, and who took part. A masked vector is as long as the model: rows cannot be
left out; `experiments/communication` counts them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.errors import check_arguments
from fedjax_rec.privacy.masks import mask_vectors, reduce_modulo, to_signed, unmask_sum
from fedjax_rec.rows.tables import expand
from fedjax_rec.server.aggregators import fixed_point, named
from fedjax_rec.server.soundness import features_of
from fedjax_rec.transforms.base import Bound, Transform
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.transforms.flattening import Draw, as_matrix, from_matrix, on_numbers
from fedjax_rec.types import KEY_IMPL, Aggregator, FixedPoint, Key, Server, Stack, Totals, Update


class SecureFederation(NamedTuple):
    """A secure way to federate: what clients do, and how it is summed."""

    transform: Transform
    aggregator: Aggregator

    @property
    def federation(self) -> dict[str, Any]:
        """What a factory takes: transform and aggregator."""
        return self._asdict()


def secure_aggregation(
    base: Aggregator | str = "sum",
    *,
    norm: float,
    capacity: int,
    modulus: int = 32,
    threshold: int = 1,
    masked: bool = False,
) -> SecureFederation:
    """Clip, round stochastically, and sum modulo 2^b, each made for the others: nothing is ever cut off.

    Args:
        base: the plain sum or mean, whose weights are 1.
        norm: C, the largest L2 norm of a client's update: no number of it is larger.
        capacity: the most clients that a round can have.
        modulus: b, bits of a number that is sent, 16 to 32.
        threshold: t, clients without whom a round is skipped.
        masked: whether masks are added and taken off again; the result is the same.

    Returns:
        transform and aggregator.

    Raises:
        ValueError: if a sum could wrap with 8 bits behind the point, or a number is out of range.

    Example:
        >>> import fedjax_rec as fr
        >>> secure = secure_aggregation("mean", norm=0.5, capacity=100, modulus=24)
        >>> secure.transform.name, secure.aggregator.fixed.bits
        ('clip_to_grid(0.5, 17)', 17)
        >>> algorithm = fr.fedmf(dim=4, cohort=100, **secure.federation)
    """
    check_arguments(secure_aggregation, locals())
    aggregator = secure_sum(
        base, capacity=capacity, limit=norm, modulus=modulus, threshold=threshold, masked=masked
    )
    assert aggregator.fixed is not None  # noqa: S101 - `secure_sum` makes it; this tells the type checker
    return SecureFederation(clip_to_grid(norm, aggregator.fixed.bits), aggregator)


def secure_sum(
    base: Aggregator | str = "sum",
    *,
    capacity: int,
    limit: float = 1.0,
    modulus: int = 32,
    threshold: int = 1,
    masked: bool = False,
) -> Aggregator:
    """Sum integers modulo 2^b, so that nobody sees what is in the sum.

    Args:
        base: any aggregator that sums, but by no row's touchers.
        capacity: the most clients that a round can have.
        limit: largest size of a client's weighted delta, rounded down to the grid; more is cut off. Without
            `masked` it is counted in `RoundInfo.saturated`.
        modulus: b, bits of a number, 16 to 32.
        threshold: t, clients without whom a round is skipped, 1 to the capacity.
        masked: whether masks are added and taken off again, for cohorts of which every update fits into memory.

    Returns:
        an aggregator.

    Raises:
        ValueError: if a sum could wrap with 8 bits behind the point, or the base needs more than a sum.

    Example:
        >>> secure_sum("mean", capacity=1000, modulus=24).fixed
        FixedPoint(bits=13, limit=1.0, capacity=1000, modulus=24)

    Source: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning".
    """
    plain = named(base) if isinstance(base, str) else base
    check_together({Feature.SECURE_SUM: True, **features_of(plain)})
    if not 1 <= threshold <= capacity:
        raise ValueError(f"threshold={threshold} must be between 1 and the capacity of {capacity} clients")
    aggregator = fixed_point(plain, capacity=capacity, limit=limit, modulus=modulus)
    assert aggregator.fixed is not None  # noqa: S101 - `fixed_point` makes it; this tells the type checker
    scale = 2**aggregator.fixed.bits
    grid_limit = int(limit * scale) / scale  # what is rounded up is no further off
    fixed = aggregator.fixed._replace(limit=grid_limit)
    aggregator = aggregator._replace(fixed=fixed, min_clients=threshold)
    return _sum_masked(aggregator, fixed) if masked else aggregator


def clip_to_grid(norm: float, bits: int, *, numbers: int | None = None) -> Transform:
    """Scale an update down to a norm, then round every number up or down to a multiple of 2^-bits; unbiased.

    x -> 2^-bits (floor(x 2^bits) + b), with b = 1 of probability x 2^bits - floor(x 2^bits), else 0. Rounding
    moves a number by less than 2^-bits, and so raises the norm of m numbers to C + 2^-bits sqrt(m) at most.

    Args:
        norm: C, above 0.
        bits: behind the point, as in `Aggregator.fixed`.
        numbers: m, the most numbers that a client sends, for whoever adds noise; None: the norm after rounding is
            not known.

    Returns:
        a transform.

    Raises:
        ValueError: if the norm is not above 0, or a count is negative.

    Example:
        >>> update = Update({}, jnp.array([0]), jnp.array([[0.3, -4.0]]), jnp.float32(1))
        >>> sent = clip_to_grid(10.0, 1).update(jax.random.key(0), update, Server({}, jnp.zeros((1, 2))))
        >>> sent.rows.tolist() in ([[0.0, -4.0]], [[0.5, -4.0]])
        True

    Source: Kairouz et al. 2021, "The distributed discrete Gaussian mechanism for federated learning with secure
    aggregation", section 4, without conditioning on the norm.
    """
    check_arguments(clip_to_grid, locals())
    if bits < 0 or (numbers is not None and numbers < 0):
        raise ValueError(f"bits={bits} and numbers={numbers} must be at least 0")
    clipping = clip(norm)
    unit = 2.0**-bits
    largest = int(norm / unit) * unit

    def round_stochastically(values: jax.Array, own: jax.Array, draw: Draw) -> jax.Array:
        del own
        values = jnp.clip(values, -largest, largest)  # a norm is only as exact as floats are
        low = jnp.floor(values / unit)
        up = draw(jax.random.uniform) < values / unit - low  # the difference is exact, a sum would not be
        return (low + up) * unit

    def update(key: Key, sent: Update, server: Server) -> Update:
        return on_numbers(round_stochastically)(key, clipping.update(key, sent, server), server)

    def bound(known: Bound) -> Bound:
        assert clipping.bound is not None  # noqa: S101 - clip has one; this tells the type checker
        clipped_norm = clipping.bound(known).norm
        assert clipped_norm is not None  # noqa: S101 - as above
        bounded = None if numbers is None else clipped_norm + unit * numbers**0.5
        return known._replace(norm=bounded, grid=unit)

    return Transform(f"clip_to_grid({norm}, {bits})", update, bound=bound)


def _sum_masked(aggregator: Aggregator, fixed: FixedPoint) -> Aggregator:
    """The same sum by way of masked vectors: the cohort's slots are the participants, the absent dropped out."""
    key = jax.random.key(0, impl=KEY_IMPL)  # whatever the masks are, they cancel

    def finish(stack: Stack) -> Server:
        # Each client's weighted update as integers modulo 2^b [C, m], masked; the sum [m] of those who arrived.
        weighted = jax.tree.map(lambda x: expand(stack.weight, x) * x, stack.deltas)
        vectors = reduce_modulo(fixed.encode(as_matrix(weighted, stack.sent.shape[0])), fixed.modulus)
        masked = mask_vectors(key, vectors, fixed.modulus)
        opened = unmask_sum(key, masked, stack.sent, fixed.modulus)

        # The same as a float32[m], and in the leaves of the server.
        total = fixed.decode(to_signed(opened, fixed.modulus))
        shapes = jax.tree.map(lambda x: x[:1], stack.deltas)
        server = jax.tree.map(lambda x: x[0], from_matrix(total[None], shapes))
        return aggregator.finish(Totals(server, jnp.where(stack.sent, stack.weight, 0.0).sum(), None))

    noise = aggregator.noise  # of the same sum, in integers
    if noise is not None:
        noise = noise._replace(made_for=(aggregator.weight, finish, noise.expected))
    return aggregator._replace(finish=finish, stacked=True, noise=noise)
