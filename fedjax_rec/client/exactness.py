"""Is training touched rows only exact for this optimizer? Found by trying, on the model's own structure.

The engine trains one batch's rows at a time and replays, with zero gradients, the steps that the other rows
missed. That equals training all of a client's rows together if the optimizer treats each row apart from the rest.
Most rules do (SGD, momentum, Adam, Adagrad, clipping of gradients, weight decay, schedules); rules that look
across rows do not (LARS, LAMB, Adafactor, a global norm taken after Adam), and are refused.

Three questions are asked, with gradients from tiny to huge, of early and late steps, in batches as large as the
model's and tables that are larger:

* are the steps the same, relative to their own size, when batches are trained apart and together?
* does a row's step change when other rows and what is remembered of them become huge or not a number? This finds
  what looks across rows and does nothing yet, such as the limit of a norm that no trial would reach;
* does a row that no batch touches stay where it is? Nothing replays it. Decay is allowed (see `local_training`).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from types import FunctionType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rec.types import Params, PyTree, Rows

STEPS = 6  # three visits of each of two batches
MOST_ROWS = 1_000  # of a trial batch
TABLE_ROWS = 400  # of the trial's tables, unless three batches are more
GRADIENTS = (1.0, 1e-6, 1e8)  # standard deviations
LATE = 10_000  # steps that a late client's counters have counted before
EXTREMES = (np.nan, 1e18)
TOLERANCE = 1e-3  # of a row's largest step
ROUNDING = 5e-7  # of a value, which a rule that writes it anew may move it
_RESTS_UNTRIED = ContextVar("rests_untried", default=False)

Update = Callable[..., tuple[Params, PyTree]]


class Trial(NamedTuple):
    """What the trial found."""

    rests: bool  # a zero gradient leaves rows and their state alone, at every step


def try_optimizer(optimizer: optax.GradientTransformation, example: Params) -> Trial:
    """Train two batches of rows both ways, and see what a zero gradient does.

    An optimizer whose settings are being traced (a vmap over learning rates) cannot be tried: it counts as one
    that moves rows, which is slower but always right for rules that treat rows apart, unless `assume_rest` says
    what is known of it. One that counts steps, such as any schedule, counts as one that moves rows, too: what it
    does to a row under a zero gradient may change later.

    Args:
        optimizer: any optax transformation.
        example: shapes of one client's private and shared leaves and of one batch's rows [B, ...].

    Returns:
        what was found.

    Raises:
        ValueError: if training rows apart differs from training them together, if rows that no batch touches would
            move other than by decay, or if the optimizer asks for more than gradients and parameters.

    Example:
        >>> example = Params({}, {}, {"vector": jnp.zeros((5, 3))})
        >>> try_optimizer(optax.sgd(0.1), example).rests, try_optimizer(optax.adam(0.1), example).rests
        (True, False)
        >>> try_optimizer(optax.lamb(0.1), example)
        Traceback (most recent call last):
        ValueError: the local optimizer looks across item rows, ...
    """
    leaves, structure = jax.tree.flatten(example)
    shapes = tuple((leaf.shape, jnp.dtype(leaf.dtype)) for leaf in leaves)
    try:
        if isinstance(optimizer.init, FunctionType) and isinstance(optimizer.update, FunctionType):
            return _try_shapes(optimizer, structure, shapes)
        return _try_shapes.__wrapped__(optimizer, structure, shapes)  # methods need not be hashable
    except (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError):
        return Trial(rests=_RESTS_UNTRIED.get())


@lru_cache(maxsize=64)  # plans and programs of a run ask again
def _try_shapes(
    optimizer: optax.GradientTransformation,
    structure: jax.tree_util.PyTreeDef,
    shapes: tuple[tuple[tuple[int, ...], np.dtype], ...],
) -> Trial:
    """Try with gradients of several sizes, early and late, what was not tried yet."""
    example = jax.tree.unflatten(structure, [jax.ShapeDtypeStruct(*shape) for shape in shapes])
    with jax.ensure_compile_time_eval():
        rests = [_try_once(optimizer, example, scale, 0) for scale in GRADIENTS]
        rests.append(_try_once(optimizer, example, 1.0, LATE))
    return Trial(all(rests))


@contextmanager
def assume_rest(rests: bool) -> Iterator[None]:
    """Say of the optimizers that are traced within what was found by trying them with each of their settings.

    Without it, a batch of learning rates for SGD would replay steps that do nothing.

    Args:
        rests: whether a zero gradient leaves rows alone, at every step and for every setting of the batch.

    Example:
        >>> example = Params({}, {}, {"vector": jnp.zeros((5, 3))})
        >>> def rests(rate):
        ...     return jnp.array(try_optimizer(optax.sgd(rate), example).rests)
        >>> with assume_rest(True):
        ...     bool(jax.jit(rests)(0.1))
        True
    """
    token = _RESTS_UNTRIED.set(rests)
    try:
        yield
    finally:
        _RESTS_UNTRIED.reset(token)


def split_state(state: PyTree) -> tuple[PyTree, PyTree]:
    """Split an optimizer state into that of the dense leaves and that of the rows; both keep the counters.

    Args:
        state: of an optimizer over `Params`.

    Returns:
        the same state without tables, and with tables only.

    Example:
        >>> state = optax.trace(0.9).init(Params(jnp.zeros(2), None, jnp.ones(3)))
        >>> split_state(state)[1].trace.private is None
        True
    """
    dense = jax.tree.map(lambda s: s._replace(tables=None) if _is_params(s) else s, state, is_leaf=_is_params)
    rows = jax.tree.map(
        lambda s: Params(None, None, s.tables) if _is_params(s) else s, state, is_leaf=_is_params
    )
    return dense, rows


def join_state(dense: PyTree, rows: PyTree) -> PyTree:
    """Undo `split_state`; counters come from the dense leaves' state.

    Args:
        dense: the dense leaves' state.
        rows: the rows' state.

    Returns:
        the joint state.

    Example:
        >>> state = optax.trace(0.9).init(Params(jnp.zeros(2), None, jnp.ones(3)))
        >>> join_state(*split_state(state)).trace.tables.shape
        (3,)
    """
    return jax.tree.map(
        lambda d, r: d._replace(tables=r.tables) if _is_params(d) else d, dense, rows, is_leaf=_is_params
    )


def zero_gradient_step(optimizer: optax.GradientTransformation, rows: Rows) -> Rows:
    """One step in which these rows have no gradient.

    Args:
        optimizer: any optax transformation.
        rows: values and optimizer state.

    Returns:
        both after the step.

    Example:
        >>> rule, values = optax.trace(0.5), jnp.array([1.0])
        >>> state = rule.init(Params(None, None, values))._replace(trace=Params(None, None, jnp.array([4.0])))
        >>> zero_gradient_step(rule, Rows(values, state)).values.tolist()
        [3.0]
    """
    params = Params(None, None, rows.values)
    updates, opt_state = optimizer.update(jax.tree.map(jnp.zeros_like, params), rows.opt_state, params)
    return Rows(optax.apply_updates(params, updates).tables, opt_state)


def _is_params(node: object) -> bool:
    return isinstance(node, Params)


# The trial. Of the tables' rows [R, ...] two batches of B rows each are visited, and none of the others. All but
# the optimizer itself is numpy, which compiles nothing. ----------------------------------------------------------


class Sizes(NamedTuple):
    """How many rows there are, as long as the trial lasts."""

    batch: int  # B
    table: int  # R, at least 3 B

    @property
    def batches(self) -> tuple[slice, slice]:
        """The rows of both batches."""
        return slice(self.batch), slice(self.batch, 2 * self.batch)

    @property
    def untouched(self) -> slice:
        """The rows that no batch visits."""
        return slice(2 * self.batch, self.table)


def _try_once(
    optimizer: optax.GradientTransformation, example: Params, scale: float, steps_before: int
) -> bool:
    """Whether rows rest, with gradients of this size, and after so many steps."""

    def init(params: Params) -> PyTree:
        return _count_on(optimizer.init(params), steps_before)

    batch = max((leaf.shape[0] for leaf in jax.tree.leaves(example.tables)), default=1)
    batch = min(batch, MOST_ROWS)
    sizes = Sizes(batch, max(3 * batch, TABLE_ROWS))
    update = jax.jit(optimizer.update)
    start = _random_params(example, sizes, seed=0)
    grads = [_random_params(example, sizes, seed=1 + t, scale=scale) for t in range(STEPS)]
    grads = [_visit(grad, sizes.batches[t % 2]) for t, grad in enumerate(grads)]
    try:
        together = _together(update, init(start), start, grads)
        apart, rests = _apart(update, init, start, grads, sizes)
        touched = [_take(step, slice(2 * batch)) for step in together]
        separable = _same(apart, touched) and _ignores_others(update, init(start), start, grads, sizes)
    except (jax.errors.JAXTypeError, jax.errors.UnexpectedTracerError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"the local optimizer cannot train some item rows from their gradients and values alone: {reason}"
        ) from error
    if not separable:
        raise ValueError(
            "the local optimizer looks across item rows, so training touched rows only would differ from dense "
            "training; use rules that act on each row (sgd, momentum, adam, adagrad, clipping before them)"
        )
    untouched = [_take(params, sizes.untouched).tables for params in (start, *together)]
    if not _stay_or_decay(*untouched):
        raise ValueError(
            "the local optimizer moves item rows that a client never touches, so training touched rows only would "
            "differ from dense training; use rules that leave rows without a gradient alone, or that decay them"
        )
    return rests


def _random_params(example: Params, sizes: Sizes, *, seed: int, scale: float = 1.0) -> Params:
    """Random numbers of the example's structure, `tables` leaves [R, ...]."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        return np.asarray(scale * rng.normal(size=shape), np.float32)

    private, shared = jax.tree.map(lambda x: draw(x.shape), (example.private, example.shared))
    return Params(private, shared, jax.tree.map(lambda x: draw((sizes.table, *x.shape[1:])), example.tables))


