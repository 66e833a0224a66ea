"""The engine: a cohort's clients on lanes, as one compiled loop.

Continuous batching. The vmap axis is `L` lanes, not `C` clients. One loop step trains one local batch on every
lane; a lane whose client is done hands in the client's result and pulls the next one from a queue that is sorted
longest first. So ragged histories cost no padding, the compiled shape does not depend on the cohort, and memory
for training grows with `L`. With `L = C` it is the plain vmap over stacked clients.

One step, for every lane (all functions below are written for all lanes, `ClientWork` for one client):

    batch  ->  rows: global rows on the first visit, the lane's own copy later
           ->  [idle steps that the rows missed]  ->  step  ->  [idle steps to the client's end]
           ->  on the last epoch, weight * (rows - global rows) is added to the totals

A row is visited once per local epoch (the contract of `LocalBatches`), so with one epoch nothing is copied at
all, and with several a lane keeps `[batches, B, ...]` rows, written and read in contiguous blocks.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_rec.population import Population
from fedjax_rec.tables import add_rows, expand, num_rows, read_rows, select
from fedjax_rec.types import Aggregator, Client, ClientWork, Params, PyTree, Rows, Server, Totals

AXIS = "clients"  # the mesh axis over which a cohort is split


class Queue(NamedTuple):
    """A cohort in the order in which lanes pull it: longest first, one empty client at the end."""

    clients: Client  # leaves [C + 1, ...]
    batches: jax.Array  # int32[C + 1], local batches in an epoch; 0 = absent
    weight: jax.Array  # float32[C + 1]
    waiting: jax.Array  # int32[], clients that have something to do


class Lanes(NamedTuple):
    """What each lane is doing."""

    place: jax.Array  # int32[L], its client's place in the queue; C = none
    step: jax.Array  # int32[L], steps that this client has done
    local: PyTree  # leaves [L, ...], the client's local state
    rows: Rows | None  # leaves [L, T, B, ...], its working rows; None with one epoch


class Report(NamedTuple):
    """Sums over a cohort, besides the update itself."""

    loss: jax.Array  # float32[], summed over examples and epochs
    examples: jax.Array  # float32[]
    rows: jax.Array  # float32[], rows touched, summed over clients
    steps: jax.Array  # int32[], loop steps


class Result(NamedTuple):
    """What comes out of `run_cohort`."""

    totals: Totals
    private: PyTree  # leaves [C, ...], new private leaves in cohort order
    report: Report
    lane_steps: jax.Array  # int32[], lanes x steps
    batches: jax.Array  # int32[], local batches that the clients needed


def run_cohort(
    work: ClientWork,
    aggregator: Aggregator,
    population: Population,
    server: Server,
    private: PyTree,
    clients: Client,
    alive: jax.Array,
    *,
    lanes: int,
    mesh: Mesh | None = None,
) -> Result:
    """Train every client of a cohort and sum what they send.

    Args:
        work: one client's work.
        aggregator: gives each client's weight.
        population: N clients on device.
        server: global parameters, tables [I, ...].
        private: leaves [N, ...], every client's private parameters.
        clients: leaves [C, ...], the cohort.
        alive: bool[C]; a client that is not alive, or has no data, is absent.
        lanes: L, over all devices.
        mesh: devices to split the cohort over, one axis named "clients"; None for one device.

    Returns:
        totals, new private leaves (an absent client's are bit-identical to the old), report.

    Raises:
        ValueError: if the lanes do not divide over the mesh.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    num_batches = jnp.where(alive, work.batches.num_batches(clients.num_examples), 0) * (
        clients.num_examples > 0
    )
    weight = jnp.where(num_batches > 0, aggregator.weight(clients.num_examples), 0.0).astype(jnp.float32)
    order = jnp.argsort(-num_batches, stable=True)
    sorted_clients, num_batches, weight = jax.tree.map(lambda x: x[order], (clients, num_batches, weight))
    old = jax.tree.map(lambda p: p[sorted_clients.id], private)
    run = partial(_run_sorted, work, aggregator.per_row)
    if mesh is None:
        result = run(lanes, population, server, old, sorted_clients, num_batches, weight)
    else:
        result = _on_mesh(run, lanes, mesh, population, server, old, sorted_clients, num_batches, weight)
    back = jnp.argsort(order)
    return result._replace(private=jax.tree.map(lambda p: p[back], result.private))


def _on_mesh(
    run: Any, lanes: int, mesh: Mesh, population: Population, server: Server, *cohort: PyTree
) -> Result:
    """Deal the sorted cohort to the devices like cards, run each hand, and sum."""
    devices = mesh.shape[AXIS]
    if lanes % devices:
        raise ValueError(f"{lanes} lanes do not divide over {devices} devices; use a multiple of {devices}")
    size = cohort[2].shape[0]
    extra = -size % devices
    hands = jax.tree.map(lambda x: _deal(x, extra, devices), cohort)

    def local(population: Population, server: Server, old: PyTree, *rest: PyTree) -> Result:
        result = run(lanes // devices, population, server, old, *rest)
        summed = jax.tree.map(lambda x: jax.lax.psum(x, AXIS), result._replace(private=None))
        return summed._replace(private=result.private)

    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    specs = Result(replicated, split, replicated, replicated, replicated)  # type: ignore[arg-type]
    # check_vma=False: with it on, jax.grad with respect to replicated parameters is summed over devices.
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, replicated, *[split] * len(cohort)),
        out_specs=specs,
        check_vma=False,
    )
    result = mapped(population, server, *hands)
    return result._replace(private=jax.tree.map(lambda p: _gather_hands(p, size, devices), result.private))


