"""FedAvg on matrix factorisation (`fedmf`).

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1, on
the model of Koren et al. 2009, "Matrix factorization techniques for recommender systems", section "Adding biases".
The user vector is private and stays on its client; item vectors (and item biases) are the server's.

Departures from algorithm 1, each a setting or a consequence of row sparsity:

* the server sums the updates by default (`sum`; with ratings it averages each row over its touchers), where FedAvg
  weighs them by examples: a client touches only its own rows, so that a mean over the cohort shrinks a row's step
  by the share of clients that did not touch it;
* the loss of a local batch is the *sum* over its examples, not the mean, so that a row's step does not depend on
  how many other rows share its batch;
* negatives are drawn once per round and reused in its local epochs, which also pass the data in one order.

Not to be confused with the gradient-upload FedMF of Chai et al. 2020, which is `fedsgd_mf`.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch, rated, with_negatives
from fedjax_rec.client.local_training import Loss, local_training, proximal
from fedjax_rec.client.population import Population
from fedjax_rec.data.defaults import mf_settings
from fedjax_rec.errors import check_arguments, check_unused
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    Key,
    Model,
    Params,
    PyTree,
    Server,
)

LOSSES = ("bce", "bpr", "mse")


@register(defaults_by_size=lambda size, **given: mf_settings(size, **given)._asdict())
def fedmf(
    *,
    dim: int = 64,
    loss: str = "bce",
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.012,
    regularisation: float = 0.0075,
    item_bias: bool = True,
    init_scale: float = 0.1,
    intercept: float | None = None,
    prox: float = 0.0,
    local_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | str | None = None,
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """FedAvg on matrix factorisation, with score s = p_u . q_i + b_i.

    Losses, per example, plus `regularisation / 2 * (|p_u|^2 + |q_i|^2 + b_i^2 + b_u^2)` for every item row visited
    (the intercept is free):

    * `bce`: -y log sigmoid(s) - (1 - y) log sigmoid(-s), positives and sampled negatives;
    * `bpr`: -log sigmoid(s_i - s_j), each positive i against its own negatives j; a pair is an example;
    * `mse`: (r - m - b_u - s)^2 / 2 on ratings, with a shared intercept m and a private bias b_u.

    The defaults here are for small dense data; a run (`fr.fit`, `fedjax-rec run`) has `dim`, `num_negatives` and
    `learning_rate` by the size of its data (`fedjax_rec.data.defaults.mf_settings`).

    Args:
        dim: D, width of the vectors.
        loss: "bce", "bpr" or "mse".
        num_negatives: negatives per positive (not for "mse").
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: of the default local optimizer, SGD.
        regularisation: L2, on the private vector and the rows of each batch.
        item_bias: whether items have a bias b_i.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)); biases start at 0.
        intercept: m at the start, for "mse"; by default the mean rating of all clients, which is no secret then.
        prox: FedProx's mu; 0 is FedAvg.
        local_optimizer: any optax transformation that treats item rows apart, instead of SGD and its rate.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`; by default "sum", and "touchers" for "mse",
            whose dense intercept every client moves.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown loss or aggregator, or a setting out of range.

    Example:
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
        >>> population = Population.from_frame(frame)
        >>> algorithm = fedmf(dim=4, cohort=2)
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        2
    """
    check_arguments(fedmf, locals())
    if local_optimizer is not None:
        check_unused(fedmf, locals(), ["learning_rate"], "local_optimizer", "which has a rate of its own")
    if loss == "mse":
        check_unused(fedmf, locals(), ["num_negatives"], "loss='mse'", "which draws none")
    if aggregator is None:
        aggregator = "touchers" if loss == "mse" else "sum"
    _check(loss, dim=dim, num_negatives=num_negatives, batch_size=batch_size)
    if intercept is not None and loss != "mse":
        raise ValueError(f"intercept={intercept} is of loss='mse', not of {loss!r}; leave it out")
    _check_rates(learning_rate=learning_rate, regularisation=regularisation, init_scale=init_scale)
    rule = optax.sgd(learning_rate) if local_optimizer is None else local_optimizer
    optimizer = optax.chain(proximal(prox), rule) if prox else rule
    if loss == "mse":
        batches = rated(batch_size)
        objective: Loss = _squared_error
    else:
        batches = with_negatives(batch_size, num_negatives)
        positives = positives_per_batch(batch_size, num_negatives)
        objective = _binary_cross_entropy(positives) if loss == "bce" else _pairwise(positives)
    return federate(
        matrix_factorisation(
            dim, init_scale, item_bias=item_bias, ratings=loss == "mse", intercept=intercept
        ),
        local_training(
            _regularised(objective, regularisation), optimizer, batches, epochs=local_epochs, reads_ids=False
        ),
        aggregator=aggregator,
        **federation,
    )


def _check(loss: str, **sizes: int) -> None:
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, not {value}")


def _check_rates(**rates: float | jax.Array) -> None:
    for name, value in rates.items():
        if isinstance(value, (int, float)) and not value >= 0:
            raise ValueError(f"{name} must be at least 0, not {value}")


def matrix_factorisation(
    dim: int, init_scale: float, *, item_bias: bool, ratings: bool, intercept: float | None = None
) -> Model:
    """The model: a private vector per client, a vector (and a bias) per item, for ratings an intercept.

    Args:
        dim: D.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        item_bias: whether items have a bias.
        ratings: whether there are a shared intercept and private biases.
        intercept: its start; None for the mean rating.

    Returns:
        private {"vector" [D], "bias" []}, shared {"intercept" []}, tables {"vector" [I, D], "bias" [I]}.

    Example:
        >>> model = matrix_factorisation(4, 0.1, item_bias=True, ratings=False)
        >>> model.init_private(jax.random.key(0))["vector"].shape
        (4,)
    """
    scale = init_scale / dim**0.5

    def init_private(key: Key) -> PyTree:
        vector = {"vector": scale * jax.random.normal(key, (dim,))}
        return {**vector, "bias": jnp.float32(0)} if ratings else vector

    def init_server(key: Key, population: Population) -> Server:
        tables = {"vector": normal_rows(key, population.num_items, dim, scale=scale)}
        if item_bias:
            tables["bias"] = jnp.zeros(population.num_items)
        if not ratings:
            return Server({}, tables)
        if "ratings" not in population.examples:
            raise ValueError("the loss 'mse' fits ratings, but this data has none; use 'bce' or 'bpr'")
        # one sum and one count per client would give this mean
        mean = population.examples["ratings"].mean() if intercept is None else jnp.float32(intercept)
        return Server({"intercept": mean}, tables)

    def score(private: PyTree, server: Server) -> jax.Array:
        return _score(Params(private, server.shared, server.tables))

    starts_from = "the mean rating of all clients" if ratings and intercept is None else ""
    return Model(init_private, init_server, score, predicts_ratings=ratings, starts_from=starts_from)


def _score(params: Params) -> jax.Array:
    """Scores of all rows at hand, float32[B]: of a batch's in training, of all items in evaluation."""
    score = params.tables["vector"] @ params.private["vector"]
    score = score + params.tables.get("bias", 0.0)
    if "intercept" in params.shared:
        score = score + params.shared["intercept"] + params.private["bias"]
    return score


def _binary_cross_entropy(positives: int) -> Loss:
    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        score = _score(params)
        mask = batch.data["mask"]
        label = (jnp.arange(mask.shape[0]) < positives).astype(jnp.float32)
        return (mask * optax.sigmoid_binary_cross_entropy(score, label)).sum(), mask.sum()

    return loss


def _pairwise(positives: int) -> Loss:
    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        score = _score(params)
        mask = batch.data["mask"]
        above = score[:positives, None]
        below = score[positives:].reshape(positives, -1)
        pairs = mask[:positives, None] * mask[positives:].reshape(positives, -1)
        return (pairs * jax.nn.softplus(below - above)).sum(), pairs.sum()

    return loss


def _squared_error(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    mask = batch.data["mask"]
    return (mask * 0.5 * (batch.data["rating"] - _score(params)) ** 2).sum(), mask.sum()


def _regularised(loss: Loss, strength: float) -> Loss:
    """Add L2 for every row of the batch and, as often, for the private leaves."""
    if isinstance(strength, (int, float)) and strength == 0:
        return loss  # a sum times zero would still be computed

    def regularised(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        value, examples = loss(params, batch)
        mask = batch.data["mask"]
        rows = sum((mask * _square(row)).sum() for row in params.tables.values())
        own = mask.sum() * sum((leaf**2).sum() for leaf in params.private.values())
        return value + 0.5 * strength * (rows + own), examples

    return regularised


def _square(rows: jax.Array) -> jax.Array:
    return (rows**2).reshape(rows.shape[0], -1).sum(-1)
