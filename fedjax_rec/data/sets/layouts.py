r"""Readers of published files, as they come: each is told beforehand how its lines are to be understood.

| reader | what it reads |
|---|---|
| `read_layout` | lines of fields whose separator, names and times are known (`Layout`) |
| `read_lists` | `user item item ...` lines, as of LightGCN |
| `read_netflix` | `movie:` lines, each followed by `user,rating,date` lines |
| `read_mind` | `behaviors.tsv`: of each impression the news that were clicked |
| `read_steam` | a Python literal a line, as of `steam_reviews.json` |
| `read_parquet` | columns of parquet files, a batch of rows at a time |

All take one path or several, go through the files in chunks, and keep of the text no more than a chunk. A text may
be gzip by its name. What is wrong is refused in one line that names the file, and the line where each is an event.
"""

import ast
import csv
import gzip
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from fedjax_rec.data.columns import Columns, check_rule, gather
from fedjax_rec.data.duplicates import keep_one
from fedjax_rec.data.errors import DataError, unknown_column
from fedjax_rec.data.interactions import Interactions

_ROWS = 2**18  # of a chunk
_WEEK = 7 * 24 * 3600  # seconds
_LITERAL_ROWS = 2**14
_FAILURES = (
    OSError,
    EOFError,
    zlib.error,
    UnicodeDecodeError,
    pd.errors.ParserError,
    pd.errors.EmptyDataError,
)

Paths = Path | Sequence[Path]


class Layout(NamedTuple):
    """How the lines of a published file are to be understood."""

    columns: Columns  # which are taken
    names: tuple[str, ...] | None = None  # of all fields; None: they stand in the first line
    separator: str = ","  # or r"\s+": any number of blanks
    time: str = "s"  # of the times: "s", "ms", or a format of dates
    encoding: str = "utf-8"
    only: tuple[str, str] | None = None  # (column, value): other lines are left out


def read_layout(paths: Paths, *, layout: Layout, duplicates: str = "error") -> Interactions:
    r"""Reads lines of fields.

    Args:
        paths: the file, or several, one after the other.
        layout: how to understand them.
        duplicates: "error", or keep the "first" or the "last" event of a pair, by time.

    Returns:
        The interactions in file order, times in seconds.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ratings.txt"
        >>> _ = path.write_text("7 1 3.5\n8 1 4\n")
        >>> names = ("user", "item", "rating")
        >>> read_layout(path, layout=Layout(Columns(*names), names, r"\s+")).ratings
        array([3.5, 4. ], dtype=float32)
    """
    header = layout.names is None
    line = None if layout.only else 1 + header
    return _read(paths, lambda path: _fields(path, layout), layout.columns, duplicates, b"\n", line)


def read_lists(paths: Paths, *, duplicates: str = "error") -> Interactions:
    r"""Reads `user item item ...` lines; a user may have none, and lines of their own in several files.

    Args:
        paths: the file, or several.
        duplicates: as of `read_layout`.

    Returns:
        The pairs in file order, without ratings and times.

    Raises:
        DataError: naming the file of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "train.txt"
        >>> _ = path.write_text("0 5 6\n1 5\n")
        >>> read_lists(path).items
        array([0, 1, 0], dtype=int32)
    """

    def pairs(path: Path) -> Iterator[pd.DataFrame]:
        with _open(path) as source:
            while lines := list(islice(source, _LITERAL_ROWS)):
                words = [line.split() for line in lines]
                users = [line[0] for line in words for _ in line[1:]]
                yield pd.DataFrame(
                    {"user": users, "item": [item for line in words for item in line[1:]]}, dtype=str
                )

    return _read(paths, pairs, Columns("user", "item"), duplicates, b" ", None)


def read_netflix(paths: Paths, *, duplicates: str = "error") -> Interactions:
    r"""Reads the files of the Netflix prize.

    Args:
        paths: `combined_data_1.txt` and the others.
        duplicates: as of `read_layout`.

    Returns:
        The ratings in file order, days as seconds.

    Raises:
        DataError: naming the file of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "combined_data_1.txt"
        >>> _ = path.write_text("1:\n1488844,3,2005-09-06\n822109,5,2005-05-13\n2:\n822109,4,2005-09-05\n")
        >>> read_netflix(path).items, read_netflix(path).item_ids
        (array([0, 0, 1], dtype=int32), array([1, 2]))
    """
    columns = Columns("user", "movie", "rating", "date")

    layout = Layout(columns, time="%Y-%m-%d")

    def ratings(path: Path) -> Iterator[pd.DataFrame]:
        movie = ""
        with _open(path) as source:
            number = 0
            while lines := list(islice(source, _ROWS)):
                rows = []
                for line in lines:
                    number += 1
                    fields = line.strip().split(",")
                    if len(fields) == 1 and fields[0].endswith(":"):
                        movie = fields[0][:-1]
                    elif len(fields) == 3 and movie:
                        rows.append((fields[0], movie, fields[1], fields[2]))
                    else:
                        expected = "user,rating,date" if movie else "movie:"
                        raise DataError(
                            f"{path}:{number}: {line.strip()[:40]!r} is not of the form {expected}"
                        )
                yield _with_seconds(pd.DataFrame(rows, columns=list(columns), dtype=str), layout)

    return _read(paths, ratings, columns, duplicates, b"\n", None)


