"""Files of any format are told by what is in them; what cannot be told is asked for in one line."""

import bz2
import gzip
import io
import json
import zipfile
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data.columns import Columns
from fedjax_rec.data.formats import read_any, read_file
from tests.data.test_readers import refused

PAIRS = [("u0", "i0"), ("u0", "i1"), ("u1", "i0")]
ROWS = [(*pair, 3.5 + n, 1_260_759_144 + n) for n, pair in enumerate(PAIRS)]


def write(path, separator, rows, header=""):
    """A text of some rows."""
    lines = ([header] if header else []) + [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join(lines) + "\n")
    return path


def check(events, *, rated=True, timed=True):
    """The events of ROWS."""
    users = events.user_ids[events.users].astype(str).tolist()
    items = events.item_ids[events.items].astype(str).tolist()
    assert list(zip(users, items, strict=True)) == PAIRS
    assert (None if events.ratings is None else events.ratings.tolist()) == (
        [3.5, 4.5, 5.5] if rated else None
    )
    times = None if events.timestamps is None else events.timestamps.tolist()
    assert times == ([row[3] for row in ROWS] if timed else None)


def test_separators_and_headers_are_found(tmp_path):
    """Whatever the file is called, with a header and without one."""
    for suffix in (".dat", ".data", ".base", ".rating", ".txt", ".csv", ""):
        path = tmp_path / f"a{suffix}"
        for separator in ("\t", "::", ";", ",", "|", " ", "   "):
            events, reading = read_file(write(path, separator, ROWS))
            check(events)
            assert (reading.separator, reading.header) == (" " if separator == "   " else separator, False)
            assert "no header: columns taken for user,item,rating,timestamp" in reading.notes[0]
            header = separator.join(["user", "movieId", "rating", "time"])
            events, reading = read_file(write(path, separator, ROWS, header))
            check(events)
            assert (reading.columns, reading.notes) == (Columns("user", "movieId", "rating", "time"), ())
    write(path, ",", [row[:3] for row in ROWS])
    check(read_any(path), timed=False)
    write(path, ",", [(*row[:2], row[3]) for row in ROWS])
    check(read_any(path), rated=False)
    write(path, "|", [("u0", "x, y", 1), ("u0", "z", 1)], "user|item|n")
    assert read_any(path).item_ids.tolist() == ["x, y", "z"]


def test_a_typo_names_its_line(tmp_path):
    """Whatever stands between the fields; one wrong line does not change what the others are taken for."""
    for separator in ("\t", "::", ";", ",", "|", " "):
        rows = [*ROWS, ("u1", "i5", 1), *[(f"u{n}", "i7", 1, 1) for n in range(50)]]
        path = write(tmp_path / "a.txt", separator, rows)
        refused(lambda path=path: read_any(path), f"{path}:4: 3 fields instead of 4")
    path = write(tmp_path / "a.txt", " ", [(1, 2, 3, 4), (1, 3, "x", 4), (1, 4, 3, 5)])
    refused(lambda: read_any(path), f"{path}:2: rating 'x' is not a finite number")


def test_what_may_be_a_header_is_asked_for(tmp_path):
    """The first event is not taken for names in silence; columns that are said read all lines."""
    path = write(tmp_path / "a.csv", ",", PAIRS)
    message = refused(lambda: read_any(path), f"{path}:1: names of columns, or the first event? (u0, i0)")
    assert "--columns user,item" in message
    check(read_any(path, columns="user,item"), rated=False, timed=False)
    check(read_any(write(path, ",", PAIRS, "who,what"), user="who", item="what"), rated=False, timed=False)
    write(path, ",", [(time, "x", user, rating, item) for user, item, rating, time in ROWS])
    refused(lambda: read_any(path), f"{path}:1: no header, and 5 columns", "--columns")
    check(read_any(path, columns="timestamp,-,user,rating,item"))
    check(read_any(path, columns="when,-,who,rating,item", user="who", timestamp="when"))
    check(read_any(path, columns="timestamp,-,user,-,item"), rated=False)
    write(path, ",", PAIRS, "user,item")
    refused(
        lambda: read_any(path, columns="user,item"), f"{path}:1: a header (user, item); leave out columns="
    )
    refused(lambda: read_any(path, columns="user,thing"), "must hold 'item' once")
    refused(
        lambda: read_any(path, separator="#"), "separator='#' (--separator) is none of tab, ::, semicolon"
    )
    check(read_any(write(path, "|", PAIRS), columns="user,item", separator="bar"), rated=False, timed=False)


