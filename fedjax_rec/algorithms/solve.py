"""The exact local solve of alternating least squares: a client's vector from its normal equations.

With the item vectors y_i fixed, client u's vector p_u minimises a weighted sum of squares, so that it solves

    (e Y^T Y + w sum over i in I_u of y_i y_i^T + r 1) p_u = g sum over i in I_u of y_i,

I_u being its own items. Only they are read: all others enter by the Gram matrix Y^T Y, which the server sends.

A client goes over its history twice. The first pass sums the left and the right side; the second begins with the
Cholesky solve and then makes of p_u and each row what is sent.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.batches import with_negatives
from fedjax_rec.population import Population
from fedjax_rec.types import (
    Batch,
    Client,
    ClientWork,
    Key,
    LocalBatches,
    Model,
    PyTree,
    Rows,
    Server,
    StepInfo,
)

Send = Callable[[jax.Array, jax.Array], PyTree]  # (p_u [D], rows [B, D]) -> leaves [B, ...]
Dense = Callable[[jax.Array], PyTree]  # p_u [D] -> what is sent besides the rows


class Equations(NamedTuple):
    """The weights of a client's normal equations."""

    everywhere: float  # e, of every pair
    own: float  # w, of an own item besides
    gain: float  # g, of the right side
    ridge: Callable[[Any, int], Any]  # (number of own items, I) -> r


class Local(NamedTuple):
    """What a client knows while it works."""

    matrix: jax.Array  # float32[D, D], the left side so far, without the ridge
    target: jax.Array  # float32[D], sum of the own rows so far
    vector: jax.Array  # float32[D], p_u, from the second pass on
    passes: jax.Array  # int32[], passes begun


