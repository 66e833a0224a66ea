"""What lies in a store's folder, and how it is opened: nothing is read but what is asked for.

| file | holds |
|---|---|
| `meta.json` | version, sizes, and of each column its type, length and sums; its own sum seals it |
| `offsets.bin` | int64[N + 1], client `n`'s events are `offsets[n] : offsets[n + 1]` |
| `items.bin` | int32[M], each client's distinct items, in its order of time where the store says so |
| `ratings.bin`, `timestamps.bin` | float32[M]; int64[M] or float64[M], seconds; where there are any |
| `user_ids.bin`, `item_ids.bin` | external ids: int64, or utf-8 bytes of equal width; without them, codes |

All numbers are little-endian. A store is written once (`writer`) and never changed. Opening one compares the sizes
of all files, the offsets, and the sum over samples of each column; `verify` reads every byte.
"""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.verification import check_items, check_order

FORMAT = "fedjax_rec store"
VERSION = 1
META = "meta.json"
ORDERS = ("time", "file")  # of each client's events
SAMPLES = 64  # blocks of a column that its quick sum is over
SAMPLE_BYTES = 2**16
_BLOCK = 2**22  # values looked at together
_REQUIRED = {"offsets": "<i8", "items": "<i4"}
_OPTIONAL = {"ratings": ("<f4",), "timestamps": ("<i8", "<f8"), "user_ids": (), "item_ids": ()}


class Column(NamedTuple):
    """One column as `meta.json` describes it."""

    dtype: str  # numpy's, little-endian
    length: int  # values
    sha256: str  # over all bytes
    sample: str  # over the bytes of `SAMPLES` blocks


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
        size = (stop - start) * dtype.itemsize
        data = os.pread(self._files[name], size, start * dtype.itemsize)
        while len(data) < size:
            more = os.pread(self._files[name], size - len(data), start * dtype.itemsize + len(data))
            if not more:
                raise DataError(
                    f"{self.path / name}.bin: ends within the events of a client; make the store anew"
                )
            data += more
        return np.frombuffer(data, dtype)

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

    def ids(self, which: str) -> np.ndarray:
        """External ids: those of the column, or the codes.

        Args:
            which: "user_ids" or "item_ids".

        Returns:
            int64[N] or str[N].
        """
        if which not in self.columns:
            return np.arange(self.num_clients if which == "user_ids" else self.num_items)
        column = self.column(which)
        return np.char.decode(column, "utf-8") if column.dtype.kind == "S" else column


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
    meta = _read_meta(path)
    columns = {name: Column(**column) for name, column in meta["columns"].items()}
    for name, column in columns.items():
        _check_file(path / f"{name}.bin", column, verify=verify)
    store = Store(path, meta, columns)
    _check_offsets(store)
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


def sample_sum(path: Path) -> str:
    """The sum over `SAMPLES` blocks of a file, the first and the last among them.

    Args:
        path: of a column.

    Returns:
        64 hexadecimal digits.
    """
    size = path.stat().st_size
    last = max(size - SAMPLE_BYTES, 0)
    places = sorted({round(last * number / (SAMPLES - 1)) for number in range(SAMPLES)})
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for place in places:
            file.seek(place)
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    """What `meta.json` says, if it is whole and of this version."""
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
    return meta


def _check_file(path: Path, column: Column, *, verify: bool) -> None:
    """Refuse a column that is not what the seal says."""
    expected = column.length * np.dtype(column.dtype).itemsize
    try:
        found = path.stat().st_size
    except OSError as problem:
        raise DataError(f"{path}: missing ({problem.strerror}); make the store anew") from problem
    if found != expected:
        raise DataError(
            f"{path}: {found:,} bytes where there were {expected:,}; it was cut off, make the store anew"
        )
    changed = sample_sum(path) != column.sample
    if verify and not changed:
        with path.open("rb") as file:
            changed = hashlib.file_digest(file, "sha256").hexdigest() != column.sha256
    if changed:
        raise DataError(f"{path}: was changed after it was sealed; make the store anew")


def _close(descriptors: tuple[int, ...]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _check_offsets(store: Store) -> None:
    offsets = store.offsets
    falls = any(
        (np.diff(offsets[start : start + _BLOCK + 1]) < 0).any() for start in range(0, len(offsets), _BLOCK)
    )
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != store.num_events or falls:
        raise DataError(
            f"{store.path / 'offsets.bin'}: no offsets of {store.num_events:,} events; make the store anew"
        )


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
