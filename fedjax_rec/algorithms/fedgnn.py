"""Federated graph collaborative filtering (`fedgnn`): a client propagates over the graph that it can see.

Wu et al. 2022, "A federated graph neural network framework for privacy-preserving personalization" (FedPerGNN),
with the propagation of He et al. 2020, "LightGCN: simplifying and powering graph convolution network for
recommendation", eq. 3 and 4.

A client's ego graph is a star: the client in the middle, its n items around it, each of degree 1 as far as it
knows. One layer of LightGCN gives the client the sum h = sum_i q_i / sqrt(n); a second returns its own vector to
it. The representation, a mean over the layers, is thus a mix whatever their number,

    e_u = (1 - mix) p_u + mix h,        s_ui = e_u . q_i + b_i,

with mix 1/2 for one layer and 1/3 for two. The gradient flows through h to every row of the history, so that a
local epoch is one exact step of gradient descent on the whole client, in passes over its batches (see `pooled`).

Departures from FedPerGNN:

* LightGCN's weights in the place of graph attention, and binary cross-entropy on positives and sampled negatives
  in the place of the squared error of ratings;
* no graph expansion: the neighbours' anonymous vectors, which a third party would match, are not exchanged;
* no pseudo items and no noise of the algorithm's own: `federate`'s transforms add noise to any algorithm;
* the slips of the authors' program are not repeated: labels cut to integers after a division by 100 (all but the
  highest become 0), test labels divided twice, attention without softmax, and, in the place of clients, one
  central model of all users that trains on batches of 32 of them and has the noise added to its weights.

Departures from LightGCN:

* items are scored by q_i itself: on a star the history's items alone would take up p_u, which tells positives from
  negatives in training, and nothing at all in ranking, where every candidate stands outside the star;
* items have a bias (`item_bias`), and the loss is not BPR.
"""

from functools import partial
from typing import Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least, binary_cross_entropy, squares
from fedjax_rec.algorithms.common.pooled import pool_history, pooled_training, with_history
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch
from fedjax_rec.client.local_training import Loss
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import FederationSettings, federate, set_default_sampler
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.samplers.data_independent import at_most
from fedjax_rec.types import Aggregator, Algorithm, Batch, Key, Model, Params, PyTree, Server

COHORT = 200  # twice as many diverge at the default rate on MovieLens 100K


@register()
def fedgnn(
    *,
    dim: int = 64,
    mix: float = 0.5,
    power: float = 0.5,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.005,
    regularisation: float | jax.Array = 0.0075,
    item_bias: bool = True,
    init_scale: float | jax.Array = 0.1,
    aggregator: Aggregator | str = "sum",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """LightGCN on each client's ego graph, with score s = ((1 - mix) p_u + mix h_u) . q_i + b_i.

    The history is h_u = n^(-power) sum_i q_i. A local epoch is one step of gradient descent on the sum over all
    the client's examples of -y log sigmoid(s) - (1 - y) log sigmoid(-s) + lambda / 2 (|p_u|^2 + |q_i|^2 + b_i^2).

    Args:
        dim: D, width of the vectors.
        mix: the history's share in the representation: 0 is matrix factorisation, 1 knows a client by its history.
        power: 0.5 is LightGCN's normalisation, 1 a mean.
        num_negatives: negatives per positive.
        batch_size: rows that a client holds at a time; it changes memory and nothing else.
        local_epochs: E, exact full-batch steps, of 2 passes each after one pass to begin with.
        learning_rate: of gradient descent. The step is a sum over the client's examples: lower it for long
            histories.
        regularisation: lambda.
        item_bias: whether items have a bias b_i.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)); biases and users' vectors start at 0.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part, what travels, what the server does with it: as in `federate`; by default 200
            clients, however many there are, for a sum of whole steps grows with the cohort.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown aggregator or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedgnn(dim=4, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        2
    """
    check_arguments(fedgnn, locals())
    at_least(1, dim=dim, num_negatives=num_negatives, batch_size=batch_size)
    at_least(
        0, learning_rate=learning_rate, regularisation=regularisation, init_scale=init_scale, power=power
    )
    if not 0 <= mix <= 1:
        raise ValueError(f"mix must be between 0 and 1, not {mix}; 0.5 is one layer of LightGCN")
    set_default_sampler(federation, at_most(COHORT))
    batches = with_history(batch_size, num_negatives, power)
    loss = _regularised(mix, positives_per_batch(batch_size, num_negatives), regularisation)
    return federate(
        ego_graph(dim, mix, init_scale, item_bias=item_bias)._replace(represent=pool_history(batches)),
        pooled_training(loss, learning_rate, batches, epochs=local_epochs),
        aggregator=aggregator,
        **federation,
    )


def ego_graph(dim: int, mix: float, init_scale: float | jax.Array, *, item_bias: bool) -> Model:
    """The model: a private vector per client, mixed with its pooled history, and a vector (and a bias) per item.

    Args:
        dim: D.
        mix: the history's share.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)).
        item_bias: whether items have a bias.

    Returns:
        private {"vector" [D], "pooled" [D]}, no shared leaves, tables {"vector" [I, D], "bias" [I]}.

    Example:
        >>> sorted(ego_graph(4, 0.5, 0.1, item_bias=True).init_private(jax.random.key(0)))
        ['pooled', 'vector']
    """
    scale = init_scale / dim**0.5

    def init_private(key: Key) -> PyTree:
        del key  # a client that never trained is known by its history alone
        return {"vector": jnp.zeros(dim), "pooled": jnp.zeros(dim)}

    def init_server(key: Key, population: Population) -> Server:
        tables = {"vector": normal_rows(key, population.num_items, dim, scale=scale)}
        return Server({}, tables | ({"bias": jnp.zeros(population.num_items)} if item_bias else {}))

    def score(private: PyTree, server: Server) -> jax.Array:
        return _score(mix, Params(private, server.shared, server.tables))

    return Model(init_private, init_server, score)


def _score(mix: float, params: Params) -> jax.Array:
    """Scores of all rows at hand, float32[B]: of a batch's in training, of all items in evaluation."""
    user = (1 - mix) * params.private["vector"] + mix * params.private["pooled"]
    return params.tables["vector"] @ user + params.tables.get("bias", 0.0)


def _regularised(mix: float, positives: int, strength: float | jax.Array) -> Loss:
    plain = binary_cross_entropy(partial(_score, mix), positives)

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        value, examples = plain(params, batch)
        own = params._replace(
            private=params.private["vector"]
        )  # h is made of rows, which are counted already
        return value + 0.5 * strength * squares(own, batch.data["mask"]), examples

    return loss
