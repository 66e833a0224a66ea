"""`fedjax-rec data`: list, describe or download data sets, make stores; a file is described as it is read."""

import argparse
import contextlib
import shlex
from typing import TYPE_CHECKING, Any

from fedjax_rec.cli.argument_parser import Parser, whole_number
from fedjax_rec.cli.parser import add_settings
from fedjax_rec.columns import aligned
from fedjax_rec.errors import printable

if TYPE_CHECKING:
    from fedjax_rec.data.interactions import Dataset
    from fedjax_rec.data.store import Store

OF_FILES = ("data_dir", "user", "item", "rating", "timestamp", "columns", "separator", "part", "duplicates")
OF_STORES = tuple(name for name in OF_FILES if name not in ("data_dir", "part"))  # which hold no parts
SHOWN = 5  # events

_FAMILY = "amazon-2023-"  # data sets that are listed in one line


def add_parser(commands: Any) -> None:
    """Describe `data`, its actions and their flags."""
    parser = commands.add_parser(
        "data", help="list, describe or download data sets, make stores", allow_abbrev=False
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    listing = actions.add_parser("ls", help="list the registered data sets", allow_abbrev=False)
    listing.add_argument("text", nargs="?", default="", help="only those whose name or title has this text")
    listing.add_argument("--data-dir", help="folder that holds the data (default: the cache)")
    describe = actions.add_parser(
        "describe",
        help="counts, origin and licence; of a file how it is read",
        description="Counts, origin and licence of a data set. Of a file also how it was understood, the flags "
        "that say the same, and the first events; with the flags of run.",
        allow_abbrev=False,
    )
    fetch = actions.add_parser("fetch", help="download into the cache", allow_abbrev=False)
    for action in (describe, fetch):
        action.add_argument("dataset", help="a registered name, or a path")
    add_settings(describe, ("file",), OF_FILES)
    _add_convert(actions)
    _add_synthesise(actions)


def _add_convert(actions: Any) -> None:
    """Describe `data convert` and its flags."""
    convert = actions.add_parser(
        "convert",
        help="make a store of a file of any size",
        description="Make a store of a csv, tsv or .inter file, a parquet file or a folder of such, in bounded "
        "memory.",
        allow_abbrev=False,
    )
    convert.add_argument("source", help="the file or folder")
    convert.add_argument("store", help="the folder to make")
    add_settings(convert, ("file",), OF_STORES)


def _add_synthesise(actions: Any) -> None:
    """Describe `data synthesise` and its flags."""
    synthesise = actions.add_parser(
        "synthesise",
        help="draw a population of any size, as a store",
        description="Draw a population with long-tailed lengths and popularity and known preferences, as a "
        "store. A client is a pure function of (seed, id).",
        allow_abbrev=False,
    )
    synthesise.add_argument("store", help="the folder to make")
    synthesise.add_argument("--clients", type=whole_number, required=True, help="how many, such as 10e6")
    synthesise.add_argument("--items", type=whole_number, required=True, help="in the catalogue, such as 1e6")
    synthesise.add_argument(
        "--events-per-client", type=float, default=100.0, help="their mean number (default: 100)"
    )
    synthesise.add_argument("--seed", type=whole_number, default=0, help="what is drawn (default: 0)")


def call(given: argparse.Namespace) -> int:
    """Do what the action says."""
    from fedjax_rec.data import registry
    from fedjax_rec.data.store import is_store, open_store

    if given.action == "ls":
        _print_datasets(given.text.casefold(), given.data_dir)
    elif given.action == "fetch":
        print(registry.fetch(given.dataset, progress=True))
    elif given.action == "convert":
        _convert(given)
    elif given.action == "synthesise":
        _synthesise(given)
    elif is_store(given.dataset):
        _print_store(open_store(given.dataset, verify=True))
    else:
        dataset, options = _load(given)
        for name, value in registry.describe(dataset).items():
            if name == "presets":
                value = {preset: _flags(filters) for preset, filters in value.items()}  # noqa: PLW2901
            if value is None or value in ("", {}):
                continue  # of a plain file nobody has said it
            print(printable(f"{name:>16}: {_format_value(value)}"))
        _print_reading(dataset)
        if dataset.reading is not None or given.part is not None:
            print(printable(f"{'run with':>16}: {_run_command(given.dataset, dataset, options)}"))
        _print_events(dataset)
    return 0


def _load(given: argparse.Namespace) -> tuple["Dataset", dict[str, Any]]:
    """The data, whose repeated pairs are counted and not refused, and the options that read them."""
    from fedjax_rec.data import registry
    from fedjax_rec.data.errors import DataError

    options = {name: getattr(given, name) for name in OF_FILES}
    merged = options | {"duplicates": "last"}
    if given.duplicates != "error":
        return registry.load_dataset(given.dataset, progress=True, **options), options
    if given.part is None:
        return registry.load_dataset(given.dataset, progress=True, **merged), options
    with contextlib.suppress(DataError):  # a file of parts does not say by itself whether pairs repeat
        return registry.load_dataset(given.dataset, progress=True, **options), options
    return registry.load_dataset(given.dataset, progress=True, **merged), merged


def _run_command(path: str, dataset: "Dataset", options: dict[str, Any]) -> str:
    """The command that trains on a file that was described, with what its events need beside their reading."""
    from fedjax_rec.data.registry import describe
    from fedjax_rec.data.splits import MIN_EVENTS

    if options["part"] is not None:
        flags = {name: value for name, value in options.items() if value not in (None, "error")}
        words = [
            word for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", str(value))
        ]
        return shlex.join(["fedjax-rec", "run", "--dataset", path, *words, "--splitter", "given"])
    few = describe(dataset)["per_user"]["min"] < MIN_EVENTS
    needed = f" --min-user-events {MIN_EVENTS}" * few
    return f"{shlex.join(['fedjax-rec', 'run', '--dataset', path])} {dataset.reading}{needed}"


def _convert(given: argparse.Namespace) -> None:
    from fedjax_rec.data.store import convert

    options = {name: getattr(given, name) for name in OF_STORES}
    _print_store(convert(given.source, given.store, progress=True, **options))


def _synthesise(given: argparse.Namespace) -> None:
    from fedjax_rec.data.store import synthesise

    store = synthesise(
        given.store,
        clients=given.clients,
        items=given.items,
        events_per_client=given.events_per_client,
        seed=given.seed,
        progress=True,
    )
    _print_store(store)


def _print_store(store: "Store") -> None:
    from fedjax_rec.data.store import describe_store

    for name, value in describe_store(store).items():
        print(printable(f"{name:>16}: {_format_value(value)}"))


def _print_reading(dataset: "Dataset") -> None:
    """How a file was understood: the flags that say so, and notes."""
    if dataset.reading is not None:
        print(printable(f"{'read with':>16}: {dataset.reading}"))
    for note in dataset.notes:
        print(printable(f"{'note':>16}: {note}"))


def _print_events(dataset: "Dataset") -> None:
    """The first events."""
    from fedjax_rec.data.times import show_time

    events = dataset.interactions
    header = ["user", "item"]
    columns = [events.user_ids[events.users[:SHOWN]], events.item_ids[events.items[:SHOWN]]]
    if events.ratings is not None:
        header.append("rating")
        columns.append(events.ratings[:SHOWN])
    if events.timestamps is not None:
        header.append("time (UTC)")
        columns.append([show_time(time) for time in events.timestamps[:SHOWN].tolist()])
    print(f"first events, {', '.join(header)}:")
    for row in zip(*columns, strict=True):
        print(printable(f"{'':>16}  {', '.join(map(str, row))}"))


def _print_datasets(text: str, folder: str | None) -> None:
    """A line each; large families in one, unless something is looked for."""
    from fedjax_rec.data import registry
    from fedjax_rec.data.errors import DataError

    infos = registry.list_datasets()
    shown = [info for info in infos if text in info.name or text in info.title.casefold()]
    if not shown:
        raise DataError(f"no data set has {text!r} in its name or title; leave it out to see all")
    rows = [["name", "kind", "users", "items", "events", "download", "here", "title; licence"]]
    family: list[Any] = []
    for info in shown:
        is_here = info.reader is None or registry.find_files(info, folder) is not None
        if info.name.startswith(_FAMILY) and not text and not is_here:
            family.append(info)
            continue
        here = "yes" if is_here else "manual" if info.by_hand or not info.url else "no"
        sizes = ("-",) * 3 if info.counts is None else tuple(f"{size:,}" for size in info.counts)
        size = "-" if info.size is None else f"{info.size / 1e6:,.0f} MB"
        rows.append([info.name, info.kind, *sizes, size, here, f"{info.title}; {info.licence}"])
    if family:
        about = f"{len(family)} categories, {family[0].name} ... {family[-1].name}: data ls {_FAMILY}"
        rows.append([f"{_FAMILY}...", family[0].kind, "", "", "", "", "no", about])
    print(aligned(rows, left=(0, 1, 6, 7)))
    print("here: no, downloaded when it is asked for; manual, data fetch NAME says where to get it")


def _format_value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_format_value(entry)}" for name, entry in value.items())
    if isinstance(value, tuple):
        return " to ".join(_format_value(entry) for entry in value)
    if isinstance(value, float):
        return f"{value:,.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _flags(filters: dict[str, Any]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in filters.items())
