"""Readers: every format goes round, and every kind of bad input is named by file and line."""

import builtins
import gzip
import tracemalloc
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data import sniffing, text
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.formats import read_any
from fedjax_rec.data.readers import (
    from_frame,
    read_movielens_100k,
    read_movielens_csv,
    read_movielens_dat,
    read_recbole,
    read_table,
)

ROWS = [(196, 242, 3.0, 881250949), (186, 302, 3.5, 891717742), (196, 51, 1.0, 880606923)]
CSV_HEADER = "userId,movieId,rating,timestamp"
INTER_HEADER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
FORMATS = {
    "u.data": (read_movielens_100k, "\t", None),
    "ratings.dat": (read_movielens_dat, "::", None),
    "ratings.csv": (read_movielens_csv, ",", CSV_HEADER),
    "ml.inter": (read_recbole, "\t", INTER_HEADER),
}


def content(name, rows=ROWS, end="\n"):
    """The bytes of a file of one of the formats."""
    _, separator, header = FORMATS[name]
    lines = ([header] if header else []) + [separator.join(map(str, row)) for row in rows]
    return (end.join(lines) + end).encode()


def check(events):
    """The three rows of ROWS, whatever the format."""
    np.testing.assert_array_equal(events.users, [0, 1, 0])
    np.testing.assert_array_equal(events.items, [0, 1, 2])
    np.testing.assert_array_equal(events.user_ids, [196, 186])
    np.testing.assert_array_equal(events.item_ids, [242, 302, 51])
    np.testing.assert_array_equal(events.ratings, [3, 3.5, 1])
    np.testing.assert_array_equal(events.timestamps, [row[3] for row in ROWS])
    assert [array.dtype for array in events] == ["i4", "i4", "f4", "i8", "i8", "i8"]


def refused(read, *fragments):
    """Runs a reader that must fail; the message is one line and holds the parts."""
    with pytest.raises(DataError) as caught:
        read()
    message = str(caught.value)
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message
    return message


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("variant", ["plain", "gzip", "bom", "crlf", "blank lines", "no last line end"])
def test_every_format_goes_round(tmp_path, name, variant):
    """Compression, byte-order marks, line ends and blank lines change nothing."""
    data = content(name, end="\r\n" if variant == "crlf" else "\n")
    data = {
        "gzip": gzip.compress(data),
        "bom": b"\xef\xbb\xbf" + data,
        "blank lines": data.replace(b"\n", b"\n\n") + b"\n  \n\n",
        "no last line end": data.rstrip(),
    }.get(variant, data)
    path = tmp_path / (name + ".gz" * (variant == "gzip"))
    path.write_bytes(data)
    check(FORMATS[name][0](path))
    check(read_any(path))


def test_parquet_and_frames_go_round(tmp_path):
    """A frame, and the same frame through parquet, with dates as well as seconds."""
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(ROWS, columns=["user", "item", "rating", "timestamp"], index=[9, 9, 9])
    check(from_frame(frame))
    frame.to_parquet(tmp_path / "a.parquet")
    columns = {"user": "user", "item": "item", "rating": "rating", "timestamp": "timestamp"}
    check(read_table(tmp_path / "a.parquet", **columns))
    check(read_any(tmp_path / "a.parquet"))
    for zone in (None, "UTC"):
        check(
            from_frame(frame.assign(timestamp=pd.to_datetime(frame.timestamp, unit="s").dt.tz_localize(zone)))
        )


@pytest.mark.parametrize("separator", [",", "\t", ";"])
def test_named_columns_in_any_order(tmp_path, separator):
    """Only the named columns are taken; quotes protect separators in csv."""
    note = "plain" if separator == "\t" else f'"a{separator} b"'
    lines = [["when", "note", "what", "who"], ["1.5", note, "tea", "ana"], ["2.5", note, "coffee", "ana"]]
    path = tmp_path / "log.csv"
    path.write_text("\n".join(separator.join(line) for line in lines))
    events: Any = read_table(path, user="who", item="what", timestamp="when")
    assert events.user_ids.tolist() == ["ana"]
    assert events.item_ids.tolist() == ["tea", "coffee"]
    assert events.timestamps.tolist() == [1.5, 2.5]
    assert events.timestamps.dtype == np.float64
    assert events.ratings is None


