"""A store that several processes read together: each the histories of its share of the clients, and no others.

The clients are divided into ranges with about as many events each. What is asked of the store is asked by all
processes, with the same arguments and in the same order; each reads what is in its share, and tells the others.
Whole in every process are `meta.json`, the offsets and the items' ids; of all other columns a process reads the
bytes of its share alone, and compares these with the sums that were sealed.
"""

import copy
import socket
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.format import Column, Histories, Store, read_meta
from fedjax_rec.data.store.verification import (
    changed_since,
    check_file,
    check_offsets,
    check_order,
    sample_spans,
    sample_sum,
)

WHOLE = ("offsets", "item_ids")  # columns that every process reads
_FOUND, _PROBLEM = b"+", b"-"  # what a message begins with
_SUM = 4  # bytes of the sum over what was asked


class Peers(Protocol):
    """How the processes that read a store tell one another what they read (`fedjax_rec.hosts.Mailbox`)."""

    number: int  # of this process
    count: int  # P

    def exchange(self, message: bytes) -> list[bytes]:
        """The messages of all processes, which all call it."""

    def apart(self) -> "Peers":
        """The same for another thread."""


def share_bounds(offsets: np.ndarray, count: int) -> np.ndarray:
    """Divide clients among processes, with about as many events for each.

    Args:
        offsets: int64[N + 1], of a store.
        count: P, how many processes there are.

    Returns:
        int64[P + 1]; process `p` reads clients `bounds[p] : bounds[p + 1]`, and each client is in one share.

    Example:
        >>> share_bounds(np.array([0, 6, 7, 8, 12]), 2)
        array([0, 1, 4])
    """
    wanted = [int(offsets[-1]) * number // count for number in range(1, count)]
    return np.concatenate([[0], np.searchsorted(offsets[:-1], wanted), [len(offsets) - 1]])


def open_share(path: str | Path, peers: Peers) -> "SharedStore":
    """Open a store together with other processes; what one of them cannot open, all refuse.

    Args:
        path: of its folder here, which may be another one in each process.
        peers: the processes.

    Returns:
        the store, whose shares are not compared with their sums yet (`check_share`).

    Raises:
        DataError: in all processes, naming the one, its host and the file that is not sound.

    Example:
        >>> import tempfile
        >>> from fedjax_rec.data.store.drawn import synthesise
        >>> from fedjax_rec.hosts import Mailbox
        >>> path = Path(tempfile.mkdtemp()) / "drawn"
        >>> _ = synthesise(path, clients=9, items=30, events_per_client=5)
        >>> open_share(path, Mailbox()).own_clients
        (0, 9)
    """
    path = Path(path)
    opened: list[SharedStore] = []

    def open_own() -> bytes:
        meta, columns = read_meta(path)
        for name, column in columns.items():
            check_file(path / f"{name}.bin", column, sampled=name in WHOLE)
        store = SharedStore(path, meta, columns, peers)
        check_offsets(store)
        opened.append(store)
        return b""

    _tell(peers, open_own)
    return opened[0]


class SharedStore(Store):
    """A store of which this process reads its share; `open_share` makes one.

    Args:
        path: its folder.
        meta: as `meta.json` has it.
        columns: the same of its columns.
        peers: the processes that read it.
    """

    def __init__(
        self, path: Path, meta: Mapping[str, Any], columns: Mapping[str, Column], peers: Peers
    ) -> None:
        super().__init__(path, meta, columns)
        self.peers = peers
        self.bounds = share_bounds(self.offsets, peers.count)
        self._origin: SharedStore | None = None  # whose files these are

    @property
    def own_clients(self) -> tuple[int, int]:
        """The first client whose history is read here, and the first behind them."""
        first, stop = self.bounds[self.peers.number : self.peers.number + 2].tolist()
        return first, stop

    def apart(self) -> "SharedStore":
        """The same for another thread, which reads beside this one; all processes must make it."""
        other = copy.copy(self)
        other.peers = self.peers.apart()
        other._origin = self  # noqa: SLF001 - its own
        return other

    def wait_for_all(self) -> None:
        """Until all processes that read the store have come here."""
        self.peers.exchange(b"")

    def gather(self, clients: np.ndarray, *, lengths: np.ndarray | None = None) -> Histories:
        """The histories of some clients, each read by the process that has it in its share; all must call it.

        Args:
            clients: int[S], which.
            lengths: int[S], how many of the first events of each; by default all.

        Returns:
            the histories.

        Raises:
            DataError: in all processes, naming the one, its host and the file that is not sound.
        """
        clients = np.asarray(clients)
        counts = self.offsets[clients + 1] - self.offsets[clients] if lengths is None else np.asarray(lengths)
        # Items travel in as few bytes as the catalogue needs.
        dtypes = [np.min_scalar_type(self.num_items).newbyteorder("<").str]
        dtypes += ["<f4"] * ("ratings" in self.columns)

        def read(own: np.ndarray) -> list[np.ndarray]:
            found = Store.gather(self, clients[own], lengths=counts[own])
            items = found.items.astype(dtypes[0])
            return [items] if found.ratings is None else [items, found.ratings]

        items, *ratings = self._collect(clients, counts, read, dtypes)
        return Histories(counts, items.astype(np.int32), ratings[0] if ratings else None)

    def check_order(self, clients: np.ndarray) -> None:
        """As of `Store`, each client where its history is; all must call it."""

        def check(own: np.ndarray) -> list[np.ndarray]:
            check_order(self, clients[own])
            return []

        self._collect(clients, np.zeros(len(clients), np.int64), check, [])

    def user_ids(self, clients: np.ndarray) -> np.ndarray:
        """External ids of some clients, each from the process that has it in its share; all must call it.

        Args:
            clients: int[S], which.

        Returns:
            int64[S] or str[S].
        """
        if "user_ids" not in self.columns:
            return clients
        column = self.column("user_ids")
        found = self._collect(
            clients, np.ones(len(clients), np.int64), lambda own: [column[clients[own]]], [column.dtype.str]
        )
        return np.char.decode(found[0], "utf-8") if column.dtype.kind == "S" else found[0]

    def total(self, count: Callable[[], np.ndarray]) -> np.ndarray:
        """What is counted over all clients, by each process over its share; all must call it.

        Args:
            count: counts over `own_clients`: int64 of one shape in all processes.

        Returns:
            the sum over the processes.

        Raises:
            DataError: in all processes, of what one of them could not read.
        """
        counted: list[np.ndarray] = []

        def count_own() -> bytes:
            counted.append(count())
            return counted[0].astype("<i8").tobytes()

        heard = _tell(self.peers, count_own)
        return np.sum([np.frombuffer(each, "<i8") for each in heard], axis=0).reshape(counted[0].shape)

    def check_share(self) -> None:
        """Compare the blocks that have sums with these: each process those in its share, all what lies across.

        Raises:
            DataError: in all processes, naming the one, its host and the file that is not what was sealed.
        """
        heard = _tell(self.peers, self._read_parts)
        places = [0] * len(heard)
        wrong: list[tuple[str, list[int]]] = []
        for name, block, wanted in self._blocks():
            sizes = [self._size_in_share(name, block, number) for number in range(len(heard))]
            owners = [number for number, size in enumerate(sizes) if size]
            if len(owners) > 1:
                data = b"".join(heard[number][places[number] :][: sizes[number]] for number in owners)
                for number in owners:
                    places[number] += sizes[number]
                if sample_sum(data) != wanted:
                    wrong.append((name, owners))
        if wrong:
            name, owners = wrong[0]
            # the rest of their messages
            hosts = [heard[number][places[number] :].decode() for number in owners]
            told = " or ".join(f"process {one} ({host})" for one, host in zip(owners, hosts, strict=True))
            raise DataError(f"{told}: {changed_since(self.path / f'{name}.bin')}")

    def _read_parts(self) -> bytes:
        """Compare the blocks of this share, and read its parts of those that lie across; behind these its host."""
        parts = []
        for name, block, wanted in self._blocks():
            start, stop = self._overlap(name, block, self.peers.number)
            data = self._read_bytes(name, start, stop)
            if stop - start < block[1] - block[0]:
                parts.append(data)
            elif sample_sum(data) != wanted:
                raise DataError(changed_since(self.path / f"{name}.bin"))
        return b"".join([*parts, socket.gethostname().encode()])

    def _blocks(self) -> Iterator[tuple[str, tuple[int, int], str]]:
        """The blocks that have sums, of columns that are read in shares: first and last byte, and the sum."""
        for name, column in self.columns.items():
            if name not in WHOLE:
                spans = sample_spans(column.length * np.dtype(column.dtype).itemsize)
                yield from ((name, *each) for each in zip(spans, column.samples, strict=True))

    def _overlap(self, name: str, block: tuple[int, int], number: int) -> tuple[int, int]:
        """The bytes of a block that are in the share of a process."""
        first, stop = self.bounds[number : number + 2]
        if name != "user_ids":  # the others have a value for each event
            first, stop = self.offsets[first], self.offsets[stop]
        size = np.dtype(self.columns[name].dtype).itemsize
        start = max(block[0], int(first) * size)
        return start, max(start, min(block[1], int(stop) * size))

    def _size_in_share(self, name: str, block: tuple[int, int], number: int) -> int:
        start, stop = self._overlap(name, block, number)
        return stop - start

    def _collect(
        self,
        clients: np.ndarray,
        counts: np.ndarray,
        read: Callable[[np.ndarray], list[np.ndarray]],
        dtypes: Sequence[str],
    ) -> list[np.ndarray]:
        """Values of some clients, `counts` of each, that every process reads of its own clients."""
        owners = np.searchsorted(self.bounds[1:-1], clients, side="right")
        asked = zlib.crc32(counts.astype("<i8").tobytes(), zlib.crc32(clients.astype("<i8").tobytes()))
        question = asked.to_bytes(_SUM, "little")
        heard = _tell(
            self.peers,
            lambda: b"".join([question, *(each.tobytes() for each in read(owners == self.peers.number))]),
        )
        strangers = [number for number, each in enumerate(heard) if each[:_SUM] != question]
        if strangers:
            raise DataError(
                f"{self.path}: process {strangers[0]} reads other clients than process {self.peers.number}; all "
                "processes must use a store in the same order"
            )

        # The messages hold the clients by owner; where each one's values then begin.
        by_owner = np.argsort(owners, kind="stable")
        starts = np.empty(len(clients), np.int64)
        starts[by_owner] = np.cumsum(counts[by_owner]) - counts[by_owner]
        spans = list(zip(starts.tolist(), (starts + counts).tolist(), strict=True))
        sizes = np.bincount(owners, counts, minlength=self.peers.count).astype(np.int64)
        places = np.full(self.peers.count, _SUM)
        collected = []
        for dtype in dtypes:
            parts = [
                np.frombuffer(each, dtype, size, place)
                for each, size, place in zip(heard, sizes, places, strict=True)
            ]
            values = np.concatenate(parts)
            places += sizes * values.itemsize
            collected.append(np.concatenate([values[:0], *(values[start:stop] for start, stop in spans)]))
        return collected


def _tell(peers: Peers, find: Callable[[], bytes]) -> list[bytes]:
    """What all processes find; what one cannot, all refuse with its words."""
    try:
        message = _FOUND + find()
    except Exception as problem:  # whatever it is, the others wait for an answer
        message = _PROBLEM + f"process {peers.number} ({socket.gethostname()}): {problem}".encode()
    heard = peers.exchange(message)
    for each in heard:
        if each.startswith(_PROBLEM):
            raise DataError(each[1:].decode())
    return [each[1:] for each in heard]
