"""A flax module as what all clients share: its parameters are the server's dense leaves, its training a loss's."""

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import jax
import optax

from fedjax_rec.client.local_training import local_training
from fedjax_rec.client.population import Population
from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.types import Batch, ClientWork, Key, LocalBatches, Model, Params, PyTree, Server

Network = Callable[..., Any]  # inputs -> outputs of the module, with the parameters at hand


def flax_training(
    module: Any,
    loss: Callable[..., tuple[jax.Array, jax.Array]],
    optimizer: optax.GradientTransformation,
    batches: LocalBatches,
    *,
    inputs: Any,
    epochs: int = 1,
    init_private: Callable[[Key], PyTree] | None = None,
    init_tables: Callable[[Key, Population], PyTree] | None = None,
    score: Callable[[Network, PyTree, PyTree], jax.Array] | None = None,
) -> tuple[Model, ClientWork]:
    """Make model and clients' work of a flax (linen) module, for `federate`.

    The module's parameters are shared, and every client trains them. A recommender has private leaves and item
    tables besides, which its loss may use as it likes.

    Args:
        module: of `flax.linen`; it may hold parameters only, no running statistics.
        loss: (network, params, batch) -> (loss summed over the batch's examples float32[], their number
            float32[]), where `network(x)` is the module at the client's parameters, and takes what `module.apply`
            takes. One with a parameter `key` gets a new key in each local step, as for `rngs={"dropout": key}`.
        optimizer: of the clients, any optax transformation.
        batches: how a client's data is cut, such as `client.examples(32)`.
        inputs: one input as the module takes it, or a tuple of several; shapes alone matter.
        epochs: local epochs E.
        init_private: one client's private leaves; by default it has none.
        init_tables: item tables, leaves [I, ...]; by default there are none.
        score: (network, private leaves, tables) -> float32[I], for one client; None: not a recommender.

    Returns:
        the model and the work: `federate(*flax_training(...), aggregator="examples")`.

    Raises:
        ValueError: if the module is none of linen, or holds more than parameters; as `local_training`.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import linen as nn
        >>> from fedjax_rec.client.batches import examples
        >>> def loss(network, params, batch):
        ...     error = network(batch.data["x"])[:, 0] - batch.data["y"]
        ...     return (batch.data["mask"] * error**2).sum(), batch.data["mask"].sum()
        >>> model, work = flax_training(nn.Dense(1), loss, optax.sgd(0.1), examples(8), inputs=jnp.zeros((1, 3)))
        >>> jax.tree.map(jnp.shape, model.init_server(jax.random.key(0), None).shared)
        {'bias': (1,), 'kernel': (3, 1)}
    """
    check_arguments(flax_training, locals())
    from flax.errors import FlaxError

    given = inputs if isinstance(inputs, tuple) else (inputs,)
    _check_module(module, given)

    def network_of(shared: PyTree) -> Network:
        return partial(module.apply, {"params": shared})

    def init_server(key: Key, population: Population) -> Server:
        network_key, table_key = jax.random.split(key)
        tables = {} if init_tables is None else init_tables(table_key, population)
        return Server(module.init(network_key, *given)["params"], tables)

    @wraps(loss)  # so that errors name it, and its parameter `key` is seen
    def loss_of(params: Params, batch: Batch, **key: Key) -> tuple[jax.Array, jax.Array]:
        try:
            return loss(network_of(params.shared), params, batch, **key)
        except FlaxError as problem:  # of no type that says what was wrong with a value
            raise ValueError(str(problem)) from problem

    def score_of(read: Callable[..., jax.Array], private: PyTree, server: Server) -> jax.Array:
        return read(network_of(server.shared), private, server.tables)

    model = Model(
        (lambda key: {}) if init_private is None else init_private,  # noqa: ARG005 - nothing is private
        init_server,
        None if score is None else partial(score_of, score),
    )
    return model, local_training(loss_of, optimizer, batches, epochs=epochs)


def _check_module(module: Any, inputs: tuple[Any, ...]) -> None:
    """Refuse what is no linen module, and one that holds more than parameters: a round carries nothing else."""
    from flax import linen

    if not isinstance(module, linen.Module):
        raise ParameterError(
            "{module} must be a module of flax.linen, such as nn.Dense(1), not of {kind}; of flax.nnx take "
            "nnx.split and nnx.merge, and local_training",
            kind=f"{type(module).__module__}.{type(module).__qualname__}",
        )
    held = jax.eval_shape(lambda key: module.init(key, *inputs), jax.random.key(0))
    others = [name for name in held if name != "params"]
    if others:
        raise ParameterError(
            "{module} holds {held} besides parameters, which no round carries; normalise by GroupNorm or "
            "LayerNorm instead of BatchNorm",
            held=", ".join(others),
        )