def test_lines_of_a_user_and_its_items(tmp_path):
    """As in LightGCN's files: lines of different lengths or long ones; a user alone has no event."""
    path = tmp_path / "train.txt"
    for text in ("7 3 1\n8\n9 1\n", "7 3 1 \n8 \n9 1"):
        path.write_text(text)
        events, reading = read_file(path)
        assert (events.users.tolist(), events.items.tolist()) == ([0, 0, 1], [0, 1, 1])
        assert (events.user_ids.tolist(), events.item_ids.tolist()) == ([7, 9], [3, 1])
        assert (reading.kind, len(reading.notes)) == ("lists", 1)
    path.write_text("0 0 1 2 3 4\n1 1 2 3 4 5\n")
    assert len(read_any(path).users) == 10
    path.write_text("ann tea milk\nbob tea\n")
    events = read_any(path, columns="user,items")
    assert (events.user_ids.tolist(), events.items.tolist()) == (["ann", "bob"], [0, 1, 0])
    path.write_text("1 2 3\n2 3\n4 5 6 7 5\n")
    refused(lambda: read_any(path), f"{path}:3: user 4 already has item 5 at {path}:3")


def test_json_lines_and_literals(tmp_path):
    """Keys are columns; the line of a bad one is named."""
    path = tmp_path / "reviews.json"
    keys = ("reviewerID", "asin", "overall", "unixReviewTime")
    rows = [dict(zip(keys, row, strict=True)) | {"text": '{"a": 1}', "votes": [0, 1]} for row in ROWS]
    for dump in (json.dumps, repr):
        path.write_text("\n\n".join(map(dump, rows)))
        events, reading = read_file(path)
        check(events)
        assert (reading.kind, reading.columns) == ("json lines", Columns(*keys))
    path.write_text("\n".join([json.dumps(rows[0]), "{", json.dumps(rows[1])]))
    refused(lambda: read_any(path), f"{path}:2: not one object of json in one line")
    del rows[1]["asin"]
    path.write_text("\n".join(map(json.dumps, rows)))
    refused(lambda: read_any(path), f"{path}:2: empty 'asin'")
    path.write_text(json.dumps(rows[0] | {"asin": ["a"]}))
    refused(lambda: read_any(path), f"{path}:1: 'asin' holds several values")


