"""Error feedback: the memory of what a compressor did not send.

The memory is private, one dense table of the model's shapes for each client: N x I x D numbers in all (ML-1M with
D = 32: 2.9 GB). It is for biased compressors, `top_k` and `sign`. An unbiased one does not need it; and where the
error exceeds the update (NMSE above 1: `rand_k` below 1/2, `low_rank` below W / 2, `qsgd` and `terngrad` of many
numbers) the memory grows for ever.
"""

import jax
import jax.numpy as jnp

from fedjax_rec.tables import add_rows, expand, num_rows, read_rows
from fedjax_rec.types import Bound, Key, PyTree, Server, Transform, Update


def error_feedback(compressor: Transform) -> Transform:
    """Add what was not sent before to what is to be sent now, and remember what is not sent this time.

    s_t = Q(x_t + m_t), m_{t+1} = x_t + m_t - s_t, so that s_0 + ... + s_t + m_{t+1} = x_0 + ... + x_t. Only rows
    that the client touches in a round are read and written; the others wait.

    Args:
        compressor: of `compression` or `sparsifiers`, or `quantise`; it leaves rows in their slots.

    Returns:
        a transform with a memory.

    Raises:
        ValueError: if the compressor has a memory itself; in use, if a client sends other shapes than the model's,
            or if no memory is kept.

    Example:
        >>> from fedjax_rec.sparsifiers import top_k
        >>> server = Server({}, jnp.ones((1, 2)))
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 2.0]]), jnp.float32(1))
        >>> feedback = error_feedback(top_k(0.5))
        >>> sent, memory = feedback.remember(jax.random.key(0), one, feedback.init(server), server)
        >>> feedback.remember(jax.random.key(0), one, memory, server)[0].rows.tolist()
        [[0.0, 4.0]]

    Source: Karimireddy et al. 2019, "Error feedback fixes SignSGD and other gradient compression schemes",
    algorithm 1; Seide et al. 2014, "1-bit stochastic gradient descent".
    """
    if compressor.remember is not None:
        raise ValueError(
            f"{compressor.name} has a memory already; give error_feedback a compressor without one"
        )
    name = f"error_feedback({compressor.name})"

    def remember(key: Key, sent: Update, memory: Server, server: Server) -> tuple[Update, Server]:
        _check_shapes(sent, memory)
        first = _first_slots(sent.ids, num_rows(memory.tables))
        waiting = jax.tree.map(
            lambda x: jnp.where(expand(first, x), x, 0), read_rows(memory.tables, sent.ids)
        )
        shared = jax.tree.map(jnp.add, sent.shared, memory.shared)
        due = sent._replace(shared=shared, rows=jax.tree.map(jnp.add, sent.rows, waiting))
        coded = compressor.update(key, due, server)
        left, rows = jax.tree.map(jnp.subtract, (due.shared, due.rows), (coded.shared, coded.rows))
        # a row that stands in two slots leaves the sum of both
        tables = jax.tree.map(lambda t: t.at[sent.ids].set(0, mode="drop"), memory.tables)
        return coded, Server(left, add_rows(tables, sent.ids, rows))

    def forget(*_: PyTree) -> Update:
        raise ValueError(f"{name} is of no use without its memory; call `remember`, or use {compressor.name}")

    def bound(known: Bound) -> Bound:
        inner = known if compressor.bound is None else compressor.bound(known)
        return Bound(None, inner.deviation, (*known.after, name))

    def init(server: Server) -> Server:
        return jax.tree.map(jnp.zeros_like, server)

    return Transform(name, forget, wire=compressor.wire, bound=bound, init=init, remember=remember)


def _first_slots(ids: jax.Array, items: int) -> jax.Array:
    """Which slots name their row first, bool[R]; empty ones do not."""
    places = jnp.arange(ids.size)
    first = jnp.full(items, ids.size).at[ids].min(places, mode="drop")
    return first.at[ids].get(mode="fill", fill_value=-1) == places


def _check_shapes(sent: Update, memory: Server) -> None:
    def shapes(tree: PyTree, start: int) -> PyTree:
        return jax.tree.map(lambda x: x.shape[start:], tree)

    if (shapes(sent.shared, 0), shapes(sent.rows, 1)) != (shapes(memory.shared, 0), shapes(memory.tables, 1)):
        raise ValueError(
            "error_feedback keeps numbers of the model's shapes, and this algorithm's clients send others; use an "
            "unbiased compressor, which needs no memory"
        )
