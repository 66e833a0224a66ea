"""Readers: files and frames of ratings or clicks to `Interactions`.

| reader | what it reads |
|---|---|
| `read_movielens_100k` | `u.data`: user, item, rating, timestamp between tabs, no header |
| `read_movielens_dat` | `ratings.dat` of 1M and 10M: the same between `::` |
| `read_movielens_csv` | `ratings.csv` of 20M, 25M, 32M, latest: `userId,movieId,rating,timestamp` |
| `read_recbole` | `.inter`: tabs and a typed header, `user_id:token item_id:token rating:float ...` |
| `read_table` | any csv, tsv or parquet with named columns |
| `from_frame` | a frame in memory: pandas, polars, pyarrow, a dict of columns |

A file of whichever format: `formats.read_any`.

What is read, and what is refused in a one-line `DataError` that names the file, the line and the way out:

| | rule |
|---|---|
| text | plain or packed; utf-8, else latin-1; a byte-order mark; any line ends; no NULs, no line over 128 KiB |
| lines | blank ones are skipped; all others have the same number of fields, with nothing behind them |
| quotes | around fields of csv only, closed, with nothing behind them; plain characters between tabs and `::` |
| header | where the table above has one, and nowhere else; the columns asked for, each once |
| ids | names, be they negative, fractional or huge: coded by first appearance; not empty; blanks around are cut |
| ratings | finite, within float32 |
| times | whole seconds within int64; once there is a point or an exponent, all below 2^53 |
| duplicates | refused, or the "first" or "last" event kept: by time, by line where there is none or it is equal |
| size | at least one event; added memory at most 4 times a text over 16 MB, if most of it is not new ids |

A user without an event has no line, and so does not exist; users that a filter empties are counted by the splits.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from fedjax_rec.data.columns import Columns, check_rule, gather
from fedjax_rec.data.duplicates import keep_one
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.frames import Frame, open_frame
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.naming import guess, resolve
from fedjax_rec.data.text import Text, check_fields, open_text, parse_chunks, read_header
from fedjax_rec.data.vocabulary import Where
from fedjax_rec.errors import check_arguments, wrong_type

_MOVIELENS = Columns("user", "item", "rating", "timestamp")
_NUMBER = re.compile(r"[+-]?[0-9.]+")
PARQUET = (".parquet", ".pq")
# that names of files of events end in, before any .gz; others are read as well
SUFFIXES = (
    *(
        ".data",
        ".dat",
        ".inter",
        ".csv",
        ".tsv",
        ".txt",
        ".tab",
        ".base",
        ".rating",
        ".json",
        ".jsonl",
        ".arff",
    ),
    *PARQUET,
)


def read_movielens_100k(path: str | Path, *, duplicates: str = "error") -> Interactions:
    r"""Reads `u.data` of MovieLens 100K.

    Args:
        path: the file: user, item, rating (stars), timestamp (seconds) between tabs, no header.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "u.data"
        >>> _ = path.write_bytes(b"196\t242\t3\t881250949\n")
        >>> read_movielens_100k(path).user_ids
        array([196])
    """
    return _read_headless(Path(path), "\t", duplicates)


def read_movielens_dat(path: str | Path, *, duplicates: str = "error") -> Interactions:
    r"""Reads `ratings.dat` of MovieLens 1M or 10M.

    Args:
        path: the file: user, item, rating (stars), timestamp (seconds) between `::`, no header.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ratings.dat"
        >>> _ = path.write_bytes(b"1::1193::5::978300760\n")
        >>> read_movielens_dat(path).ratings
        array([5.], dtype=float32)
    """
    return _read_headless(Path(path), "::", duplicates)


def read_movielens_csv(path: str | Path, *, duplicates: str = "error") -> Interactions:
    r"""Reads `ratings.csv` of MovieLens 20M, 25M, 32M or latest.

    Args:
        path: the file, with the header `userId,movieId,rating,timestamp`.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ratings.csv"
        >>> _ = path.write_bytes(b"userId,movieId,rating,timestamp\n1,31,2.5,1260759144\n")
        >>> read_movielens_csv(path).timestamps
        array([1260759144])
    """
    columns = Columns("userId", "movieId", "rating", "timestamp")
    return _read_named(Path(path), lambda where, names: resolve(where, names, columns), duplicates)


def read_recbole(
    path: str | Path,
    *,
    user: str = "user_id",
    item: str = "item_id",
    rating: str | None = "rating",
    timestamp: str | None = "timestamp",
    duplicates: str = "error",
) -> Interactions:
    r"""Reads RecBole's atomic `.inter` format.

    Args:
        path: the file, tab-separated, with a header of `name:type` fields.
        user: name of the users' column.
        item: name of the items' column.
        rating: name of the ratings' column; the default may be absent, None leaves it out.
        timestamp: name of the column of times (seconds); the default may be absent, None leaves it out.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.inter"
        >>> _ = path.write_bytes(b"user_id:token\titem_id:token\nu1\ti9\n")
        >>> read_recbole(path).item_ids
        array(['i9'], dtype='<U2')
    """

    def choose(where: str, header: list[str]) -> Columns:
        untyped = [name for name in header if ":" not in name]
        if untyped:
            raise DataError(f"{where}: header field {untyped[0]!r} is not of the form name:type")
        plain = [name.rsplit(":", 1)[0] for name in header]
        names = resolve(where, plain, Columns(user, item, rating, timestamp), optional=True)
        typed = dict(zip(plain, header, strict=True))
        return Columns(*(None if name is None else typed[name] for name in names))  # type: ignore[arg-type]

    return _read_named(Path(path), choose, duplicates, "\t")


def read_table(
    path: str | Path,
    *,
    user: str,
    item: str,
    rating: str | None = None,
    timestamp: str | None = None,
    duplicates: str = "error",
) -> Interactions:
    r"""Reads any csv, tsv or parquet file with named columns.

    Args:
        path: the file; the separator (tab, semicolon or comma) is found in its first line.
        user: name of the users' column.
        item: name of the items' column.
        rating: name of the ratings' column, or None for implicit feedback.
        timestamp: name of the column of times (seconds, or dates in parquet), or None.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and line (parquet: row) of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "clicks.csv"
        >>> _ = path.write_bytes(b"who,what\nana,tea\nana,coffee\n")
        >>> read_table(path, user="who", item="what").items
        array([0, 1], dtype=int32)
    """
    path = Path(path)
    columns = Columns(user, item, rating, timestamp)
    if path.suffix.lower() in PARQUET:
        return _from_frame(open_parquet(path), columns, str(path), duplicates)
    return _read_named(path, lambda where, names: resolve(where, names, columns), duplicates)


def from_frame(
    df: Frame,
    *,
    user: str | int = "user",
    item: str | int = "item",
    rating: str | int | None = "rating",
    timestamp: str | int | None = "timestamp",
    duplicates: str = "error",
) -> Interactions:
    """Takes the interactions out of a frame: of pandas, polars, pyarrow, ..., or a dict of columns.

    Args:
        df: one row for each event (`frames` says what is read); an index plays no part.
        user: name of the users' column; the default stands for any usual name, as `read_any` knows them.
        item: the same for the items.
        rating: the same for the ratings; the default may be absent, None leaves it out.
        timestamp: the same for the times (seconds or dates).
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in the frame's order.

    Raises:
        ArgumentError: if it is no frame.
        DataError: naming the column, or the row counted from zero, of whatever is wrong.

    Example:
        >>> from_frame(pd.DataFrame({"user": [5, 5, 3], "item": ["x", "y", "x"]})).users
        array([0, 0, 1], dtype=int32)
    """
    check_arguments(from_frame, locals())
    table = open_frame(df)
    if table is None:
        raise wrong_type(
            "from_frame", "df", df, "a frame (of pandas, polars or pyarrow, or a dict of columns)"
        )
    names = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    given = {
        role: name
        for role, name in names.items()
        if name is not None and (name != role or name in table.names)
    }
    guessed = guess("from_frame", table.names, given)
    left_out: dict[str, Any] = {role: None for role, name in names.items() if name is None}
    columns = guessed._replace(**left_out)
    taken = table.take(list(dict.fromkeys(name for name in columns if name is not None)))
    return _from_frame(taken, columns, "frame", duplicates)


def _read_headless(path: Path, separator: str, duplicates: str) -> Interactions:
    def choose(text: Text) -> tuple[list[str], Columns]:
        line, first = next(text.records())
        if len(first) == len(_MOVIELENS) and all(field.strip().isidentifier() for field in first):
            raise DataError(
                f"{path}:{line}: a header ({', '.join(first)}), and this format has none; delete it"
            )
        return list(filter(None, _MOVIELENS)), _MOVIELENS

    return _read_text(path, separator, choose, duplicates, header=False)


def _read_named(
    path: Path, choose: Callable[[str, list[str]], Columns], duplicates: str, separator: str | None = None
) -> Interactions:
    def named(text: Text) -> tuple[list[str], Columns]:
        where = text.where(0)
        names = read_header(text)
        if all(_NUMBER.fullmatch(name) for name in names):
            shown = ", ".join(names[:4])
            raise DataError(
                f"{where}: numbers ({shown}) where the names of the columns should be; add a header"
            )
        return names, choose(where, names)

    return _read_text(path, separator, named, duplicates, header=True)


def _read_text(
    path: Path,
    separator: str | None,
    choose: Callable[[Text], tuple[list[str], Columns]],
    duplicates: str,
    *,
    header: bool,
) -> Interactions:
    check_rule(duplicates)
    return keep_one(*gather_text(path, separator, choose, header=header), duplicates)


def gather_text(
    path: Path,
    separator: str | None,
    choose: Callable[[Text], tuple[list[str], Columns]],
    *,
    header: bool,
) -> tuple[Interactions, Where]:
    """Parses and codes a file chunk by chunk; its text is let go with the last one, before ids are written out.

    Args:
        path: the file.
        separator: as in `open_text`.
        choose: from the text to the names of all columns, and those to take.
        header: whether the first line holds the names.

    Returns:
        the events, repeated ones too, and what names a row of them.

    Raises:
        DataError: naming the file and line of whatever is wrong.
    """
    text = open_text(path, separator)
    names, columns = choose(text)
    max_rows = text.max_rows
    chunks = parse_chunks(text, names, ids=columns[:2], header=header)
    del text  # what is left to parse holds it

    def where(row: int) -> str:
        return open_text(path, separator).where(row + header)

    try:
        events = gather(chunks, max_rows, columns, where)
    except DataError:
        check_fields(open_text(path, separator), len(names))
        raise
    return events, where


def _from_frame(frame: pd.DataFrame, columns: Columns, source: str, duplicates: str) -> Interactions:
    check_rule(duplicates)
    return keep_one(*frame_events(frame, columns, source), duplicates)


def frame_events(frame: pd.DataFrame, columns: Columns, source: str) -> tuple[Interactions, Where]:
    """Codes and checks the columns of a frame.

    Args:
        frame: a row for each event.
        columns: those to take.
        source: what it is called in messages.

    Returns:
        the events, repeated ones too, and what names a row of them.

    Raises:
        DataError: naming the row, counted from zero, of whatever is wrong.
    """
    columns = resolve(source, list(frame.columns), columns)
    if not len(frame):
        raise DataError(f"{source}: no interactions")

    def where(row: int) -> str:
        return f"{source} row {row}"

    return gather([frame], len(frame), columns, where), where


def open_parquet(path: Path) -> pd.DataFrame:
    """Reads a parquet file.

    Args:
        path: the file.

    Returns:
        all its columns.

    Raises:
        DataError: if pyarrow is not installed, or the file is missing or no parquet.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        extra = "pip install 'fedjax_rec[parquet]'"
        raise DataError(f"{path}: reading parquet needs pyarrow; install it with: {extra}") from error
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    try:
        return pq.read_table(path).to_pandas()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not a readable parquet file ({reason})") from error
