"""`fedjax-rec recommend`: lists of a trained model, for its users or for somebody new."""

import argparse
import contextlib
import csv
import math
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedjax_rec.cli.output import tell
from fedjax_rec.columns import aligned
from fedjax_rec.errors import printable

if TYPE_CHECKING:
    import pandas as pd

FORMATS = ("table", "csv", "json", "parquet")


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
        help="somebody whom the model has not met: a csv with a column item, and rating for models of ratings",
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
    from fedjax_rec.runs.lists import best_lists, rows_of, table_of, with_new_user
    from fedjax_rec.runs.recommender import load

    model = load(given.run)
    if given.new_user is not None:
        items, ratings = _read_items(given.new_user)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always", UserWarning)
            model = with_new_user(model, items, ratings)
        for warning in found:
            tell(str(warning.message))
    users = model.user_ids if given.all_users or given.new_user else given.user or _read_users(given.users)
    lists = best_lists(model, rows_of(model, users), given.k)
    write_table(table_of(model, lists, titles_of(given)), given.format, given.out)
    return 0


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


def _read_items(path: str) -> tuple[list[str], list[float] | None]:
    """Items, and ratings where the file has them, of a csv with a header, or of lines of items."""
    reader = csv.reader(_read_lines(path))
    try:
        return _parse_items(reader, path)
    except csv.Error as problem:
        raise ValueError(f"{path}, line {reader.line_num}: {problem}") from problem


def _parse_items(reader: Any, path: str) -> tuple[list[str], list[float] | None]:
    header = [name.strip().casefold() for name in next(reader, [])]
    if "item" not in header:
        raise ValueError(f"{path}: its first line must name a column item, and perhaps rating")
    items: list[str] = []
    ratings: list[float] = []
    for row in filter(None, reader):
        if len(row) != len(header):
            raise ValueError(
                f"{path}, line {reader.line_num}: {len(row)} fields, and {len(header)} in the first line"
            )
        items.append(row[header.index("item")])
        if "rating" in header:
            ratings.append(_rating_of(row[header.index("rating")], f"{path}, line {reader.line_num}"))
    return items, ratings if "rating" in header else None


def _rating_of(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(rating := float(text)):
            return rating
    raise ValueError(f"{where}: rating {text!r} is no number")
