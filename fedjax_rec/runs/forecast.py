"""What a run would need, before there is any data: memory by the engine's plan on shapes, time by a fitted model.

Nothing is allocated: the plan is traced on a population of shapes. It is that of one device here, and stands for
each of several elsewhere, with the lanes that the engine would choose there.
"""

import dataclasses
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from fedjax_rec.client.membership import BITMAP_BYTES, WIDTH, Membership
from fedjax_rec.client.population import Population, check_sizes
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.data.defaults import Size
from fedjax_rec.engine.chunks import with_best
from fedjax_rec.engine.plan import check_room, choose_lanes, with_split_tables, without_host
from fedjax_rec.errors import ParameterError
from fedjax_rec.runs.build import clip_batch_size, make_algorithm, settings_by_events, with_sized_defaults
from fedjax_rec.runs.machines import FETCH_SECONDS, USABLE, Work, machine_of, room_of, seconds_of
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.types import KEY_IMPL, Algorithm, Plan

MOST_ON_PAPER = 10**6  # clients, where the plan of touched rows asks for none but a cohort's
LONG_TAIL = 10  # times the mean, of the longest client, where nobody says
SAME_TIME = 1.6  # items for a slot of a cohort, of which all rows take as long as touched ones
TIMED = ("fedmf",)  # algorithms whose rounds were measured
MOST_EVENTS = 2**31 - 1  # that 32 bits count in memory


class Shape(NamedTuple):
    """Data on paper."""

    clients: int  # N
    items: int  # I
    events: float  # of a client, mean
    longest: int  # events of the longest client
    stored: bool  # whether histories wait in a store on disk


class Forecast(NamedTuple):
    """What a run would need."""

    settings: Settings  # completed
    by_size: tuple[str, ...]  # names of those that follow from the size of the data
    plan: Plan  # of all devices; `num_bytes` by what they hold, keys that begin with "host" in host memory
    room: int  # bytes that a run may take on all devices
    usable: float | None  # share of their memory that this is; None for a CPU's, of which it is what is free
    work: Work
    seconds: float | None  # of a round; None for an algorithm whose rounds were not measured
    basis: str  # where the seconds come from
    store_seconds: float  # of a round's, in which a thread reads its histories meanwhile; 0 without a store
    store_bytes: int  # on disk, of items and offsets; 0 without a store


def forecast(settings: Settings, shape: Shape, device: str, count: int) -> Forecast:
    """Predict memory and time.

    Args:
        settings: of the run; of the data set nothing is read.
        shape: of the data.
        device: a name of `machines.MACHINES`.
        count: devices.

    Returns:
        the forecast.

    Raises:
        ValueError: if it cannot fit, with the way out, or a number is out of range.

    Example:
        >>> found = forecast(Settings(dim=64), Shape(10**6, 10**5, 100, 1000, True), "h200", 8)
        >>> found.plan.num_bytes["model"], found.plan.cohort
        (208000000, 1000)
    """
    machine = machine_of(device)
    if count < 1:
        raise ParameterError("{count} must be at least 1, not {value}", value=count)
    _check(shape, settings)
    shards = _shards_of(settings, count)
    given, settings = settings, _completed(settings, shape)
    by_size = [
        name for name in settings_by_events(settings, _size(shape)) if getattr(given, name, None) is None
    ]
    touched = _plan_on_touched_rows(settings, shape)
    if touched is not None:
        settings = dataclasses.replace(settings, stream_clients=touched.stream_clients)
    algorithm = make_algorithm(settings)
    plan = plan_on_paper(algorithm, shape)
    if touched is not None:
        of_rows = {name: touched.num_bytes[name] for name in ("sums", "touched")}
        plan = plan._replace(num_bytes=plan.num_bytes | of_rows, touched_rows=touched.touched_rows)
    if count > plan.cohort:
        raise ParameterError(
            "{count}={value} devices for a cohort of {clients:,}: some would have no client; raise {cohort} or "
            "take fewer",
            value=count,
            clients=plan.cohort,
        )
    lanes = choose_lanes(
        min(plan.cohort, plan.stream_clients or plan.cohort),
        devices=count,
        schedule=plan.schedule,
        platform=machine.platform,
        batch_bytes=plan.num_bytes["lanes"] // (4 * plan.lanes),
    )
    plan = _on_devices(plan, count, settings.lanes or lanes)
    if shards > 1:
        plan = with_split_tables(plan, _rows_on_paper(algorithm, shape), shards)
    plan = with_best(algorithm, plan)
    plan = plan if settings.client_store is None else without_host(plan)
    room = room_of(machine, count)
    _check_memory(plan, room, machine.is_cpu)
    work = _work(settings, algorithm, shape, plan)
    store_seconds = FETCH_SECONDS * work.cohort * work.events if shape.stored else 0.0
    seconds = max(seconds_of(machine, work), store_seconds) if settings.algorithm in TIMED else None
    return Forecast(
        settings=settings,
        by_size=tuple(by_size),
        plan=plan,
        room=room,
        usable=None if machine.is_cpu else USABLE,
        work=work,
        seconds=seconds,
        basis=machine.basis,
        store_seconds=store_seconds,
        store_bytes=_store_bytes(shape) if shape.stored else 0,
    )


