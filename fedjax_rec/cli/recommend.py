"""`fedjax-rec recommend`: lists of a trained model, for its users or for somebody new."""

import argparse
import contextlib
import csv
import math
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fedjax_rec.cli.output import tell
from fedjax_rec.columns import aligned
from fedjax_rec.errors import printable

if TYPE_CHECKING:
    import pandas as pd

    from fedjax_rec.runs.recommender import Recommender

FORMATS = ("table", "csv", "json", "parquet")
FILTERS = ("min_rating", "min_user_events", "core")  # settings that drop users


class History(NamedTuple):
    """What somebody new has."""

    items: list[str]
    ratings: list[float]  # of each of them; empty where the file has none


def add_parser(commands: Any) -> None:
    """Describe `recommend` and its flags."""
    parser = commands.add_parser(
        "recommend",
        help="list what a trained model recommends",
        description="List the items that a trained model recommends to users, without those that they have met; "
        "with titles, where a file of them lies beside the data.",
        allow_abbrev=False,
    )
    parser.add_argument("--run", metavar="RUN", required=True, help="the run folder")
    whom = parser.add_mutually_exclusive_group(required=True)
    whom.add_argument("--user", action="append", metavar="ID", help="a user of the data; may be repeated")
    whom.add_argument("--users", metavar="FILE", help="a file of users, one a line; - for standard input")
    whom.add_argument("--all-users", action="store_true", help="all users of the model")
    whom.add_argument(
        "--new-user",
        metavar="FILE",
        help="somebody whom the model has not met: a csv with a column item (or by its name in the run's data), "
        "rating for models of ratings, and user where there are several",
    )
    parser.add_argument("-k", type=int, default=10, metavar="K", help="items for each (default: 10)")
    parser.add_argument(
        "--titles", metavar="FILE", help="a csv of item,title (default: that beside the data)"
    )
    add_output(parser, FORMATS)


def add_output(parser: argparse.ArgumentParser, formats: tuple[str, ...]) -> None:
    """Describe how a table is written, and where.

    Args:
        parser: of a command.
        formats: the first one is the default.
    """
    parser.add_argument(
        "--format", choices=formats, help=f"how it is written (default: by the name of --out; {formats[0]})"
    )
    parser.add_argument("--out", metavar="FILE", help="where (default: standard output)")


def call(given: argparse.Namespace) -> int:
    """Read the model, make the lists and write them."""
    from fedjax_rec.runs.folders import read_json
    from fedjax_rec.runs.lists import best_lists, rows_of, table_of
    from fedjax_rec.runs.recommender import load

    model = load(given.run)
    config = read_json(Path(given.run) / "config.json")
    if given.new_user is not None:
        write_table(_lists_of_new(model, given, config), given.format, given.out)
        return 0
    users = model.user_ids if given.all_users else given.user or _read_users(given.users)
    try:
        rows = rows_of(model, users)
    except ValueError as problem:
        raise ValueError(f"{problem}{_why_unknown(config)}") from problem
    write_table(table_of(model, best_lists(model, rows, given.k), titles_of(given)), given.format, given.out)
    return 0


def _why_unknown(config: Mapping[str, Any]) -> str:
    """Why a user of the data may be no user of the model, by the settings of the run."""
    filters = [f"--{name.replace('_', '-')} {config[name]:g}" for name in FILTERS if config.get(name)]
    reasons = [f"others may have been dropped by {' '.join(filters)}"] if filters else []
    if config.get("evaluate_clients"):
        reasons.append(
            f"others were not sampled to be ranked: --evaluate-clients {config['evaluate_clients']}"
        )
    return "".join(f"; {reason}" for reason in reasons)


def _lists_of_new(
    model: "Recommender", given: argparse.Namespace, config: Mapping[str, Any]
) -> "pd.DataFrame":
    """A table of lists of somebody new, or of all whom the file names, each by its own history."""
    import pandas as pd

    from fedjax_rec.runs.lists import best_lists, rows_of, table_of, with_new_user

    histories = _read_histories(given.new_user, config)
    every = [item for history in histories.values() for item in history.items]
    unknown = sorted(set(every) - set(model.item_ids.astype(str).tolist()))
    titles = titles_of(given)
    tables = []
    for user, history in histories.items():
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".* unknown to the model")  # told once for all below
                one = with_new_user(model, history.items, history.ratings or None)
        except ValueError as problem:
            raise ValueError(f"user {user!r}: {problem}" if user else str(problem)) from problem
        found = table_of(one, best_lists(one, rows_of(one, one.user_ids), given.k), titles)
        tables.append(found.assign(user=user) if user else found)
    if unknown:
        told = f"{len(unknown)} of {len(every)} items are unknown to the model and passed over"
        tell(f"{told}, such as {unknown[0]}")
    return pd.concat(tables, ignore_index=True)


