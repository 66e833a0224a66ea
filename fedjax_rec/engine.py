"""The engine: a cohort's clients on lanes, as one compiled loop.

The vmap axis is `L` lanes, not `C` clients: lanes train one local batch at a time and pull clients from a queue
that is sorted longest first (`schedules` has the two ways of doing so). Ragged histories therefore cost little
padding, the compiled shape does not depend on the cohort, and memory for training grows with `L`.

This module sorts the cohort, splits it over the devices of a mesh, and puts the results back in order.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_rec.devices import AXIS
from fedjax_rec.lanes import run_lanes
from fedjax_rec.population import Population
from fedjax_rec.schedules import (
    Job,
    Outcome,
    Queue,
    Report,
    Uplink,
    Versions,
    batch_shapes,
    mean_losses,
    one_of,
    upload_shapes,
)
from fedjax_rec.tables import num_rows
from fedjax_rec.types import (
    Aggregator,
    Client,
    ClientWork,
    Params,
    Part,
    PyTree,
    Server,
    Stack,
    Totals,
)
from fedjax_rec.waves import run_waves

CHUNK = 128  # clients of an item that are summed at once, where rows are summed item by item
EVENTS = 16  # of a cohort for each of these: from about there that pays off, sooner for wide vectors


class Result(NamedTuple):
    """What comes out of `run_cohort`."""

    totals: Totals | Stack
    private: PyTree  # leaves [C, ...], new private leaves in cohort order
    report: Report
    lane_steps: jax.Array  # int32[], lanes x steps
    batches: jax.Array  # int32[], local batches that the clients needed
    memory: PyTree = ()  # leaves [C, ...], what the clients' transforms remember, in cohort order
    unsound: PyTree = ()  # bool[C], who handed in numbers that are not finite, in cohort order
    losses: PyTree = ()  # float32[C], mean loss of each client's first epoch, in cohort order, if they tell it


def schedule_of(work: ClientWork, uplink: Uplink) -> str:
    """Which schedule runs this work: lanes for one epoch of sums, waves for all else.

    Args:
        work: one client's work.
        uplink: how updates travel.

    Returns:
        "lanes" or "waves".

    Example:
        >>> from fedjax_rec.aggregators import total
        >>> import fedjax_rec as fr
        >>> schedule_of(fr.fedmf(local_epochs=2).work, Uplink(total()))
        'waves'
    """
    return "lanes" if work.epochs == 1 and not uplink.later else "waves"


def run_cohort(
    work: ClientWork,
    uplink: Uplink,
    population: Population,
    server: Server,
    private: PyTree,
    clients: Client,
    alive: jax.Array,
    *,
    lanes: int,
    mesh: Mesh | None = None,
    noise: jax.Array | None = None,
    memory: PyTree = (),
    watched: jax.Array | bool = True,
    limit: jax.Array | None = None,
    share: jax.Array | None = None,
    versions: Versions | None = None,
    place: jax.Array | None = None,
) -> Result:
    """Train every client of a cohort and sum (or stack) what they send.

    Args:
        work: one client's work.
        uplink: gives each client's weight, transforms its update, and says how rows are added.
        population: N clients on device.
        server: global parameters, tables [I, ...].
        private: leaves [N, ...], every client's private parameters; or those of some, if `place` says where.
        clients: leaves [C, ...], the cohort.
        alive: bool[C]; a client that is not alive, or has no data, is absent.
        lanes: L, over all devices.
        mesh: devices to split the cohort over, one axis named "clients"; None for one device.
        noise: uint32[C, 2], keys of the clients' transforms; only needed with one.
        memory: leaves [N, ...], what every client's transform remembers.
        watched: bool[], whether rows are looked at one by one for numbers that are not finite; where updates are
            put together before they are sent, they always are.
        limit: int32[C], local batches of an epoch after which a client stops; None for none. It then counts
            with as many examples as it processed.
        share: float32[C], a further factor on each client's weight; None for none.
        versions: the models that the clients were sent, if not all were sent `server`, which then gives shapes
            only; stacked aggregators do not know them.
        place: int32[C], where in `private` and `memory` each client's leaves are; None for its id.

    Returns:
        totals or stack, new private leaves (an absent client's are bit-identical to the old), report.

    Raises:
        ValueError: if the lanes do not divide over the mesh.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    num_batches, counted = _workload(work, clients.num_examples, alive, limit)
    weight = uplink.aggregator.weight(counted)
    weight = weight if share is None else weight * share
    weight = jnp.where(num_batches > 0, weight, 0.0).astype(jnp.float32)
    noise = jnp.zeros_like(clients.key) if noise is None else noise
    order = jnp.argsort(-num_batches, stable=True)
    rows = clients.id if place is None else place
    old = jax.tree.map(lambda p: p[rows[order]], (private, memory))
    models, held = ((), None) if versions is None else (versions.models, versions._replace(models=()))
    cohort = jax.tree.map(lambda x: x[order], (clients, noise, num_batches, weight, counted, held))
    whole = limit is None and versions is None  # histories, and of one model
    if not (whole and sums_item_by_item(work, uplink, len(order), population)):
        work = work._replace(sums=None)
    run = partial(_run_sorted, work, uplink, jnp.asarray(watched), 1 if mesh is None else mesh.size)
    if mesh is None:
        result = run(lanes, population, (server, models), old, *cohort)
    else:
        result = _on_mesh(run, lanes, mesh, uplink.aggregator, population, (server, models), old, *cohort)
    result = result._replace(totals=_decode(uplink.aggregator, result.totals))
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]), unique_indices=True)
    private, memory, unsound, losses = jax.tree.map(lambda p: p[back], result.private)
    result = result._replace(private=private, memory=memory, unsound=unsound, losses=losses)
    if uplink.aggregator.stacked:
        result = result._replace(totals=jax.tree.map(lambda x: x[back], result.totals))
    return result


