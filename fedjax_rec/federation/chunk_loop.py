"""The loop over the chunks of a round: what compiled functions do (`streaming`, `touched`), in which order.

Chunks overlap: while one trains, the next is fetched and the last is put back. On touched rows the buffers of one
round are those of the next: new memory of that size costs more than a pass over it.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import paper_cohort
from fedjax_rec.engine.lane_steps import CohortResult
from fedjax_rec.engine.table_shards import deal_clients
from fedjax_rec.federation.cohort_feed import CohortFeed, FetchedCohort, drawn_by
from fedjax_rec.federation.cohorts import DrawnCohort
from fedjax_rec.federation.row_finder import Spare, paper_rows
from fedjax_rec.federation.touched import TouchedRows, read_over, take_tables, train_over
from fedjax_rec.types import ChunkedRound, ClientStore, Key, PyTree, RoundInfo, State

EMPTY = ClientStore((), ())
Trained = tuple[
    CohortResult, jax.Array
]  # what came of a chunk, and bool[S], who took part with sound numbers


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


def write_store(store: PyTree, index: Any, new: PyTree) -> None:
    """Write leaves into numpy leaves at an index of their first axis."""

    def write(target: np.ndarray, source: Any) -> None:
        target[index] = source

    jax.tree.map(write, store, new)


class ChunkedRounds:
    """A round's programs, compiled once, and the loop over its chunks.

    Args:
        chunked: the round.
        feed: where cohorts come from, if from another thread; None to draw each here.
    """

    def __init__(self, chunked: ChunkedRound, feed: CohortFeed | None = None) -> None:
        self.feed = feed
        self.size = chunk_size_of(chunked)
        self.draw = jax.jit(chunked.draw)
        self.train = jax.jit(chunked.train)
        self.finish = jax.jit(chunked.finish, donate_argnums=1)  # the old model is not needed afterwards
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
        self.name = "train_chunk"  # of the function that is compiled once

    def run(
        self, key: Key, state: State, population: Population, count: jax.Array
    ) -> tuple[State, RoundInfo]:
        """So many rounds; of none, all is compiled."""
        store = state.store
        state = state.with_store(EMPTY)
        infos = []
        done = int(state.round)
        if not count:
            state = self._compile(key, state, population, store, done)
        for turn in range(int(count)):
            cohort = self._draw(key, state, population, done + turn)
            state, info = self._round(key, state, population, store, cohort)
            infos.append(info)
        reports = jax.tree.map(lambda *x: np.stack(x), *infos) if infos else cast("RoundInfo", ())
        return state.with_store(store), reports

    def text(self, key: Key, state: State, population: Population) -> str:
        """Of the programs of a round, one after the other."""
        given = (key, state.with_store(EMPTY), population)
        draw, train = given, given
        if self.feed is not None:
            draw = (key, drawn_by(state.tracked, 0), population)
            train = (*given[:2], paper_cohort(population, self.size))
        cohort = jax.eval_shape(self.draw, *draw)
        trained = (*train, cohort, np.int32(0), self._paper_chunk(state.store))
        sums, sound = _paper_sums(cohort, *jax.eval_shape(self.train, *trained))
        programs = (
            self.draw.lower(*draw),
            self.train.lower(*trained),
            self.finish.lower(*given, cohort, sums, sound),
        )
        return "\n".join(program.as_text() for program in programs)

    def _draw(self, key: Key, state: State, population: Population, done: int) -> FetchedCohort:
        """The cohort of the round after `done`."""
        if self.feed is not None:
            return self.feed.take(self.draw, key, state, population, done)
        cohort = self.draw(key, state, population)
        return FetchedCohort(cohort, [population] * (len(cohort.alive) // self.size))

    def _compile(
        self, key: Key, state: State, population: Population, store: ClientStore, done: int
    ) -> State:
        """Run a round that trains nobody; the state is given back as it was."""
        cohort = _without_clients(self._draw(key, state, population, done))
        self._round(key, jax.tree.map(jnp.copy, state), population, store, cohort)
        return state

    def _round(
        self, key: Key, state: State, population: Population, store: ClientStore, fetched: FetchedCohort
    ) -> tuple[State, RoundInfo]:
        """One round, which consumes `state`."""

        def train(first: int, chunk: ClientStore) -> Trained:
            clients = fetched.populations[first // self.size]
            return self.train(key, state, clients, fetched.cohort, np.int32(first), chunk)

        sums, sound = self._train_chunks(fetched.cohort, train, store)
        return self.finish(key, state, population, fetched.cohort, sums, sound)

    def _paper_chunk(self, store: ClientStore) -> ClientStore:
        """Shapes of what a chunk's clients keep."""
        return jax.tree.map(lambda p: jax.ShapeDtypeStruct((self.size, *p.shape[1:]), p.dtype), store)

    def _train_chunks(
        self, cohort: DrawnCohort, train: Callable[[int, ClientStore], Trained], store: ClientStore
    ) -> tuple[CohortResult, np.ndarray]:
        """Train chunk after chunk, and put back what clients keep: the result, and bool[C], who is sound."""
        ids = np.asarray(cohort.clients.id).reshape(-1, self.size)
        alive = np.asarray(cohort.alive).reshape(-1, self.size)
        chunks = [chunk for chunk in range(len(ids)) if not chunk or alive[chunk].any()]

        def fetch(chunk: int) -> ClientStore:
            return jax.tree.map(lambda p: p[ids[chunk]], store)

        coming = train(0, fetch(0))
        of_clients = jax.tree.map(  # bool[C / S, S] and float32[C / S, S, 2]
            lambda x: np.zeros((len(ids), *x.shape), x.dtype), (coming[1], coming[0].loss_sums)
        )
        sums: CohortResult | None = None
        for chunk, following in zip(chunks, [*chunks[1:], None], strict=True):
            # the next chunk is fetched and under way before this one is waited for
            result, sound = coming
            if following is not None:
                coming = train(following * self.size, fetch(following))
            sums = _sums_of(result) if sums is None else self._add(sums, _sums_of(result))
            write_store(of_clients, chunk, (sound, result.loss_sums))
            _write_sound(store, ids[chunk], result.store, np.asarray(sound))
        sound, loss_sums = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), of_clients)
        return cast("CohortResult", sums)._replace(loss_sums=loss_sums), sound

    def _add(self, sums: CohortResult, more: CohortResult) -> CohortResult:
        return self.add(sums, more)


