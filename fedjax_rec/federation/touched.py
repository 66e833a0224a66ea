"""Rounds on the rows alone that their cohort touches: what a round takes beyond the tables does not grow with I.

A batch is a pure function of (key, round, client), so that all rows of a round are known before anybody trains:

    draw the cohort -> name its batches -> find its rows -> read them -> train, sum, step these -> write them back

In between there is a global model of K rows, and every id in a batch is a position among them; training, sums and
the server's step are the programs of any model of K items. Draws are from the whole catalogue. The tables of I
rows, and what the server rule keeps of each row, are read and written in place by two small programs, and never
copied. `row_finder` is what the host does in between.

Equal to rounds over all rows bit for bit, row by row, where a cohort trains in one chunk: sums are added up in the
same order. What is summed over all rows (`RoundInfo.update_norm`, a clip of the whole step) agrees to rounding.

It needs a server rule under which untouched rows rest (`server.resting`), and clients that do not ask which items
their rows are of (`ClientWork.reads_ids`); `compatibility.table` names what else looks at whole tables.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import room_of
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.engine.devices import keep_replicated
from fedjax_rec.engine.lane_steps import CohortResult, batch_shapes
from fedjax_rec.engine.table_shards import gather_rows, is_split, num_shards, scatter_rows
from fedjax_rec.federation.cohorts import DrawnCohort, cut_chunk, locate
from fedjax_rec.federation.rounds import Rules, finish_round
from fedjax_rec.rows.tables import num_rows, set_rows, take_rows
from fedjax_rec.samplers.tracking import cohort_size
from fedjax_rec.server.resting import lets_rows_rest, rows_of_state
from fedjax_rec.types import Batch, Client, ClientStore, ClientWork, Key, PyTree, RoundInfo, Server, State

SERVER_ROWS = ("touched", "all")  # which rows a server sums and steps
BLOCK = 128  # batches that are named together
# Touched rows are chosen by themselves in catalogues of so many items for each slot that a cohort can fill, where
# the others take so many bytes: `python -m experiments.scaling.touched`.
LEAST_ITEMS = 2
LEAST_BYTES = 2**27


class TouchedRows(NamedTuple):
    """A round on the rows that its cohort touches; `rows` are leaves [I, ...] of a state, or K rows of them."""

    num_items: int  # I
    table_mesh: Mesh | None  # over which the leaves [I, ...] are split, then as `SplitRows`
    integers: bool  # whether sums are in fixed point
    room: int  # batches of a chunk's clients together, for all but one cohort in 10^9
    # (room, population, cohort, first slot int32[]) -> batches of a chunk [room, ...], where each client's begin
    name_batches: Callable[[int, Population, DrawnCohort, Any], tuple[Batch, jax.Array]]
    split: Callable[[State], tuple[list[Any], State]]  # -> rows, and the state without them
    join: Callable[[State, list[Any]], State]  # undoes it, with some rows or all
    read: Callable[[list[Any], jax.Array], list[jax.Array]]  # (rows, ids int32[K]) -> leaves [K, ...]
    # (rows, ids int32[K], leaves [K, ...]) -> rows, in the same memory where they are donated
    write: Callable[[list[Any], jax.Array, list[jax.Array]], list[Any]]
    # (key, state of K rows, sums of rows, population, cohort, other sums, sound bool[C]) -> state, info, steps
    finish: Callable[[Key, State, PyTree, Population, DrawnCohort, CohortResult, jax.Array], Any]


# What is chosen ------------------------------------------------------------------------------------------------


def rows_to_expect(rules: Rules, population: Population, server: Server) -> int | None:
    """About how many rows a round touches, where it works on these alone.

    Args:
        rules: of the rounds; `server_rows` is what was asked for.
        population: the clients.
        server: shapes of the global model.

    Returns:
        their number; None for rounds over all rows.

    Raises:
        ParameterError: if touched rows were asked for, and the server rule moves others, too.
    """
    if rules.server_rows == "all":
        return None
    batch, _ = batch_shapes(rules.work, population, server)
    cohort = cohort_size(rules.sampler, population)
    slots = room_for(rules.work, population, cohort) * batch.ids.shape[0]
    pays_off = _pays_off(slots, server)
    if rules.server_rows is None and not pays_off:
        return None
    moves = not lets_rows_rest(rules.optimizer, server)
    if rules.server_rows is None and moves:
        return None
    shards = num_shards(rules.table_mesh)
    check_together({Feature.TABLE_SHARDS: shards, Feature.TOUCHED: True, Feature.MOVING_ROWS: moves})
    return min(slots, num_rows(server.tables))


def _pays_off(slots: int, server: Server) -> bool:
    items = num_rows(server.tables)
    row = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(server.tables)) // max(1, items)
    return items >= LEAST_ITEMS * slots and (items - slots) * row >= LEAST_BYTES


def room_for(work: ClientWork, population: Population, num_clients: int) -> int:
    """Batches of some clients together.

    Args:
        work: one client's.
        population: N clients; where it is of shapes alone, all are taken to be as long as the mean.
        num_clients: that are drawn.

    Returns:
        the most of them, in all but one draw in 10^9.
    """
    if isinstance(population.offsets, jax.core.Tracer):
        mean = -(-population.size.num_events // max(1, population.num_clients))
        return num_clients * max(1, int(work.batches.num_batches(mean)))
    lengths = np.diff(np.asarray(population.offsets)).astype(
        np.int64
    )  # wrapped offsets differ as they should
    counts = np.asarray(work.batches.num_batches(lengths)) * (lengths > 0)
    return room_of(counts, min(num_clients, len(counts)))


def make_touched(rules: Rules, population: Population, size: int, state: State) -> TouchedRows:
    """The functions of rounds on touched rows.

    Args:
        rules: of the rounds.
        population: the clients; perhaps the directory of a store.
        size: S, clients of a chunk.
        state: shapes of a state of the run.

    Returns:
        the functions.
    """
    by_row = rows_of_state(rules.optimizer, state.server)
    marks = jax.tree.leaves((jax.tree.map(lambda _: True, state.server.tables), by_row))
    structure = jax.tree.structure((state.server.tables, state.opt_state))
    room = -(-room_for(rules.work, population, size) // BLOCK) * BLOCK
    table_mesh = rules.table_mesh
    read: Callable[..., Any] = read_rows_at
    write: Callable[..., Any] = set_rows
    if table_mesh is not None:
        read, write = partial(gather_rows, table_mesh), partial(scatter_rows, table_mesh)
    return TouchedRows(
        num_items=num_rows(state.server.tables),
        table_mesh=table_mesh,
        integers=rules.uplink.aggregator.fixed is not None,
        room=room,
        name_batches=partial(name_batches, rules, size, population.stored),
        split=partial(_split, marks),
        join=partial(_join, marks, structure),
        read=lambda rows, ids: keep_replicated(read(rows, ids), rules.mesh),
        write=write,
        finish=partial(finish_touched, rules),
    )


def of_named_batches(work: ClientWork) -> ClientWork:
    """The same work on batches that were named before: a client's `offset` is that of its first batch.

    Args:
        work: one client's.

    Returns:
        the work, for populations of `FoundRows`.
    """

    def batch(client: Client, named: Population, t: jax.Array) -> Batch:
        index = client.offset + t
        batches: Any = named.examples["batches"]
        return jax.tree.map(lambda x: x.at[index].get(mode="clip", wrap_negative_indices=False), batches)

    return work._replace(batches=work.batches._replace(batch=jax.jit(batch, inline=True)))


# What is compiled ----------------------------------------------------------------------------------------------


def name_batches(
    rules: Rules,
    size: int,
    located: bool,
    room: int,
    population: Population,
    cohort: DrawnCohort,
    first_slot: jax.Array,
) -> tuple[Batch, jax.Array]:
    """Name the batches of a chunk of the cohort, client after client.

    Args:
        rules: of the rounds.
        size: S, clients of the chunk.
        located: whether the population is of these clients alone.
        room: M, batches that there is room for, whole blocks.
        population: the clients.
        cohort: in whole chunks.
        first_slot: int32[], of the chunk.

    Returns:
        batches [M, ...], whose slots are empty behind the last one; int32[S + 1], where each client's begin. More
        than there is room for are left out.
    """
    chunk = cut_chunk(cohort, first_slot, size)
    clients = locate(chunk.clients, population) if located else chunk.clients
    counts = jnp.where(chunk.alive, rules.work.batches.num_batches(clients.num_examples), 0)
    counts = counts * (clients.num_examples > 0)
    if chunk.batch_limit is not None:
        counts = jnp.clip(chunk.batch_limit, 0, counts)
    starts = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(counts, dtype=jnp.int32)])
    name = jax.vmap(rules.work.batches.batch, in_axes=(0, None, 0))

    def name_block(number: jax.Array, batches: Batch) -> Batch:
        # whose batch each is, and which of its client's
        index = number * BLOCK + jnp.arange(BLOCK)
        slot = jnp.searchsorted(starts, index, side="right", method="compare_all") - 1
        slot = jnp.minimum(slot, size - 1)
        block = name(take_rows(clients, slot), population, index - starts[slot])
        there = index < starts[-1]
        ids = jnp.where(there[:, None], block.ids, population.num_items)
        write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=number * BLOCK, axis=0)
        return jax.tree.map(write, batches, block._replace(ids=ids))

    shapes = jax.eval_shape(
        name, take_rows(clients, jnp.zeros(1, jnp.int32)), population, jnp.zeros(1, jnp.int32)
    )
    empty = jax.tree.map(lambda s: jnp.zeros((room, *s.shape[1:]), s.dtype), shapes)
    empty = empty._replace(ids=jnp.full_like(empty.ids, population.num_items))
    num_blocks = jnp.minimum(-(-starts[-1] // BLOCK), room // BLOCK)
    batches = jax.lax.fori_loop(0, num_blocks, name_block, empty)
    return keep_replicated((batches, starts), rules.mesh)


def read_rows_at(rows: list[jax.Array], ids: jax.Array) -> list[jax.Array]:
    """Some rows of the leaves [I, ...].

    Args:
        rows: the leaves.
        ids: int32[K]; behind the last row any other may be read, so that a rule finds numbers that it knows.

    Returns:
        leaves [K, ...].
    """
    return [leaf.at[ids].get(mode="clip", wrap_negative_indices=False) for leaf in rows]


def read_over(read: Callable[..., Any], spare: list[jax.Array], *given: Any) -> Any:
    """Read rows into the memory of `spare`, leaves [K, ...] that are donated."""
    del spare
    return read(*given)


def train_over(train: Callable[..., Any], spare: list[jax.Array], *given: Any) -> Any:
    """Train a chunk, its sums of rows in the memory of `spare`, leaves [K, ...] that are donated."""
    del spare
    return train(*given)


def finish_touched(
    rules: Rules,
    key: Key,
    state: State,
    tables: PyTree,
    population: Population,
    cohort: DrawnCohort,
    sums: CohortResult,
    sound: jax.Array,
) -> tuple[State, RoundInfo, PyTree]:
    """The server's part, on a model of the touched rows.

    Args:
        rules: of the rounds.
        key: the run's.
        state: of these rows, before the round.
        tables: the sums of their changes, leaves [K, ...].
        population: the clients.
        cohort: in whole chunks.
        sums: all else that was summed.
        sound: bool[C], who took part with numbers that count.

    Returns:
        the state of these rows, what happened; and what is left in the memory of the sums: the rule's steps of
        the rows, or the sums themselves where these are integers.
    """
    optimizer = rules.optimizer

    # A loop of one turn writes its steps over the sums. Fused with what reads them they would be copied twice.
    def update(descent: Server, opt_state: PyTree, server: Server) -> Any:
        def body(_: jax.Array, carried: tuple[Server, PyTree]) -> Any:
            return optimizer.update(*carried, server)

        return jax.lax.fori_loop(0, (state.round >= 0).astype(jnp.int32), body, (descent, opt_state))

    rules = rules._replace(optimizer=optimizer._replace(update=update))
    totals = sums.totals
    sums = sums._replace(totals=totals._replace(deltas=totals.deltas._replace(tables=tables)))

    def store_nothing(*_: Any) -> ClientStore:
        return ClientStore((), ())

    state, info, step = finish_round(rules, key, state, population, cohort, sums, sound, store_nothing)
    return state, info, step.proposed.tables if rules.uplink.aggregator.fixed is None else tables


def take_tables(sums: CohortResult) -> tuple[CohortResult, PyTree]:
    """Sums without those of rows, and these.

    Args:
        sums: of a cohort.

    Returns:
        both, of which `finish_touched` makes one again.
    """
    totals = sums.totals
    tables = totals.deltas.tables
    return sums._replace(totals=totals._replace(deltas=totals.deltas._replace(tables=()))), tables


def _split(marks: list[bool], state: State) -> tuple[list[Any], State]:
    leaves = jax.tree.leaves((state.server.tables, state.opt_state), is_leaf=is_split)
    rows = [leaf for mark, leaf in zip(marks, leaves, strict=True) if mark]
    others = [leaf for mark, leaf in zip(marks, leaves, strict=True) if not mark]
    return rows, state._replace(server=state.server._replace(tables=()), opt_state=others)


def _join(marks: list[bool], structure: Any, state: State, rows: list[Any]) -> State:
    left, others = iter(rows), iter(state.opt_state)
    leaves = [next(left) if mark else next(others) for mark in marks]
    tables, opt_state = jax.tree.unflatten(structure, leaves)
    return state._replace(server=state.server._replace(tables=tables), opt_state=opt_state)
