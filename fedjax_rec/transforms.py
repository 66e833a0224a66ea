"""Transforms: what a client does to its whole update before it sends it.

Each is written for ONE client, `update(key, Update, Server) -> Update`; the engine vmaps it over the clients of a
wave, inside the compiled round. Rows beyond the client's own have id I and deltas of 0, and must keep them; a
transform may append slots (`row_hiding`), if it says in `wire` what they cost. A transform sees the unweighted
update, and the global model that the client started from.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_rec.tables import expand, num_rows
from fedjax_rec.types import Bound, Key, PyTree, Server, Transform, Update, Wire


def chain(*transforms: Transform) -> Transform:
    """Apply transforms in turn, each with a key of its own.

    Args:
        *transforms: the first acts first.

    Returns:
        a transform.

    Raises:
        ValueError: if there is none, or the order is unsound: noise without a clip before it, or a clip before
            what may raise the norm again.

    Example:
        >>> chain(quantise(8), clip(1.0)).name
        'quantise(8) > clip(1.0)'
    """
    if not transforms:
        raise ValueError("chain needs at least one transform; leave `transform` out for none")

    def bound(known: Bound) -> Bound:
        for transform in transforms:
            known = _next_bound(known, transform)
        return known

    bound(Bound())  # what is unsound does not build
    if len(transforms) == 1:
        return transforms[0]

    def update(key: Key, sent: Update, server: Server) -> Update:
        for number, transform in enumerate(transforms):
            sent = transform.update(jax.random.fold_in(key, number), sent, server)
        return sent

    def wire(cost: Wire) -> Wire:
        for transform in transforms:
            cost = cost if transform.wire is None else transform.wire(cost)
        return cost

    name = " > ".join(transform.name for transform in transforms)
    return _with_memories(Transform(name, update, wire=wire, bound=bound), transforms)


def _with_memories(plain: Transform, transforms: tuple[Transform, ...]) -> Transform:
    """The chain as one transform that remembers what its elements do, each its own."""
    if not any(transform.remember for transform in transforms):
        return plain

    def init(server: Server) -> PyTree:
        return tuple(() if transform.init is None else transform.init(server) for transform in transforms)

    def remember(key: Key, sent: Update, memory: PyTree, server: Server) -> tuple[Update, PyTree]:
        kept = []
        for number, (transform, held) in enumerate(zip(transforms, memory, strict=True)):
            own = jax.random.fold_in(key, number)
            if transform.remember is None:
                sent, new = transform.update(own, sent, server), held
            else:
                sent, new = transform.remember(own, sent, held, server)
            kept.append(new)
        return sent, tuple(kept)

    return plain._replace(init=init, remember=remember)


def _next_bound(known: Bound, transform: Transform) -> Bound:
    after = known._replace(norm=None) if transform.bound is None else transform.bound(known)
    if known.norm is not None and after.norm is None and known.deviation == 0:
        raise ValueError(
            f"{transform.name} may raise the norm to which {' > '.join(known.after)} has bounded an update; put "
            "the clip after it"
        )
    return after._replace(after=(*known.after, transform.name))


def squared_norm(update: Update) -> jax.Array:
    """Squared L2 norm of all that a client sends: dense leaves and rows together.

    Args:
        update: one client's.

    Returns:
        float32[].

    Example:
        >>> one = Update({"w": jnp.array(3.0)}, jnp.array([0, 1]), jnp.array([[4.0], [0.0]]), jnp.float32(1))
        >>> float(squared_norm(one))
        25.0
    """
    return sum((jnp.sum(jnp.square(x)) for x in _leaves(update)), jnp.float32(0))


def shrinkage(norm: float, squared: jax.Array) -> jax.Array:
    """By what to scale updates down to a norm: min(1, norm / |x|).

    Args:
        norm: the largest norm.
        squared: float32[...], their squared norms.

    Returns:
        float32[...].

    Example:
        >>> shrinkage(5.0, jnp.array([100.0, 4.0, 0.0])).tolist()
        [0.5, 1.0, 1.0]
    """
    return jnp.minimum(1.0, norm / jnp.sqrt(jnp.maximum(squared, 1e-30)))


def clip(norm: float) -> Transform:
    """Scale an update down to a norm: delta * min(1, norm / |delta|).

    Args:
        norm: the largest L2 norm, above 0.

    Returns:
        a transform.

    Raises:
        ValueError: if the norm is not above 0.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 4.0]]), jnp.float32(1))
        >>> sent = clip(1.0).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2))))
        >>> [f"{x:.4f}" for x in sent.rows[0].tolist()]
        ['0.6000', '0.8000']

    Source: McMahan et al. 2018, "Learning differentially private recurrent language models", section 3, FlatClip.
    """
    if not norm > 0:
        raise ValueError(f"the clipping norm must be above 0, not {norm}")

    def scale(size: jax.Array) -> jax.Array:
        return shrinkage(norm, size)

    def update(key: Key, sent: Update, server: Server) -> Update:
        del key, server
        factor = scale(squared_norm(sent))
        return _map(lambda x: factor * x, sent)

    def bound(known: Bound) -> Bound:
        least = norm if known.norm is None else min(norm, known.norm)
        return known._replace(norm=least)

    return Transform(f"clip({norm})", update, scale, bound=bound)


def add_noise(deviation: float) -> Transform:
    """Add normal(0, deviation) to every number that a client sends of its own rows and dense leaves.

    Rows that the client does not touch stay untouched: this hides values, not which rows they are of.

    Args:
        deviation: standard deviation, at least 0.

    Returns:
        a transform.

    Raises:
        ValueError: if the deviation is negative.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[3.0, 4.0]]), jnp.float32(1))
        >>> add_noise(0.0).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2)))).rows.tolist()
        [[3.0, 4.0]]
    """
    if not deviation >= 0:
        raise ValueError(f"the noise's deviation must be at least 0, not {deviation}")

    def noisy(key: Key, x: jax.Array) -> jax.Array:
        return x + deviation * draw_by_row(jax.random.normal, key, x.shape)

    def bound(known: Bound) -> Bound:
        if known.norm is None:
            raise ValueError(
                f"add_noise({deviation}) hides nothing of an update without a bound; put clip(norm) before it, in "
                "a chain"
            )
        return known._replace(deviation=math.hypot(known.deviation, deviation))

    return Transform(f"add_noise({deviation})", _each(noisy), bound=bound)


def quantise(bits: int) -> Transform:
    """Round stochastically to 2^bits - 1 steps between each leaf's least and largest value; unbiased.

    Args:
        bits: of a number, 1 to 16.

    Returns:
        a transform.

    Raises:
        ValueError: if the bits are out of range.

    Example:
        >>> one = Update({}, jnp.array([0]), jnp.array([[0.0, 1.0]]), jnp.float32(1))
        >>> quantise(1).update(jax.random.key(0), one, Server({}, jnp.zeros((1, 2)))).rows.tolist()
        [[0.0, 1.0]]

    Source: Suresh et al. 2017, "Distributed mean estimation with limited communication", section 2.2.
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"bits must be 1 to 16, not {bits}")
    steps = 2.0**bits - 1

    def rounded(key: Key, x: jax.Array) -> jax.Array:
        low = x.min(initial=0.0)
        unit = (x.max(initial=0.0) - low) / steps
        safe = jnp.where(unit > 0, unit, 1.0)
        level = jnp.floor((x - low) / safe + draw_by_row(jax.random.uniform, key, x.shape))
        return jnp.minimum(level, steps) * unit + low  # with 16 bits the sum itself may round up

    def wire(cost: Wire) -> Wire:
        # of one leaf's range: a Wire does not count leaves, and each further one costs 64 bits more
        return cost._replace(value_bits=float(bits), header_bits=cost.header_bits + 64)

    name = f"quantise({bits})"
    return Transform(name, _each(rounded), wire=wire, bound=compressed_bound(name, raises=True, fills=True))


