"""Readers: files and frames of ratings or clicks to `Interactions`.

| reader | what it reads |
|---|---|
| `read_movielens_100k` | `u.data`: user, item, rating, timestamp between tabs, no header |
| `read_movielens_dat` | `ratings.dat` of 1M and 10M: the same between `::` |
| `read_movielens_csv` | `ratings.csv` of 20M, 25M, 32M, latest: `userId,movieId,rating,timestamp` |
| `read_recbole` | `.inter`: tabs and a typed header, `user_id:token item_id:token rating:float ...` |
| `read_table` | any csv, tsv or parquet with named columns |
| `from_frame` | a pandas frame |
| `read_any` | a path: chooses one of the above by the name |

What is read, and what is refused in a one-line `DataError` that names the file, the line and the way out:

| | rule |
|---|---|
| text | gzip or plain; utf-8, else latin-1; a byte-order mark; any line ends; no NUL bytes, no line over 128 KiB |
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

import pandas as pd

from fedjax_rec.data.columns import Columns, check_rule, gather, to_interactions
from fedjax_rec.data.duplicates import keep_one
from fedjax_rec.data.errors import DataError, unknown_column
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.text import Text, check_fields, open_text, parse_chunks, read_header

_MOVIELENS = Columns("user", "item", "rating", "timestamp")
_ALIASES = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movie_id", "movieid"),
    "rating": ("rating",),
    "timestamp": ("timestamp",),
}
_NUMBER = re.compile(r"[+-]?[0-9.]+")
_PICKLED = (".pkl", ".pickle", ".pt", ".pth", ".npy", ".npz", ".joblib")
_PARQUET = (".parquet", ".pq")
_TABLES = (".csv", ".tsv", ".txt", ".tab")
SUFFIXES = (".data", ".dat", ".inter", *_PARQUET, *_TABLES)  # what `read_any` knows, before any .gz


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
    return _read_named(Path(path), lambda where, names: _resolve(where, names, columns), duplicates)


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
        found = _resolve(where, plain, Columns(user, item, rating, timestamp), optional=True)
        typed = dict(zip(plain, header, strict=True))
        return Columns(*(None if name is None else typed[name] for name in found))  # type: ignore[arg-type]

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
    if path.suffix.lower() in _PARQUET:
        return _from_frame(_read_parquet(path), columns, str(path), duplicates)
    return _read_named(path, lambda where, names: _resolve(where, names, columns), duplicates)


def from_frame(
    df: pd.DataFrame,
    *,
    user: str = "user",
    item: str = "item",
    rating: str | None = "rating",
    timestamp: str | None = "timestamp",
    duplicates: str = "error",
) -> Interactions:
    """Takes the interactions out of a pandas frame.

    Args:
        df: one row for each event; its index plays no part.
        user: name of the users' column.
        item: name of the items' column.
        rating: name of the ratings' column; the default may be absent, None leaves it out.
        timestamp: name of the column of times (seconds or dates); the same.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in the frame's order.

    Raises:
        DataError: naming the column, or the row counted from zero, of whatever is wrong.

    Example:
        >>> from_frame(pd.DataFrame({"user": [5, 5, 3], "item": ["x", "y", "x"]})).users
        array([0, 0, 1], dtype=int32)
    """
    columns = _resolve("frame", list(df.columns), Columns(user, item, rating, timestamp), optional=True)
    return _from_frame(df, columns, "frame", duplicates)


def read_any(
    path: str | Path,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    duplicates: str = "error",
) -> Interactions:
    r"""Reads a file with the reader that its name calls for.

    Args:
        path: `*.data`, `*.dat`, `*.inter`, `*.csv`, `*.tsv`, `*.txt` or `*.parquet`; text may end in `.gz`.
        user: name of the users' column; found by the usual names if None.
        item: the same for the items.
        rating: the same for the ratings, which may be absent.
        timestamp: the same for the times (seconds), which may be absent.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order.

    Raises:
        DataError: if the format is unknown, a column is missing, or anything in the file is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> _ = path.write_bytes(b"userId,itemId\n1,2\n")
        >>> read_any(path).item_ids
        array([2])
    """
    path = Path(path)
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    named = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    given = {part: name for part, name in named.items() if name is not None}
    if suffix in (".data", ".dat"):
        if given:
            raise DataError(f"{path}: {suffix} files have no header, so no column can be named ({given})")
        return _read_headless(path, "\t" if suffix == ".data" else "::", duplicates)
    if suffix == ".inter":
        return read_recbole(path, **given, duplicates=duplicates)
    if suffix in _PARQUET:
        frame = _read_parquet(path)
        return _from_frame(frame, _guess(str(path), list(frame.columns), given), str(path), duplicates)
    if suffix in _TABLES:
        return _read_named(path, lambda where, names: _guess(where, names, given), duplicates)
    if suffix in _PICKLED:
        raise DataError(f"{path}: {suffix} may hold pickled code and is never read; save the ratings as csv")
    raise DataError(f"{path}: unknown format {suffix!r}; known are {', '.join(SUFFIXES)} (text also as .gz)")


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
        where, names = text.where(0), read_header(text)
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
    """Parses and codes a file chunk by chunk; its text is let go with the last one, before ids are written out."""
    check_rule(duplicates)
    text = open_text(path, separator)
    names, columns = choose(text)
    most, chunks = text.most_rows, parse_chunks(text, names, ids=columns[:2], header=header)
    del text  # what is left to parse holds it

    def where(row: int) -> str:
        return open_text(path, separator).where(row + header)

    try:
        events = gather(chunks, most, columns, where)
    except DataError:
        check_fields(open_text(path, separator), len(names))
        raise
    return keep_one(events, where, duplicates)


def _from_frame(frame: pd.DataFrame, columns: Columns, source: str, duplicates: str) -> Interactions:
    columns = _resolve(source, list(frame.columns), columns)
    if not len(frame):
        raise DataError(f"{source}: no interactions")
    return to_interactions(frame, columns, lambda row: f"{source} row {row}", duplicates)


def _read_parquet(path: Path) -> pd.DataFrame:
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


def _resolve(where: str, known: list[str], columns: Columns, *, optional: bool = False) -> Columns:
    """Checks the names; with `optional`, a rating or timestamp under its default name may be absent."""
    parts = columns._asdict()
    for part in ("rating", "timestamp") if optional else ():
        if parts[part] == part and part not in known:
            parts[part] = None
    if parts["user"] == parts["item"]:
        raise DataError(f"{where}: column {parts['user']!r} cannot be both the users and the items")
    for name in parts.values():
        if name is not None and name not in known:
            raise unknown_column(where, name, [str(column) for column in known])
        if known.count(name) > 1:
            raise DataError(f"{where}: column {name!r} stands there more than once")
    return Columns(**parts)


def _guess(where: str, known: list[str], given: dict[str, str]) -> Columns:
    folded: dict[str, str] = {}
    for name in map(str, known):
        alias = folded.setdefault(name.casefold(), name)
        if alias != name and not given and any(name.casefold() in aliases for aliases in _ALIASES.values()):
            raise DataError(
                f"{where}: columns {alias!r} and {name!r} differ in case only; say which with user=..."
            )
    found = {
        part: next((folded[alias] for alias in aliases if alias in folded), None)
        for part, aliases in _ALIASES.items()
    } | given
    for part in ("user", "item"):
        if found[part] is None:
            shown = ", ".join(map(str, known[:12]))
            raise DataError(
                f"{where}: no column looks like the {part}s; name it with {part}=... (columns: {shown})"
            )
    return _resolve(where, known, Columns(**found))  # type: ignore[arg-type]
