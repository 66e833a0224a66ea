"""Delimited text to frames: the fast parser first, and a scan line by line only when something is wrong.

A file is parsed in chunks, so that no more than the text itself and one chunk is held. Fields are counted for the
whole file at once (separators against rows), so that a short line cannot pass for a missing value. Ids are read as
integers where their text is the plain decimal form of an integer and as text otherwise, so that `007` and `7` stay
two ids. What is no text at all is refused before it is parsed: NUL bytes, endless lines, gzip that unpacks to far
more than text can.
"""

import codecs
import csv
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.packed import read_bytes
from fedjax_rec.data.sniffing import find_separator, split_preamble

LONGEST_LINE = 2**17  # bytes
MAX_COLUMNS = 1000
BLOCK_BYTES = 2**20  # worked on at a time, at least
_BOM = b"\xef\xbb\xbf"
# integers that are not in plain decimal form
_UNUSUAL_INTEGER = re.compile(rb"[\t\n\r,;|\"](?:[+ ]|-?0[0-9]|-0)")


class Text(NamedTuple):
    """A delimited file in memory."""

    path: Path
    data: bytes  # unpacked, without a byte-order mark; `::` and runs of blanks already turned into tabs
    encoding: str  # "utf-8" or "latin-1"
    separator: str  # one character
    was: str = ""  # what separated the fields in the file
    names: tuple[str, ...] = ()  # of the columns, where the file says them in a way of its own

    @property
    def quoting(self) -> int:
        """Quotes are quotes between commas, semicolons and bars, and plain characters between tabs."""
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
    def max_rows(self) -> int:
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


def open_text(path: Path, separator: str | None = None) -> Text:
    r"""Reads a delimited file into memory and settles its encoding and separator.

    Args:
        path: the file, plain or packed.
        separator: one character, or `::`; a blank stands for any number of them; found in the first lines if None.

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
    return as_text(path, read_bytes(path), separator)


def as_text(path: Path, data: bytes, separator: str | None = None) -> Text:
    """Settles encoding and separator of what a file holds, or of its beginning.

    Args:
        path: names it in messages.
        data: its bytes.
        separator: as in `open_text`.

    Returns:
        The text, with at least one line that is not blank.

    Raises:
        DataError: if it is empty or no text, or mixes tabs with `::`.

    Example:
        >>> as_text(Path("a"), b"1|2").separator
        '|'
    """
    data = data.removeprefix(_BOM)
    if not data or data.isspace():
        raise DataError(f"{path}:1: empty file, no interactions")
    _refuse_binary(Text(path, data, "", ""))
    data, names = split_preamble(data, str(path))
    was = separator = separator or find_separator(data)
    if separator == " ":
        data = re.sub(rb"(?m)^ +| +$| +(?=\r)", b"", data)
        data = re.sub(rb" +", b"\t", data)
        separator = "\t"
    if separator == "::":
        if b"\t" in data:
            line = Text(path, data, "", "").line_at(data.index(b"\t"))
            raise DataError(f"{path}:{line}: a tab in a file whose separator is '::'")
        data = data.replace(b"::", b"\t")
        separator = "\t"
    return Text(path, data, _encoding(data), separator, was, names)


def _refuse_binary(text: Text) -> None:
    """NUL bytes, and lines too long, which contain a step without a line's end: looking at each step is enough."""
    path = text.path
    data = text.data
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
    decoder = codecs.getincrementaldecoder("utf-8")()
    view = memoryview(data)
    try:
        for start in range(0, len(data), BLOCK_BYTES):
            decoder.decode(view[start : start + BLOCK_BYTES], final=start + BLOCK_BYTES >= len(data))
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


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
    if len(fields) > MAX_COLUMNS:
        raise DataError(f"{text.path}:{line}: {len(fields):,} columns, at most {MAX_COLUMNS:,} are read")
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
    frames = list(parse_chunks(text, names, ids=ids, header=header, rows=text.max_rows))
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
    data = text.data
    num_rows = 0
    if rows is None:
        share = min(max(len(data) // 64, BLOCK_BYTES // 4), 16 * BLOCK_BYTES)
        rows = max(share * text.max_rows // len(data), 1)
    try:
        for frame in _chunks(text, _distinct(names), ids, header, rows):
            num_rows += len(frame)
            yield frame
    except _UnparsableError:
        check_fields(text, len(names))
        raise DataError(f"{text.path}: cannot be parsed as text separated by {text.separator!r}") from None
    miscounted = data.count(text.separator.encode()) != (num_rows + header) * (len(names) - 1)
    if miscounted or (text.quoting != csv.QUOTE_NONE and b'"' in data):
        check_fields(text, len(names))
    if not num_rows:
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
    seen: set[str] = set()
    return [
        f"{name}#{n}" if name in seen else (seen.add(name) or name)  # type: ignore[func-returns-value]
        for n, name in enumerate(names)
    ]


def _chunks(
    text: Text, names: list[str], ids: Sequence[str], header: bool, rows: int
) -> Iterator[pd.DataFrame]:
    """The chunks; once an id is not a plain integer, the parser starts again and takes the column as text."""
    unusual = _UNUSUAL_INTEGER.search(text.data) or _UNUSUAL_INTEGER.match(b"\n" + text.data[:4])
    text_columns: dict[str, type] = dict.fromkeys(ids, str) if unusual else {}
    num_yielded = 0
    while True:
        for number, frame in enumerate(_fast(text, names, text_columns, header, rows)):
            not_integer = [n for n in ids if n not in text_columns and frame[n].dtype != "int64"]
            if not_integer:
                text_columns |= dict.fromkeys(not_integer, str)
                break
            if number == num_yielded:
                yield frame
                num_yielded += 1
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
