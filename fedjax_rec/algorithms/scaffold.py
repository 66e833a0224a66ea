"""SCAFFOLD (`scaffold`) on matrix factorisation.

Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning" (arXiv:1910.06378),
algorithm 1 with option II. Each client i keeps a control variate c_i, its estimate of its own gradient, and the
server one, c, of everybody's; a local step corrects the client's gradient by their difference. With K local steps
at rate eta_l from the server's x, and global rate eta_g:

    y_i <- y_i - eta_l (g_i(y_i) - c_i + c)        K times
    c_i+ = c_i - c + (x - y_i) / (K eta_l)
    x <- x + eta_g / |S| sum_i (y_i - x)           c <- c + 1 / N sum_i (c_i+ - c_i)

Here x is the item table, and c_i has its shape: a client keeps I x D numbers and sends twice as many, for its
correction moves rows that it has no data for. **Memory is N x I x D** for the control variates and lanes x I x D
in training, so this is for catalogues of some thousand items.

The correction is constant within a round, so that after k steps it has moved a row by k eta_l (c_i - c); this is
added where a row is read, and at the end, instead of in each step. Then (x - y_i) / (K eta_l) - c + c_i is
the sum of the gradient steps alone, over K eta_l: exactly 0 in rows that the client did not visit.

Departures from algorithm 1:

* the user's vector is private, is trained by plain SGD along with y_i, and has no control variate;
* K differs between clients: E epochs of mini-batches of their own data (positives and this round's negatives, in
  a random order);
* N counts the clients that have data;
* the loss of a mini-batch is the sum over its examples, so that rates and eta_g differ from the paper's scale.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import above_zero, at_least, binary_cross_entropy
from fedjax_rec.algorithms.fedmf import matrix_factorisation
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import catalogue, mini_batches
from fedjax_rec.client.local_training import Loss, stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate
from fedjax_rec.rows.tables import add_rows, read_rows
from fedjax_rec.server.aggregators import uniform_weight
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    Model,
    Params,
    PyTree,
    Rows,
    RowTreatment,
    RowUpload,
    Server,
    StepInfo,
    Totals,
)


@register()
def scaffold(
    *,
    dim: int = 16,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.3,
    global_rate: float | jax.Array = 1.0,
    regularisation: float | jax.Array = 0.0075,
    item_bias: bool = True,
    init_scale: float = 0.1,
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """SCAFFOLD with score s = p_u . q_i + b_i and binary cross-entropy.

    Args:
        dim: D, width of the vectors.
        num_negatives: negatives per positive.
        batch_size: examples in a local mini-batch, positives and negatives together.
        local_epochs: E.
        learning_rate: eta_l, of the local SGD.
        global_rate: eta_g, of the server.
        regularisation: L2, on the private vector and the rows of each mini-batch.
        item_bias: whether items have a bias b_i.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        federation: who takes part and what travels, as in `federate`; the server rule is SCAFFOLD's own.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a setting is out of range, or on a transform, which would part what clients keep from what
            the server adds.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = scaffold(dim=4, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state.private["control"]["vector"].shape
        (24, 40, 4)
    """
    check_arguments(scaffold, locals())
    at_least(1, dim=dim, num_negatives=num_negatives, batch_size=batch_size, local_epochs=local_epochs)
    above_zero(learning_rate=learning_rate)
    at_least(0, global_rate=global_rate, regularisation=regularisation, init_scale=init_scale)
    check_together({Feature.SCAFFOLD: True, Feature.TRANSFORM: federation.get("transform")})
    mf = matrix_factorisation(dim, init_scale, item_bias=item_bias, ratings=False)
    loss = binary_cross_entropy(_score, None, regularisation)
    work = controlled(loss, batch_size, num_negatives, learning_rate, epochs=local_epochs)
    return federate(with_control(mf), work, aggregator=controlled_mean(global_rate), **federation)


def with_control(model: Model) -> Model:
    """A model whose clients and server hold control variates for its tables; all start at 0.

    Args:
        model: private leaves by name, tables, no shared leaves.

    Returns:
        private leaves with "control" [I, ...], tables with "control" [I, ...]: as the model's tables each.

    Example:
        >>> model = with_control(matrix_factorisation(4, 0.1, item_bias=True, ratings=False))
        >>> from fedjax_rec.testing import tiny_population
        >>> model.init_server(jax.random.key(0), tiny_population()).tables["control"]["vector"].shape
        (40, 4)
    """

    def init_server(key: Key, population: Population) -> Server:
        server = model.init_server(key, population)
        control = jax.tree.map(jnp.zeros_like, server.tables)
        return server._replace(tables={**server.tables, "control": control})

    def init_common(key: Key, server: Server) -> dict[str, PyTree]:
        del key
        return {"control": jax.tree.map(jnp.zeros_like, server.tables["control"])}

    return model._replace(init_server=init_server, init_common=init_common)


def controlled(
    loss: Loss, batch_size: int, num_negatives: int, learning_rate: float | jax.Array, *, epochs: int
) -> ClientWork:
    """SGD with control variates on the whole catalogue, in mini-batches of the client's examples.

    Args:
        loss: of private leaves and the rows of a mini-batch, whose `data` holds "label" and "mask".
        batch_size: examples in a mini-batch.
        num_negatives: negatives per positive.
        learning_rate: eta_l.
        epochs: E.

    Returns:
        the client's work; it sends y_i - x and, under "control", c_i+ - c_i.

    Example:
        >>> controlled(lambda params, batch: (0.0, 1.0), 64, 4, 0.1, epochs=2).batches.num_batches(9)
        1
    """

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, shared, context
        return private

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        # x and c, all leaves [I, ...]; the private leaves and c_i
        x = {name: table for name, table in rows.values.items() if name != "control"}
        own = {name: leaf for name, leaf in local.items() if name != "control"}
        client_control = local["control"]
        server_control = rows.values["control"]
        # the correction that each of the K local steps adds
        drift = jax.tree.map(lambda c_i, c: learning_rate * (c_i - c), client_control, server_control)
        examples = batch.data["mask"].sum()
        num_steps = epochs * _num_batches(examples, batch_size)
        # `moved`: what the gradient steps add up to, without corrections
        own, moved, value = _descend(loss, batch, batch_size, num_steps, learning_rate, drift, own, x)
        # c_i+; and what is sent, y_i - x with all corrections, and c_i+ - c_i
        control = jax.tree.map(lambda m: -m / (num_steps * learning_rate), moved)
        changes = jax.tree.map(lambda m, d: m + num_steps * d, moved, drift)
        changes["control"] = jax.tree.map(jnp.subtract, control, client_control)
        return {**own, "control": control}, Rows(changes, ()), StepInfo(value, epochs * examples)

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        return local, jax.tree.map(jnp.zeros_like, shared)

    def send(local: PyTree, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local, batch, old
        return rows.values

    return ClientWork(
        catalogue(num_negatives), 1, start, stateless_rows, step, finish, upload=RowUpload(send)
    )


def _num_batches(examples: jax.Array, batch_size: int) -> jax.Array:
    """Mini-batches of an epoch, at least 1, int32[]."""
    return jnp.maximum(jnp.ceil(examples / batch_size), 1.0).astype(jnp.int32)


def _descend(
    loss: Loss,
    batch: Batch,
    batch_size: int,
    num_steps: jax.Array,
    rate: float | jax.Array,
    drift: PyTree,
    own: PyTree,
    x: PyTree,
) -> tuple[PyTree, PyTree, jax.Array]:
    """The local steps: private leaves, the sum of x's gradient steps without their corrections, and the loss."""
    slots_of = mini_batches(batch, batch_size)
    examples = batch.data["mask"].sum().astype(jnp.int32)

    def step(k: jax.Array, carry: tuple[PyTree, PyTree, jax.Array]) -> tuple[PyTree, PyTree, jax.Array]:
        own, moved, total = carry
        # y_i in the rows of this mini-batch [B, ...], with the corrections of k steps
        ids = slots_of(k % _num_batches(examples, batch_size))
        rows = jax.tree.map(lambda a, m, d: a + m + k * d, *read_rows((x, moved, drift), ids))
        mini_batch = Batch(ids, read_rows({name: batch.data[name] for name in ("label", "mask")}, ids))
        # one step of gradient descent
        (value, _), grads = jax.value_and_grad(loss, has_aux=True)(Params(own, (), rows), mini_batch)
        steps = jax.tree.map(lambda g: -rate * g, grads)
        return jax.tree.map(jnp.add, own, steps.private), add_rows(moved, ids, steps.tables), total + value

    return jax.lax.fori_loop(0, num_steps, step, (own, jax.tree.map(jnp.zeros_like, x), jnp.float32(0)))


def controlled_mean(global_rate: float | jax.Array = 1.0) -> Aggregator:
    """SCAFFOLD's aggregation: tables move by eta_g / |S| times their sum, control variates by 1 / N times theirs.

    Args:
        global_rate: eta_g.

    Returns:
        an aggregator of tables with "control".

    Example:
        >>> tables = {"vector": jnp.array([6.0]), "control": {"vector": jnp.array([6.0])}}
        >>> totals = Totals(Server({}, tables), jnp.array(3.0), None, num_clients=jnp.array(12.0))
        >>> moved = controlled_mean(2.0).finish(totals).tables
        >>> moved["vector"].tolist(), moved["control"]["vector"].tolist()
        ([4.0], [0.5])
    """

    def finish(totals: Totals) -> Server:
        sums = dict(totals.deltas.tables)
        control = jax.tree.map(lambda d: d / totals.num_clients, sums.pop("control"))
        share = global_rate / jnp.maximum(totals.weight, 1.0)
        moved = jax.tree.map(lambda d: share * d, sums)
        return Server(totals.deltas.shared, {**moved, "control": control})

    return Aggregator(weight=uniform_weight, finish=finish, rows=RowTreatment(heat=True))


def _score(params: Params) -> jax.Array:
    """Logits of all rows at hand, float32[B]."""
    return params.tables["vector"] @ params.private["vector"] + params.tables.get("bias", 0.0)
