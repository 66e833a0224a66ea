"""Stores: written whole or not at all, by one process, and refused where anything is not as it was sealed."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.format import META, describe_store, is_store, open_store, seal_of
from fedjax_rec.data.store.sampling import sample_split
from fedjax_rec.data.store.verification import check_order
from fedjax_rec.data.store.writer import StoreWriter, check_room, write_store

OFFSETS = np.array([0, 2, 2, 5])
ITEMS = np.array([4, 1, 0, 3, 2], np.int32)


def make(path, **columns):
    """Three clients, one without events."""
    with write_store(path) as writer:
        for name, values in ({"offsets": OFFSETS, "items": ITEMS} | columns).items():
            writer.append(name, values)
        writer.describe(name="three", num_items=5, order="time", origin="a test")
    return path


def spoil(path, name, place=0):
    """Change one byte of a file."""
    data = bytearray((path / name).read_bytes())
    data[place] ^= 1
    (path / name).write_bytes(data)


def test_what_is_written_is_read(tmp_path):
    """Columns in pieces, ids of both kinds, and histories of clients in any order, with and without their ends."""
    names = np.char.encode(np.array(["ann", "bö", "c"]), "utf-8")
    path = make(tmp_path / "s", ratings=np.arange(5, dtype=np.float32), user_ids=names)
    store = open_store(path, verify=True)
    assert (store.num_clients, store.num_items, store.num_events, store.order) == (3, 5, 5, "time")
    assert store.ids("user_ids").tolist() == ["ann", "bö", "c"]
    assert store.ids("item_ids").tolist() == [0, 1, 2, 3, 4]
    found = store.gather(np.array([2, 0, 1]))
    assert found.counts.tolist() == [3, 2, 0]
    assert found.items.tolist() == [0, 3, 2, 4, 1]
    assert found.ratings is not None
    assert found.ratings.tolist() == [2, 3, 4, 0, 1]
    assert store.gather(np.array([2, 1]), lengths=np.array([1, 0])).items.tolist() == [0]
    assert store.gather(np.array([], int)).items.tolist() == []
    told = describe_store(store)
    assert told["events"] == 5
    assert told["columns"]["ratings"] == "f4[5]"
    assert told["events a client"]["most"] == 3
    other = open_store(make(tmp_path / "t"))
    assert other.data_hash != store.data_hash
    assert other.data_hash == open_store(make(tmp_path / "u")).data_hash


def test_what_is_not_as_it_was_sealed_is_refused(tmp_path):
    """Each in one line that names the file."""
    path = make(tmp_path / "s")

    def refused(told, *, verify=False):
        with pytest.raises(DataError, match=told) as caught:
            open_store(path, verify=verify)
        assert "\n" not in str(caught.value)

    for name in ("offsets.bin", "items.bin"):
        whole = (path / name).read_bytes()
        spoil(path, name)
        refused(rf"{name}: was changed after it was sealed")
        (path / name).write_bytes(whole[:-1])
        refused(rf"{name}: [0-9]+ bytes where there were [0-9]+; it was cut off")
        (path / name).unlink()
        refused(rf"{name}: missing")
        (path / name).write_bytes(whole)
    meta = json.loads((path / META).read_text())

    def write(changes, *, sealed=True):
        told = meta | changes
        (path / META).write_text(json.dumps(told | ({"seal": seal_of(told)} if sealed else {})))

    write({"num_items": 7}, sealed=False)
    refused("meta.json: was changed after it was sealed")
    write({"version": 99})
    refused("meta.json: version 99, and this release reads 2")
    write({"format": "mine"})
    refused("meta.json: is not of a store")
    (path / META).write_text("{")
    refused("meta.json: cannot be read")
    write({"num_items": 3})
    refused("items 0 to 4, and there are 3", verify=True)
    with pytest.raises(DataError, match="item 4 is out of range"):
        open_store(path).gather(np.array([0]))
    (path / META).unlink()
    assert not is_store(path)
    refused("no store: there is no meta.json; make one with")
    with pytest.raises(DataError, match=r"offsets\.bin: no offsets of 5 events"):
        open_store(make(tmp_path / "falling", offsets=np.array([0, 4, 2, 5])))


def test_times_that_are_not_in_order(tmp_path):
    """They are refused where the store says that events are in that of time: of all clients, and of a sample."""
    times = np.array([5, 6, 7, 3, 4], np.int64)
    offsets = np.array([0, 2, 2, 5])
    path = make(tmp_path / "s", offsets=offsets, timestamps=times)
    with pytest.raises(DataError, match=r"timestamps\.bin: events of client 2 are not in the order"):
        open_store(path, verify=True)
    with pytest.raises(DataError, match=r"timestamps\.bin: events of client 2 are not in the order"):
        sample_split(open_store(path), 1, num_candidates=1)
    sound = make(tmp_path / "t", offsets=offsets, timestamps=np.array([5, 6, 3, 4, 4], np.int64))
    check_order(open_store(sound, verify=True), np.array([2, 0]))


def test_large_columns_are_sampled_and_verified(tmp_path):
    """A change in the middle of a large column may wait for `verify`; one at its ends may not."""
    items = np.zeros(3_000_000, np.int32)
    path = make(tmp_path / "s", offsets=np.array([0, len(items)]), items=items)
    whole = (path / "items.bin").read_bytes()
    spoil(path, "items.bin", 4 * len(items) - 4)
    with pytest.raises(DataError, match="was changed"):
        open_store(path)
    (path / "items.bin").write_bytes(whole)
    spoil(path, "items.bin", 100_000)  # between two samples
    open_store(path)
    with pytest.raises(DataError, match="was changed"):
        open_store(path, verify=True)
    store = open_store(path)
    os.truncate(path / "items.bin", 8)
    with pytest.raises(DataError, match=r"items\.bin: ends within the events of a client"):
        store.gather(np.array([0]))


def test_nothing_is_left_of_what_failed(tmp_path, monkeypatch):
    """Of an error, a full disk, an interruption; what a kill left behind does not block."""

    def left():
        return sorted(path.name for path in tmp_path.iterdir())

    def interrupt(writer):
        writer.append("items", ITEMS)
        raise KeyboardInterrupt

    with (
        pytest.raises(DataError, match="needs offsets, items and a description"),
        write_store(tmp_path / "s"),
    ):
        pass
    with pytest.raises(KeyboardInterrupt), write_store(tmp_path / "s") as writer:
        interrupt(writer)
    with pytest.raises(DataError, match="no column 'colour' of int64"), write_store(tmp_path / "s") as writer:
        writer.append("colour", OFFSETS)
    assert left() == []

    def fill(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(StoreWriter, "append", fill)
        with pytest.raises(
            DataError, match=r"s: cannot be written \(No space left on device\); nothing was kept"
        ):
            make(tmp_path / "s")
    assert left() == []
    (tmp_path / ".s.partial").mkdir()
    (tmp_path / ".s.partial" / "items.bin").write_bytes(b"half")
    make(tmp_path / "s")
    assert left() == ["s"]
    with pytest.raises(DataError, match="is there already; remove it"):
        make(tmp_path / "s")
    with pytest.raises(DataError, match="cannot be written"):
        make(tmp_path / "s" / META / "below")
    with pytest.raises(DataError, match=r"takes 1,000,000,000\.0 GB, and the disk has"):
        check_room(tmp_path / "s", 10**18)


def test_two_writers_of_one_store(tmp_path):
    """The second one is told who the first one is; once that is gone, the way is free."""
    code = (
        "import sys, numpy as np\n"
        "from fedjax_rec.data.store.writer import write_store\n"
        "try:\n"
        "    with write_store(sys.argv[1]):\n"
        "        pass\n"
        "except ValueError as problem:\n"
        "    print(problem)\n"
    )

    def write_too():
        told = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code, tmp_path / "s"], capture_output=True, text=True, check=True
        ).stdout
        assert f"is being written by process {os.getpid()} on" in told
        raise RuntimeError

    with pytest.raises(RuntimeError), write_store(tmp_path / "s"):
        write_too()
    make(tmp_path / "s")
