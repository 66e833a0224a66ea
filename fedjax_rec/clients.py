"""Clients of a round: their streams of random numbers, their keys, their data's place.

A client's key is fold_in(fold_in(client stream, round), client id) and nothing else, so that its place in the
cohort, its lane and its device are invisible.
"""

import jax

from fedjax_rec.population import Population
from fedjax_rec.types import Client, Key

PURPOSES = ("init", "private", "cohort", "client", "noise", "faults", "evaluation", "privacy", "attack")


def stream(key: Key, purpose: str) -> Key:
    """The run's key for one purpose; streams of different purposes never meet.

    Args:
        key: the run's key.
        purpose: one of `PURPOSES`.

    Returns:
        a key.

    Example:
        >>> bool(stream(jax.random.key(0), "init") == stream(jax.random.key(0), "client"))
        False
    """
    return jax.random.fold_in(key, PURPOSES.index(purpose))


def client_keys(key: Key, ids: jax.Array) -> jax.Array:
    """Words of the clients' keys in one round's stream.

    Args:
        key: the stream of one purpose and round.
        ids: int32[C].

    Returns:
        uint32[C, 2].

    Raises:
        ValueError: on keys that are not jax's default kind.

    Example:
        >>> import jax.numpy as jnp
        >>> client_keys(jax.random.key(0), jnp.arange(3)).shape
        (3, 2)
    """
    keys = jax.vmap(lambda i: jax.random.key_data(jax.random.fold_in(key, i)))(ids)
    if keys.shape[1:] != (2,):
        raise ValueError("clients draw from keys of two words; use jax.random.key(seed) without another impl")
    return keys


def keys_since(key: Key, rounds: jax.Array, ids: jax.Array) -> jax.Array:
    """Words of the keys of clients that started in different rounds.

    Args:
        key: the stream of one purpose.
        rounds: int32[C], in which each started.
        ids: int32[C].

    Returns:
        uint32[C, 2], alike to `client_keys` of those rounds.

    Example:
        >>> import jax.numpy as jnp
        >>> key, ids = jax.random.key(0), jnp.arange(3)
        >>> found = keys_since(key, jnp.array([4, 5, 5]), ids)
        >>> bool((found[1:] == client_keys(jax.random.fold_in(key, 5), ids)[1:]).all())
        True
    """
    return jax.vmap(lambda t, i: client_keys(jax.random.fold_in(key, t), i[None])[0])(rounds, ids)


def name_clients(key: Key, ids: jax.Array, population: Population) -> Client:
    """Who the clients of a cohort are: their data's place and their keys.

    Args:
        key: the round's client stream.
        ids: int32[C].
        population: N clients.

    Returns:
        leaves [C, ...].

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from fedjax_rec.population import build
        >>> population = build(np.array([0, 2, 3]), np.array([0, 1, 1]), None, 2)
        >>> name_clients(jax.random.key(0), jnp.array([1]), population).num_examples.tolist()
        [1]
    """
    offset = population.offsets[ids]
    return Client(ids, offset, population.offsets[ids + 1] - offset, client_keys(key, ids))
