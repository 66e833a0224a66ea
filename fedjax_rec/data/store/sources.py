"""What a store is converted from, as frames that come one after the other: text, parquet, frames of the caller's.

Only the columns that are asked for are read, and no more than a piece of a file is held.
"""

import csv
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.errors import DataError, no_such_path
from fedjax_rec.data.formats import peek_columns
from fedjax_rec.data.naming import guess
from fedjax_rec.data.sniffing import ROLES

_PARQUET = (".parquet", ".pq")
_TABLES = (".csv", ".tsv", ".txt", ".inter")  # the only such file of a folder is its events


class Source(NamedTuple):
    """Events that come in pieces."""

    name: str
    columns: Columns  # those that the frames have
    frames: Iterator[pd.DataFrame]  # with these columns alone
    num_rows: int | None  # in all; None if that is not known
    first_row: int  # how errors number the first one


def open_source(
    source: Any,
    named: Mapping[str, str | None],
    *,
    columns: str | None,
    separator: str | None,
    rows: int,
) -> Source:
    """Open whatever events come from.

    Args:
        source: a path of text, of parquet or of a folder of parquet files, or an iterable of frames of pandas.
        named: role -> name of its column, "none" to leave it out, None to find it.
        columns: of a text without a header.
        separator: of text.
        rows: how many come at a time.

    Returns:
        the source.

    Raises:
        DataError: if it is missing, or its columns cannot be told.
    """
    if not isinstance(source, str | Path):
        return _from_frames(source, named)
    path = Path(source).expanduser()
    if not path.exists():
        raise no_such_path(path)
    if path.is_dir() and not any(file.suffix.lower() in _PARQUET for file in path.rglob("*")):
        files = [file for file in sorted(path.iterdir()) if file.suffix in _TABLES]
        if len(files) != 1:
            raise DataError(
                f"{path}: a folder without parquet files or one table of events; give the path of a file"
            )
        path = files[0]
    if path.is_dir() or path.suffix.lower() in _PARQUET:
        return _from_parquet(path, named, rows)
    return _from_text(path, named, columns, separator, rows)


def _from_text(
    path: Path, named: Mapping[str, str | None], columns: str | None, separator: str | None, rows: int
) -> Source:
    """A table of text, parsed some rows at a time. Ids are text: "07" is not 7, wherever it stands."""
    text, reading = peek_columns(path, named, columns, separator)
    names = list(reading.names)
    wanted = [name for name in reading.columns if name is not None]
    places = [names.index(name) for name in wanted]
    options: dict[str, Any] = {
        "sep": {" ": r"\s+"}.get(text.was, text.was),
        "engine": "python" if text.was == "::" else "c",
        "header": None,
        "skiprows": 1 if reading.header else 0,
        "names": range(len(names)),
        "dtype": {names.index(name): str for name in reading.columns[:2]},
        "na_filter": False,
        "chunksize": rows,
        "encoding": text.encoding,
        **({} if text.was == "::" else {"low_memory": False}),
        "quoting": csv.QUOTE_NONE if text.separator == "\t" else csv.QUOTE_MINIMAL,
    }

    def frames() -> Iterator[pd.DataFrame]:
        try:
            with pd.read_csv(path, **options) as chunks:
                for chunk in chunks:
                    if not isinstance(chunk.index, pd.RangeIndex):  # what rows longer than the names become
                        raise DataError(
                            f"{path}: a line has more than {len(names)} fields; correct or delete it"
                        )
                    yield chunk[places].set_axis(wanted, axis=1)
        except (pd.errors.ParserError, UnicodeDecodeError, EOFError) as problem:
            reason = " ".join(str(problem).split())
            raise DataError(
                f"{path}: cannot be parsed as text separated by {text.was!r} ({reason})"
            ) from problem

    return Source(path.name.split(".")[0], reading.columns, frames(), None, 1 + reading.header)


def _from_parquet(path: Path, named: Mapping[str, str | None], rows: int) -> Source:
    """A parquet file, or all of a folder, whose subfolders may be partitions; categories stay codes."""
    try:
        import pyarrow as pa
        import pyarrow.dataset as ds
    except ImportError as error:
        extra = "pip install 'fedjax_rec[parquet]'"
        raise DataError(f"{path}: reading parquet needs pyarrow; install it with: {extra}") from error
    try:
        data = ds.dataset(path, format="parquet", partitioning="hive")
        names = list(data.schema.names)
        num_rows = data.count_rows()
    except (pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: not readable as parquet ({reason})") from error
    columns = _choose(str(path), names, named)
    wanted = [name for name in columns if name is not None]

    def frames() -> Iterator[pd.DataFrame]:
        try:
            for batch in data.to_batches(
                columns=wanted,
                batch_size=rows,
                batch_readahead=1,
                fragment_readahead=1,
                # what is read ahead into buffers stays there until the file ends, however large it is
                fragment_scan_options=ds.ParquetFragmentScanOptions(pre_buffer=False),
            ):
                if batch.num_rows:
                    yield batch.to_pandas()
        except (pa.ArrowException, OSError) as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{path}: not readable as parquet ({reason})") from error

    return Source(path.name.split(".")[0], columns, frames(), num_rows, 0)


def _from_frames(frames: Iterable[pd.DataFrame], named: Mapping[str, str | None]) -> Source:
    """Frames that somebody else makes; the first one says what the columns are."""
    coming = iter(frames)
    first = next(coming, None)
    if not isinstance(first, pd.DataFrame):
        what = "nothing" if first is None else type(first).__name__
        raise DataError(
            f"a store is made from a path or from frames of pandas, one after the other, not {what}"
        )
    columns = _choose("frames", list(map(str, first.columns)), named)
    wanted = [name for name in columns if name is not None]

    def cut() -> Iterator[pd.DataFrame]:
        yield first[wanted]
        for frame in coming:
            yield frame[wanted]

    return Source("frames", columns, cut(), None, 0)


def _choose(where: str, names: list[str], named: Mapping[str, str | None]) -> Columns:
    left_out: dict[str, Any] = {role: None for role in ROLES[2:] if named.get(role) == "none"}
    given = {role: name for role, name in named.items() if name is not None and role not in left_out}
    return guess(where, names, given)._replace(**left_out)
