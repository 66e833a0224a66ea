"""Item rows that nobody touched in a round: whether a server rule lets them rest.

The aggregate of such a row is 0. Where a rule then leaves the row, and what it remembers of it, as they are, a
step of the touched rows alone is the step of all. SGD and Adagrad are such rules; momentum, Adam and weight decay
move on. Whether a rule is one is found by trying it on the model's structure, or it declares it (`RestingRows`).
"""

from collections.abc import Callable
from functools import lru_cache
from types import FunctionType

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rec.errors import check_arguments
from fedjax_rec.rows.tables import num_rows, select
from fedjax_rec.types import PyTree, Server

TRIAL_ROWS = 12  # of which each step of a trial touches two thirds, other ones each time
STEPS = 4
GRADIENTS = (1.0, 1e-6, 1e6)  # standard deviations
TOLERANCE = (
    1e-4  # of a leaf's largest number: a norm over all rows and one over some may be summed in other orders
)


class RestingRows(optax.GradientTransformation):  # type: ignore[misc]  # optax is untyped
    """A rule that declares that rows without a gradient rest, as `rest_untouched` makes it of any."""


def rest_untouched(rule: optax.GradientTransformation) -> RestingRows:
    """Step only the rows that have an aggregate; the others, and what the rule remembers of them, rest.

    Of Adam this makes LazyAdam: moments of a row decay when somebody touches it, and no row moves otherwise. A row
    is touched if one of its numbers, in any table, is not 0. Counters count every round.

    Args:
        rule: any optax transformation that treats rows apart.

    Returns:
        an optax transformation over `Server`.

    Example:
        >>> rule = rest_untouched(optax.sgd(1.0, momentum=0.5))
        >>> server = Server({}, jnp.zeros(2))
        >>> state = rule.init(server)
        >>> for gradient in ([1.0, 1.0], [1.0, 0.0]):
        ...     steps, state = rule.update(Server({}, jnp.array(gradient)), state, server)
        >>> steps.tables.tolist()
        [-1.5, 0.0]

    Source: `LazyAdam` of TensorFlow Addons, and "sparse" Adam of PyTorch.
    """
    check_arguments(rest_untouched, locals())

    def update(descent: Server, state: PyTree, params: Server | None = None) -> tuple[Server, PyTree]:
        steps, new_state = rule.update(descent, state, params)
        leaves = [(x != 0).reshape(x.shape[0], -1).any(1) for x in jax.tree.leaves(descent.tables)]
        touched = jnp.stack(leaves).any(0)
        tables = select(touched, steps.tables, jax.tree.map(jnp.zeros_like, steps.tables))
        by_row = rows_of_state(rule, descent)
        state = jax.tree.map(
            lambda rows, n, o: select(touched, n, o) if rows else n, by_row, new_state, state
        )
        return steps._replace(tables=tables), state

    return RestingRows(rule.init, update)


def rows_of_state(rule: optax.GradientTransformation, server: Server) -> PyTree:
    """Which leaves of a rule's state are of item rows, [I, ...]: those that grow with the tables.

    Args:
        rule: the server's.
        server: the global model, or its shapes.

    Returns:
        bool, in the structure of the state.

    Raises:
        ValueError: if a leaf grows otherwise than by a row an item.

    Example:
        >>> server = Server({"bias": jnp.zeros(3)}, {"vector": jnp.zeros((3, 2))})
        >>> state = rows_of_state(optax.trace(0.9), server)
        >>> state.trace.shared, state.trace.tables
        ({'bias': False}, {'vector': True})
    """
    items = num_rows(server.tables)

    def shapes(number: int) -> PyTree:
        def of(leaf: jax.Array, shape: tuple[int, ...]) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        tables = jax.tree.map(lambda x: of(x, (number, *x.shape[1:])), server.tables)
        shared = jax.tree.map(lambda x: of(x, x.shape), server.shared)
        return jax.eval_shape(rule.init, Server(shared, tables))

    def is_of_rows(one: jax.ShapeDtypeStruct, more: jax.ShapeDtypeStruct) -> bool:
        if one.shape == more.shape:
            return False
        if (items, *one.shape[1:]) != one.shape or (items + 1, *one.shape[1:]) != more.shape:
            raise ValueError(
                f"the server rule keeps {one.shape} for {items:,} items, which is not a row for each"
            )
        return True

    return jax.tree.map(is_of_rows, shapes(items), shapes(items + 1))


