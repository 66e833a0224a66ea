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
from fedjax_rec.cohorts import Cohort
from fedjax_rec.devices import replicate
from fedjax_rec.engine import Result
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


def copy_kept(state: State) -> State:
    """The same state with what clients keep copied to host memory, so that rounds in parts may write there.

    Args:
        state: of a run.

    Returns:
        the state.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> state = copy_kept(fr.fedmf(dim=2).init(jax.random.key(0), tiny_population()))
        >>> type(state.private["vector"]).__name__
        'ndarray'
    """
    private, memory = jax.tree.map(np.array, (state.private, state.memory))
    return copy_state(_light(state))._replace(private=private, memory=memory)


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
        self.draw, self.train = jax.jit(parts.draw), jax.jit(parts.train)
        self.end = jax.jit(parts.end, donate_argnums=1)  # the model before the step is not needed after it
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)

    def run(
        self, key: Key, state: State, population: Population, count: jax.Array
    ) -> tuple[State, RoundInfo]:
        """So many rounds; of none, all is compiled."""
        kept, light, infos = (state.private, state.memory), _light(state), []
        if not count:
            self._round(key, copy_state(light), population, kept, idle=True)
        for _ in range(int(count)):
            light, info = self._round(key, light, population, kept)
            infos.append(info)
        reports = jax.tree.map(lambda *x: np.stack(x), *infos) if infos else cast("RoundInfo", ())
        return light._replace(private=kept[0], memory=kept[1]), reports

    def text(self, key: Key, state: State, population: Population) -> str:
        """Of the programs of a round, one after the other."""
        kept, given = (state.private, state.memory), (key, _light(state), population)
        cohort = jax.eval_shape(self.draw, *given)
        own = jax.tree.map(lambda p: jax.ShapeDtypeStruct((self.size, *p.shape[1:]), p.dtype), kept)
        one = jax.eval_shape(self.train, *given, cohort, np.int32(0), own)
        slots = cohort.alive.shape
        told = jax.tree.map(lambda x: jax.ShapeDtypeStruct(slots, x.dtype), (one.sound, one.losses))
        programs = (
            self.draw.lower(*given),
            self.train.lower(*given, cohort, np.int32(0), own),
            self.end.lower(*given, cohort, one.sums, *told),
        )
        return "\n".join(program.as_text() for program in programs)

    def _round(
        self, key: Key, light: State, population: Population, kept: PyTree, *, idle: bool = False
    ) -> tuple[State, RoundInfo]:
        """One round, which consumes `light`; an idle one trains nobody and changes nothing that is kept."""
        cohort = self.draw(key, light, population)
        if idle:
            cohort = cohort._replace(alive=jnp.zeros_like(cohort.alive))

        def train(first: int, ids: np.ndarray) -> Trained:
            own = jax.tree.map(lambda p: p[ids], kept)
            return self.train(key, light, population, cohort, np.int32(first), own)

        sums, told = self._train_all(cohort, train, kept)
        return self.end(key, light, population, cohort, sums, *told)

    def _train_all(
        self, cohort: Cohort, train: Callable[[int, np.ndarray], Trained], kept: PyTree
    ) -> tuple[Result, PyTree]:
        """Train part after part, and put back what its clients keep: sums, and what is told of each client [C]."""
        ids, alive = (np.asarray(x).reshape(-1, self.size) for x in (cohort.clients.id, cohort.alive))
        parts = [part for part in range(len(ids)) if not part or alive[part].any()]
        coming = train(0, ids[0])
        told = jax.tree.map(lambda x: np.zeros(ids.shape, x.dtype), (coming.sound, coming.losses))
        sums: Result | None = None
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            # the next part is fetched and under way before this one is waited for
            trained, coming = coming, coming if after is None else train(after * self.size, ids[after])
            sums = trained.sums if sums is None else self.add(sums, trained.sums)
            _put(told, part, (trained.sound, trained.losses))
            _put_sound(kept, ids[part], trained)
        return cast("Result", sums), jax.tree.map(np.ravel, told)


def _put_sound(kept: PyTree, ids: np.ndarray, trained: Trained) -> None:
    sound = np.asarray(trained.sound)
    _put(kept, ids[sound], jax.tree.map(lambda x: np.asarray(x)[sound], trained.kept))
