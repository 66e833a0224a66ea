"""Many rounds as one compiled program: blocks of rounds, whole runs, and batches of seeds.

A run is a pure function of its key: `train` is that function, and `train_seeds` maps it over keys. `run_block`
takes its number of rounds as an argument, so that one compilation serves every block of a run, and
`Compilations` says whether it did.
"""

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fedjax_rec.devices import AXIS, LEAST_SHARE, choose_devices, client_mesh
from fedjax_rec.population import Population
from fedjax_rec.types import Algorithm, Key, RoundInfo, State

COMPILED = "/jax/core/compile/backend_compile_duration"  # what jax.monitoring calls a compilation


class Compilations:
    """Counts how often jax compiles a function, in this thread, inside `with` blocks.

    Args:
        name: of the jitted function.

    Example:
        >>> def double(x):
        ...     return x * 2
        >>> compilations, program = Compilations("double"), jax.jit(double)
        >>> with compilations:
        ...     _ = program(jnp.zeros(1)), program(jnp.ones(1)), program(jnp.zeros(2))
        >>> compilations.count
        2
    """

    def __init__(self, name: str) -> None:
        self.name, self.count, self._thread = f"jit({name})", 0, 0

    def _note(self, event: str, duration_secs: float, **facts: str | int) -> None:
        del duration_secs
        mine = threading.get_ident() == self._thread and facts.get("fun_name") == self.name
        self.count += event == COMPILED and mine

    def __enter__(self) -> Self:
        self._thread = threading.get_ident()
        jax.monitoring.register_event_duration_secs_listener(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._note)


def run_block(
    algorithm: Algorithm, size: int, key: Key, state: State, population: Population, count: jax.Array
) -> tuple[State, RoundInfo]:
    """Run up to `size` rounds in one compiled loop.

    Args:
        algorithm: the algorithm (static).
        size: the most rounds that a block can hold (static).
        key: the run's key.
        state: where to start.
        population: the clients.
        count: int32[], how many rounds to run; a run-time value, so that any count shares one program.

    Returns:
        the state after `count` rounds, and leaves [size] of which the first `count` are filled.

    Example:
        see `simulate`.
    """
    shapes = jax.eval_shape(algorithm.round, key, state, population)[1]
    if size == 0:
        return state, jax.tree.map(lambda s: jnp.zeros((0, *s.shape), s.dtype), shapes)
    empty = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(turn: jax.Array, carry: tuple[State, RoundInfo]) -> tuple[State, RoundInfo]:
        state, infos = carry
        state, info = algorithm.round(key, state, population)
        return state, jax.tree.map(lambda all_, one: all_.at[turn].set(one), infos, info)

    return jax.lax.fori_loop(0, count, body, (state, empty))


def check_state(algorithm: Algorithm, key: Key, state: State, population: Population) -> None:
    """Refuse a state that another algorithm, other settings or another population has made.

    Args:
        algorithm: that is to go on from it.
        key: the run's key.
        state: where to start.
        population: the clients.

    Raises:
        ValueError: naming the field whose leaves or shapes differ.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> population, key = tiny_population(), jax.random.key(0)
        >>> state = fr.fedmf(dim=2).init(key, population)
        >>> check_state(fr.fedmf(dim=3), key, state, population)
        Traceback (most recent call last):
        ValueError: state.server is not that of this algorithm, with these settings and clients; ...
    """
    wanted = jax.eval_shape(algorithm.init, key, population)
    for name in State._fields:
        leaves: list[Any] = [jax.tree.flatten(getattr(each, name)) for each in (state, wanted)]
        shapes = [([x.shape for x in found], structure) for found, structure in leaves]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"state.{name} is not that of this algorithm, with these settings and clients; make the algorithm "
                "as it was when the state was made, or leave state= out to start anew"
            )


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
    return run_block(algorithm, rounds, key, algorithm.init(key, population), population, jnp.int32(rounds))


def train_seeds(
    keys: Key, algorithm: Algorithm, population: Population, rounds: int
) -> tuple[State, RoundInfo]:
    """Several runs as one compiled program: the seeds are split over the devices, and take turns on each.

    `jax.vmap` over `train` gives the same but is slower than a loop: the loop over clients then runs as long as
    the longest of the batch and selects its whole state in every step.

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
    if algorithm.mesh is not None:
        raise ValueError("seeds are split over the devices here; make the algorithm without a mesh")
    return _seeds_program(algorithm, rounds, len(keys))(keys, population)


@lru_cache(maxsize=16)
def _seeds_program(algorithm: Algorithm, rounds: int, count: int) -> Callable:
    mesh = client_mesh(choose_devices(LEAST_SHARE * count))

    def batch(keys: Key, population: Population) -> tuple[State, RoundInfo]:
        return jax.lax.map(lambda key: train(key, algorithm, population, rounds), keys)

    if mesh is None:
        return jax.jit(batch)
    split, replicated = PartitionSpec(AXIS), PartitionSpec()
    spread = jax.shard_map(batch, mesh=mesh, in_specs=(split, replicated), out_specs=split, check_vma=False)

    @jax.jit
    def padded(keys: Key, population: Population) -> tuple[State, RoundInfo]:
        every = keys[jnp.arange(count + -count % mesh.size) % count]  # devices left over repeat a seed
        return jax.tree.map(lambda x: x[:count], spread(every, population))

    return padded
