"""Two schedules that run a queue of clients on lanes: the same `ClientWork`, the same numbers, other strengths.

**Lanes** (`run_lanes`, one local epoch): continuous batching. Each loop step trains one local batch on every lane;
a lane whose client is done hands in the result and pulls the next one, longest first. Every row is visited once,
so nothing is copied: rows are read from the global table and their updates added to the totals at once.

**Waves** (`run_waves`, any number of epochs): the queue, longest first, is cut into waves of L alike clients, who
step together. The step number is then one scalar, so that a batch and its rows are kept between epochs in plain
slices of `[T, L, B, ...]`, named once and read in order, instead of by gather and scatter. What is lost is what a
wave's clients differ in length.

One visit of a batch, for every lane:

    name it, read its rows (first epoch) or take them from the lane's room (later ones)
      ->  [idle steps that the rows missed]  ->  step  ->  [idle steps to the client's end]
      ->  in the last epoch, weight * (rows - global rows) is added to the totals
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.population import Population
from fedjax_rec.tables import add_rows, expand, num_rows, read_rows, select
from fedjax_rec.types import Batch, Client, ClientWork, PyTree, Rows, Server, StepInfo, Totals


class Queue(NamedTuple):
    """A cohort in the order in which lanes pull it: longest first, one empty client at the end."""

    clients: Client  # leaves [C + 1, ...]
    batches: jax.Array  # int32[C + 1], local batches in an epoch; 0 = absent
    weight: jax.Array  # float32[C + 1]
    waiting: jax.Array  # int32[], clients that have something to do


class Report(NamedTuple):
    """Sums over a cohort, besides the update itself."""

    loss: jax.Array  # float32[], summed over examples and epochs
    examples: jax.Array  # float32[]
    rows: jax.Array  # float32[], rows touched, summed over clients
    steps: jax.Array  # int32[], loop steps


class Outcome(NamedTuple):
    """What a schedule carries and returns."""

    totals: Totals
    private: PyTree  # leaves [C, ...], in queue order
    report: Report


class Job(NamedTuple):
    """What a schedule runs: constant through the round."""

    work: ClientWork
    population: Population
    server: Server
    queue: Queue
    old: PyTree  # private leaves at the start, [C, ...]
    lanes: int


class Lanes(NamedTuple):
    """What each lane is doing, under continuous batching."""

    place: jax.Array  # int32[L], its client's place in the queue; `waiting` = none
    t: jax.Array  # int32[L], the next local batch
    local: PyTree  # leaves [L, ...], the client's local state


def run_lanes(job: Job, outcome: Outcome) -> Outcome:
    """Continuous batching, for one local epoch.

    Args:
        job: the queue and what to do with it; `job.work.epochs` is 1.
        outcome: where the sums start.

    Returns:
        the sums over all clients, and their new private leaves.

    Example:
        see `fedjax_rec.engine.run_cohort`, which calls it.
    """
    queue = job.queue

    def busy(carry: tuple[jax.Array, Lanes, Outcome]) -> jax.Array:
        return (carry[1].place < queue.waiting).any()

    def body(carry: tuple[jax.Array, Lanes, Outcome]) -> tuple[jax.Array, Lanes, Outcome]:
        head, lane, outcome = carry
        active, count = lane.place < queue.waiting, jnp.maximum(queue.batches[lane.place], 1)
        batch = _name(job, lane.place, lane.t, active)
        rows = _touch(job, batch)
        local, rows, info = _step(job, lane.local, rows, batch, active, lane.t, count - 1 - lane.t)
        outcome = _add(job, outcome, lane.place, batch.ids, rows)
        outcome = _note(job, outcome, info, active, batch.ids)
        done = active & (lane.t + 1 >= count)
        outcome = _hand_in(job, outcome, lane.place, done, local)
        place = jnp.where(done, jnp.minimum(head + jnp.cumsum(done) - 1, queue.waiting), lane.place)
        lane = Lanes(place, jnp.where(done, 0, lane.t + active), select(done, _enter(job, place), local))
        return jnp.minimum(head + done.sum(dtype=jnp.int32), queue.waiting), lane, outcome

    place = jnp.minimum(jnp.arange(job.lanes), queue.waiting)
    first = Lanes(place, jnp.zeros(job.lanes, jnp.int32), _enter(job, place))
    start = jnp.minimum(jnp.int32(job.lanes), queue.waiting)
    return jax.lax.while_loop(busy, body, (start, first, outcome))[2]


def run_waves(job: Job, outcome: Outcome) -> Outcome:
    """Waves of similar clients in lock step, for any number of local epochs.

    Args:
        job: the queue and what to do with it.
        outcome: where the sums start.

    Returns:
        the sums over all clients, and their new private leaves.

    Example:
        see `fedjax_rec.engine.run_cohort`, which calls it.
    """
    queue, epochs = job.queue, job.work.epochs

    def wave(carry: tuple[jax.Array, Outcome, PyTree]) -> tuple[jax.Array, Outcome, PyTree]:
        number, outcome, room = carry
        place = jnp.minimum(number * job.lanes + jnp.arange(job.lanes), queue.waiting)
        steps = queue.batches[place[0]]  # the longest: the queue is sorted
        state = (_enter(job, place), outcome, room)
        state = jax.lax.fori_loop(0, steps, _visit(job, place, first=True, last=epochs == 1), state)
        if epochs > 2:
            again = _visit(job, place, first=False, last=False)
            state = jax.lax.fori_loop(
                1, epochs - 1, lambda _, s: jax.lax.fori_loop(0, steps, again, s), state
            )
        if epochs > 1:
            state = jax.lax.fori_loop(0, steps, _visit(job, place, first=False, last=True), state)
        local, outcome, room = state
        return number + 1, _hand_in(job, outcome, place, place < queue.waiting, local), room

    def busy(carry: tuple[jax.Array, Outcome, PyTree]) -> jax.Array:
        return carry[0] * job.lanes < queue.waiting

    return jax.lax.while_loop(busy, wave, (jnp.int32(0), outcome, _room(job)))[1]


WaveState = tuple[PyTree, Outcome, PyTree]  # local states, sums so far, room


def _visit(
    job: Job, place: jax.Array, *, first: bool, last: bool
) -> Callable[[jax.Array, WaveState], WaveState]:
    """The body of a wave's loop over its batches, in its first, a middle, or its last epoch."""
    count = job.queue.batches[place]

    def body(t: jax.Array, state: WaveState) -> WaveState:
        local, outcome, room = state
        active = t < count
        if first:
            batch = _name(job, place, jnp.broadcast_to(t, place.shape), active)
            rows, missed = _touch(job, batch), jnp.broadcast_to(t, place.shape)
        else:
            # the barrier keeps the slice from being read anew for each of its uses
            batch, rows = jax.lax.optimization_barrier(jax.tree.map(lambda x: x[t], room))
            missed = count - 1
        left = count - 1 - t if last else jnp.zeros_like(count)
        local, rows, info = _step(job, local, rows, batch, active, missed, left)
        outcome = _note(job, outcome, info, active, batch.ids if first else None)
        if last:
            outcome = _add(job, outcome, place, batch.ids, rows)
        elif first:
            room = jax.tree.map(lambda x, new: x.at[t].set(new), room, (batch, rows))
        else:  # the batch is there already, and writing it again would copy all of them
            room = room[0], jax.tree.map(lambda x, new: x.at[t].set(new), room[1], rows)
        return local, outcome, room

    return body


