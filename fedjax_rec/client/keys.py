"""Clients of a round: their streams of random numbers, their keys, and where their data lies.

A client's key is fold_in(fold_in(client stream, round), client id) and nothing else, so that its slot in the
cohort, its lane and its device are invisible.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.errors import ParameterError
from fedjax_rec.types import KEY_IMPL, Client, Key

PURPOSES = (
    "init",
    "private",
    "cohort",
    "client",
    "transform",
    "faults",
    "evaluation",
    "server noise",
    "attack",
)


def key_of(seed: int | Key) -> Key:
    """The key of a run.

    Args:
        seed: a number of 64 bits, of which none is dropped; or a key already.

    Returns:
        for a number below 2^32 what `jax.random.key` gives by jax's own defaults, whatever they are set to here.

    Raises:
        ValueError: if the number has more than 64 bits or is negative, or the key is of another kind.

    Example:
        >>> bool(key_of(3) == jax.random.key(3)), bool(key_of(3) == key_of(2**32 + 3))
        (True, False)
    """
    if not isinstance(seed, int | np.integer):
        _check_words(jax.random.key_data(seed))
        return seed
    if not 0 <= seed < 2**64:
        raise ParameterError("{seed}={value} is out of range; give a number from 0 to 2^64 - 1", value=seed)
    words = np.array([int(seed) >> 32, int(seed) & 0xFFFFFFFF], np.uint32)
    return jax.random.wrap_key_data(jnp.asarray(words), impl=KEY_IMPL)


def _check_words(words: jax.Array) -> None:
    if words.shape[-1:] != (2,):
        raise ParameterError(
            "clients draw from keys of two words, and this one has others (jax's default, set by "
            "JAX_DEFAULT_PRNG_IMPL, is {default}); give an integer as {seed}, or "
            "jax.random.key(seed, impl='{impl}')",
            default=getattr(jax.config, "jax_default_prng_impl"),  # noqa: B009 - jax does not declare it
            impl=KEY_IMPL,
        )


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
    _check_words(keys)
    return keys


def keys_since(key: Key, rounds: jax.Array, ids: jax.Array) -> jax.Array:
    """Words of the keys of clients that started in different rounds.

    Args:
        key: the stream of one purpose.
        rounds: int32[C], in which each started.
        ids: int32[C].

    Returns:
        uint32[C, 2], equal to `client_keys` of those rounds.

    Example:
        >>> import jax.numpy as jnp
        >>> key, ids = jax.random.key(0), jnp.arange(3)
        >>> words = keys_since(key, jnp.array([4, 5, 5]), ids)
        >>> bool((words[1:] == client_keys(jax.random.fold_in(key, 5), ids)[1:]).all())
        True
    """
    return jax.vmap(lambda t, i: client_keys(jax.random.fold_in(key, t), i[None])[0])(rounds, ids)


def name_clients(key: Key, ids: jax.Array, population: Population) -> Client:
    """Who the clients of a cohort are: where their data lies, and their keys.

    Args:
        key: the round's client stream.
        ids: int32[C].
        population: N clients.

    Returns:
        leaves [C, ...].

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from fedjax_rec.client.population import build
        >>> population = build(np.array([0, 2, 3]), np.array([0, 1, 1]), None, 2)
        >>> name_clients(jax.random.key(0), jnp.array([1]), population).num_examples.tolist()
        [1]
    """
    offset = population.offsets[ids]
    return Client(ids, offset, population.offsets[ids + 1] - offset, client_keys(key, ids))
