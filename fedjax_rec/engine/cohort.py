"""A cohort's local training: sorted, dealt to the devices of a mesh, trained on lanes, and put back in order.

The vmap axis is `L` lanes, not `C` clients: lanes train one local batch at a time and pull clients from a queue
that is sorted longest first (`lanes` and `waves` are the two ways of doing so). Ragged histories therefore cost
little padding, the compiled shape does not depend on the cohort, and memory for training grows with `L`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from fedjax_rec.client.population import Population
from fedjax_rec.engine.devices import AXIS
from fedjax_rec.engine.lane_steps import (
    CohortResult,
    CohortTask,
    ModelVersions,
    Queue,
    Report,
    Uplink,
    batch_shapes,
    client_shapes,
    mean_losses,
    upload_shapes,
)
from fedjax_rec.engine.lanes import run_lanes
from fedjax_rec.engine.waves import run_waves
from fedjax_rec.rows.tables import num_rows, take_rows
from fedjax_rec.types import (
    Aggregator,
    Client,
    ClientStore,
    ClientWork,
    DeviceShare,
    Params,
    PyTree,
    RowUpload,
    Server,
    Stack,
    Totals,
)

CHUNK = 128  # clients of an item that are summed at once, where rows are summed item by item
EVENTS = 16  # of a cohort for each of these: from about there that pays off, sooner for wide vectors


class Cohort(NamedTuple):
    """The clients that train together in a round."""

    clients: Client  # leaves [C, ...]
    alive: jax.Array  # bool[C]; a client that is not alive, or has no data, is absent
    transform_keys: jax.Array | None = None  # uint32[C, 2], of the clients' transforms; only needed with one
    # int32[C], local batches of an epoch after which a client stops, and then counts with as many examples as it
    # processed; None for none
    batch_limit: jax.Array | None = None
    weight_factor: jax.Array | None = None  # float32[C], a further factor on each client's weight
    # the models that the clients were sent, if not all were sent the same; not known to stacked aggregators
    versions: ModelVersions | None = None
    # int32[C], where in the store each client's leaves are; None for its id
    store_index: jax.Array | None = None


class Replicated(NamedTuple):
    """What every device has whole."""

    population: Population
    server: Server
    models: Any  # Server, leaves [V, ...], of which the queue says who has which; () where all have `server`


def schedule_of(work: ClientWork, uplink: Uplink) -> str:
    """Which schedule runs this work: lanes for one epoch of sums, waves for all else.

    Args:
        work: one client's work.
        uplink: how updates travel.

    Returns:
        "lanes" or "waves".

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> import fedjax_rec as fr
        >>> schedule_of(fr.fedmf(local_epochs=2).work, Uplink(total()))
        'waves'
    """
    return "lanes" if work.epochs == 1 and not uplink.sends_after_training else "waves"


def run_cohort(
    work: ClientWork,
    uplink: Uplink,
    population: Population,
    server: Server,
    store: ClientStore,
    cohort: Cohort,
    *,
    lanes: int,
    mesh: Mesh | None = None,
    check_rows: jax.Array | bool = True,
) -> CohortResult:
    """Train every client of a cohort and sum (or stack) what they send.

    Args:
        work: one client's work.
        uplink: gives each client's weight, transforms its update, and says how rows are added.
        population: N clients on device.
        server: global parameters, tables [I, ...]; only their shapes, where the cohort has models of its own.
        store: what all clients keep, leaves [N, ...]; or of some, if `cohort.store_index` says where.
        cohort: C clients.
        lanes: L, over all devices.
        mesh: devices to split the cohort over, one axis named "clients"; None for one device.
        check_rows: bool[], whether rows are looked at one by one for numbers that are not finite; where updates
            are put together before they are sent, they always are.

    Returns:
        totals (integers, where sums are in fixed point) or stack, what the clients keep (an absent client's leaves
        are bit-identical to the old), and the report; all that is of single clients is in cohort order.

    Raises:
        ValueError: if the lanes do not divide over the mesh, or the clients' histories are not here.
    """
    if population.stored:
        raise ValueError(
            "the histories of these clients wait in a store, and only simulate fetches them; train with it, or "
            "load() the population into memory"
        )

    # How much each client does, and what it counts for.
    num_batches, num_examples = _workload(work, cohort)
    weight = uplink.aggregator.weight(num_examples)
    weight = weight if cohort.weight_factor is None else weight * cohort.weight_factor
    weight = jnp.where(num_batches > 0, weight, 0.0).astype(jnp.float32)

    # The longest clients first, with what they keep, leaves [C, ...].
    order = jnp.argsort(-num_batches, stable=True)
    clients = cohort.clients
    store_index = clients.id if cohort.store_index is None else cohort.store_index
    start = take_rows(store, take_rows(store_index, order))
    queue = Queue(
        clients=clients,
        transform_keys=jnp.zeros_like(clients.key)
        if cohort.transform_keys is None
        else cohort.transform_keys,
        num_batches=num_batches,
        weight=weight,
        num_processed=num_examples,
        num_present=(),
        versions=None if cohort.versions is None else cohort.versions._replace(models=()),
    )
    queue = take_rows(queue, order)
    models = () if cohort.versions is None else cohort.versions.models

    # Only the whole histories of clients with one model may be summed item by item.
    of_whole_histories = cohort.batch_limit is None and cohort.versions is None
    if not (of_whole_histories and sums_item_by_item(work, uplink, len(order), population)):
        work = _without_item_sums(work)

    # Train on each device, and put what is of single clients back in order.
    replicated = Replicated(population, server, models)
    if mesh is None:
        result = _train_sorted(work, uplink, jnp.asarray(check_rows), 1, lanes, replicated, start, queue)
    else:
        train = partial(_train_sorted, work, uplink, jnp.asarray(check_rows), mesh.size)
        result = _train_on_mesh(train, lanes, mesh, uplink.aggregator, replicated, start, queue)
    back = jnp.zeros_like(order).at[order].set(jnp.arange(order.shape[0]), unique_indices=True)
    store, unsound, loss_sums = take_rows((result.store, result.unsound, result.loss_sums), back)
    result = result._replace(store=store, unsound=unsound, loss_sums=loss_sums)
    if uplink.aggregator.stacked:
        result = result._replace(totals=take_rows(result.totals, back))
    return result


def _workload(work: ClientWork, cohort: Cohort) -> tuple[jax.Array, jax.Array]:
    """int32[C] local batches of each client, 0 of an absent one, and int32[C] examples that are in them."""
    num_examples = cohort.clients.num_examples
    usual = jnp.where(cohort.alive, work.batches.num_batches(num_examples), 0) * (num_examples > 0)
    if cohort.batch_limit is None:
        return usual, num_examples
    trained = jnp.clip(cohort.batch_limit, 0, usual)
    share = trained / jnp.maximum(usual, 1)  # rounded up, n share fills as many batches as are trained
    processed = jnp.ceil(num_examples * share).astype(num_examples.dtype)
    return trained, jnp.where(trained < usual, processed, num_examples)


# Devices -----------------------------------------------------------------------------------------------------


def _train_on_mesh(
    train: Callable[..., CohortResult],
    lanes: int,
    mesh: Mesh,
    aggregator: Aggregator,
    replicated: Replicated,
    start: ClientStore,
    queue: Queue,
) -> CohortResult:
    """Deal the sorted cohort to the devices in turn, so that each has long and short clients; train, and sum."""
    devices = mesh.shape[AXIS]
    if lanes % devices:
        raise ValueError(f"{lanes} lanes do not divide over {devices} devices; use a multiple of {devices}")
    size = queue.num_batches.shape[0]
    start, queue = jax.tree.map(lambda x: _interleave(x, -size % devices, devices), (start, queue))

    def train_shard(replicated: Replicated, start: ClientStore, queue: Queue) -> CohortResult:
        result = train(lanes // devices, replicated, start, queue)
        report = jax.lax.psum(result.report, AXIS)
        totals = result.totals if aggregator.stacked else jax.lax.psum(result.totals, AXIS)
        return result._replace(totals=totals, report=report)

    whole = PartitionSpec()
    split = PartitionSpec(AXIS)
    specs: dict[str, Any] = {
        "totals": split if aggregator.stacked else whole,  # a stack's clients stay where they are
        "store": split,
        "report": whole,
        "unsound": split,
        "loss_sums": split,
    }
    # check_vma=False: with it on, jax.grad with respect to replicated parameters is summed over devices.
    train_shards = jax.shard_map(
        train_shard,
        mesh=mesh,
        in_specs=(whole, split, split),
        out_specs=CohortResult(**specs),
        check_vma=False,
    )
    result = train_shards(replicated, start, queue)

    def join(x: Any) -> Any:
        return _deinterleave(x, size, devices)

    result = result._replace(
        store=jax.tree.map(join, result.store),
        unsound=join(result.unsound),
        loss_sums=jax.tree.map(join, result.loss_sums),
    )
    if aggregator.stacked:
        result = result._replace(totals=jax.tree.map(join, result.totals))
    return result


def _interleave(x: jax.Array, extra: int, devices: int) -> jax.Array:
    """Clients [C, ...] and `extra` empty ones in the order of devices: 0, n, 2 n, ..., 1, n + 1, ..."""
    padded = jnp.concatenate([x, jnp.zeros((extra, *x.shape[1:]), x.dtype)])
    return padded.reshape(-1, devices, *x.shape[1:]).swapaxes(0, 1).reshape(padded.shape)


def _deinterleave(x: jax.Array, size: int, devices: int) -> jax.Array:
    """Undo `_interleave`, [C, ...]."""
    return x.reshape(devices, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)[:size]


def _train_sorted(
    work: ClientWork,
    uplink: Uplink,
    check_rows: jax.Array,
    devices: int,
    lanes: int,
    replicated: Replicated,
    start: ClientStore,
    queue: Queue,
) -> CohortResult:
    """Train one device's clients, which are sorted; `start` is what they keep, leaves [C, ...]."""
    population, server, models = replicated
    work = _without_needless_steps(work, population, server, start.private)
    upload = work.upload
    sum_by_item = None if upload is None else upload.sum_by_item
    if upload is not None and sum_by_item is not None:  # then no client sends rows
        work = work._replace(upload=upload._replace(send=lambda *_: {}))

    # The queue, and sums of nothing.
    num_clients = queue.num_batches.shape[0]
    batches = queue.num_batches.sum() * work.epochs
    queue = _end_queue(queue)
    shapes = upload_shapes(work, population, server, client_shapes(start.private))
    result = CohortResult(
        totals=_empty_totals(uplink.aggregator, shapes, num_rows(server.tables), queue),
        store=start,
        report=Report(jnp.float32(0), jnp.float32(0), jnp.float32(0), jnp.int32(0), jnp.int32(0)),
        unsound=jnp.zeros(num_clients, bool),
        loss_sums=jnp.zeros((num_clients, 2)) if uplink.records_losses else (),
    )

    # Train.
    task = CohortTask(
        work, uplink, population, server, models, queue, start.private, lanes=lanes, check_rows=check_rows
    )
    run = {"lanes": run_lanes, "waves": run_waves}[schedule_of(work, uplink)]
    result = run(task, result)

    # What is known only now: rows summed item by item, losses that are not finite, the work that was done.
    if sum_by_item is not None:
        rows = _sum_by_item(sum_by_item, devices, population, queue, result.store.private)
        totals = result.totals
        result = result._replace(totals=totals._replace(deltas=totals.deltas._replace(tables=rows)))
    if uplink.records_losses:
        unsound = result.unsound | ~jnp.isfinite(mean_losses(result.loss_sums))
        result = result._replace(unsound=unsound)
    report = result.report
    report = report._replace(lane_steps=report.loop_steps * lanes, batches=batches)
    return result._replace(report=report)


