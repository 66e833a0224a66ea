"""What clients keep between rounds, in host memory, and the loop that takes it to the device chunk by chunk.

The functions of a chunk are compiled (`streaming`). Here are the arrays that wait, as numpy leaves [N, ...] in
`State.private` and `State.transform_state`, **changed in place**, and what `simulate` needs beside them. Chunks
overlap: while one trains, the next is fetched and the last is put back.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import StoredPopulation, paper_cohort
from fedjax_rec.engine.chunks import chunk_size
from fedjax_rec.engine.devices import replicate
from fedjax_rec.engine.lane_steps import CohortResult
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.federation.cohort_feed import CohortFeed, drawn_by
from fedjax_rec.federation.cohorts import DrawnCohort
from fedjax_rec.federation.programs import compiled
from fedjax_rec.federation.touched import RowFinder, TouchedRows, paper_rows, read_held, write_held
from fedjax_rec.types import Algorithm, ChunkedRound, ClientStore, Key, PyTree, RoundInfo, State

EMPTY = ClientStore((), ())
Trained = tuple[
    CohortResult, jax.Array
]  # what came of a chunk, and bool[S], who took part with sound numbers


class Block(NamedTuple):
    """A block of rounds, however it runs."""

    run: Callable[[Key, State, Population, jax.Array], tuple[State, RoundInfo]]  # consumes the state
    text: Callable[[Key, State, Population], str]  # of its program, as jax lowers it
    name: str  # of the function that is compiled once


def make_block(
    algorithm: Algorithm, chunked: ChunkedRound | None, size: int, stored: StoredPopulation | None = None
) -> Block:
    """Rounds as one compiled program, or, where clients stream from host memory, as a loop over chunks.

    Args:
        algorithm: as `federate` returns it.
        chunked: its round in chunks; None for rounds in one piece.
        size: the most rounds that a block can hold.
        stored: clients whose histories wait in a store; None for those of a population in memory.

    Returns:
        the block.
    """
    if chunked is not None:
        size_of_chunk = chunk_size_of(chunked)
        finder = None
        if chunked.touched is not None:
            finder = RowFinder(chunked.touched, size_of_chunk, algorithm.mesh)
        feed = None
        if stored is not None or finder is not None:
            feed = CohortFeed(stored, size_of_chunk, algorithm.mesh, finder)
        rounds = _ChunkedRounds(chunked, feed)
        return Block(rounds.run, rounds.text, "train_chunk")
    made = (algorithm, size)

    def run(key: Key, state: State, population: Population, count: jax.Array) -> tuple[State, RoundInfo]:
        return compiled(run_block, made, key, state, population, count, donate=1)(
            key, state, population, count
        )

    def text(key: Key, state: State, population: Population) -> str:
        program = jax.jit(partial(run_block, *made), donate_argnums=1)
        return program.lower(key, state, population, jnp.int32(0)).as_text()

    return Block(run, text, run_block.__name__)


def start_state(
    algorithm: Algorithm, chunked: ChunkedRound | None, key: Key, population: Population
) -> State:
    """The state before the first round, where its rounds want it.

    Args:
        algorithm: as `federate` returns it.
        chunked: its round in chunks; None for rounds in one piece.
        key: the run's key.
        population: the clients, on the devices.

    Returns:
        the state; numpy leaves of what clients keep, where they stream from host memory.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2, stream_clients=5), tiny_population()
        >>> chunked = algorithm.streaming(population)
        >>> state = start_state(algorithm, chunked, jax.random.key(0), population)
        >>> type(state.private["vector"]).__name__, state.private["vector"].shape
        ('ndarray', (24, 2))
    """
    if chunked is None:
        return compiled(_init, (algorithm,), key, population)(key, population)
    state = jax.jit(lambda k, clients: algorithm.init(k, clients).with_store(EMPTY))(key, population)
    init_clients = jax.jit(chunked.init_clients)
    shapes = jax.eval_shape(algorithm.init, key, population).store
    size = max(chunk_size_of(chunked), min(chunk_size(shapes), population.num_clients))
    store = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)
    for first in range(0, population.num_clients, size):
        ids = np.minimum(np.arange(first, first + size), population.num_clients - 1)
        _write(store, ids, init_clients(key, ids, state.server))
    return state.with_store(store)


def _init(algorithm: Algorithm, key: Key, population: Population) -> State:
    return algorithm.init(key, population)


def put_state(chunked: ChunkedRound | None, mesh: Mesh | None, state: State) -> State:
    """Put a state where rounds want it: on every device, less what waits in host memory.

    Args:
        chunked: a round in chunks; None for rounds in one piece.
        mesh: the devices; None for one.
        state: from anywhere. Rounds in chunks write into its numpy leaves.

    Returns:
        the same values.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2, stream_clients=5), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> type(put_state(algorithm.streaming(population), None, state).private["vector"]).__name__
        'ndarray'
    """
    if chunked is None:
        return replicate(state, mesh)
    store = jax.tree.map(lambda x: np.require(x, requirements="W"), state.store)
    return replicate(state.with_store(EMPTY), mesh).with_store(store)


def copy_to_host(state: State) -> State:
    """The same state with what clients keep copied to host memory, so that rounds in chunks may write there.

    Args:
        state: of a run.

    Returns:
        the state.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> state = copy_to_host(fr.fedmf(dim=2).init(jax.random.key(0), tiny_population()))
        >>> type(state.private["vector"]).__name__
        'ndarray'
    """
    store = jax.tree.map(np.array, state.store)
    return copy_state(state.with_store(EMPTY)).with_store(store)


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


def chunk_size_of(chunked: ChunkedRound) -> int:
    """S, clients of a chunk.

    Args:
        chunked: a round in chunks.

    Returns:
        the number.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> chunk_size_of(fr.fedmf(dim=2, stream_clients=5).streaming(tiny_population()))
        5
    """
    return cast("int", chunked.plan.stream_clients)


def _write(store: PyTree, index: Any, new: PyTree) -> None:
    """Write leaves into numpy leaves at an index of their first axis."""

    def write(target: np.ndarray, source: Any) -> None:
        target[index] = source

    jax.tree.map(write, store, new)


class _ChunkedRounds:
    """A streaming algorithm's programs, compiled once, and the loop over chunks."""

    def __init__(self, chunked: ChunkedRound, feed: CohortFeed | None = None) -> None:
        self.feed = feed
        self.size = chunk_size_of(chunked)
        self.rows_expected = chunked.plan.touched_rows
        self.draw = jax.jit(chunked.draw)
        self.train = jax.jit(chunked.train)
        self.finish = jax.jit(chunked.finish, donate_argnums=1)  # the old model is not needed afterwards
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
        self.touched: TouchedRows | None = chunked.touched
        self.read = jax.jit(read_held)
        self.write = jax.jit(write_held, donate_argnums=0)  # in place

    def run(
        self, key: Key, state: State, population: Population, count: jax.Array
    ) -> tuple[State, RoundInfo]:
        """So many rounds; of none, all is compiled."""
        store = state.store
        state = state.with_store(EMPTY)
        infos = []
        done = int(state.round)
        if not count and self.touched is None:
            self._round(key, copy_state(state), population, store, done, idle=True)
        if not count and self.touched is not None:
            state = self._round(key, state, population, store, done, idle=True)[0]
        for turn in range(int(count)):
            state, info = self._round(key, state, population, store, done + turn)
            infos.append(info)
        reports = jax.tree.map(lambda *x: np.stack(x), *infos) if infos else cast("RoundInfo", ())
        return state.with_store(store), reports

    def text(self, key: Key, state: State, population: Population) -> str:
        """Of the programs of a round, one after the other."""
        given = (key, state.with_store(EMPTY), population)
        draw, train = given, given
        if self.feed is not None:
            draw = (key, drawn_by(state.tracked, 0), population)
        cohort = jax.eval_shape(self.draw, *draw)
        if population.stored:
            train = (*given[:2], paper_cohort(population, self.size))
        if self.touched is not None:
            rows, named = paper_rows(self.touched, train[2], cohort, cast("int", self.rows_expected))
            small = jax.eval_shape(self.read, self.touched.split(given[1])[0], rows)
            small = self.touched.join(self.touched.split(given[1])[1], small)
            given = (key, small, population)
            train = (key, small, named)
        chunk = jax.tree.map(lambda p: jax.ShapeDtypeStruct((self.size, *p.shape[1:]), p.dtype), state.store)
        result, sound = jax.eval_shape(self.train, *train, cohort, np.int32(0), chunk)
        slots = cohort.alive.shape[0]
        loss_sums, sound = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((slots, *x.shape[1:]), x.dtype), (result.loss_sums, sound)
        )
        sums = _sums_of(result)._replace(loss_sums=loss_sums)
        programs = (
            self.draw.lower(*draw),
            self.train.lower(*train, cohort, np.int32(0), chunk),
            self.finish.lower(*given, cohort, sums, sound),
        )
        return "\n".join(program.as_text() for program in programs)

    def _round(
        self,
        key: Key,
        state: State,
        population: Population,
        store: ClientStore,
        done: int,
        *,
        idle: bool = False,
    ) -> tuple[State, RoundInfo]:
        """One round after `done`, which consumes `state`; an idle one trains nobody and stores nothing.

        On touched rows an idle round gives the state back as it was.
        """
        row_ids = None
        if self.feed is None:
            cohort, fetched = self.draw(key, state, population), None
        else:
            cohort, fetched, row_ids = self.feed.take(self.draw, key, state, population, done)
        if idle:
            cohort = cohort._replace(alive=jnp.zeros_like(cohort.alive))
        if self.touched is None:
            return self._train(key, state, population, store, cohort, fetched)

        # The rows that the cohort touches are a model of their own, which is trained, and written back.
        held, rest = self.touched.split(state)
        small = self.touched.join(rest, self.read(held, row_ids))
        if idle:
            self._train(key, copy_state(small), population, store, cohort, fetched)
            held = self.write(held, jnp.full_like(row_ids, self.touched.num_items), self.touched.split(small)[0])
            return self.touched.join(rest, held), cast("RoundInfo", ())
        small, info = self._train(key, small, population, store, cohort, fetched)
        rows, rest = self.touched.split(small)
        return self.touched.join(rest, self.write(held, row_ids, rows)), info

    def _train(
        self,
        key: Key,
        state: State,
        population: Population,
        store: ClientStore,
        cohort: DrawnCohort,
        fetched: list[Population] | None,
    ) -> tuple[State, RoundInfo]:
        """The cohort's training and the server's step, which consumes `state`."""

        def train(first: int, ids: np.ndarray) -> Trained:
            chunk = jax.tree.map(lambda p: p[ids], store)
            clients = population if fetched is None else fetched[first // self.size]
            return self.train(key, state, clients, cohort, np.int32(first), chunk)

        sums, sound = self._train_chunks(cohort, train, store)
        return self.finish(key, state, population, cohort, sums, sound)

    def _train_chunks(
        self, cohort: DrawnCohort, train: Callable[[int, np.ndarray], Trained], store: ClientStore
    ) -> tuple[CohortResult, np.ndarray]:
        """Train chunk after chunk, and put back what clients keep: the result, and bool[C], who is sound."""
        ids = np.asarray(cohort.clients.id).reshape(-1, self.size)
        alive = np.asarray(cohort.alive).reshape(-1, self.size)
        chunks = [chunk for chunk in range(len(ids)) if not chunk or alive[chunk].any()]

        coming = train(0, ids[0])
        of_clients = jax.tree.map(  # bool[C / S, S] and float32[C / S, S, 2]
            lambda x: np.zeros((len(ids), *x.shape), x.dtype), (coming[1], coming[0].loss_sums)
        )
        sums: CohortResult | None = None
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            # the next chunk is fetched and under way before this one is waited for
            result, sound = coming
            if following is not None:
                coming = train(following * self.size, ids[following])
            sums = _sums_of(result) if sums is None else self.add(sums, _sums_of(result))
            _write(of_clients, chunk, (sound, result.loss_sums))
            _write_sound(store, ids[chunk], result.store, np.asarray(sound))
        sound, loss_sums = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_clients)
        return cast("CohortResult", sums)._replace(loss_sums=loss_sums), sound


def _sums_of(result: CohortResult) -> CohortResult:
    """A chunk's totals and report, without what is of single clients."""
    return result._replace(store=EMPTY, unsound=(), loss_sums=())


def _write_sound(store: ClientStore, ids: np.ndarray, new: ClientStore, sound: np.ndarray) -> None:
    """Store the leaves [S, ...] of the clients whose numbers are sound."""
    _write(store, ids[sound], jax.tree.map(lambda x: np.asarray(x)[sound], new))
