"""Compression to fewer numbers: some of a client's numbers, or a projection of them.

`top_k` and `rand_k` send single numbers of all that a client has (`flattening`), with their addresses: each a
row's id and an index within the row. A row of which nothing is sent, or only zeros, becomes an empty slot: the
server does not hear of it. `qsgd` and `terngrad`, which keep zeros, may follow. `low_rank` sends every row in
fewer numbers; no further compressor may follow.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.tables import num_rows
from fedjax_rec.transforms.base import Transform, Wire
from fedjax_rec.transforms.chaining import compressed_bound
from fedjax_rec.transforms.flattening import Draw, as_matrix, from_matrix, on_numbers
from fedjax_rec.types import KEY_IMPL, Key, Server, Update


def top_k(share: float) -> Transform:
    """Send a client's k largest numbers by size, of all d that it has; biased, and never above the norm.

    Args:
        share: k / d, above 0, at most 1; k is rounded, and at least 1. Of equal sizes the first go.

    Returns:
        a transform.

    Raises:
        ValueError: if the share is out of range.

    Example:
        >>> one = Update({}, jnp.array([0, 1]), jnp.array([[1.0, -3.0], [0.5, 2.0]]), jnp.float32(1))
        >>> top_k(0.25).update(jax.random.key(0), one, Server({}, jnp.zeros((2, 2)))).rows.tolist()
        [[0.0, -3.0], [0.0, 0.0]]

    Source: Aji & Heafield 2017, "Sparse communication for distributed gradient descent", section 3.
    """
    check_arguments(top_k, locals())

    def code(values: jax.Array, own: jax.Array, count: jax.Array, draw: Draw) -> jax.Array:
        del own, draw  # empty slots are 0: whether they count as sent does not matter
        # what is no number goes first: a client must not hide it
        size = jnp.nan_to_num(jnp.abs(values), nan=jnp.inf, posinf=jnp.inf)
        return jnp.where(_largest(size, count), values, 0.0)

    return _sparsifier("top_k", share, code, raises=False)


def rand_k(share: float) -> Transform:
    """Send k of a client's d numbers, drawn at random and times d / k; unbiased, with NMSE d / k - 1.

    Args:
        share: k / d, above 0, at most 1; k is rounded, and at least 1.

    Returns:
        a transform.

    Raises:
        ValueError: if the share is out of range.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[1.0, 1.0]]), jnp.float32(1))
        >>> sorted(rand_k(0.5).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2)))).rows[0].tolist())
        [0.0, 2.0]

    Source: Konečný et al. 2016, "Federated learning: strategies for improving communication efficiency".
    """
    check_arguments(rand_k, locals())

    def code(values: jax.Array, own: jax.Array, count: jax.Array, draw: Draw) -> jax.Array:
        draws = jnp.where(own, draw(jax.random.uniform), -1.0)
        return jnp.where(_largest(draws, count), values * (own.sum() / jnp.maximum(count, 1)), 0.0)

    return _sparsifier("rand_k", share, code, raises=True)


def low_rank(rank: int) -> Transform:
    """Send each row in r numbers, A = delta B^T, decoded as (W / r) A B; linear, and unbiased over the draw of B.

    B [r, W] has random orthonormal rows; W counts a row's numbers over all leaves. Dense leaves go as they are. B
    is drawn from the bits of the global model, which all clients of a round have and nobody need send: so A may
    be summed, also where it is encrypted. But models that differ in a last bit, as from floats summed by another
    number of devices, draw different B: where runs must agree, sum by `aggregators.fixed_point`.

    Args:
        rank: r, 1 to W.

    Returns:
        a transform.

    Raises:
        ValueError: if the rank is below 1; in the first round, or when its cost is asked for, if it exceeds W.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[1.0, 2.0]]), jnp.float32(1))
        >>> sent = low_rank(2).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2))))
        >>> bool(jnp.allclose(sent.rows, one.rows, atol=1e-5))
        True

    Source: Nguyen et al. 2024, "Towards efficient communication and secure federated recommendation system via
    low-rank training", section 4, whose clients train A itself (`algorithms.colr`).
    """
    check_arguments(low_rank, locals())
    if rank < 1:
        raise ValueError(f"rank must be at least 1, not {rank}")

    def checked_rank(width: float) -> int:
        if rank > width > 0:
            raise ValueError(f"rank={rank} exceeds the {width:g} numbers of a row; lower the rank")
        return rank

    def update(key: Key, sent: Update, server: Server) -> Update:
        del key
        rows = as_matrix(sent.rows, len(sent.ids))  # [R, W]
        if not rows.shape[1]:
            return sent
        # B^T [W, r], the same for all clients of a round
        drawn = jax.random.normal(_key_of(server), (rows.shape[1], checked_rank(rows.shape[1])))
        columns, _ = jnp.linalg.qr(drawn)
        # A [R, r] is what travels; the server decodes it
        decoded = (rows.shape[1] / rank) * ((rows @ columns) @ columns.T)
        return sent._replace(rows=from_matrix(decoded, sent.rows))

    def wire(cost: Wire) -> Wire:
        row_values = checked_rank(cost.row_values) if cost.row_values else 0
        # a projection of coded numbers is not coded
        return cost._replace(row_values=row_values, value_bits=32.0)

    name = f"low_rank({rank})"
    return Transform(
        name, update, wire=wire, bound=compressed_bound(name, raises=True, fills=True, codes=True)
    )


def _sparsifier(kind: str, share: float, code: Callable, *, raises: bool) -> Transform:
    """A transform of `code(numbers, own, how many to send, draw)`."""
    if not 0 < share <= 1:
        raise ValueError(f"the share of numbers that {kind} sends must be above 0 and at most 1, not {share}")

    def update(key: Key, sent: Update, server: Server) -> Update:
        def code_counted(values: jax.Array, own: jax.Array, draw: Draw) -> jax.Array:
            # k by d, from a table in double precision, so that what is sent is what is declared
            counts = jnp.asarray(_num_sent(share, np.arange(own.size + 1)))
            return code(values, own, counts[own.sum()], draw)

        coded = on_numbers(code_counted)(key, sent, server)
        nonzero = (as_matrix(coded.rows, len(coded.ids)) != 0).any(axis=1)  # bool[R], rows that are sent
        return coded._replace(ids=jnp.where(nonzero, coded.ids, num_rows(server.tables)))

    def wire(cost: Wire) -> Wire:
        slots = 2**cost.id_bits if cost.id_bits else cost.rows
        num_addresses = slots * cost.row_values + cost.dense_values
        values = _num_sent(share, np.asarray(cost.rows * cost.row_values + cost.dense_values))
        address_bits = math.ceil(math.log2(num_addresses)) if num_addresses > 1 else 0
        return Wire(float(values), 1.0, 0.0, cost.value_bits, address_bits, cost.header_bits)

    name = f"{kind}({share})"
    return Transform(
        name, update, wire=wire, bound=compressed_bound(name, raises=raises, fills=False, sparsifies=True)
    )


def _num_sent(share: float, counts: np.ndarray) -> np.ndarray:
    """How many of so many numbers are sent, k of d, int32."""
    rounded = np.floor(share * counts + 0.5).astype(np.int32)
    return np.where(counts > 0, np.maximum(rounded, 1), 0).astype(np.int32)


def _largest(values: jax.Array, count: jax.Array) -> jax.Array:
    """Which are the `count` largest, bool[n]; of equal ones the first."""
    order = jnp.argsort(-values, stable=True)
    return jnp.zeros(values.shape, bool).at[order].set(jnp.arange(values.size) < count)


def _key_of(server: Server) -> Key:
    """A key of the global model's bits; integer sums, as their order leaves no trace."""
    key = jax.random.key(0, impl=KEY_IMPL)
    for leaf in jax.tree.leaves(server):
        words = jax.lax.bitcast_convert_type(leaf.astype(jnp.float32), jnp.uint32)
        key = jax.random.fold_in(key, words.sum(dtype=jnp.uint32))
    return key
