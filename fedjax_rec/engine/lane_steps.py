"""What both schedules are made of: a queue of clients, and one local batch on every lane.

**Lanes** (`lanes.run_lanes`, one local epoch): continuous batching. Each loop step trains one local batch on every
lane; a lane whose client is done hands in the result and pulls the next one, longest first. Every row is visited
once, so nothing is copied: rows are read from the global table and their updates added to the totals at once.

**Waves** (`waves.run_waves`, any number of epochs): the queue, longest first, is cut into waves of L similar
clients, who step together. The step number is one scalar, so a batch and its rows are kept between epochs in plain
slices of `[L, T, B, ...]`, named once and read in order, instead of by gather and scatter. What is lost is what a
wave's clients differ in length. At a wave's end whole updates lie side by side, for those who must see them whole:
transforms (clip, quantise, noise) and stacked aggregators (median, Krum).

One batch, for every lane:

    name it, read its rows (first epoch) or take them from the lane's buffer (later ones)
      ->  [zero-gradient steps that the rows missed]  ->  step  ->  [zero-gradient steps to the client's end]
      ->  in the last epoch, weight * (rows - global rows) is added to the totals

A client that sends a number that is not finite is marked on the way; `guard` then runs the round without it. Rows
are checked one by one (`check_rows`) only if something was wrong with their sums: it costs a fifth of the round.

`slot` int32[L] names, here and in both schedules, the queue's slot of the client on each lane.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.rows.scatter import STRATEGIES
from fedjax_rec.rows.tables import add_rows, expand, num_rows, read_rows, select, set_rows, take_rows
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import (
    KEY_IMPL,
    Aggregator,
    Batch,
    Client,
    ClientStore,
    ClientWork,
    Context,
    PyTree,
    Rows,
    Server,
    StepInfo,
)

LARGEST = 1e18  # the square of a larger number may overflow float32: it is as bad as an infinite one


class Uplink(NamedTuple):
    """How updates travel from the clients to the sums; lives as long as the algorithm."""

    aggregator: Aggregator
    transform: Transform | None = None  # of each client's whole update
    row_update: str = "scatter"  # a strategy of `rows.scatter`
    records_losses: bool = False  # whether each client sends its loss, besides the update

    @property
    def sends_after_training(self) -> bool:
        """Whether updates are sent after a client's last step instead of with it."""
        by_loss = self.aggregator.loss_factor is not None
        return self.aggregator.stacked or self.transform is not None or by_loss

    @property
    def needs_full_update(self) -> bool:
        """Whether a client's update is put together before it is sent."""
        only_scales = self.transform is None or self.transform.scale is not None
        return self.sends_after_training and (self.aggregator.stacked or not only_scales)


class ModelVersions(NamedTuple):
    """Models that clients were sent at different times: each trains from its own."""

    models: Any  # Server, leaves [V, ...]; () in a queue, whose task has them
    model_index: jax.Array  # int32[C], which of them is whose
    scale: jax.Array  # float32[C], what each update is multiplied by before it is summed; its weight is not


class Queue(NamedTuple):
    """A cohort in the order in which lanes pull it: longest first, one empty client at the end."""

    clients: Client  # leaves [C + 1, ...]
    transform_keys: jax.Array  # uint32[C + 1, 2]
    num_batches: jax.Array  # int32[C + 1], local batches in an epoch; 0 = absent
    weight: jax.Array  # float32[C + 1]
    num_processed: jax.Array  # int32[C + 1], examples of each that are processed in an epoch
    # int32[], clients that have something to do, and the slot of nobody; () until the queue is on its device
    num_present: Any
    versions: ModelVersions | None = None  # leaves [C + 1]; None: all train from the global model


