"""Byzantine attacks: what malicious clients of a cohort send instead of their own updates.

An attack, `StackAttack`, is a function `(stack, malicious bool[C], key) -> stack`. It changes the updates of the
malicious clients that take part, and nobody else's: who is absent stays absent. Attackers who know the honest
updates (`alie`, `ipm`, `sign_flip`) all send the same whole update, and touch every row that some honest client
touched; others (`scaling`, `gaussian`, `not_a_number`) change their own rows and the dense leaves. `attacked` puts
an attack in front of an aggregator:

    federate(..., sampler=fixed(ids), aggregator=attacked(median(), ipm(2.0), malicious=[0, 1]))
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.rows.tables import select
from fedjax_rec.server.robust import sound, weighted_sum
from fedjax_rec.server.soundness import features_of
from fedjax_rec.types import KEY_IMPL, Aggregator, Key, RowTreatment, Server, Stack, Totals

StackAttack = Callable[[Stack, jax.Array, Key], Stack]


def sign_flip() -> StackAttack:
    """Send the opposite of the honest clients' mean, -mean; a client's own update is flipped by `scaling(-1.0)`.

    Returns:
        an attack, the same as `ipm(1.0)`.

    Example:
        >>> server, touched = Server(jnp.array([1.0, 3.0, 5.0]), {}), jnp.zeros((3, 0), bool)
        >>> stack = Stack(server, jnp.ones(3, bool), touched, jnp.ones(3))
        >>> sign_flip()(stack, jnp.array([False, False, True]), jax.random.key(0)).deltas.shared.tolist()
        [1.0, 3.0, -2.0]

    Source: Allen-Zhu et al. 2020, "Byzantine-resilient non-convex stochastic gradient descent", as in byzfl.
    """
    return ipm(1.0)


def ipm(epsilon: float) -> StackAttack:
    """Inner-product manipulation: send -epsilon times the honest clients' mean.

    Args:
        epsilon: how strongly, above 0; small ones hide among the honest.

    Returns:
        an attack.

    Raises:
        ValueError: if epsilon is not above 0.

    Example:
        >>> server, touched = Server(jnp.array([1.0, 3.0, 5.0]), {}), jnp.zeros((3, 0), bool)
        >>> stack = Stack(server, jnp.ones(3, bool), touched, jnp.ones(3))
        >>> ipm(0.5)(stack, jnp.array([False, False, True]), jax.random.key(0)).deltas.shared.tolist()
        [1.0, 3.0, -1.0]

    Source: Xie et al. 2019, "Fall of empires: breaking Byzantine-tolerant SGD by inner product manipulation".
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon must be above 0, not {epsilon}")
    return _knowing_the_honest(lambda mean, _: -epsilon * mean)


def alie(z: float) -> StackAttack:
    """A little is enough: send mean + z x deviation of the honest clients, number by number.

    The deviation is the sample's, with n - 1 in the denominator; that of one client is 0. What a client did not
    touch counts as 0.

    Args:
        z: deviations from the mean; negative ones push downwards.

    Returns:
        an attack.

    Example:
        >>> server, touched = Server(jnp.array([1.0, 3.0, 5.0, 9.0]), {}), jnp.zeros((4, 0), bool)
        >>> stack = Stack(server, jnp.ones(4, bool), touched, jnp.ones(4))
        >>> alie(1.5)(stack, jnp.arange(4) == 3, jax.random.key(0)).deltas.shared.tolist()
        [1.0, 3.0, 5.0, 6.0]

    Source: Baruch et al. 2019, "A little is enough: circumventing defenses for distributed learning".
    """
    return _knowing_the_honest(lambda mean, deviation: mean + z * deviation)


def scaling(factor: float) -> StackAttack:
    """Send factor times one's own update: n / (server rate) replaces the model, -1 flips the update's sign.

    Args:
        factor: of all numbers.

    Returns:
        an attack.

    Example:
        >>> server, touched = Server(jnp.array([1.0, 3.0]), {}), jnp.zeros((2, 0), bool)
        >>> stack = Stack(server, jnp.ones(2, bool), touched, jnp.ones(2))
        >>> scaling(-1.0)(stack, jnp.array([False, True]), jax.random.key(0)).deltas.shared.tolist()
        [1.0, -3.0]

    Source: Bagdasaryan et al. 2020, "How to backdoor federated learning", model replacement.
    """
    return _without_knowledge(lambda x, _: factor * x)


