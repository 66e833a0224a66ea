"""What both schedules are made of: a queue of clients, and one visit of a local batch on every lane.

**Lanes** (`lanes.run_lanes`, one local epoch): continuous batching. Each loop step trains one local batch on every
lane; a lane whose client is done hands in the result and pulls the next one, longest first. Every row is visited
once, so nothing is copied: rows are read from the global table and their updates added to the totals at once.

**Waves** (`waves.run_waves`, any number of epochs): the queue, longest first, is cut into waves of L alike
clients, who step together. The step number is one scalar, so a batch and its rows are kept between epochs in plain
slices of `[L, T, B, ...]`, named once and read in order, instead of by gather and scatter. What is lost is what a
wave's clients differ in length. At a wave's end whole updates lie side by side, for those who must see them whole:
transforms (clip, quantise, noise) and stacked aggregators (median, Krum).

One visit of a batch, for every lane:

    name it, read its rows (first epoch) or take them from the lane's room (later ones)
      ->  [idle steps that the rows missed]  ->  step  ->  [idle steps to the client's end]
      ->  in the last epoch, weight * (rows - global rows) is added to the totals

Who hands in a number that is not finite is marked on the way; `guard` then runs the round without them. Rows are
looked at one by one (`watch`) only if something was wrong with their sums, for that costs a fifth of the round.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.population import Population
from fedjax_rec.row_updates import STRATEGIES
from fedjax_rec.tables import expand, num_rows, read_rows, select
from fedjax_rec.types import (
    Aggregator,
    Batch,
    Client,
    ClientWork,
    PyTree,
    Rows,
    Server,
    StepInfo,
    Transform,
)

LARGEST = 1e18  # the square of a larger number may overflow float32: it is as bad as an infinite one


class Versions(NamedTuple):
    """Models that clients were sent at different times: each trains from its own."""

    models: Any  # Server, leaves [V, ...]; () where a queue names the rest
    slot: jax.Array  # int32[C], which of them is whose
    scale: jax.Array  # float32[C], what each update is multiplied by before it is summed; its weight is not


class Queue(NamedTuple):
    """A cohort in the order in which lanes pull it: longest first, one empty client at the end."""

    clients: Client  # leaves [C + 1, ...]
    noise: jax.Array  # uint32[C + 1, 2], the keys of the clients' transforms
    batches: jax.Array  # int32[C + 1], local batches in an epoch; 0 = absent
    weight: jax.Array  # float32[C + 1]
    counted: jax.Array  # int32[C + 1], examples of each that are processed in an epoch
    waiting: jax.Array  # int32[], clients that have something to do
    held: Versions | None = None  # leaves [C + 1]; None: all train from the global model


class Report(NamedTuple):
    """Sums over a cohort, besides the update itself."""

    loss: jax.Array  # float32[], summed over examples and epochs
    examples: jax.Array  # float32[]
    rows: jax.Array  # float32[], rows touched, summed over clients
    steps: jax.Array  # int32[], loop steps
    saturated: jax.Array  # int32[], numbers cut off by fixed-point sums


class Outcome(NamedTuple):
    """What a schedule carries and returns."""

    totals: Any  # Totals, or a Stack
    private: PyTree  # leaves [C, ...], in queue order
    report: Report
    memory: PyTree  # of the clients' transforms, leaves [C, ...], in queue order
    unsound: jax.Array  # bool[C], in queue order, whose numbers are not finite
    heard: PyTree = ()  # float32[C, 2], in queue order: losses of the first epoch with examples, and these


class Uplink(NamedTuple):
    """How updates travel from the clients to the sums."""

    aggregator: Aggregator
    transform: Transform | None = None  # of each client's whole update
    row_update: str = "scatter"  # a strategy of `row_updates`
    heard: bool = False  # whether each client's loss is told, besides the update

    @property
    def later(self) -> bool:
        """Whether updates are sent after a client's last step instead of with it."""
        return self.aggregator.stacked or self.transform is not None or self.aggregator.by_loss is not None

    @property
    def whole(self) -> bool:
        """Whether a client's update is put together before it is sent."""
        scaled = self.transform is None or self.transform.scale is not None
        return self.later and (self.aggregator.stacked or not scaled)