def sums_item_by_item(work: ClientWork, uplink: Uplink, cohort: int, population: Population) -> bool:
    """Whether rows are summed by `work.sums`, which goes over all items, and not client by client.

    Args:
        work: one client's work.
        uplink: how updates travel.
        cohort: C.
        population: N clients.

    Returns:
        True where the work knows how, only sums are asked for, and an item has clients enough in a cohort. Only on
        CPUs: an accelerator, not measured, would wait for one item after the other.

    Example:
        >>> from fedjax_rec.aggregators import total
        >>> from fedjax_rec.testing import tiny_population
        >>> import fedjax_rec as fr
        >>> sums_item_by_item(fr.fedals().work, Uplink(total()), 24, tiny_population())  # 200 events of 40 items
        False
    """
    rule = uplink.aggregator
    only_sums = rule.fixed is None and not rule.by_row and not uplink.later
    if work.sums is None or not only_sums or jax.default_backend() != "cpu":
        return False
    events, items = len(population.examples["items"]), population.num_items
    return cohort * events >= population.num_clients * EVENTS * (items + events // CHUNK)


def _workload(
    work: ClientWork, num_examples: jax.Array, alive: jax.Array, limit: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """int32[C] local batches of each client, 0 of an absent one, and int32[C] examples that are in them."""
    usual = jnp.where(alive, work.batches.num_batches(num_examples), 0) * (num_examples > 0)
    if limit is None:
        return usual, num_examples
    done = jnp.clip(limit, 0, usual)
    share = done / jnp.maximum(usual, 1)  # rounded up, n share fills as many batches as were done
    return done, jnp.where(
        done < usual, jnp.ceil(num_examples * share).astype(num_examples.dtype), num_examples
    )


def _decode(aggregator: Aggregator, totals: Any) -> Any:
    """Floats again, from fixed-point sums."""
    if aggregator.fixed is None or aggregator.stacked:
        return totals
    return totals._replace(server=jax.tree.map(aggregator.fixed.decode, totals.server))


def _on_mesh(
    run: Any,
    lanes: int,
    mesh: Mesh,
    aggregator: Aggregator,
    population: Population,
    servers: tuple[Server, PyTree],
    *cohort: PyTree,
) -> Result:
    """Deal the sorted cohort to the devices like cards, run each hand, and sum."""
    devices = mesh.shape[AXIS]
    if lanes % devices:
        raise ValueError(f"{lanes} lanes do not divide over {devices} devices; use a multiple of {devices}")
    size = jax.tree.leaves(cohort)[0].shape[0]
    extra = -size % devices
    hands = jax.tree.map(lambda x: _deal(x, extra, devices), cohort)

    def local(population: Population, servers: PyTree, old: PyTree, *rest: PyTree) -> Result:
        result = run(lanes // devices, population, servers, old, *rest)
        apart = {"private": result.private} | ({"totals": result.totals} if aggregator.stacked else {})
        summed = jax.lax.psum(result._replace(**dict.fromkeys(apart)), AXIS)
        return summed._replace(**apart)

    replicated, split = PartitionSpec(), PartitionSpec(AXIS)
    totals = split if aggregator.stacked else replicated  # a stack's clients stay where they are
    specs = Result(totals, split, replicated, replicated, replicated)  # type: ignore[arg-type]
    # check_vma=False: with it on, jax.grad with respect to replicated parameters is summed over devices.
    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(replicated, replicated, *[split] * len(cohort)),
        out_specs=specs,
        check_vma=False,
    )
    result = mapped(population, servers, *hands)
    result = result._replace(private=jax.tree.map(lambda p: _gather_hands(p, size, devices), result.private))
    if aggregator.stacked:
        stack = jax.tree.map(lambda x: _gather_hands(x, size, devices), result.totals)
        result = result._replace(totals=stack)
    return result


def _deal(x: jax.Array, extra: int, devices: int) -> jax.Array:
    padded = jnp.concatenate([x, jnp.zeros((extra, *x.shape[1:]), x.dtype)])
    return padded.reshape(-1, devices, *x.shape[1:]).swapaxes(0, 1).reshape(padded.shape)


def _gather_hands(x: jax.Array, size: int, devices: int) -> jax.Array:
    return x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)[:size]


def _run_sorted(
    work: ClientWork,
    uplink: Uplink,
    watched: jax.Array,
    devices: int,
    lanes: int,
    population: Population,
    servers: tuple[Server, PyTree],
    old: PyTree,
    clients: Client,
    noise: jax.Array,
    num_batches: jax.Array,
    weight: jax.Array,
    counted: jax.Array,
    held: Versions | None,
) -> Result:
    """Run one device's sorted clients; `old` holds their private leaves and memories, [C, ...].

    They come back as the result's `private`, with the marks of the unsound and the losses.
    """
    (own, memory), (server, models) = old, servers
    work = _settle(work, population, server, own)
    if work.sums is not None:  # then no client sends rows
        work = work._replace(send=lambda *_: {})
    queue = _make_queue(clients, noise, num_batches, weight, counted, held)
    report = Report(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.int32(0))
    shapes = upload_shapes(work, population, server, one_of(own))
    sums = _empty(uplink.aggregator, shapes, num_rows(server.tables), queue)
    heard: PyTree = jnp.zeros((*weight.shape, 2)) if uplink.heard else ()
    start = Outcome(sums, own, report, memory, jnp.zeros(weight.shape, bool), heard)
    schedule = {"lanes": run_lanes, "waves": run_waves}[schedule_of(work, uplink)]
    job = Job(work, population, server, queue, own, lanes, uplink, watched, models)
    totals, private, report, memory, unsound, heard = schedule(job, start)
    if work.sums is not None:
        rows = _sum_rows(work.sums, devices, population, queue, private)
        totals = totals._replace(server=totals.server._replace(tables=rows))
    losses: PyTree = ()
    if uplink.heard:
        losses = mean_losses(heard)
        unsound = unsound | ~jnp.isfinite(losses)
    kept = (private, memory, unsound, losses)
    return Result(totals, kept, report, report.steps * lanes, num_batches.sum() * work.epochs)


def _sum_rows(
    sums: Callable[..., PyTree], devices: int, population: Population, queue: Queue, private: PyTree
) -> PyTree:
    """A device's share of the cohort's sums of rows, leaves [I, ...]."""
    cohort, part = (queue.clients.id[:-1], queue.weight[:-1], private), Part(0, 1)
    if devices > 1:
        cohort = jax.lax.all_gather(cohort, AXIS, tiled=True)
        part = Part(jax.lax.axis_index(AXIS), devices)
    return sums(population, *cohort, part)


def _empty(aggregator: Aggregator, shapes: Server, items: int, queue: Queue) -> Totals | Stack:
    """Where the sums, or the stack, start; `shapes` are of a sum of updates."""
    cohort = queue.batches.shape[0] - 1
    if aggregator.stacked:
        apart = jax.tree.map(lambda x: jnp.zeros((cohort, *x.shape), x.dtype), shapes)
        return Stack(apart, jnp.zeros(cohort, bool), jnp.zeros((cohort, items), bool), queue.weight[:cohort])
    kind = jnp.int32 if aggregator.fixed else None
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, kind or x.dtype), shapes)
    facts: PyTree = () if aggregator.by_loss is None else jnp.float32(0)
    if aggregator.facts is not None:
        present = queue.batches > 0
        facts = jax.tree.map(lambda x: jnp.where(present, x, 0.0).sum(), aggregator.facts(queue.counted))
    return Totals(sums, queue.weight.sum(), jnp.zeros(items) if aggregator.per_row else None, facts)


