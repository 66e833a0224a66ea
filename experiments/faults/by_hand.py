"""Ratings files by hand: what each of them says, or the line that must be named."""

from typing import NamedTuple

HEAD = b"userId,movieId,rating,timestamp\n"
INTER = b"user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
Rows = tuple[tuple, ...]


class Case(NamedTuple):
    """A file and what must come of it."""

    suffix: str
    data: bytes
    expected: Rows | int  # (user, item, rating, time) of each event, or the line that is refused
    duplicates: str = "error"


CASES = {
    "plain": Case(".data", b"1\t2\t3\t4\n5\t6\t7.5\t8\n", ((1, 2, 3, 4), (5, 6, 7.5, 8))),
    "double colons": Case(".dat", b"1::2::3::4\n5::6::7::8", ((1, 2, 3, 4), (5, 6, 7, 8))),
    "a single colon": Case(".dat", b"1:2::3::3::4\n", (("1:2", 3, 3, 4),)),
    "tab between double colons": Case(".dat", b"1::2::3::4\n1::3::3\t4\n", 2),
    "byte-order mark": Case(".csv", b"\xef\xbb\xbf" + HEAD + b"1,2,3,4\n", ((1, 2, 3, 4),)),
    "utf-16": Case(".csv", (HEAD + b"1,2,3,4\n").decode().encode("utf-16"), 1),
    "utf-8": Case(".csv", HEAD + "José,2,3,4\n".encode(), (("José", 2, 3, 4),)),
    "latin-1": Case(".csv", HEAD + "José,2,3,4\n".encode("latin-1"), (("José", 2, 3, 4),)),
    "CRLF": Case(".csv", HEAD.replace(b"\n", b"\r\n") + b"1,2,3,4\r\n", ((1, 2, 3, 4),)),
    "CR alone": Case(".data", b"1\t2\t3\t4\r5\t6\t7\t8\r", ((1, 2, 3, 4), (5, 6, 7, 8))),
    "blank lines": Case(".data", b"\n1\t2\t3\t4\n\n  \n5\t6\tx\t8\n", 5),
    "quoted commas": Case(".csv", HEAD + b'"a,b",2,3,4\n', (("a,b", 2, 3, 4),)),
    "quoted quotes": Case(".csv", HEAD + b'"a""b",2,3,4\n', (('a"b', 2, 3, 4),)),
    "quote not closed": Case(".csv", HEAD + b'1,2,3,4\n"5,6,7,8\n9,9,9,9\n', 3),
    "text behind a quote": Case(".csv", HEAD + b'"1"9,2,3,4\n', 2),
    "quotes between tabs": Case(".inter", INTER + b'"a\t2\t3\t4\n', (('"a', 2, 3, 4),)),
    "line end within an id": Case(".csv", HEAD + b'"1\n2",2,3,4\n', 2),
    "missing column": Case(".csv", b"userId,rating,timestamp\n1,2,3\n", 1),
    "column twice": Case(".csv", b"userId,movieId,movieId\n1,2,3\n", 1),
    "header absent": Case(".csv", b"1,2,3,4\n5,6,7,8\n", 1),
    "only a header": Case(".csv", HEAD, 1),
    "header present": Case(".data", b"user\titem\trating\ttimestamp\n1\t2\t3\t4\n", 1),
    "0 bytes": Case(".csv", b"", 1),
    "only blanks": Case(".data", b" \n\r\n\t\n", 1),
    "NUL": Case(".data", b"1\t2\t3\t4\n1\t\x003\t3\t4\n", 2),
    "short line": Case(".data", b"1\t2\t3\t4\n5\t6\t7\n", 2),
    "trailing junk in a line": Case(".csv", HEAD + b"1,2,3,4,\n", 2),
    "trailing junk in a field": Case(".csv", HEAD + b"1,2,3,4 #\n", 2),
    "trailing junk in the file": Case(".data", b"1\t2\t3\t4\n\x1a", 2),
    "NaN": Case(".csv", HEAD + b"1,2,3,4\n1,3,nan,4\n", 3),
    "infinite": Case(".csv", HEAD + b"1,2,-inf,4\n", 2),
    "beyond float32": Case(".csv", HEAD + b"1,2,1e39,4\n", 2),
    "negative id": Case(".data", b"-1\t2\t3\t4\n-2\t2\t3\t4\n", ((-1, 2, 3, 4), (-2, 2, 3, 4))),
    "fractional id": Case(".data", b"1.5\t2\t3\t4\n1\t2\t3\t4\n", (("1.5", 2, 3, 4), ("1", 2, 3, 4))),
    "huge ids": Case(
        ".data", b"2147483648\t2\t3\t4\n9223372036854775807\t9\t3\t4\n", ((2**31, 2, 3, 4), (2**63 - 1, 9, 3, 4))
    ),
    "leading zeros": Case(".csv", HEAD + b"007,2,3,4\n7,2,3,4\n", (("007", 2, 3, 4), ("7", 2, 3, 4))),
    "time beyond int64": Case(".data", b"1\t2\t3\t4\n1\t3\t3\t9223372036854775808\n", 2),
    "time that is not exact": Case(".data", b"1\t2\t3\t0.5\n1\t3\t3\t9007199254740993\n", 2),
    "a pair twice": Case(".data", b"1\t2\t3\t9\n1\t3\t3\t1\n1\t2\t4\t5\n", 3),
    "a pair twice, the last by time": Case(
        ".data", b"1\t2\t3\t9\n1\t3\t3\t1\n1\t2\t4\t5\n", ((1, 2, 3, 9), (1, 3, 3, 1)), "last"
    ),
}  # fmt: skip