def _size(shape: Shape) -> Size:
    return Size(shape.clients, shape.items, int(shape.clients * shape.events))


def _store_bytes(shape: Shape) -> int:
    """Of `items.bin` and `offsets.bin`, see `data.store.format`."""
    return 4 * int(shape.clients * shape.events) + 8 * (shape.clients + 1)


def _shards_of(settings: Settings, count: int) -> int:
    """Devices that share an item table."""
    shards = 1 if settings.table_shards is None else settings.table_shards
    if shards < 1 or count % shards:
        raise ParameterError(
            "{table_shards}={shards} must divide {count}={number} devices; change one of them",
            shards=shards,
            number=count,
        )
    all_rows = settings.server_rows == "all"
    check_together({Feature.TABLE_SHARDS: shards if shards > 1 else None, Feature.ALL_ROWS: all_rows})
    return shards


def _rows_on_paper(algorithm: Algorithm, shape: Shape) -> list[jax.ShapeDtypeStruct]:
    """Shapes of the leaves of a state that have a row for each item, of rounds on touched rows."""
    found: list[jax.ShapeDtypeStruct] = []

    def trace(population: Population) -> int:
        chunked = cast("Any", algorithm.streaming)(population)
        state = jax.eval_shape(algorithm.init, jax.random.key(0, impl=KEY_IMPL), population)
        found.extend(chunked.touched.split(state)[0])
        return 0

    jax.eval_shape(trace, _population(shape))
    return found


def plan_on_paper(algorithm: Algorithm, shape: Shape) -> Plan:
    """The engine's plan for data that are not there.

    Args:
        algorithm: on one device.
        shape: of the data.

    Returns:
        the plan, its `num_bytes` those of the data, too.

    Example:
        >>> import fedjax_rec as fr
        >>> shape = Shape(10**6, 10**5, 100, 1000, False)
        >>> plan = plan_on_paper(fr.fedmf(dim=64, item_bias=False), shape)
        >>> plan.num_bytes["private"] == 10**6 * 64 * 4, plan.num_bytes["model"] == 10**5 * 64 * 4
        (True, True)
    """
    found: list[Plan] = []

    def trace(population: Population) -> int:
        chunked = None if algorithm.streaming is None else algorithm.streaming(population)
        found.append(algorithm.plan(population) if chunked is None else chunked.plan)
        return 0

    jax.eval_shape(trace, _population(shape))
    plan = found[0]
    if not shape.stored:
        return plan
    # a cohort's histories, of those who train and those who come next: ids, and buckets of their own
    cohort = plan.stream_clients or plan.cohort
    histories = int(2 * cohort * shape.events * (4 + _BUCKET_BYTES))
    return plan._replace(num_bytes=plan.num_bytes | {"data": plan.num_bytes["data"] + histories})


def _plan_on_touched_rows(settings: Settings, shape: Shape) -> Plan | None:
    """The plan of a cohort in one chunk, of fewer clients of the same lengths; None where it is of all rows."""
    clients = min(shape.clients, MOST_ON_PAPER)
    cohort = settings.cohort or min(1000, clients)
    if settings.server_rows == "all" or settings.async_buffer is not None or cohort > clients:
        return None
    size = settings.stream_clients or cohort
    try:
        algorithm = make_algorithm(dataclasses.replace(settings, stream_clients=size))
    except ValueError:  # something is in the way of chunks
        return None
    plan = plan_on_paper(algorithm, shape._replace(clients=clients, stored=False))
    return None if plan.touched_rows is None else plan


_BUCKET_BYTES = 12  # of the membership test, an event: see `client.membership`


