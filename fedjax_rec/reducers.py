"""Stacked aggregators: those that look at all updates side by side instead of at a sum.

They need the whole cohort's updates at once, C x (the model's size) in memory, and refuse before the first round
if that cannot fit. An update is taken over all rows of the table: what a client did not touch counts as 0.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.tables import expand
from fedjax_rec.types import Aggregator, Server, Stack

BLOCK = 256  # item rows at once: sorting copies what it sorts


def median() -> Aggregator:
    """The median over the clients that took part, number by number.

    Returns:
        an aggregator.

    Example:
        >>> sent, touched = jnp.ones(3, bool), jnp.zeros((3, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 5.0, 2.0]), {}), sent, touched, jnp.ones(3))
        >>> float(median().finish(stack).shared)
        2.0

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definition 1.
    """

    def middle(values: jax.Array, sent: jax.Array) -> jax.Array:
        count = sent.sum()
        ranked = jnp.sort(jnp.where(expand(sent, values), values, jnp.inf), axis=0)
        low, high = jnp.maximum(count - 1, 0) // 2, count // 2
        found = 0.5 * (ranked[low] + ranked[jnp.minimum(high, values.shape[0] - 1)])
        return jnp.where(count > 0, found, 0.0)

    return _per_number(middle)


def trimmed_mean(share: float) -> Aggregator:
    """The mean without the least and the largest share of each number.

    Args:
        share: cut off at each end, 0 to below 1/2, of the clients that took part.

    Returns:
        an aggregator.

    Raises:
        ValueError: if the share is out of range.

    Example:
        >>> sent, touched = jnp.ones(3, bool), jnp.zeros((3, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 9.0, 2.0]), {}), sent, touched, jnp.ones(3))
        >>> float(trimmed_mean(0.34).finish(stack).shared)
        2.0

    Source: Yin et al. 2018, "Byzantine-robust distributed learning", definition 2.
    """
    if not 0 <= share < 0.5:
        raise ValueError(f"the trimmed share must be at least 0 and below 0.5, not {share}")

    def inner(values: jax.Array, sent: jax.Array) -> jax.Array:
        count = sent.sum()
        cut = jnp.floor(share * count + 1e-6).astype(jnp.int32)
        ranked = jnp.sort(jnp.where(expand(sent, values), values, jnp.inf), axis=0)
        place = expand(jnp.arange(values.shape[0]), values)
        kept = jnp.where((place >= cut) & (place < count - cut), ranked, 0.0)
        return kept.sum(0) / jnp.maximum(count - 2 * cut, 1)

    return _per_number(inner)


def krum(faulty: int) -> Aggregator:
    """The one update that is nearest to its C - faulty - 2 nearest others, by squared distance.

    Args:
        faulty: clients that may send anything, f.

    Returns:
        an aggregator; its update is 0 if nobody's has a finite distance to enough others.

    Raises:
        ValueError: if `faulty` is negative.

    Example:
        >>> sent, touched = jnp.ones(4, bool), jnp.zeros((4, 0), bool)
        >>> stack = Stack(Server(jnp.array([1.0, 9.0, 1.1, 0.9]), {}), sent, touched, jnp.ones(4))
        >>> float(krum(1).finish(stack).shared)
        1.0

    Source: Blanchard et al. 2017, "Machine learning with adversaries", section 3.
    """
    if faulty < 0:
        raise ValueError(f"faulty must be at least 0, not {faulty}")

    def finish(stack: Stack) -> Server:
        size, sent = stack.sent.shape[0], stack.sent
        distance = sum((_distances(leaf) for leaf in jax.tree.leaves(stack.server)), jnp.zeros((size, size)))
        others = sent[None, :] & ~jnp.eye(size, dtype=bool)
        # what is no number is as far as can be: from all others, and they from it
        ranked = jnp.sort(jnp.where(others & jnp.isfinite(distance), distance, jnp.inf), axis=1)
        near = jnp.clip(sent.sum() - faulty - 2, 1, jnp.maximum(sent.sum() - 1, 0))
        score = jnp.where((jnp.arange(size) < near)[None, :], ranked, 0.0).sum(1)
        score = jnp.where(sent, score, jnp.inf)
        best = jnp.argmin(score)
        sound = jnp.isfinite(score[best])
        return jax.tree.map(lambda x: jnp.where(sound, x[best], 0.0), stack.server)

    return Aggregator(_one, finish, stacked=True)


def _one(num_examples: jax.Array) -> jax.Array:
    return jnp.ones(num_examples.shape)


def _distances(leaf: jax.Array) -> jax.Array:
    """Squared distances between the clients' values of one leaf [C, ...], float32[C, C].

    Of the differences themselves: by norms and products one huge update would drown all others' distances.
    """
    flat = leaf.reshape(leaf.shape[0], -1)
    return jax.lax.map(lambda row: jnp.sum(jnp.square(flat - row[None, :]), axis=1), flat)


def _per_number(reduce: Callable[[jax.Array, jax.Array], jax.Array]) -> Aggregator:
    """An aggregator of a function (values [C, ...], sent bool[C]) -> [...], tables in blocks of rows."""

    def blocks(table: jax.Array, sent: jax.Array) -> jax.Array:
        size = table.shape[1]
        width = min(BLOCK, size)
        if not size:
            return table[0]

        def one(number: jax.Array, out: jax.Array) -> jax.Array:
            start = jnp.minimum(number * width, size - width)  # the last block overlaps the one before it
            part = jax.lax.dynamic_slice_in_dim(table, start, width, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(out, reduce(part, sent), start, axis=0)

        return jax.lax.fori_loop(0, -(-size // width), one, jnp.zeros_like(table[0]))

    def finish(stack: Stack) -> Server:
        shared = jax.tree.map(lambda x: reduce(x, stack.sent), stack.server.shared)
        return Server(shared, jax.tree.map(lambda x: blocks(x, stack.sent), stack.server.tables))

    return Aggregator(_one, finish, stacked=True)
