"""The server's part of a round: from what the clients sent to the next model."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.rows.tables import select
from fedjax_rec.server.noise import draw_noise
from fedjax_rec.types import Aggregator, Key, PyTree, Server, Stack, State, Totals


class ServerStep(NamedTuple):
    """What the server's step makes."""

    server: Server
    opt_state: optax.OptState
    norm: jax.Array  # float32[], of the step taken
    signal: jax.Array  # float32[], as in `RoundInfo`
    skipped: jax.Array  # bool[], whether the step was not taken
    proposed: Server  # what the optimizer would add to the model, whether or not it was taken


def decode_sums(aggregator: Aggregator, totals: Any) -> Any:
    """Floats again, from fixed-point sums; once all that is summed has been.

    Args:
        aggregator: says how integers are summed, if they are.
        totals: sums, or a stack, of what the clients sent.

    Returns:
        the same, deltas in floats.

    Example:
        >>> from fedjax_rec.server.aggregators import fixed_point, total
        >>> sums = Totals(Server(None, jnp.array([3 << 20])), jnp.float32(2), None)
        >>> decode_sums(fixed_point(total(), capacity=1000), sums).deltas.tables.tolist()
        [1.5]
    """
    if aggregator.fixed is None or aggregator.stacked:
        return totals
    return totals._replace(deltas=jax.tree.map(aggregator.fixed.decode, totals.deltas))


def step_server(
    aggregator: Aggregator,
    optimizer: optax.GradientTransformation,
    state: State,
    totals: Totals | Stack,
    noise_key: Key,
    enough: jax.Array,
) -> ServerStep:
    """The server's part of a round; a step that is not finite, or of too few without noise, is not taken.

    Args:
        aggregator: makes the update of the totals, and perhaps noise for it.
        optimizer: the server's.
        state: before the round.
        totals: sums, or a stack, of what the clients sent.
        noise_key: the run's key of the server's noise.
        enough: bool[], whether enough clients took part. Noise is added to a round of nobody too: that nobody came
            is private.

    Returns:
        the model and the optimizer's state after the round, and what to report.
    """

    def call(function: Callable, *arguments: PyTree) -> PyTree:
        if aggregator.fixed is None:
            return function(*arguments)
        return _call_apart(state.round >= 0, function, *arguments)

    # the aggregate, with the noise that hides each client
    update = call(aggregator.finish, totals)
    signal = jnp.float32(jnp.inf)
    if aggregator.noise is not None:
        noise = draw_noise(aggregator.noise, noise_key, state.round, update)
        signal = optax.tree.norm(update) / optax.tree.norm(noise)
        update = jax.tree.map(jnp.add, update, noise)

    # the optimizer descends, and so is given the negated aggregate
    descent = jax.tree.map(jnp.negative, update)
    proposed, opt_state = call(optimizer.update, descent, state.opt_state, state.server)

    # a step that is not finite, or of too few clients, is not taken
    norm = optax.tree.norm([x for x in jax.tree.leaves(proposed) if jnp.issubdtype(x.dtype, jnp.floating)])
    taken = jnp.isfinite(norm) & (enough | (aggregator.noise is not None))
    steps = select(taken, proposed, jax.tree.map(jnp.zeros_like, proposed))
    opt_state = select(taken, opt_state, state.opt_state)
    server = cast("Server", optax.apply_updates(state.server, steps))
    return ServerStep(server, opt_state, jnp.where(taken, norm, 0.0), signal, ~taken, proposed)


def _call_apart(always: jax.Array, function: Callable, *arguments: PyTree) -> PyTree:
    """Call a function in a branch that is always taken, which XLA compiles by itself.

    Fused with what stands around it, which differs with the number of devices, a product and a sum would be
    rounded once in one program and twice in another: equal integers would not give equal floats.
    """

    def never(*arguments: PyTree) -> PyTree:
        shapes = jax.eval_shape(function, *arguments)
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    return jax.lax.cond(always, function, never, *arguments)
