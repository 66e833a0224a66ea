"""Aggregators: how the clients' updates become one, with the normaliser in the name.

With the server optimizer `optax.sgd(a)`, `total()` is the rule M(t+1) = M(t) + a * sum_i delta_i to the letter.
"""

import math

import jax
import jax.numpy as jnp

from fedjax_rec.tables import expand
from fedjax_rec.types import Aggregator, FixedPoint, Server, Totals


def _one(num_examples: jax.Array) -> jax.Array:
    return jnp.ones(num_examples.shape)


def _divide(server: Server, by: jax.Array) -> Server:
    """Divide, or give 0 where there was nobody to divide by.

    By the reciprocal, as XLA makes of a division by a scalar in some programs and not in others: fixed-point sums
    promise equal bits.
    """
    share = jnp.where(by > 0, 1.0 / jnp.where(by > 0, by, 1.0), 0.0)
    return jax.tree.map(lambda x: x * share, server)


def total() -> Aggregator:
    """Sum the updates: sum_i delta_i.

    Returns:
        an aggregator.

    Example:
        >>> server = Server(jnp.array(6.0), None)
        >>> float(total().finish(Totals(server, jnp.array(3.0), None)).shared)
        6.0
    """
    return Aggregator(_one, lambda totals: totals.server)


def mean() -> Aggregator:
    """Average the updates over the clients that took part: sum_i delta_i / |S|.

    Returns:
        an aggregator.

    Example:
        >>> server = Server(jnp.array(6.0), None)
        >>> float(mean().finish(Totals(server, jnp.array(3.0), None)).shared)
        2.0
    """
    return Aggregator(_one, lambda totals: _divide(totals.server, totals.weight))


def by_examples() -> Aggregator:
    """Average the updates weighted by the clients' numbers of examples: sum_i n_i delta_i / sum_i n_i.

    Returns:
        an aggregator.

    Example:
        >>> by_examples().weight(jnp.array([2, 3])).tolist()
        [2.0, 3.0]

    Source: McMahan et al. 2017, "Communication-efficient learning of deep networks", algorithm 1.
    """
    return Aggregator(lambda n: n.astype(jnp.float32), lambda totals: _divide(totals.server, totals.weight))


def mean_of_touchers() -> Aggregator:
    """Average each table row over the clients that touched it; average dense leaves over all.

    Returns:
        an aggregator.

    Example:
        >>> totals = Totals(Server(None, jnp.array([6.0, 0.0])), jnp.array(3.0), jnp.array([2.0, 0.0]))
        >>> mean_of_touchers().finish(totals).tables.tolist()
        [3.0, 0.0]

    Source: Perifanis & Efraimidis 2022, "Federated neural collaborative filtering", MF-FedAvg.
    """

    def finish(totals: Totals) -> Server:
        count = totals.row_weight
        assert count is not None  # noqa: S101 - per_row=True below promises it; this tells the type checker
        safe = jnp.where(count > 0, count, 1.0)
        rows = jax.tree.map(lambda x: x / expand(safe, x), totals.server.tables)
        return Server(_divide(Server(totals.server.shared, None), totals.weight).shared, rows)

    return Aggregator(_one, finish, per_row=True)


def fixed_point(aggregator: Aggregator, *, capacity: int, limit: float = 1.0) -> Aggregator:
    """Sum integers instead of floats: the same bits whatever the order of clients and the number of devices.

    A weighted delta x becomes round(x 2^b) with the largest b for which capacity x limit x 2^b < 2^31, so that no
    sum can wrap; larger numbers are cut off at +-limit and counted (`RoundInfo.saturated`). Devices must have
    equally many lanes each.

    Args:
        aggregator: `total()`, `mean()`, ...: any that sums.
        capacity: the most clients that a round can have, C.
        limit: largest size of a client's weighted delta.

    Returns:
        an aggregator.

    Raises:
        ValueError: if the aggregator does not sum, or fewer than 8 bits would be left behind the point.

    Example:
        >>> fixed_point(mean(), capacity=1000).fixed
        FixedPoint(bits=21, limit=1.0, capacity=1000)
    """
    if aggregator.stacked:
        raise ValueError("fixed-point sums are for aggregators that sum; a stacked one has no order to hide")
    if capacity < 1 or not 0 < limit < math.inf:
        raise ValueError(f"capacity={capacity} and limit={limit} must both be above 0")
    bits = math.floor(math.log2((2**31 - 1) / (capacity * limit)))
    while bits > 0 and capacity * (math.floor(limit * 2**bits) + 1) > 2**31 - 1:
        bits -= 1  # a delta is rounded after it was cut off
    if not 8 <= bits <= 30:
        hint = "lower the capacity or the limit" if bits < 8 else "raise the limit"
        raise ValueError(f"capacity={capacity} and limit={limit} leave {bits} bits behind the point; {hint}")
    return aggregator._replace(fixed=FixedPoint(bits, limit, capacity))


NAMES = {"sum": total, "mean": mean, "examples": by_examples, "touchers": mean_of_touchers}
