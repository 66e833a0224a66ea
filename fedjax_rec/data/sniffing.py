"""How a text of events is written, found in its first lines: separator, header, columns, kind."""

import re
from collections.abc import Iterable, Sequence

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.times import looks_like_time

SEPARATORS = {"tab": "\t", "::": "::", "semicolon": ";", "comma": ",", "bar": "|", "blank": " "}
ROLES = ("user", "item", "rating", "timestamp")
NUM_LINES = 100  # looked at
_HEAD = 2**20  # bytes in which they are looked for
_AGREE = 0.9  # of the lines have as many separators as most, where one separates
_QUOTED = re.compile(rb'"[^"\r\n]*"')
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[0-9]+")
_COMMENTS = re.compile(rb"\s*(?:%[^\r\n]*[\r\n]+\s*)*")
_ARFF_HEAD = re.compile(rb"@relation.*?^[ \t]*@data[^\r\n]*", re.IGNORECASE | re.MULTILINE | re.DOTALL)
_ATTRIBUTE = re.compile(
    rb"^[ \t]*@attribute[ \t]+('[^'\r\n]*'|\"[^\"\r\n]*\"|\S+)", re.IGNORECASE | re.MULTILINE
)


def first_lines(data: bytes) -> list[bytes]:
    r"""The first lines that are not blank.

    Args:
        data: a text.

    Returns:
        at most `NUM_LINES` lines, without their ends.

    Example:
        >>> first_lines(b"\na,b\r\n \nc,d")
        [b'a,b', b'c,d']
    """
    lines: list[bytes] = []
    end = min(len(data), _HEAD)
    start = 0
    while start < end and len(lines) < NUM_LINES:
        ends = (data.find(mark, start, end) for mark in (b"\n", b"\r"))
        stop = min((at for at in ends if at >= 0), default=end)
        line = data[start:stop]
        if line.strip() and (stop < end or not lines or end == len(data)):  # the last may be cut
            lines.append(line)
        start = stop + 1
    return lines


def split_preamble(data: bytes, path: str) -> tuple[bytes, tuple[str, ...]]:
    r"""Takes away what stands before the events: comments behind %, and the head of arff.

    Args:
        data: a text.
        path: names the file in messages.

    Returns:
        the text, with blank lines in the place of what went, and the names of the columns that the head has said.

    Raises:
        DataError: if nothing is behind it.

    Example:
        >>> split_preamble(b"@relation r\n@attribute user string\n@data\n7\n", "")
        (b'\n\n\n7\n', ('user',))
    """
    comments = _COMMENTS.match(data)
    start = comments.end() if comments and b"%" in comments[0] else 0
    head = _ARFF_HEAD.match(data, start) or _ARFF_HEAD.match(data)
    stop = head.end() if head else start
    if not stop:
        return data, ()
    blank = re.sub(rb"[^\r\n]+", b"", data[:stop])
    if not data[stop:].strip():
        raise DataError(f"{path}:1: no interactions behind the head of the file")
    names = [name.strip(b"'\"").decode("latin-1") for name in _ATTRIBUTE.findall(head[0])] if head else []
    return blank + data[stop:], tuple(names)


def find_separator(data: bytes) -> str:
    r"""What stands between the fields of a text.

    Args:
        data: a text that is not blank.

    Returns:
        the first of `SEPARATORS` that stands as often in nearly all lines, or else the first in line 1, or else a
        comma. What quotes enclose does not count.

    Example:
        >>> [find_separator(text) for text in (b"a,b\nc,d", b"1|Up, or not|3\n2|Go|4", b"1::2::3", b"0 5\n1 6 7")]
        [',', '|', '::', ' ']
    """
    bare = [_QUOTED.sub(b"", line).strip(b" ") for line in first_lines(data)] or [b""]
    marks = [mark for mark in SEPARATORS.values() if mark.encode() in bare[0]]
    for mark in marks:
        counts = [line.count(mark.encode()) for line in bare]
        if counts.count(counts[0]) >= _AGREE * len(counts):
            return mark
    return marks[0] if marks else ","


def is_lists(rows: Sequence[Sequence[str]]) -> bool:
    """Whether lines are a user and then items of that user, as in LightGCN's files, and not one event each.

    Args:
        rows: fields of the first lines, between blanks.

    Returns:
        True if all are whole numbers, and lines are of different lengths or longer than any event.

    Example:
        >>> is_lists([["0", "5", "6"], ["1", "5"], ["2"]]), is_lists([["0", "5", "3"], ["1", "5", "4"]])
        (True, False)
    """
    if not all(_INTEGER.fullmatch(field) for row in rows for field in row):
        return False
    lengths = [len(row) for row in rows]
    most = max(map(lengths.count, lengths))
    return min(lengths) > len(ROLES) or most < _AGREE * len(lengths)


def has_header(first: Sequence[str], known: Sequence[str], where: str) -> bool:
    """Whether the first line holds the names of the columns.

    Args:
        first: its fields.
        known: names that a user's or an item's column may have, in lower case.
        where: names the line in messages.

    Returns:
        True if one of them is such a name, and False if one is a number or a date.

    Raises:
        DataError: if neither is so: it may be a header or the first event.

    Example:
        >>> has_header(["who", "itemId"], ["item", "itemid"], ""), has_header(["AB0C", "B000", "5.0"], [], "")
        (True, False)
    """
    names = [field.strip() for field in first]
    if any(name.casefold() in known for name in names):
        return True
    if any(_NUMBER.fullmatch(name) or looks_like_time(name) for name in names):
        return False
    shown = ", ".join(names[:8])
    raise DataError(
        f"{where}: names of columns, or the first event? ({shown}) name the columns with user=... and item=... "
        "(--user, --item); or say that there is no header with columns='user,item' (--columns user,item)"
    )


def guess_columns(rows: Sequence[Sequence[str]], where: str) -> list[str]:
    """The columns of a text without a header.

    Args:
        rows: fields of the first lines, all of the same number.
        where: names the first line in messages.

    Returns:
        user, item, and then rating, timestamp or both.

    Raises:
        DataError: if there are others than two to four columns, or what is behind the ids can be neither.

    Example:
        >>> guess_columns([["5", "7", "1260759144"]], ""), guess_columns([["5", "7", "4.5"]], "")
        (['user', 'item', 'timestamp'], ['user', 'item', 'rating'])
    """
    columns = list(zip(*rows, strict=False))
    behind = columns[2:]
    # by most fields, so that a broken one is named when it is read
    numeric = [_most(bool(_NUMBER.fullmatch(field.strip())) for field in column) for column in behind]
    timed = [_most(looks_like_time(field) for field in column) for column in behind]
    if len(columns) == len(ROLES) - 2:
        return ["user", "item"]
    if len(columns) == len(ROLES) - 1 and timed[0]:
        return ["user", "item", "timestamp"]
    if len(columns) == len(ROLES) - 1 and numeric[0]:
        return ["user", "item", "rating"]
    if len(columns) == len(ROLES) and numeric[0] and not timed[0] and (numeric[1] or timed[1]):
        return list(ROLES)
    shown = ", ".join(field.strip() for field in rows[0][:8])
    raise DataError(
        f"{where}: no header, and {len(columns)} columns ({shown}); say which they are, with - for others, as "
        "columns='user,item,-,timestamp' (--columns)"
    )


def _most(holds: Iterable[bool]) -> bool:
    answers = list(holds)
    return sum(answers) > len(answers) / 2