def read_mind(paths: Paths, *, duplicates: str = "error") -> Interactions:
    r"""Reads the clicks of `behaviors.tsv`; the histories that go before them have no times and are left out.

    Args:
        paths: the file, or those of several parts.
        duplicates: as of `read_layout`.

    Returns:
        The clicks in file order, times in seconds as the file has them, which knows no zone.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "behaviors.tsv"
        >>> _ = path.write_text("1\tU7\t11/11/2019 9:05:58 AM\tN1 N2\tN3-1 N4-0 N5-1\n")
        >>> read_mind(path).item_ids
        array(['N3', 'N5'], dtype='<U2')
    """
    columns = Columns("user", "item", None, "time")
    layout = Layout(columns, separator="\t", time="%m/%d/%Y %I:%M:%S %p")

    def clicks(path: Path) -> Iterator[pd.DataFrame]:
        with _open(path) as source:
            number = 0
            while lines := list(islice(source, _LITERAL_ROWS)):
                rows = []
                for line in lines:
                    number += 1
                    fields = line.rstrip("\r\n").split("\t")
                    if len(fields) != 5:
                        raise DataError(f"{path}:{number}: {len(fields)} fields instead of 5 between tabs")
                    shown = (news.rpartition("-") for news in fields[4].split())
                    rows += [(fields[1], item, fields[2]) for item, _, clicked in shown if clicked == "1"]
                yield _with_seconds(pd.DataFrame(rows, columns=["user", "item", "time"], dtype=str), layout)

    return _read(paths, clicks, columns, duplicates, b"-1", None)


def read_steam(paths: Paths, *, duplicates: str = "error") -> Interactions:
    r"""Reads a Python literal a line, as of `steam_reviews.json`.

    Args:
        paths: the file.
        duplicates: as of `read_layout`.

    Returns:
        The reviews in file order, days as seconds; nothing is executed.

    Raises:
        DataError: naming the file and line of whatever is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "steam_reviews.json"
        >>> _ = path.write_text("{u'username': u'ann', u'product_id': u'725280', u'date': u'2017-12-17'}\n")
        >>> read_steam(path).item_ids
        array([725280])
    """
    columns = Columns("username", "product_id", None, "date")
    layout = Layout(columns, time="%Y-%m-%d")
    keys = ("username", "product_id", "date")

    def reviews(path: Path) -> Iterator[pd.DataFrame]:
        with _open(path) as source:
            number = 0
            while lines := list(islice(source, _LITERAL_ROWS)):
                rows = []
                for line in lines:
                    number += 1
                    review = _literal(line)
                    if not isinstance(review, dict) or any(key not in review for key in keys):
                        raise DataError(f"{path}:{number}: not a dictionary with {', '.join(keys)}")
                    rows.append([str(review[key]) for key in keys])
                yield _with_seconds(pd.DataFrame(rows, columns=list(keys), dtype=str), layout)

    return _read(paths, reviews, columns, duplicates, b"\n", 1)