class Report(NamedTuple):
    """Sums over a cohort, besides the update itself."""

    loss: jax.Array  # float32[], summed over examples and epochs
    examples: jax.Array  # float32[]
    rows: jax.Array  # float32[], rows touched, summed over clients
    loop_steps: jax.Array  # int32[], each of one local batch on every lane
    saturated: jax.Array  # int32[], numbers cut off by fixed-point sums
    # () until the end
    lane_steps: Any = ()  # int32[], lanes x loop steps
    batches: Any = ()  # int32[], local batches that the clients needed


class CohortResult(NamedTuple):
    """What a schedule carries from step to step, and what comes of a cohort's training."""

    totals: Any  # Totals, or a Stack
    store: ClientStore  # leaves [C, ...]
    report: Report
    unsound: Any  # bool[C], whose numbers are not finite; () in sums of chunks
    loss_sums: PyTree = ()  # float32[C, 2]: losses of the first epoch with examples, and their number, if recorded


class CohortTask(NamedTuple):
    """What a schedule runs: constant while one cohort trains."""

    work: ClientWork
    uplink: Uplink
    population: Population
    server: Server
    models: Any  # Server, leaves [V, ...], of which the queue says who has which; () where all have `server`
    queue: Queue
    private: PyTree  # private leaves at the start, [C, ...]
    lanes: int
    check_rows: jax.Array | bool = True  # whether rows are checked one by one as they are added to the sums

    @property
    def num_items(self) -> int:
        """I."""
        return num_rows(self.server.tables)

    @property
    def num_slots(self) -> int:
        """Slots of the queue, C + 1: an index that writing ignores."""
        return len(self.queue.num_batches)


# Shapes ----------------------------------------------------------------------------------------------------


def batch_shapes(work: ClientWork, population: Population, server: Server) -> tuple[Batch, PyTree]:
    """Shapes of one client's local batch and of its rows, leaves [B, ...]; `server` may be shapes itself."""

    def example(words: jax.Array, tables: PyTree) -> tuple[Batch, PyTree]:
        zero = jnp.int32(0)
        batch = work.batches.batch(Client(zero, zero, zero, words), population, zero)
        return batch, read_rows(tables, batch.ids)

    return jax.eval_shape(example, jax.ShapeDtypeStruct((2,), jnp.uint32), server.tables)


def client_shapes(private: PyTree) -> PyTree:
    """Shapes of one client's private leaves, of all clients' leaves [N, ...]."""
    return jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), private)


def upload_shapes(work: ClientWork, population: Population, server: Server, private: PyTree) -> Server:
    """Shapes of a sum of updates, tables [I, ...]; `private` is one client's leaves, all may be shapes."""
    items = num_rows(server.tables)

    def example(words: jax.Array, private: PyTree, server: Server) -> tuple[PyTree, PyTree]:
        zero = jnp.int32(0)
        batch = work.batches.batch(Client(zero, zero, zero, words), population, zero)
        key = jax.random.wrap_key_data(words, impl=KEY_IMPL)
        local = work.start(key, private, server.shared, Context(items, zero, zero))
        values = read_rows(server.tables, batch.ids)
        sent = values
        if work.upload is not None:
            sent = work.upload.send(local, work.init_rows(values), batch, values)
        return work.finish(local, server.shared)[1], sent

    words = jax.ShapeDtypeStruct((2,), jnp.uint32)
    shared, sent = jax.eval_shape(example, words, private, server)
    return Server(shared, jax.tree.map(lambda s: jax.ShapeDtypeStruct((items, *s.shape[1:]), s.dtype), sent))


def most_batches(work: ClientWork, population: Population) -> int:
    """Local batches of the longest client, T; at least 1."""
    return max(1, int(work.batches.num_batches(population.max_examples)))


# A client's way through a lane -----------------------------------------------------------------------------


def start_clients(task: CohortTask, slot: jax.Array) -> PyTree:
    """Local states of the clients that enter the lanes, leaves [L, ...]."""
    keys = jax.random.wrap_key_data(take_rows(task.queue.clients.key, slot), impl=KEY_IMPL)
    private = jax.tree.map(lambda x: x.at[slot].get(mode="clip", wrap_negative_indices=False), task.private)
    server, axis = models_of(task, slot)
    start = jax.vmap(_in_context(task, task.work.start), in_axes=(0, 0, axis, 0))
    return start(keys, private, server.shared, slot)