def exact_solve(equations: Equations, batch_size: int, send: Send, dense: Dense) -> ClientWork:
    """Solve for the private leaf "vector", then send.

    Args:
        equations: the weights of the normal equations.
        batch_size: rows in a local batch B; the result does not depend on it.
        send: what is sent for each own row.
        dense: what is sent besides.

    Returns:
        work over shared {"gram": [D, D]} and tables {"vector": [I, D]}.

    Example:
        >>> rule = Equations(0.0, 1.0, 1.0, lambda own, items: 0.1 * own)
        >>> exact_solve(rule, 8, lambda vector, rows: {}, lambda vector: {}).epochs
        2
    """

    def start(key: Key, private: PyTree, shared: PyTree) -> Local:
        del key
        vector = private["vector"]
        return Local(equations.everywhere * shared["gram"], jnp.zeros_like(vector), vector, jnp.int32(0))

    def step(local: Local, rows: Rows, batch: Batch) -> tuple[Local, Rows, StepInfo]:
        vectors, first = rows.values["vector"], batch.data["first"].any()
        passes = local.passes + first
        solving, reading = first & (passes == 2), passes == 1
        normal = local.matrix, local.target, batch.data["ridge"][0]
        vector = _where(solving, partial(_solve, equations), normal, local.vector)
        moment = equations.own * jnp.einsum("bd,be->de", vectors, vectors, precision="highest")
        local = Local(
            local.matrix + jnp.where(reading, moment, 0.0),
            local.target + jnp.where(reading, vectors.sum(0), 0.0),
            vector,
            passes,
        )
        counted = jnp.where(reading, 0.0, batch.data["mask"])
        return local, rows, StepInfo((counted * (1 - vectors @ vector) ** 2).sum(), counted.sum())

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        del shared
        return {"vector": local.vector}, dense(local.vector)

    def send_rows(local: Local, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del batch, old
        return send(local.vector, rows.values["vector"])

    batches = own_rows(batch_size, equations.ridge)
    return ClientWork(batches, 2, start, lambda values: Rows(values, ()), step, None, finish, send=send_rows)


def _where(flag: jax.Array, make: Callable, operands: PyTree, value: jax.Array) -> jax.Array:
    """`make(operands)` if the flag holds, else `value`; on lanes it is made only where one of them asks for it.

    A loop of at most one turn: unlike `lax.cond`, of which vmap makes a selection, it stays a branch. The barrier
    ties the operands to the turn: what does not depend on it XLA would move out of the loop, and do every time.
    """

    def turn(carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        flag, tied = jax.lax.optimization_barrier((carry[0], operands))
        return ~flag, make(tied)

    return jax.lax.while_loop(lambda carry: carry[0], turn, (flag, value))[1]


def _solve(equations: Equations, normal: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    matrix, target, ridge = normal
    return solve_spd(matrix + ridge * jnp.eye(len(target)), equations.gain * target)


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
    return jax.lax.platform_dependent(matrix, target, cpu=_one_by_one, default=_cholesky)


def _cholesky(matrix: jax.Array, target: jax.Array) -> jax.Array:
    return jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(matrix), True), target)


_one_by_one = jax.custom_batching.sequential_vmap(_cholesky)


def _no_ridge(own: Any, items: int) -> float:
    del own, items
    return 0.0


def own_rows(batch_size: int, ridge: Callable[[Any, int], Any] = _no_ridge) -> LocalBatches:
    """A client's own items in batches that say where a pass begins, and how strong the ridge is.

    Args:
        batch_size: items in a batch B.
        ridge: (number of own items, I) -> r.

    Returns:
        local batches with `data` "mask", "first" and "ridge", [B].

    Example:
        >>> own_rows(8).num_batches(9)
        2
    """
    own = with_negatives(batch_size, 0)

    def batch(client: Client, population: Population, t: jax.Array) -> Batch:
        ids, data = own.batch(client, population, t)
        strength = jnp.asarray(ridge(client.num_examples, population.num_items), jnp.float32)
        more = {"first": jnp.broadcast_to(t == 0, ids.shape), "ridge": jnp.broadcast_to(strength, ids.shape)}
        return Batch(ids, data | more)

    return LocalBatches(own.num_batches, batch)


def solved_model(dim: int, init_scale: float, equations: Equations, batch_size: int) -> Model:
    """The model s_ui = p_u . y_i whose private vectors are solved for, anew before they score.

    Args:
        dim: D.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)); private ones at 0, for they are solved
            before they are read.
        equations: the weights of the normal equations.
        batch_size: rows in a local batch.

    Returns:
        private {"vector" [D]}, shared {"gram" [D, D]}, tables {"vector" [I, D]}.

    Example:
        >>> rule = Equations(0.0, 1.0, 1.0, lambda own, items: 0.1 * own)
        >>> solved_model(4, 0.1, rule, 8).init_private(jax.random.key(0))["vector"].shape
        (4,)
    """

    def init_private(key: Key) -> PyTree:
        del key
        return {"vector": jnp.zeros(dim)}

    def init_server(key: Key, population: Population) -> Server:
        return with_gram(init_scale / dim**0.5 * jax.random.normal(key, (population.num_items, dim)))

    def score(private: PyTree, server: Server) -> jax.Array:
        return server.tables["vector"] @ private["vector"]

    solve = exact_solve(equations, batch_size, lambda vector, rows: {}, lambda vector: {})  # noqa: ARG005
    return Model(init_private, init_server, score, represent=solve)


def with_gram(vectors: jax.Array) -> Server:
    """The server's parameters for these item vectors.

    Args:
        vectors: Y, float32[I, D].

    Returns:
        shared {"gram": Y^T Y}, tables {"vector": Y}.

    Example:
        >>> with_gram(jnp.ones((3, 1))).shared["gram"].tolist()
        [[3.0]]
    """
    gram = jnp.einsum("id,ie->de", vectors, vectors, precision="highest")
    return Server({"gram": gram}, {"vector": vectors})


def check_settings(**settings: tuple[float, float]) -> None:
    """Refuse numbers that are too small.

    Args:
        **settings: (value, least value allowed) by name.

    Raises:
        ValueError: naming the first.

    Example:
        >>> check_settings(dim=(0, 1))
        Traceback (most recent call last):
        ValueError: dim must be at least 1 and finite, not 0
    """
    for name, (value, least) in settings.items():
        if isinstance(value, (int, float)) and not least <= value < float("inf"):
            raise ValueError(f"{name} must be at least {least} and finite, not {value}")


def check_ridge(regularisation: float | jax.Array) -> None:
    """Refuse a penalty with which normal equations need not have a solution; a traced one is taken as it is.

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
