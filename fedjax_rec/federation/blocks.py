"""A block of rounds as one compiled program.

`run_block` takes its number of rounds as an argument, so that one compilation serves every block of a run, and
`Compilations` says whether it did. Whole runs and batches of seeds are in `training.seeds`.
"""

import threading
from typing import Any, Self

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_not_used_up
from fedjax_rec.types import Algorithm, Key, RoundInfo, State

PIECE = 10.0  # seconds of a block of rounds after which signals and the clock are looked at
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
        self.name = f"jit({name})"
        self.count = 0
        self._thread = 0

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
    """
    # Both uses share one trace of the round, which is most of what a program costs that lies on the disk already.
    one_round = jax.jit(algorithm.round, inline=True)
    shapes = jax.eval_shape(one_round, key, state, population)[1]
    if size == 0:
        return state, jax.tree.map(lambda s: jnp.zeros((0, *s.shape), s.dtype), shapes)
    empty = jax.tree.map(lambda s: jnp.zeros((size, *s.shape), s.dtype), shapes)

    def body(turn: jax.Array, carry: tuple[State, RoundInfo]) -> tuple[State, RoundInfo]:
        state, infos = carry
        state, info = one_round(key, state, population)
        return state, jax.tree.map(lambda all_, one: all_.at[turn].set(one), infos, info)

    return jax.lax.fori_loop(0, count, body, (state, empty))


def piece_of(count: int, trained: int, seconds: float) -> int:
    """How many of a block's rounds to run before signals and the clock are looked at.

    Args:
        count: rounds that are left of the block.
        trained: rounds of the last piece; 0 where there was none.
        seconds: that these took.

    Returns:
        as many as take `PIECE` seconds at that pace, at least 1; 1 where no pace is known.

    Example:
        >>> piece_of(20, 100, 1.0), piece_of(20, 4, 10.0), piece_of(20, 0, 0.0)
        (20, 4, 1)
    """
    return max(1, min(count, int(PIECE * trained / max(seconds, 1e-9))))


def check_state(algorithm: Algorithm, key: Key, state: State, population: Population) -> None:
    """Refuse a state that another algorithm, other settings or another population has made.

    Args:
        algorithm: that is to go on from it.
        key: the run's key.
        state: where to start.
        population: the clients.

    Raises:
        ValueError: naming the field whose leaves or shapes differ; or if the state is used up.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> population, key = tiny_population(), jax.random.key(0)
        >>> state = fr.fedmf(dim=2).init(key, population)
        >>> check_state(fr.fedmf(dim=3), key, state, population)
        Traceback (most recent call last):
        ValueError: state.server is not that of this algorithm, with these settings and clients; ...
    """
    check_not_used_up(state)
    wanted = jax.eval_shape(algorithm.init, key, population)
    for name in State._fields:
        leaves: list[Any] = [jax.tree.flatten(getattr(each, name)) for each in (state, wanted)]
        shapes = [([x.shape for x in found], structure) for found, structure in leaves]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"state.{name} is not that of this algorithm, with these settings and clients; make the algorithm "
                "as it was when the state was made, or leave state= out to start anew"
            )
