"""Matrix factorisation by uploaded gradients (`fedsgd_mf`).

Chai et al. 2020, "Secure federated matrix factorization" (IEEE Intelligent Systems, arXiv:1906.05108), section 4,
and the authors' code. In every round a client goes once over its ratings, **in the order of the data**. For each:

    e = r - u . v_i
    u <- u - lr (-2 e v_i + 2 lambda u)
    g_i = lr (-2 e u + 2 lambda v_i)          with the new u

The item vectors rest while it does so. It sends g_i for its rated items, and the server does V <- V - sum_u g_u.

Departures:

* what the cipher does to the numbers is simulated, not the cipher: `quantum` rounds what is sent to multiples of
  16^-5, the fixed point of the authors' encryption (python-paillier with precision=1e-5), and V at the start. The
  traffic reported is that of plain numbers for the rated rows (the paper's "PartText"); "FullText" sends zeros for
  all other items, with the same result;
* the code starts all vectors at 0.01, which leaves a model of rank 1 in D equal columns. Here they start at random
  unless `constant` says otherwise;
* the paper trains all users in each round; here a cohort, unless `sampler` says otherwise.
"""

from typing import Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import in_order
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import FederationSettings, federate
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


@register(rounds=100, needs_ratings=True)
def fedsgd_mf(
    *,
    dim: int = 100,
    batch_size: int = 32,
    learning_rate: float | jax.Array = 1e-3,
    regularisation: float = 1e-4,
    init_scale: float = 0.1,
    constant: float | None = None,
    quantum: float = 0.0,
    aggregator: Aggregator | str = "sum",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """Sequential SGD on the user vector, gradients of the item vectors to the server.

    Args:
        dim: D, width of the vectors.
        batch_size: ratings in a local batch; for speed only, since a client passes them one by one.
        learning_rate: lr, also of the gradients that are sent.
        regularisation: lambda.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        constant: all numbers of all vectors start at this; 0.01 in the authors' code.
        quantum: what is sent is a multiple of this, 16**-5 in the authors' code; 0 rounds nothing.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`; "sum" in the paper.
        federation: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a setting is out of range, or the data has no ratings.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedsgd_mf(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        23
    """
    check_arguments(fedsgd_mf, locals())
    at_least(1, dim=dim, batch_size=batch_size)
    at_least(
        0, learning_rate=learning_rate, regularisation=regularisation, init_scale=init_scale, quantum=quantum
    )
    return federate(
        _model(dim, init_scale, constant, quantum),
        _work(batch_size, learning_rate, regularisation, quantum),
        aggregator=aggregator,
        **federation,
    )


def _model(dim: int, init_scale: float, constant: float | None, quantum: float) -> Model:
    def draw(key: Key, shape: tuple[int, ...]) -> jax.Array:
        if constant is not None:
            return jnp.full(shape, constant)
        return init_scale / dim**0.5 * jax.random.normal(key, shape)

    def init_server(key: Key, population: Population) -> Server:
        if "ratings" not in population.examples:
            raise ValueError("fedsgd_mf fits ratings, but this data has none; use fedmf with loss 'bce'")
        return Server((), {"vector": _round(draw(key, (population.num_items, dim)), quantum)})

    def score(private: PyTree, server: Server) -> jax.Array:
        return server.tables["vector"] @ private["vector"]

    return Model(lambda key: {"vector": draw(key, (dim,))}, init_server, score, predicts_ratings=True)


def _round(x: jax.Array, quantum: float) -> jax.Array:
    return quantum * jnp.round(x / quantum) if quantum else x


def _work(batch_size: int, lr: float | jax.Array, regularisation: float, quantum: float) -> ClientWork:
    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, shared, context
        return private

    def init_rows(values: PyTree) -> Rows:
        return Rows(values, jax.tree.map(jnp.zeros_like, values))  # the vectors, and their gradients

    def visit(u: jax.Array, example: tuple) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """One rating: the user's new vector; the gradient of the item's, and the squared error."""
        v, rating, mask = example
        error = rating - u @ v
        u = u - mask * lr * (-2 * error * v + 2 * regularisation * u)
        return u, (lr * (-2 * error * u + 2 * regularisation * v), mask * error**2)

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        # one rating after the other; the item vectors rest, and their gradients [B, D] wait with them
        examples = rows.values["vector"], batch.data["rating"], batch.data["mask"]
        u, (grads, squares) = jax.lax.scan(visit, local["vector"], examples)
        rows = rows._replace(opt_state={"vector": _round(grads, quantum)})
        return {"vector": u}, rows, StepInfo(squares.sum(), batch.data["mask"].sum())

    def send(local: PyTree, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local, batch, old
        return jax.tree.map(jnp.negative, rows.opt_state)

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        return local, jax.tree.map(jnp.zeros_like, shared)

    return ClientWork(in_order(batch_size), 1, start, init_rows, step, finish, upload=RowUpload(send))