def _count_on(state: PyTree, steps: int) -> PyTree:
    """An optimizer's state whose counters stand so many steps further."""

    def count(leaf: PyTree) -> PyTree:
        counts = np.ndim(leaf) == 0 and jnp.issubdtype(jnp.result_type(leaf), jnp.integer)
        return leaf + steps if counts else leaf

    return jax.tree.map(count, state) if steps else state


def _take(params: Params, rows: slice) -> Params:
    return params._replace(tables=jax.tree.map(lambda x: np.asarray(x)[rows], params.tables))


def _move(params: PyTree, step: PyTree) -> PyTree:
    """`optax.apply_updates`."""

    def add(leaf: np.ndarray, change: jax.Array) -> np.ndarray:
        with np.errstate(all="ignore"):
            return np.asarray(leaf + np.asarray(change), leaf.dtype)

    return jax.tree.map(add, params, step)


def _visit(grad: Params, rows: slice) -> Params:
    """The gradient of all rows where only some have one."""

    def only(leaf: np.ndarray) -> np.ndarray:
        masked = np.zeros_like(leaf)
        masked[rows] = leaf[rows]
        return masked

    return grad._replace(tables=jax.tree.map(only, grad.tables))


def _together(update: Update, state: PyTree, params: Params, grads: list[Params]) -> list[Params]:
    """The steps of all rows at once."""
    steps = []
    for grad in grads:
        step, state = update(grad, state, params)
        params = _move(params, step)
        steps.append(step)
    return steps


