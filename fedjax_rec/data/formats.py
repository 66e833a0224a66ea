"""Files of events of any usual format, told by what is in them: `read_any`, and `read_file`, which says how.

| what | how it is told |
|---|---|
| packed: gzip, bz2, zip with one file | by the first bytes |
| parquet | by the first bytes |
| RecBole's `.inter` | by its header of `name:type`, or its name |
| json lines, also as Python literals | a brace begins the text |
| arff; comments in lines that begin with % | `@relation` begins the text |
| `user item item ...`, as LightGCN's files | blanks between whole numbers, in lines of many lengths |
| tables of text | everything else: separator, header and columns by `sniffing` |

What text may hold is said in `readers`. What cannot be told is asked for: a line that may be a header or an event,
a column that may be anything.
"""

import ast
import json
import shlex
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.data.columns import Columns, check_rule, gather
from fedjax_rec.data.duplicates import keep_one
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.naming import ID_NAMES, guess, resolve
from fedjax_rec.data.packed import inner_name, read_bytes
from fedjax_rec.data.readers import frame_events, gather_text, open_parquet, read_recbole
from fedjax_rec.data.sniffing import NUM_LINES, ROLES, SEPARATORS, guess_columns, has_header, is_lists
from fedjax_rec.data.text import Text, as_text, open_text, read_header
from fedjax_rec.data.vocabulary import Where

_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
_PARQUET = b"PAR1"
_LISTS = ["user", "items"]
_PEEK = 2**20  # bytes looked at to find out how a file is written
_CHUNK = 2**16  # lines of json at a time
_IGNORED = ("-", "_", "")
_TIME_WORDS = ("time", "date", "utc")


class Asked(NamedTuple):
    """What is said of a file; None is to be found out."""

    named: Mapping[str, str]  # role -> name of its column
    left_out: tuple[str, ...]  # roles without a column
    columns: list[str] | None  # of a text without a header, in their order
    separator: str | None


class Reading(NamedTuple):
    """How a file was understood."""

    kind: str  # "table", "lists", "json lines", "parquet", "recbole"
    separator: str | None  # of text
    header: bool  # whether the first line holds names
    names: tuple[str, ...]  # of all its columns, as they are or as they were taken
    columns: Columns  # those that were taken
    notes: tuple[str, ...]  # what a reader should know: what was guessed, merged, or left alone
    merged: str = "error"  # by which rule pairs were merged that repeat; "error" if none does


def read_any(
    path: str | Path,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    columns: str | None = None,
    separator: str | None = None,
    duplicates: str = "error",
) -> Interactions:
    r"""Reads a file of events, whatever its format.

    Args:
        path: the file, of any name.
        user: name of the users' column; found by the usual names if None.
        item: the same for the items.
        rating: the same for the ratings, which may be absent; "none" leaves them out.
        timestamp: the same for the times, which may be absent; "none" leaves them out.
        columns: names of the columns of a text without a header, with commas between them, such as
            "user,item,-,timestamp"; "user,items" for lines of a user and its items.
        separator: between fields of text: one of `sniffing.SEPARATORS`, by name or as it is; found if None.
        duplicates: "error", or what becomes of a pair that repeats: `duplicates.keep_one` says it.

    Returns:
        The interactions in file order.

    Raises:
        DataError: if a column is missing, or anything in the file is wrong or cannot be told.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_bytes(b"userId,itemId\n1,2\n")
        >>> read_any(path).item_ids
        array([2])
        >>> _ = path.write_bytes(b"AB0C|B000|5.0\nAB0C|B001|4.0\n")
        >>> read_any(path).ratings
        array([5., 4.], dtype=float32)
    """
    return read_file(
        path,
        user=user,
        item=item,
        rating=rating,
        timestamp=timestamp,
        columns=columns,
        separator=separator,
        duplicates=duplicates,
    )[0]


