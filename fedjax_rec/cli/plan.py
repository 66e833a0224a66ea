"""`fedjax-rec plan`: what a run would need on a device that need not be here, before there is any data."""

import argparse
import json
import math
from typing import Any

from fedjax_rec.cli.argument_parser import whole_number
from fedjax_rec.cli.parser import FLAGS, add_settings
from fedjax_rec.errors import ParameterError, printable
from fedjax_rec.runs.settings import Settings

SETTING_GROUPS = ("model", "client", "server")
SHOWN = ("dim", "num_negatives", "batch_size", "local_epochs", "learning_rate")
SETTING_FIELDS = ("clip", "rounds", "lanes", "stream_clients", "client_store", "server_rows", "table_shards")


def add_parser(commands: Any) -> None:
    """Describe `plan` and its flags."""
    parser = commands.add_parser(
        "plan",
        help="predict memory and time of a run, also on devices that are not here",
        description="Predict what a run needs, from sizes alone: memory by the engine's plan, of which nothing is "
        "allocated, and time by a model fitted to measurements. What cannot fit is refused, with the way out.",
        usage="%(prog)s --clients N --items N [--device NAME] [--count N] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    sizes = parser.add_argument_group("sizes")
    sizes.add_argument(
        "--clients", type=whole_number, required=True, metavar="N", help="how many, such as 100e6"
    )
    sizes.add_argument(
        "--items", type=whole_number, required=True, metavar="N", help="in the catalogue, such as 10e6"
    )
    sizes.add_argument(
        "--events-per-client", type=float, default=100.0, metavar="N", help="their mean number (default: 100)"
    )
    sizes.add_argument(
        "--longest",
        type=whole_number,
        metavar="N",
        help="events of the longest client (default: 10 times the mean)",
    )
    sizes.add_argument(
        "--stored",
        action="store_true",
        help="histories wait in a store on disk, of `data convert`; so they do where 32 bits cannot count them",
    )
    machine = parser.add_argument_group("devices")
    machine.add_argument(
        "--device",
        default="cpu",
        metavar="NAME",
        help="cpu (a core of here), h200, h100, a100, v5e or v6e (default: cpu)",
    )
    machine.add_argument(
        "--count", type=whole_number, default=1, metavar="N", help="so many of them (default: 1)"
    )
    machine.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_settings(parser, SETTING_GROUPS, SETTING_FIELDS, given_only=True)


def call(given: argparse.Namespace) -> int:
    """Predict, and print."""
    from fedjax_rec.runs.forecast import LONG_TAIL, MOST_EVENTS, Shape, forecast

    values = {name: value for name, value in vars(given).items() if name in Settings.__dataclass_fields__}
    if not math.isfinite(given.events_per_client):
        raise ParameterError("{events_per_client} must be finite, not {value}", value=given.events_per_client)
    longest = (
        min(given.items, int(LONG_TAIL * given.events_per_client)) if given.longest is None else given.longest
    )
    events = int(given.clients * given.events_per_client)
    too_many = events > MOST_EVENTS and _takes_stores(values)
    shape = Shape(given.clients, given.items, given.events_per_client, longest, given.stored or too_many)
    settings = Settings(**values)
    found = as_dict(forecast(settings, shape, given.device, given.count), settings.rounds)
    print(json.dumps(found, indent=2) if given.json else printable_table(found))
    if too_many and not given.stored and not given.json:
        print(f"histories wait in a store on disk: 32 bits cannot count {events:,} events in memory")
    return 0


def _takes_stores(values: dict[str, Any]) -> bool:
    """Whether rounds of the algorithm can take a cohort from a store."""
    from fedjax_rec.runs.build import make_algorithm
    from fedjax_rec.runs.settings import complete

    try:
        return make_algorithm(complete(Settings(**values | {"stream_clients": 1}))).streaming is not None
    except ValueError:
        return False


def as_dict(found: Any, rounds: int | None) -> dict[str, Any]:
    """A forecast as plain values.

    Args:
        found: of `runs.forecast.forecast`.
        rounds: that are asked for, if any.

    Returns:
        by name.
    """
    from fedjax_rec.runs import fitted
    from fedjax_rec.runs.resolved import rules_of

    plan = found.plan
    rules = rules_of(found.settings, None)
    on_host = {name: size for name, size in plan.num_bytes.items() if name.startswith("host")}
    on_device = {name: size for name, size in plan.num_bytes.items() if name not in on_host}
    shown: dict[str, Any] = {
        "algorithm": found.settings.algorithm,
        "settings": {name: value for name in SHOWN if (value := getattr(found.settings, name)) is not None},
        "settings_by_size": list(found.by_size),
        **{name: rules[name] for name in ("aggregator", "server_optimizer")},
        "devices": plan.devices,
        "cohort": plan.cohort,
        "events_per_client": found.work.events,
        "lanes": plan.lanes,
        "schedule": plan.schedule,
        "server_rows": "all" if plan.touched_rows is None else "touched",
        "table_shards": plan.table_shards,
        "memory_of_a_device": {name: size // plan.devices for name, size in on_device.items()},
        "memory": sum(on_device.values()),
        "room": found.room,
        "usable_share": found.usable,
        "host_memory": sum(on_host.values()),
        "disk": plan.disk_bytes,
        "stored": bool(found.store_bytes),
        "store_bytes": found.store_bytes,
        "store_seconds": found.store_seconds,
        "basis": found.basis,
        "seconds": found.seconds,
    }
    if found.seconds is None:
        return shown
    per_second = plan.cohort / found.seconds
    shown |= {
        "clients_per_second": per_second,
        "examples_per_second": per_second * found.work.events * found.work.epochs,
    }
    if rounds is not None:
        shown["seconds_of_all_rounds"] = rounds * found.seconds
    if found.basis.startswith("of a core"):
        shown |= {
            "held_out_points": fitted.HELD_OUT,
            "median_error": fitted.MEDIAN_ERROR,
            "worst_error": fitted.WORST_ERROR,
        }
    return shown


def printable_table(found: dict[str, Any]) -> str:
    """A forecast as text.

    Args:
        found: of `as_dict`.

    Returns:
        lines.
    """
    gib = 2**30
    plural = "s" * (found["devices"] > 1)
    shards = f", item tables in {found['table_shards']} shards" if found["table_shards"] > 1 else ""
    lines = [
        (
            f"{found['algorithm']}: cohorts of {found['cohort']:,} on {found['devices']} device{plural}, "
            f"{found['lanes']:,} lanes, {found['schedule']}, {found['server_rows']} rows{shards}"
        ),
        _settings_line(found),
        "memory of a device, by the engine's plan:",
    ]
    lines += [
        f"{name:>12}  {size / gib:12,.3f} GiB" for name, size in found["memory_of_a_device"].items() if size
    ]
    usable = found["usable_share"]
    of_memory = "that are free here" if usable is None else f"on all devices, {usable:.0%} of their memory"
    lines.append(
        f"{'in all':>12}  {found['memory'] / gib:12,.3f} GiB of {found['room'] / gib:,.1f} {of_memory}"
    )
    if found["host_memory"]:
        lines.append(f"{'host':>12}  {found['host_memory'] / gib:12,.3f} GiB in host memory")
    if found["disk"]:
        lines.append(f"{'disk':>12}  {found['disk'] / gib:12,.3f} GiB in files, at most")
    if found["stored"]:
        size = found["store_bytes"] / gib
        lines.append(
            f"{'store':>12}  {size:12,.3f} GiB on disk, without ratings (4 bytes an event) and times (8)"
        )
    if found["seconds"] is None:
        lines.append("time: not predicted, only rounds of fedmf were measured")
        return printable_lines(lines)
    lines.append(
        f"time of a round: {_duration(found['seconds'])}, {found['clients_per_second']:,.0f} clients/s, "
        f"{found['examples_per_second']:,.0f} examples/s"
    )
    if "seconds_of_all_rounds" in found:
        lines.append(f"time of all rounds: {_duration(found['seconds_of_all_rounds'])}, without validation")
    if found["stored"]:
        lines.append(_store_line(found))
    lines.append(f"the time is {found['basis']}")
    if "median_error" in found:
        lines.append(
            f"its error on {found['held_out_points']} points held out of the fit: "
            f"{found['median_error']:.0%} in the median, {found['worst_error']:.0%} at worst; other work on the "
            "machine comes on top"
        )
    return printable_lines(lines)


def _settings_line(found: dict[str, Any]) -> str:
    """As flags, and which of them nobody gave."""
    flags = " ".join(f"{FLAGS[name]} {value}" for name, value in found["settings"].items())
    by_size = [FLAGS[name] for name in found["settings_by_size"] if name in found["settings"]]
    server = f"updates by {found['aggregator']}, server by {found['server_optimizer']}"
    sized = f"; by the size of the data: {', '.join(by_size)}" if by_size else ""
    return f"settings: {flags}; {server}{sized}"


def _store_line(found: dict[str, Any]) -> str:
    """Whether reading the store takes longer than training."""
    if found["store_seconds"] < found["seconds"]:
        return (
            f"a thread reads the store meanwhile, {_duration(found['store_seconds'])} a round, which hides it"
        )
    rate = found["cohort"] * found["events_per_client"] / found["store_seconds"]
    return f"a thread that reads the store decides: {rate:,.0f} events/s; more or faster devices do not help"


def printable_lines(lines: list[str]) -> str:
    """Lines as a terminal may show them.

    Args:
        lines: of a table.

    Returns:
        one text.

    Example:
        >>> printable_lines(["a", "b"]).count(chr(10))
        1
    """
    return "\n".join(printable(line) for line in lines)


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1000 * seconds:,.1f} ms"
    return f"{seconds:,.1f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"