def test_read_any_finds_the_usual_names(tmp_path):
    """Optional columns may be absent, in csv as in RecBole's format and in frames."""
    (tmp_path / "a.tsv").write_text("item_id\tuser_id\n5\t6\n")
    (tmp_path / "a.inter").write_text("user_id:token\titem_id:token\n6\t5\n")
    for events in (read_any(tmp_path / "a.tsv"), read_any(tmp_path / "a.inter")):
        assert (events.user_ids[0], events.item_ids[0]) == (6, 5)
        assert events.ratings is None
        assert events.timestamps is None


def test_external_ids_survive(tmp_path):
    """Ids stay text unless all are plain decimal integers; `007`, `7` and `1.0` are not changed."""
    path = tmp_path / "a.csv"
    path.write_text("user,item\n007,1\n7,-2\n1.0,3\nNA,0\n")
    events = read_any(path)
    assert events.user_ids.tolist() == ["007", "7", "1.0", "NA"]
    assert events.item_ids.tolist() == [1, -2, 3, 0]
    assert events.item_ids.dtype == np.int64
    path.write_text("user,item\n+7,99999999999999999999\n7,1e3\n")
    assert read_any(path).user_ids.tolist() == ["+7", "7"]
    assert read_any(path).item_ids.tolist() == ["99999999999999999999", "1e3"]