def read_file(
    path: str | Path,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    columns: str | None = None,
    separator: str | None = None,
    duplicates: str = "error",
) -> tuple[Interactions, Reading]:
    r"""Reads a file of events, and says how it was understood.

    Args:
        path: as in `read_any`, like the following.
        user: name of the users' column.
        item: name of the items' column.
        rating: name of the ratings' column.
        timestamp: name of the column of times.
        columns: of a text without a header.
        separator: of text.
        duplicates: what becomes of pairs that repeat.

    Returns:
        the interactions, and the reading.

    Raises:
        DataError: if a column is missing, or anything in the file is wrong or cannot be told.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_bytes(b"0 5 6\n1 5\n")
        >>> read_file(path)[1].kind
        'lists'
    """
    check_rule(duplicates)
    path = Path(path)
    suffix = Path(inner_name(path)).suffix
    if suffix in _PICKLED:
        raise DataError(f"{path}: {suffix} may hold pickled code and is never read; save the ratings as csv")
    named = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    asked = _ask(str(path), named, columns, separator)
    if _is_parquet(path):
        events, where, reading = _read_parquet(path, asked)
    elif suffix == ".inter" and asked.columns is None:
        return _read_recbole(path, asked, duplicates)
    else:
        events, where, reading = _read_text(path, asked)
    kept = keep_one(events, where, duplicates)
    if len(kept.users) != len(events.users):
        merged = (
            f"duplicates={duplicates!r}: events of a pair that repeats are one, {len(events.users):,} -> "
            f"{len(kept.users):,}"
        )
        reading = reading._replace(notes=(*reading.notes, merged), merged=duplicates)
    return kept, reading


def peek_columns(
    path: Path, named: Mapping[str, str | None], columns: str | None, separator: str | None
) -> tuple[Text, Reading]:
    """How a table of text is written, of its first lines alone.

    Args:
        path: the file.
        named: role -> name of its column, "none" to leave it out, None to find it.
        columns: of a text without a header, as of `read_any`.
        separator: the same.

    Returns:
        its first lines, and the reading.

    Raises:
        DataError: if it is no table of text, or its columns cannot be told.
    """
    asked = _ask(str(path), named, columns, separator)
    text = _peek(path, asked.separator)
    rows = [[field.strip() for field in fields] for _, fields in islice(text.records(), NUM_LINES)]
    is_listed = asked.columns == _LISTS or (
        text.was == " " and not (text.names or asked.columns) and is_lists(rows)
    )
    if is_listed or text.names or text.data.lstrip()[:1] == b"{":
        raise DataError(f"{path}: is read from csv, tsv, .inter and parquet in pieces; make a csv of it")
    if asked.columns is None and all(":" in name for name in rows[0]) and inner_name(path).endswith(".inter"):
        names, header = [name.rsplit(":", 1)[0] for name in rows[0]], True
        notes: tuple[str, ...] = ()
    else:
        names, header, notes = _name_columns(text, rows, asked)
    found, more = _choose(text.where(0), names, asked)
    return text, Reading("table", text.was, header, tuple(names), found, (*notes, *more))


def flags_of(reading: Reading) -> str:
    """The flags of the command line that say how a file was understood.

    Args:
        reading: of the file.

    Returns:
        them, as one would write them; empty where no other reading is possible.

    Example:
        >>> flags_of(Reading("table", "|", False, ("user", "item", "when"), Columns("user", "item"), ()))
        '--columns user,item,- --separator bar'
    """
    merged = [f"--duplicates {reading.merged}"] if reading.merged != "error" else []
    if reading.kind == "lists":
        return " ".join([f"--columns {','.join(_LISTS)}", *merged])
    flags = [
        f"--{role} {shlex.quote(str(name or 'none'))}" for role, name in reading.columns._asdict().items()
    ]
    if reading.kind == "table" and not reading.header:
        roles = {name: role for role, name in reading.columns._asdict().items()}
        flags = [f"--columns {','.join(roles.get(name, '-') for name in reading.names)}"]
    if reading.kind == "table":
        flags.append(
            f"--separator {next(name for name, mark in SEPARATORS.items() if mark == reading.separator)}"
        )
    return " ".join([*flags, *merged])


