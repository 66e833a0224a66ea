"""Row hiding: transforms that send more rows than a client has, or not all, so that ids say less.

What is sent of a row that a client does not have is 0, or noise of the size of its own rows: a server that reads
values tells rows of zeros from others (`fedjax_rec.inference` attacks either way). The engine takes an update of
any number of slots, so these transforms come last in a chain, and `Wire` counts what they add.

===================  ==========================================  =======================
transform            rows that are sent                          of R own rows and I
===================  ==========================================  =======================
`pseudo_items`       the own and so many others                  (1 + rho) R
`random_rows`        the own with probability p, others with q   p R + q (I - R)
`all_rows`           all, in order, without ids                  I
===================  ==========================================  =======================

`fixed=True` draws the other rows once for each client, in its first round (`State.memory` keeps the draw): rows
that are drawn anew in every round are told by who looks at two of them.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.tables import expand, num_rows
from fedjax_rec.types import Bound, Key, PyTree, Server, Transform, Update, Wire


def pseudo_items(rho: float, *, fixed: bool = True, noise: float = 0.0) -> Transform:
    """Send floor(rho R) further rows, drawn uniformly from those that the client does not have.

    Args:
        rho: further rows for each own row, above 0.
        fixed: whether a client prefers the same ones in every round.
        noise: their numbers are normal(0, noise x the root mean square of the client's own), leaf by leaf.

    Returns:
        a transform.

    Raises:
        ValueError: if rho is not above 0, or the noise negative.

    Example:
        >>> one = Update({}, jnp.array([2, 9]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> sent = pseudo_items(2.0, fixed=False).update(jax.random.key(0), one, Server({}, jnp.zeros((9, 1))))
        >>> int((sent.ids < 9).sum()), sent.rows[0].tolist()
        (3, [3.0])

    Source: Lin et al. 2021, "FedRec: federated recommendation with explicit feedback", whose sampled items have
    virtual ratings (`algorithms.fedrec`) where ours have noise.
    """
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")

    def choose(key: Key, own: jax.Array, slots: int) -> jax.Array:
        items = own.shape[0]
        luck = jnp.where(own, -1.0, jax.random.uniform(key, (items,)))
        best, ids = jax.lax.top_k(luck, min(math.floor(rho * slots + 1e-6), items))
        wanted = jnp.floor(rho * own.sum() + 1e-6)
        return jnp.where((best >= 0) & (jnp.arange(ids.shape[0]) < wanted), ids, items)

    def pad(key: Key, luck: Key, sent: Update, server: Server) -> Update:
        own = _own(sent, server)
        ids = choose(luck, own, sent.ids.shape[0])
        return _append(key, sent, ids, own, noise)

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=cost.rows * (1 + rho))

    return _hiding(f"pseudo_items({rho})", pad, wire, fixed=fixed, noise=noise)


def random_rows(p: float, q: float, items: int, *, fixed: bool = True, noise: float = 0.0) -> Transform:
    """Randomised response: send each own row with probability p, and each other with probability q.

    A server that sees a row learns that it is the client's with a likelihood ratio of p / q; of a row that it does
    not see, of (1 - p) / (1 - q). Own rows that are not sent are lost to training in that round.

    Args:
        p: of an own row, above 0 and at most 1.
        q: of another, 0 to 1.
        items: I, for the cost.
        fixed: whether a client draws once for all rounds.
        noise: as for `pseudo_items`.

    Returns:
        a transform.

    Raises:
        ValueError: if a number is out of range; in the first round, if there are not I rows.

    Example:
        >>> one = Update({}, jnp.array([2, 9]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> sent = random_rows(1.0, 0.0, 9).update(jax.random.key(0), one, Server({}, jnp.zeros((9, 1))))
        >>> sent.ids[sent.ids < 9].tolist()
        [2]

    Source: Warner 1965, "Randomized response"; for the rows of a federated submodel, Niu et al. 2020,
    "Billion-scale federated learning on mobile clients: a submodel design with tunable privacy".
    """
    if not (0 < p <= 1 and 0 <= q <= 1):
        raise ValueError(f"p={p} must be above 0 and at most 1, q={q} from 0 to 1")

    def respond(key: Key, luck: Key, sent: Update, server: Server) -> Update:
        own = _own(sent, server)
        kept = jax.random.uniform(luck, own.shape) < jnp.where(own, p, q)
        dense = _densely(key, sent, own, kept, noise, _same(items, server))
        return dense._replace(ids=jnp.where(kept, dense.ids, items))

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=p * cost.rows + q * max(items - cost.rows, 0.0))

    return _hiding(f"random_rows({p}, {q})", respond, wire, fixed=fixed, noise=noise)


def all_rows(items: int, *, noise: float = 0.0) -> Transform:
    """Send every row of the tables, in order: ids say nothing, and cost nothing.

    Args:
        items: I, for the cost.
        noise: as for `pseudo_items`.

    Returns:
        a transform.

    Raises:
        ValueError: if the noise is negative; in the first round, if there are not I rows.

    Example:
        >>> one = Update({}, jnp.array([2, 9]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> all_rows(9).update(jax.random.key(0), one, Server({}, jnp.zeros((9, 1)))).rows[:, 0].tolist()
        [0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """

    def fill(key: Key, luck: Key, sent: Update, server: Server) -> Update:
        del luck
        own = _own(sent, server)
        return _densely(key, sent, own, jnp.ones_like(own), noise, _same(items, server))

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=float(items), id_bits=0.0)

    return _hiding(f"all_rows({items})", fill, wire, fixed=False, noise=noise)


# (key, key of the rows that are drawn, update, global model) -> what is sent
Hide = Callable[[Key, Key, Update, Server], Update]


def _hiding(name: str, hide: Hide, wire: Callable[[Wire], Wire], *, fixed: bool, noise: float) -> Transform:
    """A transform that draws rows by its round's key, or by that of the client's first round."""
    if not noise >= 0:
        raise ValueError(f"the noise must be at least 0, not {noise}")

    def update(key: Key, sent: Update, server: Server) -> Update:
        values, luck = jax.random.split(key)
        return hide(values, luck, sent, server)

    def remember(key: Key, sent: Update, memory: PyTree, server: Server) -> tuple[Update, PyTree]:
        values, luck = jax.random.split(key)
        words = jnp.where(memory["drawn"], memory["words"], jax.random.key_data(luck))
        out = hide(values, jax.random.wrap_key_data(words), sent, server)
        return out, {"drawn": jnp.ones((), bool), "words": words}

    def init(server: Server) -> PyTree:
        del server
        return {"drawn": jnp.zeros((), bool), "words": jnp.zeros(2, jnp.uint32)}

    def bound(known: Bound) -> Bound:
        return known._replace(norm=None if noise else known.norm)

    plain = Transform(name, update, wire=wire, bound=bound)
    return plain._replace(init=init, remember=remember) if fixed else plain


def _own(sent: Update, server: Server) -> jax.Array:
    """Which rows the client has, bool[I]."""
    return jnp.zeros(num_rows(server.tables), bool).at[sent.ids].set(True, mode="drop")


def _same(items: int, server: Server) -> int:
    if num_rows(server.tables) != items:
        raise ValueError(f"items={items}, but there are {num_rows(server.tables)} rows; give that number")
    return items


def _append(key: Key, sent: Update, ids: jax.Array, own: jax.Array, noise: float) -> Update:
    """The update with further slots."""
    more = _values(key, sent, ids.shape[0], own, noise)
    more = jax.tree.map(lambda x: jnp.where(expand(ids < own.shape[0], x), x, 0.0), more)
    rows = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), sent.rows, more)
    return sent._replace(ids=jnp.concatenate([sent.ids, ids]), rows=rows)


def _densely(key: Key, sent: Update, own: jax.Array, kept: jax.Array, noise: float, items: int) -> Update:
    """The update with a slot for every row, of which those that are kept have their values."""
    other = _values(key, sent, items, own, noise)

    def place(fill: jax.Array, rows: jax.Array) -> jax.Array:
        mine = jnp.zeros_like(fill).at[sent.ids].add(rows, mode="drop")
        return jnp.where(expand(kept, fill), jnp.where(expand(own, fill), mine, fill), 0.0)

    return sent._replace(ids=jnp.arange(items), rows=jax.tree.map(place, other, sent.rows))


def _values(key: Key, sent: Update, count: int, own: jax.Array, noise: float) -> PyTree:
    """Numbers of rows that the client does not have, leaves [count, ...]."""
    leaves, structure = jax.tree.flatten(sent.rows)
    if noise == 0:
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), sent.rows)
    new = []
    for number, leaf in enumerate(leaves):
        width = max(math.prod(leaf.shape[1:]), 1)
        size = noise * jnp.sqrt(jnp.square(leaf).sum() / jnp.maximum(own.sum() * width, 1))
        new.append(size * jax.random.normal(jax.random.fold_in(key, number), (count, *leaf.shape[1:])))
    return jax.tree.unflatten(structure, new)