def name_batches(task: CohortTask, slot: jax.Array, t: jax.Array, active: jax.Array) -> Batch:
    """Local batch `t` int32[L] of every lane, ids [L, B]; all slots of an inactive lane are empty."""
    client = take_rows(task.queue.clients, slot)
    batch = jax.vmap(task.work.batches.batch, in_axes=(0, None, 0))(client, task.population, t)
    return batch._replace(ids=jnp.where(expand(active, batch.ids), batch.ids, task.num_items))


def read_batch_rows(task: CohortTask, slot: jax.Array, batch: Batch) -> Rows:
    """The global rows of a batch, as each client starts from them, leaves [L, B, ...]."""
    values = read_model_rows(task, slot, batch.ids)
    return jax.vmap(task.work.init_rows, axis_size=batch.ids.shape[0])(values)


def step_lanes(
    task: CohortTask,
    slot: jax.Array,
    local: PyTree,
    rows: Rows,
    batch: Batch,
    active: jax.Array,
    missed: jax.Array,
    left: jax.Array,
) -> tuple[PyTree, Rows, StepInfo]:
    """One step on every lane, between the zero-gradient steps that its rows missed and those to its end."""
    rows = _zero_gradient_steps(task, rows, missed * active)
    step = jax.vmap(_in_context(task, task.work.step))
    new_local, rows, info = step(local, rows, batch, slot)
    local = select(active, new_local, local)
    return local, _zero_gradient_steps(task, rows, left * active), info


def _zero_gradient_steps(task: CohortTask, rows: Rows, turns: jax.Array) -> Rows:
    """Replay `turns` int32[L] steps in which these rows had no gradient."""
    if task.work.zero_gradient is None:
        return rows
    zero_gradient_step = jax.vmap(task.work.zero_gradient.step, axis_size=turns.shape[0])

    def body(turn: jax.Array, rows: Rows) -> Rows:
        return select(turn < turns, zero_gradient_step(rows), rows)

    return jax.lax.fori_loop(0, turns.max(), body, rows)


def end_epoch(task: CohortTask, slot: jax.Array, local: PyTree, present: jax.Array) -> PyTree:
    """Local states between two epochs, on the lanes bool[L] that have a client."""
    if task.work.end_epoch is None:
        return local
    end = jax.vmap(_in_context(task, task.work.end_epoch))
    return select(present, end(local, slot), local)


def finish_clients(
    task: CohortTask, result: CohortResult, slot: jax.Array, done: jax.Array, local: PyTree
) -> tuple[CohortResult, PyTree]:
    """Store what the finished clients keep; return the dense deltas of all lanes, [L, ...]."""
    server, axis = models_of(task, slot)
    new, deltas = jax.vmap(task.work.finish, in_axes=(0, axis))(local, server.shared)
    target = jnp.where(done, slot, task.num_slots)
    private = set_rows(result.store.private, target, new)
    result = result._replace(store=result.store._replace(private=private))
    return mark_unsound(result, slot, done & ~are_sound((new, deltas), done)), deltas


def _in_context(task: CohortTask, function: Callable) -> Callable:
    """A function of the client's work that takes the client's slot int32[] for its context."""

    def call(*arguments: PyTree) -> PyTree:
        *others, slot = arguments
        counts = (task.queue.clients.num_examples, task.queue.num_batches)
        return function(*others, Context(task.num_items, *take_rows(counts, slot)))

    return call


# Models of different age -----------------------------------------------------------------------------------


def models_of(task: CohortTask, slot: jax.Array) -> tuple[Server, int | None]:
    """The model that each lane's client was sent, and the axis of lanes in it; None where it is the same for all.

    Leaves that the caller does not read are never gathered: the compiler drops them.
    """
    if task.queue.versions is None:
        return task.server, None
    index = task.queue.versions.model_index[slot]
    return jax.tree.map(lambda model: model[index], task.models), 0


