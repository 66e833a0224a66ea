"""The engine: a cohort's clients on lanes, as one compiled loop.

The vmap axis is `L` lanes, not `C` clients: lanes train one local batch at a time and pull clients from a queue
that is sorted longest first (`schedules` has the two ways of doing so). Ragged histories therefore cost little
padding, the compiled shape does not depend on the cohort, and memory for training grows with `L`.

This module sorts the cohort, splits it over the devices of a mesh, and puts the results back in order.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_rec.population import Population
from fedjax_rec.schedules import Job, Outcome, Queue, Report, run_lanes, run_waves
from fedjax_rec.tables import num_rows, read_rows
from fedjax_rec.types import Aggregator, Client, ClientWork, Params, PyTree, Server, Totals

AXIS = "clients"  # the mesh axis over which a cohort is split


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
    count = jnp.zeros(num_rows(server.tables)) if per_row else None
    totals = Totals(jax.tree.map(jnp.zeros_like, server), queue.weight.sum(), count)
    report = Report(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(0))
    schedule = run_lanes if work.epochs == 1 else run_waves
    job = Job(work, population, server, queue, old, lanes)
    totals, private, report = schedule(job, Outcome(totals, old, report))
    return Result(totals, private, report, report.steps * lanes, num_batches.sum() * work.epochs)


def _make_queue(clients: Client, num_batches: jax.Array, weight: jax.Array) -> Queue:
    def pad(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])

    waiting = (num_batches > 0).sum(dtype=jnp.int32)
    return Queue(jax.tree.map(pad, clients), pad(num_batches), pad(weight), waiting)


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
