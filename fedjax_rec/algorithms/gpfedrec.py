"""Graph-guided personalisation (`gpfedrec`): item tables averaged over neighbours in a graph of users.

Zhang et al. 2024, "GPFedRec: graph-guided personalization for federated recommendation" (KDD), algorithm 1, with
the constants of its official code (github.com/Zhangcx19/GPFedRec). Each client trains a table Q_u from the global
Q, pulled towards its own table r_u; the server links clients whose tables are similar, sends each the mean of its
neighbours' tables, r_u, and takes the mean of all r_u as the next Q.

The paper ranks with the table that the client has just trained: `evaluation.after_local_training`.

**Memory**: private leaves (r_u) are N x I x D numbers, and so is the stack of a round's updates. The server
compares all pairs of clients, in C^2 x I x D operations.

Departures:

* neighbours are those whose cosine *similarity* is above its mean, as the paper says. The code compares the
  cosine *distance*, so that a client's neighbours are those least like it: `neighbours="dissimilar"`;
* the traffic reported leaves out r_u, I x D numbers more on the way down;
* clients that did not take part have no neighbours and keep their r_u; the code cannot sample clients;
* the code's other graphs (of user vectors, of the k nearest, of several layers) are left out;
* negatives are distinct within a client and round, in one random order for all local epochs;
* items are ranked by logits and not by their 32-bit sigmoids;
* training spares no held-out item; the code's does (`--negatives paper-leaky`).
"""

from functools import partial
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.common.networks import affine, rectified
from fedjax_rec.algorithms.common.user_graph import (
    Graph,
    every_change,
    mean_of_neighbourhoods,
    send_neighbourhoods,
)
from fedjax_rec.algorithms.pfedrec import cross_entropy_of_sigmoid
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import catalogue, mini_batches
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate, set_default_sampler
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.types import Algorithm, Batch, ClientWork, Context, Key, Model, PyTree, Rows, Server, StepInfo

NEIGHBOURS = ("similar", "dissimilar")


class Rates(NamedTuple):
    """The learning rates, before the catalogue's size is known."""

    layers: float | jax.Array
    factor: float | jax.Array  # user vectors move at layers (factor - 1), rows at layers (factor I - 1)
    pull: float | jax.Array  # gamma


