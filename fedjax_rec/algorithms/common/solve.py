"""The exact local solve of alternating least squares: a client's vector from its normal equations.

With the item vectors y_i fixed, client u's vector p_u minimises a weighted sum of squares, so that it solves

    (e Y^T Y + w sum over i in I_u of y_i y_i^T + r 1) p_u = g sum over i in I_u of y_i,

I_u being its own items. Only they are read: all others enter by the Gram matrix Y^T Y, which the server sends.
It also sends the numbers that e, w, g and r are made of, which may follow from the size of the data.

A client goes over its history twice. The first pass sums the left and the right side; between them comes the
Cholesky solve; the second makes of p_u and each row what is sent.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.client.batches import with_negatives
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.data.defaults import Size
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import (
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

Send = Callable[[PyTree, jax.Array, jax.Array], PyTree]  # (weights, p_u [D], rows [B, D]) -> leaves [B, ...]
Dense = Callable[[jax.Array], PyTree]  # p_u [D] -> what is sent besides the rows


class Equations(NamedTuple):
    """The normal equations of a client, from the weights that the server sends, a tree of numbers."""

    weights: Callable[[Size], PyTree]  # what is sent, from the size of the data
    everywhere: Callable[[PyTree], Any]  # e, of every pair
    own: Callable[[PyTree], Any]  # w, of an own item besides
    gain: Callable[[PyTree], Any]  # g, of the right side
    ridge: Callable[[PyTree, Any, int], Any]  # (weights, number of own items, I) -> r


class Local(NamedTuple):
    """What a client knows while it works."""

    matrix: jax.Array  # float32[D, D], the left side so far, without the ridge
    target: jax.Array  # float32[D], sum of the own rows so far
    vector: jax.Array  # float32[D], p_u, from the second pass on
    passes: jax.Array  # int32[], passes begun
    weights: PyTree  # as the server sent them


def exact_solve(
    equations: Equations, batch_size: int, send: Send, dense: Dense, *, sum_by_item: Callable | None = None
) -> ClientWork:
    """Solve for the private leaf "vector", then send.

    Args:
        equations: the weights of the normal equations.
        batch_size: rows in a local batch B; the result does not depend on it.
        send: what is sent for each own row.
        dense: what is sent besides.
        sum_by_item: a shorter way to the sums of what is sent for rows, as in `RowUpload`.

    Returns:
        work over shared {"gram": [D, D], "weights"} and tables {"vector": [I, D]}.

    Example:
        >>> one = lambda weights: 1.0
        >>> rule = Equations(lambda size: {}, one, one, one, lambda weights, own, items: 0.1 * own)
        >>> exact_solve(rule, 8, lambda weights, vector, rows: {}, lambda vector: {}).epochs
        2
    """

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> Local:
        del key, context
        vector = private["vector"]
        weights = shared["weights"]
        everywhere = equations.everywhere(weights) * shared["gram"]
        return Local(everywhere, jnp.zeros_like(vector), vector, jnp.int32(1), weights)

    def step(local: Local, rows: Rows, batch: Batch, context: Context) -> tuple[Local, Rows, StepInfo]:
        del context
        vectors = rows.values["vector"]
        reading = local.passes == 1

        # the first pass sums both sides of the normal equations
        moment = equations.own(local.weights) * jnp.einsum("bd,be->de", vectors, vectors, precision="highest")
        local = local._replace(
            matrix=local.matrix + jnp.where(reading, moment, 0.0),
            target=local.target + jnp.where(reading, vectors.sum(0), 0.0),
        )

        # the second, which has their solution, sends; its misses are the loss
        counted = jnp.where(reading, 0.0, batch.data["mask"])
        misses = counted * (1 - vectors @ local.vector) ** 2
        return local, rows, StepInfo(misses.sum(), counted.sum())

    def end_epoch(local: Local, context: Context) -> Local:
        ridge = equations.ridge(local.weights, context.num_examples, context.num_items)
        matrix = local.matrix + jnp.asarray(ridge, jnp.float32) * jnp.eye(len(local.target))
        vector = solve_spd(matrix, equations.gain(local.weights) * local.target)
        return local._replace(vector=vector, passes=local.passes + 1)

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        del shared
        return {"vector": local.vector}, dense(local.vector)

    def send_rows(local: Local, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del batch, old
        return send(local.weights, local.vector, rows.values["vector"])

    return ClientWork(
        batches=with_negatives(batch_size, 0),
        epochs=2,
        start=start,
        init_rows=stateless_rows,
        step=step,
        finish=finish,
        end_epoch=end_epoch,
        upload=RowUpload(send_rows, sum_by_item),
    )


def solve_spd(matrix: jax.Array, target: jax.Array) -> jax.Array:
    """Solve A x = b for a symmetric positive definite A.

    On CPUs a batch is solved one by one: jaxlib 0.10.2 factorises a batch in tasks of XLA's thread pool and waits
    for them *on* that pool, so that two batches at a time (two devices, two branches) can wait for ever.

    Args:
        matrix: float32[D, D].
        target: float32[D], or float32[D, K] for K right sides.

    Returns:
        x, of the target's shape.

    Example:
        >>> jnp.round(solve_spd(2 * jnp.eye(2), jnp.array([2.0, 4.0])), 5).tolist()
        [1.0, 2.0]
    """
    return jax.lax.platform_dependent(matrix, target, cpu=_cholesky_in_sequence, default=_cholesky)


def _cholesky(matrix: jax.Array, target: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), target)


_cholesky_in_sequence = jax.custom_batching.sequential_vmap(_cholesky)


def solved_model(dim: int, init_scale: float, equations: Equations, batch_size: int) -> Model:
    """The model s_ui = p_u . y_i whose private vectors are solved for, anew before they score.

    Args:
        dim: D.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)); private ones at 0, for they are solved
            before they are read.
        equations: the weights of the normal equations.
        batch_size: rows in a local batch.

    Returns:
        private {"vector" [D]}, shared {"gram" [D, D], "weights"}, tables {"vector" [I, D]}.

    Example:
        >>> one = lambda weights: 1.0
        >>> rule = Equations(lambda size: {}, one, one, one, lambda weights, own, items: 0.1 * own)
        >>> solved_model(4, 0.1, rule, 8).init_private(jax.random.key(0))["vector"].shape
        (4,)
    """

    def init_private(key: Key) -> PyTree:
        del key
        return {"vector": jnp.zeros(dim)}

    def init_server(key: Key, population: Population) -> Server:
        vectors = normal_rows(key, population.num_items, dim, scale=init_scale / dim**0.5)
        weights = equations.weights(population.size)
        return with_gram(vectors, jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights))

    def score(private: PyTree, server: Server) -> jax.Array:
        return server.tables["vector"] @ private["vector"]

    solve = exact_solve(equations, batch_size, lambda weights, vector, rows: {}, lambda vector: {})  # noqa: ARG005
    return Model(init_private, init_server, score, represent=solve)


def with_gram(vectors: jax.Array, weights: PyTree) -> Server:
    """The server's parameters for these item vectors.

    Args:
        vectors: Y, float32[I, D].
        weights: of the equations.

    Returns:
        shared {"gram": Y^T Y, "weights"}, tables {"vector": Y}.

    Example:
        >>> with_gram(jnp.ones((3, 1)), {}).shared["gram"].tolist()
        [[3.0]]
    """
    gram = jnp.einsum("id,ie->de", vectors, vectors, precision="highest")
    return Server({"gram": gram, "weights": weights}, {"vector": vectors})


def check_settings(**settings: tuple[Any, float]) -> None:
    """Refuse numbers that are too small.

    Args:
        **settings: (value, minimum) by name.

    Raises:
        ValueError: naming the first.

    Example:
        >>> check_settings(dim=(0, 1))
        Traceback (most recent call last):
        ValueError: dim must be at least 1 and finite, not 0
    """
    for name, (value, minimum) in settings.items():
        if isinstance(value, (int, float)) and not minimum <= value < float("inf"):
            raise ValueError(f"{name} must be at least {minimum} and finite, not {value}")


def check_ridge(regularisation: float | jax.Array | None) -> None:
    """Refuse a penalty with which normal equations need not have a solution; a traced one, or none, is fine.

    Args:
        regularisation: the ridge, or what it is made of.

    Raises:
        ValueError: if it is not a finite number above 0.

    Example:
        >>> check_ridge(0.0)
        Traceback (most recent call last):
        ValueError: regularisation must be a finite number above 0, not 0.0
    """
    if isinstance(regularisation, (int, float)) and not 0 < regularisation < float("inf"):
        raise ValueError(f"regularisation must be a finite number above 0, not {regularisation}")
