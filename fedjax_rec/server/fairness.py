"""Aggregators that go by the clients' losses, so that whom the model serves badly counts for more.

=========================  ====================================================================================
`q_fedavg(q)`              minimises sum_i F_i^(q+1) / (q + 1): q = 0 is FedAvg, a large q looks at the worst
`agnostic(rate)`           minimises the worst mixture of clients, or of groups of them, by weights that rise
                           where the loss is high
=========================  ====================================================================================

Sources: Li et al. 2020, "Fair resource allocation in federated learning" (ICLR), algorithm 2 (q-FedAvg); Mohri et
al. 2019, "Agnostic federated learning" (ICML), algorithm 1 (AFL).

Departures from both papers: F_i is the client's mean loss of its first local epoch, while it trains, instead of
that at the downloaded model, which would cost a pass (`samplers.tracking`); it includes the private leaves' part
and the regularisation. Private leaves are nobody else's, and are not weighed. Where the local loss is a *sum* over
examples, as that of `fedmf`, L is a scale of the steps and no longer an estimate of F_i's smoothness.

Of AFL: w takes a client's whole local training as its descent, where the paper takes one gradient; a round moves
the weights of its participants only, and sums over them alone, over the sum of their weights.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.errors import check_arguments
from fedjax_rec.server.aggregators import mean, uniform_weight
from fedjax_rec.types import Aggregator, LossWeighting, Mixture, Server, Totals

FLOOR = 1e-10  # of a loss, as in the authors' code: q F^(q-1) is infinite at 0


def q_fedavg(q: float | jax.Array = 1.0, *, lipschitz: float | jax.Array) -> Aggregator:
    """q-FedAvg: weigh updates by F_i^q, with a step that shrinks as the objective steepens.

    w <- w - sum_i F_i^q Delta_i / sum_i (q F_i^(q-1) |Delta_i|^2 + L F_i^q), with Delta_i = L (w - w_i).

    Divided by L throughout, with delta_i = w_i - w, the step is sum_i F_i^q delta_i over
    sum_i (q F_i^(q-1) L |delta_i|^2 + F_i^q), which is the mean over the participants for q = 0.

    Args:
        q: how much the worst served count, at least 0.
        lipschitz: L, above 0: 1 / the clients' learning rate.

    Returns:
        an aggregator; it needs whole updates, so that a round costs what clipping costs.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> rule = q_fedavg(1.0, lipschitz=2.0)
        >>> [float(x) for x in rule.loss_factor(jnp.float32(0.5), jnp.float32(3.0))]  # F and 1 * 2 * 3 + F
        [0.5, 6.5]

    Source: Li et al. 2020, algorithm 2; the floor of F_i as in their code.
    """
    check_arguments(q_fedavg, locals())
    if isinstance(q, (int, float)) and not 0 <= q < np.inf:
        raise ValueError(f"q={q} is out of range; give a number from 0")
    if isinstance(lipschitz, (int, float)) and not 0 < lipschitz < np.inf:
        raise ValueError(f"lipschitz={lipschitz} is out of range; give a number above 0")

    def by_loss(loss: jax.Array, squared: jax.Array) -> tuple[jax.Array, jax.Array]:
        loss = jnp.maximum(loss, 0.0) + FLOOR
        factor = loss**q
        return factor, q * factor / loss * lipschitz * squared + factor

    def finish(totals: Totals) -> Server:
        total = totals.loss_statistic
        assert total is not None  # noqa: S101 - a loss factor promises it
        share = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
        return jax.tree.map(lambda x: x * share, totals.deltas)

    return Aggregator(weight=uniform_weight, finish=finish, losses=LossWeighting(factor=by_loss))


def agnostic(
    rate: float | jax.Array = 0.01, *, groups: Sequence[int] | np.ndarray | None = None
) -> Aggregator:
    """Agnostic federated learning: descend on w, ascend on the weights lambda of clients or groups.

    w <- w + sum_g lambda_g mean of delta_i over g's participants / sum_g lambda_g,
    lambda <- the nearest point of the simplex to lambda + rate F_g, F_g being the mean loss of g's participants.

    Both sums go over groups with a participant, and so does the ascent. Lambda starts equal over the groups that
    have data. Without groups each client is one.

    Args:
        rate: gamma, of the ascent, at least 0. With N clients as groups lambda is near 1 / N, so that 1 / N is a
            large rate.
        groups: int[N], each client's group, 0..G-1.

    Returns:
        an aggregator; `State.tracked.mixture` holds lambda, float32[G].

    Raises:
        ValueError: if a number is out of range; when a run starts, if groups are not one a client.

    Example:
        >>> rule = agnostic(0.1, groups=[0, 0, 1]).mixture
        >>> start = rule.init(jnp.array([5, 5, 5]))
        >>> ids, there, losses = jnp.arange(3), jnp.ones(3, bool), jnp.array([1.0, 1.0, 3.0])
        >>> rule.weigh(start, ids, there).tolist(), rule.learn(start, ids, there, losses).round(3).tolist()
        ([0.25, 0.25, 0.5], [0.4000000059604645, 0.6000000238418579])

    Source: Mohri et al. 2019, algorithm 1 and section 4; departures in the module's docstring.
    """
    if isinstance(rate, (int, float)) and not (rate >= 0 and np.isfinite(rate)):
        raise ValueError(f"rate={rate} is out of range; give a number from 0")
    labels = None if groups is None else _check_groups(groups)

    def group_of(ids: jax.Array, size: int) -> jax.Array:
        if labels is None:
            return ids
        return jnp.asarray(labels).at[ids].get(mode="fill", fill_value=size)

    def init(sizes: jax.Array) -> jax.Array:
        if labels is not None and len(labels) != sizes.shape[0]:
            raise ValueError(f"{len(labels)} groups do not fit {sizes.shape[0]} clients; give one a client")
        count = sizes.shape[0] if labels is None else int(labels.max()) + 1
        has_data = jnp.zeros(count).at[group_of(jnp.arange(sizes.shape[0]), count)].max((sizes > 0) * 1.0)
        return has_data / jnp.maximum(has_data.sum(), 1.0)

    def weigh(weights: jax.Array, ids: jax.Array, present: jax.Array) -> jax.Array:
        # a group's weight is shared by its participants
        group = group_of(ids, weights.shape[0])
        count = jnp.zeros_like(weights).at[group].add(present * 1.0, mode="drop")
        return (weights / jnp.maximum(count, 1.0)).at[group].get(mode="fill", fill_value=0.0)

    def learn(weights: jax.Array, ids: jax.Array, present: jax.Array, losses: jax.Array) -> jax.Array:
        # each group's participants and the sum of their losses, [G]
        group = group_of(ids, weights.shape[0])
        count = jnp.zeros_like(weights).at[group].add(present * 1.0, mode="drop")
        loss_sum = jnp.zeros_like(weights).at[group].add(jnp.where(present, losses, 0.0), mode="drop")
        # one step of ascent; a round of nobody leaves the weights' bits alone
        ascended = project_to_simplex(weights + rate * loss_sum / jnp.maximum(count, 1.0))
        return jnp.where(present.any(), ascended, weights)

    return mean()._replace(losses=LossWeighting(mixture=Mixture(init, weigh, learn)))


def _check_groups(groups: Sequence[int] | np.ndarray) -> np.ndarray:
    """The clients' groups, int32[N]."""
    labels = np.asarray(groups)
    if labels.ndim != 1 or not labels.size or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise ValueError("groups must be one whole number a client, from 0 up")
    if labels.max() >= 2**31:
        raise ValueError(f"groups must be numbers below 2^31, not {labels.max()}")
    return labels.astype(np.int32)


def project_to_simplex(values: jax.Array) -> jax.Array:
    """The nearest point of the simplex, by Euclid: max(v - tau, 0), with tau such that it sums to 1.

    Args:
        values: float32[G].

    Returns:
        float32[G], at least 0, of sum 1.

    Example:
        >>> project_to_simplex(jnp.array([0.5, 1.5, -3.0])).tolist()
        [0.0, 1.0, 0.0]

    Source: Duchi et al. 2008, "Efficient projections onto the l1-ball for learning in high dimensions", figure 1.
    """
    centred = values - values.max()  # the same point, with less to cancel
    ranked = -jnp.sort(-centred)
    tau = (jnp.cumsum(ranked) - 1.0) / jnp.arange(1, values.shape[0] + 1)  # if so many numbers stay above 0
    last = (ranked > tau).sum() - 1  # a prefix: the first always is
    return jnp.maximum(centred - tau[jnp.maximum(last, 0)], 0.0)
