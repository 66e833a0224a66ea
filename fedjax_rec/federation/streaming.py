"""Rounds in chunks: what clients keep waits in host memory, and the device holds that of a few clients at a time.

What all clients keep is N times what one keeps: whole item tables of their own [N, I, D] (`fedrap`), control
variates, the errors of compressors. A device need not hold it. A round of one cohort is then

    draw the cohort  ->  for S clients at a time: fetch what they keep, train, add up, put back  ->  step

with one step of the server, as ever: `train` gives a chunk's sums, which add up to the cohort's; integers of
fixed-point sums to the same bits whatever S is (with as many lanes), floats to rounding. The functions
here are pure and compiled; `host_memory` is the loop around them, and holds what waits.

What needs the whole cohort at once cannot be streamed; `compatibility.table` names it.

Departure from rounds in one piece: clients store what they learnt before the server steps. Where its step is then
not finite and so not taken (`RoundInfo.skipped`), they keep it, as devices would.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from fedjax_rec.client.keys import stream
from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import paper_cohort
from fedjax_rec.engine.chunks import choose_chunk_size, copies_are_large
from fedjax_rec.engine.devices import keep_replicated
from fedjax_rec.engine.guard import run_sound
from fedjax_rec.engine.lane_steps import CohortResult
from fedjax_rec.engine.plan import check_fits, fits, with_copy, with_split_tables, without_host
from fedjax_rec.engine.table_shards import keep_dealt, num_shards
from fedjax_rec.federation.cohorts import DrawnCohort, cut_chunk, locate, of_clients
from fedjax_rec.federation.initial import common_of, for_each, private_of, transform_state_of
from fedjax_rec.federation.rounds import (
    Rules,
    cohort_trainer,
    draw_clients,
    finish_round,
    init_state,
    plan_rounds,
)
from fedjax_rec.federation.touched import make_touched, of_named_batches, rows_to_expect
from fedjax_rec.types import KEY_IMPL, ChunkedRound, ClientStore, Key, Plan, RoundInfo, Server, State


def split_round(
    rules: Rules, stream_clients: int | None, check_stored: Callable[[], None]
) -> Callable[[Population], ChunkedRound | None]:
    """The same rounds in chunks, for populations for which that is wanted.

    Args:
        rules: of the rounds.
        stream_clients: S, clients of a chunk, rounded up to a multiple of the devices; 0 for rounds in one piece;
            None for chunks where they cost no time, or fit where one piece does not; on touched rows at least one.
        check_stored: refuses rules that do not go with histories in a store, whose rounds are always in chunks.

    Returns:
        population -> a round in chunks, or None for one piece.

    Raises:
        ValueError: if S is negative.
    """
    if stream_clients is not None and stream_clients < 0:
        raise ValueError(
            f"stream_clients={stream_clients} must be at least 0, which is for rounds in one piece"
        )

    def chunked(population: Population) -> ChunkedRound | None:
        if population.stored:
            check_stored()
        elif stream_clients == 0:
            return None
        touched_rows = rows_to_expect(rules, population, _init_shapes(rules, population).server)
        size: int | None
        if population.stored:
            size = _size_for_store(rules, population, stream_clients)
        elif stream_clients is not None:
            size = _fill_devices(rules, population, stream_clients)
        else:
            size = _choose_size(rules, population, touched_rows)
        return None if size is None else _chunked_round(rules, population, size, touched_rows)

    return chunked


def _size_for_store(rules: Rules, population: Population, stream_clients: int | None) -> int:
    """S of rounds that fetch histories from a store."""
    if stream_clients is not None:
        return _fill_devices(rules, population, stream_clients)
    return choose_chunk_size(plan_rounds(rules, population), _init_shapes(rules, population).store)


def _init_shapes(rules: Rules, population: Population) -> State:
    return jax.eval_shape(lambda: init_state(rules, jax.random.key(0, impl=KEY_IMPL), population))


def _fill_devices(rules: Rules, population: Population, size: int) -> int:
    """S, of as many clients for each device, and no more than the cohort needs."""
    plan = plan_rounds(rules, population)
    return -(-min(size, plan.cohort) // plan.devices) * plan.devices


def _choose_size(rules: Rules, population: Population, touched_rows: int | None) -> int | None:
    """S where chunks cost no time, or fit where one piece does not; else None, or the cohort on touched rows."""
    state = _init_shapes(rules, population)
    one_piece = plan_rounds(rules, population)
    size = choose_chunk_size(one_piece, state.store)
    if copies_are_large(one_piece):
        return size
    if touched_rows is not None:
        return _fill_devices(rules, population, one_piece.cohort)
    helps = not fits(with_copy(one_piece)) and fits(with_copy(plan_rounds(rules, population, size)))
    return size if helps else None


def _chunked_round(rules: Rules, population: Population, size: int, touched_rows: int | None) -> ChunkedRound:
    plan = plan_rounds(rules, population, size, touched_rows)
    if population.stored:  # on the device are those who train and those who come next
        histories = (
            2
            * plan.devices
            * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(paper_cohort(population, size)))
        )
        plan = plan._replace(num_bytes=plan.num_bytes | {"data": plan.num_bytes["data"] + histories})
    touched = None
    trained = rules
    if touched_rows is not None:
        state = _init_shapes(rules, population)
        touched = make_touched(rules, population, size, state)
        trained = rules._replace(work=of_named_batches(rules.work))
        plan = with_split_tables(plan, touched.split(state)[0], num_shards(rules.table_mesh) or 1)
    return ChunkedRound(
        plan=plan,
        init_common=partial(init_common, rules),
        init_clients=partial(init_clients, rules),
        draw=partial(draw_in_chunks, rules, size),
        train=partial(train_chunk, trained, plan, located=population.stored or touched is not None),
        finish=partial(finish_chunks, rules),
        touched=touched,
    )


def init_common(rules: Rules, key: Key, server: Server) -> ClientStore:
    """What all clients start alike with: leaves of one."""
    common = common_of(rules.model, stream(key, "private"), server)
    return ClientStore(common, transform_state_of(rules.uplink.transform, server))


def init_clients(rules: Rules, key: Key, ids: jax.Array, common: ClientStore) -> ClientStore:
    """What clients int32[S] keep before the first round, leaves [S, ...]."""
    private = private_of(rules.model, stream(key, "private"), ids, common.private)
    store = ClientStore(private, for_each(common.transform_state, len(ids)))
    return keep_replicated(store, rules.mesh)


def draw_in_chunks(rules: Rules, size: int, key: Key, state: State, population: Population) -> DrawnCohort:
    """The cohort, longest client first, so that a chunk's are similar; empty slots fill up the last chunk."""
    drawn = draw_clients(rules, key, state, population)
    batches = jnp.where(drawn.alive, rules.work.batches.num_batches(drawn.clients.num_examples), 0)
    if drawn.batch_limit is not None:
        batches = jnp.minimum(batches, drawn.batch_limit)
    order = jnp.argsort(-batches, stable=True)

    def queue(x: jax.Array) -> jax.Array:
        return jnp.pad(x[order], ((0, -len(order) % size), *[(0, 0)] * (x.ndim - 1)))

    return keep_replicated(DrawnCohort(*jax.tree.map(queue, of_clients(drawn))), rules.mesh)


