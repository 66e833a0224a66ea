"""Converted events are the events: those that readers find, from any source and in any pieces."""

import gzip
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.formats import read_any
from fedjax_rec.data.sorting import order_of_events
from fedjax_rec.data.store import convert, open_store
from fedjax_rec.data.store.sources import open_source

CONVERTER = sys.modules[convert.__module__]


@pytest.fixture
def events():
    """40 users and 30 items under odd names, rated, at times of which some are equal."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 40, 600)
    frame = pd.DataFrame({"user": users, "item": rng.integers(0, 30, 600)}).drop_duplicates()
    frame = frame.assign(
        rating=rng.integers(1, 6, len(frame)) / 2, timestamp=rng.integers(10**9, 10**9 + 50, len(frame))
    )
    return frame.assign(user=[f"u{n:02d}" if n % 2 else str(n) for n in frame["user"]]).reset_index(drop=True)


@pytest.fixture
def small(monkeypatch):
    """Pieces, groups and sorts of a few rows."""
    for name, value in (("ROWS", 37), ("_GROUP", 4), ("_TOGETHER", 50)):
        monkeypatch.setattr(CONVERTER, name, value)


def assert_holds(store, table):
    """The same clients, coded the same, with the same events in order of time."""
    order = order_of_events(table.users, table.timestamps)
    counts = np.bincount(table.users, minlength=table.num_users)
    assert np.diff(store.offsets).tolist() == counts.tolist()
    assert store.column("items").tolist() == table.items[order].tolist()
    assert store.ids("user_ids").tolist() == table.user_ids.tolist()
    assert store.ids("item_ids").tolist() == table.item_ids.tolist()
    for name, values in (("ratings", table.ratings), ("timestamps", table.timestamps)):
        assert (values is None) == (name not in store.columns)
        if values is not None:
            assert store.column(name).tolist() == values[order].tolist()
    open_store(store.path, verify=True)


def test_a_parquet_file_is_never_in_memory(tmp_path):
    """Pages of it are let go once they were read: 128 MB of ids, of which 1 MB at a time is looked at."""
    pa = pytest.importorskip("pyarrow")
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 2**62, 8_000_000) for name in ("user", "item")}
    pd.DataFrame(columns).to_parquet(tmp_path / "events.parquet", row_group_size=2**16)
    source = open_source(tmp_path / "events.parquet", {}, columns=None, separator=None, rows=2**16)
    before = pa.total_allocated_bytes()
    most = max(pa.total_allocated_bytes() for _ in source.frames) - before
    assert 0 < most < 80e6  # 184 MB where all of it stays; on a busy machine some 40 are read ahead


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("kind", ["csv", "csv.gz", "tsv", "inter", "dat", "parquet"])
def test_files(events, tmp_path, kind):
    """Of each format, as `read_any` reads it whole."""
    path = tmp_path / f"log.{kind}"
    if kind == "parquet":
        events.astype({"user": "category"}).to_parquet(path, row_group_size=100)
    elif kind == "inter":
        names = ["user_id:token", "item_id:token", "rating:float", "timestamp:float"]
        events.set_axis(names, axis=1).to_csv(path, sep="\t", index=False)
    elif kind == "dat":
        path.write_text("\n".join("::".join(map(str, row)) for row in events.itertuples(index=False)))
    else:
        text = events.to_csv(sep="\t" if kind == "tsv" else ",", index=False).encode()
        path.write_bytes(gzip.compress(text) if kind.endswith("gz") else text)
    assert_holds(convert(path, tmp_path / "store"), read_any(path))
    assert not list(tmp_path.glob(".store*"))


@pytest.mark.usefixtures("small")
def test_folders_and_frames(events, tmp_path):
    """A partitioned folder of parquet, a folder with one table, frames that are made on the way."""
    whole = tmp_path / "all.csv"
    events.to_csv(whole, index=False)
    for number, part in enumerate(np.array_split(events.index.to_numpy(), 3)):
        folder = tmp_path / "parts" / f"day={number}"
        folder.mkdir(parents=True)
        events.loc[part].to_parquet(folder / "part-0.parquet")
    table = read_any(whole)
    assert_holds(convert(tmp_path / "parts", tmp_path / "a"), table)
    frames = (events.loc[part] for part in np.array_split(events.index.to_numpy(), 7))
    assert_holds(convert(frames, tmp_path / "b", name="mine"), table)
    assert open_store(tmp_path / "b").name == "mine"
    folder = tmp_path / "one"
    folder.mkdir()
    whole.rename(folder / "all.csv")
    (folder / "readme.md").write_text("about")
    assert_holds(convert(folder, tmp_path / "c"), table)


@pytest.mark.usefixtures("small")
def test_ids_units_and_columns(events, tmp_path):
    """Zeros before numbers count, times in milliseconds become seconds, columns may be left out."""
    numbers = events.assign(user=events["user"].str.strip("u"), timestamp=events["timestamp"] * 1000)
    numbers = numbers.drop_duplicates(["user", "item"])
    path = tmp_path / "log.csv"
    numbers.to_csv(path, index=False)
    assert_holds(convert(path, tmp_path / "a"), read_any(path))
    assert open_store(tmp_path / "a").column("timestamps").max() < 2 * 10**9
    left_out: Any = {"rating": "none", "timestamp": "none"}
    store = convert(path, tmp_path / "b", **left_out)
    assert_holds(store, read_any(path, **left_out))
    assert store.order == "file"


@pytest.mark.usefixtures("small")
def test_pairs_that_repeat(events, tmp_path):
    """Are refused by name, or become one event, the first or the last in time."""
    twice = pd.concat([events, events.iloc[::7].assign(timestamp=5, rating=1.0)])
    path = tmp_path / "log.csv"
    twice.to_csv(path, index=False)
    with pytest.raises(DataError, match=r"user u?[0-9]+ has item [0-9]+ more than once; duplicates='first'"):
        convert(path, tmp_path / "a")
    with pytest.raises(DataError, match="a store knows error, first, last"):
        convert(path, tmp_path / "a", duplicates="sum")
    for rule in ("first", "last"):
        store = convert(path, tmp_path / rule, duplicates=rule)
        table = read_any(path, duplicates=rule)
        found = {
            (str(store.ids("user_ids")[n]), int(store.ids("item_ids")[i]), r, t)
            for n in range(store.num_clients)
            for i, r, t in zip(
                *(
                    store.column(c)[store.offsets[n] : store.offsets[n + 1]].tolist()
                    for c in ("items", "ratings", "timestamps")
                ),
                strict=True,
            )
        }
        expected = set(
            zip(
                table.user_ids[table.users].tolist(),
                table.item_ids[table.items].tolist(),
                np.asarray(table.ratings).tolist(),
                np.asarray(table.timestamps).tolist(),
                strict=True,
            )
        )
        assert found == expected


def test_what_cannot_be_converted(tmp_path):
    """Is refused in one line that names file and line, and leaves nothing behind."""

    def refused(text, told, **options):
        path = tmp_path / "log.csv"
        path.write_text(text)
        with pytest.raises(DataError, match=told) as caught:
            convert(path, tmp_path / "store", **options)
        assert "\n" not in str(caught.value)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["log.csv"]

    refused("user,item\na,1\n,2\n", r"log\.csv:3: empty 'user'")
    refused("user,item,rating\na,1,5\nb,2,x\n", r"log\.csv:3: ")
    refused("user,item\na,1\nb,2,3\n", r"log\.csv: (cannot be parsed|a line has more than 2 fields)")
    refused("user,item\na,1,2\nb,2\n", r"log\.csv: (cannot be parsed|a line has more than 2 fields)")
    refused("user,item\na,1\nb\n", r"log\.csv:3: empty 'item'")
    refused("user,item\n", "no interactions")
    refused("user,item\na,1\n", "no column 'who'", user="who")
    refused('{"user": 1, "item": 2}\n', "make a csv of it")
    refused("user,item,timestamp\na,1,soon\n", r"log\.csv:2: ")
    for source, told in (
        (tmp_path / "nowhere", "no such file or directory"),
        ([], "not nothing"),
        ([3], "not int"),
    ):
        with pytest.raises(DataError, match=told):
            convert(source, tmp_path / "store")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(DataError, match=r"bad\.parquet: not readable as parquet"):
        convert(tmp_path / "bad.parquet", tmp_path / "store")


def test_a_log_of_events_is_refused_by_its_first_piece(tmp_path):
    """The others are not read."""

    def pieces():
        yield pd.DataFrame({"user": ["a", "b", "a"], "item": [1, 1, 1]})
        raise AssertionError("read on")

    with pytest.raises(DataError, match="user a has item 1 more than"):
        convert(pieces(), tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
