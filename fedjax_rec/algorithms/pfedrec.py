"""Dual personalisation (`pfedrec`): a private score head on a shared item table that every client tunes.

Zhang et al. 2023, "Dual personalization on federated recommendation" (IJCAI), algorithm 1, with the constants of
its official code (github.com/Zhangcx19/IJCAI-23-PFedRec). There is no user vector: a client is its head.

Each local batch is descended twice, first by the head and then, through the new head, by the batch's item rows,
at a rate of `learning_rate * item_factor * I`: 13,456 on ML-100K. Logits grow with it, and the code's
cross-entropy of a 32-bit sigmoid has no gradient where that is exactly 0 or 1; this is kept, for it bounds them.

The paper ranks with the table that the client has just trained (`evaluation.after_local_training`), not with the
server's, and its code never draws a held-out item as a negative (`--negatives paper-leaky`). Both are settings of
the evaluation here, and both change the result much more than the algorithm's own do: see `experiments/pfedrec`.

Departures:

* negatives are distinct within a client and round, and stand in the batch of their positives; the code draws them
  for each positive apart and shuffles all examples;
* tables are averaged uniformly as in the code; the paper weighs clients by their examples
  (`aggregator="examples"`). A client sends the rows it touched: the mean of whole tables is Q + mean(delta);
* items are ranked by logits and not by their 32-bit sigmoids, of which many are 1.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import with_negatives
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import FederationSettings, federate, set_default_sampler
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    LocalBatches,
    Model,
    PyTree,
    Rows,
    Server,
    StepInfo,
)


@register(rounds=100, eval_every=5)
def pfedrec(
    *,
    dim: int = 32,
    num_negatives: int = 4,
    batch_size: int = 256,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.1,
    item_factor: float | jax.Array = 80.0,
    init_scale: float | jax.Array = 1.0,
    aggregator: Aggregator | str = "mean",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """PFedRec, with score s_u(i) = w_u . q_i + b_u; the head (w_u, b_u) is private, Q is shared.

    On each batch B, with L the mean over B of the binary cross-entropy of sigmoid(s):

        (w_u, b_u) <- (w_u, b_u) - eta dL/d(w_u, b_u)
        q_i        <- q_i - eta f I dL/dq_i,  with the new head

    Args:
        dim: D, width of the item rows.
        num_negatives: negatives per positive.
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: eta, of the head.
        item_factor: f; an item row's rate is eta f I.
        init_scale: rows start as normal(0, init_scale); heads all start as one, uniform(-1, 1) / sqrt(D).
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part (by default everyone), what travels, what the server does: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown aggregator, or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = pfedrec(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients), state.private["weights"].shape
        (23, (24, 4))

    Source: Zhang et al. 2023, algorithm 1.
    """
    check_arguments(pfedrec, locals())
    at_least(1, dim=dim, num_negatives=num_negatives, batch_size=batch_size, local_epochs=local_epochs)
    at_least(0, learning_rate=learning_rate, item_factor=item_factor, init_scale=init_scale)
    set_default_sampler(federation, everyone())
    batches = with_negatives(batch_size, num_negatives, labels=True)
    work = _dual_training(batches, local_epochs, learning_rate, item_factor)
    return federate(personal_heads(dim, init_scale), work, aggregator=aggregator, **federation)


def personal_heads(dim: int, init_scale: float | jax.Array) -> Model:
    """The model: an item table, and a linear head for each client.

    Args:
        dim: D.
        init_scale: rows start as normal(0, init_scale).

    Returns:
        private {"weights" [D], "bias" []}, the same for all clients at the start; tables {"vector" [I, D]}.

    Example:
        >>> personal_heads(4, 1.0).init_common(jax.random.key(0), Server({}, {}))["weights"].shape
        (4,)
    """

    def init_server(key: Key, population: Population) -> Server:
        return Server({}, {"vector": normal_rows(key, population.num_items, dim, scale=init_scale)})

    def score(private: PyTree, server: Server) -> jax.Array:
        return _logits(private, server.tables["vector"])

    return Model(lambda _: {}, init_server, score, init_common=lambda key, _: linear_head(key, dim))


def linear_head(key: Key, dim: int) -> dict[str, jax.Array]:
    """A linear layer to one logit as the code's library starts it: uniform(-1, 1) / sqrt(D).

    Args:
        key: is consumed.
        dim: D.

    Returns:
        {"weights" [D], "bias" []}.

    Example:
        >>> float(jnp.abs(linear_head(jax.random.key(0), 4)["weights"]).max()) <= 0.5
        True
    """
    weight_key, bias_key = jax.random.split(key)
    bound = dim**-0.5
    weights = jax.random.uniform(weight_key, (dim,), minval=-bound, maxval=bound)
    return {"weights": weights, "bias": jax.random.uniform(bias_key, (), minval=-bound, maxval=bound)}


def _logits(head: PyTree, vectors: jax.Array) -> jax.Array:
    return vectors @ head["weights"] + head["bias"]


def cross_entropy_of_sigmoid(logit: jax.Array, label: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Binary cross-entropy of a 32-bit sigmoid, and its slope in the logit as automatic differentiation finds it.

    The slope is (p - y) / max(p (1 - p), 1e-12) * p (1 - p), in this order and in 32 bits: it is p - y, and 0
    where p is rounded to 0 or to 1, however wrong that is (from a logit of 17 on). Logarithms end at -100.

    Args:
        logit: float32[...].
        label: float32[...], 0 or 1.

    Returns:
        losses and slopes, float32[...].

    Example:
        >>> cross_entropy_of_sigmoid(jnp.array([0.0, 30.0]), jnp.zeros(2))[1].tolist()
        [0.5, 0.0]
    """
    probability = 1.0 / (1.0 + jnp.exp(-logit))
    variance = probability * (1.0 - probability)
    loss = -label * jnp.maximum(jnp.log(probability), -100.0)
    loss = loss - (1.0 - label) * jnp.maximum(jnp.log(1.0 - probability), -100.0)
    return loss, (probability - label) / jnp.maximum(variance, 1e-12) * variance


def _dual_training(
    batches: LocalBatches, epochs: int, rate: float | jax.Array, item_factor: float | jax.Array
) -> ClientWork:
    """On each batch a step of the head, and then one of the rows."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, shared, context
        return private

    def slopes(head: PyTree, vectors: jax.Array, data: PyTree) -> tuple[jax.Array, jax.Array]:
        """The summed loss float32[], and how the mean loss changes with each logit, float32[B]."""
        loss, slope = cross_entropy_of_sigmoid(_logits(head, vectors), data["label"])
        mask = data["mask"]
        return (mask * loss).sum(), mask * slope / jnp.maximum(mask.sum(), 1.0)

    def step(head: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        # first the head, by the slopes [B] of the batch's mean loss in the logits
        vectors = rows.values["vector"]
        loss, slope = slopes(head, vectors, batch.data)
        grads = {"weights": slope @ vectors, "bias": slope.sum()}
        head = jax.tree.map(lambda p, g: p - rate * g, head, grads)
        # then the rows [B, D], through the new head
        _, slope = slopes(head, vectors, batch.data)
        item_rate = rate * item_factor * jnp.float32(context.num_items)
        vectors = vectors - jnp.outer(item_rate * slope, head["weights"])
        return head, rows._replace(values={"vector": vectors}), StepInfo(loss, batch.data["mask"].sum())

    def finish(head: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        return head, jax.tree.map(jnp.zeros_like, shared)

    return ClientWork(batches, epochs, start, stateless_rows, step, finish)
