"""Local training: a loss and any optax optimizer make one client's work.

Row-sparse exactness. A row that a batch does not touch has zero gradient, so training only ever needs the rows of
the current batch *plus* what the optimizer does to rows under a zero gradient. Two cases, told apart by trying the
optimizer on the model's own structure before the first round (`exactness`):

* rows **rest** (SGD, Adagrad, clipping of gradients): nothing to do;
* rows **move** (momentum, Adam, weight decay, FedProx's pull, and whatever counts steps): the engine replays the
  missed zero-gradient steps with `idle` when a row is next visited, and after its last visit. The result equals
  dense training of the client's touched rows, step for step.

An optimizer that looks across rows (LAMB, Adafactor) is refused. Rows that the client never touches in the round
stay as they were: for weight decay this is a choice (dense training would shrink them too), for the rest exact.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.exactness import idle_step, join_state, split_state, try_optimizer
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
        ValueError: if `epochs` is below 1; in the first round, if the optimizer looks across item rows.

    Example:
        >>> from fedjax_rec.batches import with_negatives
        >>> def loss(params, batch):
        ...     return jnp.sum(params.tables**2), jnp.float32(1)
        >>> local_training(loss, optax.sgd(0.1), with_negatives(), epochs=2).epochs
        2
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
        updates, state = optimizer.update(grads, join_state(dense_state, rows.memory), params)
        params = optax.apply_updates(params, updates)
        dense_state, memory = split_state(state)
        return (
            (params._replace(tables=None), dense_state),
            Rows(params.tables, memory),
            StepInfo(value, examples),
        )

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        params, _ = local
        return params.private, jax.tree.map(jnp.subtract, params.shared, shared)

    return ClientWork(
        batches,
        epochs,
        start,
        touch,
        step,
        partial(idle_step, optimizer),
        finish,
        rests=lambda example: try_optimizer(optimizer, example).rests,
        made_of=(loss, optimizer),
    )


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