def _deal(x: jax.Array, extra: int, devices: int) -> jax.Array:
    padded = jnp.concatenate([x, jnp.zeros((extra, *x.shape[1:]), x.dtype)])
    return padded.reshape(-1, devices, *x.shape[1:]).swapaxes(0, 1).reshape(padded.shape)


def _gather_hands(x: jax.Array, size: int, devices: int) -> jax.Array:
    return x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)[:size]


def _run_sorted(
    work: ClientWork,
    per_row: bool,
    lanes: int,
    population: Population,
    server: Server,
    old: PyTree,
    clients: Client,
    num_batches: jax.Array,
    weight: jax.Array,
) -> Result:
    """Run one device's sorted clients; `old` holds their private leaves, [C, ...]."""
    work = _settle(work, population, server, old)
    queue = _make_queue(clients, num_batches, weight)
    enter = jax.vmap(work.start, in_axes=(0, 0, None))
    place = jnp.minimum(jnp.arange(lanes), queue.waiting)
    first = Lanes(
        place,
        jnp.zeros(lanes, jnp.int32),
        enter(_keys(queue, place), _read(old, place), server.shared),
        _working_rows(work, population, server, lanes),
    )
    totals = Totals(
        jax.tree.map(jnp.zeros_like, server),
        queue.weight.sum(),
        jnp.zeros(num_rows(server.tables)) if per_row else None,
    )
    report = Report(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(0))

    def busy(carry: tuple) -> jax.Array:
        return (carry[1].place < queue.waiting).any()

    def body(carry: tuple) -> tuple:
        head, lane, totals, private, report = carry
        lane, totals, report = _train(work, population, server, queue, lane, totals, report)
        done = (lane.step >= work.epochs * queue.batches[lane.place]) & (lane.place < queue.waiting)
        totals, private = _hand_in(work, server, queue, lane, done, totals, private)
        place = jnp.where(done, jnp.minimum(head + jnp.cumsum(done) - 1, queue.waiting), lane.place)
        fresh = enter(_keys(queue, place), _read(old, place), server.shared)
        lane = lane._replace(
            place=place, step=jnp.where(done, 0, lane.step), local=select(done, fresh, lane.local)
        )
        return jnp.minimum(head + done.sum(dtype=jnp.int32), queue.waiting), lane, totals, private, report

    start = (jnp.minimum(jnp.int32(lanes), queue.waiting), first, totals, old, report)
    _, _, totals, private, report = jax.lax.while_loop(busy, body, start)
    return Result(totals, private, report, report.steps * lanes, num_batches.sum() * work.epochs)


def _make_queue(clients: Client, num_batches: jax.Array, weight: jax.Array) -> Queue:
    def pad(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])

    waiting = (num_batches > 0).sum(dtype=jnp.int32)
    return Queue(jax.tree.map(pad, clients), pad(num_batches), pad(weight), waiting)


def _keys(queue: Queue, place: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(queue.clients.key[place])


def _read(tree: PyTree, place: jax.Array) -> PyTree:
    return jax.tree.map(lambda x: x.at[place].get(mode="clip"), tree)


def _working_rows(work: ClientWork, population: Population, server: Server, lanes: int) -> Rows | None:
    """Room for each lane's rows between its epochs; only their shapes come from an example batch."""
    if work.epochs == 1:
        return None

    shapes = jax.eval_shape(work.touch, _row_shapes(work, population, server))
    most = max(1, int(work.batches.num_batches(population.max_examples)))
    return jax.tree.map(lambda s: jnp.zeros((lanes, most, *s.shape), s.dtype), shapes)


def _row_shapes(work: ClientWork, population: Population, server: Server) -> PyTree:
    """Shapes of the rows of one local batch."""

    def example(key: jax.Array) -> PyTree:
        zero = jnp.int32(0)
        batch = work.batches.batch(Client(zero, zero, zero, key), population, zero)
        return read_rows(server.tables, batch.ids)

    return jax.eval_shape(example, jnp.zeros(2, jnp.uint32))


def _settle(work: ClientWork, population: Population, server: Server, old: PyTree) -> ClientWork:
    """Drop `idle` where it would do nothing to rows of this structure."""
    if work.idle is None or work.rests is None:
        return work
    one = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape[1:], p.dtype), old)
    rests = work.rests(Params(one, server.shared, _row_shapes(work, population, server)))
    return work._replace(idle=None) if rests else work