class Job(NamedTuple):
    """What a schedule runs: constant through the round."""

    work: ClientWork
    population: Population
    server: Server
    queue: Queue
    old: PyTree  # private leaves at the start, [C, ...]
    lanes: int
    uplink: Uplink
    watched: jax.Array | bool = True  # whether rows are looked at one by one as they are added to the sums
    models: Any = ()  # Server, leaves [V, ...]: of whom the queue says who holds which, if it does


def batch_shapes(work: ClientWork, population: Population, server: Server) -> tuple[Batch, PyTree]:
    """Shapes of one client's local batch and of its rows, leaves [B, ...]; `server` may be shapes itself."""

    def example(words: jax.Array, tables: PyTree) -> tuple[Batch, PyTree]:
        zero = jnp.int32(0)
        batch = work.batches.batch(Client(zero, zero, zero, words), population, zero)
        return batch, read_rows(tables, batch.ids)

    return jax.eval_shape(example, jax.ShapeDtypeStruct((2,), jnp.uint32), server.tables)


def one_of(private: PyTree) -> PyTree:
    """Shapes of one client's private leaves, of all clients' leaves [N, ...]."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), private)


def upload_shapes(work: ClientWork, population: Population, server: Server, private: PyTree) -> Server:
    """Shapes of a sum of updates, tables [I, ...]; `private` is one client's leaves, all may be shapes."""

    def example(words: jax.Array, private: PyTree, server: Server) -> tuple[PyTree, PyTree]:
        zero = jnp.int32(0)
        batch = work.batches.batch(Client(zero, zero, zero, words), population, zero)
        local = work.start(jax.random.wrap_key_data(words), private, server.shared)
        values = read_rows(server.tables, batch.ids)
        sent = values if work.send is None else work.send(local, work.touch(values), batch, values)
        return work.finish(local, server.shared)[1], sent

    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    shared, sent = jax.eval_shape(example, words, private, server)
    items = num_rows(server.tables)
    return Server(shared, jax.tree.map(lambda s: jax.ShapeDtypeStruct((items, *s.shape[1:]), s.dtype), sent))


def most_batches(work: ClientWork, population: Population) -> int:
    """Local batches of the longest client, T; at least 1."""
    return max(1, int(work.batches.num_batches(population.max_examples)))


def enter(job: Job, place: jax.Array) -> PyTree:
    """Local states of the clients at places int32[L] of the queue, leaves [L, ...]."""
    keys = jax.random.wrap_key_data(job.queue.clients.key[place])
    own = jax.tree.map(lambda x: x.at[place].get(mode="clip"), job.old)
    server, axis = held_models(job, place)
    return jax.vmap(job.work.start, in_axes=(0, 0, axis))(keys, own, server.shared)


def held_models(job: Job, place: jax.Array) -> tuple[Server, int | None]:
    """The model that each lane's client was sent, and the axis of lanes in it; None where it is the same for all.

    Leaves that the caller does not read are never gathered: the compiler drops them.
    """
    if job.queue.held is None:
        return job.server, None
    slot = job.queue.held.slot[place]
    return jax.tree.map(lambda model: model[slot], job.models), 0


def read_held(job: Job, place: jax.Array, ids: jax.Array) -> PyTree:
    """Rows `ids` int32[L, B] of the model that each lane's client was sent, leaves [L, B, ...]."""
    if job.queue.held is None:
        return read_rows(job.server.tables, ids)
    slot = job.queue.held.slot[place][:, None]
    return jax.tree.map(lambda t: t.at[slot, ids].get(mode="fill", fill_value=0), job.models.tables)


def scale_of(job: Job, place: jax.Array) -> jax.Array | None:
    """What each lane's update is multiplied by, float32[L]; None for nothing."""
    return None if job.queue.held is None else job.queue.held.scale[place]