def gaussian(deviation: float) -> StackAttack:
    """Send normal(0, deviation) in place of every number of one's own rows and dense leaves.

    Args:
        deviation: standard deviation, above 0.

    Returns:
        an attack.

    Raises:
        ValueError: if the deviation is not above 0.

    Example:
        >>> server, touched = Server(jnp.zeros((2, 10_000)), {}), jnp.zeros((2, 0), bool)
        >>> stack = Stack(server, jnp.ones(2, bool), touched, jnp.ones(2))
        >>> sent = gaussian(3.0)(stack, jnp.array([False, True]), jax.random.key(0)).deltas.shared
        >>> [round(float(x)) for x in sent.std(1)]
        [0, 3]

    Source: Blanchard et al. 2017, "Machine learning with adversaries", Gaussian Byzantine workers.
    """
    if not deviation > 0:
        raise ValueError(f"the noise's deviation must be above 0, not {deviation}")
    return _without_knowledge(lambda x, key: deviation * jax.random.normal(key, x.shape, x.dtype))


def not_a_number() -> StackAttack:
    """Send NaN in place of every number of one's own rows and dense leaves.

    Returns:
        an attack.

    Example:
        >>> server, touched = Server(jnp.array([1.0, 3.0]), {}), jnp.zeros((2, 0), bool)
        >>> stack = Stack(server, jnp.ones(2, bool), touched, jnp.ones(2))
        >>> not_a_number()(stack, jnp.array([False, True]), jax.random.key(0)).deltas.shared.tolist()
        [1.0, nan]
    """
    return _without_knowledge(lambda x, _: jnp.full_like(x, jnp.nan))


def attacked(
    aggregator: Aggregator, attack: StackAttack, malicious: Sequence[int] | np.ndarray, key: Key | None = None
) -> Aggregator:
    """Attack a cohort's updates before another aggregator sees them.

    Indices are of the cohort, in the sampler's order: with a fixed cohort they are certain clients, with a drawn
    one a constant number of random clients. Attacks come after the clients' transforms, as a malicious client need
    not apply any. The key is folded with who touched which rows, exact integers on any number of devices:
    randomness is new whenever a cohort or its negatives are.

    Args:
        aggregator: any that sums floats or takes a stack; an attacked sum takes a stack's memory.
        attack: what malicious clients send.
        malicious: int[n], their indices in the cohort, 0..C-1.
        key: of the attack's randomness; `jax.random.key(0)` by default.

    Returns:
        an aggregator of stacks.

    Raises:
        ValueError: if the aggregator sums integers or facts, or needs the population's heat; if an index is
            negative or, in the first round, beyond the cohort.

    Example:
        >>> from fedjax_rec.server.aggregators import mean
        >>> server, touched = Server(jnp.array([1.0, 3.0, 5.0]), {}), jnp.zeros((3, 0), bool)
        >>> stack = Stack(server, jnp.ones(3, bool), touched, jnp.ones(3))
        >>> float(attacked(mean(), ipm(10.0), [2]).finish(stack).shared)
        -5.333333492279053
    """
    indices = np.unique(np.asarray(malicious, int))
    if (indices < 0).any():
        raise ValueError(f"places in the cohort are at least 0, not {indices[0]}")
    check_together({Feature.STACK_ATTACK: True, **features_of(aggregator)})
    base_key = jax.random.key(0, impl=KEY_IMPL) if key is None else key

    def finish(stack: Stack) -> Server:
        size = stack.sent.shape[0]
        if indices.max(initial=-1) >= size:
            raise ValueError(
                f"place {indices.max()} is malicious in a cohort of {size}; places are 0..{size - 1}"
            )
        mask = jnp.zeros(size, bool).at[indices].set(True)
        sent = attack(stack, mask, _fold_rows(base_key, stack))
        return aggregator.finish(sent if aggregator.stacked else weighted_totals(aggregator, sent))

    return aggregator._replace(finish=finish, stacked=True, rows=RowTreatment())