@register(rounds=100, eval_every=5)
def gpfedrec(
    *,
    dim: int = 32,
    num_negatives: int = 4,
    batch_size: int = 256,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.1,
    item_factor: float | jax.Array = 80.0,
    pull: float | jax.Array = 1.0,
    neighbours: str = "similar",
    threshold: float | jax.Array = 1.0,
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """GPFedRec, with score s_u(i) = MLP_u([p_u; q_i]); p_u and the MLP are private, Q is shared.

    On each mini-batch a client descends mean BCE(sigmoid(s)) + gamma mean (Q - r_u)^2, the second mean over the
    whole table; the MLP at rate eta, p_u at eta (f - 1), Q at eta (f I - 1). With A_uv = 1 / |N_u| for v among the
    neighbours N_u of u, and 0 elsewhere, the server then sets

        r_u = sum_v A_uv Q_v,    Q = mean_u r_u

    Args:
        dim: D, width of user vectors and item rows; the MLP has layers of 2D, D, D / 2, D / 4 and 1.
        num_negatives: negatives per positive.
        batch_size: examples in a mini-batch, positives and negatives in a random order.
        local_epochs: E.
        learning_rate: eta.
        item_factor: f.
        pull: gamma.
        neighbours: "similar" or "dissimilar": by cosine similarity or distance of the trained tables.
        threshold: neighbours are above so many times its mean over all pairs.
        federation: who takes part (by default everyone) and what travels: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown kind of neighbours, or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = gpfedrec(dim=4), tiny_population()
        >>> algorithm.init(jax.random.key(0), population).private["near"].shape
        (24, 40, 4)

    Source: Zhang et al. 2024, eq. 5 to 9 and algorithm 1.
    """
    check_arguments(gpfedrec, locals())
    at_least(4, dim=dim)
    at_least(1, num_negatives=num_negatives, batch_size=batch_size, local_epochs=local_epochs)
    at_least(1, item_factor=item_factor)
    at_least(0, learning_rate=learning_rate, pull=pull)
    if neighbours not in NEIGHBOURS:
        raise ValueError(f"unknown neighbours {neighbours!r}; choose one of {', '.join(NEIGHBOURS)}")
    set_default_sampler(federation, everyone())
    graph = Graph(neighbours == "similar", threshold, federation.get("mesh"))
    return federate(
        _perceptron(dim),
        _training(Rates(learning_rate, item_factor, pull), num_negatives, batch_size, local_epochs),
        aggregator=every_change(),
        server_optimizer=mean_of_neighbourhoods(graph),
        exchange=partial(send_neighbourhoods, graph),
        **federation,
    )


def _perceptron(dim: int) -> Model:
    """The model: private user vector, layers and r_u, which all start alike; a shared item table."""

    def init_server(key: Key, population: Population) -> Server:
        return Server({}, {"vector": normal_rows(key, population.num_items, dim)})

    def init_common(key: Key, server: Server) -> dict[str, PyTree]:
        user_key, *keys = jax.random.split(key, 5)
        widths = (2 * dim, dim, dim // 2, dim // 4, 1)
        layers = [_uniform_layer(k, *widths[n : n + 2]) for n, k in enumerate(keys)]
        user = jax.random.normal(user_key, (dim,))
        return {"user": user, "layers": layers, "near": server.tables["vector"]}

    def score(private: PyTree, server: Server) -> jax.Array:
        return _logits(private["user"], private["layers"], server.tables["vector"])

    return Model(lambda _: {}, init_server, score, init_common=init_common)


def _uniform_layer(key: Key, inputs: int, outputs: int) -> dict[str, jax.Array]:
    """Weights and bias uniform(-1, 1) / sqrt(inputs), as the code's library starts them."""
    weight_key, bias_key = jax.random.split(key)
    weights = jax.random.uniform(weight_key, (inputs, outputs), minval=-1.0)
    bias = jax.random.uniform(bias_key, (outputs,), minval=-1.0)
    return {"weights": weights * inputs**-0.5, "bias": bias * inputs**-0.5}


def _logits(user: jax.Array, layers: list, rows: jax.Array) -> jax.Array:
    pairs = jnp.concatenate([jnp.broadcast_to(user, rows.shape), rows], axis=1)
    return affine(layers[-1], rectified(layers[:-1], pairs))[:, 0]


def _training(rates: Rates, num_negatives: int, batch_size: int, epochs: int) -> ClientWork:
    """Mini-batches of one client's examples; the pull moves every row in each, hence the whole catalogue."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, shared, context
        return private

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        near = local["near"]
        data = batch.data
        table = rows.values["vector"]
        # an epoch's mini-batches, the same in all epochs
        count = data["mask"].sum()
        num_batches = jnp.ceil(count / batch_size).astype(jnp.int32)
        slots_of = mini_batches(batch, batch_size)

        def visit(number: jax.Array, carry: PyTree) -> PyTree:
            user, layers, table, loss = carry
            slots = slots_of(number % num_batches)
            return _descend(rates, near, data["label"], slots, user, layers, table, loss)

        # all epochs; the table [I, D] is carried from step to step
        initial = (local["user"], local["layers"], table, jnp.float32(0))
        user, layers, table, loss = jax.lax.fori_loop(0, epochs * num_batches, visit, initial)
        local = {"user": user, "layers": layers, "near": near}
        return local, rows._replace(values={"vector": table}), StepInfo(loss, epochs * count)

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        return local, shared

    return ClientWork(catalogue(num_negatives), 1, start, stateless_rows, step, finish)


def _descend(
    rates: Rates,
    near: jax.Array,
    labels: jax.Array,
    slots: jax.Array,
    user: jax.Array,
    layers: list,
    table: jax.Array,
    loss: jax.Array,
) -> PyTree:
    """One step on the items of a mini-batch, and of the pull on all rows; (user, layers, table, loss so far)."""
    # logits and losses [B] of the mini-batch's items, whose mask is 0 in empty slots
    items, dim = table.shape
    rows = table.at[slots].get(mode="fill", fill_value=0)
    logits, vjp = jax.vjp(_logits, user, layers, rows)
    mask = (slots < items).astype(jnp.float32)
    losses, slope = cross_entropy_of_sigmoid(logits, labels.at[slots].get(mode="fill", fill_value=0))
    # the gradient of their mean; row_grads [B, D]
    user_grad, layer_grads, row_grads = vjp(mask * slope / jnp.maximum(mask.sum(), 1.0))
    # the pull towards r_u, on all rows [I, D], at the rows' rate
    difference = table - near
    rate = rates.layers * (rates.factor * items - 1)
    pulled = table - rate * (2 * rates.pull / (items * dim)) * difference
    return (
        user - rates.layers * (rates.factor - 1) * user_grad,
        jax.tree.map(lambda p, g: p - rates.layers * g, layers, layer_grads),
        pulled.at[slots].add(-rate * row_grads, mode="drop"),
        loss + (mask * (losses + rates.pull * jnp.square(difference).mean())).sum(),
    )
