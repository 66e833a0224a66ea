"""Federated dual encoder (`fedtwotower`): nothing is private but the history.

Ning et al. 2021, "Learning federated representations and recommendations with limited negatives", a dual encoder
trained by McMahan et al. 2017, algorithm 1. The user's tower is a shared network on the mean of the history's item
vectors, the item's tower is the item table, from which both towers read:

    h_u = mean of q_i over the history,      e_u = h_u + max(0, h_u W + b) V + c,      s_ui = e_u . q_i + b_i.

The gradient flows through the tower to every row of the history, so that a local epoch is one exact step of
gradient descent on the whole client, in passes over its batches (see `pooled`). A client that never took part is
served as well as one that did: it downloads the model and pools its history.

Departures from the paper:

* it asks which loss can do without the other clients' items as negatives, and recommends a hinge on positives or a
  softmax over the whole catalogue, with the spreadout regulariser; here positives are told by binary cross-entropy
  from negatives that each client samples itself, and spreadout is there to be added;
* spreadout is the sum of squared products of the vectors that share a local batch; theirs is the root of that sum,
  over the whole table, of normalised vectors;
* e_u . q_i with a bias in the place of the cosine, and the tower's network is added to what it is fed with;
* the history is all that the client has trained on, in no order, where theirs is the ten items before each label.

Departure from algorithm 1: item rows are summed over clients, as in `fedmf`; the tower's weights are averaged.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least, binary_cross_entropy, squares
from fedjax_rec.algorithms.common.networks import affine, init_layers
from fedjax_rec.algorithms.common.pooled import pool_history, pooled_training, with_history
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch
from fedjax_rec.client.local_training import Loss
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import Aggregator, Algorithm, Batch, Key, Model, Params, PyTree, Server


@register()
def fedtwotower(
    *,
    dim: int = 64,
    hidden: int = 64,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.01,
    regularisation: float | jax.Array = 0.0075,
    spreadout: float | jax.Array = 0.0,
    item_bias: bool = True,
    init_scale: float | jax.Array = 1.0,
    aggregator: Aggregator | str = "rows",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """Two towers, one of them on the client's pooled history; see the module for the score.

    A local epoch is one step of gradient descent on the sum over the client's examples of -y log sigmoid(s) - (1 -
    y) log sigmoid(-s) + lambda / 2 (|q_i|^2 + b_i^2), plus `spreadout` times the sum of (q_i . q_j)^2 over the
    pairs i < j of each local batch. The tower is not regularised.

    Args:
        dim: D, width of the vectors.
        hidden: width of the tower's hidden layer.
        num_negatives: negatives per positive.
        batch_size: rows that a client holds at a time, and whose pairs are spread out.
        local_epochs: E, exact full-batch steps, of 2 passes each after one pass to begin with.
        learning_rate: of gradient descent. The step is a sum over the client's examples: lower it for long
            histories.
        regularisation: lambda.
        spreadout: strength of the spreadout regulariser.
        item_bias: whether items have a bias b_i.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)); weights as in `networks.init_layers`.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`; "rows" averages the tower alone.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown aggregator or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedtwotower(dim=4, hidden=2, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        2
    """
    check_arguments(fedtwotower, locals())
    at_least(1, dim=dim, hidden=hidden, num_negatives=num_negatives, batch_size=batch_size)
    at_least(0, learning_rate=learning_rate, regularisation=regularisation, spreadout=spreadout)
    at_least(0, init_scale=init_scale)
    batches = with_history(batch_size, num_negatives, power=1.0)
    loss = _regularised(positives_per_batch(batch_size, num_negatives), regularisation, spreadout)
    return federate(
        two_towers(dim, hidden, init_scale, item_bias=item_bias)._replace(represent=pool_history(batches)),
        pooled_training(loss, learning_rate, batches, epochs=local_epochs),
        aggregator=aggregator,
        **federation,
    )


def two_towers(dim: int, hidden: int, init_scale: float | jax.Array, *, item_bias: bool) -> Model:
    """The model: a vector (and a bias) per item, and a network on the pooled history.

    Args:
        dim: D.
        hidden: width of the hidden layer.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        item_bias: whether items have a bias.

    Returns:
        private {"pooled" [D]} (0 until a client has pooled), shared {"inner", "outer"}, tables {"vector" [I, D],
        "bias" [I]}.

    Example:
        >>> two_towers(4, 2, 1.0, item_bias=True).init_private(jax.random.key(0))["pooled"].shape
        (4,)
    """

    def init_server(key: Key, population: Population) -> Server:
        row_key, tower_key = jax.random.split(key)
        tables = {"vector": normal_rows(row_key, population.num_items, dim, scale=init_scale / dim**0.5)}
        tables |= {"bias": jnp.zeros(population.num_items)} if item_bias else {}
        inner, outer = init_layers(tower_key, (dim, hidden, dim))
        return Server({"inner": inner, "outer": outer}, tables)

    return Model(
        lambda key: {"pooled": jnp.zeros(dim)},  # noqa: ARG005 - nothing private is random
        init_server,
        lambda private, server: _score(Params(private, server.shared, server.tables)),
    )


def _score(params: Params) -> jax.Array:
    """Scores of all rows at hand, float32[B]: of a batch's in training, of all items in evaluation."""
    user = encode_user(params.shared, params.private["pooled"])
    return params.tables["vector"] @ user + params.tables.get("bias", 0.0)


def encode_user(tower: PyTree, pooled: jax.Array) -> jax.Array:
    """The user's tower: e = h + max(0, h W + b) V + c.

    Args:
        tower: {"inner": W [D, hidden] and b, "outer": V [hidden, D] and c}, of `networks.init_layers`.
        pooled: h, float32[D].

    Returns:
        e, float32[D].

    Example:
        >>> inner, outer = init_layers(jax.random.key(0), (4, 2, 4))
        >>> encode_user({"inner": inner, "outer": outer}, jnp.zeros(4)).tolist()
        [0.0, 0.0, 0.0, 0.0]
    """
    inner = jax.nn.relu(affine(tower["inner"], pooled[None]))
    return pooled + affine(tower["outer"], inner)[0]


def _regularised(positives: int, strength: float | jax.Array, spreadout: float | jax.Array) -> Loss:
    plain = binary_cross_entropy(_score, positives)

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        value, examples = plain(params, batch)
        rows = params._replace(private=())  # h is made of rows, which are counted already
        products = params.tables["vector"] @ params.tables["vector"].T
        closeness = (jnp.triu(products, 1) ** 2).sum()  # a row of an empty slot is 0
        return value + 0.5 * strength * squares(rows, batch.data["mask"]) + spreadout * closeness, examples

    return loss