def _train(
    work: ClientWork,
    population: Population,
    server: Server,
    queue: Queue,
    lane: Lanes,
    totals: Totals,
    report: Report,
) -> tuple[Lanes, Totals, Report]:
    """One local batch on every lane."""
    active = lane.place < queue.waiting
    count = jnp.maximum(queue.batches[lane.place], 1)
    epoch, t = lane.step // count, lane.step % count
    client = jax.tree.map(lambda x: x[lane.place], queue.clients)
    batch = jax.vmap(work.batches.batch, in_axes=(0, None, 0))(client, population, t)
    ids = jnp.where(expand(active, batch.ids), batch.ids, num_rows(server.tables))
    values = read_rows(server.tables, ids)
    rows = jax.vmap(work.touch, axis_size=ids.shape[0])(values)
    if lane.rows is not None:
        kept = jax.tree.map(lambda x: jax.vmap(lambda rows, at: rows[at])(x, t), lane.rows)
        rows = select(epoch > 0, kept, rows)
    rows = _idle(work, rows, jnp.where(epoch > 0, count - 1, t) * active)
    local, rows, info = jax.vmap(work.step)(lane.local, rows, batch._replace(ids=ids))
    last = active & (epoch == work.epochs - 1)
    rows = _idle(work, rows, (count - 1 - t) * last)
    totals = _add(
        totals, rows, values, jnp.where(expand(last, ids), ids, num_rows(server.tables)), queue, lane
    )
    touched = (ids < num_rows(server.tables)) & expand(epoch == 0, ids)
    report = Report(
        report.loss + jnp.where(active, info.loss, 0.0).sum(),
        report.examples + jnp.where(active, info.examples, 0.0).sum(),
        report.rows + touched.sum(dtype=jnp.float32),
        report.steps + 1,
    )
    if lane.rows is not None:
        put = jax.vmap(lambda old, at, new: old.at[at].set(new))
        lane = lane._replace(rows=jax.tree.map(lambda old, new: put(old, t, new), lane.rows, rows))
    local = select(active, local, lane.local)
    return lane._replace(step=lane.step + active, local=local), totals, report


def _idle(work: ClientWork, rows: Rows, missed: jax.Array) -> Rows:
    """Replay the steps in which these rows had no gradient: `missed` int32[L] of them."""
    if work.idle is None:
        return rows
    idle = jax.vmap(work.idle, axis_size=missed.shape[0])

    def body(turn: jax.Array, rows: Rows) -> Rows:
        return select(turn < missed, idle(rows), rows)

    return jax.lax.fori_loop(0, missed.max(), body, rows)


def _add(totals: Totals, rows: Rows, values: PyTree, ids: jax.Array, queue: Queue, lane: Lanes) -> Totals:
    """Add what the lanes send of this batch's rows."""
    weight = queue.weight[lane.place]
    deltas = jax.tree.map(lambda new, old: expand(weight, new) * (new - old), rows.values, values)
    flat, deltas = ids.reshape(-1), jax.tree.map(lambda d: d.reshape(-1, *d.shape[2:]), deltas)
    tables = add_rows(totals.server.tables, flat, deltas)
    row_weight = totals.row_weight
    if row_weight is not None:
        row_weight = add_rows(row_weight, flat, jnp.broadcast_to(weight[:, None], ids.shape).reshape(-1))
    return totals._replace(server=totals.server._replace(tables=tables), row_weight=row_weight)


def _hand_in(
    work: ClientWork,
    server: Server,
    queue: Queue,
    lane: Lanes,
    done: jax.Array,
    totals: Totals,
    private: PyTree,
) -> tuple[Totals, PyTree]:
    """Store what the finished clients keep and add the dense part of what they send."""
    new, deltas = jax.vmap(work.finish, in_axes=(0, None))(lane.local, server.shared)
    place = jnp.where(done, lane.place, queue.batches.shape[0])
    private = jax.tree.map(lambda p, x: p.at[place].set(x, mode="drop"), private, new)
    weight = jnp.where(done, queue.weight[lane.place], 0.0)
    shared = jax.tree.map(
        lambda total, d: total + jnp.where(expand(done, d), expand(weight, d) * d, 0.0).sum(0),
        totals.server.shared,
        deltas,
    )
    return totals._replace(server=totals.server._replace(shared=shared)), private