def _end_queue(queue: Queue) -> Queue:
    """The queue with an empty client behind the others, and how many have something to do."""

    def pad(x: jax.Array) -> jax.Array:
        return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])

    num_present = (queue.num_batches > 0).sum(dtype=jnp.int32)
    return jax.tree.map(pad, queue)._replace(num_present=num_present)


def _empty_totals(aggregator: Aggregator, shapes: Server, items: int, queue: Queue) -> Totals | Stack:
    """Where the sums, or the stack, start; `shapes` are of a sum of updates."""
    size = queue.num_batches.shape[0] - 1
    if aggregator.stacked:
        updates = jax.tree.map(lambda x: jnp.zeros((size, *x.shape), x.dtype), shapes)
        return Stack(
            deltas=updates,
            sent=jnp.zeros(size, bool),
            touched=jnp.zeros((size, items), bool),
            weight=queue.weight[:size],
        )
    dtype = jnp.int32 if aggregator.fixed else None
    sums = jax.tree.map(lambda x: jnp.zeros(x.shape, dtype or x.dtype), shapes)
    client_stats: PyTree = ()
    if aggregator.client_stats is not None:
        present = queue.num_batches > 0
        each = aggregator.client_stats(queue.num_processed)
        client_stats = jax.tree.map(lambda x: jnp.where(present, x, 0.0).sum(), each)
    row_weight = jnp.zeros(items) if aggregator.rows.weights else None
    loss_statistic = None if aggregator.loss_factor is None else jnp.float32(0)
    return Totals(sums, queue.weight.sum(), row_weight, client_stats, loss_statistic)


