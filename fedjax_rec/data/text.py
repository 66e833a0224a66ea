"""Delimited text to frames: the fast parser first, and a scan line by line only when something is wrong.

A file is parsed in chunks, so that no more than the text itself and one chunk is held. Fields are counted for the
whole file at once (separators against rows), so that a short line cannot pass for a missing value. Ids are read as
integers where their text is the plain decimal form of an integer and as text otherwise, so that `007` and `7` stay
two ids. What is no text at all is refused before it is parsed: NUL bytes, endless lines, gzip that unpacks to far
more than text can.
"""

import codecs
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

LONGEST_LINE = 2**17  # bytes
MOST_COLUMNS = 1000
MOST_UNPACKED = 100  # times the size of a gzip file, where it unpacks to more than
ANY_UNPACKED = 2**24  # bytes
PIECE = 2**20  # bytes worked on at a time, at least
_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
_QUOTED = re.compile(rb'"[^"\r\n]*"')
# integers that are not in plain decimal form
_ODD_INTEGER = re.compile(rb"[\t\n\r,;\"](?:[+ ]|-?0[0-9]|-0)")


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
        """The fields of every line that is not blank, with the 1-based number of its first line; slow."""
        lines = io.TextIOWrapper(io.BytesIO(self.data), self.encoding, newline="")
        reader = csv.reader(lines, delimiter=self.separator, quoting=self.quoting, strict=True)  # type: ignore[arg-type]
        line = 1
        try:
            for fields in reader:
                if len(fields) > 1 or (fields and fields[0].strip(" \t")):
                    yield line, fields
                line = reader.line_num + 1
        except csv.Error as error:
            raise DataError(
                f"{self.path}:{line}: malformed text ({error}); is a quote not closed?"
            ) from error

    def where(self, record: int) -> str:
        """`file:line` of a record, counted from zero over the lines that are not blank; slow."""
        for index, (line, _) in enumerate(self.records()):
            if index == record:
                return f"{self.path}:{line}"
        return str(self.path)

    def line_at(self, offset: int) -> int:
        """The 1-based number of the line that holds a byte."""
        ends = sum(self.data.count(end, 0, offset) for end in (b"\n", b"\r"))
        return 1 + ends - self.data.count(b"\r\n", 0, offset)

    @property
    def most_rows(self) -> int:
        """At least as many as there are lines."""
        return self.data.count(b"\n") + self.data.count(b"\r") + 1


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
        DataError: if it is missing, a directory, unreadable, broken gzip, or gzip that unpacks to more than 16 MiB
            and a hundred times its size.

    Example:
        >>> read_bytes(Path("/nowhere/u.data"))
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: /nowhere/u.data: no such file
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    try:
        with path.open("rb") as file:
            if file.read(2) != _GZIP:
                return path.read_bytes()
        return _unpacked(path)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}: broken or truncated gzip ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def _unpacked(path: Path) -> bytes:
    most = max(ANY_UNPACKED, MOST_UNPACKED * path.stat().st_size)
    data = io.BytesIO()
    with gzip.open(path) as source:
        while piece := source.read(PIECE):
            if data.tell() + len(piece) > most:
                raise DataError(
                    f"{path}: gzip of more than {most:,} bytes of text; unpack it, if that is right"
                )
            data.write(piece)
    return data.getvalue()


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
    if not data or data.isspace():
        raise DataError(f"{path}:1: empty file, no interactions")
    _refuse_odd_bytes(Text(path, data, "", ""))
    if separator == "::":
        if b"\t" in data:
            line = Text(path, data, "", "").line_at(data.index(b"\t"))
            raise DataError(f"{path}:{line}: a tab in a file whose separator is '::'")
        data, separator = data.replace(b"::", b"\t"), "\t"
    return Text(path, data, _encoding(data), separator or _separator(data))


def _refuse_odd_bytes(text: Text) -> None:
    """NUL bytes, and lines without an end, which contain a whole piece: looking at each piece is enough."""
    path, data = text.path, text.data
    zero = data.find(b"\0")
    if zero >= 0:
        hint = "; save it as utf-8" * (data[:2] in (b"\xff\xfe", b"\xfe\xff") or zero < 2)
        raise DataError(
            f"{path}:{text.line_at(zero)}: a NUL byte, so this is not utf-8 or latin-1 text{hint}"
        )
    step = LONGEST_LINE // 2
    for start in range(0, len(data) - step, step):
        if data.find(b"\n", start, start + step) < 0 and data.find(b"\r", start, start + step) < 0:
            first = max(data.rfind(b"\n", 0, start), data.rfind(b"\r", 0, start)) + 1
            ends = [end for end in (data.find(b"\n", start), data.find(b"\r", start)) if end >= 0]
            length = min(ends, default=len(data)) - first
            if length > LONGEST_LINE:
                line = text.line_at(first)
                raise DataError(
                    f"{path}:{line}: {length:,} bytes in a line, at most {LONGEST_LINE:,} are read; "
                    "are these ratings?"
                )


def _encoding(data: bytes) -> str:
    if data.isascii():
        return "utf-8"
    decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(data)
    try:
        for start in range(0, len(data), PIECE):
            decoder.decode(view[start : start + PIECE], final=start + PIECE >= len(data))
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _separator(data: bytes) -> str:
    """The first of tab, semicolon and comma that the first line has outside of quotes."""
    start = len(data) - len(data.lstrip(b" \t\r\n"))
    start = max(data.rfind(b"\n", 0, start), data.rfind(b"\r", 0, start)) + 1
    bare = _QUOTED.sub(b"", re.split(rb"[\r\n]", data[start : start + LONGEST_LINE + 1], maxsplit=1)[0])
    return next((mark for mark in "\t;" if mark.encode() in bare), ",")


