"""Federated neural collaborative filtering (`fedncf`).

Perifanis & Efraimidis 2022, "Federated neural collaborative filtering" (Knowledge-Based Systems 242), on the
models of He et al. 2017, "Neural collaborative filtering", sections 3.2 to 3.4. The user's vectors are private;
item rows and the network's weights are the server's. `aggregator` chooses between the paper's two normalisations:
"touchers" is its MF-FedAvg (an item row's mean is over the clients that trained it), "mean" is plain averaging
over all participants.

Departures from the paper:

* MF-FedAvg weighs the network's weights by the clients' examples; "touchers" averages them without weights.
  (`aggregator="examples"` weighs everything by examples, rows too.) Secure aggregation (MF-SecAvg) is not
  simulated: it gives the same sums.
* the local optimizer is SGD unless `local_optimizer` says otherwise (He et al. use Adam); the loss of a local
  batch is the sum over its examples, of which the network's gradient takes the share `network_scale`;
* NeuMF starts from random parameters, not from trained GMF and MLP models;
* negatives are drawn once per round and reused in its local epochs.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.losses import at_least, binary_cross_entropy, scaled
from fedjax_rec.algorithms.common.networks import affine, init_layers, rectified
from fedjax_rec.algorithms.registry import one_by_size, register
from fedjax_rec.client.batches import positives_per_batch, with_negatives
from fedjax_rec.client.local_training import local_training, proximal
from fedjax_rec.client.population import Population
from fedjax_rec.data.defaults import pair_penalty
from fedjax_rec.errors import check_arguments, check_unused
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import Aggregator, Algorithm, Key, Model, Params, PyTree, Server

TOWERS = {"gmf": ("gmf",), "mlp": ("mlp",), "neumf": ("gmf", "mlp")}


@register(defaults_by_size=one_by_size("regularisation", pair_penalty))
def fedncf(
    *,
    architecture: str = "neumf",
    dim: int = 32,
    layers: int = 3,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.3,
    network_scale: float | jax.Array = 0.02,
    regularisation: float | jax.Array = 0.0,
    init_scale: float | jax.Array = 1.0,
    prox: float = 0.0,
    local_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | str = "touchers",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """FedNCF, with score s = w . [p_g * q_g, phi(p_m, q_m)] + b, of which "gmf" and "mlp" have one half each.

    phi is a tower of rectified layers of widths D, D / 2, D / 4, ... on the concatenation of p_m and q_m; the loss
    is the binary cross-entropy of positives and sampled negatives.

    Args:
        architecture: "gmf", "mlp" or "neumf".
        dim: D, width of each of the vectors.
        layers: of the tower; not for "gmf".
        num_negatives: negatives per positive.
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: of the default local optimizer, SGD.
        network_scale: factor on the gradients of the network, which every example of a batch moves.
        regularisation: L2, on the private vectors and the rows of each batch; the network is free. A run has that
            of `fedjax_rec.data.defaults.pair_penalty`.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        prox: FedProx's mu; 0 is FedAvg.
        local_optimizer: any optax transformation that treats item rows apart, instead of SGD and its rate.
        aggregator: "touchers" (MF-FedAvg), "mean", or any other of `aggregators.NAMES`, or an `Aggregator`.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown architecture or aggregator, or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedncf(architecture="mlp", dim=4, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> [layer["weights"].shape for layer in state.server.shared["tower"]]
        [(8, 4), (4, 2), (2, 1)]
    """
    check_arguments(fedncf, locals())
    if local_optimizer is not None:
        check_unused(fedncf, locals(), ["learning_rate"], "local_optimizer", "which has a rate of its own")
    if architecture == "gmf":
        check_unused(fedncf, locals(), ["layers"], "architecture='gmf'", "which has no tower")
    if architecture not in TOWERS:
        raise ValueError(f"unknown architecture {architecture!r}; choose one of {', '.join(TOWERS)}")
    at_least(1, dim=dim, layers=layers, num_negatives=num_negatives, batch_size=batch_size)
    at_least(0, learning_rate=learning_rate, network_scale=network_scale)
    at_least(0, regularisation=regularisation, init_scale=init_scale)
    rule = optax.sgd(learning_rate) if local_optimizer is None else local_optimizer
    pull = [proximal(prox)] if prox else []
    loss = binary_cross_entropy(_score, positives_per_batch(batch_size, num_negatives), regularisation)
    work = local_training(
        loss,
        optax.chain(*pull, scaled(shared=network_scale), rule),
        with_negatives(batch_size, num_negatives),
        epochs=local_epochs,
        reads_ids=False,
    )
    model = neural_factorisation(TOWERS[architecture], dim, layers, init_scale)
    return federate(model, work, aggregator=aggregator, **federation)


def neural_factorisation(
    halves: tuple[str, ...], dim: int, layers: int, init_scale: float | jax.Array
) -> Model:
    """The model: for each half of NeuMF a private vector per client and a vector per item, and a shared network.

    Args:
        halves: of "gmf" and "mlp".
        dim: D.
        layers: of the tower.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).

    Returns:
        private {half: [D]}, tables {half: [I, D]}, shared {"tower": layers, "output": layer}. The output's weights
        start at 1 for "gmf", which is then matrix factorisation, and as `init_layers` for the tower's features.

    Example:
        >>> model = neural_factorisation(("gmf",), 4, 3, 1.0)
        >>> model.init_private(jax.random.key(0))["gmf"].shape
        (4,)
    """
    widths = (2 * dim, *(max(1, dim >> k) for k in range(layers))) if "mlp" in halves else (0,)

    def vectors(key: Key, shape: tuple[int, ...]) -> dict[str, jax.Array]:
        keys = jax.random.split(key, len(halves))
        scale = init_scale / dim**0.5
        return {half: normal_rows(k, *shape, scale=scale) for half, k in zip(halves, keys, strict=True)}

    def init_private(key: Key) -> PyTree:
        return vectors(key, (dim,))

    def init_server(key: Key, population: Population) -> Server:
        row_key, tower_key, output_key = jax.random.split(key, 3)
        # the output's weights, one for each number of the halves
        output = {"gmf": jnp.ones((dim, 1)), "mlp": jnp.zeros((0, 1))}
        if "mlp" in halves:
            output["mlp"] = init_layers(output_key, (widths[-1], 1))[0]["weights"]
        weights = jnp.concatenate([output[half] for half in halves])
        tower = init_layers(tower_key, widths)
        shared = {"tower": tower, "output": {"weights": weights, "bias": jnp.zeros(1)}}
        return Server(shared, vectors(row_key, (population.num_items, dim)))

    return Model(init_private, init_server, _score_catalogue)


def _score_catalogue(private: PyTree, server: Server) -> jax.Array:
    """Logits of all items, float32[I]: what does not depend on the user is the same product for all of them."""
    tables = server.tables
    tower = server.shared["tower"]
    output = server.shared["output"]
    weights = output["weights"][:, 0]
    scores = output["bias"][0]
    if "gmf" in tables:
        dim = tables["gmf"].shape[1]
        scores = scores + tables["gmf"] @ (weights[:dim] * private["gmf"])
        weights = weights[dim:]
    if "mlp" in tables:
        # the first layer of a pair is a sum of the user's part and the item's
        dim = tables["mlp"].shape[1]
        first = tower[0]["weights"]
        of_user = private["mlp"] @ first[:dim] + tower[0]["bias"]
        hidden = jax.nn.relu(tables["mlp"] @ first[dim:] + of_user[None, :])
        scores = scores + rectified(tower[1:], hidden) @ weights
    return scores


def _score(params: Params) -> jax.Array:
    """Logits of all rows at hand, float32[B]."""
    user = params.private
    item = params.tables
    features = []
    if "gmf" in item:
        features.append(item["gmf"] * user["gmf"][None, :])
    if "mlp" in item:
        pair = [jnp.broadcast_to(user["mlp"], item["mlp"].shape), item["mlp"]]
        features.append(rectified(params.shared["tower"], jnp.concatenate(pair, 1)))
    return affine(params.shared["output"], jnp.concatenate(features, 1))[:, 0]