def weighted_totals(aggregator: Aggregator, stack: Stack) -> Totals:
    """The weighted sums that an aggregator of sums would have been given.

    Args:
        aggregator: for its `rows`.
        stack: whose `weight` holds the aggregator's weights.

    Returns:
        the totals.

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> server, sent = Server(jnp.array([1.0, 3.0]), {}), jnp.array([True, False])
        >>> stack = Stack(server, sent, jnp.zeros((2, 0), bool), jnp.ones(2))
        >>> float(weighted_totals(total(), stack).deltas.shared)
        1.0
    """
    weight = jnp.where(stack.sent, stack.weight, 0.0)
    server = select(stack.sent, stack.deltas, jax.tree.map(jnp.zeros_like, stack.deltas))

    # float32[C, I], each client's weight in the rows that it touched, which an aggregator may scale row by row.
    touched_weight = jnp.where(stack.touched, weight[:, None], 0.0)
    row_weight = weight
    if aggregator.rows.factor is not None:
        touched_weight = touched_weight * jax.vmap(aggregator.rows.factor)(server.tables)
        row_weight = touched_weight
    sums = Server(weighted_sum(server.shared, weight), weighted_sum(server.tables, row_weight))
    return Totals(sums, weight.sum(), touched_weight.sum(0) if aggregator.rows.weights else None)


def _fold_rows(key: Key, stack: Stack) -> Key:
    """A key of its own for every set of touched rows, by a sum of mixed row numbers that may wrap."""
    number = jnp.arange(stack.touched.size, dtype=jnp.uint32).reshape(stack.touched.shape)
    mixed = (number ^ (number >> 15)) * jnp.uint32(2654435761)
    mixed = mixed ^ (mixed >> 13)
    return jax.random.fold_in(key, jnp.where(stack.touched, mixed, 0).sum(dtype=jnp.uint32))


def _without_knowledge(send: Callable[[jax.Array, Key], jax.Array]) -> StackAttack:
    """An attack of clients that know themselves only: (their values [C, ...], key) -> what they send."""

    def attack(stack: Stack, malicious: jax.Array, key: Key) -> Stack:
        malicious = malicious & stack.sent
        malicious_rows = malicious[:, None] & stack.touched
        leaves, structure = jax.tree.flatten(stack.deltas)
        sent = [send(x, jax.random.fold_in(key, n)) for n, x in enumerate(leaves)]
        poisoned = jax.tree.unflatten(structure, sent)
        shared = select(malicious, poisoned.shared, stack.deltas.shared)
        tables = select(malicious_rows, poisoned.tables, stack.deltas.tables)
        return stack._replace(deltas=Server(shared, tables))

    return attack


def _knowing_the_honest(send: Callable[[jax.Array, jax.Array], jax.Array]) -> StackAttack:
    """An attack of clients that know the honest: (their mean [...], their deviation [...]) -> what all send."""

    def attack(stack: Stack, malicious: jax.Array, key: Key) -> Stack:
        del key
        honest = sound(stack) & ~malicious
        malicious = malicious & stack.sent
        honest_rows = (stack.touched & honest[:, None]).any(0)
        server = jax.tree.map(lambda x: send(*_moments(x, honest))[None], stack.deltas)
        touched = jnp.where(malicious[:, None], honest_rows[None, :], stack.touched)
        return stack._replace(deltas=select(malicious, server, stack.deltas), touched=touched)

    return attack


def _moments(x: jax.Array, honest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and sample deviation of the honest clients' values [C, ...]; 0 of nobody's."""
    flat = x.reshape(x.shape[0], -1)
    count = honest.sum()
    mean = jnp.where(honest[:, None], flat, 0.0).sum(0) / jnp.maximum(count, 1)
    square = jnp.where(honest[:, None], jnp.square(flat - mean[None]), 0.0).sum(0)
    deviation = jnp.sqrt(square / jnp.maximum(count - 1, 1))
    return mean.reshape(x.shape[1:]), deviation.reshape(x.shape[1:])
