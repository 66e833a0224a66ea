"""Is training touched rows only exact for this optimizer? Found by trying, on the model's own structure.

The engine trains one batch's rows at a time and replays, with zero gradients, the steps that the other rows
missed. That equals training all of a client's rows together if the optimizer treats each row apart from the rest.
Most rules do (SGD, momentum, Adam, Adagrad, clipping of gradients, weight decay, schedules); rules that look
across rows do not (LARS, LAMB, Adafactor, a global norm taken after Adam), and are refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rec.types import Params, PyTree, Rows

STEPS = 6  # three visits of each of two batches
ROWS = 2  # rows of a trial batch
TOLERANCE = 1e-4
_RESTS_UNTRIED = ContextVar("rests_untried", default=False)


class Trial(NamedTuple):
    """What the trial found."""

    rests: bool  # a zero gradient leaves rows and their memory alone, at every step


def try_optimizer(optimizer: optax.GradientTransformation, example: Params) -> Trial:
    """Train two batches of rows both ways, and see what a zero gradient does.

    An optimizer whose settings are being traced (a vmap over learning rates) cannot be tried: it counts as one
    that moves rows, which is slower but always right, unless `assume_rest` says what is known of it. So does one
    that counts steps, such as any schedule: what it does to a row under a zero gradient may change later.

    Args:
        optimizer: any optax transformation.
        example: shapes of one client's private and shared leaves and of one batch's rows [B, ...].

    Returns:
        what was found.

    Raises:
        ValueError: if training rows apart differs from training them together.

    Example:
        >>> example = Params({}, {}, {"vector": jnp.zeros((5, 3))})
        >>> try_optimizer(optax.sgd(0.1), example).rests, try_optimizer(optax.adam(0.1), example).rests
        (True, False)
        >>> try_optimizer(optax.lamb(0.1), example)
        Traceback (most recent call last):
        ValueError: the local optimizer looks across item rows, ...
    """
    try:
        with jax.ensure_compile_time_eval():
            start, grads = _numbers(example, 0), [_numbers(example, 1 + t) for t in range(STEPS)]
            together, apart = _together(optimizer, start, grads), _apart(optimizer, start, grads)
            exact = all(map(_close, jax.tree.leaves(apart), jax.tree.leaves(together)))
            rests = exact and _rests(optimizer, start, grads[0])
    except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError):
        return Trial(rests=_RESTS_UNTRIED.get())
    if not exact:
        raise ValueError(
            "the local optimizer looks across item rows, so training touched rows only would differ from dense "
            "training; use rules that act on each row (sgd, momentum, adam, adagrad, clipping before them)"
        )
    return Trial(rests)


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
    """Split an optimizer state into the dense leaves' part and the rows' part; both keep the counters.

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
    """Undo `split_state`; counters come from the dense part.

    Args:
        dense: the dense leaves' part.
        rows: the rows' part.

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


def idle_step(optimizer: optax.GradientTransformation, rows: Rows) -> Rows:
    """One step in which these rows have no gradient.

    Args:
        optimizer: any optax transformation.
        rows: values and memory.

    Returns:
        both after the step.

    Example:
        >>> rule, values = optax.trace(0.5), jnp.array([1.0])
        >>> state = rule.init(Params(None, None, values))._replace(trace=Params(None, None, jnp.array([4.0])))
        >>> idle_step(rule, Rows(values, state)).values.tolist()
        [3.0]
    """
    params = Params(None, None, rows.values)
    updates, memory = optimizer.update(jax.tree.map(jnp.zeros_like, params), rows.memory, params)
    return Rows(optax.apply_updates(params, updates).tables, memory)


def _is_params(node: object) -> bool:
    return isinstance(node, Params)


def _numbers(example: Params, seed: int) -> Params:
    """Two trial batches of the example's structure, `tables` leaves [2 * ROWS, ...]."""
    rng = np.random.default_rng(seed)

    def draw(shape: tuple[int, ...]) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    private, shared = jax.tree.map(lambda x: draw(x.shape), (example.private, example.shared))
    return Params(private, shared, jax.tree.map(lambda x: draw((2 * ROWS, *x.shape[1:])), example.tables))


def _half(tables: PyTree, turn: int) -> PyTree:
    return jax.tree.map(lambda x: x[turn * ROWS : (turn + 1) * ROWS], tables)


def _together(optimizer: optax.GradientTransformation, params: Params, grads: list[Params]) -> Params:
    """All rows at once; in step t batch t mod 2 has a gradient."""
    state = optimizer.init(params)
    for t, grad in enumerate(grads):
        mask = jnp.arange(2 * ROWS) // ROWS == t % 2
        rows = jax.tree.map(lambda g, m=mask: g * m.reshape((-1,) + (1,) * (g.ndim - 1)), grad.tables)
        updates, state = optimizer.update(grad._replace(tables=rows), state, params)
        params = optax.apply_updates(params, updates)
    return params


def _apart(optimizer: optax.GradientTransformation, params: Params, grads: list[Params]) -> Params:
    """As the engine does: the visited batch in a joint step, the other one idle."""
    dense = params._replace(tables=None)
    state = optimizer.init(dense)
    halves = [_half(params.tables, turn) for turn in (0, 1)]
    blocks = [Rows(half, optimizer.init(Params(None, None, half))) for half in halves]
    for t, grad in enumerate(grads):
        now, other = t % 2, 1 - t % 2
        joint = dense._replace(tables=blocks[now].values)
        gradient = grad._replace(tables=_half(grad.tables, now))
        updates, new = optimizer.update(gradient, join_state(state, blocks[now].memory), joint)
        joint = optax.apply_updates(joint, updates)
        state, memory = split_state(new)
        dense, blocks[now] = joint._replace(tables=None), Rows(joint.tables, memory)
        blocks[other] = idle_step(optimizer, blocks[other])
    tables = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), blocks[0].values, blocks[1].values)
    return dense._replace(tables=tables)


def _rests(optimizer: optax.GradientTransformation, params: Params, grad: Params) -> bool:
    """Whether a row, once moved, stays where it is: for rules whose state is per row, so that steps are alike."""
    state = optimizer.init(Params(None, None, params.tables))
    nodes = jax.tree.leaves(state, is_leaf=_is_params)
    if not all(_is_params(node) for node in nodes):
        return False
    rows = Params(None, None, params.tables)
    updates, state = optimizer.update(Params(None, None, grad.tables), state, rows)
    before = Rows(optax.apply_updates(rows, updates).tables, state)
    after = idle_step(optimizer, before)
    same = jax.tree.map(lambda a, b: bool(jnp.array_equal(a, b)), before, after)
    return all(jax.tree.leaves(same))


def _close(one: jax.Array, other: jax.Array) -> bool:
    return bool(jnp.abs(one - other).max(initial=0.0) <= TOLERANCE * jnp.abs(other).max(initial=1.0))