# Rows that are summed item by item ---------------------------------------------------------------------------


def sums_item_by_item(work: ClientWork, uplink: Uplink, cohort: int, population: Population) -> bool:
    """Whether rows are summed by `RowUpload.sum_by_item`, which goes over all items, and not client by client.

    Args:
        work: one client's work.
        uplink: how updates travel.
        cohort: C.
        population: N clients.

    Returns:
        True where the work knows how, only sums are asked for, and an item has clients enough in a cohort, if it
        needs any number. Only on CPUs: an accelerator, not measured, would wait for one item after the other.

    Example:
        >>> from fedjax_rec.server.aggregators import total
        >>> from fedjax_rec.testing import tiny_population
        >>> import fedjax_rec as fr
        >>> sums_item_by_item(fr.fedals().work, Uplink(total()), 24, tiny_population())  # 200 events of 40 items
        False
    """
    aggregator = uplink.aggregator
    only_sums = aggregator.fixed is None and not aggregator.by_row and not uplink.sends_after_training
    knows_how = work.upload is not None and work.upload.sum_by_item is not None
    if not knows_how or not only_sums or jax.default_backend() != "cpu":
        return False
    if cast("RowUpload", work.upload).always_shorter:
        return True
    events = len(population.examples["items"])
    items = population.num_items
    return cohort * events >= population.num_clients * EVENTS * (items + events // CHUNK)


def _without_item_sums(work: ClientWork) -> ClientWork:
    return work if work.upload is None else work._replace(upload=work.upload.without_shortcut())


def _sum_by_item(
    sum_by_item: Callable[..., PyTree], devices: int, population: Population, queue: Queue, private: PyTree
) -> PyTree:
    """A device's share of the cohort's sums of rows, leaves [I, ...]."""
    clients = queue.clients
    place = clients.id if clients.place is None else clients.place
    cohort = (place[:-1], queue.weight[:-1], private)
    share = DeviceShare(0, 1)
    if devices > 1:
        cohort = jax.lax.all_gather(cohort, AXIS, tiled=True)
        share = DeviceShare(jax.lax.axis_index(AXIS), devices)
    return sum_by_item(population, *cohort, share)


# Rows that rest ----------------------------------------------------------------------------------------------


def _without_needless_steps(
    work: ClientWork, population: Population, server: Server, private: PyTree
) -> ClientWork:
    """Drop zero-gradient steps where they would do nothing to rows of this structure."""
    if work.zero_gradient is None or not rests_between(work, population, server, private):
        return work
    return work._replace(zero_gradient=None)


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
    if work.zero_gradient is None:
        return True
    _, rows = batch_shapes(work, population, server)
    return work.zero_gradient.is_identity(Params(client_shapes(private), server.shared, rows))
