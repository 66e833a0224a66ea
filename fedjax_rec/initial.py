"""Where every client starts: its private leaves, and what its transform remembers."""

import jax
import jax.numpy as jnp

from fedjax_rec.clients import stream
from fedjax_rec.types import Key, Model, PyTree, Server, Transform


def init_private(model: Model, key: Key, num_clients: int, server: Server) -> PyTree:
    """Every client's private leaves at the start: each from its own key, and those with which all start alike.

    Args:
        model: how parameters start.
        key: the run's key.
        num_clients: N.
        server: the global model.

    Returns:
        leaves [N, ...].

    Example:
        >>> from fedjax_rec.algorithms.fedmf import matrix_factorisation
        >>> model = matrix_factorisation(4, 0.1, item_bias=True, ratings=False)
        >>> init_private(model, jax.random.key(0), 3, Server({}, {}))["vector"].shape
        (3, 4)
    """
    return private_of(model, stream(key, "private"), jnp.arange(num_clients), server)


def private_of(model: Model, start: Key, ids: jax.Array, server: Server) -> PyTree:
    """Some clients' private leaves at the start.

    Args:
        model: how parameters start.
        start: the stream "private" of the run's key.
        ids: int32[S], whose.
        server: the global model.

    Returns:
        leaves [S, ...].

    Example:
        see `init_private`, which is this for all clients.
    """
    own = jax.vmap(lambda i: model.init_private(jax.random.fold_in(start, i)))(ids)
    if model.init_alike is None:
        return own
    alike = model.init_alike(start, server)
    return own | jax.tree.map(lambda x: jnp.broadcast_to(x, (len(ids), *x.shape)), alike)


def init_memory(transform: Transform | None, num_clients: int, server: Server) -> PyTree:
    """What every client's transform remembers at the start: alike for all.

    Args:
        transform: of each client's update; None for none.
        num_clients: N.
        server: the global model, for its shapes.

    Returns:
        leaves [N, ...]; () where nothing is remembered.

    Example:
        >>> init_memory(None, 3, Server({}, {}))
        ()
    """
    if transform is None or transform.init is None:
        return ()
    one = transform.init(server)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), one)
