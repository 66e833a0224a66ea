"""Local training: a loss and any optax optimizer make one client's work.

Row-sparse exactness. A row that a batch does not touch has zero gradient, so training only ever needs the rows of
the current batch *plus* what the optimizer does to rows under a zero gradient. Two cases, told apart by probing
the optimizer once:

* rows **rest** (SGD, Adagrad, gradient clipping, any schedule): nothing to do;
* rows **move** (momentum, Adam, weight decay, FedProx's pull): the engine replays the missed zero-gradient steps
  with `idle` when a row is next visited, and after its last visit. The result equals dense training of the
  client's touched rows, step for step.

Rows that the client never touches in the round stay as they were. For weight decay this is a choice (dense
training would shrink them too); for every other rule it is exact.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.types import Batch, ClientWork, Key, LocalBatches, Params, PyTree, Rows, StepInfo

Loss = Callable[[Params, Batch], tuple[jax.Array, jax.Array]]  # -> summed loss, number of examples


def local_training(
    loss: Loss, optimizer: optax.GradientTransformation, batches: LocalBatches, *, epochs: int = 1
) -> ClientWork:
    """Train on each local batch in turn, with one optimizer over private, shared and touched rows.

    Args:
        loss: (params, batch) -> (loss summed over the batch's examples float32[], their number float32[]).
        optimizer: any optax transformation; its state starts afresh for each client and round.
        batches: how the client's data is cut.
        epochs: local epochs E.

    Returns:
        the client's work.

    Raises:
        ValueError: if `epochs` is below 1.

    Example:
        >>> from fedjax_rec.batches import with_negatives
        >>> def loss(params, batch):
        ...     return jnp.sum(params.tables**2), jnp.float32(1)
        >>> local_training(loss, optax.sgd(0.1), with_negatives()).idle is None
        True
    """
    if epochs < 1:
        raise ValueError(f"local epochs must be at least 1, not {epochs}")

    def start(key: Key, private: PyTree, shared: PyTree) -> PyTree:
        del key
        params = Params(private, shared, None)
        return params, optimizer.init(params)

    def touch(values: PyTree) -> Rows:
        state = optimizer.init(Params(None, None, values))
        return Rows(values, state)

    def step(local: PyTree, rows: Rows, batch: Batch) -> tuple[PyTree, Rows, StepInfo]:
        dense, dense_state = local
        params = dense._replace(tables=rows.values)
        (value, examples), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        updates, state = optimizer.update(grads, _join(dense_state, rows.memory), params)
        params = optax.apply_updates(params, updates)
        local = params._replace(tables=None), _keep_dense(state)
        return local, Rows(params.tables, _keep_rows(state)), StepInfo(value, examples)

    def idle(rows: Rows) -> Rows:
        params = Params(None, None, rows.values)
        updates, memory = optimizer.update(jax.tree.map(jnp.zeros_like, params), rows.memory, params)
        return Rows(optax.apply_updates(params, updates).tables, memory)

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        params, _ = local
        return params.private, jax.tree.map(jnp.subtract, params.shared, shared)

    rest = rows_rest(optimizer)
    return ClientWork(
        batches, epochs, start, touch, step, None if rest else idle, finish, made_of=(loss, optimizer)
    )


def rows_rest(optimizer: optax.GradientTransformation) -> bool:
    """Whether a zero gradient leaves a row and its optimizer memory alone.

    Found by trying: two steps from three starts, the second with a zero gradient. An optimizer whose settings are
    being traced (a vmap over learning rates) cannot be tried and counts as one that moves rows, which is slower
    but always right.

    Args:
        optimizer: any optax transformation.

    Returns:
        True for SGD and Adagrad, False for momentum, Adam, weight decay, FedProx.

    Example:
        >>> rows_rest(optax.adagrad(0.1)), rows_rest(optax.adam(0.1))
        (True, False)
    """
    try:
        with jax.ensure_compile_time_eval():
            return all(_rests(optimizer, value) for value in (-1.5, 0.75, 3.0))
    except (jax.errors.ConcretizationTypeError, jax.errors.UnexpectedTracerError):
        return False


def _rests(optimizer: optax.GradientTransformation, value: float) -> bool:
    params = Params(None, None, jnp.full((2, 3), value))
    gradient = Params(None, None, jnp.array([[1.0, -2.0, 0.5], [0.25, 3.0, -1.0]]))
    updates, state = optimizer.update(gradient, optimizer.init(params), params)
    moved = optax.apply_updates(params, updates)
    updates, after = optimizer.update(jax.tree.map(jnp.zeros_like, gradient), state, moved)
    before_rows, after_rows = jax.tree.leaves(_only_rows(state)), jax.tree.leaves(_only_rows(after))
    same = [bool(jnp.array_equal(a, b)) for a, b in zip(before_rows, after_rows, strict=True)]
    return all(same) and not bool(jnp.any(updates.tables))


def _is_params(node: Any) -> bool:
    return isinstance(node, Params)


def _join(dense: PyTree, rows: PyTree) -> PyTree:
    """Optimizer state of the joint tree: dense leaves and counters from `dense`, tables from `rows`."""
    return jax.tree.map(
        lambda d, r: d._replace(tables=r.tables) if _is_params(d) else d, dense, rows, is_leaf=_is_params
    )


def _keep_dense(state: PyTree) -> PyTree:
    return jax.tree.map(lambda s: s._replace(tables=None) if _is_params(s) else s, state, is_leaf=_is_params)


def _keep_rows(state: PyTree) -> PyTree:
    """State of the rows alone; counters are copied, so that a batch's rows can be replayed on their own."""
    return jax.tree.map(
        lambda s: Params(None, None, s.tables) if _is_params(s) else s, state, is_leaf=_is_params
    )


def _only_rows(state: PyTree) -> list[PyTree]:
    nodes = jax.tree.leaves(state, is_leaf=_is_params)
    return [node.tables for node in nodes if _is_params(node)]


class ProximalState(NamedTuple):
    """Where the client started: the point that FedProx pulls back to."""

    anchor: Params


def proximal(strength: float) -> optax.GradientTransformation:
    """FedProx: pull shared leaves and table rows back to the global model.

    Adds the gradient of `strength / 2 * |w - w_global|^2`. Private leaves have no global value and feel no pull.
    Put it before the optimizer: `optax.chain(proximal(0.01), optax.sgd(0.05))`.

    Args:
        strength: the paper's mu, at least 0.

    Returns:
        a gradient transformation over `Params`.

    Raises:
        ValueError: if the strength is negative.

    Example:
        >>> params = Params(None, jnp.array(1.0), jnp.array([2.0]))
        >>> pull = proximal(0.5)
        >>> updates, _ = pull.update(jax.tree.map(jnp.zeros_like, params), pull.init(params), params)
        >>> float(updates.shared)
        0.0

    Source: Li et al. 2020, "Federated optimization in heterogeneous networks", eq. 2.
    """
    if isinstance(strength, (int, float)) and strength < 0:
        raise ValueError(f"the proximal strength must be at least 0, not {strength}")

    def init(params: Params) -> ProximalState:
        return ProximalState(params._replace(private=None))

    def update(
        grads: Params, state: ProximalState, params: Params | None = None
    ) -> tuple[Params, ProximalState]:
        if params is None:
            raise ValueError("proximal needs the parameters: call update(grads, state, params)")
        pulled = jax.tree.map(
            lambda g, p, a: g + strength * (p - a),
            (grads.shared, grads.tables),
            (params.shared, params.tables),
            (state.anchor.shared, state.anchor.tables),
        )
        return Params(grads.private, *pulled), state

    return optax.GradientTransformation(init, update)