def _ask(path: str, named: Mapping[str, str | None], columns: str | None, separator: str | None) -> Asked:
    """Checks what is said of a file."""
    left_out = tuple(role for role in ROLES[2:] if named[role] == "none")
    given = {role: name for role, name in named.items() if name is not None and role not in left_out}
    if separator is not None:
        separator = SEPARATORS.get(separator, {"\\t": "\t", "space": " "}.get(separator, separator))
        if separator not in SEPARATORS.values():
            known = ", ".join(SEPARATORS)
            raise DataError(f"{path}: separator={separator!r} (--separator) is none of {known}")
    names = None if columns is None else [name.strip() for name in columns.split(",")]
    if names is not None and names != _LISTS:
        wanted = [given.get(role, role) for role in ROLES[:2]]
        wanted += [given[role] for role in ROLES[2:] if role in given]
        for name in wanted:
            if names.count(name) != 1:
                raise DataError(
                    f"{path}: columns={columns!r} (--columns) must hold {name!r} once; such as user,item,rating,"
                    "timestamp, with - for what is not read"
                )
    return Asked(given, left_out, names, separator)


def _is_parquet(path: Path) -> bool:
    if path.suffix.lower() in (".parquet", ".pq"):
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == _PARQUET


def _read_parquet(path: Path, asked: Asked) -> tuple[Interactions, Where, Reading]:
    frame = open_parquet(path)
    names = list(map(str, frame.columns))
    columns, notes = _choose(str(path), names, asked)
    events, where = frame_events(frame, columns, str(path))
    return events, where, Reading("parquet", None, True, tuple(names), columns, notes)


def _read_recbole(path: Path, asked: Asked, duplicates: str) -> tuple[Interactions, Reading]:
    left_out: dict[str, Any] = dict.fromkeys(asked.left_out)
    events = read_recbole(path, **asked.named, **left_out, duplicates=duplicates)
    header = read_header(open_text(path, "\t"))
    plain = [name.rsplit(":", 1)[0] for name in header]
    usual = {"user": "user_id", "item": "item_id", "rating": "rating", "timestamp": "timestamp"}
    names = {**usual, **asked.named}
    found = {
        role: name if name in plain and role not in asked.left_out else None for role, name in names.items()
    }
    return events, Reading("recbole", "\t", True, tuple(plain), Columns(**found), ())  # type: ignore[arg-type]


def _read_text(path: Path, asked: Asked) -> tuple[Interactions, Where, Reading]:
    """Text, of whichever kind."""
    if asked.columns == _LISTS:
        return _read_lists(open_text(path, asked.separator or " "))
    text = _peek(path, asked.separator)
    if text.data.lstrip()[:1] == b"{":
        return _read_json(open_text(path, ","), asked)
    rows = [[field.strip() for field in fields] for _, fields in islice(text.records(), NUM_LINES)]
    if text.was == " " and not (text.names or asked.columns) and is_lists(rows):
        return _read_lists(open_text(path, " "))
    names, header, notes = _name_columns(text, rows, asked)
    columns, more = _choose(text.where(0), names, asked)
    events, where = gather_text(path, text.was, lambda _: (names, columns), header=header)
    reading = Reading("table", text.was, header, tuple(names), columns, (*notes, *more))
    return events, where, reading


def _peek(path: Path, separator: str | None) -> Text:
    """The first lines of a file, which say how it is written."""
    start = read_bytes(path, _PEEK)
    end = max(start.rfind(b"\n"), start.rfind(b"\r"))
    if len(start) >= _PEEK:
        start = start[:end] if start[:end].strip() else read_bytes(path)
    return as_text(path, start, separator)


def _name_columns(text: Text, rows: list[list[str]], asked: Asked) -> tuple[list[str], bool, tuple[str, ...]]:
    """Names of the columns, whether they stand in the first line, and what to say of them."""
    where = text.where(0)
    if text.names:
        return list(text.names), False, ()
    if asked.columns is not None:
        if all(name.casefold() in ID_NAMES for name in rows[0][:2]):
            shown = ", ".join(rows[0][:8])
            raise DataError(f"{where}: a header ({shown}); leave out columns=... (--columns)")
        return [f"-{n}" if name in _IGNORED else name for n, name in enumerate(asked.columns)], False, ()
    named = [name.casefold() for name in asked.named.values()]
    if has_header(rows[0], [*ID_NAMES, *named], where):
        return read_header(text), True, ()
    if asked.named:
        shown = ", ".join(rows[0][:8])
        raise DataError(
            f"{where}: no header ({shown}), so no column can be named ({dict(asked.named)}); say which they are "
            "with columns=... (--columns)"
        )
    names = guess_columns([row for row in rows if len(row) == len(rows[0])], where)
    return (
        names,
        False,
        (f"no header: columns taken for {','.join(names)}; columns=... (--columns) says otherwise",),
    )


