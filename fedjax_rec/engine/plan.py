"""The engine's automatic choices, and the memory that they need: known before anything runs.

| choice | rule | measured in |
|---|---|---|
| lanes | the rule of 8: one for 8 clients of a device, at most 32 a core, 1,024 an accelerator | `sweep` |
| lanes of large batches | on a CPU, as many as 1.25 MiB of batches a core | `large_batches` |
| lanes of waves | one for 64 clients of a device, 2 to 16; on an accelerator one for 8, 2 to 512 | `sweep` |
| schedule | lanes for one local epoch of sums, waves for all else | `rounds` |
| row update | by back end and jaxlib version: `rows.scatter.choose` | `fedjax-rec doctor` |
| devices | all accelerators, or a core each, with 16 clients each: `devices.choose_devices` | `devices` |
| clients of a chunk | 30 MiB of them, where a cohort's copies take 1 GiB or do not fit; else all | `streaming` |
| files of what clients keep | beside the checkpoints, where memory would not hold it: `training.client_files` | |
| rows of a round | touched ones where all are twice as many, and 128 MiB more: `federation.touched` | `touched` |
| rounds in a block | those between two validations (`eval_every`), an argument of the program | `blocks` |

The right column names the part of `python -m experiments.benchmarks.engine`'s report that a rule was read off;
`streaming` is a benchmark of its own, `python -m experiments.benchmarks.streaming`, and `touched` another,
`python -m experiments.scaling.touched`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.population import Population
from fedjax_rec.engine.cohort import schedule_of, sums_item_by_item
from fedjax_rec.engine.devices import device_bytes, host_bytes
from fedjax_rec.engine.lane_steps import Uplink, batch_shapes, client_shapes, most_batches, upload_shapes
from fedjax_rec.errors import ParameterError
from fedjax_rec.rows.scatter import choose
from fedjax_rec.rows.tables import num_rows
from fedjax_rec.types import KEY_IMPL, ClientWork, FixedPoint, Plan, PyTree, Server, State

CPU_LANES = 32
ACCELERATOR_LANES = 1024
COPIED = ("best", "host best")
COPIES = 6  # of what the clients of a chunk keep: two chunks are under way, read, trained and put back
CORE_BYTES = 5 * 2**18  # of the batches of a core's lanes, which stay in its cache
_HOLDERS = {  # of a plan's memory: what takes it, and the way out with parameters in braces
    "data": ("the clients' data take", "take fewer clients or fewer devices"),
    "private": (
        "what all clients keep takes",
        "lower {dim}, stream clients ({stream_clients}), or choose an algorithm whose clients keep less",
    ),
    "host": (
        "what all clients keep in host memory takes",
        "lower {dim}, or let it wait in files ({client_store})",
    ),
    "cohort": (
        "what a cohort keeps, before and after its round, takes",
        "lower the cohort (or {stream_clients}), {dim} or {devices}",
    ),
    "model": (
        "the model and its optimizer take",
        "lower {dim}, split item tables ({table_shards}), or choose a server optimizer that keeps less",
    ),
    "versions": ("the models that late clients train from take", "lower {FedBuff.max_staleness} or {dim}"),
    "best": (
        "the best state so far takes",
        "lower {dim}, or in Python keep no best: keep='last', or no validation",
    ),
    "host best": (
        "the best state so far takes in host memory",
        "lower {dim}, let it wait in files ({client_store}), or in Python keep no best: keep='last'",
    ),
    "sums": ("sums of updates take", "lower {dim} or the number of devices"),
    "touched": ("the rows that a cohort touches take", "lower the cohort, {dim} or {devices}"),
    "lanes": ("the lanes' batches take", "lower the lanes or the batch size"),
    "buffer": ("the lanes' updates take", "lower the lanes, or the batches that a client trains on"),
    "stack": ("stacked updates take", "lower the cohort"),
}
_FEWER_ITEMS = "drop rare items ({core}), or lower {devices}"
# The same, where the model is a table of items by items, whose size no setting changes, in rounds of one piece.
_PAIR_HOLDERS = {
    "private": ("the histories that all clients keep take", "drop rare items ({core})"),
    "cohort": (_HOLDERS["cohort"][0], "lower the cohort or {devices}"),
    "model": ("weights of items by items take", _FEWER_ITEMS),
    "versions": ("the weights that late clients train from take", "lower {FedBuff.max_staleness}"),
    "best": ("the best state so far takes", "in Python keep no best: keep='last', or no validation"),
    "sums": ("sums of items by items take", _FEWER_ITEMS),
    "touched": (_HOLDERS["touched"][0], "lower the cohort or {devices}"),
    "inversion": ("inverting a table of items by items takes", _FEWER_ITEMS),
}
INVERSION_BLOCK = 1024  # columns of a table of items by items that an inversion changes at once
INVERSION = 6  # such blocks that it holds, besides the table


def choose_lanes(
    cohort: int,
    *,
    devices: int = 1,
    schedule: str = "lanes",
    platform: str = "cpu",
    batch_bytes: int = 0,
) -> int:
    """The rule of 8: a lane serves eight clients of its device, up to a bound.

    Fewer lanes waste time per step, more leave lanes idle behind the longest client. Waves of alike clients are
    smaller on a CPU, so that a client's rows stay in its cache from epoch to epoch; and so are lanes with large
    batches, such as the whole catalogue.

    Args:
        cohort: C.
        devices: over which they are split; every device gets as many.
        schedule: "lanes" or "waves".
        platform: jax's name of the back end.
        batch_bytes: of one local batch, its rows included.

    Returns:
        L, over all devices.

    Example:
        >>> choose_lanes(100), choose_lanes(1000), choose_lanes(1000, devices=2), choose_lanes(100, devices=8)
        (12, 32, 64, 8)
        >>> [choose_lanes(cohort, schedule="waves") for cohort in (100, 1000, 10_000)]
        [2, 15, 16]
        >>> [choose_lanes(1000, batch_bytes=size) for size in (10_000, 500_000, 5_000_000)]
        [32, 2, 1]
    """
    share = -(-cohort // devices)
    cpu = platform == "cpu"
    if schedule == "lanes":
        most = min(CPU_LANES, CORE_BYTES // max(1, batch_bytes)) if cpu else ACCELERATOR_LANES
        each = max(1, min(most, share // 8))
    else:
        each = max(2, min(16, share // 64) if cpu else min(512, share // 8))
    return each * devices


def row_update_of(platform: str) -> str:
    """The row-update strategy for a back end and the jaxlib at hand.

    Args:
        platform: jax's name of the back end.

    Returns:
        a name of `rows.scatter.STRATEGIES`.

    Example:
        >>> row_update_of("cpu")
        'scatter'
    """
    return choose(platform, jaxlib.__version__)


def make_plan(
    work: ClientWork,
    uplink: Uplink,
    cohort: int,
    lanes: int | None,
    mesh: Mesh | None,
    init: Any,
    population: Population,
    stream_clients: int | None = None,
    touched_rows: int | None = None,
) -> Plan:
    """What the engine will do for a population.

    Args:
        work: one client's work.
        uplink: how updates travel.
        cohort: C.
        lanes: L by hand; None for the rule.
        mesh: the devices; None for one.
        init: (key, population) -> State, for the sizes of its leaves.
        population: N clients.
        stream_clients: S, clients of a chunk, where a round runs in chunks.
        touched_rows: that a round in chunks is to touch, and works on alone; None for all rows.

    Returns:
        the plan; its memory is of what grows with the task, less the programs and their small change.
    """
    devices = 1 if mesh is None else mesh.size
    schedule = schedule_of(work, uplink)
    together = min(cohort, stream_clients or cohort)  # clients that train in one program
    state: State = jax.eval_shape(lambda key: init(key, population), jax.random.key(0, impl=KEY_IMPL))

    # bytes of one local batch, of the model, of a sum of updates, and of what all clients keep
    batch = _batch_bytes(work, population, state.server)
    model = _bytes(state.server)
    upload = _bytes(upload_shapes(work, population, state.server, client_shapes(state.private)))
    store = _bytes(state.store)

    # rows that a round holds once more: touched ones, with what the rule keeps of them, and the slots of batches
    items = num_rows(state.server.tables)
    sums = (3 if stream_clients is None else 5) * upload
    held = 0
    if touched_rows is not None:
        # one sum, whose memory the steps then take; of several chunks two and their sum; of integers besides it
        # the floats and the steps
        one = together == cohort and uplink.aggregator.fixed is None
        sums = (1 if one else 3) * upload * touched_rows // items
        held = (model + _bytes(state.opt_state)) * touched_rows // items
        held += 3 * touched_rows * _slot_bytes(work, population, state.server)

    width = lanes or choose_lanes(
        together, devices=devices, schedule=schedule, platform=jax.default_backend(), batch_bytes=batch
    )
    updates_in_buffer = 3 if uplink.sends_after_training else 1
    keeps_rows = work.keeps_rows or uplink.sends_after_training
    kept = batch if keeps_rows else _batch_bytes(work, population, state.server, rows=False)
    buffer = width * most_batches(work, population) * kept * updates_in_buffer
    # the updates and what sorts or compares them, who touched what, distances between clients
    stack = devices * cohort * (4 * upload + items + 12 * cohort)
    num_bytes = {
        "data": devices * (_bytes(population) + _index_bytes(work, uplink, together, population)),
        **_store_bytes(store, population.num_clients, cohort, devices, stream_clients),
        "model": devices * (model + _bytes(state.opt_state)),
        "versions": devices
        * _bytes(state.in_flight),  # who is training in asynchronous rounds, and old models
        # the totals, their sum over devices, and the step made of it; in chunks, those of two and their sum
        "sums": devices * sums,
        "touched": devices * held,
        "lanes": 4 * width * batch,  # rows, gradients and deltas of one step
        "buffer": 0 if schedule == "lanes" else buffer,
        "stack": stack if uplink.aggregator.stacked else 0,
    }
    return Plan(cohort, devices, width, schedule, uplink.row_update, num_bytes, stream_clients, touched_rows)


def _store_bytes(
    store: int, num_clients: int, cohort: int, devices: int, stream_clients: int | None
) -> dict[str, int]:
    """Bytes of what clients keep between rounds: of all, and of a cohort as it is read and written back."""
    if stream_clients is None:
        return {"private": devices * store, "cohort": 2 * devices * cohort * store // num_clients}
    return {"host": store, "cohort": COPIES * devices * stream_clients * store // num_clients}


def _index_bytes(work: ClientWork, uplink: Uplink, cohort: int, population: Population) -> int:
    """Bytes of the events' order by item, where rows are summed item by item: three integers for each."""
    shortly = sums_item_by_item(work, uplink, cohort, population)
    return 12 * len(population.examples["items"]) if shortly else 0