def _make_queue(
    clients: Client,
    noise: jax.Array,
    num_batches: jax.Array,
    weight: jax.Array,
    counted: jax.Array,
    held: Versions | None,
) -> Queue:
    def pad(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])

    waiting = (num_batches > 0).sum(dtype=jnp.int32)
    clients, held = jax.tree.map(pad, (clients, held))
    return Queue(clients, pad(noise), pad(num_batches), pad(weight), pad(counted), waiting, held)


def _settle(work: ClientWork, population: Population, server: Server, old: PyTree) -> ClientWork:
    """Drop `idle` where it would do nothing to rows of this structure."""
    if work.idle is None or not rests_between(work, population, server, old):
        return work
    return work._replace(idle=None)


def rests_between(work: ClientWork, population: Population, server: Server, private: PyTree) -> bool:
    """Whether rows rest while other batches train.

    Args:
        work: one client's work.
        population: the clients.
        server: the global model, or its shapes.
        private: all clients' private leaves [N, ...], or their shapes.

    Returns:
        False where it cannot be told.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fr.fedmf(dim=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> rests_between(algorithm.work, population, state.server, state.private)
        True
    """
    if work.rests is None:
        return False
    _, rows = batch_shapes(work, population, server)
    return work.rests(Params(one_of(private), server.shared, rows))
