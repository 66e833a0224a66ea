"""Whole runs as pure functions of a key, and batches of seeds as one compiled program."""

from collections.abc import Callable
from functools import lru_cache

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_rec.client.population import Population, check_order
from fedjax_rec.engine.devices import AXIS, LEAST_SHARE, choose_devices, client_mesh
from fedjax_rec.errors import check_arguments, suggest_names
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.types import Algorithm, Key, RoundInfo, State


def train(key: Key, algorithm: Algorithm, population: Population, rounds: int) -> tuple[State, RoundInfo]:
    """A whole run as one pure function of its key: initialise, then so many rounds.

    Several seeds run with `train_seeds`, which maps this function over keys.

    Args:
        key: the run's key.
        algorithm: as `federate` returns it.
        population: the clients.
        rounds: T.

    Returns:
        the final state, and leaves [T].

    Example:
        >>> import fedjax_rec as fr
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
        >>> algorithm, population = fr.fedmf(dim=2, cohort=2), fr.Population.from_frame(frame)
        >>> state, infos = train(jax.random.key(0), algorithm, population, 5)
        >>> infos.loss.shape
        (5,)
    """
    check_order(algorithm, population)
    return run_block(algorithm, rounds, key, algorithm.init(key, population), population, jnp.int32(rounds))


@suggest_names
def train_seeds(
    keys: Key, algorithm: Algorithm, population: Population, rounds: int
) -> tuple[State, RoundInfo]:
    """Several runs as one compiled program: the seeds are split over the devices, and take turns on each.

    `jax.vmap` over `train` gives the same but is slower than a loop: the loop over clients then runs as long as
    the longest of the batch and selects its whole state in every step.

    One program has no half-time: Ctrl-C ends it, for Python, once all runs are done, and nothing of it is kept.
    Where runs take long, call `simulate` in a loop, which keeps what was done, or with checkpoints.

    Args:
        keys: [S], one for each run.
        algorithm: as `federate` returns it, without a mesh: here devices are for seeds, not for clients.
        population: the clients.
        rounds: T.

    Returns:
        the final states, leaves [S, ...], and leaves [S, T].

    Raises:
        ValueError: if the algorithm splits its cohorts over devices.

    Example:
        >>> import fedjax_rec as fr
        >>> import pandas as pd
        >>> frame = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
        >>> algorithm, population = fr.fedmf(dim=2, cohort=2), fr.Population.from_frame(frame)
        >>> states, infos = train_seeds(jax.random.split(jax.random.key(0), 3), algorithm, population, 5)
        >>> infos.loss.shape
        (3, 5)
    """
    check_arguments(train_seeds, locals())
    if algorithm.mesh is not None:
        raise ValueError("seeds are split over the devices here; make the algorithm without a mesh")
    check_order(algorithm, population)
    return _seeds_program(algorithm, rounds, len(keys))(keys, population.without_ids())


@lru_cache(maxsize=16)
def _seeds_program(algorithm: Algorithm, rounds: int, count: int) -> Callable:
    mesh = client_mesh(choose_devices(LEAST_SHARE * count))

    def batch(keys: Key, population: Population) -> tuple[State, RoundInfo]:
        return jax.lax.map(lambda key: train(key, algorithm, population, rounds), keys)

    if mesh is None:
        return jax.jit(batch)
    by_seed = PartitionSpec(AXIS)
    replicated = PartitionSpec()
    sharded = jax.shard_map(
        batch, mesh=mesh, in_specs=(by_seed, replicated), out_specs=by_seed, check_vma=False
    )

    @jax.jit
    def padded(keys: Key, population: Population) -> tuple[State, RoundInfo]:
        all_keys = keys[jnp.arange(count + -count % mesh.size) % count]  # devices left over repeat a seed
        return jax.tree.map(lambda x: x[:count], sharded(all_keys, population))

    return padded
