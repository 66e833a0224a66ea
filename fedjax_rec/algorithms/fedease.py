"""Federated EASE (`fedease`): a linear autoencoder over items, whose only statistic is a sum over clients.

Steck 2019, "Embarrassingly shallow autoencoders for sparse data" (doi:10.1145/3308558.3313710), sections 2 and
3.1, as in `fedjax_rec.evaluation.central.ease`. With x_u in {0, 1}^I a client's history, its weights need no more
than

    G = sum_u x_u x_u^T,        P = (G + lambda 1)^-1,        B_ij = -P_ij / P_jj  for i != j,    B_jj = 0.

A client sends x_u for each of its own rows of G, the server adds up and inverts. Everything that is summed is a
whole number, so that secure aggregation in fixed point changes no bit. One round with all clients is centralised
EASE to the letter: the price of federation is 0, and so is the number of further rounds. A client's scores are the
sum of its own rows of B, whether it ever took part or not.

Departures from the paper, which has no clients:

* lambda is in units of the square root of the number of events that were summed, as the central default is;
* float32 and a Cholesky factorisation on the server;
* partial participation: see `memory`.

What it costs: a client sends n_u I numbers, and downloads I^2. What it reveals without secure aggregation: all of
its history, for x_u *is* the history.
"""

from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.aggregators import named
from fedjax_rec.algorithms.solve import check_ridge, check_settings, own_rows, solve_spd
from fedjax_rec.federate import Cohorts, federate, sample_usually
from fedjax_rec.population import Population
from fedjax_rec.samplers import everyone
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Key,
    Model,
    PyTree,
    Rows,
    Server,
    StepInfo,
)


class Local(NamedTuple):
    """What a client knows while it works."""

    history: jax.Array  # float32[I], x_u as far as it was read
    scores: jax.Array  # float32[I], sum of the own rows of B
    passes: jax.Array  # int32[], passes begun


