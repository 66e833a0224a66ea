"""Stacked aggregators: those that look at all updates side by side instead of at a sum.

They need the whole cohort's updates at once, C x (the model's size) in memory, and refuse before the first round
if that cannot fit. Here are the rules that rank numbers or clients; those that weigh clients are in `robust`, and
can be had from here too. A client that sent anything but finite numbers counts as absent.

What a missing row means to rules that go number by number is said by name. With n clients present, n_j of whom
touched row j:

===================  ========================================================================================
`over="cohort"`      all n count, with 0 for a row that they did not touch: a row touched by less than half
                     of them has a median of 0, and learns nothing
`over="touchers"`    only the n_j count; the result times n_j / n, so that it stands for the mean over the n.
                     A row that few touch is whatever most of those few want: see `min_touchers`
===================  ========================================================================================
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.tables import expand
from fedjax_rec.server.aggregators import uniform_weight
from fedjax_rec.server.robust import (
    centred_clipping,
    geometric_median,
    norm_bound,
    row_norm_bound,
    sound,
    sound_only,
    weighted_mean,
)
from fedjax_rec.types import Aggregator, Server, Stack

__all__ = [
    "centred_clipping",
    "geometric_median",
    "krum",
    "median",
    "multi_krum",
    "norm_bound",
    "row_norm_bound",
    "trimmed_mean",
]

BLOCK_ROWS = 256  # item rows at once: sorting copies what it sorts
BLOCK_NUMBERS = 2048  # of a client at once, in distances
OVER = ("cohort", "touchers")
NEIGHBOURS = {"narrow": 2, "wide": 1}  # of n - faulty less that many: Blanchard et al., byzfl

# (values [C, R, ...], who counts bool[C, R]) -> [R, ...]; anything for a row in which nobody counts
CoordinateRule = Callable[[jax.Array, jax.Array], jax.Array]


def median(*, over: str = "cohort", min_touchers: int = 1) -> Aggregator:
    """The median over the clients that took part, number by number.

    Of skewed values it is not the mean: where most touchers of a row drew it as a negative, it is what those want.

    Args:
        over: who counts for a row, "cohort" or "touchers"; for dense leaves all that took part do.
        min_touchers: a row with fewer touchers gets no update.

    Returns:
        an aggregator.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> sent, touched = jnp.ones(3, bool), jnp.zeros((3, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 5.0, 2.0]), {}), sent, touched, jnp.ones(3))
        >>> float(median().finish(stack).shared)
        2.0

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definition 1; over touchers as in the code of
    Zhang et al. 2024, "Preventing the popular item embedding based attack in federated recommendations".
    """
    check_arguments(median, locals())

    def middle(values: jax.Array, counts: jax.Array) -> jax.Array:
        # ranked [C, R, ...]: the `count` [R] values that count come first
        count = counts.sum(0)
        ranked = jnp.sort(jnp.where(expand(counts, values), values, jnp.inf), axis=0)
        # the two middle ones, which are the same where the count is odd
        low = jnp.maximum(count - 1, 0) // 2
        high = jnp.minimum(count // 2, values.shape[0] - 1)
        return 0.5 * _take_ranked(ranked, low) + 0.5 * _take_ranked(ranked, high)

    return _coordinatewise(middle, over, min_touchers)


def trimmed_mean(share: float, *, over: str = "cohort", min_touchers: int = 1) -> Aggregator:
    """The mean without the least and the largest share of each number.

    Args:
        share: cut off at each end, 0 to below 1/2, of those that count: floor(share n), or floor(share n_j).
        over: who counts for a row, "cohort" or "touchers"; for dense leaves all that took part do.
        min_touchers: a row with fewer touchers gets no update.

    Returns:
        an aggregator.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> sent, touched = jnp.ones(3, bool), jnp.zeros((3, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 9.0, 2.0]), {}), sent, touched, jnp.ones(3))
        >>> float(trimmed_mean(0.34).finish(stack).shared)
        2.0

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definition 2.
    """
    check_arguments(trimmed_mean, locals())
    if not 0 <= share < 0.5:
        raise ValueError(f"the trimmed share must be at least 0 and below 0.5, not {share}")

    def inner(values: jax.Array, counts: jax.Array) -> jax.Array:
        # `cut` int32[R] values go at each end of the `count` that count, which come first in `ranked` [C, R, ...]
        count = counts.sum(0)
        cut = jnp.floor(share * count + 1e-6).astype(jnp.int32)
        ranked = jnp.sort(jnp.where(expand(counts, values), values, jnp.inf), axis=0)
        # the mean of what is between
        rank = jnp.arange(values.shape[0])[:, None]
        within = (rank >= cut[None, :]) & (rank < (count - cut)[None, :])
        total = jnp.where(expand(within, values), ranked, 0.0).sum(0)
        return total / expand(jnp.maximum(count - 2 * cut, 1), total)

    return _coordinatewise(inner, over, min_touchers)


def krum(faulty: int, *, neighbours: str = "narrow") -> Aggregator:
    """The one update that is nearest to its n - faulty - 2 nearest others, by squared distance.

    Args:
        faulty: clients that may send anything, f.
        neighbours: "narrow" counts n - f - 2 of them, "wide" n - f - 1; at least one.

    Returns:
        an aggregator; its update is 0 if nobody's has a finite distance to enough others.

    Raises:
        ValueError: if `faulty` is negative, or `neighbours` unknown.

    Example:
        >>> sent, touched = jnp.ones(4, bool), jnp.zeros((4, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 9.0, 1.1, 0.9]), {}), sent, touched, jnp.ones(4))
        >>> float(krum(1).finish(stack).shared)
        1.0

    Source: Blanchard et al. 2017, "Machine learning with adversaries", section 3.
    """
    check_arguments(krum, locals())
    return multi_krum(faulty, 1, neighbours=neighbours)


def multi_krum(faulty: int, kept: int | None = None, *, neighbours: str = "narrow") -> Aggregator:
    """The mean of the updates that are nearest to their n - faulty - 2 nearest others, n being those present.

    score_i = sum of |x_i - x_j|^2 over i's nearest others j; the `kept` lowest scores are averaged. Of equal
    scores the earlier client in the cohort goes first.

    Args:
        faulty: clients that may send anything, f.
        kept: how many updates are averaged, m; None for n - f.
        neighbours: "narrow" counts n - f - 2 of them, "wide" n - f - 1; at least one.

    Returns:
        an aggregator; its update is 0 if nobody's has a finite distance to enough others.

    Raises:
        ValueError: if `faulty` is negative, `kept` below 1, or `neighbours` unknown.

    Example:
        >>> sent, touched = jnp.ones(4, bool), jnp.zeros((4, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 9.0, 1.25, 1.0]), {}), sent, touched, jnp.ones(4))
        >>> float(multi_krum(1, 2).finish(stack).shared)
        1.0

    Source: Blanchard et al. 2017, "Machine learning with adversaries", Multi-Krum; kept = n - f and the wide
    count as in the library byzfl.
    """
    check_arguments(multi_krum, locals())
    if faulty < 0:
        raise ValueError(f"faulty must be at least 0, not {faulty}")
    if kept is not None and kept < 1:
        raise ValueError(f"kept must be at least 1, not {kept}; None keeps n - faulty")
    if neighbours not in NEIGHBOURS:
        raise ValueError(f"unknown neighbours {neighbours!r}; choose one of {', '.join(NEIGHBOURS)}")

    def finish(stack: Stack) -> Server:
        # how many neighbours count, and each client's score [C] by them
        server, present = sound_only(stack)
        count = present.sum()
        num_neighbours = jnp.clip(count - faulty - NEIGHBOURS[neighbours], 1, jnp.maximum(count - 1, 0))
        score = _scores(server, present, num_neighbours)
        # the mean of those with the lowest scores
        rank = jnp.argsort(jnp.argsort(score, stable=True))
        num_selected = jnp.maximum(count - faulty, 1) if kept is None else kept
        selected = (rank < num_selected) & jnp.isfinite(score)
        return weighted_mean(server, selected.astype(jnp.float32))

    return Aggregator(weight=uniform_weight, finish=finish, stacked=True)


def _take_ranked(ranked: jax.Array, rank: jax.Array) -> jax.Array:
    """Of values [C, R, ...], sorted along the first axis, those of ranks int32[R], [R, ...]."""
    return jnp.take_along_axis(ranked, expand(rank[None, :], ranked), axis=0)[0]


def _coordinatewise(rule: CoordinateRule, over: str, min_touchers: int) -> Aggregator:
    """An aggregator of a rule for single numbers, which sees tables by blocks of rows, a dense leaf as one row."""
    if over not in OVER:
        raise ValueError(f"unknown over={over!r}; choose one of {', '.join(OVER)}")
    if min_touchers < 1:
        raise ValueError(f"min_touchers must be at least 1, which changes nothing, not {min_touchers}")

    def finish(stack: Stack) -> Server:
        # who counts for which row, bool[C, I]
        present = sound(stack)
        touched = stack.touched & present[:, None]
        touchers = touched.sum(0)
        count = present.sum()
        counts = touched if over == "touchers" else jnp.broadcast_to(present[:, None], touched.shape)
        # the share [I] of the clients that a row's result stands for: 1 over the cohort
        share = counts.sum(0) / jnp.maximum(count, 1)
        share = jnp.where(touchers >= min_touchers, share, 0.0)
        # without anybody there are only infinities, which become 0
        tables = jax.tree.map(lambda x: _scaled(_in_blocks(rule, x, counts), share), stack.deltas.tables)
        dense = jax.tree.map(lambda x: rule(x[:, None], present[:, None])[0], stack.deltas.shared)
        return Server(jax.tree.map(lambda x: jnp.where(count > 0, x, 0.0), dense), tables)

    return Aggregator(weight=uniform_weight, finish=finish, stacked=True)


def _scaled(rows: jax.Array, share: jax.Array) -> jax.Array:
    """Rows [R, ...] times a share float32[R]; 0 without one, whatever the rows hold."""
    factor = expand(share, rows)
    return jnp.where(factor > 0, factor * rows, 0.0)


def _in_blocks(rule: CoordinateRule, table: jax.Array, counts: jax.Array) -> jax.Array:
    """A rule on a table [C, I, ...] of which clients bool[C, I] count, block of rows by block, [I, ...]."""
    size = table.shape[1]
    width = min(BLOCK_ROWS, size)
    if not size:
        return table[0]

    def apply_to_block(number: jax.Array, out: jax.Array) -> jax.Array:
        start = jnp.minimum(number * width, size - width)  # the last block overlaps the one before it
        values, block_counts = (
            jax.lax.dynamic_slice_in_dim(x, start, width, axis=1) for x in (table, counts)
        )
        return jax.lax.dynamic_update_slice_in_dim(out, rule(values, block_counts), start, axis=0)

    return jax.lax.fori_loop(0, -(-size // width), apply_to_block, jnp.zeros_like(table[0]))


def _scores(server: Server, present: jax.Array, num_neighbours: jax.Array) -> jax.Array:
    """Sums of the squared distances to so many nearest others, float32[C]; infinite for the absent."""
    # squared distances [C, C] over all leaves
    cohort = present.shape[0]
    distance = sum((_distances(leaf) for leaf in jax.tree.leaves(server)), jnp.zeros((cohort, cohort)))
    # each client's to all others that are present, the nearest first
    is_other = present[None, :] & ~jnp.eye(cohort, dtype=bool)
    ranked = jnp.sort(jnp.where(is_other, distance, jnp.inf), axis=1)
    score = jnp.where((jnp.arange(cohort) < num_neighbours)[None, :], ranked, 0.0).sum(1)
    return jnp.where(present, score, jnp.inf)


def _distances(leaf: jax.Array) -> jax.Array:
    """Squared distances between the clients' values of one leaf [C, ...], float32[C, C].

    Of the differences themselves: by norms and products one huge update would drown all others' distances. In
    blocks of numbers, which stay in a CPU's cache while all pairs read them.
    """
    flat = leaf.reshape(leaf.shape[0], -1)
    size = flat.shape[1]
    width = min(BLOCK_NUMBERS, flat.shape[1])

    def add_block(number: jax.Array, total: jax.Array) -> jax.Array:
        # the last block overlaps the one before it, whose numbers count no second time
        start = jnp.minimum(number * width, size - width)
        is_new = start + jnp.arange(width) >= number * width
        block = jnp.where(is_new[None, :], jax.lax.dynamic_slice_in_dim(flat, start, width, axis=1), 0.0)
        return total + jax.lax.map(lambda row: jnp.sum(jnp.square(block - row[None, :]), axis=1), block)

    return jax.lax.fori_loop(0, -(-size // max(width, 1)), add_block, jnp.zeros((leaf.shape[0],) * 2))