def train_chunk(
    rules: Rules,
    plan: Plan,
    key: Key,
    state: State,
    population: Population,
    cohort: DrawnCohort,
    first_slot: jax.Array,
    store: ClientStore,
    *,
    located: bool = False,
) -> tuple[CohortResult, jax.Array]:
    """Train the S clients of the cohort from slot `first_slot` on, of whom `store` [S, ...] holds what they keep.

    `located` says that the population is of these S clients alone.

    Returns:
        what came of it, and bool[S], who took part with numbers that count.
    """
    size = cast("int", plan.stream_clients)
    chunk = cut_chunk(cohort, first_slot, size)
    check_fits(without_host(plan), rules.uplink.aggregator.fixed)  # what waits was looked at before
    slots = jnp.arange(size)
    here = locate(chunk.clients, population) if located else None
    train = cohort_trainer(
        rules, plan, key, state.with_store(store), population, chunk, store_index=slots, located=here
    )
    result, sound = run_sound(train, chunk.alive)
    if rules.table_mesh is None:
        return keep_replicated((result, sound), rules.mesh)
    kept = keep_dealt(result.store, rules.table_mesh)
    result, sound = keep_replicated((result._replace(store=ClientStore((), ())), sound), rules.mesh)
    return result._replace(store=kept), sound


def finish_chunks(
    rules: Rules,
    key: Key,
    state: State,
    population: Population,
    cohort: DrawnCohort,
    sums: CohortResult,
    sound: jax.Array,
) -> tuple[State, RoundInfo]:
    """The server's part, once all have trained: losses and `sound` bool[C] are of all the cohort."""

    def store_nothing(*_: Any) -> ClientStore:
        return ClientStore((), ())

    return finish_round(rules, key, state, population, cohort, sums, sound, store_nothing)[:2]