def _room(job: Job) -> PyTree:
    """Room for each lane's batches and rows between its epochs, leaves [T, L, B, ...]."""
    if job.work.epochs == 1:
        return ()

    def example(place: jax.Array) -> tuple[Batch, Rows]:
        batch = _name(job, place, place, place >= 0)
        return batch, _touch(job, batch)

    shapes = jax.eval_shape(example, jnp.zeros(job.lanes, jnp.int32))
    most = max(1, int(job.work.batches.num_batches(job.population.max_examples)))
    return jax.tree.map(lambda s: jnp.zeros((most, *s.shape), s.dtype), shapes)


def _enter(job: Job, place: jax.Array) -> PyTree:
    """Local states of the clients at some places of the queue."""
    keys = jax.random.wrap_key_data(job.queue.clients.key[place])
    own = jax.tree.map(lambda x: x.at[place].get(mode="clip"), job.old)
    return jax.vmap(job.work.start, in_axes=(0, 0, None))(keys, own, job.server.shared)


def _name(job: Job, place: jax.Array, t: jax.Array, active: jax.Array) -> Batch:
    """Local batch `t` of every lane; all slots of an inactive lane are empty."""
    client = jax.tree.map(lambda x: x[place], job.queue.clients)
    batch = jax.vmap(job.work.batches.batch, in_axes=(0, None, 0))(client, job.population, t)
    return batch._replace(ids=jnp.where(expand(active, batch.ids), batch.ids, num_rows(job.server.tables)))