def _choose(where: str, names: list[str], asked: Asked) -> tuple[Columns, tuple[str, ...]]:
    """Which columns are taken, and what to say of those that are not."""
    if asked.columns is not None:
        found = {role: asked.named.get(role, role) for role in ROLES}
        columns = Columns(**{role: name if name in names else None for role, name in found.items()})  # type: ignore[arg-type]
        columns = resolve(where, names, columns)
    else:
        columns = guess(where, names, dict(asked.named))
    left_out: dict[str, Any] = dict.fromkeys(asked.left_out)
    columns = columns._replace(**left_out)
    notes = []
    if columns.timestamp is None and "timestamp" not in asked.left_out:
        notes = [
            f"column {name!r} is not taken for times; timestamp={name!r} (--timestamp) does"
            for name in names
            if any(word in name.casefold() for word in _TIME_WORDS) and name not in columns
        ]
    return columns, tuple(notes)


def _read_lists(text: Text) -> tuple[Interactions, Where, Reading]:
    """Lines of a user and its items; a user alone has no event."""
    lines = [(line, fields) for line, fields in text.records() if len(fields) > 1 and any(fields[1:])]
    if not lines:
        raise DataError(f"{text.path}:1: no interactions")
    items = [[field for field in fields[1:] if field] for _, fields in lines]
    counts = [len(own) for own in items]
    frame = pd.DataFrame(
        {
            "user": np.repeat([fields[0] for _, fields in lines], counts),
            "item": [item for own in items for item in own],
        }
    )
    for name in frame:
        if frame[name].str.fullmatch("0|[1-9][0-9]{0,17}").all():
            frame[name] = frame[name].astype(np.int64)
    ends = np.cumsum(counts)

    def where(row: int) -> str:
        return f"{text.path}:{lines[int(np.searchsorted(ends, row, side='right'))][0]}"

    columns = Columns("user", "item")
    events = gather([frame], len(frame), columns, where)
    note = "each line is taken for a user and its items; columns=... (--columns) says otherwise"
    return events, where, Reading("lists", text.was, False, ("user", "items"), columns, (note,))


def _read_json(text: Text, asked: Asked) -> tuple[Interactions, Where, Reading]:
    """An object a line."""
    rows = _objects(text)
    first = list(islice(rows, NUM_LINES))
    names = list(dict.fromkeys(name for _, row in first for name in row))
    columns, notes = _choose(f"{text.path}:1", names, asked)
    wanted = [name for name in columns if name is not None]
    numbers: list[int] = []  # lines of the rows

    def chunks() -> Iterator[pd.DataFrame]:
        source = _objects(text)
        while chunk := list(islice(source, _CHUNK)):
            numbers.extend(line for line, _ in chunk)
            values = {name: [row.get(name, "") for _, row in chunk] for name in wanted}
            for name, column in values.items():
                for (line, _), value in zip(chunk, column, strict=True):
                    if isinstance(value, dict | list):
                        raise DataError(
                            f"{text.path}:{line}: {name!r} holds several values, and one is needed"
                        )
            yield pd.DataFrame(values)

    def where(row: int) -> str:
        return f"{text.path}:{numbers[row]}"

    events = gather(chunks(), text.max_rows, columns, where)
    return events, where, Reading("json lines", None, True, tuple(names), columns, notes)


def _objects(text: Text) -> Iterator[tuple[int, dict[str, Any]]]:
    """The object of each line that is not blank, with its number."""
    for number, line in enumerate(text.data.decode(text.encoding).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = _literal(line)
        if not isinstance(row, dict):
            raise DataError(
                f"{text.path}:{number}: not one object of json in one line; is the text one long value?"
            )
        yield number, row


def _literal(line: str) -> Any:
    """A Python literal, as old dumps have them; None if it is none."""
    try:
        return ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
