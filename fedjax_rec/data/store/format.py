"""What lies in a store's folder, and how it is opened: nothing is read but what is asked for.

| file | holds |
|---|---|
| `meta.json` | version, sizes, and of each column its type, length and sums; its own sum seals it |
| `offsets.bin` | int64[N + 1], client `n`'s events are `offsets[n] : offsets[n + 1]` |
| `items.bin` | int32[M], each client's distinct items, in its order of time where the store says so |
| `ratings.bin`, `timestamps.bin` | float32[M]; int64[M] or float64[M], seconds; where there are any |
| `user_ids.bin`, `item_ids.bin` | external ids: int64, or utf-8 bytes of equal width; without them, codes |

All numbers are little-endian. A store is written once (`writer`) and never changed. Opening one compares the sizes
of all files, the offsets, and the sums over samples of each column; `verify` reads every byte. Several processes
read one together (`shares`).
"""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.verification import check_file, check_items, check_offsets, check_order

FORMAT = "fedjax_rec store"
VERSION = 2
META = "meta.json"
ORDERS = ("time", "file")  # of each client's events
_REQUIRED = {"offsets": "<i8", "items": "<i4"}
_OPTIONAL = {"ratings": ("<f4",), "timestamps": ("<i8", "<f8"), "user_ids": (), "item_ids": ()}


class Column(NamedTuple):
    """One column as `meta.json` describes it."""

    dtype: str  # numpy's, little-endian
    length: int  # values
    sha256: str  # over all bytes
    samples: list[str]  # sums over blocks of bytes here and there, as `sample_spans` says


class Histories(NamedTuple):
    """What some clients did, client after client."""

    counts: np.ndarray  # int64[S]
    items: np.ndarray  # int32[sum of counts]
    ratings: np.ndarray | None  # float32[sum of counts]


