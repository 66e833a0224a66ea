"""What clients keep between rounds, in host memory, and the loop that takes it to the device chunk by chunk.

The functions of a chunk are compiled (`streaming`). Here are the arrays that wait, as numpy leaves [N, ...] in
`State.private` and `State.transform_state`, **changed in place**, and what `simulate` needs beside them. Chunks
overlap: while one trains, the next is fetched and the last is put back. Leaves that wait in files
(`client_rows.ClientRows`) stand in the place of numpy's, and are read and written as these are.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.engine.chunks import chunk_size
from fedjax_rec.engine.devices import replicate
from fedjax_rec.engine.table_shards import join_rows, keep_split, split_rows
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.federation.chunk_loop import EMPTY, ChunkedRounds, TouchedRounds, chunk_size_of, write_store
from fedjax_rec.federation.client_rows import ClientRows, open_rows
from fedjax_rec.federation.cohort_feed import CohortFeed
from fedjax_rec.federation.programs import compiled
from fedjax_rec.federation.row_finder import RowFinder
from fedjax_rec.federation.touched import TouchedRows
from fedjax_rec.types import Algorithm, ChunkedRound, Key, RoundInfo, State


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
        rounds = _rounds_in_chunks(chunked, algorithm.mesh, stored)
        return Block(rounds.run, rounds.text, rounds.name)
    made = (algorithm, size)

    def run(key: Key, state: State, population: Population, count: jax.Array) -> tuple[State, RoundInfo]:
        return compiled(run_block, made, key, state, population, count, donate=1)(
            key, state, population, count
        )

    def text(key: Key, state: State, population: Population) -> str:
        program = jax.jit(partial(run_block, *made), donate_argnums=1)
        return program.lower(key, state, population, jnp.int32(0)).as_text()

    return Block(run, text, run_block.__name__)


def _rounds_in_chunks(
    chunked: ChunkedRound, mesh: Mesh | None, stored: StoredPopulation | None
) -> ChunkedRounds:
    """The loop over chunks, and the thread that feeds it, if there is one."""
    size = chunk_size_of(chunked)
    if chunked.touched is not None:
        finder = RowFinder(chunked.touched, size, mesh)
        return TouchedRounds(chunked, CohortFeed(stored, size, mesh, finder))
    return ChunkedRounds(chunked, None if stored is None else CohortFeed(stored, size, mesh))


def start_state(
    algorithm: Algorithm,
    chunked: ChunkedRound | None,
    key: Key,
    population: Population,
    folder: Path | None = None,
) -> State:
    """The state before the first round, where its rounds want it.

    Args:
        algorithm: as `federate` returns it.
        chunked: its round in chunks; None for rounds in one piece.
        key: the run's key.
        population: the clients, on the devices.
        folder: of files in which what clients keep waits; None for host memory.

    Returns:
        the state; numpy leaves of what clients keep, where they stream from host memory, or `ClientRows`.

    Raises:
        OSError: if the folder cannot be written.

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
    state = _start_server(algorithm, chunked, key, population)
    init_common = jax.jit(lambda k, server: chunked.init_common(k, join_rows(server)))
    # a copy: rounds consume the model, of which it may be a part
    common = jax.tree.map(np.array, init_common(key, state.server))
    shapes = jax.eval_shape(algorithm.init, key, population).store
    if folder is not None:
        draw = chunked.init_clients
        store = open_rows(folder, shapes, lambda ids, key, common: draw(key, ids, common), key, common)
        return state.with_store(store)
    init_clients = jax.jit(chunked.init_clients)
    size = max(chunk_size_of(chunked), min(chunk_size(shapes), population.num_clients))
    store = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)
    for first in range(0, population.num_clients, size):
        ids = np.minimum(np.arange(first, first + size), population.num_clients - 1)
        write_store(store, ids, init_clients(key, ids, common))
    return state.with_store(store)


def _start_server(algorithm: Algorithm, chunked: ChunkedRound, key: Key, population: Population) -> State:
    """The state before the first round, less what clients keep."""
    touched: TouchedRows | None = chunked.touched
    if touched is None or touched.table_mesh is None:
        return jax.jit(lambda k, clients: algorithm.init(k, clients).with_store(EMPTY))(key, population)
    table_mesh, split = touched.table_mesh, touched.split

    def start(key: Key, population: Population) -> tuple[list[Any], State]:
        rows, rest = split(algorithm.init(key, population).with_store(EMPTY))
        return keep_split(rows, table_mesh), rest

    with jax.set_mesh(table_mesh):  # each device draws its own rows
        rows, rest = jax.jit(start)(key, population)
    return touched.join(replicate(rest, algorithm.mesh), rows)


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

    def to_write(leaf: Any) -> Any:
        return leaf if isinstance(leaf, ClientRows) else np.require(leaf, requirements="W")

    store = jax.tree.map(to_write, state.store)
    touched: TouchedRows | None = chunked.touched
    if touched is None or touched.table_mesh is None:
        return replicate(state.with_store(EMPTY), mesh).with_store(store)
    rows, rest = touched.split(state.with_store(EMPTY))
    return touched.join(replicate(rest, mesh), split_rows(rows, touched.table_mesh)).with_store(store)


def copy_to_host(state: State, folder: Path | None = None) -> State:
    """The same state with what clients keep copied to host memory or files, so that rounds may write there.

    Args:
        state: of a run.
        folder: of the files; None for host memory.

    Returns:
        the state.

    Raises:
        OSError: if the files cannot be written.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> state = copy_to_host(fr.fedmf(dim=2).init(jax.random.key(0), tiny_population()))
        >>> type(state.private["vector"]).__name__
        'ndarray'
    """
    store = jax.tree.map(np.array if folder is None else partial(_in_file, folder), state.store)
    return copy_state(state.with_store(EMPTY)).with_store(store)


def _in_file(folder: Path, leaf: Any) -> ClientRows:
    """A leaf [N, ...], all rows of which are written."""
    if isinstance(leaf, ClientRows):
        return leaf.copy(folder)
    given = np.asarray(leaf)
    row_shape = given.shape[1:]
    rows = ClientRows(folder, given.shape, given.dtype, lambda ids: np.zeros((len(ids), *row_shape)))
    rows[np.arange(len(given))] = given
    return rows


def copy_state(state: State, spare: State | None = None) -> State:
    """A copy that later rounds leave alone.

    Args:
        state: of a run.
        spare: an older copy, whose numpy leaves and files are written over: new ones of that size cost more than
            copying.

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
        if isinstance(old, ClientRows):
            return old.take(new)
        if not isinstance(old, np.ndarray):
            return new.copy()
        np.copyto(old, new)
        return old

    return jax.tree.map(copy, state, spare)
