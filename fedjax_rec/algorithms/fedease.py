"""Federated EASE (`fedease`): a linear autoencoder over items, whose only statistic is a sum over clients.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (doi:10.1145/3308558.3313710), sections 2 and
3.1, as in `fedjax_rec.evaluation.central.ease`. With x_u in {0, 1}^I a client's history, its weights need no more
than

    G = sum_u x_u x_u^T,        P = (G + lambda 1)^-1,        B_ij = -P_ij / P_jj  for i != j,    B_jj = 0.

A client sends x_u for each of its own rows of G (and a 1, by which lambda knows how many there are), the server
adds up and inverts. Everything that is summed is a whole number, so that secure aggregation in fixed point changes
no bit. One round with all clients is centralised EASE to the letter: the price of federation is 0, and so is the
number of further rounds. A client's scores are the sum of its own rows of B, whether it ever took part or not.

Departures from the paper, which has no clients:

* float32 on the server, which inverts in the memory of G (`common.ease_weights`);
* partial participation: see `memory`.

What it costs: a client sends n_u I numbers, and downloads I^2. The server holds two tables of I^2 numbers, the
weights and the sum that becomes the next ones; clients keep a bit an item. What it reveals without secure
aggregation: all of a client's history, for x_u *is* the history.
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.ease_weights import inversion_dominates, step_to_weights
from fedjax_rec.algorithms.common.histories import num_words, pack_history, pairs_by_item, sum_own_rows
from fedjax_rec.algorithms.common.solve import check_ridge, check_settings
from fedjax_rec.algorithms.registry import one_by_size, register
from fedjax_rec.client.batches import with_negatives
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.data.defaults import Size, ease_penalty
from fedjax_rec.engine.plan import with_inversion
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate, set_default_sampler
from fedjax_rec.samplers.data_independent import Everyone, everyone
from fedjax_rec.server.aggregators import named, total
from fedjax_rec.server.soundness import features_of
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
    RowUpload,
    Server,
    StepInfo,
)


class Local(NamedTuple):
    """What a client knows while it works."""

    history: jax.Array  # float32[I], x_u as far as it was read
    scores: jax.Array  # float32[I], sum of the own rows of B that were read
    passes: jax.Array  # int32[], passes begun


@register(
    rounds=1,
    eval_every=1,
    defaults_by_size=one_by_size("regularisation", ease_penalty),
    server_bound=inversion_dominates,
)
def fedease(
    *,
    regularisation: float | jax.Array | None = None,
    memory: float | jax.Array = 0.0,
    batch_size: int = 16,
    aggregator: Aggregator | str = "sum",
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """Federated EASE: item-item weights in closed form, after one round of everybody.

    Server:  P = (G + lambda 1)^-1,  B_ij = -P_ij / P_jj,  B_jj = 0, with G the cohort's sum of x_u x_u^T.
    Client u:  s_u = sum over own i of B_i.

    All clients take part unless `cohort` or `sampler` is given: a second round would be the first again, and
    `simulate` stops after it (`History.stopped` is "repeats"). With a cohort and `memory=0`, the weights are those
    of the cohort alone; with `memory` m > 0 the server keeps the running sum G <- m G + (the cohort's sum), as in
    `fedals`.

    Args:
        regularisation: lambda, above 0; by default that of central EASE for as many events and clients as are in
            G (`fedjax_rec.data.defaults.ease_penalty`).
        memory: m, in [0, 1), the share of the earlier rounds' sum that the server keeps.
        batch_size: own items in a local batch B; for speed and memory only: a lane sends B I numbers at a time.
        aggregator: "sum", or `fixed_point(total(), ...)`; "mean" makes G smaller, so that lambda weighs more.
        federation: who takes part and what travels: as in `federate`. The server's rule is its own.

    Returns:
        the algorithm. It holds two tables of I^2 numbers, with memory four, and a bit an item of each client.

    Raises:
        ValueError: if a setting is out of range, or the aggregator normalises single rows.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedease(), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients), state.server.tables["weight"].shape
        (23, (40, 40))
    """
    check_arguments(fedease, locals())
    check_settings(batch_size=(batch_size, 1))
    check_ridge(regularisation)
    if isinstance(memory, (int, float)) and not 0 <= memory < 1:
        raise ValueError(
            f"memory must be at least 0 and below 1, not {memory}; 1 - cohort / clients is a good one"
        )
    rule = named(aggregator) if isinstance(aggregator, str) else aggregator
    check_together({Feature.FEDEASE: True, **features_of(rule)})
    set_default_sampler(federation, everyone())
    plain = not _remembers(memory) and _sends_plainly(rule, federation)
    # sums of floats on one device are in one table, whose memory the weights then take
    in_sums = plain and rule == total() and federation.get("mesh") is None
    algorithm = federate(
        item_weights(batch_size),
        _count_pairs(batch_size),
        aggregator=rule,
        server_optimizer=_closed_form(regularisation, memory),
        server_memory=lambda plan, population: with_inversion(plan, population.num_items, in_sums=in_sums),
        **federation,
    )
    return algorithm._replace(repeats=plain and isinstance(federation.get("sampler"), Everyone))


def _sends_plainly(aggregator: Aggregator, federation: RoundSettings) -> bool:
    """Whether the histories of a cohort are summed as they are."""
    changes = ("transform", "adversary", "faults", "asynchronous")
    return aggregator.noise is None and all(federation.get(name) is None for name in changes)


def item_weights(batch_size: int) -> Model:
    """The model s_ui = sum over own j of B_ji, of which the private part is the history alone.

    Args:
        batch_size: own items in a local batch.

    Returns:
        private {"history" [I / 32]}, a bit an item, shared {"clients" []}, how many are in G, tables
        {"weight" [I, I]} with a row for an item of the history and a column for one to score.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> item_weights(8).init_server(jax.random.key(0), tiny_population()).tables["weight"].shape
        (40, 40)
    """

    def init_server(key: Key, population: Population) -> Server:
        del key
        weight = jnp.zeros((population.num_items, population.num_items))
        return Server({"clients": jnp.float32(0)}, {"weight": weight})

    def init_common(key: Key, server: Server) -> dict[str, PyTree]:
        del key
        return {"history": jnp.zeros(num_words(len(server.tables["weight"])), jnp.uint32)}

    return Model(
        lambda key: {},  # noqa: ARG005 - nothing private is random
        init_server,
        lambda private, server: sum_own_rows(private["history"], server.tables["weight"]),
        represent=_read_history(batch_size),
        init_common=init_common,
    )


def _read_history(batch_size: int) -> ClientWork:
    """Keep the history, and send nothing."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> Local:
        del key, private, shared
        zeros = jnp.zeros(context.num_items)
        return Local(zeros, zeros, jnp.int32(1))

    def step(local: Local, rows: Rows, batch: Batch, context: Context) -> tuple[Local, Rows, StepInfo]:
        del context
        history = local.history.at[batch.ids].set(1.0, mode="drop")
        return local._replace(history=history), rows, StepInfo(jnp.float32(0), jnp.float32(0))

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        clients = jnp.ones_like(shared["clients"])  # what G is a sum over
        return {"history": pack_history(local.history)}, {"clients": clients}

    return ClientWork(
        batches=with_negatives(batch_size, 0),
        epochs=1,
        start=start,
        init_rows=stateless_rows,
        step=step,
        finish=finish,
        upload=RowUpload(lambda *_: {}),
    )