def _apart(
    update: Update, init: Callable[[Params], PyTree], params: Params, grads: list[Params], sizes: Sizes
) -> tuple[list[Params], bool]:
    """The steps of both batches as the engine takes them, and whether those without gradient change nothing."""
    # Dense leaves and the rows of both batches start with states of their own.
    dense = params._replace(tables=None)
    state = init(dense)
    values = [_take(params, batch).tables for batch in sizes.batches]
    rows = [Rows(leaves, init(Params(None, None, leaves))) for leaves in values]
    # A state of anything but rows may count steps, and do something else in a later one.
    states = [batch.opt_state for batch in rows]
    rests = all(map(_is_params, jax.tree.leaves(states, is_leaf=_is_params)))
    steps = []
    for t, grad in enumerate(grads):
        visited = t % 2
        other = 1 - visited
        # One step of the dense leaves and the visited rows together, after which their states part again.
        joint = dense._replace(tables=rows[visited].values)
        gradient = _take(grad, sizes.batches[visited])
        step, new_state = update(gradient, join_state(state, rows[visited].opt_state), joint)
        moved = _move(joint, step)
        dense = moved._replace(tables=None)
        state, row_state = split_state(new_state)
        rows[visited] = Rows(moved.tables, row_state)
        # The other batch's rows have missed one step.
        waiting = Params(None, None, rows[other].values)
        missed, row_state = update(jax.tree.map(np.zeros_like, waiting), rows[other].opt_state, waiting)
        caught_up = Rows(_move(waiting, missed).tables, row_state)
        rests = rests and _equal(caught_up, rows[other])
        rows[other] = caught_up
        taken = (missed.tables, step.tables) if visited else (step.tables, missed.tables)
        steps.append(step._replace(tables=jax.tree.map(lambda *leaves: np.concatenate(leaves), *taken)))
    return steps, rests