def titles_of(given: argparse.Namespace) -> dict[str, str]:
    """Titles of items: of the file that is named, or of that beside the data of the run.

    Args:
        given: the parsed arguments, with `run` and `titles`.

    Returns:
        by id; empty if there are none.

    Raises:
        ValueError: if a file that is named has no titles.
    """
    from fedjax_rec.data.titles import find_titles, read_titles
    from fedjax_rec.runs.folders import read_json

    if given.titles is not None:
        return read_titles(given.titles)
    settings = read_json(Path(given.run) / "config.json")
    file = find_titles(settings.get("dataset") or "", settings.get("data_dir"))
    try:
        return {} if file is None else read_titles(file)
    except (ValueError, OSError) as problem:  # nobody asked for it
        tell(f"no titles: {problem}")
        return {}


def write_table(frame: "pd.DataFrame", style: str | None, out: str | None) -> None:
    """Write a table to a file, or print it.

    Args:
        frame: the table.
        style: one of `FORMATS`; None for that of the file's name.
        out: the file; None for standard output.

    Raises:
        ValueError: if parquet shall be printed, or pyarrow is missing for it.
        OSError: if the file exists, or cannot be written.
    """
    suffix = Path(out or "").suffix.removeprefix(".")
    style = style or (suffix if suffix in FORMATS else FORMATS[0])
    if out is not None and Path(out).exists():
        raise FileExistsError(f"{out} exists; name a new file")
    if style == "parquet":
        if out is None:
            raise ValueError("parquet is no text; name a file: --out lists.parquet")
        frame.to_parquet(out, index=False)
        return
    texts = {
        "csv": lambda: frame.to_csv(index=False, lineterminator="\n"),
        "json": lambda: frame.to_json(orient="records", indent=2, force_ascii=False) + "\n",
        "table": lambda: _aligned(frame),
    }
    text = texts[style]()
    if out is None:
        sys.stdout.write(text)
    else:
        Path(out).write_text(text, encoding="utf-8")


def _aligned(frame: "pd.DataFrame") -> str:
    """A table for a person."""
    columns = {
        name: [f"{value:.4f}" if name == "score" else printable(str(value)) for value in frame[name]]
        for name in frame.columns
    }
    rows = [list(columns), *zip(*columns.values(), strict=True)]
    return aligned(rows, left=range(len(columns))) + "\n"


def _read_users(path: str) -> list[str]:
    users = [line.strip() for line in _read_lines(path) if line.strip()]
    if not users:
        raise ValueError(f"{path} names no user; write one a line")
    return users


def _read_lines(path: str) -> list[str]:
    """Lines of a file of text, or of standard input."""
    if path == "-":
        return sys.stdin.read().splitlines()
    try:
        return Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise ValueError(f"{path} is no text in UTF-8: {problem}") from problem


def _read_histories(path: str, config: Mapping[str, Any]) -> dict[str, History]:
    """Histories by user, "" where the file names none; what separates fields is found as the readers find it."""
    from fedjax_rec.data.sniffing import find_separator

    lines = _read_lines(path)
    separator = find_separator("\n".join(lines).encode())
    reader = csv.reader(lines, delimiter=separator if separator in (",", ";", "|", "\t") else ",")
    try:
        return _parse_histories(reader, path, config)
    except csv.Error as problem:
        raise ValueError(f"{path}, line {reader.line_num}: {problem}") from problem


def _parse_histories(reader: Any, path: str, config: Mapping[str, Any]) -> dict[str, History]:
    header = [name.strip().casefold() for name in next(reader, [])]
    at: dict[str, int] = {}
    for role in ("user", "item", "rating"):  # by the name that the run was given, or by the role's own
        names = (str(config.get(role) or role).casefold(), role)
        known = next((name for name in names if name in header), None)
        if known is not None:
            at[role] = header.index(known)
    if "item" not in at:
        named = config.get("item") or "item"
        raise ValueError(f"{path}: its first line must name a column {named}, and perhaps user and rating")
    found: dict[str, History] = {}
    for row in filter(None, reader):
        where = f"{path}, line {reader.line_num}"
        if len(row) != len(header):
            raise ValueError(f"{where}: {len(row)} fields, and {len(header)} in the first line")
        user = row[at["user"]].strip() if "user" in at else ""
        if "user" in at and not user:
            raise ValueError(f"{where}: no user; name one in each line, or leave the column out")
        history = found.setdefault(user, History([], []))
        history.items.append(row[at["item"]])
        if "rating" in at:
            history.ratings.append(_rating_of(row[at["rating"]], where))
    if not found:
        raise ValueError(f"{path} has no items behind its first line")
    return found


def _rating_of(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(rating := float(text)):
            return rating
    raise ValueError(f"{where}: rating {text!r} is no number")