class Store:
    """A population on disk.

    Example:
        >>> import tempfile
        >>> from fedjax_rec.data.store.drawn import synthesise
        >>> store = synthesise(Path(tempfile.mkdtemp()) / "drawn", clients=30, items=100, events_per_client=5)
        >>> store.num_clients, store.num_items, store.offsets.dtype
        (30, 100, dtype('int64'))
    """

    def __init__(self, path: Path, meta: Mapping[str, Any], columns: Mapping[str, Column]) -> None:
        """As `open_store` makes it."""
        self.path = path
        self.meta = meta
        self.columns = columns
        self._files = {name: os.open(path / f"{name}.bin", os.O_RDONLY) for name in columns}
        weakref.finalize(self, _close, tuple(self._files.values()))

    @property
    def name(self) -> str:
        """What results call it."""
        return self.meta["name"]

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.columns["offsets"].length - 1

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return self.meta["num_items"]

    @property
    def num_events(self) -> int:
        """Number of events M."""
        return self.columns["items"].length

    @property
    def order(self) -> str:
        """How each client's events are sorted: one of `ORDERS`."""
        return self.meta["order"]

    @property
    def data_hash(self) -> str:
        """The sha256 over the sums of all columns, 64 hexadecimal digits."""
        sums = sorted(
            (name, column.dtype, column.length, column.sha256) for name, column in self.columns.items()
        )
        return hashlib.sha256(json.dumps([self.num_items, self.order, sums]).encode()).hexdigest()

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64[N + 1], mapped."""
        return self.column("offsets")

    def column(self, name: str) -> np.ndarray:
        """A column, mapped into memory.

        Args:
            name: of the column.

        Returns:
            [length], read-only.

        Example:
            >>> import tempfile
            >>> from fedjax_rec.data.store.drawn import synthesise
            >>> store = synthesise(Path(tempfile.mkdtemp()) / "drawn", clients=9, items=30, events_per_client=5)
            >>> store.column("items").dtype
            dtype('int32')
        """
        column = self.columns[name]
        if not column.length:
            return np.zeros(0, column.dtype)
        return np.asarray(np.memmap(self.path / f"{name}.bin", column.dtype, "r", shape=column.length))

    def read(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some values of a column, read from its file: pages that are mapped would stay, and count as memory.

        Args:
            name: of the column.
            start: the first.
            stop: the first behind them.

        Returns:
            [stop - start].

        Raises:
            DataError: if the file has become shorter.
        """
        dtype = np.dtype(self.columns[name].dtype)
        return np.frombuffer(self._read_bytes(name, start * dtype.itemsize, stop * dtype.itemsize), dtype)

    def _read_bytes(self, name: str, start: int, stop: int) -> bytes:
        data = os.pread(self._files[name], stop - start, start)
        while len(data) < stop - start:
            more = os.pread(self._files[name], stop - start - len(data), start + len(data))
            if not more:
                raise DataError(
                    f"{self.path / name}.bin: ends within the events of a client; make the store anew"
                )
            data += more
        return data

    def gather(self, clients: np.ndarray, *, lengths: np.ndarray | None = None) -> Histories:
        """The histories of some clients.

        Args:
            clients: int[S], which.
            lengths: int[S], how many of the first events of each; by default all.

        Returns:
            the histories.

        Raises:
            DataError: naming the file, if it is shorter than it was, or holds items that there are not.

        Example:
            >>> import tempfile
            >>> from fedjax_rec.data.store.drawn import synthesise
            >>> store = synthesise(Path(tempfile.mkdtemp()) / "drawn", clients=9, items=30, events_per_client=5)
            >>> store.gather(np.array([3, 1]), lengths=np.array([2, 3])).counts
            array([2, 3])
        """
        starts = self.offsets[clients]
        counts = self.offsets[np.asarray(clients) + 1] - starts if lengths is None else np.asarray(lengths)
        spans = list(zip(starts.tolist(), (starts + counts).tolist(), strict=True))
        items = self._gather("items", spans)
        if len(items) and (items.min() < 0 or items.max() >= self.num_items):
            bad = items.min() if items.min() < 0 else items.max()
            raise DataError(
                f"{self.path / 'items.bin'}: item {bad} is out of range, there are {self.num_items:,} items; make "
                "the store anew"
            )
        return Histories(counts, items, self._gather("ratings", spans) if "ratings" in self.columns else None)

    def _gather(self, name: str, spans: list[tuple[int, int]]) -> np.ndarray:
        pieces = [self.read(name, start, stop) for start, stop in spans]
        return np.concatenate(pieces) if pieces else np.zeros(0, self.columns[name].dtype)

    @property
    def own_clients(self) -> tuple[int, int]:
        """The first client whose history is read here, and the first behind them: of one process, all."""
        return 0, self.num_clients

    def total(self, count: Callable[[], np.ndarray]) -> np.ndarray:
        """What is counted over all clients.

        Args:
            count: counts over `own_clients`: int64 of one shape in all processes.

        Returns:
            the sum over the processes.
        """
        return count()

    def check_order(self, clients: np.ndarray) -> None:
        """Refuse clients whose events are not in the order of their times, where the store says that they are.

        Args:
            clients: int[S], which.

        Raises:
            DataError: naming the file and the first such client.
        """
        check_order(self, clients)

    def apart(self) -> "Store":
        """The same for another thread, which reads beside this one."""
        return self

    def wait_for_all(self) -> None:
        """Until all processes that read the store have come here."""

    def user_ids(self, clients: np.ndarray) -> np.ndarray:
        """External ids of some clients; the clients themselves where there are none.

        Args:
            clients: int[S], which.

        Returns:
            int64[S] or str[S].
        """
        return _decode(self.column("user_ids")[clients]) if "user_ids" in self.columns else clients

    def ids(self, which: str) -> np.ndarray:
        """External ids: those of the column, or the codes.

        Args:
            which: "user_ids" or "item_ids".

        Returns:
            int64[N] or str[N].
        """
        if which not in self.columns:
            return np.arange(self.num_clients if which == "user_ids" else self.num_items)
        return _decode(self.column(which))


def is_store(path: str | Path) -> bool:
    """Whether a folder is a store, sound or not.

    Args:
        path: of anything.

    Returns:
        True or False.

    Example:
        >>> is_store("/nowhere")
        False
    """
    try:
        return (Path(path) / META).is_file()
    except (OSError, ValueError):
        return False


