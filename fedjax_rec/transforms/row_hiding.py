"""Row hiding: transforms that send more rows than a client has, or not all, so that ids say less.

What is sent of a pseudo row, one that the client does not have, is 0, or random numbers of the size of its own
rows: a server that reads values tells rows of zeros from others (`fedjax_rec.attacks.inference` attacks either
way). In a chain they come after what leaves numbers out, which would leave out the rows that hide, and before
noise, which these would lack; other orders are refused. The engine takes an update of any number of slots, and
`Wire` counts what they add.

===================  ==========================================  =======================
transform            rows that are sent                          of R own rows and I
===================  ==========================================  =======================
`pseudo_items`       the own and so many others                  (1 + rho) R
`random_rows`        the own with probability p, others with q   p R + q (I - R)
`all_rows`           all, in order, without ids                  I
===================  ==========================================  =======================

`fixed=True` draws the other rows once for each client, in its first round (`State.transform_state` keeps the
draw): a server that compares two rounds finds out rows that are drawn anew in each.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.tables import expand, num_rows
from fedjax_rec.transforms.base import Bound, Transform, Wire
from fedjax_rec.types import KEY_IMPL, Key, PyTree, Server, Update


def pseudo_items(rho: float, *, fixed: bool = True, pseudo_scale: float = 0.0) -> Transform:
    """Send floor(rho R) further rows, drawn uniformly from those that the client does not have.

    Args:
        rho: further rows for each own row, above 0.
        fixed: whether a client prefers the same ones in every round.
        pseudo_scale: their numbers are normal(0, pseudo_scale x the root mean square of the client's own), leaf by
            leaf.

    Returns:
        a transform.

    Raises:
        ValueError: if rho is not above 0, or the scale negative.

    Example:
        >>> one = Update({}, jnp.array([2, 9]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> sent = pseudo_items(2.0, fixed=False).update(jax.random.key(0), one, Server({}, jnp.zeros((9, 1))))
        >>> int((sent.ids < 9).sum()), sent.rows[0].tolist()
        (3, [3.0])

    Source: Lin et al. 2021, "FedRec: federated recommendation with explicit feedback", whose sampled items have
    virtual ratings (`algorithms.fedrec`) where ours have noise.
    """
    check_arguments(pseudo_items, locals())
    if not rho > 0:
        raise ValueError(f"rho must be above 0, not {rho}")

    def draw_ids(key: Key, own: jax.Array, slots: int) -> jax.Array:
        """Ids int32[floor(rho R)] of other rows, in a random order; I in the slots that are not needed."""
        items = own.shape[0]
        draws = jnp.where(own, -1.0, jax.random.uniform(key, (items,)))
        largest, ids = jax.lax.top_k(draws, min(math.floor(rho * slots + 1e-6), items))
        count = jnp.floor(rho * own.sum() + 1e-6)
        return jnp.where((largest >= 0) & (jnp.arange(ids.shape[0]) < count), ids, items)

    def pad(values_key: Key, ids_key: Key, sent: Update, server: Server) -> Update:
        own = _own_rows(sent, server)
        ids = draw_ids(ids_key, own, sent.ids.shape[0])
        return _append_rows(values_key, sent, ids, own, pseudo_scale)

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=cost.rows * (1 + rho))

    return _row_hiding(f"pseudo_items({rho})", pad, wire, fixed=fixed, pseudo_scale=pseudo_scale)


def random_rows(
    p: float, q: float, items: int, *, fixed: bool = True, pseudo_scale: float = 0.0
) -> Transform:
    """Randomised response: send each own row with probability p, and each other with probability q.

    A server that sees a row learns that it is the client's with a likelihood ratio of p / q; of a row that it does
    not see, of (1 - p) / (1 - q). Own rows that are not sent are lost to training in that round.

    Args:
        p: of an own row, above 0 and at most 1.
        q: of another, 0 to 1.
        items: I, for the cost.
        fixed: whether a client draws once for all rounds.
        pseudo_scale: as for `pseudo_items`.

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
    check_arguments(random_rows, locals())
    if not (0 < p <= 1 and 0 <= q <= 1):
        raise ValueError(f"p={p} must be above 0 and at most 1, q={q} from 0 to 1")

    def respond(values_key: Key, ids_key: Key, sent: Update, server: Server) -> Update:
        own = _own_rows(sent, server)
        chosen = jax.random.uniform(ids_key, own.shape) < jnp.where(own, p, q)
        dense = _fill_table(values_key, sent, own, chosen, pseudo_scale, _check_items(items, server))
        return dense._replace(ids=jnp.where(chosen, dense.ids, items))

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=p * cost.rows + q * max(items - cost.rows, 0.0))

    return _row_hiding(f"random_rows({p}, {q})", respond, wire, fixed=fixed, pseudo_scale=pseudo_scale)


def all_rows(items: int, *, pseudo_scale: float = 0.0) -> Transform:
    """Send every row of the tables, in order: ids say nothing, and cost nothing.

    Args:
        items: I, for the cost.
        pseudo_scale: as for `pseudo_items`.

    Returns:
        a transform.

    Raises:
        ValueError: if the scale is negative; in the first round, if there are not I rows.

    Example:
        >>> one = Update({}, jnp.array([2, 9]), jnp.array([[3.0], [0.0]]), jnp.float32(1))
        >>> all_rows(9).update(jax.random.key(0), one, Server({}, jnp.zeros((9, 1)))).rows[:, 0].tolist()
        [0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    """
    check_arguments(all_rows, locals())

    def fill(values_key: Key, ids_key: Key, sent: Update, server: Server) -> Update:
        del ids_key
        own = _own_rows(sent, server)
        return _fill_table(
            values_key, sent, own, jnp.ones_like(own), pseudo_scale, _check_items(items, server)
        )

    def wire(cost: Wire) -> Wire:
        return cost._replace(rows=float(items), id_bits=0.0)

    return _row_hiding(f"all_rows({items})", fill, wire, fixed=False, pseudo_scale=pseudo_scale)


# (key of the pseudo rows' numbers, key of the rows that are drawn, update, global model) -> what is sent
HideRows = Callable[[Key, Key, Update, Server], Update]


def _row_hiding(
    name: str, hide: HideRows, wire: Callable[[Wire], Wire], *, fixed: bool, pseudo_scale: float
) -> Transform:
    """A transform that draws rows by its round's key, or by that of the client's first round."""
    if not pseudo_scale >= 0:
        raise ValueError(f"pseudo_scale must be at least 0, not {pseudo_scale}")

    def update(key: Key, sent: Update, server: Server) -> Update:
        values_key, ids_key = jax.random.split(key)
        return hide(values_key, ids_key, sent, server)

    def update_with_state(key: Key, sent: Update, state: PyTree, server: Server) -> tuple[Update, PyTree]:
        values_key, ids_key = jax.random.split(key)
        words = jnp.where(state["drawn"], state["words"], jax.random.key_data(ids_key))
        hidden = hide(values_key, jax.random.wrap_key_data(words, impl=KEY_IMPL), sent, server)
        return hidden, {"drawn": jnp.ones((), bool), "words": words}

    def init(server: Server) -> PyTree:
        del server
        return {"drawn": jnp.zeros((), bool), "words": jnp.zeros(2, jnp.uint32)}

    def bound(known: Bound) -> Bound:
        if known.deviation > 0:
            raise ValueError(
                f"{name} after noise would hide nothing, its rows have none; put the noise after it"
            )
        known = known._replace(hidden_by=name)
        return known._replace(norm=None, grid=None) if pseudo_scale else known

    plain = Transform(name, update, wire=wire, bound=bound)
    return plain._replace(init=init, update_with_state=update_with_state) if fixed else plain


def _own_rows(sent: Update, server: Server) -> jax.Array:
    """Which rows the client has, bool[I]."""
    return jnp.zeros(num_rows(server.tables), bool).at[sent.ids].set(True, mode="drop")


def _check_items(items: int, server: Server) -> int:
    """The number of items, which must be that of the model's rows."""
    if num_rows(server.tables) != items:
        raise ValueError(f"items={items}, but there are {num_rows(server.tables)} rows; give that number")
    return items


def _append_rows(key: Key, sent: Update, ids: jax.Array, own: jax.Array, pseudo_scale: float) -> Update:
    """The update with further slots, of pseudo rows; `ids` int32[n] are I where a slot is empty."""
    values = _draw_values(key, sent, ids.shape[0], own, pseudo_scale)
    values = jax.tree.map(lambda x: jnp.where(expand(ids < own.shape[0], x), x, 0.0), values)
    rows = jax.tree.map(lambda old, new: jnp.concatenate([old, new]), sent.rows, values)
    return sent._replace(ids=jnp.concatenate([sent.ids, ids]), rows=rows)


def _fill_table(
    key: Key, sent: Update, own: jax.Array, chosen: jax.Array, pseudo_scale: float, items: int
) -> Update:
    """The update with a slot for each of the I rows; those that are not chosen, bool[I], hold 0."""
    values = _draw_values(key, sent, items, own, pseudo_scale)

    def fill_leaf(pseudo: jax.Array, rows: jax.Array) -> jax.Array:
        own_rows = jnp.zeros_like(pseudo).at[sent.ids].add(rows, mode="drop")
        return jnp.where(expand(chosen, pseudo), jnp.where(expand(own, pseudo), own_rows, pseudo), 0.0)

    return sent._replace(ids=jnp.arange(items), rows=jax.tree.map(fill_leaf, values, sent.rows))


def _draw_values(key: Key, sent: Update, count: int, own: jax.Array, pseudo_scale: float) -> PyTree:
    """Numbers of pseudo rows, leaves [count, ...]."""
    leaves, structure = jax.tree.flatten(sent.rows)
    if pseudo_scale == 0:
        return jax.tree.map(lambda x: jnp.zeros((count, *x.shape[1:]), x.dtype), sent.rows)
    values = []
    for number, leaf in enumerate(leaves):
        width = max(math.prod(leaf.shape[1:]), 1)
        deviation = pseudo_scale * jnp.sqrt(jnp.square(leaf).sum() / jnp.maximum(own.sum() * width, 1))
        leaf_key = jax.random.fold_in(key, number)
        values.append(deviation * jax.random.normal(leaf_key, (count, *leaf.shape[1:])))
    return jax.tree.unflatten(structure, values)