def compressed_bound(name: str, *, raises: bool, fills: bool) -> Callable[[Bound], Bound]:
    """What a compressor does to what is known of an update.

    Args:
        name: of the compressor.
        raises: whether it may raise the norm.
        fills: whether it fills numbers that were left out.

    Returns:
        bound -> bound; it refuses orders whose cost would not be what is declared.

    Example:
        >>> compressed_bound("sign()", raises=False, fills=True)(Bound(norm=1.0)).norm
        1.0
    """

    def bound(known: Bound) -> Bound:
        for earlier in known.after:
            if "drive(" in earlier or "low_rank(" in earlier:
                raise ValueError(
                    f"{name} after {earlier} would send numbers anew that are coded already; drop one"
                )
            if fills and ("top_k(" in earlier or "rand_k(" in earlier):
                raise ValueError(
                    f"{name} would fill what {earlier} left out; take qsgd or terngrad there instead"
                )
        return Bound(None if raises else known.norm, known.deviation, (*known.after, name))

    return bound


def draw_by_row(kind: Callable, key: Key, shape: tuple[int, ...]) -> jax.Array:
    """Random numbers of which row j depends on the key and j only, not on how many rows there are.

    Args:
        kind: (key, shape) -> numbers, such as `jax.random.normal`.
        key: consumed.
        shape: [R, ...]; () for a single number.

    Returns:
        numbers of that shape.

    Example:
        >>> few, more = (draw_by_row(jax.random.normal, jax.random.key(0), (rows, 2)) for rows in (1, 3))
        >>> bool((few == more[:1]).all())
        True
    """
    if not shape:
        return kind(key)
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(shape[0]))
    return jax.vmap(lambda k: kind(k, shape[1:]))(keys)


def _each(function: Callable[[Key, jax.Array], jax.Array]) -> Callable[[Key, Update, Server], Update]:
    """Apply a function to each leaf with a key of its own; empty slots stay 0."""

    def update(key: Key, sent: Update, server: Server) -> Update:
        leaves, structure = jax.tree.flatten((sent.shared, sent.rows))
        new = [function(jax.random.fold_in(key, n), leaf) for n, leaf in enumerate(leaves)]
        shared, rows = jax.tree.unflatten(structure, new)
        own = sent.ids < num_rows(server.tables)
        rows = jax.tree.map(lambda x: jnp.where(expand(own, x), x, 0.0), rows)
        return sent._replace(shared=shared, rows=rows)

    return update


def _map(function: Callable[[jax.Array], jax.Array], sent: Update) -> Update:
    return sent._replace(shared=jax.tree.map(function, sent.shared), rows=jax.tree.map(function, sent.rows))


def _leaves(sent: Update) -> list[PyTree]:
    return jax.tree.leaves((sent.shared, sent.rows))