def _population(shape: Shape) -> Population:
    """Shapes of all clients' data, or of a store's directory."""
    total = 1 if shape.stored else int(shape.clients * shape.events)
    words = -(-shape.items // 32)

    def leaf(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    if shape.stored:
        membership = Membership(leaf(jnp.uint32, 1), leaf(jnp.int32, 0))
    elif shape.clients * words * 4 <= BITMAP_BYTES:
        membership = Membership(leaf(jnp.uint32, shape.clients * words), leaf(jnp.int32, 0))
    else:
        buckets = max(1, total * _BUCKET_BYTES // (4 * WIDTH))
        membership = Membership(leaf(jnp.int32, buckets, WIDTH), leaf(jnp.int32, shape.clients + 1))
    examples = {"items": leaf(jnp.int32, total), "ratings": leaf(jnp.float32, total)}
    return Population(examples, leaf(jnp.int32, shape.clients + 1), membership, shape.items, shape.longest)


def _check(shape: Shape, settings: Settings) -> None:
    for name, value in (
        ("clients", shape.clients),
        ("items", shape.items),
        ("events_per_client", shape.events),
    ):
        if not value >= 1:
            raise ParameterError("{" + name + "} must be at least 1, not {value:g}", value=value)
    if shape.events > shape.longest or shape.longest > shape.items:
        raise ParameterError(
            "a client has {mean:g} events in the mean and {most:,} at most, of {number:,} items: each can be at "
            "most the next; change {events_per_client} or {longest}",
            mean=shape.events,
            most=shape.longest,
            number=shape.items,
        )
    if settings.cohort is not None and settings.cohort > shape.clients:
        raise ParameterError(
            "{cohort}={c} exceeds the population of {n} clients; lower it",
            c=settings.cohort,
            n=shape.clients,
        )
    total = 0 if shape.stored else int(shape.clients * shape.events)
    if total > MOST_EVENTS:
        raise ParameterError(
            "{total:,} events are too many for memory, where 32 bits count them; leave them in a store on disk "
            "({stored}; made by data convert), or take fewer clients",
            total=total,
        )
    check_sizes(shape.clients, total, shape.items)


def _completed(settings: Settings, shape: Shape) -> Settings:
    """On one device, in one piece or, from a store or on touched rows, in one chunk, if nobody says otherwise."""
    in_chunks = shape.stored
    if (settings.table_shards or 1) > 1:
        in_chunks = True
        settings = dataclasses.replace(settings, server_rows="touched")
    streamed = settings.stream_clients
    if streamed is None:
        streamed = (settings.cohort or min(1000, shape.clients)) if in_chunks else 0
    settings = dataclasses.replace(settings, devices=1, stream_clients=streamed, table_shards=None)
    return clip_batch_size(with_sized_defaults(complete(settings), _size(shape)), shape.longest)


def _on_devices(plan: Plan, count: int, lanes: int) -> Plan:
    """The plan of one device, on several: each holds a copy, and lanes of its own."""
    of_lanes = {name: plan.num_bytes[name] * lanes // plan.lanes for name in ("lanes", "buffer")}
    num_bytes = {
        name: of_lanes.get(name, size if name.startswith("host") else size * count)
        for name, size in plan.num_bytes.items()
    }
    return plan._replace(devices=count, lanes=lanes, num_bytes=num_bytes)


def _check_memory(plan: Plan, room: int, is_cpu: bool) -> None:
    on_host = {name: size for name, size in plan.num_bytes.items() if name.startswith("host")}
    on_device = {name: size for name, size in plan.num_bytes.items() if name not in on_host}
    if max(on_device, key=on_device.__getitem__) == "data" and sum(on_device.values()) > room:
        raise ParameterError(
            "the clients' data take {data:,.1f} of {total:,.1f} GiB, and there are {room:,.1f} on {count} "
            "devices, each of which holds a copy; leave histories in a store on disk ({stored}), or take fewer "
            "clients",
            data=on_device["data"] / 2**30,
            total=sum(on_device.values()) / 2**30,
            room=room / 2**30,
            count=plan.devices,
        )
    check_room(plan.num_bytes if is_cpu else on_device, room, plan.cohort)


def _work(settings: Settings, algorithm: Algorithm, shape: Shape, plan: Plan) -> Work:
    width = 1 if settings.loss == "mse" else 1 + (settings.num_negatives or 0)
    batch = settings.batch_size or 64
    positives = max(1, batch // width)
    batches = shape.events / positives + 0.5  # the last one of a client is half full
    return Work(
        cohort=plan.cohort,
        events=shape.events,
        longest=int(algorithm.work.batches.num_batches(shape.longest)),
        batches=batches,
        slots=batches * batch,
        dim=settings.dim or 1,
        items=min(shape.items, int(SAME_TIME * (plan.touched_rows or shape.items))),
        epochs=algorithm.work.epochs,
        devices=plan.devices,
        lanes=max(1, plan.lanes // plan.devices),
    )