def name_batch(job: Job, place: jax.Array, t: jax.Array, active: jax.Array) -> Batch:
    """Local batch `t` int32[L] of every lane, ids [L, B]; all slots of an inactive lane are empty."""
    client = jax.tree.map(lambda x: x[place], job.queue.clients)
    batch = jax.vmap(job.work.batches.batch, in_axes=(0, None, 0))(client, job.population, t)
    return batch._replace(ids=jnp.where(expand(active, batch.ids), batch.ids, num_rows(job.server.tables)))


def touch_rows(job: Job, place: jax.Array, batch: Batch) -> Rows:
    """The global rows of a batch, as each client starts from them, leaves [L, B, ...]."""
    values = read_held(job, place, batch.ids)
    return jax.vmap(job.work.touch, axis_size=batch.ids.shape[0])(values)


def step_lanes(
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


def note(job: Job, outcome: Outcome, info: StepInfo, active: jax.Array, touched: jax.Array | None) -> Outcome:
    """Add to the report; `touched` ids are counted where they are seen for the first time."""
    report, rows = outcome.report, outcome.report.rows
    if touched is not None:
        rows = rows + (touched < num_rows(job.server.tables)).sum(dtype=jnp.float32)
    return outcome._replace(
        report=report._replace(
            loss=report.loss + jnp.where(active, info.loss, 0.0).sum(),
            examples=report.examples + jnp.where(active, info.examples, 0.0).sum(),
            rows=rows,
            steps=report.steps + 1,
        )
    )


def hear(job: Job, outcome: Outcome, place: jax.Array, info: StepInfo, active: jax.Array) -> Outcome:
    """Add a local batch to the losses of the clients on active lanes, if they tell them."""
    if not job.uplink.heard:
        return outcome
    told = jnp.where(active[:, None], jnp.stack([info.loss, info.examples], axis=-1), 0.0)
    return outcome._replace(heard=outcome.heard.at[place].add(told, mode="drop"))


def have_told(job: Job, outcome: Outcome, place: jax.Array) -> jax.Array | bool:
    """Whether the clients on the lanes have told a loss, bool[L]: the first pass of some counts no example."""
    return job.uplink.heard and outcome.heard.at[place].get(mode="clip")[:, 1] > 0


def mean_losses(heard: jax.Array) -> jax.Array:
    """Losses float32[...] over examples, of sums float32[..., 2]; 0 without any."""
    return heard[..., 0] / jnp.maximum(heard[..., 1], 1.0)


def leave(
    job: Job, outcome: Outcome, place: jax.Array, done: jax.Array, local: PyTree
) -> tuple[Outcome, PyTree]:
    """Store what the finished clients keep; return the dense deltas of all lanes, [L, ...]."""
    server, axis = held_models(job, place)
    new, deltas = jax.vmap(job.work.finish, in_axes=(0, axis))(local, server.shared)
    at = jnp.where(done, place, job.queue.batches.shape[0])
    private = jax.tree.map(lambda p, x: p.at[at].set(x, mode="drop"), outcome.private, new)
    return mark(outcome._replace(private=private), place, done & ~sound_numbers((new, deltas), done)), deltas


def watch(
    job: Job, outcome: Outcome, place: jax.Array, active: jax.Array, sent: Callable[[], PyTree]
) -> Outcome:
    """Mark the active lanes whose rows, leaves [L, ...], are unsound, if the job is to be watched."""

    def look(unsound: jax.Array) -> jax.Array:
        bad = active & ~sound_numbers(sent(), active)
        return mark(outcome._replace(unsound=unsound), place, bad).unsound

    marked = jax.lax.cond(job.watched, look, lambda unsound: unsound, outcome.unsound)
    return outcome._replace(unsound=marked)


def sound_numbers(values: PyTree, like: jax.Array) -> jax.Array:
    """Whether each lane's numbers, leaves [L, ...], are finite and not too large; bool[L] as `like`."""
    sound = jnp.ones_like(like)
    for x in jax.tree.leaves(values):
        if jnp.issubdtype(x.dtype, jnp.floating):
            sound = sound & (jnp.abs(x) <= LARGEST).reshape(x.shape[0], -1).all(1)
    return sound


def mark(outcome: Outcome, place: jax.Array, bad: jax.Array) -> Outcome:
    """Note that the clients of the lanes bool[L] are unsound."""
    at = jnp.where(bad, place, outcome.unsound.shape[0])
    return outcome._replace(unsound=outcome.unsound.at[at].set(True, mode="drop"))


def sent_rows(job: Job, place: jax.Array, local: PyTree, rows: Rows, batch: Batch) -> PyTree:
    """What is sent for each row, by default its change; 0 in an empty slot, whatever a loss made of it."""
    own = batch.ids < num_rows(job.server.tables)
    old = read_held(job, place, batch.ids)
    if job.work.send is None:
        return jax.tree.map(lambda new, old: jnp.where(expand(own, new), new - old, 0.0), rows.values, old)
    sent = jax.vmap(job.work.send)(local, rows, batch, old)
    return jax.tree.map(lambda x: jnp.where(expand(own, x), x, 0.0), sent)


def add_row_deltas(
    job: Job,
    outcome: Outcome,
    weight: jax.Array,
    ids: jax.Array,
    deltas: PyTree,
    scale: jax.Array | None = None,
) -> Outcome:
    """Add weight x scale (float32[L]) x deltas [L, R, ...] of rows `ids` int32[L, R] to the totals."""
    totals, flat, add_rows = outcome.totals, ids.reshape(-1), STRATEGIES[job.uplink.row_update]
    factor = weight if scale is None else weight * scale
    if job.uplink.aggregator.row_factor is not None:
        each = jax.vmap(job.uplink.aggregator.row_factor)(deltas)
        deltas = jax.tree.map(lambda d: expand(each, d) * d, deltas)
        heavy = (each * weight[:, None]).reshape(-1)
    else:
        heavy = jnp.broadcast_to(weight[:, None], ids.shape).reshape(-1)
    weighted, saturated = _encode(job, jax.tree.map(lambda d: expand(factor, d) * d, deltas))
    tables = jax.tree.map(
        lambda table, d: add_rows(table, flat, d.reshape(-1, *d.shape[2:])),
        totals.server.tables,
        weighted,
    )
    if totals.row_weight is not None:
        totals = totals._replace(row_weight=add_rows(totals.row_weight, flat, heavy))
    report = outcome.report._replace(saturated=outcome.report.saturated + saturated)
    totals = totals._replace(server=totals.server._replace(tables=tables))
    return outcome._replace(totals=totals, report=report)


def add_dense_deltas(
    job: Job,
    outcome: Outcome,
    weight: jax.Array,
    done: jax.Array,
    deltas: PyTree,
    scale: jax.Array | None = None,
) -> Outcome:
    """Add weight x scale (float32[L]) x deltas [L, ...] of the clients that are done bool[L]."""
    totals, factor = outcome.totals, weight if scale is None else weight * scale
    kept = jax.tree.map(lambda d: jnp.where(expand(done, d), expand(factor, d) * d, 0.0), deltas)
    weighted, saturated = _encode(job, kept)
    shared = jax.tree.map(lambda total, d: total + d.sum(0), totals.server.shared, weighted)
    report = outcome.report._replace(saturated=outcome.report.saturated + saturated)
    totals = totals._replace(server=totals.server._replace(shared=shared))
    return outcome._replace(totals=totals, report=report)


def _encode(job: Job, deltas: PyTree) -> tuple[PyTree, jax.Array | int]:
    """Fixed-point integers, if that is how they are summed, and how many numbers were cut off."""
    fixed = job.uplink.aggregator.fixed
    if fixed is None:
        return deltas, 0
    outside = [(~(jnp.abs(d) <= fixed.limit)).sum(dtype=jnp.int32) for d in jax.tree.leaves(deltas)]
    return jax.tree.map(fixed.encode, deltas), sum(outside)