def open_store(path: str | Path, *, verify: bool = False) -> Store:
    """Open a store.

    Args:
        path: its folder.
        verify: whether every byte is read and compared with its sums, every item with the catalogue, and the order
            of each client's events with their times.

    Returns:
        the store.

    Raises:
        DataError: naming the file that is missing, shorter or longer than it was, changed, or of another version.

    Example:
        >>> open_store("/nowhere")
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: /nowhere: no store: there is no meta.json; make one with ...
    """
    path = Path(path)
    meta, columns = read_meta(path)
    for name, column in columns.items():
        check_file(path / f"{name}.bin", column, verify=verify)
    store = Store(path, meta, columns)
    check_offsets(store)
    if verify:
        check_items(store)
        check_order(store)
    return store


def describe_store(store: Store) -> dict[str, Any]:
    """What is in a store, by name.

    Args:
        store: any.

    Returns:
        plain values.

    Example:
        >>> import tempfile
        >>> from fedjax_rec.data.store.drawn import synthesise
        >>> store = synthesise(Path(tempfile.mkdtemp()) / "drawn", clients=9, items=30, events_per_client=5)
        >>> describe_store(store)["clients"]
        9
    """
    lengths = np.diff(store.offsets)
    size = sum(np.dtype(column.dtype).itemsize * column.length for column in store.columns.values())
    return {
        "store": str(store.path),
        "name": store.name,
        "version": VERSION,
        "clients": store.num_clients,
        "items": store.num_items,
        "events": store.num_events,
        "events a client": {
            "least": int(lengths.min(initial=np.iinfo(np.int64).max if len(lengths) else 0)),
            "median": float(np.median(lengths)) if len(lengths) else 0.0,
            "mean": float(lengths.mean()) if len(lengths) else 0.0,
            "most": int(lengths.max(initial=0)),
        },
        "order": store.order,
        "columns": {name: f"{column.dtype[1:]}[{column.length:,}]" for name, column in store.columns.items()},
        "size": f"{size / 1e9:,.3f} GB",
        "data hash": store.data_hash[:12],
        "made from": store.meta["origin"],
    }


def seal_of(meta: Mapping[str, Any]) -> str:
    """The sum over what `meta.json` says, but the sum itself.

    Args:
        meta: its content.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> seal_of({"a": 1, "seal": "x"}) == seal_of({"a": 1})
        True
    """
    told = {name: value for name, value in meta.items() if name != "seal"}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def read_meta(path: Path) -> tuple[dict[str, Any], dict[str, Column]]:
    """What `meta.json` says, if it is whole and of this version.

    Args:
        path: of a store's folder.

    Returns:
        all of it, and its columns by name.

    Raises:
        DataError: naming what is missing, damaged, or of another version.
    """
    file = path / META
    if not is_store(path):
        raise DataError(
            f"{path}: no store: there is no {META}; make one with fedjax-rec data convert or data synthesise"
        )
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file}: cannot be read ({problem}); make the store anew") from problem
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise DataError(f"{file}: is not of a store; name the folder that data convert or synthesise made")
    if meta.get("version") != VERSION:
        raise DataError(
            f"{file}: version {meta.get('version')!r}, and this release reads {VERSION}; make the store anew, or "
            "use the release that made it"
        )
    if meta.get("seal") != seal_of(meta):
        raise DataError(f"{file}: was changed after it was sealed; make the store anew")
    return meta, {name: Column(**column) for name, column in meta["columns"].items()}


def _decode(ids: np.ndarray) -> np.ndarray:
    return np.char.decode(ids, "utf-8") if ids.dtype.kind == "S" else ids


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def check_column(name: str, dtype: np.dtype) -> None:
    """Refuse a column that no store has.

    Args:
        name: of the column.
        dtype: its type.

    Raises:
        DataError: naming it.
    """
    known = {name: (kind,) for name, kind in _REQUIRED.items()} | _OPTIONAL
    if name not in known or (known[name] and dtype.str not in known[name]):
        raise DataError(f"a store has no column {name!r} of {dtype}")


def bytes_of(dtype: str, length: int) -> int:
    """Bytes of a column.

    Args:
        dtype: its type.
        length: values.

    Returns:
        the number.

    Example:
        >>> bytes_of("<i8", 3)
        24
    """
    return math.prod((np.dtype(dtype).itemsize, length))
