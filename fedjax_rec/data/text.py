"""Delimited text to a frame: the fast parser first, and a scan line by line only when something is wrong.

Fields are counted for the whole file at once (separators against rows), so that a short line cannot pass
for a missing value. Ids are read as integers where their text is the plain decimal form of an integer and as
text otherwise, so that `007` and `7` stay two ids.
"""

import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedjax_rec.data.errors import DataError

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_ODD_INTEGER = re.compile(rb"[\t\n\r,;\"](?:[+ ]|-?0[0-9]|-0)")  # integers that are not in plain decimal form


class Text(NamedTuple):
    """A delimited file in memory."""

    path: Path
    data: bytes  # decompressed, without a byte-order mark; `::` already turned into tabs
    encoding: str  # "utf-8" or "latin-1"
    separator: str  # one character

    @property
    def quoting(self) -> int:
        """Quotes are quotes in comma- and semicolon-separated files, and plain characters between tabs."""
        return csv.QUOTE_NONE if self.separator == "\t" else csv.QUOTE_MINIMAL

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The fields of every line that is not blank, with its 1-based line number; slow."""
        lines = io.TextIOWrapper(io.BytesIO(self.data), self.encoding, newline="")
        reader = csv.reader(lines, delimiter=self.separator, quoting=self.quoting)  # type: ignore[arg-type]
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip()):
                    yield reader.line_num, fields
        except csv.Error as error:
            raise DataError(f"{self.path}:{reader.line_num}: malformed text ({error})") from error

    def where(self, record: int) -> str:
        """`file:line` of a record, counted from zero over the lines that are not blank; slow."""
        for index, (line, _) in enumerate(self.records()):
            if index == record:
                return f"{self.path}:{line}"
        return str(self.path)


class Table(NamedTuple):
    """A parsed file: a frame and the way back from its rows to the lines."""

    text: Text
    frame: pd.DataFrame
    header: bool  # whether the first record holds the names

    def where(self, row: int) -> str:
        """`file:line` of a row of the frame, counted from zero; slow."""
        return self.text.where(row + self.header)


def read_bytes(path: Path) -> bytes:
    """A file's contents, decompressed where it is gzip whatever its name.

    Args:
        path: the file.

    Returns:
        Its bytes.

    Raises:
        DataError: if it is missing, a directory, unreadable, or broken gzip.

    Example:
        >>> read_bytes(Path("/nowhere/u.data"))
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: /nowhere/u.data: no such file
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == _GZIP else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken or truncated gzip ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def open_text(path: Path, separator: str | None = None) -> Text:
    r"""Reads a delimited file into memory and settles its encoding and separator.

    Args:
        path: the file, plain or gzip.
        separator: one character, or `::`; found in the first line if None (tab, then semicolon, then comma).

    Returns:
        The text, with at least one line that is not blank.

    Raises:
        DataError: if the file is missing or empty, or mixes tabs with `::`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.dat"
        >>> _ = path.write_text("1::2::3::4")
        >>> open_text(path, "::").data
        b'1\t2\t3\t4'
    """
    data = read_bytes(path).removeprefix(_BOM)
    if not data.strip():
        raise DataError(f"{path}: empty file, no interactions")
    if separator == "::":
        if b"\t" in data:
            line = data[: data.index(b"\t")].count(b"\n") + 1
            raise DataError(f"{path}:{line}: a tab in a file whose separator is '::'")
        data, separator = data.replace(b"::", b"\t"), "\t"
    return Text(path, data, _encoding(data), separator or _separator(data))


def _encoding(data: bytes) -> str:
    if data.isascii():
        return "utf-8"
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _separator(data: bytes) -> str:
    first = data.lstrip().split(b"\n", 1)[0]
    return next((mark for mark in "\t;" if mark.encode() in first), ",")


def read_header(text: Text) -> list[str]:
    """The names in the first line.

    Args:
        text: a file with at least one line.

    Returns:
        The names, without surrounding blanks.

    Example:
        >>> read_header(Text(Path("a"), b"user, item", "utf-8", ","))
        ['user', 'item']
    """
    return [name.strip() for name in next(text.records())[1]]


def parse(text: Text, names: Sequence[str], *, ids: Sequence[str], header: bool) -> Table:
    r"""Parses a file into a frame with one row for each line that is not blank.

    Args:
        text: the file.
        names: the names of all its columns, in order.
        ids: the columns that hold ids: int64 if every id is a plain decimal integer, text otherwise.
        header: whether the first line holds the names.

    Returns:
        The table; columns that are not ids are numbers where all their fields are numbers.

    Raises:
        DataError: naming the line that has the wrong number of fields, or the file if it has no rows.

    Example:
        >>> parse(Text(Path("a"), b"7,1\n07,2", "utf-8", ","), ["u", "i"], ids=["u"], header=False).frame
            u  i
        0   7  1
        1  07  2
    """
    # Columns that nobody asks for may share a name, which pandas does not allow.
    names = [f"{name}#{n}" if name in names[:n] else name for n, name in enumerate(names)]
    odd = _ODD_INTEGER.search(text.data) or _ODD_INTEGER.match(b"\n" + text.data[:4])
    frame = _fast(text, names, dict.fromkeys(ids, str) if odd else {}, header)
    as_text = {name: str for name in ids if frame is not None and frame[name].dtype != "int64"}
    if as_text and not odd:
        frame = _fast(text, names, as_text, header)
    table = Table(text, pd.DataFrame() if frame is None else frame, header)
    separators = text.data.count(text.separator.encode())
    if frame is None or separators != (len(frame) + header) * (len(names) - 1):
        _check_fields(table, len(names))
    if not len(table.frame):
        raise DataError(f"{text.path}: no interactions{' after the header' if header else ''}")
    return table


def _fast(text: Text, names: Sequence[str], dtype: Mapping[str, type], header: bool) -> pd.DataFrame | None:
    skip = next(text.records())[0] if header else 0
    try:
        frame = pd.read_csv(
            io.BytesIO(text.data),
            sep=text.separator,
            header=None,
            names=list(names),
            skiprows=skip,
            dtype=dtype,
            na_filter=False,
            low_memory=False,
            quoting=text.quoting,
            encoding=text.encoding,
        )
    except pd.errors.EmptyDataError:
        return pd.DataFrame(columns=list(names))
    except (pd.errors.ParserError, ValueError):
        return None
    # Rows longer than the names become an index instead of an error.
    return frame if isinstance(frame.index, pd.RangeIndex) else None


def _check_fields(table: Table, expected: int) -> None:
    for line, fields in table.text.records():
        if len(fields) != expected:
            raise DataError(f"{table.text.path}:{line}: {len(fields)} fields instead of {expected}")
    if not len(table.frame.columns):
        raise DataError(f"{table.text.path}: cannot be parsed as text separated by {table.text.separator!r}")
