"""Additive personalisation (`fedrap`): a whole private item table, added to a shared one.

Li et al. 2024, "Federated recommendation with additive personalization" (ICLR), algorithm 1, with the constants of
its official code (github.com/mtics/FedRAP, README). A client keeps a table D_u and a head (w_u, b_u), receives the
shared table C, and scores an item by D_u + C. Only C is sent and averaged.

**Memory**: private leaves are N x I x D numbers, 200 MB on ML-100K and 2.9 GB on ML-1M, where they wait in host
memory and 64 clients at a time go to the device (`streaming`): a run's peak there is 3.8 GiB, 6.3 with a copy of
the best state so far, and was 8.7 with all on one device. Training itself takes lanes x I x D. Rows that a client
has not touched only decay, but each round's negatives are new: 20 rounds touch 98 % of ML-1M's rows (by the mean
history), so that keeping touched rows alone would save nothing.

Departures:

* the weight of the term that drives D_u and C apart, lambda, is 0 and not 0.1: -lambda |D_u - C|^2 has no lower
  bound, and with 0.1 training collapses after a few rounds (`experiments/fedrap`);
* the curriculum of the paper (lambda and mu grow with tanh(round / 10)) is off by default: the code computes it
  and never uses it;
* negatives are distinct and drawn anew in each round; the code's, which can repeat, once for all rounds. The code
  draws the order of a client's examples anew in each local epoch, which matters where they exceed a batch;
* penalties average over a batch's distinct rows, as everything here does;
* the code selects the round by the test set, and spares held-out items as negatives (`--negatives paper-leaky`).
"""

from functools import partial
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.additive import Objective, View, additive_gradient, additive_logits, descend
from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.pfedrec import linear_head
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import catalogue, largest_of_lanes
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate, set_default_sampler
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.server.optimizers import scheduled_by_round
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    Model,
    PyTree,
    Rows,
    Server,
    StepInfo,
)


class Pace(NamedTuple):
    """The rates of local descent, how they fall, and when a client stops."""

    head: float | jax.Array
    tables: float | jax.Array
    round_decay: float  # of both rates, each round
    step_decay: float  # of both rates, each local step
    tolerance: float  # relative change of the loss below which a client stops

    def scaled(self, decay: jax.Array) -> "Pace":
        """Both rates times a factor."""
        return self._replace(head=self.head * decay, tables=self.tables * decay)


class Course(NamedTuple):
    """Where one client is in its local epochs."""

    view: View
    steps: jax.Array  # float32[]
    loss: jax.Array  # float32[], summed over examples and epochs so far
    examples: jax.Array  # float32[], as often as they were visited
    stopped: jax.Array  # bool[]


