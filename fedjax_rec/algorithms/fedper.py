"""Federated learning with personalisation layers (`fedper`).

Arivazhagan et al. 2019, "Federated learning with personalization layers" (arXiv:1912.00818), algorithms 1 and 2:
the lower layers of the network (the base) are averaged, the upper ones (the personalisation layers) stay on their
client, and both are trained jointly. Here the base is the item table and rectified layers on top of an item's row,
and the personalisation layers end in one logit: a client's taste is its head, and there is no user vector.

Departures from algorithms 1 and 2:

* the paper averages the base weighted by examples (`aggregator="examples"`); by default each item row is averaged
  over the clients that trained it, and the base layers over the cohort, for most clients never touch most rows;
* a cohort instead of all clients takes part in a round;
* the loss of a local batch is the sum over its examples, and negatives are sampled; of that sum's gradient the
  base layers take the share `base_scale` and the head `head_scale`, where the paper has one rate for a mean.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.losses import at_least, binary_cross_entropy, scaled
from fedjax_rec.algorithms.common.networks import affine, init_layers, rectified
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch, with_negatives
from fedjax_rec.client.local_training import local_training, proximal
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments, check_unused
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import Aggregator, Algorithm, Key, Model, Params, PyTree, Server


@register()
def fedper(
    *,
    dim: int = 32,
    base_layers: int = 1,
    head_layers: int = 1,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.3,
    base_scale: float | jax.Array = 0.02,
    head_scale: float | jax.Array = 0.1,
    regularisation: float | jax.Array = 0.0,
    init_scale: float | jax.Array = 1.0,
    prox: float = 0.0,
    local_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | str = "touchers",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """FedPer, with score s_u(i) = head_u(base(q_i)); q_i and the base are shared, head_u is private.

    Args:
        dim: D, width of the item rows and of every layer but the last.
        base_layers: rectified layers that are shared; 0 shares the item table alone.
        head_layers: layers of the private head, all but the last rectified; at least 1.
        num_negatives: negatives per positive.
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: of the default local optimizer, SGD.
        base_scale: factor on the gradients of the base layers, which every example of a batch moves.
        head_scale: factor on those of the head.
        regularisation: L2, on the head and the rows of each batch; the base layers are free.
        init_scale: rows and the head's last weights start as normal(0, init_scale / sqrt(D)).
        prox: FedProx's mu, on what is shared; 0 is FedAvg.
        local_optimizer: any optax transformation that treats item rows apart, instead of SGD and its rate.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown aggregator, or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedper(dim=4, head_layers=2, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> [layer["weights"].shape for layer in state.private["head"]]
        [(24, 4, 4), (24, 4, 1)]
    """
    check_arguments(fedper, locals())
    if local_optimizer is not None:
        check_unused(fedper, locals(), ["learning_rate"], "local_optimizer", "which has a rate of its own")
    at_least(1, dim=dim, head_layers=head_layers, num_negatives=num_negatives, batch_size=batch_size)
    at_least(0, base_layers=base_layers, init_scale=init_scale)
    at_least(0, learning_rate=learning_rate, regularisation=regularisation)
    at_least(0, base_scale=base_scale, head_scale=head_scale)
    rule = optax.sgd(learning_rate) if local_optimizer is None else local_optimizer
    pull = [proximal(prox)] if prox else []
    loss = binary_cross_entropy(_score, positives_per_batch(batch_size, num_negatives), regularisation)
    work = local_training(
        loss,
        optax.chain(*pull, scaled(private=head_scale, shared=base_scale), rule),
        with_negatives(batch_size, num_negatives),
        epochs=local_epochs,
        reads_ids=False,
    )
    model = layered(dim, base_layers, head_layers, init_scale)
    return federate(model, work, aggregator=aggregator, **federation)


def layered(dim: int, base_layers: int, head_layers: int, init_scale: float | jax.Array) -> Model:
    """The model: item rows and base layers at the server, a head for each client.

    Args:
        dim: D.
        base_layers: how many are shared.
        head_layers: how many are private.
        init_scale: rows and the head's last weights start as normal(0, init_scale / sqrt(D)).

    Returns:
        private {"head": layers}, shared {"base": layers}, tables {"vector" [I, D]}.

    Example:
        >>> len(layered(4, 2, 1, 1.0).init_private(jax.random.key(0))["head"])
        1
    """
    scale = init_scale / dim**0.5

    def init_private(key: Key) -> PyTree:
        hidden_key, last_key = jax.random.split(key)
        weights = scale * jax.random.normal(last_key, (dim, 1))
        hidden = init_layers(hidden_key, (dim,) * head_layers)
        return {"head": [*hidden, {"weights": weights, "bias": jnp.zeros(1)}]}

    def init_server(key: Key, population: Population) -> Server:
        base_key, row_key = jax.random.split(key)
        vectors = normal_rows(row_key, population.num_items, dim, scale=scale)
        return Server({"base": init_layers(base_key, (dim,) * (base_layers + 1))}, {"vector": vectors})

    def score(private: PyTree, server: Server) -> jax.Array:
        return _score(Params(private, server.shared, server.tables))

    return Model(init_private, init_server, score)


def _score(params: Params) -> jax.Array:
    """Logits of all rows at hand, float32[B]."""
    *hidden, last = params.private["head"]
    features = rectified(params.shared["base"], params.tables["vector"])
    return affine(last, rectified(hidden, features))[:, 0]