def _bytes(tree: PyTree) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if not _is_key(leaf))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _batch_bytes(work: ClientWork, population: Population, server: Server, *, rows: bool = True) -> int:
    """Bytes of one local batch: its ids, data, rows and their optimizer state."""
    batch, values = batch_shapes(work, population, server)
    return _bytes((batch, jax.eval_shape(work.init_rows, values))) if rows else _bytes(batch)


def _slot_bytes(work: ClientWork, population: Population, server: Server) -> int:
    """Bytes of a slot of a local batch without its row: the id and the data."""
    batch, _ = batch_shapes(work, population, server)
    return -(-_bytes(batch) // batch.ids.shape[0])


def check_fits(plan: Plan, fixed: FixedPoint | None = None) -> None:
    """Refuse what cannot fit into memory, or integer sums that could wrap.

    Args:
        plan: of `make_plan`.
        fixed: how integers are summed; None for floats.

    Raises:
        ValueError: if a run needs more than the devices hold, or the cohort exceeds the sums' capacity.

    Example:
        >>> check_fits(Plan(9000, 1, 1, "waves", "scatter", {"model": 2**20, "stack": 2**52}))
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: stacked updates take 4,194,304.0 of 4,194,304.0 GiB, and there are ...
    """
    if fixed is not None and plan.cohort > fixed.capacity:
        raise ValueError(
            f"a cohort of {plan.cohort:,} could wrap fixed-point sums made for {fixed.capacity:,}; raise their "
            "capacity"
        )
    on_host = {name: size for name, size in plan.num_bytes.items() if name.startswith("host")}
    if not on_host or jax.default_backend() == "cpu":  # whose devices share the host's memory
        return check_room(plan.num_bytes, device_bytes(plan.devices), plan.cohort)
    on_device = {name: plan.num_bytes[name] for name in plan.num_bytes.keys() - on_host}
    check_room(on_device, device_bytes(plan.devices), plan.cohort)
    return check_room(on_host, host_bytes(), plan.cohort)


def fits(plan: Plan) -> bool:
    """Whether there is memory for it.

    Args:
        plan: of `make_plan`.

    Returns:
        True or False.

    Example:
        >>> fits(Plan(9000, 1, 1, "waves", "scatter", {"model": 2**52}))
        False
    """
    try:
        check_fits(plan)
    except ValueError:
        return False
    return True


def check_room(num_bytes: dict[str, int], room: int, cohort: int) -> None:
    """Refuse a plan that takes more than there is.

    Args:
        num_bytes: by what they hold.
        room: bytes.
        cohort: C, which the error names.

    Raises:
        ParameterError: naming what takes most, and the way out.

    Example:
        >>> check_room({"model": 2**30}, 2**31, 100)
    """
    need = sum(num_bytes.values())
    if need <= room:
        return
    largest = _largest_holder(num_bytes, need - room)
    holders = _HOLDERS | (_PAIR_HOLDERS if "inversion" in num_bytes else {})
    what, way_out = holders.get(largest, (f"{largest!r} takes", "make it smaller"))
    share, total, available = (size / 2**30 for size in (num_bytes[largest], need, room))
    raise ParameterError(
        f"{what} {share:,.1f} of {total:,.1f} GiB, and there are {available:,.1f} for a cohort of {cohort:,}; "
        f"{way_out}"
    )


def _largest_holder(num_bytes: dict[str, int], excess: int) -> str:
    """What takes most; a copy of the best state, as large as what it copies, only where the copies decide."""
    copies = {name: size for name, size in num_bytes.items() if name in COPIED}
    others = {name: size for name, size in num_bytes.items() if name not in COPIED}
    found = copies if sum(copies.values()) >= excess else others
    return max(found, key=found.__getitem__)


def with_copy(plan: Plan) -> Plan:
    """The plan of a run that holds on to its best state so far.

    Args:
        plan: of the rounds alone.

    Returns:
        the same with another state, as `num_bytes["best"]`.

    Example:
        >>> parts = {"data": 9, "private": 1, "model": 2, "versions": 3}
        >>> with_copy(Plan(1, 1, 1, "waves", "scatter", parts)).num_bytes["best"]
        6
    """
    copied = {"best": state_bytes(plan)}
    if "host" in plan.num_bytes:  # where the copy of it is too
        copied["host best"] = plan.num_bytes["host"]
    return plan._replace(num_bytes=plan.num_bytes | copied)


def without_host(plan: Plan) -> Plan:
    """The plan of a run where what clients keep, and the best of it, waits in files and not in host memory.

    Args:
        plan: of the run with all of it in memory.

    Returns:
        the same with it as `disk_bytes`.

    Example:
        >>> found = without_host(Plan(1, 1, 1, "waves", "scatter", {"host": 9, "host best": 9, "model": 2}))
        >>> found.num_bytes, found.disk_bytes
        ({'model': 2}, 18)
    """
    kept = {name: size for name, size in plan.num_bytes.items() if not name.startswith("host")}
    moved = sum(plan.num_bytes.values()) - sum(kept.values())
    return plan._replace(num_bytes=kept, disk_bytes=plan.disk_bytes + moved)


def with_inversion(plan: Plan, num_items: int, *, in_sums: bool) -> Plan:
    """The plan of rounds that invert a table of items by items, on every device.

    Args:
        plan: of the rounds without it.
        num_items: I.
        in_sums: whether the sums are one table, which the inverse and the step take over.

    Returns:
        the same with what that takes, as `num_bytes["inversion"]`.

    Example:
        >>> parts = {"sums": 1200}
        >>> with_inversion(Plan(1, 1, 1, "waves", "scatter", parts), 10, in_sums=True).num_bytes
        {'sums': 400, 'inversion': 2400}
    """
    column = plan.devices * num_items * np.dtype(np.float32).itemsize
    blocks = INVERSION * min(num_items, INVERSION_BLOCK) * column
    sums = num_items * column if in_sums else plan.num_bytes["sums"]
    return plan._replace(num_bytes=plan.num_bytes | {"sums": sums, "inversion": blocks})


def with_split_tables(plan: Plan, rows: list[jax.ShapeDtypeStruct], shards: int) -> Plan:
    """The plan of rounds whose item tables are split over devices.

    Args:
        plan: of the same rounds with whole tables on every device.
        rows: shapes of the leaves that are split, [I, ...].
        shards: S devices that share a table; 1 changes nothing.

    Returns:
        the same with a share of these for each device, filled up to whole rows, in `num_bytes["model"]`, and with
        a share of what a chunk's clients keep, but for the two copies that are sorted, in `num_bytes["cohort"]`.

    Example:
        >>> table = jax.ShapeDtypeStruct((10, 4), np.float32)
        >>> plan = Plan(1, 8, 8, "lanes", "scatter", {"model": 8 * 160, "cohort": 480})
        >>> with_split_tables(plan, [table], 4).num_bytes
        {'model': 384, 'cohort': 200}
    """
    if shards == 1:
        return plan
    items = num_rows(rows)
    elsewhere = (items - -(-items // shards)) * (_bytes(rows) // items)
    model = plan.num_bytes["model"] - plan.devices * elsewhere
    cohort = plan.num_bytes["cohort"] * (COPIES - 2 + 2 * plan.devices) // (COPIES * plan.devices)
    return plan._replace(num_bytes=plan.num_bytes | {"model": model, "cohort": cohort}, table_shards=shards)


def state_bytes(plan: Plan) -> int:
    """What the state of a run takes, in bytes.

    Args:
        plan: of `make_plan`.

    Returns:
        the sum over all devices.

    Example:
        >>> state_bytes(Plan(1, 1, 1, "waves", "scatter", {"data": 9, "private": 1, "model": 2}))
        3
    """
    return sum(plan.num_bytes.get(part, 0) for part in ("private", "model", "versions"))