def test_huge_ids_allocate_nothing(tmp_path):
    """Memory follows the number of ids, not their size."""
    path = tmp_path / "u.data"
    path.write_text(f"{10**15}\t{10**18}\t1\t0\n{10**15 + 7}\t3\t1\t0\n")
    tracemalloc.start()
    events = read_movielens_100k(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert events.user_ids.tolist() == [10**15, 10**15 + 7]
    assert events.item_ids.tolist() == [10**18, 3]
    assert peak < 10**7


def test_latin_1_and_utf_8(tmp_path):
    """Ids and unused columns may be in either encoding."""
    for encoding in ("latin-1", "utf-8"):
        (tmp_path / "a.csv").write_bytes("user,item,título\nJosé,1,ñ\nAna,2,x\n".encode(encoding))
        assert read_any(tmp_path / "a.csv").user_ids.tolist() == ["José", "Ana"]


BAD_ROWS = {
    "short line": ((5, 6, 7), "3 fields instead of 4"),
    "long line": ((5, 6, 7, 8, 9), "5 fields instead of 4"),
    "text as rating": ((5, 6, "good", 8), "rating 'good' is not a finite number"),
    "empty rating": ((5, 6, "", 8), "rating '' is not a finite number"),
    "nan rating": ((5, 6, "nan", 8), "rating 'nan' is not a finite number"),
    "infinite rating": ((5, 6, "-inf", 8), "rating -inf is not a finite number"),
    "rating beyond float32": ((5, 6, "1e300", 8), "too large for float32"),
    "text as timestamp": ((5, 6, 7, "1997-01-01"), "timestamp '1997-01-01' is not a finite number"),
    "infinite timestamp": ((5, 6, 7, "inf"), "timestamp inf is not a finite number"),
    "nan timestamp": ((5, 6, 7, "NaN"), "timestamp 'NaN' is not a finite number"),
    "empty user": (("", 6, 7, 8), "empty 'user"),
    "blank item": ((5, " ", 7, 8), "empty '"),
    "duplicate": ((186, 302, 1, 8), "user 186 already has item 302 at "),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("kind", BAD_ROWS)
def test_bad_lines_are_named(tmp_path, name, kind):
    """The line is right with a header and with blank lines before it."""
    row, reason = BAD_ROWS[kind]
    lines = content(name, [*ROWS, row, *[(n, n, 1, 1) for n in range(900, 910)]]).split(b"\n")
    header = FORMATS[name][2] is not None
    path = tmp_path / name
    path.write_bytes(b"\n".join(lines))
    refused(lambda: read_any(path), f"{path}:{4 + header}: ", reason)
    lines.insert(1 + header, b"")
    path.write_bytes(b"\r\n".join(lines))
    refused(lambda: read_any(path), f"{path}:{5 + header}: ", reason)


@pytest.mark.parametrize("name", FORMATS)
def test_a_first_line_that_is_wrong(tmp_path, name):
    """Lines that are all too long, or a first line that is, do not shift the columns."""
    line = 1 + (FORMATS[name][2] is not None)
    path = tmp_path / name
    path.write_bytes(content(name, [(1, 2, 3, 4, 5)] * 3))
    refused(lambda: FORMATS[name][0](path), f"{path}:{line}: 5 fields instead of 4")
    path.write_bytes(content(name, [(1, 2, 3)]))
    refused(lambda: FORMATS[name][0](path), f"{path}:{line}: 3 fields instead of 4")


def test_duplicates(tmp_path):
    """The message names both lines and the way out, and the two ways keep the first or the last event."""
    path = tmp_path / "u.data"
    path.write_text("1\t10\t1\t5\n1\t20\t2\t6\n1\t10\t3\t7\n2\t10\t4\t8\n")
    message = refused(lambda: read_movielens_100k(path), f"{path}:3: ", f"{path}:1; ", "duplicates='first'")
    assert "duplicates='last'" in message
    first: Any = read_movielens_100k(path, duplicates="first")
    assert first.ratings.tolist() == [1, 2, 4]
    assert first.item_ids.tolist() == [10, 20]
    last: Any = read_movielens_100k(path, duplicates="last")
    assert last.ratings.tolist() == [2, 3, 4]
    assert last.item_ids.tolist() == [20, 10]
    assert last.items.tolist() == [0, 1, 1]
    refused(lambda: read_movielens_100k(path, duplicates="all"), "duplicates='all'", "'first'")


def test_files_that_are_not_there_or_empty(tmp_path):
    """Missing, a directory, empty, header only, broken gzip, mixed separators, unknown formats."""
    refused(lambda: read_any(tmp_path / "no.csv"), "no.csv: no such file")
    refused(lambda: read_any(tmp_path / "no.parquet"), "no.parquet: no such file")
    (tmp_path / "dir.csv").mkdir()
    refused(lambda: read_any(tmp_path / "dir.csv"), "a directory, not a file")
    for data, reason in {
        b"": "empty file",
        b"\n \n": "empty file",
        b"user,item\n": "no interactions",
    }.items():
        (tmp_path / "a.csv").write_bytes(data)
        refused(lambda: read_any(tmp_path / "a.csv"), "a.csv:1: ", reason)
    (tmp_path / "u.data.gz").write_bytes(gzip.compress(b"1\t2\t3\t4\n" * 100)[:-9])
    refused(lambda: read_any(tmp_path / "u.data.gz"), "u.data.gz: broken or truncated gzip")
    (tmp_path / "a.dat").write_text("1::2::3::4\n1::3::3\t4\n")
    refused(lambda: read_any(tmp_path / "a.dat"), "a.dat:2: a tab in a file whose separator is '::'")
    (tmp_path / "a.xlsx").write_bytes(b"PK\x03\x04 no archive")
    refused(lambda: read_any(tmp_path / "a.xlsx"), "a.xlsx: damaged zip archive")
    (tmp_path / "a.pkl").touch()
    refused(lambda: read_any(tmp_path / "a.pkl"), "a.pkl: .pkl may hold pickled code and is never read")
    (tmp_path / "a.parquet").write_text("not parquet")
    refused(lambda: read_any(tmp_path / "a.parquet"), "a.parquet: not a readable parquet file")


def test_columns_that_are_not_there(tmp_path):
    """The nearest name is offered; only default names are optional."""
    path = tmp_path / "a.csv"
    path.write_text("UserID,movie,stars\n1,2,3\n")
    refused(lambda: read_table(path, user="userid", item="movie"), "no column 'userid'", "'UserID'?")
    refused(lambda: read_table(path, user="UserID", item="movie", rating="star"), "did you mean 'stars'?")
    refused(lambda: read_any(path), "no column looks like the items; name it with item=... (--item)", "movie")
    refused(lambda: read_any(path, item="movies"), "did you mean 'movie'?")
    assert read_any(path, item="movie").item_ids.tolist() == [2]
    frame = pd.DataFrame({"user": [1], "item": [2], "stars": [3]})
    assert from_frame(frame, rating=None).ratings is None
    assert from_frame(frame.rename(columns={"stars": "score"})).ratings is None
    found: Any = from_frame(frame).ratings  # a usual name, as in files
    assert found.tolist() == [3.0]
    stars: Any = from_frame(frame, rating="stars").ratings
    assert stars.tolist() == [3]
    refused(lambda: from_frame(frame, rating="star"), "frame: no column 'star'; did you mean 'stars'?")
    refused(lambda: from_frame(frame, user="users"), "did you mean 'user'?")
    twice = pd.DataFrame([[1, 2, 3]], columns=["user", "item", "item"])
    refused(lambda: from_frame(twice), "frame: column 'item' stands there more than once")
    (tmp_path / "u.data").write_text("1\t2\t3\t4\n")
    refused(lambda: read_any(tmp_path / "u.data", user="u"), "u.data:1: no header (1, 2, 3, 4)", "--columns")
    (tmp_path / "a.inter").write_text("user_id\titem_id:token\n1\t2\n")
    refused(lambda: read_any(tmp_path / "a.inter"), "a.inter:1: ", "'user_id' is not of the form name:type")
    path.write_text("user,item,item\n1,2,3\n")
    refused(lambda: read_any(path), "a.csv:1: column 'item' stands there more than once")
    path.write_text("user,item,note,note\n1,2,3,4\n")
    assert read_any(path).item_ids.tolist() == [2]


def test_bad_rows_of_frames():
    """Rows are counted from zero; missing values of every kind are found."""
    frame = pd.DataFrame({"user": ["a", None, "b"], "item": [1, 2, 3]})
    refused(lambda: from_frame(frame), "frame row 1: empty 'user'")
    frame = pd.DataFrame({"user": [1.0, 2.0, np.nan], "item": [1, 2, 3]})
    refused(lambda: from_frame(frame), "frame row 2: empty 'user'")
    assert from_frame(frame[:2]).user_ids.dtype == np.int64
    ratings = pd.DataFrame({"user": [1, 2], "item": [1, 2], "rating": pd.array([1, None], dtype="Int64")})
    refused(lambda: from_frame(ratings), "frame row 1: rating")
    refused(lambda: from_frame(ratings.assign(rating=[True, False])), "frame row 0: rating True")
    dates = ratings.assign(rating=1, timestamp=pd.to_datetime(["2020-01-01", None]))
    refused(lambda: from_frame(dates), "frame row 1: timestamp")
    refused(lambda: from_frame(frame[:0]), "frame: no interactions")


def test_parquet_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    """The optional library is named together with the way to install it."""
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    (tmp_path / "a.parquet").touch()
    refused(lambda: read_any(tmp_path / "a.parquet"), "pip install 'fedjax_rec[parquet]'")


def test_good_files_take_the_fast_path(tmp_path, monkeypatch):
    """No line of a good file is looked at one by one, except the header and the first ones."""
    read = []
    real = text.Text.records

    def counted(self):
        for record in real(self):
            read.append(record)
            yield record

    monkeypatch.setattr(text.Text, "records", counted)
    for name in FORMATS:
        path = tmp_path / name
        path.write_bytes(content(name, [(n, n, 1.5, 7) for n in range(2000)]))
        assert len(FORMATS[name][0](path).users) == 2000
    assert len(read) <= 8
    assert len(read_any(path).users) == 2000
    assert len(read) <= 8 + sniffing.NUM_LINES + 8


def test_real_counts(shared_data):
    """The counts that the publishers state."""
    events: Any = read_movielens_100k(shared_data / "ml-100k" / "u.data")
    assert (events.num_users, events.num_items, len(events.users)) == (943, 1682, 100_000)
    assert events.user_ids[:3].tolist() == [196, 186, 22]
    assert events.item_ids[:3].tolist() == [242, 302, 377]
    events = read_movielens_csv(shared_data / "ml-latest-small" / "ratings.csv")
    assert (events.num_users, events.num_items, len(events.users)) == (610, 9724, 100_836)
    assert events.ratings.min() == 0.5
