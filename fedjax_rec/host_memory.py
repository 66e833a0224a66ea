"""What clients keep between rounds, in host memory, and the loop that takes it to the device part by part.

The functions of a part are compiled (`streaming`). Here are the arrays that wait, as numpy leaves [N, ...] in
`State.private` and `State.memory`, **changed in place**, and what `simulate` needs beside them. Parts overlap:
while one trains, the next is fetched and the last is put back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.blocks import run_block
from fedjax_rec.devices import replicate
from fedjax_rec.population import Population
from fedjax_rec.streaming import Trained
from fedjax_rec.types import Algorithm, Key, PyTree, RoundInfo, State, Streaming


class Block(NamedTuple):
    """A block of rounds, however it runs."""

    run: Callable[[Key, State, Population, jax.Array], tuple[State, RoundInfo]]  # consumes the state
    text: Callable[[Key, State, Population], str]  # of its program, as jax lowers it
    name: str  # of the function that is compiled once


def make_block(algorithm: Algorithm, parts: Streaming | None, size: int) -> Block:
    """Rounds as one compiled program, or, where clients stream from host memory, as a loop over parts.

    Args:
        algorithm: as `federate` returns it.
        parts: of its rounds; None for rounds in one piece.
        size: the most rounds that a block can hold.

    Returns:
        the block.

    Example:
        see `fedjax_rec.simulate`, which runs it.
    """
    if parts is not None:
        rounds = _Rounds(parts)
        return Block(rounds.run, rounds.text, "train_part")
    program = jax.jit(partial(run_block, algorithm, size), donate_argnums=1)

    def text(key: Key, state: State, population: Population) -> str:
        return program.lower(key, state, population, jnp.int32(0)).as_text()

    return Block(program, text, run_block.__name__)


def start_state(algorithm: Algorithm, parts: Streaming | None, key: Key, population: Population) -> State:
    """The state before the first round, where its rounds want it.

    Args:
        algorithm: as `federate` returns it.
        parts: of its rounds; None for rounds in one piece.
        key: the run's key.
        population: the clients, on the devices.

    Returns:
        the state; numpy leaves of what clients keep, where they stream from host memory.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2, stream_clients=5), tiny_population()
        >>> parts = algorithm.streaming(population)
        >>> state = start_state(algorithm, parts, jax.random.key(0), population)
        >>> type(state.private["vector"]).__name__, state.private["vector"].shape
        ('ndarray', (24, 2))
    """
    if parts is None:
        return jax.jit(algorithm.init)(key, population)
    state = jax.jit(lambda k, clients: _light(algorithm.init(k, clients)))(key, population)
    size, start = size_of(parts), jax.jit(parts.start)
    shapes = jax.eval_shape(algorithm.init, key, population)
    whole = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), (shapes.private, shapes.memory))
    for first in range(0, population.num_clients, size):
        ids = np.minimum(np.arange(first, first + size), population.num_clients - 1)
        _put(whole, ids, start(key, ids, state.server))
    return state._replace(private=whole[0], memory=whole[1])


def place_state(parts: Streaming | None, mesh: Mesh | None, state: State) -> State:
    """Put a state where rounds want it: on every device, less what waits in host memory.

    Args:
        parts: of the rounds; None for rounds in one piece.
        mesh: the devices; None for one.
        state: from anywhere. Rounds in parts write into its numpy leaves.

    Returns:
        the same values.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2, stream_clients=5), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> type(place_state(algorithm.streaming(population), None, state).private["vector"]).__name__
        'ndarray'
    """
    if parts is None:
        return replicate(state, mesh)
    private, memory = jax.tree.map(lambda x: np.require(x, requirements="W"), (state.private, state.memory))
    return replicate(_light(state), mesh)._replace(private=private, memory=memory)


def copy_state(state: State, spare: State | None = None) -> State:
    """A copy that later rounds leave alone.

    Args:
        state: of a run.
        spare: an older copy, whose numpy leaves are written over: new memory of that size costs more than copying.

    Returns:
        the copy.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> copy_state(fr.fedmf(dim=2).init(jax.random.key(0), tiny_population())).private["vector"].shape
        (24, 2)
    """
    if spare is None:
        return jax.tree.map(lambda leaf: leaf.copy(), state)

    def copy(new: Any, old: Any) -> Any:
        if not isinstance(old, np.ndarray):
            return new.copy()
        np.copyto(old, new)
        return old

    return jax.tree.map(copy, state, spare)


def size_of(parts: Streaming) -> int:
    """S, clients of a part.

    Args:
        parts: of a round.

    Returns:
        the number.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> size_of(fr.fedmf(dim=2, stream_clients=5).streaming(tiny_population()))
        5
    """
    return cast("int", parts.plan.stream_clients)


def _light(state: State) -> State:
    """Without what clients keep."""
    return state._replace(private=(), memory=())


def _put(whole: PyTree, at: Any, new: PyTree) -> None:
    def put(all_: np.ndarray, some: Any) -> None:
        all_[at] = some

    jax.tree.map(put, whole, new)


class _Rounds:
    """A streaming algorithm's programs, compiled once, and the loop over parts."""

    def __init__(self, parts: Streaming) -> None:
        self.size = size_of(parts)
        self.draw, self.train, self.end = jax.jit(parts.draw), jax.jit(parts.train), jax.jit(parts.end)
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)

    def run(
        self, key: Key, state: State, population: Population, count: jax.Array
    ) -> tuple[State, RoundInfo]:
        """So many rounds; of none, all is compiled."""
        kept, light, infos = (state.private, state.memory), _light(state), []
        if not count:
            self._round(key, light, population, kept, idle=True)
        for _ in range(int(count)):
            light, info = self._round(key, light, population, kept)
            infos.append(info)
        reports = jax.tree.map(lambda *x: np.stack(x), *infos) if infos else cast("RoundInfo", ())
        return light._replace(private=kept[0], memory=kept[1]), reports

    def text(self, key: Key, state: State, population: Population) -> str:
        """Of the program of a part."""
        kept, light = (state.private, state.memory), _light(state)
        cohort = jax.eval_shape(self.draw, key, light, population)
        own = jax.tree.map(lambda p: jax.ShapeDtypeStruct((self.size, *p.shape[1:]), p.dtype), kept)
        return self.train.lower(key, light, population, cohort, np.int32(0), own).as_text()

    def _round(
        self, key: Key, light: State, population: Population, kept: PyTree, *, idle: bool = False
    ) -> tuple[State, RoundInfo]:
        """One round; an idle one trains nobody and changes nothing."""
        cohort = self.draw(key, light, population)
        if idle:
            cohort = cohort._replace(alive=jnp.zeros_like(cohort.alive))
        ids, alive = np.asarray(cohort.clients.id), np.asarray(cohort.alive)
        firsts = [
            first for first in range(0, len(ids), self.size) if not first or alive[first:][: self.size].any()
        ]

        def train(first: int) -> Trained:
            own = jax.tree.map(lambda p: p[ids[first:][: self.size]], kept)
            return self.train(key, light, population, cohort, np.int32(first), own)

        coming = train(0)
        told = jax.tree.map(lambda x: np.zeros(len(ids), x.dtype), (coming.sound, coming.losses))
        sums = jax.tree.map(jnp.zeros_like, coming.sums)
        for first, after in zip(firsts, [*firsts[1:], None], strict=True):
            # the next part is fetched and under way before this one is waited for
            trained, coming = coming, coming if after is None else train(after)
            sums = self.add(sums, trained.sums)
            part, sound = slice(first, first + self.size), np.asarray(trained.sound)
            _put(told, part, (trained.sound, trained.losses))
            _put(kept, ids[part][sound], jax.tree.map(lambda x: np.asarray(x)[sound], trained.kept))  # noqa: B023
        return self.end(key, light, population, cohort, sums, *told)