def _ignores_others(update: Update, state: PyTree, params: Params, grads: list[Params], sizes: Sizes) -> bool:
    """Whether some rows step alike whatever values and states the others have."""
    # Two steps, so that there is something in the states.
    for grad in grads[:2]:
        step, state = update(grad, state, params)
        params = _move(params, step)
    expected = _together(update, state, params, grads[2:])
    first = sizes.batches[0]
    others = slice(first.stop, None)
    for extreme in EXTREMES:
        # The first batch and the dense leaves step without a look at other rows ...
        changed_params, changed_state = _fill((params, state), others, sizes, extreme, dense=False)
        steps = _together(update, changed_state, changed_params, grads[2:])
        if not _same([_take(step, first) for step in steps], [_take(step, first) for step in expected]):
            return False
        # ... and those without a look at the first batch and the dense leaves.
        changed_params, changed_state = _fill((params, state), first, sizes, extreme, dense=True)
        steps = _together(update, changed_state, changed_params, grads[2:])
        tables = [[_take(step, others).tables for step in some] for some in (steps, expected)]
        if not _same(*tables):
            return False
    return True


def _fill(tree: PyTree, rows: slice, sizes: Sizes, extreme: float, *, dense: bool) -> PyTree:
    """Parameters and states in which some rows, and dense leaves if asked for, are an extreme number."""

    def fill(leaf: PyTree, part: slice) -> PyTree:
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            return leaf
        filled = np.array(leaf)
        filled[part if filled.ndim else ...] = extreme
        return filled

    def fill_params(node: PyTree) -> PyTree:
        if not _is_params(node):
            return node
        tables = jax.tree.map(
            lambda x: fill(x, rows) if np.shape(x)[:1] == (sizes.table,) else x, node.tables
        )
        whole = node._replace(tables=None)
        return (jax.tree.map(lambda x: fill(x, slice(None)), whole) if dense else whole)._replace(
            tables=tables
        )

    return jax.tree.map(fill_params, tree, is_leaf=_is_params)


def _same(actual: list[PyTree], expected: list[PyTree]) -> bool:
    """Whether the steps of each row, or of each first axis, are the same for how large they get."""

    def same(*leaves: jax.Array) -> bool:
        steps = np.stack([np.asarray(leaf, np.float64) for leaf in leaves])
        ours, theirs = steps[: len(actual)], steps[len(actual) :]
        # [T, R, ...] to [T, R, n]
        ours, theirs = (
            x.reshape(*x.shape[:2], -1) if x.ndim > 1 else x.reshape(-1, 1, 1) for x in (ours, theirs)
        )
        finite = np.isfinite(theirs)
        largest = np.abs(theirs).max(axis=(0, 2), initial=0.0, where=finite)
        apart = np.abs(ours - theirs, where=finite, out=np.zeros_like(ours))
        return np.array_equal(np.isfinite(ours), finite) and bool(
            (apart <= TOLERANCE * largest[:, None]).all()
        )

    return all(jax.tree.leaves(jax.tree.map(same, *actual, *expected)))


def _equal(actual: PyTree, expected: PyTree) -> bool:
    """Whether two trees have the same bits."""
    same = jax.tree.map(lambda a, b: np.array_equal(np.asarray(a), np.asarray(b)), actual, expected)
    return all(jax.tree.leaves(same))


def _stay_or_decay(start: PyTree, *steps: PyTree) -> bool:
    """Whether rows that had no gradient in any step stay where they are, or all set out towards 0."""

    def stays_or_decays(values: np.ndarray, *moves: np.ndarray) -> bool:
        rounding = ROUNDING * np.abs(values)
        first = next((move for move in moves if not (np.abs(move) <= rounding).all()), None)
        return first is None or bool((first * values < 0).all())

    return all(jax.tree.leaves(jax.tree.map(stays_or_decays, start, *steps)))
