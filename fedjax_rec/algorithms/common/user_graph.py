"""A graph of users, made by the server of the tables that they have trained: the server's half of `gpfedrec`.

With Q_u the table that client u has sent, and A_uv = 1 / |N_u| for v among the neighbours N_u of u, 0 elsewhere,

    r_u = sum_v A_uv Q_v,    Q = mean_u r_u

The rows of A add up to 1, so that both are Q plus such sums of the *changes* Q_v - Q, which is what clients send.
All pairs of clients are compared: C^2 x I x D operations.
"""

from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_rec.engine.devices import multiply_in_shares
from fedjax_rec.server.aggregators import uniform_weight
from fedjax_rec.types import Aggregator, PyTree, Server, Stack


class Graph(NamedTuple):
    """Who is a neighbour of whom."""

    similar: bool  # neighbours are those most like a client, and not those least like it
    threshold: float | jax.Array  # they are above so many times the mean of all pairs
    mesh: Mesh | None = None  # its devices share the products


def every_change() -> Aggregator:
    """Aggregation that adds nothing up: the server's rule needs each client's change, and who took part.

    Returns:
        a stacked aggregator; shared {"sent": float32[C]}, tables [C, I, D].

    Example:
        >>> sent = jnp.array([True, False])
        >>> stack = Stack(Server({}, {"vector": jnp.ones((2, 3, 1))}), sent, sent[:, None], jnp.ones(2))
        >>> every_change().finish(stack).shared["sent"].tolist()
        [1.0, 0.0]
    """
    return Aggregator(weight=uniform_weight, finish=_pass_through, stacked=True)


def neighbours(graph: Graph, tables: jax.Array, sent: jax.Array) -> jax.Array:
    """Compare all pairs of clients by the cosine of their tables.

    Args:
        graph: who is a neighbour of whom.
        tables: float32[C, K], a client's table as one vector.
        sent: bool[C], who took part; the others have no neighbours, and are nobody's.

    Returns:
        A, float32[C, C]: 1 / |N_u| for the neighbours of u, who may be among them; itself where it has none.

    Example:
        >>> tables = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2]])
        >>> neighbours(Graph(True, 1.0), tables, jnp.ones(3, bool)).tolist()
        [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

    Source: Zhang et al. 2024, "GPFedRec", eq. 5 and 6.
    """
    # tables [C, K] on the unit sphere; pairs bool[C, C] of clients that took part
    unit = tables / jnp.maximum(jnp.linalg.norm(tables, axis=1, keepdims=True), 1e-12)
    pairs = sent[:, None] & sent[None, :]
    same = jnp.eye(len(sent), dtype=bool)
    # distances 1 - cosine [C, C]: tables are nearly parallel, and their differences from the mean keep the digits
    centre = (sent / jnp.maximum(sent.sum(), 1)) @ unit
    centred = unit - centre[None, :]
    norms = jnp.square(centred).sum(1)
    halves = 0.5 * (norms[:, None] + norms[None, :])
    distance = jnp.where(same, 0.0, halves - multiply_in_shares(centred, centred.T, graph.mesh))
    mean = jnp.where(pairs, distance, 0.0).sum() / jnp.maximum(pairs.sum(), 1)
    # a similarity of 1 - distance above threshold (1 - mean), as a bar that keeps the mean's digits
    threshold = graph.threshold
    close = distance < (1 - threshold) + threshold * mean if graph.similar else distance > threshold * mean
    # who has no neighbour is its own
    linked = pairs & close
    linked = linked | (same & ~linked.any(axis=1, keepdims=True))
    return linked / linked.sum(axis=1, keepdims=True)


def mean_of_neighbourhoods(graph: Graph) -> optax.GradientTransformation:
    """The server's rule, after `every_change`: Q <- mean_u r_u over the clients that took part.

    Args:
        graph: who is a neighbour of whom.

    Returns:
        a rule without a state; the mean is one product of all changes with a weight for each.

    Example:
        >>> rule = mean_of_neighbourhoods(Graph(True, 1.0))
        >>> negated = Server({"sent": -jnp.ones(2)}, {"vector": jnp.array([[[-1.0]], [[-3.0]]])})
        >>> rule.update(negated, (), Server({}, {"vector": jnp.zeros((1, 1))}))[0].tables["vector"].tolist()
        [[2.0]]

    Source: Zhang et al. 2024, "GPFedRec", eq. 7 and algorithm 1.
    """

    def update(updates: Server, state: PyTree, params: Server | None = None) -> tuple[Server, PyTree]:
        changes, sent = _read(updates)
        # the mean of the rows of A weighs each client's change [I, D]
        share = (sent / jnp.maximum(sent.sum(), 1)) @ _weights_of(graph, params, changes, sent)
        return Server({}, {"vector": jnp.tensordot(share, changes, 1)}), state

    return optax.GradientTransformation(lambda _: (), cast("Any", update))


def send_neighbourhoods(graph: Graph, stack: Stack, server: Server, private: PyTree) -> PyTree:
    """Send r_u = Q + sum_v A_uv (Q_v - Q) to each client that took part.

    Args:
        graph: who is a neighbour of whom.
        stack: the clients' changes.
        server: with Q, tables {"vector" [I, D]}.
        private: the clients' leaves [C, ...], "near" among them.

    Returns:
        private leaves, of which "near" [C, I, D] is r_u for who took part, and what it was for others.

    Example:
        >>> changes = jnp.array([[[1.0]], [[2.0]]])
        >>> sent = jnp.array([True, False])
        >>> stack = Stack(Server({}, {"vector": changes}), sent, sent[:, None], jnp.ones(2))
        >>> server, old = Server({}, {"vector": jnp.ones((1, 1))}), {"near": jnp.zeros((2, 1, 1))}
        >>> send_neighbourhoods(Graph(True, 1.0), stack, server, old)["near"].tolist()
        [[[2.0]], [[0.0]]]
    """
    # what the rule is given, so that one graph is compiled for both
    negated = jax.tree.map(jnp.negative, _pass_through(stack))
    changes, sent = _read(negated)
    # r_u [C, I, D] of all clients
    weights = _weights_of(graph, server, changes, sent)
    mixed = multiply_in_shares(weights, changes.reshape(len(sent), -1), graph.mesh)
    near = server.tables["vector"][None] + mixed.reshape(changes.shape)
    return {**private, "near": jnp.where(sent[:, None, None], near, private["near"])}


def _pass_through(stack: Stack) -> Server:
    return Server({"sent": stack.sent.astype(jnp.float32)}, stack.deltas.tables)


def _read(updates: Server) -> tuple[jax.Array, jax.Array]:
    """Each client's change and whether it took part, of the negated aggregate that optax's rules are given."""
    return -updates.tables["vector"], updates.shared["sent"] < 0


def _weights_of(graph: Graph, server: Server | None, changes: jax.Array, sent: jax.Array) -> jax.Array:
    """A of the tables Q + changes [C, I, D]."""
    assert server is not None  # noqa: S101 - the round hands the parameters on; this tells the type checker
    tables = server.tables["vector"][None] + changes
    return neighbours(graph, tables.reshape(len(sent), -1), sent)