def _touch(job: Job, batch: Batch) -> Rows:
    values = read_rows(job.server.tables, batch.ids)
    return jax.vmap(job.work.touch, axis_size=batch.ids.shape[0])(values)


def _step(
    job: Job, local: PyTree, rows: Rows, batch: Batch, active: jax.Array, missed: jax.Array, left: jax.Array
) -> tuple[PyTree, Rows, StepInfo]:
    """One step on every lane, between the idle steps that its rows missed and those left to the client's end."""
    rows = _idle(job, rows, missed * active)
    new, rows, info = jax.vmap(job.work.step)(local, rows, batch)
    return select(active, new, local), _idle(job, rows, left * active), info


def _idle(job: Job, rows: Rows, turns: jax.Array) -> Rows:
    """Replay `turns` int32[L] steps in which these rows had no gradient."""
    if job.work.idle is None:
        return rows
    idle = jax.vmap(job.work.idle, axis_size=turns.shape[0])

    def body(turn: jax.Array, rows: Rows) -> Rows:
        return select(turn < turns, idle(rows), rows)

    return jax.lax.fori_loop(0, turns.max(), body, rows)


def _add(job: Job, outcome: Outcome, place: jax.Array, ids: jax.Array, rows: Rows) -> Outcome:
    """Add what the lanes send of this batch's rows."""
    totals, weight = outcome.totals, job.queue.weight[place]
    old = read_rows(job.server.tables, ids)
    deltas = jax.tree.map(lambda new, old: expand(weight, new) * (new - old), rows.values, old)
    flat, deltas = ids.reshape(-1), jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:]), deltas)
    row_weight = totals.row_weight
    if row_weight is not None:
        row_weight = add_rows(row_weight, flat, jnp.broadcast_to(weight[:, None], ids.shape).reshape(-1))
    server = totals.server._replace(tables=add_rows(totals.server.tables, flat, deltas))
    return outcome._replace(totals=totals._replace(server=server, row_weight=row_weight))


def _note(
    job: Job, outcome: Outcome, info: StepInfo, active: jax.Array, touched: jax.Array | None
) -> Outcome:
    """Add to the report; `touched` ids are counted where they are seen for the first time."""
    report, rows = outcome.report, outcome.report.rows
    if touched is not None:
        rows = rows + (touched < num_rows(job.server.tables)).sum(dtype=jnp.float32)
    loss = report.loss + jnp.where(active, info.loss, 0.0).sum()
    examples = report.examples + jnp.where(active, info.examples, 0.0).sum()
    return outcome._replace(report=Report(loss, examples, rows, report.steps + 1))


def _hand_in(job: Job, outcome: Outcome, place: jax.Array, done: jax.Array, local: PyTree) -> Outcome:
    """Store what the finished clients keep and add the dense part of what they send."""
    totals = outcome.totals
    new, deltas = jax.vmap(job.work.finish, in_axes=(0, None))(local, job.server.shared)
    at = jnp.where(done, place, job.queue.batches.shape[0])
    private = jax.tree.map(lambda p, x: p.at[at].set(x, mode="drop"), outcome.private, new)
    weight = jnp.where(done, job.queue.weight[place], 0.0)
    shared = jax.tree.map(
        lambda total, d: total + jnp.where(expand(done, d), expand(weight, d) * d, 0.0).sum(0),
        totals.server.shared,
        deltas,
    )
    return Outcome(totals._replace(server=totals.server._replace(shared=shared)), private, outcome.report)
