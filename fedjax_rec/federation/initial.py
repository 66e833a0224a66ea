"""Where every client starts: its private leaves, and the state of its transform."""

import jax
import jax.numpy as jnp

from fedjax_rec.client.keys import stream
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import Key, Model, PyTree, Server


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
    key = stream(key, "private")
    return private_of(model, key, jnp.arange(num_clients), common_of(model, key, server))


def common_of(model: Model, key: Key, server: Server) -> PyTree:
    """The private leaves with which all clients start alike.

    Args:
        model: how parameters start.
        key: the stream "private" of the run's key.
        server: the global model.

    Returns:
        leaves of one client; {} where there are none.
    """
    return {} if model.init_common is None else model.init_common(key, server)


def private_of(model: Model, key: Key, ids: jax.Array, common: PyTree) -> PyTree:
    """Some clients' private leaves at the start.

    Args:
        model: how parameters start.
        key: the stream "private" of the run's key.
        ids: int32[S], whose.
        common: of `common_of`.

    Returns:
        leaves [S, ...].
    """
    own = jax.vmap(lambda i: model.init_private(jax.random.fold_in(key, i)))(ids)
    return own | for_each(common, len(ids)) if common else own


def for_each(leaves: PyTree, num_clients: int) -> PyTree:
    """The same leaves for each of some clients.

    Args:
        leaves: of one.
        num_clients: S.

    Returns:
        leaves [S, ...].

    Example:
        >>> for_each(jnp.zeros(3), 2).shape
        (2, 3)
    """
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), leaves)


def init_transform_state(transform: Transform | None, num_clients: int, server: Server) -> PyTree:
    """The state of every client's transform at the start: the same for all.

    Args:
        transform: of each client's update; None for none.
        num_clients: N.
        server: the global model, for its shapes.

    Returns:
        leaves [N, ...]; () where the transform has none.

    Example:
        >>> init_transform_state(None, 3, Server({}, {}))
        ()
    """
    return for_each(transform_state_of(transform, server), num_clients)


def transform_state_of(transform: Transform | None, server: Server) -> PyTree:
    """The state of one client's transform at the start.

    Args:
        transform: of each client's update; None for none.
        server: the global model, for its shapes.

    Returns:
        leaves; () where the transform has none.

    Example:
        >>> transform_state_of(None, Server({}, {}))
        ()
    """
    return () if transform is None or transform.init is None else transform.init(server)
