"""A store read by several processes, each its share: here by threads, with a key-value store of their own."""

import re
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.format import Store, open_store
from fedjax_rec.data.store.sampling import HELD_OUT, sample_split
from fedjax_rec.data.store.shares import SharedStore, open_share, share_bounds
from fedjax_rec.data.store.writer import write_store
from fedjax_rec.hosts import mailbox
from fedjax_rec.hosts.mailbox import Mailbox
from fedjax_rec.runs.stores import count_items
from tests.hosts import copy_share, make_store

LIMIT = 60  # seconds


class Service:
    """Bytes by key, as jax's coordination service has them."""

    def __init__(self) -> None:
        self.values: dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.largest = 0

    def key_value_set_bytes(self, key: str, value: bytes) -> None:
        """Once for each key."""
        with self.changed:
            assert key not in self.values
            self.values[key] = value
            self.largest = max(self.largest, len(value))
            self.changed.notify_all()

    def blocking_key_value_get_bytes(self, key: str, timeout_in_ms: int) -> bytes:
        """Waits until it is there."""
        with self.changed:
            assert self.changed.wait_for(lambda: key in self.values, min(timeout_in_ms / 1000, LIMIT)), key
            return self.values[key]

    def key_value_delete(self, key: str) -> None:
        """That is there."""
        with self.changed:
            del self.values[key]


def in_all(count: int, act: Callable[[Mailbox], Any], service: Service | None = None) -> list[Any]:
    """What so many processes get, each with a mailbox; an error is what it got."""
    service = service or Service()

    def run(number: int) -> Any:
        try:
            return act(Mailbox(service, number, count))
        except DataError as problem:
            return problem

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


def test_messages_go_in_pieces(monkeypatch):
    """Of any length, also none; what all have read is gone; a mailbox of another thread has keys of its own."""
    monkeypatch.setattr(mailbox, "PIECE", 10)
    service = Service()
    said = [[b"", b"x" * 10, b"y" * 11], [b"z" * 95, b"", bytes(range(256))], [b"a", b"b", b"c"]]

    def talk(own: Mailbox) -> Any:
        beside = own.apart()
        heard = [own.exchange(said[own.number][turn]) for turn in range(2)]
        return [*heard, beside.exchange(b"beside"), own.exchange(said[own.number][2])]

    wanted = [*([each[turn] for each in said] for turn in range(2)), [b"beside"] * 3]
    for heard in in_all(3, talk, service):
        assert heard == [*wanted, [each[2] for each in said]]
    assert service.largest == 14
    assert {key.rsplit("/", 2)[0] for key in service.values} == {"fedjax_rec/0/2", "fedjax_rec/0.1/0"}


@pytest.mark.parametrize("count", [1, 2, 3, 8, 64])
def test_each_client_is_in_one_share(count):
    """And no share has more than a mean one and one client; with fewer clients than processes, too."""
    rng = np.random.default_rng(count)
    for num_clients in (0, 1, 5, 1000):
        lengths = rng.integers(0, 50, num_clients)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        bounds = share_bounds(offsets, count)
        assert (len(bounds), bounds[0], bounds[-1]) == (count + 1, 0, num_clients)
        assert (np.diff(bounds) >= 0).all()
        events = np.diff(offsets[bounds])
        assert events.max() <= lengths.sum() / count + lengths.max(initial=0) + 1


def test_processes_read_what_one_does(tmp_path):
    """Each from a folder in which only its share is whole: histories, ids, a sample, and what is counted."""
    path = make_store(tmp_path / "store")
    whole = open_store(path, verify=True)
    clients = np.random.default_rng(0).permutation(whole.num_clients)[:25]
    lengths = whole.offsets[clients + 1] - whole.offsets[clients] - 1

    def read(store: Store) -> list[Any]:
        histories = store.gather(clients), store.gather(clients, lengths=lengths), store.gather(clients[:0])
        store.check_order(clients)
        ids, split = sample_split(store, 9, num_candidates=3)
        population = StoredPopulation(store, num_held_out=HELD_OUT)
        counted = count_items(population)
        fetched = population.apart().fetch(clients, np.arange(len(clients)) % 3 > 0)
        told = [*(part for each in histories for part in each), store.user_ids(clients), ids, counted]
        return [
            *told,
            split.items,
            split.test_ratings,
            split.user_ids,
            split.candidates_test,
            *fetched.examples.values(),
        ]

    def read_share(own: Mailbox) -> list[Any]:
        copied = copy_share(path, tmp_path / f"copy-{own.count}-{own.number}", own.count, own.number)
        store = open_share(copied, own)
        store.check_share()
        return read(store)

    wanted = read(whole)
    for count in (2, 3):
        for found in in_all(count, read_share):
            assert len(found) == len(wanted)
            for one, other in zip(found, wanted, strict=True):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)


def test_blocks_across_shares_are_compared(tmp_path):
    """A change at any place is found by the owner, or by all where shares meet; without it, all agree."""
    items = np.arange(400_000, dtype=np.int32)
    with write_store(tmp_path / "store") as writer:
        writer.append("offsets", np.arange(0, len(items) + 1, 100))
        writer.append("items", items)
        writer.describe(name="many", num_items=len(items), order="file", origin="a test")
    file = tmp_path / "store" / "items.bin"

    def check(own: Mailbox) -> None:
        open_share(tmp_path / "store", own).check_share()

    for count in (1, 2, 5):
        assert in_all(count, check) == [None] * count
    for byte, told in ((3, "process 0"), (1_599_998, "process 1"), (800_000, "process 0 .* or process 1")):
        whole = file.read_bytes()
        file.write_bytes(whole[:byte] + bytes([whole[byte] ^ 1]) + whole[byte + 1 :])
        refused = [str(each) for each in in_all(2, check)]
        assert refused[0] == refused[1]
        assert re.fullmatch(rf"{told} \(.*\): .*/items\.bin: was changed after it was sealed; .*", refused[0])
        file.write_bytes(whole)


def test_what_one_process_cannot_read_all_refuse(tmp_path):
    """At opening and afterwards, with the words of the one that cannot; and questions that differ."""
    path = make_store(tmp_path / "store")

    def open_both(own: Mailbox) -> SharedStore:
        return open_share(tmp_path / "nowhere" if own.number else path, own)

    def lose(own: Mailbox) -> Any:
        copied = copy_share(path, tmp_path / f"copy-{own.number}", 2, own.number)
        store = open_share(copied, own)
        if own.number:
            (copied / "items.bin").write_bytes(b"")
        return store.gather(np.arange(store.num_clients))

    def ask_another(own: Mailbox) -> Any:
        return open_share(path, own).gather(np.arange(3 + own.number))

    for act, told in (
        (open_both, r"process 1 \(.*\): .*nowhere: no store: there is no meta\.json"),
        (
            lose,
            r"process 1 \(.*\): .*copy-1/items\.bin: ends within the events of a client; make the store anew",
        ),
        (
            ask_another,
            "process [01] reads other clients than process [01]; all processes must use a store in",
        ),
    ):
        for problem in in_all(2, act):
            assert isinstance(problem, DataError)
            assert re.search(told, str(problem)), problem
            assert "\n" not in str(problem)
