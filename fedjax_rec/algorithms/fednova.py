"""Normalised averaging (`fednova`) on matrix factorisation.

Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated optimization"
(arXiv:2007.07481), eq. 5 and section 4: FedAvg, but each client's change is divided by how far its local steps can
take it, so that clients with more steps do not pull the optimum to themselves. Only the aggregation differs from
`fedmf`, so client and model are its own. What is supported, by the paper's table of accumulation vectors a_i with
tau_i local steps at rate eta:

=====================  ==========================================================
local solver           |a_i|_1
=====================  ==========================================================
SGD                    tau_i
momentum rho           (tau_i - rho (1 - rho^tau_i) / (1 - rho)) / (1 - rho)
proximal mu            (1 - (1 - eta mu)^tau_i) / (eta mu)
=====================  ==========================================================

Momentum together with the proximal term, and adaptive local solvers, have no such form here and are refused.

Departures from the paper:

* `per_row` (the default) takes the weighted average of item rows over the clients that trained them, and with
  them the effective number of steps, as the harmonic mean of their |a_i|: the paper's dense model has no rows that
  a client does not touch, and averaging over the cohort would shrink the steps of rare items. With
  `per_row=False` rows are treated as dense leaves are, by the letter;
* the private vector is not aggregated, so nothing is normalised there;
* for SGD |a_i|_1 counts local batches, and the number of those is nearly proportional to a client's examples: the
  weights n_i / tau_i are nearly equal, and the method nearly an unweighted mean.
"""

from collections.abc import Callable
from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.losses import above_zero, at_least
from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import FederationSettings
from fedjax_rec.rows.tables import expand
from fedjax_rec.types import Aggregator, Algorithm, PyTree, RowTreatment, Server, Totals


