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

Text may be gzip, utf-8 or latin-1, with or without a byte-order mark, with any line ends; blank lines are
skipped. Every error is a one-line `DataError` that names the file and the line.
"""

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from fedjax_rec.data.columns import Columns, to_interactions
from fedjax_rec.data.errors import DataError, unknown_column
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.text import open_text, parse, read_header

_MOVIELENS = Columns("user", "item", "rating", "timestamp")
_ALIASES = {
    "user": ("user", "user_id", "userid", "uid"),
    "item": ("item", "item_id", "itemid", "iid", "movie_id", "movieid"),
    "rating": ("rating",),
    "timestamp": ("timestamp",),
}
_PARQUET = (".parquet", ".pq")
_TABLES = (".csv", ".tsv", ".txt", ".tab")
SUFFIXES = (".data", ".dat", ".inter", *_PARQUET, *_TABLES)  # what `read_any` knows, before any .gz


def read_movielens_100k(path: str | Path, *, duplicates: str = "error") -> Interactions:
    r"""Reads `u.data` of MovieLens 100K.

    Args:
        path: the file: user, item, rating (stars), timestamp (seconds) between tabs, no header.
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
    return _read_named(Path(path), lambda names: _resolve(str(path), names, columns), duplicates)


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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
    text = open_text(Path(path), "\t")
    header = read_header(text)
    untyped = [name for name in header if ":" not in name]
    if untyped:
        raise DataError(f"{path}:1: header field {untyped[0]!r} is not of the form name:type")
    names = [name.rsplit(":", 1)[0] for name in header]
    columns = _resolve(str(path), names, Columns(user, item, rating, timestamp), optional=True)
    table = parse(text, names, ids=columns[:2], header=True)
    return to_interactions(table.frame, columns, table.where, duplicates)


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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
    return _read_named(path, lambda names: _resolve(str(path), names, columns), duplicates)


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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
        duplicates: "error", or keep the "first" or the "last" of several events of one pair.

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
        return _read_named(path, lambda names: _guess(str(path), names, given), duplicates)
    raise DataError(f"{path}: unknown format {suffix!r}; known are {', '.join(SUFFIXES)} (text also as .gz)")


def _read_headless(path: Path, separator: str, duplicates: str) -> Interactions:
    table = parse(open_text(path, separator), _MOVIELENS, ids=_MOVIELENS[:2], header=False)  # type: ignore[arg-type]
    return to_interactions(table.frame, _MOVIELENS, table.where, duplicates)


def _read_named(path: Path, choose: Callable[[list[str]], Columns], duplicates: str) -> Interactions:
    text = open_text(path)
    names = read_header(text)
    columns = choose(names)
    table = parse(text, names, ids=columns[:2], header=True)
    return to_interactions(table.frame, columns, table.where, duplicates)


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
    for name in parts.values():
        if name is not None and name not in known:
            raise unknown_column(where, name, [str(column) for column in known])
        if known.count(name) > 1:
            raise DataError(f"{where}: column {name!r} stands there more than once")
    return Columns(**parts)


def _guess(where: str, known: list[str], given: dict[str, str]) -> Columns:
    folded = {str(name).casefold(): str(name) for name in known}
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