def read_model_rows(task: CohortTask, slot: jax.Array, ids: jax.Array) -> PyTree:
    """Rows `ids` int32[L, B] of the model that each lane's client was sent, leaves [L, B, ...]."""
    if task.queue.versions is None:
        return read_rows(task.server.tables, ids)
    index = task.queue.versions.model_index[slot][:, None]
    return jax.tree.map(lambda t: t.at[index, ids].get(mode="fill", fill_value=0), task.models.tables)


def update_scale(task: CohortTask, slot: jax.Array) -> jax.Array | None:
    """What each lane's update is multiplied by, float32[L]; None for nothing."""
    return None if task.queue.versions is None else task.queue.versions.scale[slot]


# Reports ---------------------------------------------------------------------------------------------------


def add_to_report(
    task: CohortTask,
    result: CohortResult,
    slot: jax.Array,
    info: StepInfo,
    active: jax.Array,
    *,
    new_ids: jax.Array | None = None,
    has_loss: jax.Array | bool = False,
) -> CohortResult:
    """Add a step to the report, and to the losses of the clients on active lanes, if these are recorded.

    `new_ids` are counted where rows are seen for the first time; clients that have a loss record no other.
    """
    report = result.report
    rows = report.rows
    if new_ids is not None:
        rows = rows + (new_ids < task.num_items).sum(dtype=jnp.float32)
    report = report._replace(
        loss=report.loss + jnp.where(active, info.loss, 0.0).sum(),
        examples=report.examples + jnp.where(active, info.examples, 0.0).sum(),
        rows=rows,
        loop_steps=report.loop_steps + 1,
    )
    result = result._replace(report=report)
    if not task.uplink.records_losses:
        return result
    recording = active & ~jnp.asarray(has_loss)
    sums = jnp.where(recording[:, None], jnp.stack([info.loss, info.examples], axis=-1), 0.0)
    return result._replace(loss_sums=add_rows(result.loss_sums, slot, sums))


def have_losses(task: CohortTask, result: CohortResult, slot: jax.Array) -> jax.Array | bool:
    """Whether a loss of the lanes' clients is recorded, bool[L]: the first pass of some counts no example."""
    return task.uplink.records_losses and result.loss_sums.at[slot].get(mode="clip")[:, 1] > 0


def mean_losses(loss_sums: jax.Array) -> jax.Array:
    """Losses float32[...] over examples, of sums float32[..., 2]; 0 without any."""
    return loss_sums[..., 0] / jnp.maximum(loss_sums[..., 1], 1.0)


# Numbers that are not finite -------------------------------------------------------------------------------


def check_sent_rows(
    task: CohortTask, result: CohortResult, slot: jax.Array, active: jax.Array, sent: Callable[[], PyTree]
) -> CohortResult:
    """Mark the active lanes whose rows, leaves [L, ...], are unsound, if rows are to be checked."""

    def check(unsound: jax.Array) -> jax.Array:
        bad = active & ~are_sound(sent(), active)
        return mark_unsound(result._replace(unsound=unsound), slot, bad).unsound

    marked = jax.lax.cond(task.check_rows, check, lambda unsound: unsound, result.unsound)
    return result._replace(unsound=marked)


def are_sound(values: PyTree, like: jax.Array) -> jax.Array:
    """Whether each lane's numbers, leaves [L, ...], are finite and not too large; bool[L] as `like`."""
    sound = jnp.ones_like(like)
    for x in jax.tree.leaves(values):
        if jnp.issubdtype(x.dtype, jnp.floating):
            sound = sound & (jnp.abs(x) <= LARGEST).reshape(x.shape[0], -1).all(1)
    return sound


