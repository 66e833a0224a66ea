"""Local training: a loss and any optax optimizer make one client's work.

Row-sparse exactness. A row that a batch does not touch has zero gradient, so training only ever needs the rows of
the current batch *plus* what the optimizer does to rows under a zero gradient. Two cases, told apart by trying the
optimizer on the model's own structure before the first round (`exactness`):

* rows **rest** (SGD, Adagrad, clipping of gradients): nothing to do;
* rows **move** (momentum, Adam, weight decay, FedProx's pull, and whatever counts steps): the engine replays the
  missed zero-gradient steps (`ClientWork.zero_gradient`) when a row is next visited, and after its last visit. The
  result equals dense training of the client's touched rows, step for step.

An optimizer that looks across rows (LAMB, Adafactor) is refused. Rows that the client never touches in the round
stay as they were: for weight decay this is a choice (dense training would shrink them too), for the rest exact;
an optimizer that would move them otherwise (a projection) is refused.
"""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.client.exactness import join_state, split_state, try_optimizer, zero_gradient_step
from fedjax_rec.errors import check_arguments
from fedjax_rec.types import (
    KEY_IMPL,
    Batch,
    ClientWork,
    Context,
    Descent,
    Key,
    LocalBatches,
    Params,
    PyTree,
    Rows,
    StepInfo,
    ZeroGradient,
)

Loss = Callable[..., tuple[jax.Array, jax.Array]]  # (params, batch) -> summed loss, number of examples
_DRAWS = 0x10C5  # the stream of keys for losses, apart from that of the client's batches


class Draws(NamedTuple):
    """What the random numbers of a loss come from."""

    words: jax.Array  # uint32[2], the client's key of this round
    steps: jax.Array  # int32[], that it has made


def local_training(
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batches: LocalBatches,
    *,
    epochs: int = 1,
    reads_ids: bool = True,
) -> ClientWork:
    """Train on each local batch in turn, with one optimizer over private, shared and touched rows.

    Args:
        loss: (params, batch) -> (loss summed over the batch's examples float32[], their number float32[]). One
            that has a parameter `key`, for dropout and the like, gets a new key in each local step.
        optimizer: any optax transformation; its state starts afresh for each client and round.
        batches: how the client's data is cut.
        epochs: local epochs E.
        reads_ids: whether the loss may look at the ids of a batch. False, where it does not, lets rounds work on
            the rows alone that a cohort touches.

    Returns:
        the client's work.

    Raises:
        ValueError: if `epochs` is below 1; in the first round, if the optimizer looks across item rows
            or moves those that a client never touches.

    Example:
        >>> from fedjax_rec.client.batches import with_negatives
        >>> def loss(params, batch):
        ...     return jnp.sum(params.tables**2), jnp.float32(1)
        >>> local_training(loss, optax.sgd(0.1), with_negatives(), epochs=2).epochs
        2
    """
    check_arguments(local_training, locals())
    if epochs < 1:
        raise ValueError(f"local epochs must be at least 1, not {epochs}")

    draws = wants_key(loss)

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del context
        params = Params(private, shared, None)
        own = Draws(jax.random.key_data(key), jnp.int32(0)) if draws else ()
        return params, optimizer.init(params), own

    def init_rows(values: PyTree) -> Rows:
        state = optimizer.init(Params(None, None, values))
        return Rows(values, state)

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        # one step of the optimizer on dense leaves and the batch's rows [B, ...] together
        dense, dense_state, own = local
        params = dense._replace(tables=rows.values)
        key = step_key(own) if draws else None
        (value, examples), grads = jax.value_and_grad(partial(call_loss, loss), has_aux=True)(
            params, batch, key
        )
        updates, state = optimizer.update(grads, join_state(dense_state, rows.opt_state), params)
        params = optax.apply_updates(params, updates)
        # rows wait with their own state until they are visited again
        dense_state, row_state = split_state(state)
        return (
            (params._replace(tables=None), dense_state, own._replace(steps=own.steps + 1) if draws else ()),
            Rows(params.tables, row_state),
            StepInfo(value, examples),
        )

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        params = local[0]
        return params.private, jax.tree.map(jnp.subtract, params.shared, shared)

    return ClientWork(
        batches=batches,
        epochs=epochs,
        start=start,
        init_rows=init_rows,
        step=step,
        finish=finish,
        zero_gradient=ZeroGradient(
            step=partial(zero_gradient_step, optimizer),
            is_identity=lambda example: try_optimizer(optimizer, example).rests,
        ),
        descent=Descent(loss, optimizer),
        reads_ids=reads_ids,
    )


def wants_key(loss: Loss) -> bool:
    """Whether a loss has a parameter `key`.

    Args:
        loss: of `local_training`.

    Returns:
        True or False.

    Example:
        >>> wants_key(lambda params, batch, key: (0.0, 1.0)), wants_key(lambda params, batch: (0.0, 1.0))
        (True, False)
    """
    try:
        return "key" in inspect.signature(loss).parameters
    except ValueError:  # some callables have no signature
        return False


def step_key(draws: Draws) -> jax.Array:
    """The key of a local step, as words: the same wherever the client trains.

    Args:
        draws: of the client.

    Returns:
        uint32[2].
    """
    key = jax.random.wrap_key_data(draws.words, impl=KEY_IMPL)
    return jax.random.key_data(jax.random.fold_in(jax.random.fold_in(key, _DRAWS), draws.steps))


def call_loss(
    loss: Loss, params: Params, batch: Batch, words: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Call a loss, with a key if it wants one.

    Args:
        loss: of `local_training`.
        params: of one client.
        batch: of it.
        words: uint32[2], the key of this step; None for a loss that wants none.

    Returns:
        the summed loss and the number of examples.
    """
    more: dict[str, Any] = {}
    if wants_key(loss):
        more["key"] = jax.random.wrap_key_data(cast("jax.Array", words), impl=KEY_IMPL)
    return loss(params, batch, **more)


def stateless_rows(values: PyTree) -> Rows:
    """Rows without an optimizer's state: the `init_rows` of work that descends by itself.

    Args:
        values: leaves [B, ...].

    Returns:
        the rows.

    Example:
        >>> stateless_rows(jnp.zeros((2, 3))).opt_state
        ()
    """
    return Rows(values, ())


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
    check_arguments(proximal, locals())
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