def read_parquet(
    paths: Paths, *, columns: Columns, weeks: bool = False, time: str = "s", duplicates: str = "error"
) -> Interactions:
    """Reads columns of parquet files, a batch of rows at a time.

    Args:
        paths: the file, or several.
        columns: which to take.
        weeks: times are the weeks that the files' names end with, `week_07.parquet`; rows are in order of time.
        time: of the times, "s" or "ms".
        duplicates: as of `read_layout`.

    Returns:
        The interactions in file order.

    Raises:
        DataError: naming the file and row of whatever is wrong, or that pyarrow is missing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "week_02.parquet"
        >>> pd.DataFrame({"user_id": [4, 4], "item_id": [8, 9]}).to_parquet(path)
        >>> read_parquet(path, columns=Columns("user_id", "item_id"), weeks=True).timestamps // 86400
        array([14, 14])
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        extra = "pip install 'fedjax_rec[parquet]'"
        raise DataError(f"reading parquet needs pyarrow; install it with: {extra}") from error
    listed = _listed(paths)
    wanted = [name for name in columns if name is not None]
    layout = Layout(columns._replace(timestamp="week") if weeks else columns, time=time)
    opened = []
    for path in listed:
        try:
            opened.append(pq.ParquetFile(path))
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{path}: not a readable parquet file ({' '.join(str(error).split())})"
            ) from error
        known = opened[-1].schema_arrow.names
        missing = [name for name in wanted if name not in known]
        if missing:
            raise unknown_column(str(path), missing[0], known)

    def rows(path: Path) -> Iterator[pd.DataFrame]:
        for batch in opened[listed.index(path)].iter_batches(_ROWS, columns=wanted):
            frame = batch.to_pandas()
            yield _with_seconds(frame, layout) if not weeks else frame.assign(week=_week_of(path) * _WEEK)

    total = sum(file.metadata.num_rows for file in opened)
    return _gather(listed, rows, layout.columns, duplicates, total, 1)


def _week_of(path: Path) -> int:
    digits = path.stem.rpartition("_")[2]
    if not digits.isdecimal():
        raise DataError(f"{path}: the name does not end with the number of a week, as week_07.parquet does")
    return int(digits)


def _literal(line: str) -> Any:
    try:
        return ast.literal_eval(line)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _listed(paths: Paths) -> list[Path]:
    return [paths] if isinstance(paths, Path) else list(paths)


def _read(
    paths: Paths,
    chunks: Callable[[Path], Iterator[pd.DataFrame]],
    columns: Columns,
    duplicates: str,
    mark: bytes,
    first_line: int | None,
) -> Interactions:
    """The events of all files, of which each has at most one more than `mark` stands in it."""
    listed = _listed(paths)
    for path in listed:
        if not path.is_file():
            raise DataError(f"{path}: no such file")
    total = sum(_count(path, mark) + 1 for path in listed)
    return _gather(listed, chunks, columns, duplicates, total, first_line)


def _gather(
    paths: list[Path],
    chunks: Callable[[Path], Iterator[pd.DataFrame]],
    columns: Columns,
    duplicates: str,
    max_rows: int,
    first_line: int | None,
) -> Interactions:
    check_rule(duplicates)
    starts: list[int] = []  # the number of each file's first event
    rows = 0

    def frames() -> Iterator[pd.DataFrame]:
        nonlocal rows
        for path in paths:
            starts.append(rows)
            try:
                for frame in chunks(path):
                    yield frame
                    rows += len(frame)
            except _FAILURES as error:
                raise DataError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error

    def where(row: int) -> str:
        number = bisect_right(starts, row) - 1
        within = row - starts[number]
        place = f" event {within + 1}" if first_line is None else f":{within + first_line}"
        return f"{paths[number]}{place}"

    events = gather(frames(), max_rows, columns, where)
    if not rows:
        raise DataError(f"{paths[0]}: no interactions")
    return keep_one(events, where, duplicates)


def _fields(path: Path, layout: Layout) -> Iterator[pd.DataFrame]:
    wanted = [name for name in layout.columns if name is not None]
    for lines in _chunks(path, layout, [*wanted, *(layout.only or ())[:1]]):
        kept = lines if layout.only is None else lines[lines[layout.only[0]] == layout.only[1]]
        yield _with_seconds(kept, layout)


def _chunks(path: Path, layout: Layout, wanted: list[str]) -> Iterator[pd.DataFrame]:
    """The wanted columns of a text, all of them as text, some rows at a time."""
    if layout.names is None:
        with _open(path, layout.encoding) as source:
            known = next(csv.reader([source.readline()], delimiter=layout.separator), [])
        for name in wanted:
            if name not in known:
                raise unknown_column(str(path), name, known)
    options: dict[str, Any] = {
        "sep": layout.separator,
        "header": 0 if layout.names is None else None,
        "names": None if layout.names is None else list(layout.names),
        "encoding": layout.encoding,
        "quoting": csv.QUOTE_MINIMAL if layout.separator in (",", ";") else csv.QUOTE_NONE,
    }
    options |= {"usecols": wanted, "dtype": str, "keep_default_na": False, "index_col": False}
    with pd.read_csv(path, chunksize=_ROWS, skip_blank_lines=False, **options) as reader:
        yield from reader


def _with_seconds(frame: pd.DataFrame, layout: Layout) -> pd.DataFrame:
    """Times as seconds, and ratings as numbers; what is none becomes NaN, which is refused with its row."""
    rating, timestamp = layout.columns[2:]
    changes: dict[str, Any] = {}
    if rating is not None:
        changes[rating] = pd.to_numeric(frame[rating], errors="coerce")
    if timestamp is not None and layout.time in ("s", "ms"):
        seconds = pd.to_numeric(frame[timestamp], errors="coerce")
        changes[timestamp] = seconds / 1000 if layout.time == "ms" else seconds
    elif timestamp is not None:
        changes[timestamp] = pd.to_datetime(frame[timestamp], format=layout.time, utc=True, errors="coerce")
    return frame.assign(**changes)


def _open(path: Path, encoding: str = "utf-8") -> IO[str]:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding=encoding)
    return path.open(encoding=encoding)


def _count(path: Path, mark: bytes) -> int:
    """How often a mark stands in a text, which is read once for that."""
    count = 0
    tail = b""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as source:
            while block := source.read(2**20):
                count += (tail + block).count(mark)
                tail = block[len(block) - len(mark) + 1 :]
    except _FAILURES as error:
        raise DataError(f"{path}: {' '.join(str(error).split()) or type(error).__name__}") from error
    return count