@register()
def fednova(
    *,
    dim: int = 64,
    loss: str = "bce",
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.1,
    momentum: float = 0.0,
    regularisation: float = 0.0075,
    item_bias: bool = True,
    init_scale: float = 0.1,
    prox: float = 0.0,
    per_row: bool = True,
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """FedNova: M <- M + tau_eff sum_i p_i delta_i / |a_i|_1, with tau_eff = sum_i p_i |a_i|_1 and p_i = n_i / n.

    Model, losses and local training are those of `fedmf`.

    Args:
        dim: D, width of the vectors.
        loss: "bce", "bpr" or "mse".
        num_negatives: negatives per positive (not for "mse").
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: eta, of the local SGD.
        momentum: rho, of the local SGD, in [0, 1).
        regularisation: L2, on the private vector and the rows of each batch.
        item_bias: whether items have a bias.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        prox: mu of the proximal local solver.
        per_row: whether item rows are averaged over the clients that trained them.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: if momentum is outside [0, 1) or goes with a proximal term, or a setting is out of range, or a
            proximal step would overshoot, eta mu >= 1.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fednova(dim=4, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        2
    """
    check_arguments(fednova, locals())
    at_least(1, batch_size=batch_size, num_negatives=num_negatives, local_epochs=local_epochs)
    above_zero(learning_rate=learning_rate)
    width = batch_size if loss == "mse" else positives_per_batch(batch_size, num_negatives)

    def steps(num_examples: jax.Array) -> jax.Array:
        return (local_epochs * -(-num_examples // width)).astype(jnp.float32)

    return fedmf(
        dim=dim,
        loss=loss,
        num_negatives=num_negatives,
        batch_size=batch_size,
        local_epochs=local_epochs,
        regularisation=regularisation,
        item_bias=item_bias,
        init_scale=init_scale,
        prox=prox,
        local_optimizer=optax.sgd(learning_rate, momentum=momentum or None),
        aggregator=normalised(
            steps, learning_rate=learning_rate, momentum=momentum, prox=prox, per_row=per_row
        ),
        **federation,
    )


def normalised(
    steps: Callable[[jax.Array], jax.Array],
    *,
    learning_rate: float | jax.Array = 1.0,
    momentum: float = 0.0,
    prox: float = 0.0,
    per_row: bool = False,
) -> Aggregator:
    """FedNova's aggregation as an aggregator: each client's weight is n_i / |a_i|_1.

    Args:
        steps: number of examples -> local steps tau_i, float32[].
        learning_rate: eta, which only the proximal solver's |a_i|_1 depends on.
        momentum: rho.
        prox: mu.
        per_row: whether table rows are averaged over the clients that trained them, sum_i w_i delta_i / sum_i w_i.

    Returns:
        an aggregator.

    Raises:
        ValueError: if momentum is outside [0, 1) or goes with a proximal term.

    Example:
        >>> rule = normalised(lambda n: n / 2.0)
        >>> rule.weight(jnp.array([2, 8])).tolist()
        [2.0, 2.0]
        >>> stats = jax.tree.map(jnp.sum, rule.client_stats(jnp.array([2, 8])))  # n = 10, sum n_i |a_i| = 34
        >>> float(rule.finish(Totals(Server(jnp.array(5.0), ()), jnp.array(4.0), None, stats)).shared)
        1.7000000476837158

    Source: Wang et al. 2020, eq. 5 and table 1.
    """
    if not 0 <= momentum < 1 or (momentum and prox):
        raise ValueError(
            f"momentum={momentum} must be in [0, 1), and 0 with prox={prox}: their joint norm has no closed form"
        )
    share = learning_rate * prox
    if isinstance(share, float) and not share < 1:
        raise ValueError(
            f"learning_rate x prox = {share} must be below 1, or the pull overshoots; lower prox={prox}"
        )
    norm = accumulation_norm(learning_rate, momentum, prox)

    def weight(num_examples: jax.Array) -> jax.Array:
        return num_examples / jnp.maximum(norm(steps(num_examples)), 1e-9)

    def client_stats(num_examples: jax.Array) -> PyTree:
        return {"examples": 1.0 * num_examples, "norm": num_examples * norm(steps(num_examples))}

    def finish(totals: Totals) -> Server:
        # tau_eff times the normalised mean, on all leaves
        n = jnp.maximum(totals.client_stats["examples"], 1.0)
        by_letter = jax.tree.map(lambda x: totals.client_stats["norm"] / n * (x / n), totals.deltas)
        if totals.row_weight is None:
            return by_letter
        # on rows the mean over those that trained them, by their weights n_i / |a_i|_1
        safe = jnp.where(totals.row_weight > 0, totals.row_weight, 1.0)
        return by_letter._replace(tables=jax.tree.map(lambda x: x / expand(safe, x), totals.deltas.tables))

    return Aggregator(
        weight=weight, finish=finish, rows=RowTreatment(weights=per_row), client_stats=client_stats
    )


def accumulation_norm(
    learning_rate: float | jax.Array, momentum: float, prox: float
) -> Callable[[jax.Array], jax.Array]:
    """The norm |a|_1 of a local solver's accumulation vector, as a function of its steps tau.

    Args:
        learning_rate: eta.
        momentum: rho; 0 for none.
        prox: mu; 0 for none.

    Returns:
        tau float32[] -> |a|_1 float32[].

    Example:
        >>> [float(accumulation_norm(1.0, rho, mu)(jnp.array(2.0))) for rho, mu in ((0, 0), (0.5, 0), (0, 0.5))]
        [2.0, 2.5, 1.5]

    Source: Wang et al. 2020, section 4.
    """
    if momentum:
        return lambda tau: (tau - momentum * _geometric(1 - momentum, tau)) / (1 - momentum)
    if prox:
        return lambda tau: _geometric(learning_rate * prox, tau)
    return lambda tau: tau


def _geometric(share: float | jax.Array, tau: jax.Array) -> jax.Array:
    """(1 - (1 - share)^tau) / share, without cancellation where the share is tiny."""
    return -jnp.expm1(tau * jnp.log1p(-jnp.asarray(share, jnp.float32))) / share