def test_packed_files_and_heads(tmp_path):
    """gzip, bz2 and zip by their first bytes; comments and arff's head; errors still name the line."""
    plain = write(tmp_path / "plain.txt", ",", ROWS, "user,item,rating,timestamp").read_bytes()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as bundle:
        bundle.writestr("folder/", "")
        bundle.writestr("folder/events.csv", plain)
    path = tmp_path / "events"
    for data in (gzip.compress(plain), bz2.compress(plain), archive.getvalue()):
        path.write_bytes(data)
        check(read_any(path))
        path.write_bytes(data[: len(data) // 2])
        refused(lambda: read_any(path), "events: ")
    with zipfile.ZipFile(archive, "a") as bundle:
        bundle.writestr("other.csv", plain)
    path.write_bytes(archive.getvalue())
    refused(lambda: read_any(path), "an archive of 2 files (folder/events.csv, other.csv)")
    body = b"".join(plain.partition(b"\n")[2:])
    head = b"% made up\n@RELATION r\n@attribute 'user' string\n@attribute item string\n"
    head += b"@attribute rating numeric\n\n@attribute timestamp numeric\n@DATA\n"
    path.write_bytes(head + body)
    check(read_any(path))
    path.write_bytes(head + body + b"u9,i9,x,1\n")
    refused(lambda: read_any(path), "events:12: rating 'x' is not a finite number")
    path.write_bytes(
        b"% bip weighted\n" + b"\n".join(b" ".join(str(x).encode() for x in row) for row in ROWS)
    )
    check(read_any(path))


def test_parquet_is_known_by_its_bytes(tmp_path):
    """Whatever its name; dates of arrow are times."""
    pytest.importorskip("pyarrow")
    dates = pd.to_datetime([row[3] for row in ROWS], unit="s")
    frame = pd.DataFrame(ROWS, columns=["user_id", "item_id", "rating", "date"]).assign(
        date=dates.tz_localize("UTC")
    )
    frame.to_parquet(tmp_path / "a.bin")
    check(read_any(tmp_path / "a.bin"))
    frame.assign(date=dates.date).to_parquet(tmp_path / "a.parquet")
    events: Any = read_any(tmp_path / "a.parquet")
    assert set(np.diff(events.timestamps)) == {0}
    assert events.timestamps[0] == 1_260_748_800


def test_blank_ratings_and_times(tmp_path):
    """The error names the line and the way out; with it the file is read."""
    path = write(
        tmp_path / "a.csv", ",", [(1, 2, 4, 5), (1, 3, "", 6), (1, 4, 4, "")], "user,item,rating,timestamp"
    )
    refused(
        lambda: read_any(path),
        f"{path}:3: rating ''",
        "leave the column out with rating='none'",
    )
    refused(lambda: read_any(path, rating="none"), f"{path}:4: timestamp ''", "timestamp='none'")
    events = read_any(path, rating="none", timestamp="none")
    assert (len(events.users), events.ratings, events.timestamps) == (3, None, None)


def test_dates_are_read_or_refused(tmp_path):
    """In one way only: ISO with and without zones, others that are plain, finer units; the line of a bad one."""
    path = tmp_path / "a.csv"

    def times(*fields):
        write(path, "\t", [(1, n, field) for n, field in enumerate(fields)], "user\titem\tdate")
        events: Any = read_any(path)
        return events.timestamps.tolist()

    noon = 1_704_110_400
    for field in (
        *("2024-01-01 12:00:00", "2024-01-01T12:00:00Z", "2024-01-01T14:00:00+02:00", "2024-01-01 12:00"),
        *("Mon Jan 01 12:00:00 +0000 2024", "Mon, 01 Jan 2024 12:00:00 +0000", "2024/01/01 12:00:00"),
        *(noon * 1000, noon * 10**6, noon * 10**9, f"{noon}.0"),
    ):
        assert times(field, field) == [noon, noon], field
    for field in ("2024-01-01", "1 Jan 2024", "Jan 1, 2024", "01 1, 2024", "2024/01/01", "01-Jan-2024"):
        assert times(field) == [noon - 43200], field
    assert times("2024-01-01T12:00:00Z", "2024-01-01") == [noon, noon - 43200]
    assert times(noon * 1000, noon * 1000 + 500) == [noon, noon + 0.5]
    assert times(5, 10**15) == [5, 10**15]
    refused(
        lambda: times("01/02/2024"),
        f"{path}:2: timestamp '01/02/2024' is no date that can be read in one way",
    )
    refused(
        lambda: times("2024-01-01", "soon"), f"{path}:3: timestamp 'soon' is not a date as the first one is"
    )
    refused(lambda: times("2024-01-01", "now"), f"{path}:3: timestamp 'now' is not a date")
    refused(lambda: times(noon, "2024-01-01"), f"{path}:3: timestamp '2024-01-01' is not a finite number")


def test_columns_of_times_are_found_or_named(tmp_path):
    """By their usual names; another that sounds like one is not taken, and said."""
    for name in ("time", "Date", "datetime", "ts", "unixReviewTime", "event_time", "utc"):
        events, reading = read_file(write(tmp_path / "a.csv", ",", ROWS, f"user,item,rating,{name}"))
        check(events)
        assert reading.notes == ()
    events, reading = read_file(write(tmp_path / "a.csv", ",", ROWS, "user,item,rating,visit_time"))
    assert events.timestamps is None
    assert reading.notes == (
        "column 'visit_time' is not taken for times; timestamp='visit_time' (--timestamp) does",
    )


def test_repeated_pairs_are_counted_or_added_up(tmp_path):
    """The last of a pair, rated by all; what was done is said."""
    path = write(
        tmp_path / "a.csv",
        ",",
        [(1, 10, 5, 1), (1, 20, 2, 2), (1, 10, 3, 0), (2, 10, 4, 3)],
        "user,item,rating,timestamp",
    )

    def ratings(rule):
        events: Any = read_any(path, duplicates=rule)
        return events.ratings.tolist()

    reading = read_file(path, duplicates="count")[1]
    counted: Any = read_any(path, duplicates="count")
    assert (counted.ratings.tolist(), counted.timestamps.tolist()) == ([2, 1, 1], [1, 2, 3])
    assert "4 -> 3" in reading.notes[0]
    assert ratings("sum") == [8, 2, 4]
    assert read_file(write(path, ",", PAIRS, "user,item"), duplicates="last")[1].notes == ()
    assert ratings("count") == [1, 1, 1]
    refused(lambda: read_any(path, duplicates="sum"), "duplicates='sum' adds up ratings, and there are none")