def read_header(text: Text) -> list[str]:
    """The names in the first line.

    Args:
        text: a file with at least one line.

    Returns:
        The names, without surrounding blanks.

    Raises:
        DataError: naming the line, if a name goes on in the next line, or if there are too many.

    Example:
        >>> read_header(Text(Path("a"), b"user, item", "utf-8", ","))
        ['user', 'item']
    """
    line, fields = next(text.records())
    if len(fields) > MOST_COLUMNS:
        raise DataError(f"{text.path}:{line}: {len(fields):,} columns, at most {MOST_COLUMNS:,} are read")
    if any("\n" in name or "\r" in name for name in fields):
        raise DataError(
            f"{text.path}:{line}: a column's name goes on in the next line; is a quote not closed?"
        )
    return [name.strip() for name in fields]


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
    frames = list(parse_chunks(text, names, ids=ids, header=header, rows=text.most_rows))
    return Table(text, frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True), header)


def parse_chunks(
    text: Text, names: Sequence[str], *, ids: Sequence[str], header: bool, rows: int | None = None
) -> Iterator[pd.DataFrame]:
    r"""Parses a file, some rows at a time.

    Args:
        text: the file.
        names: the names of all its columns, in order.
        ids: the columns that hold ids: int64 if every id so far is a plain decimal integer, text otherwise.
        header: whether the first line holds the names.
        rows: of a chunk; by default what a 64th of the file holds, within 256 KiB and 16 MiB.

    Yields:
        The chunks; columns that are not ids are numbers where all their fields in the chunk are numbers.

    Raises:
        DataError: at the end, naming the line that has the wrong number of fields, or line 1 if there are no rows.
            Whoever stops before the end calls `check_fields`, whose error comes before any other.

    Example:
        >>> file = Text(Path("a"), b"7,1\n07,2", "utf-8", ",")
        >>> [len(chunk) for chunk in parse_chunks(file, ["u", "i"], ids=["u"], header=False, rows=1)]
        [1, 1]
    """
    data, found = text.data, 0
    if rows is None:
        share = min(max(len(data) // 64, PIECE // 4), 16 * PIECE)
        rows = max(share * text.most_rows // len(data), 1)
    try:
        for frame in _chunks(text, _distinct(names), ids, header, rows):
            found += len(frame)
            yield frame
    except _UnparsableError:
        check_fields(text, len(names))
        raise DataError(f"{text.path}: cannot be parsed as text separated by {text.separator!r}") from None
    odd = data.count(text.separator.encode()) != (found + header) * (len(names) - 1)
    if odd or (text.quoting != csv.QUOTE_NONE and b'"' in data):
        check_fields(text, len(names))
    if not found:
        raise DataError(f"{text.path}:1: no interactions{' after the header' if header else ''}")


def check_fields(text: Text, expected: int) -> None:
    """Counts the fields of every line; slow.

    Args:
        text: the file.
        expected: number of columns.

    Raises:
        DataError: naming the first line that has another number of fields, or a quote that is not closed.

    Example:
        >>> check_fields(Text(Path("a"), b"7,1,2", "utf-8", ","), 2)
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: a:1: 3 fields instead of 2
    """
    for line, fields in text.records():
        if len(fields) != expected:
            raise DataError(f"{text.path}:{line}: {len(fields)} fields instead of {expected}")


class _UnparsableError(Exception):
    """The fast parser gave up, and cannot say where."""


def _distinct(names: Sequence[str]) -> list[str]:
    """Columns that nobody asks for may share a name, which pandas does not allow."""
    met: set[str] = set()
    return [
        f"{name}#{n}" if name in met else (met.add(name) or name)  # type: ignore[func-returns-value]
        for n, name in enumerate(names)
    ]


def _chunks(
    text: Text, names: list[str], ids: Sequence[str], header: bool, rows: int
) -> Iterator[pd.DataFrame]:
    """The chunks; once an id is not a plain integer, the parser starts again and takes the column as text."""
    odd = _ODD_INTEGER.search(text.data) or _ODD_INTEGER.match(b"\n" + text.data[:4])
    texts: dict[str, type] = dict.fromkeys(ids, str) if odd else {}
    done = 0
    while True:
        for number, frame in enumerate(_fast(text, names, texts, header, rows)):
            loose = [name for name in ids if name not in texts and frame[name].dtype != "int64"]
            if loose:
                texts |= dict.fromkeys(loose, str)
                break
            if number == done:
                yield frame
                done += 1
        else:
            return


def _fast(
    text: Text, names: list[str], dtype: Mapping[str, type], header: bool, rows: int
) -> Iterator[pd.DataFrame]:
    try:
        with pd.read_csv(
            io.BytesIO(text.data),
            sep=text.separator,
            header=None,
            names=names,
            skiprows=next(text.records())[0] if header else 0,
            dtype=dict(dtype),
            na_filter=False,
            low_memory=False,
            quoting=text.quoting,
            encoding=text.encoding,
            chunksize=rows,
        ) as reader:
            for frame in reader:
                # Rows longer than the names become an index instead of an error.
                if not isinstance(frame.index, pd.RangeIndex):
                    raise _UnparsableError
                yield frame
    except pd.errors.EmptyDataError:
        return
    except (pd.errors.ParserError, UnicodeDecodeError, OverflowError) as error:
        raise _UnparsableError from error
