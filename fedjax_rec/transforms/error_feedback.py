"""Error feedback: what a compressor did not send is kept for the next round.

What is kept is private, one dense table of the model's shapes for each client: N x I x D numbers in all (ML-1M
with D = 32: 2.9 GB). It is for biased compressors, `top_k` and `sign`. An unbiased one does not need it; and where
the error exceeds the update (NMSE above 1: `rand_k` below 1/2, `low_rank` below W / 2, `qsgd` and `terngrad` of
many numbers) what is kept grows for ever.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.rows.tables import add_rows, expand, num_rows, read_rows
from fedjax_rec.transforms.base import Bound, Transform
from fedjax_rec.types import Key, PyTree, Server, Update


def error_feedback(compressor: Transform) -> Transform:
    """Add what was not sent before to what is to be sent now, and remember what is not sent this time.

    s_t = Q(x_t + m_t), m_{t+1} = x_t + m_t - s_t, so that s_0 + ... + s_t + m_{t+1} = x_0 + ... + x_t. Only rows
    that the client touches in a round are read and written; the others wait.

    Args:
        compressor: of `compression` or `sparsification`; it leaves rows in their slots.

    Returns:
        a transform with a state.

    Raises:
        ValueError: if the compressor has a state itself; in use, if a client sends other shapes than the model's,
            or if no state is kept.

    Example:
        >>> from fedjax_rec.transforms.sparsification import top_k
        >>> server = Server({}, jnp.ones((1, 2)))
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 2.0]]), jnp.float32(1))
        >>> feedback = error_feedback(top_k(0.5))
        >>> sent, state = feedback.update_with_state(jax.random.key(0), one, feedback.init(server), server)
        >>> feedback.update_with_state(jax.random.key(0), one, state, server)[0].rows.tolist()
        [[0.0, 4.0]]

    Source: Karimireddy et al. 2019, "Error feedback fixes SignSGD and other gradient compression schemes",
    algorithm 1; Seide et al. 2014, "1-bit stochastic gradient descent".
    """
    if compressor.update_with_state is not None:
        raise ValueError(
            f"{compressor.name} has a memory already; give error_feedback a compressor without one"
        )
    name = f"error_feedback({compressor.name})"

    def update_with_state(key: Key, sent: Update, residual: Server, server: Server) -> tuple[Update, Server]:
        _check_shapes(sent, residual)
        # x_t + m_t: the residual of a row that stands in two slots is added in the first.
        first = _first_slots(sent.ids, num_rows(residual.tables))
        residual_rows = jax.tree.map(
            lambda x: jnp.where(expand(first, x), x, 0), read_rows(residual.tables, sent.ids)
        )
        shared = jax.tree.map(jnp.add, sent.shared, residual.shared)
        corrected = sent._replace(shared=shared, rows=jax.tree.map(jnp.add, sent.rows, residual_rows))
        # s_t, and what it leaves of x_t + m_t.
        coded = compressor.update(key, corrected, server)
        shared, rows = jax.tree.map(
            jnp.subtract, (corrected.shared, corrected.rows), (coded.shared, coded.rows)
        )
        # m_{t+1}: rows that were sent have the new residual, that of a row in two slots the sum of both.
        tables = jax.tree.map(lambda t: t.at[sent.ids].set(0, mode="drop"), residual.tables)
        return coded, Server(shared, add_rows(tables, sent.ids, rows))

    def update(*_: PyTree) -> Update:
        raise ValueError(
            f"{name} is of no use without its memory; call `update_with_state`, or use {compressor.name}"
        )

    def bound(known: Bound) -> Bound:
        inner = known if compressor.bound is None else compressor.bound(known)
        return inner._replace(
            norm=None,
            after=(*known.after, name),
            coded_by=name if inner.coded_by else "",
            sparsified_by=known.sparsified_by or (name if inner.sparsified_by else ""),
        )

    def init(server: Server) -> Server:
        return jax.tree.map(jnp.zeros_like, server)

    return Transform(
        name, update, wire=compressor.wire, bound=bound, init=init, update_with_state=update_with_state
    )


def _first_slots(ids: jax.Array, items: int) -> jax.Array:
    """Which slots name their row first, bool[R]; empty ones do not."""
    slots = jnp.arange(ids.size)
    first = jnp.full(items, ids.size).at[ids].min(slots, mode="drop")
    return first.at[ids].get(mode="fill", fill_value=-1) == slots


def _check_shapes(sent: Update, residual: Server) -> None:
    def shapes(tree: PyTree, start: int) -> PyTree:
        return jax.tree.map(lambda x: x.shape[start:], tree)

    if (shapes(sent.shared, 0), shapes(sent.rows, 1)) != (
        shapes(residual.shared, 0),
        shapes(residual.tables, 1),
    ):
        raise ValueError(
            "error_feedback keeps numbers of the model's shapes, and this algorithm's clients send others; use an "
            "unbiased compressor, which needs no memory"
        )