def fedease(
    *,
    regularisation: float | jax.Array = 1.0,
    memory: float | jax.Array = 0.0,
    batch_size: int = 16,
    aggregator: Aggregator | str = "sum",
    **federation: Unpack[Cohorts],
) -> Algorithm:
    """Federated EASE: item-item weights in closed form, after one round of everybody.

    Server:  P = (G + lambda sqrt(trace G) 1)^-1,  B_ij = -P_ij / P_jj,  B_jj = 0, with G the cohort's sum of x_u
    x_u^T. Client u:  s_u = sum over own i of B_i.

    All clients take part unless `cohort` or `sampler` is given. Then, with `memory=0`, the weights are those of
    the cohort alone; with `memory` m > 0 the server keeps the running sum G <- m G + (the cohort's sum), as in
    `fedals`.

    Args:
        regularisation: lambda, above 0, in units of the square root of the number of events in G.
        memory: m, in [0, 1), the share of the earlier rounds' sum that the server keeps.
        batch_size: own items in a local batch B; for speed and memory only: a lane sends B I numbers at a time.
        aggregator: "sum", or `fixed_point(total(), ...)`; "mean" makes G smaller, so that lambda weighs more.
        federation: who takes part and what travels: as in `federate`. The server's rule is its own.

    Returns:
        the algorithm. It holds two tables of I^2 numbers, and I numbers of each client.

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
    check_settings(batch_size=(batch_size, 1))
    check_ridge(regularisation)
    if isinstance(memory, (int, float)) and not 0 <= memory < 1:
        raise ValueError(
            f"memory must be at least 0 and below 1, not {memory}; 1 - cohort / clients is a good one"
        )
    rule = named(aggregator) if isinstance(aggregator, str) else aggregator
    if rule.stacked or rule.by_row or rule.hears_losses:
        raise ValueError(
            "fedease inverts a sum; a normaliser of single rows, a median, or weights by losses would make "
            "another matrix of it: use --aggregator sum"
        )
    sample_usually(federation, everyone())
    return federate(
        item_weights(batch_size),
        _count_pairs(batch_size),
        aggregator=rule,
        server_optimizer=_closed_form(regularisation, memory),
        **federation,
    )


def item_weights(batch_size: int) -> Model:
    """The model s_ui = sum over own j of B_ji, of which the private part is nothing but the scores.

    Args:
        batch_size: own items in a local batch.

    Returns:
        private {"scores" [I]}, tables {"weight" [I, I]}, row: the item of the history, column: the item to score.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> item_weights(8).init_server(jax.random.key(0), tiny_population()).tables["weight"].shape
        (40, 40)
    """

    def init_server(key: Key, population: Population) -> Server:
        del key
        return Server({}, {"weight": jnp.zeros((population.num_items, population.num_items))})

    return Model(
        lambda key: {},  # noqa: ARG005 - nothing private is random
        init_server,
        lambda private, server: private["scores"],  # noqa: ARG005 - the client has read its rows
        represent=_count_pairs(batch_size),
        init_alike=lambda key, server: {"scores": jnp.zeros_like(server.tables["weight"][0])},  # noqa: ARG005
    )


def _count_pairs(batch_size: int) -> ClientWork:
    """Read the history and score in the first pass, send x_u for every own row in the second."""

    def start(key: Key, private: PyTree, shared: PyTree) -> Local:
        del key, shared
        nothing = jnp.zeros_like(private["scores"])
        return Local(nothing, nothing, jnp.int32(0))

    def step(local: Local, rows: Rows, batch: Batch) -> tuple[Local, Rows, StepInfo]:
        passes = local.passes + batch.data["first"].any()
        reading = passes == 1
        scores = local.scores + jnp.where(reading, rows.values["weight"].sum(0), 0.0)
        history = local.history.at[batch.ids].set(1.0, mode="drop")
        misses = (1 - scores.at[batch.ids].get(mode="fill", fill_value=1.0)) ** 2
        counted = jnp.where(reading, 0.0, batch.data["mask"])
        info = StepInfo((counted * misses).sum(), counted.sum())
        return Local(history, scores, passes), rows, info

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        del shared
        return {"scores": local.scores}, {}

    def send(local: Local, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del rows, old
        return {"pairs": jnp.broadcast_to(local.history, (len(batch.ids), *local.history.shape))}

    return ClientWork(
        own_rows(batch_size), 2, start, lambda values: Rows(values, ()), step, None, finish, send=send
    )


def _closed_form(strength: float | jax.Array, memory: float | jax.Array) -> optax.GradientTransformation:
    """The server's rule: add up, invert."""

    def init(server: Server) -> PyTree:
        return jnp.zeros_like(server.tables["weight"]) if _remembers(memory) else ()

    def update(updates: Server, state: PyTree, params: Server | None = None) -> tuple[Server, PyTree]:
        if params is None:
            raise ValueError("the closed form needs the parameters: call update(updates, state, params)")
        pairs = -updates.tables["pairs"]
        if _remembers(memory):
            state = pairs = memory * state + pairs
        old = params.tables["weight"]
        events = jnp.trace(pairs)
        new = jnp.where(events > 0, weigh(pairs, strength * jnp.sqrt(events)), old)
        return Server({}, {"weight": new - old}), state

    return optax.GradientTransformation(init, update)


def _remembers(memory: float | jax.Array) -> bool:
    return not isinstance(memory, (int, float)) or memory > 0


def weigh(pairs: jax.Array, ridge: jax.Array) -> jax.Array:
    """EASE's weights: B_ij = -P_ij / P_jj, B_jj = 0, with P = (G + ridge 1)^-1.

    Args:
        pairs: G, float32[I, I], symmetric, the number of clients that have both items.
        ridge: float32[].

    Returns:
        B, float32[I, I].

    Example:
        >>> weigh(jnp.array([[3.0, 1.0], [1.0, 3.0]]), 1.0).tolist()
        [[0.0, 0.25], [0.25, 0.0]]

    Source: Steck 2019, equation 8.
    """
    one = jnp.eye(len(pairs))
    ridge = jnp.where(ridge > 0, ridge, 1.0)  # a round of nobody is thrown away, and still computed
    inverse = solve_spd(pairs + ridge * one, one)
    return jnp.where(one > 0, 0.0, -inverse / jnp.diagonal(inverse)[None, :])
