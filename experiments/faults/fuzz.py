"""Ratings files by chance: a sound one, and then anything that may happen to a file."""

import re
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from experiments.faults.registry import Outcome
from experiments.faults.strict import Content, RefusedError, read
from fedjax_rec.data import text
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.readers import (
    read_movielens_100k,
    read_movielens_csv,
    read_movielens_dat,
    read_recbole,
)

HEADERS = {
    ".csv": ("userId", "movieId", "rating", "timestamp"),
    ".inter": ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
}
READERS: dict[str, Callable[..., Interactions]] = {
    ".data": read_movielens_100k,
    ".dat": read_movielens_dat,
    ".csv": read_movielens_csv,
    ".inter": read_recbole,
}
MARKS = {".data": "\t", ".dat": "::", ".csv": ",", ".inter": "\t"}
FIELDS = (
    *(
        "",
        " ",
        "0",
        "-0",
        "007",
        "+7",
        " 7",
        "7 ",
        "-7",
        "1.0",
        "1e3",
        "1E400",
        ".5",
        "5.",
        "1_0",
        "0x1F",
        "1,5",
    ),
    *("nan", "NaN", "NA", "null", "None", "inf", "-Infinity", "True", "2147483648", "-2147483649", "1e39"),
    *(
        "9007199254740992",
        "9007199254740993",
        "9223372036854775807",
        "9223372036854775808",
        "-9223372036854775809",
    ),
    *(
        "99999999999999999999",
        "3.4028236e38",
        "1e-320",
        "0.1",
        "4.35",
        "1260759144.5",
        "José",
        "ß",
        "日本",
        "a b",
    ),
    *(
        '"',
        '""',
        '"a"',
        '"a,b"',
        '"a""b"',
        '"a\nb"',
        '"a"b',
        'a"b',
        ' "a"',
        "a\tb",
        "a;b",
        "a:b",
        "::",
        "\x1a",
        "\x0c",
    ),
    *("\u00a0", "\u2028", "\ufeff", "٣", "#", "\\", "\\N", "'", "--", "1 2", "12:30", "x" * 1001),
)
BYTES = (
    b"\0",
    b"\r",
    b"\n",
    b"\r\n",
    b'"',
    b",",
    b";",
    b"\t",
    b":",
    b" ",
    b"\xe9",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\x1a",
    b"-",
)
LINE_ENDS = ("\n", "\r\n", "\r", "\n\n", "\n \t\n")


def draw_file(rng: np.random.Generator) -> tuple[bytes, str, str]:
    """Draw a file: half of them sound but for their form, the others with one to three faults.

    Args:
        rng: of what is random.

    Returns:
        its bytes, its suffix, and a rule for duplicates.
    """
    suffix = str(rng.choice(list(MARKS)))
    pairs = rng.choice(64, size=rng.integers(1, 12), replace=bool(rng.random() < 0.2))
    rows = [_row(int(pair), rng) for pair in pairs]
    num_faults = int(rng.integers(1, 4)) if rng.random() < 0.5 else 0
    for _ in range(num_faults * int(rng.integers(2))):
        row = rows[rng.integers(len(rows))]
        row[rng.integers(len(row))] = FIELDS[rng.integers(len(FIELDS))]
    lines = [MARKS[suffix].join(row) for row in ([list(HEADERS[suffix])] if suffix in HEADERS else []) + rows]
    end = LINE_ENDS[rng.integers(len(LINE_ENDS))] if rng.random() < 0.3 else "\n"
    content = end.join(lines) + end * int(rng.random() < 0.8)
    data = content.encode("latin-1" if rng.random() < 0.2 else "utf-8", errors="replace")
    data = b"\xef\xbb\xbf" * int(rng.random() < 0.1) + data
    for _ in range(num_faults * int(rng.integers(2))):
        data = _corrupt(data, rng)
    return data, suffix, str(rng.choice(["error", "error", "first", "last"]))


def _row(pair: int, rng: np.random.Generator) -> list[str]:
    style = rng.integers(6)
    user, item = divmod(pair, 8)
    names = {0: (f"u{user}", f"é{item}"), 1: (str(user - 4), str(10**18 + item)), 2: (f" {user}", f"{item} ")}
    left, right = (
        names.get(int(style), (str(user), str(item))) if rng.random() < 0.3 else (str(user), str(item))
    )
    rating = f"{rng.normal():.{rng.integers(0, 18)}f}" if style == 3 else str(rng.integers(1, 11) / 2)
    time = (
        f"{10**9 * rng.random():.{rng.integers(0, 9)}f}"
        if style == 4 and rng.random() < 0.3
        else rng.integers(5)
    )
    return [left, right, rating, str(time)]


def _corrupt(data: bytes, rng: np.random.Generator) -> bytes:
    """A byte changed, put in or taken away, a piece doubled, or the end cut off."""
    first, second = sorted(int(n) for n in rng.integers(len(data) + 1, size=2))
    byte = BYTES[rng.integers(len(BYTES))] if rng.random() < 0.8 else bytes([rng.integers(256)])
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: data[:first] + byte + data[first + 1 :],
        lambda: data[:first] + byte + data[first:],
        lambda: data[:first] + data[first + 1 :],
        lambda: data[:second] + data[first:],
        lambda: data[:first],
    )
    return ways[rng.integers(len(ways))]()


def compare_readers(
    path: Path, data: bytes, duplicates: str = "error", piece: int = text.BLOCK_BYTES
) -> Outcome:
    """Read a file with the fast reader and the strict one, and compare.

    Args:
        path: where to write it; its suffix is that of the format.
        data: its bytes.
        duplicates: the rule for pairs that repeat.
        piece: bytes that the fast reader works on at a time.

    Returns:
        "survived" if both read the same or both refuse it, the fast one with file and line; "silent" if it reads
        anything else, "lost" if it refuses what the rules allow or fails in another way.
    """
    path.write_bytes(data)
    try:
        expected: Content | None = read(data, path.suffix, duplicates)
    except RefusedError:
        expected = None
    try:
        with mock.patch.object(text, "BLOCK_BYTES", piece):
            found = READERS[path.suffix](path, duplicates=duplicates)
    except DataError as error:
        named = re.match(rf"{re.escape(str(path))}:\d+: ", str(error)) and len(str(error).splitlines()) == 1
        return "survived" if named and expected is None else "lost"
    except Exception:  # whatever else it is, it is not the promised one
        return "lost"
    return "survived" if expected is not None and agree(found, expected) else "silent"


def agree(found: Interactions, expected: Content) -> bool:
    """Compare what two readers read.

    Args:
        found: by the fast one.
        expected: by the strict one.

    Returns:
        whether every id, rating and time is the same and of its type, and ids are coded by first appearance.
    """
    users = found.user_ids[found.users].tolist()
    items = found.item_ids[found.items].tolist()
    same = users == expected.users and items == expected.items
    dense = found.user_ids.tolist() == list(dict.fromkeys(users))
    dense &= found.item_ids.tolist() == list(dict.fromkeys(items))
    for array, wanted in ((found.ratings, expected.ratings), (found.timestamps, expected.times)):
        if array is None or wanted is None:
            same &= array is None and wanted is None
        else:
            same &= array.tolist() == np.asarray(wanted).tolist() and array.dtype == np.asarray(wanted).dtype
    return bool(same and dense)