@register(rounds=60, eval_every=2)
def fedrap(
    *,
    dim: int = 32,
    num_negatives: int = 4,
    batch_size: int = 2048,
    local_epochs: int = 10,
    learning_rate: float | jax.Array = 1e-4,
    table_rate: float | jax.Array = 1e3,
    independence: float | jax.Array = 0.0,
    sparsity: float | jax.Array = 1e-3,
    regularisation: float | jax.Array = 1e-6,
    round_decay: float = 0.97,
    step_decay: float = 0.95,
    tolerance: float = 1e-4,
    curriculum: bool = False,
    aggregator: Aggregator | str = "mean",
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """FedRAP, with score s_u(i) = w_u . (d_ui + c_i) + b_u; D_u, w_u and b_u are private, C is shared.

    On each mini-batch B a client descends, over the rows of B,

        mean BCE(sigmoid(s)) - lambda mean (d - c)^2 + mu mean |c|,    and all leaves decay by L2

    at rates `learning_rate` (head) and `table_rate` (D_u, C), times round_decay^round step_decay^step. It stops
    when its mean loss so far changes by less than `tolerance`, relatively, from one epoch to the next.

    Args:
        dim: D, width of the item rows.
        num_negatives: negatives per positive.
        batch_size: examples in a mini-batch, positives and negatives in a random order.
        local_epochs: E, at most so many.
        learning_rate: of the head.
        table_rate: of D_u and C.
        independence: lambda, at least 0.
        sparsity: mu, at least 0.
        regularisation: L2 on all leaves, those of untouched rows included.
        round_decay: factor of both rates from round to round.
        step_decay: factor of both rates from step to step within a client's round.
        tolerance: 0 never stops early.
        curriculum: whether lambda and mu grow with tanh(round / 10).
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part (by default everyone) and what travels: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown aggregator, or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedrap(dim=4), tiny_population()
        >>> algorithm.init(jax.random.key(0), population).private["vector"].shape
        (24, 40, 4)

    Source: Li et al. 2024, eq. 5 and algorithm 1.
    """
    check_arguments(fedrap, locals())
    at_least(1, dim=dim, num_negatives=num_negatives, batch_size=batch_size, local_epochs=local_epochs)
    at_least(0, learning_rate=learning_rate, table_rate=table_rate, independence=independence)
    at_least(0, sparsity=sparsity, regularisation=regularisation, tolerance=tolerance)
    at_least(0, round_decay=round_decay, step_decay=step_decay)
    set_default_sampler(federation, everyone())
    objective = Objective(independence, sparsity, regularisation, curriculum)
    pace = Pace(learning_rate, table_rate, round_decay, step_decay, tolerance)
    return federate(
        _additive(dim),
        _training(objective, pace, num_negatives, batch_size, local_epochs),
        aggregator=aggregator,
        server_optimizer=scheduled_by_round(lambda _, tables: jax.tree.map(jnp.negative, tables)),
        **federation,
    )


def _additive(dim: int) -> Model:
    """The model: private D_u and head, which all start alike, shared C, and the number of the round."""

    def init_server(key: Key, population: Population) -> Server:
        table = jax.random.normal(key, (population.num_items, dim))
        return Server({"round": jnp.float32(0)}, {"vector": table})

    def init_common(key: Key, server: Server) -> dict[str, PyTree]:
        table_key, head_key = jax.random.split(key)
        own = jax.random.normal(table_key, server.tables["vector"].shape)
        return {"vector": own, "head": linear_head(head_key, dim)}

    def score(private: PyTree, server: Server) -> jax.Array:
        return additive_logits(View(private["vector"], server.tables["vector"], private["head"]))

    return Model(lambda _: {}, init_server, score, init_common=init_common)


def _training(
    objective: Objective, pace: Pace, num_negatives: int, batch_size: int, epochs: int
) -> ClientWork:
    """Several epochs over mini-batches of one client's examples, all within one visit of the catalogue."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, context
        return private["vector"], private["head"], shared["round"]

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        # weights and rates of this round
        own, head, round_ = local
        growth = objective.growth(round_)
        decay = pace.round_decay**round_
        weights = objective.scaled(growth)
        rates = pace.scaled(decay)
        # the client's epochs, from its table and head and the common table [I, D]
        zero = jnp.float32(0)
        course = Course(View(own, rows.values["vector"], head), zero, zero, zero, jnp.array(False))
        course = jax.lax.fori_loop(0, epochs, partial(_epoch, weights, rates, batch, batch_size), course)
        own, common, head = course.view
        info = StepInfo(course.loss, course.examples)
        return (own, head, round_), rows._replace(values={"vector": common}), info

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        return {"vector": local[0], "head": local[1]}, jax.tree.map(jnp.zeros_like, shared)

    return ClientWork(catalogue(num_negatives), 1, start, stateless_rows, step, finish)


def _epoch(
    objective: Objective, pace: Pace, batch: Batch, size: int, epoch: jax.Array, course: Course
) -> Course:
    """One local epoch; nothing moves once the client has stopped."""
    mini_batch = batch.data["order"] // size  # int32[I], in which an item is
    mask = batch.data["mask"]

    def step(number: jax.Array, course: Course) -> Course:
        # the loss and its gradient on the rows of this mini-batch
        chosen = mask * (mini_batch == number)
        loss, grads = additive_gradient(objective, course.view, chosen, batch.data["label"])
        # one step, but not of a client that has stopped, or has no such mini-batch
        live = ((chosen.sum() > 0) & ~course.stopped).astype(jnp.float32)
        decay = live * pace.step_decay**course.steps
        view = descend(course.view, grads, decay * pace.tables, decay * pace.head)
        loss = course.loss + live * loss
        examples = course.examples + live * chosen.sum()
        return course._replace(view=view, steps=course.steps + live, loss=loss, examples=examples)

    # as many steps on every lane as the longest client takes
    num_steps = largest_of_lanes(jnp.ceil(mask.sum() / size).astype(jnp.int32))
    after = jax.lax.fori_loop(0, num_steps, step, course)
    # a client stops when its mean loss so far has hardly changed
    mean_before, mean_after = (c.loss / jnp.maximum(c.examples, 1.0) for c in (course, after))
    converged = (epoch > 0) & (jnp.abs(mean_after - mean_before) < pace.tolerance * jnp.abs(mean_before))
    return after._replace(stopped=course.stopped | converged)