def lets_rows_rest(rule: optax.GradientTransformation, server: Server) -> bool:
    """Whether a step of the touched rows alone is the step of all.

    A rule that remembers something of each row and counts steps may do something else with it later than in a
    trial: it must declare that rows rest. So must one whose settings are being traced.

    Args:
        rule: the server's.
        server: the global model, or its shapes.

    Returns:
        True or False.

    Example:
        >>> server = Server({}, {"vector": jnp.zeros((9, 2))})
        >>> rules = optax.sgd(0.5), optax.adagrad(0.1), optax.sgd(0.5, momentum=0.9), optax.adam(0.1)
        >>> [lets_rows_rest(rule, server) for rule in rules]
        [True, True, False, False]
        >>> lets_rows_rest(rest_untouched(optax.adam(0.1)), server)
        True
    """
    if not jax.tree.leaves(server.tables):
        return False
    try:
        by_row = jax.tree.leaves(rows_of_state(rule, server))
        if isinstance(rule, RestingRows):
            return True
        state = jax.eval_shape(rule.init, server)
        counts = [jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in jax.tree.leaves(state)]
        if any(by_row) and any(counts):
            return False
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), server)
        leaves, structure = jax.tree.flatten(shapes)
        if isinstance(rule.init, FunctionType) and isinstance(rule.update, FunctionType):
            return _try_rule(rule, structure, tuple(leaves))
        return _try_rule.__wrapped__(rule, structure, tuple(leaves))  # methods need not be hashable
    except (ValueError, TypeError, jax.errors.UnexpectedTracerError):
        return False


@lru_cache(maxsize=64)  # plans of a run ask again
def _try_rule(
    rule: optax.GradientTransformation,
    structure: jax.tree_util.PyTreeDef,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
) -> bool:
    """Whether a trial with gradients of several sizes finds that rows rest."""
    server = jax.tree.unflatten(structure, leaves)
    with jax.ensure_compile_time_eval():
        update = jax.jit(rule.update)
        return all(_rests(rule, update, server, scale) for scale in GRADIENTS)


def _rests(rule: optax.GradientTransformation, update: Callable, server: Server, scale: float) -> bool:
    """Some steps of all rows and of the touched ones, with gradients of one size: whether they are the same."""
    rng = np.random.default_rng(0)

    def draw(size: float) -> Server:
        def leaf(x: jax.Array, shape: tuple[int, ...]) -> np.ndarray:
            return (size * rng.normal(size=shape)).astype(x.dtype)

        tables = jax.tree.map(lambda x: leaf(x, (TRIAL_ROWS, *x.shape[1:])), server.tables)
        return Server(jax.tree.map(lambda x: leaf(x, x.shape), server.shared), tables)

    params = draw(1.0)
    state = jax.tree.map(np.asarray, rule.init(params))
    of_rows = rows_of_state(rule, params)
    all_tables = jax.tree.map(lambda _: True, params.tables)
    in_server = Server(jax.tree.map(lambda _: False, params.shared), all_tables)
    for turn in range(STEPS):
        touched = (np.arange(TRIAL_ROWS) + turn) % 3 != 0
        gradient = draw(scale)
        rows = jax.tree.map(
            lambda x, t=touched: np.where(t.reshape(-1, *[1] * (x.ndim - 1)), x, 0), gradient.tables
        )
        gradient = gradient._replace(tables=rows)
        together = jax.tree.map(np.asarray, update(gradient, state, params))
        some = [
            _take(of_server, tree, touched) for of_server, tree in ((in_server, gradient), (of_rows, state))
        ]
        apart = update(*some, _take(in_server, params, touched))
        marks = (in_server, of_rows)
        if not _close(_take(marks, together, touched), apart):
            return False
        before = (jax.tree.map(np.zeros_like, params), state)
        if not _equal(_only(marks, together, ~touched), _only(marks, before, ~touched)):
            return False
        steps, state = together
        params = jax.tree.map(lambda p, s: np.asarray(p + s, p.dtype), params, steps)
    return True


def _take(marks: PyTree, tree: PyTree, chosen: np.ndarray) -> PyTree:
    """Of leaves by row the chosen rows, all others whole."""
    return jax.tree.map(lambda mark, x: x[chosen] if mark else x, marks, tree)


def _only(marks: PyTree, tree: PyTree, chosen: np.ndarray) -> list[np.ndarray]:
    """The chosen rows of the leaves by row."""
    pairs = zip(jax.tree.leaves(marks), jax.tree.leaves(tree), strict=True)
    return [leaf[chosen] for mark, leaf in pairs if mark]


def _equal(found: list[np.ndarray], expected: list[np.ndarray]) -> bool:
    return all(np.array_equal(one, other) for one, other in zip(found, expected, strict=True))


def _close(found: PyTree, expected: PyTree) -> bool:
    def close(one: np.ndarray, other: np.ndarray) -> bool:
        largest = np.abs(other).max(initial=0.0)
        return bool((np.abs(one - other) <= TOLERANCE * largest).all())

    return all(jax.tree.leaves(jax.tree.map(lambda a, b: close(a, np.asarray(b)), found, expected)))