def _count_pairs(batch_size: int) -> ClientWork:
    """Read the history and score in the first pass, send x_u for every own row in the second."""
    reading = _read_history(batch_size)

    def step(local: Local, rows: Rows, batch: Batch, context: Context) -> tuple[Local, Rows, StepInfo]:
        # the first pass reads the history, x_u [I], and sums its rows of B to scores [I]; later ones have none
        local, rows, _ = reading.step(local, rows, batch, context)
        scores = local.scores + rows.values["weight"].sum(0)
        # the second, which sends x_u, knows all scores; the misses of its own items are the loss
        misses = (1 - scores.at[batch.ids].get(mode="fill", fill_value=1.0)) ** 2
        counted = jnp.where(local.passes == 1, 0.0, batch.data["mask"])
        info = StepInfo((counted * misses).sum(), counted.sum())
        return local._replace(scores=scores), rows, info

    def end_epoch(local: Local, context: Context) -> Local:
        del context
        return local._replace(passes=local.passes + 1)

    def send(local: Local, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del rows, old
        return {"pairs": jnp.broadcast_to(local.history, (len(batch.ids), *local.history.shape))}

    return reading._replace(
        epochs=2,
        step=step,
        end_epoch=end_epoch,
        upload=RowUpload(send, pairs_by_item, always_shorter=True),
        keeps_rows=False,
    )


def _closed_form(
    strength: float | jax.Array | None, memory: float | jax.Array
) -> optax.GradientTransformation:
    """The server's rule: add up, invert."""

    def init(server: Server) -> PyTree:
        zeros = jnp.zeros_like(server.tables["weight"]), jnp.zeros_like(server.shared["clients"])
        return zeros if _remembers(memory) else ()

    def update(updates: Server, state: PyTree, params: Server | None = None) -> tuple[Server, PyTree]:
        if params is None:
            raise ValueError("the closed form needs the parameters: call update(updates, state, params)")
        # G [I, I], and how many clients it is a sum over, of all rounds that are remembered
        pairs, clients = -updates.tables["pairs"], -updates.shared["clients"]
        if _remembers(memory):
            state = pairs, clients = memory * state[0] + pairs, memory * state[1] + clients
        # a client has I events at most; clipped or with noise the count may be anything
        own = jnp.diagonal(pairs)
        events = own.sum()
        least = events / len(pairs)
        clients = jnp.where(clients > least, clients, least)
        size = Size(num_users=clients, num_items=len(pairs), num_events=events)
        ridge = jnp.asarray(ease_penalty(size) if strength is None else strength, jnp.float32)
        # B [I, I]; a round of nobody leaves it as it is
        step = step_to_weights(pairs, own, ridge, params.tables["weight"])
        count = jnp.where(events > 0, clients, params.shared["clients"])
        return Server({"clients": count - params.shared["clients"]}, {"weight": step}), state

    return optax.GradientTransformation(init, update)


def _remembers(memory: float | jax.Array) -> bool:
    return not isinstance(memory, (int, float)) or memory > 0