class TouchedRounds(ChunkedRounds):
    """The same on the rows that each cohort touches: a model of their own, which is trained, and written back.

    Args:
        chunked: the round.
        feed: where cohorts and their rows come from.
    """

    def __init__(self, chunked: ChunkedRound, feed: CohortFeed) -> None:
        super().__init__(chunked, feed)
        self.touched: TouchedRows = chunked.touched
        self.rows_expected = cast("int", chunked.plan.touched_rows)
        self.train = jax.jit(partial(train_over, chunked.train), donate_argnums=0, keep_unused=True)
        self.finish = jax.jit(chunked.touched.finish, donate_argnums=(1, 2))
        self.read = jax.jit(partial(read_over, chunked.touched.read), donate_argnums=0, keep_unused=True)
        self.write = jax.jit(chunked.touched.write, donate_argnums=0)  # in place
        self.spare = Spare(feed.mesh)
        self.name = "train_over"

    def text(self, key: Key, state: State, population: Population) -> str:
        """Of the programs of a round, one after the other."""
        drawn = (key, drawn_by(state.tracked, 0), population)
        clients = paper_cohort(population, self.size) if population.stored else population
        cohort = jax.eval_shape(self.draw, *drawn)
        rows, rest = self.touched.split(state.with_store(EMPTY))
        ids, named = paper_rows(self.touched, clients, cohort, self.rows_expected)
        read = (jax.eval_shape(self.touched.read, rows, ids), rows, ids)
        small = self.touched.join(rest, read[0])
        given = (key, small, named, cohort, np.int32(0), self._paper_chunk(state.store))
        tables = jax.tree.leaves(small.server.tables)
        sums, sound = _paper_sums(cohort, *jax.eval_shape(self.train, tables, *given))
        sums, tables = take_tables(sums)
        programs = (
            self.draw.lower(*drawn),
            self.train.lower(jax.tree.leaves(tables), *given),
            self.finish.lower(key, small, tables, population, cohort, sums, sound),
            self.write.lower(rows, ids, read[0]),
        )
        return "\n".join(program.as_text() for program in programs)

    def _compile(
        self, key: Key, state: State, population: Population, store: ClientStore, done: int
    ) -> State:
        """Run a round that trains nobody and writes nothing; the tables are not copied."""
        fetched = _without_clients(self._draw(key, state, population, done))
        rows, rest = self.touched.split(state)
        ids = cast("jax.Array", fetched.row_ids)
        nowhere = jnp.full_like(ids, self.touched.num_items)
        small = jax.tree.map(jnp.copy, self.touched.join(rest, self._read(rows, ids)))
        small, _ = self._step(key, small, population, store, fetched)
        return self.touched.join(rest, self._write(rows, nowhere, self.touched.split(small)[0]))

    def _round(
        self, key: Key, state: State, population: Population, store: ClientStore, fetched: FetchedCohort
    ) -> tuple[State, RoundInfo]:
        """One round, which consumes `state`."""
        rows, rest = self.touched.split(state)
        ids = cast("jax.Array", fetched.row_ids)
        small = self.touched.join(rest, self._read(rows, ids))
        small, info = self._step(key, small, population, store, fetched)
        new, rest = self.touched.split(small)
        return self.touched.join(rest, self._write(rows, ids, new)), info

    def _step(
        self, key: Key, small: State, population: Population, store: ClientStore, fetched: FetchedCohort
    ) -> tuple[State, RoundInfo]:
        """Training and the server's step on the cohort's rows, which consumes them."""
        like_sums = [
            jax.ShapeDtypeStruct(leaf.shape, jnp.int32 if self.touched.integers else leaf.dtype)
            for leaf in jax.tree.leaves(small.server.tables)
        ]

        def train(first: int, chunk: ClientStore) -> Trained:
            clients = fetched.populations[first // self.size]
            over = self.spare.take(like_sums)
            if self.touched.table_mesh is not None:
                chunk = deal_clients(chunk, self.touched.table_mesh)
            return self.train(over, key, small, clients, fetched.cohort, np.int32(first), chunk)

        sums, sound = self._train_chunks(fetched.cohort, train, store)
        sums, over = take_tables(sums)
        small, info, over = self.finish(key, small, over, population, fetched.cohort, sums, sound)
        self.spare.give(over)
        return small, info

    def _add(self, sums: CohortResult, more: CohortResult) -> CohortResult:
        added = self.add(sums, more)
        self.spare.give(take_tables(more)[1])
        return added

    def _read(self, rows: list[Any], ids: jax.Array) -> list[jax.Array]:
        shapes = jax.eval_shape(self.touched.read, rows, ids)
        return self.read(self.spare.take(shapes), rows, ids)

    def _write(self, rows: list[Any], ids: jax.Array, new: list[jax.Array]) -> list[Any]:
        written = self.write(rows, ids, new)
        self.spare.give(new)
        return written


def _without_clients(fetched: FetchedCohort) -> FetchedCohort:
    cohort = fetched.cohort
    return fetched._replace(cohort=cohort._replace(alive=jnp.zeros_like(cohort.alive)))


def _paper_sums(
    cohort: DrawnCohort, result: CohortResult, sound: jax.Array
) -> tuple[CohortResult, jax.Array]:
    """Shapes of a cohort's sums, of those of a chunk."""
    slots = cohort.alive.shape[0]
    losses, sound = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((slots, *x.shape[1:]), x.dtype), (result.loss_sums, sound)
    )
    return _sums_of(result)._replace(loss_sums=losses), sound


def _sums_of(result: CohortResult) -> CohortResult:
    """A chunk's totals and report, without what is of single clients."""
    return result._replace(store=EMPTY, unsound=(), loss_sums=())


def _write_sound(store: ClientStore, ids: np.ndarray, new: ClientStore, sound: np.ndarray) -> None:
    """Store the leaves [S, ...] of the clients whose numbers are sound."""
    write_store(store, ids[sound], jax.tree.map(lambda x: np.asarray(x)[sound], new))
