"""A slow and strict reader of ratings files in plain Python: what the fast one is compared with.

It shares no code with `fedjax_rec.data`, only the rules, which are those of the docstring of its `readers`.
"""

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INTEGER = re.compile(r"[+-]?[0-9]+")
_PLAIN = re.compile(r"0|-?[1-9][0-9]*")
_MOVIELENS = ["userId", "movieId", "rating", "timestamp"]
_LONGEST_LINE = 2**17
_LONGEST_ID = 1000
_BLANKS = " \t\n\r\v\f"  # around numbers; around ids all that Unicode calls white space


class RefusedError(Exception):
    """The rules do not allow this file."""


class Content(NamedTuple):
    """What a file says, one entry for each event."""

    users: list[int | str]
    items: list[int | str]
    ratings: list[np.float32] | None
    times: list[int] | list[float] | None


def read(data: bytes, suffix: str, duplicates: str = "error") -> Content:
    """Read a file of ratings as the readers of MovieLens and RecBole must.

    Args:
        data: its bytes, unpacked.
        suffix: of its name: `.data`, `.dat`, `.inter` or `.csv`.
        duplicates: the rule for pairs that repeat.

    Returns:
        its content, in file order.

    Raises:
        RefusedError: if a rule is broken.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    _demand(b"\0" not in data, "a NUL byte")
    _demand(all(len(line) <= _LONGEST_LINE for line in re.split(rb"[\r\n]", data)), "an endless line")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        text = data.decode("latin-1")
    separator = {".data": "\t", ".dat": "::", ".inter": "\t"}.get(suffix) or _sniff(text)
    _demand(separator != "::" or "\t" not in text, "a tab")
    records = _records(text.replace(separator, "\t") if separator == "::" else text, separator[-1], separator)
    _demand(bool(records), "empty")
    positions = [0, 1, 2, 3]
    if suffix in (".inter", ".csv"):
        positions = _header(records[0], suffix == ".inter")
    width = 4 if suffix in (".data", ".dat") else len(records.pop(0))
    _demand(all(len(fields) == width for fields in records), "fields")
    _demand(bool(records), "no interactions")
    columns = [None if at < 0 else [fields[at] for fields in records] for at in positions]
    users, items, ratings, times = columns
    content = Content(_ids(users or []), _ids(items or []), _ratings(ratings), _times(times))
    return _without_duplicates(content, duplicates)


def _demand(holds: bool, reason: str) -> None:
    if not holds:
        raise RefusedError(reason)


def _sniff(text: str) -> str:
    """The first mark that stands as often in nine tenths of the first hundred lines as in the first of them."""
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()][:100]
    bare = [re.sub(r'"[^"]*"', "", line).strip(" ") for line in lines] or [""]
    marks = [mark for mark in ("\t", "::", ";", ",", "|", " ") if mark in bare[0]]
    for mark in marks:
        same = sum(line.count(mark) == bare[0].count(mark) for line in bare)
        if same >= 0.9 * len(bare):
            return mark
    return marks[0] if marks else ","


def _records(text: str, mark: str, separator: str) -> list[list[str]]:
    """The fields of all lines that are not blank; a quoted field of csv may hold marks, quotes and line ends."""
    mark = "\t" if separator == "::" else mark
    records: list[list[str]] = []
    position = 0
    end = len(text)
    while position < end:
        fields = []
        while True:
            if mark != "\t" and text[position : position + 1] == '"':
                field, position = _quoted(text, position + 1)
            else:
                start = position
                while position < end and text[position] not in (mark, "\r", "\n"):
                    position += 1
                field = text[start:position]
            fields.append(field)
            _demand(position >= end or text[position] in (mark, "\r", "\n"), "text behind a quote")
            if position >= end or text[position] != mark:
                break
            position += 1
        position += 2 if text[position : position + 2] == "\r\n" else 1
        if len(fields) > 1 or fields[0].strip(" \t"):
            records.append(fields)
    return records


def _quoted(text: str, position: int) -> tuple[str, int]:
    """A quoted field, and where it ends."""
    field = ""
    while True:
        close = text.find('"', position)
        _demand(close >= 0, "a quote that is not closed")
        field += text[position:close]
        if text[close + 1 : close + 2] != '"':
            return field, close + 1
        field += '"'
        position = close + 2


def _header(fields: Sequence[str], typed: bool) -> list[int]:
    """The positions of user, item, rating and time, -1 where there is none."""
    _demand(not any("\n" in name or "\r" in name for name in fields), "a name over two lines")
    names = [name.strip() for name in fields]
    _demand(not all(re.fullmatch(r"[+-]?[0-9.]+", name) for name in names), "no header")
    if typed:
        _demand(all(":" in name for name in names), "a name without a type")
        names = [name.rsplit(":", 1)[0] for name in names]
    wanted = ["user_id", "item_id", "rating", "timestamp"] if typed else _MOVIELENS
    found = [name in names for name in wanted]
    _demand(all(found[: 2 if typed else 4]), "a column is missing")
    _demand(all(names.count(name) < 2 for name in wanted), "a column twice")
    return [names.index(name) if there else -1 for name, there in zip(wanted, found, strict=True)]


def _ids(fields: Sequence[str]) -> list[int | str]:
    names = [field.strip() for field in fields]
    for name in names:
        _demand(0 < len(name) <= _LONGEST_ID and "\n" not in name and "\r" not in name, "an id")
    if all(_PLAIN.fullmatch(name) and -(2**63) <= int(name) < 2**63 for name in names):
        return [int(name) for name in names]
    return list(names)


def _number(field: str) -> float:
    _demand(bool(_NUMBER.fullmatch(field.strip(_BLANKS))), "no number")
    _demand(math.isfinite(float(field)), "not finite")
    return float(field)


def _ratings(fields: Sequence[str] | None) -> list[np.float32] | None:
    if fields is None:
        return None
    numbers = [_number(field) for field in fields]
    _demand(all(abs(number) <= float(np.finfo(np.float32).max) for number in numbers), "beyond float32")
    return [np.float32(number) for number in numbers]


def _times(fields: Sequence[str] | None) -> list[int] | list[float] | None:
    if fields is None:
        return None
    numbers = [_number(field) for field in fields]
    if all(_INTEGER.fullmatch(field.strip(_BLANKS)) for field in fields):
        whole = [int(field) for field in fields]
        _demand(all(-(2**63) <= time < 2**63 for time in whole), "beyond int64")
        return whole
    _demand(all(abs(number) < 2**53 for number in numbers), "beyond 2^53")
    return [int(number) for number in numbers] if all(n.is_integer() for n in numbers) else numbers


def _without_duplicates(content: Content, rule: str) -> Content:
    best: dict[tuple, int] = {}
    for row, pair in enumerate(zip(content.users, content.items, strict=True)):
        if pair in best:
            _demand(rule != "error", "a pair twice")
            times = content.times
            now, then = (0, 0) if times is None else (times[row], times[best[pair]])
            if (now >= then) if rule == "last" else (now < then):
                best[pair] = row
        else:
            best[pair] = row
    kept = sorted(best.values())
    return Content(*(None if column is None else [column[row] for row in kept] for column in content))  # type: ignore[arg-type]
