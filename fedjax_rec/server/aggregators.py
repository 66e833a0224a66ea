"""Aggregators: how the clients' updates become one, with the normaliser in the name.

With the server optimizer `optax.sgd(a)`, `total()` is the rule M(t+1) = M(t) + a * sum_i delta_i to the letter.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, Features, check_together
from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.tables import expand
from fedjax_rec.server.noise import bands_of
from fedjax_rec.server.soundness import features_of
from fedjax_rec.types import Aggregator, FixedPoint, PyTree, RowTreatment, Server, ServerNoise, Totals


def uniform_weight(num_examples: jax.Array) -> jax.Array:
    """The weight 1 for every client, whatever its number of examples.

    Args:
        num_examples: int32[...].

    Returns:
        float32[...].

    Example:
        >>> uniform_weight(jnp.array([3, 7])).tolist()
        [1.0, 1.0]
    """
    return jnp.ones(num_examples.shape)


def _divide(server: Server, divisor: jax.Array) -> Server:
    """Divide, or give 0 where there was nobody to divide by.

    By the reciprocal, as XLA makes of a division by a scalar in some programs and not in others: fixed-point sums
    promise equal bits.
    """
    share = jnp.where(divisor > 0, 1.0 / jnp.where(divisor > 0, divisor, 1.0), 0.0)
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
    return Aggregator(weight=uniform_weight, finish=_as_summed)


def _as_summed(totals: Totals) -> Server:
    """What `total` makes of the sums; by these two functions `gaussian` knows a plain sum."""
    return totals.deltas


def mean() -> Aggregator:
    """Average the updates over the clients that took part: sum_i delta_i / |S|.

    Returns:
        an aggregator.

    Example:
        >>> server = Server(jnp.array(6.0), None)
        >>> float(mean().finish(Totals(server, jnp.array(3.0), None)).shared)
        2.0
    """
    return Aggregator(weight=uniform_weight, finish=lambda totals: _divide(totals.deltas, totals.weight))


def by_examples() -> Aggregator:
    """Average the updates weighted by the clients' numbers of examples: sum_i n_i delta_i / sum_i n_i.

    Returns:
        an aggregator.

    Example:
        >>> by_examples().weight(jnp.array([2, 3])).tolist()
        [2.0, 3.0]

    Source: McMahan et al. 2017, "Communication-efficient learning of deep networks", algorithm 1.
    """
    return Aggregator(
        weight=lambda num_examples: num_examples.astype(jnp.float32),
        finish=lambda totals: _divide(totals.deltas, totals.weight),
    )


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
        assert count is not None  # noqa: S101 - weights=True below promises it; this tells the type checker
        safe = jnp.where(count > 0, count, 1.0)
        rows = jax.tree.map(lambda x: x / expand(safe, x), totals.deltas.tables)
        return Server(_divide(Server(totals.deltas.shared, None), totals.weight).shared, rows)

    return Aggregator(weight=uniform_weight, finish=finish, rows=RowTreatment(weights=True))


def fixed_point(
    aggregator: Aggregator, *, capacity: int, limit: float = 1.0, modulus: int = 32
) -> Aggregator:
    """Sum integers instead of floats: the same bits in any order of clients and any chunks, on 2, 4 or 8 devices.

    A weighted delta x becomes round(x 2^b) with the largest b for which capacity x limit x 2^b < 2^(modulus - 1),
    so that no sum can wrap; larger numbers are cut off at +-limit and counted (`RoundInfo.saturated`). Devices
    must have equally many lanes each, and so must rounds in chunks (`lanes=`). What else an aggregator sums must
    be counts: norms, as of `by_change` and FedNova, stay floats. One device is compiled otherwise than several: a
    client's own arithmetic then may differ in a last bit, which the rounds carry on. It does with Adam (already
    in one local epoch) and with ratings over several epochs, not with SGD or momentum on "bce"; from two devices
    on no case is known.

    Args:
        aggregator: `total()`, `mean()`, ...: any that sums.
        capacity: the most clients that a round can have, C.
        limit: largest size of a client's weighted delta.
        modulus: bits of a sum, 16 to 32; fewer are for those who send them (`privacy.secure_sum`).

    Returns:
        an aggregator.

    Raises:
        ValueError: if the aggregator does not sum, or fewer than 8 bits would be left behind the point.

    Example:
        >>> fixed_point(mean(), capacity=1000).fixed
        FixedPoint(bits=21, limit=1.0, capacity=1000, modulus=32)
    """
    check_arguments(fixed_point, locals())
    check_together({Feature.INTEGER_SUM: True, **features_of(aggregator)})
    if capacity < 1 or not 0 < limit < math.inf:
        raise ValueError(f"capacity={capacity} and limit={limit} must both be above 0")
    if not 16 <= modulus <= 32:
        raise ValueError(f"modulus={modulus} must be 16 to 32 bits")
    max_sum = 2 ** (modulus - 1) - 1
    bits = math.floor(math.log2(max_sum / (capacity * limit)))
    while bits > 0 and capacity * (math.floor(limit * 2**bits) + 1) > max_sum:
        bits -= 1  # a delta is rounded after it was cut off
    if not 8 <= bits <= 30:
        wider = ", or raise the modulus" if modulus < 32 else ""
        hint = (
            f"lower the capacity or the limit{wider}" if bits < 8 else "raise the limit or lower the modulus"
        )
        raise ValueError(f"capacity={capacity} and limit={limit} leave {bits} bits behind the point; {hint}")
    return aggregator._replace(fixed=FixedPoint(bits, limit, capacity, modulus))


def by_heat() -> Aggregator:
    """Scale each row's mean update by N / n_row, n_row being the clients of the population that own the row.

    Rows: (N / n_i) sum_u delta_ui / |S|; dense leaves: the mean over the clients that took part. A row that few
    clients own then moves as if the cohort had been drawn from its owners.

    Returns:
        an aggregator.

    Example:
        >>> totals = Totals(Server((), jnp.array([6.0, 3.0])), jnp.array(3.0), None)
        >>> totals = totals._replace(heat=jnp.array([10.0, 5.0]), num_clients=jnp.array(10.0))
        >>> by_heat().finish(totals).tables.tolist()
        [2.0, 2.0]

    Source: Ding et al. 2022, "Federated submodel optimization for hot and cold data features", FedSubAvg.
    """

    def finish(totals: Totals) -> Server:
        assert totals.heat is not None and totals.num_clients is not None  # noqa: S101, PT018 - heat=True promises it
        average = _divide(totals.deltas, totals.weight)
        factor = totals.num_clients / jnp.maximum(totals.heat, 1.0)
        return Server(average.shared, jax.tree.map(lambda x: x * expand(factor, x), average.tables))

    return Aggregator(weight=uniform_weight, finish=finish, rows=RowTreatment(heat=True))


def by_change() -> Aggregator:
    """Average each row weighted by how much each client changed it: sum_u |delta_ui| delta_ui / sum_u |delta_ui|.

    |.| is the L1 norm of a row over all its leaves; dense leaves are averaged over the clients that took part.

    Returns:
        an aggregator.

    Example:
        >>> by_change().rows.factor({"vector": jnp.array([[3.0, -4.0]])}).tolist()
        [7.0]

    Source: Muhammad et al. 2020, "FedFast: going beyond average for faster training of federated recommender
    systems", section 3.3 (ActvAGG).
    """

    def row_norms(rows: PyTree) -> jax.Array:
        norms = [jnp.abs(x).reshape(x.shape[0], -1).sum(1) for x in jax.tree.leaves(rows)]
        return sum(norms[1:], norms[0])

    return mean_of_touchers()._replace(rows=RowTreatment(weights=True, factor=row_norms))


def add_heat(totals: Totals, population: Population) -> Totals:
    """Count, over the whole population, the clients that own each item, and those that have data.

    Args:
        totals: of a round.
        population: N clients.

    Returns:
        the totals with `heat` float32[I] and `num_clients` float32[].

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> totals = add_heat(Totals(Server((), ()), jnp.array(1.0), None), tiny_population())
        >>> totals.heat.shape, float(totals.num_clients)
        ((40,), 23.0)
    """
    items = population.examples["items"]
    heat = jnp.zeros(population.num_items).at[items].add(1.0, mode="drop")
    num_clients = (population.offsets[1:] > population.offsets[:-1]).sum(dtype=jnp.float32)
    return totals._replace(heat=heat, num_clients=num_clients)


def gaussian(
    base: Aggregator | str = "sum",
    *,
    noise_multiplier: float,
    norm: float,
    expected: float,
    mixing: Sequence[float] = (),
) -> Aggregator:
    """A sum with Gaussian noise on every number, touched or not, over a fixed denominator.

    (sum_i delta_i + z C w_t) / n, with |delta_i| <= C, which the transform must see to, and w_t standard normal
    and new in each round t; or, in the place of w_t, sum_k m_{t-k} w_k with those before (`privacy.banded`).

    Args:
        base: the plain sum, `total()`, in floats or in integers (`fixed_point(total(), ...)`).
        noise_multiplier: z, at least 0.
        norm: C, the clipping norm, above 0.
        expected: n, clients of a cohort on average: public, unlike how many came.
        mixing: m, as many numbers as there are rounds; afterwards the noise is not a number, and no round is
            taken. Empty: each round's noise is its own.

    Returns:
        an aggregator.

    Raises:
        ValueError: if a number is out of range, the base is no plain sum, or the mixing is too little noise: a
            column of its inverse must not be longer than 1.

    Example:
        >>> rule = gaussian(noise_multiplier=0.0, norm=1.0, expected=4)
        >>> float(rule.finish(Totals(Server(jnp.array(6.0), {}), jnp.array(3.0), None)).shared)
        1.5

    Source: McMahan et al. 2018, "Learning differentially private recurrent language models", algorithm 1, f~_f.
    """
    check_arguments(gaussian, locals())
    for name, value, fits in (
        ("noise_multiplier", noise_multiplier, noise_multiplier >= 0),
        ("norm", norm, norm > 0),
        ("expected", expected, expected > 0),
    ):
        if not fits or not math.isfinite(value):
            raise ValueError(f"{name}={value} is out of range; give a positive number")
    inner = named(base) if isinstance(base, str) else base
    # Nothing is found out by trying: of other functions than these it is not known how far one client moves them.
    scaled: Features = {
        Feature.BY_EXAMPLES: inner.weight is not uniform_weight,
        Feature.BY_COUNT: inner.finish is not _as_summed,
    }
    check_together({Feature.GAUSSIAN_SUM: True, **features_of(inner), **scaled})
    mixing = tuple(map(float, mixing))
    bands_of(mixing)  # refuses what is too little

    def finish(totals: Totals) -> Server:
        return jax.tree.map(lambda x: x / expected, inner.finish(totals))

    made_for = (inner.weight, finish, expected)
    return inner._replace(
        finish=finish, noise=ServerNoise(norm, noise_multiplier, expected, made_for, mixing)
    )


def rows_summed() -> Aggregator:
    """Sum item rows, which few clients touch, and average the dense leaves, which all do.

    Returns:
        an aggregator.

    Example:
        >>> totals = Totals(Server(jnp.array(6.0), jnp.array([6.0])), jnp.array(3.0), None)
        >>> server = rows_summed().finish(totals)
        >>> float(server.shared), server.tables.tolist()
        (2.0, [6.0])
    """
    averaged = mean()

    def finish(totals: Totals) -> Server:
        return Server(averaged.finish(totals).shared, totals.deltas.tables)

    return averaged._replace(finish=finish)


NAMES = {
    "sum": total,
    "mean": mean,
    "rows": rows_summed,
    "examples": by_examples,
    "touchers": mean_of_touchers,
    "heat": by_heat,
    "change": by_change,
}


def named(name: str) -> Aggregator:
    """An aggregator by its name.

    Args:
        name: in `NAMES`.

    Returns:
        an aggregator.

    Raises:
        ValueError: if there is none of that name.

    Example:
        >>> named("touchers").rows.weights
        True
    """
    check_arguments(named, locals())
    if name not in NAMES:
        raise ValueError(f"unknown aggregator {name!r}; choose one of {', '.join(NAMES)}")
    return NAMES[name]()