def mark_unsound(result: CohortResult, slot: jax.Array, bad: jax.Array) -> CohortResult:
    """Note that the clients of the lanes bool[L] are unsound."""
    target = jnp.where(bad, slot, result.unsound.shape[0])
    return result._replace(unsound=set_rows(result.unsound, target, True))


# Sums ------------------------------------------------------------------------------------------------------


def sent_rows(task: CohortTask, slot: jax.Array, local: PyTree, rows: Rows, batch: Batch) -> PyTree:
    """What is sent for each row, by default its change; 0 in an empty slot, whatever a loss made of it."""
    touched = batch.ids < task.num_items
    old = read_model_rows(task, slot, batch.ids)
    if task.work.upload is None:
        sent = jax.tree.map(jnp.subtract, rows.values, old)
    else:
        sent = jax.vmap(task.work.upload.send)(local, rows, batch, old)
    return jax.tree.map(lambda x: jnp.where(expand(touched, x), x, 0.0), sent)


def add_row_deltas(
    task: CohortTask,
    result: CohortResult,
    weight: jax.Array,
    ids: jax.Array,
    deltas: PyTree,
    scale: jax.Array | None = None,
) -> CohortResult:
    """Add weight x scale (float32[L]) x deltas [L, R, ...] of rows `ids` int32[L, R] to the totals."""
    totals = result.totals
    flat_ids = ids.reshape(-1)
    add_rows = STRATEGIES[task.uplink.row_update]
    factor = weight if scale is None else weight * scale

    # an aggregator may weigh rows one by one, and then counts them so
    row_factor = task.uplink.aggregator.rows.factor
    if row_factor is not None:
        factors = jax.vmap(row_factor)(deltas)
        deltas = jax.tree.map(lambda d: expand(factors, d) * d, deltas)
        row_weight = (factors * weight[:, None]).reshape(-1)
    else:
        row_weight = jnp.broadcast_to(weight[:, None], ids.shape).reshape(-1)

    # weighted deltas [L, R, ...], in the numbers of the sums
    weighted, saturated = _encode(task, jax.tree.map(lambda d: expand(factor, d) * d, deltas))
    tables = jax.tree.map(
        lambda table, d: add_rows(table, flat_ids, d.reshape(-1, *d.shape[2:])),
        totals.deltas.tables,
        weighted,
    )
    if totals.row_weight is not None:
        totals = totals._replace(row_weight=add_rows(totals.row_weight, flat_ids, row_weight))
    report = result.report._replace(saturated=result.report.saturated + saturated)
    totals = totals._replace(deltas=totals.deltas._replace(tables=tables))
    return result._replace(totals=totals, report=report)


def add_dense_deltas(
    task: CohortTask,
    result: CohortResult,
    weight: jax.Array,
    done: jax.Array,
    deltas: PyTree,
    scale: jax.Array | None = None,
) -> CohortResult:
    """Add weight x scale (float32[L]) x deltas [L, ...] of the clients that are done bool[L]."""
    totals = result.totals
    factor = weight if scale is None else weight * scale
    finished = jax.tree.map(lambda d: jnp.where(expand(done, d), expand(factor, d) * d, 0.0), deltas)
    weighted, saturated = _encode(task, finished)
    shared = jax.tree.map(lambda total, d: total + d.sum(0), totals.deltas.shared, weighted)
    report = result.report._replace(saturated=result.report.saturated + saturated)
    totals = totals._replace(deltas=totals.deltas._replace(shared=shared))
    return result._replace(totals=totals, report=report)


def _encode(task: CohortTask, deltas: PyTree) -> tuple[PyTree, jax.Array | int]:
    """Fixed-point integers, if that is how they are summed, and how many numbers were cut off."""
    fixed = task.uplink.aggregator.fixed
    if fixed is None:
        return deltas, 0
    outside = [(~(jnp.abs(d) <= fixed.limit)).sum(dtype=jnp.int32) for d in jax.tree.leaves(deltas)]
    return jax.tree.map(fixed.encode, deltas), sum(outside)
