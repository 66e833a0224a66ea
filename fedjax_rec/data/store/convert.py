"""Converting events to a store in bounded memory: an external sort by client.

First pass: events come in pieces; ids become codes by first appearance, and each event goes to the file of its
group of clients. Second pass: group by group, clients are put in order, each one's events in that of time, and
pairs that repeat are dealt with. Memory is that of one piece, of the vocabularies (24 bytes for each integer id),
and of the events of `_TOGETHER` in the second pass; the files take 8 to 20 bytes an event beside the store.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from fedjax_rec.data.columns import check_rule
from fedjax_rec.data.errors import DataError, DataParameterError
from fedjax_rec.data.sorting import stable_order
from fedjax_rec.data.store.format import Store, open_store
from fedjax_rec.data.store.progress import progress_of
from fedjax_rec.data.store.sources import Source, open_source
from fedjax_rec.data.store.writer import StoreWriter, write_store
from fedjax_rec.data.times import Times, as_numbers, unit_of
from fedjax_rec.data.vocabulary import Vocabulary, Where
from fedjax_rec.errors import check_arguments

ROWS = 2**20  # of a piece
_RULES = ("error", "first", "last")
_GROUP = 2**14  # clients whose events share a file
_TOGETHER = 2**23  # events sorted at once
_ITEM_CODES = 2**31 - 1


def convert(
    source: str | Path | Iterable[pd.DataFrame],
    store: str | Path,
    *,
    user: str | None = None,
    item: str | None = None,
    rating: str | None = None,
    timestamp: str | None = None,
    columns: str | None = None,
    separator: str | None = None,
    duplicates: str = "error",
    name: str | None = None,
    progress: bool = False,
) -> Store:
    r"""Make a store of events, however many there are.

    Args:
        source: a csv, tsv or `.inter` file, also packed with gzip or bz2; a parquet file, or a folder of such,
            which may be partitioned; or frames of pandas that come one after the other.
        store: the folder to make.
        user: name of the users' column; found by the usual names if None.
        item: the same for the items.
        rating: the same for the ratings, which may be absent; "none" leaves them out.
        timestamp: the same for the times. Without them each client's events are in the order in which they come.
        columns: names of the columns of a text without a header, with commas between them.
        separator: between fields of text; found if None.
        duplicates: what becomes of a pair that repeats: "error", or keep the "first" or "last" of its events.
        name: what results call it; that of the source if None.
        progress: show a progress bar, where `tqdm` is installed.

    Returns:
        the store, opened. Clients and items are coded by first appearance, as readers do.

    Raises:
        DataError: naming the file and line of whatever is wrong; nothing is then left.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> _ = (folder / "log.csv").write_bytes(b"user,item,timestamp\nana,tea,2\nbo,tea,1\nana,rum,1\n")
        >>> made = convert(folder / "log.csv", folder / "store")
        >>> made.gather(np.array([0])).items, made.ids("item_ids")[made.gather(np.array([0])).items]
        (array([1, 0], dtype=int32), array(['rum', 'tea'], dtype='<U3'))
    """
    check_arguments(convert, {**locals(), "source": "any"})
    if check_rule(duplicates) not in _RULES:
        raise DataParameterError(
            f"{{duplicates={duplicates}}}: a store knows {', '.join(_RULES)}; merge them before"
        )
    named = {"user": user, "item": item, "rating": rating, "timestamp": timestamp}
    opened = open_source(source, named, columns=columns, separator=separator, rows=ROWS)
    where = str(source) if isinstance(source, str | Path) else "frames"
    with write_store(store) as writer:
        groups = _Groups(writer.folder, opened, where)
        with (
            contextlib.closing(groups),
            progress_of(opened.num_rows, "row", "reading", shown=progress) as advance,
        ):
            for frame in opened.frames:
                groups.put(frame, duplicates)
                advance(len(frame))
            groups.flush()
            with progress_of(groups.num_rows, "event", "sorting", shown=progress) as sorting:
                groups.write(writer, duplicates, sorting)
        writer.describe(
            name=name or opened.name,
            num_items=groups.num_items,
            order="file" if opened.columns.timestamp is None else "time",
            origin=f"{where}, {groups.num_rows} rows, duplicates {duplicates}",
        )
    return open_store(store)


class _Groups:
    """The events so far, in files of `_GROUP` clients each."""

    def __init__(self, folder: Path, source: Source, where: str) -> None:
        self.columns = source.columns
        self.source = where
        self.first_row = source.first_row
        self.users = Vocabulary(source.columns.user)
        self.items = Vocabulary(source.columns.item)
        self.num_rows = 0
        self.num_items = 0
        self.counts = np.zeros(0, np.int64)  # events of each client
        self.times: np.dtype | None = None  # of the times, once some have come
        self.low, self.high, self.divisor = math.inf, -math.inf, 0  # of all times
        self.folder = folder
        self.paths: list[Path] = []
        self.dtype: np.dtype = np.dtype([])

    def put(self, frame: pd.DataFrame, duplicates: str) -> None:
        """Code and check some rows, and append them to the files of their clients."""
        if not len(frame):
            return
        where = self._where()
        given = [("user", _code(self.users, frame[self.columns.user], where))]
        given.append(("item", _code(self.items, frame[self.columns.item], where)))
        if self.columns.timestamp is not None:
            given.append(("time", self._times(frame[self.columns.timestamp], where)))
        if self.columns.rating is not None:
            given.append(("rating", _ratings(frame[self.columns.rating], where)))
        self.dtype = np.dtype([(name, values.dtype) for name, values in given])
        rows = np.empty(len(frame), self.dtype)
        for name, values in given:
            rows[name] = values
        found = np.bincount(rows["user"], minlength=len(self.counts))
        found[: len(self.counts)] += self.counts
        self.counts = found
        self.num_items = len(self.items.known)
        if duplicates == "error" and not self.num_rows:
            self._drop(
                rows, duplicates
            )  # a log of events repeats in its first piece: refused before all are read
        self.num_rows += len(rows)
        # Rows of a group together, each group's as they came.
        group = rows["user"] // _GROUP
        rows = rows[stable_order(group)]
        ends = np.cumsum(np.bincount(group))
        for number, part in enumerate(np.split(rows, ends[:-1])):
            if number == len(self.paths):
                self.paths.append(self.folder / f"group-{number}")
            if len(part):
                with self.paths[number].open("ab") as file:
                    _write(file, part)

    def flush(self) -> None:
        """All rows have come."""
        if not self.num_rows:
            raise DataError(f"{self.source}: no interactions")
        self.num_items = len(self.items.known)

    def write(self, writer: StoreWriter, duplicates: str, advance: Any) -> None:
        """Write the columns of the store, group by group; each group's file goes when it is done."""
        kept = np.empty(len(self.counts), np.int64)
        unit = unit_of(self.low, self.high) if self.times is not None else 1
        for number, path in enumerate(self.paths):
            first = number * _GROUP
            rows = np.memmap(path, self.dtype, "r")
            for start, stop in self._ranges(first, min(first + _GROUP, len(self.counts))):
                events = _sorted(
                    _select(rows, start, stop, int(self.counts[start:stop].sum())), self.columns.timestamp
                )
                events = self._drop(events, duplicates)
                kept[start:stop] = np.bincount(events["user"] - start, minlength=stop - start)
                writer.append("items", events["item"])
                if self.times is not None:
                    writer.append("timestamps", self._seconds(events["time"], unit))
                if self.columns.rating is not None:
                    writer.append("ratings", events["rating"])
                advance(int(self.counts[start:stop].sum()))
            del rows
            path.unlink()
        writer.append("offsets", np.concatenate([[0], np.cumsum(kept)]))
        for name, vocabulary in (("user_ids", self.users), ("item_ids", self.items)):
            ids = vocabulary.ids()
            writer.append(name, ids if ids.dtype.kind == "i" else np.char.encode(ids, "utf-8"))

    def close(self) -> None:
        """Remove the files that are left."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def _ranges(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Clients whose events are sorted at once."""
        while first < stop:
            ends = np.cumsum(self.counts[first:stop])
            number = max(1, int(np.searchsorted(ends, _TOGETHER, side="right")))
            yield first, first + number
            first += number

    def _drop(self, events: np.ndarray, duplicates: str) -> np.ndarray:
        """Sorted events with one of each pair that repeats."""
        pairs = events["user"].astype(np.int64) * self.num_items + events["item"]
        order = stable_order(pairs)
        same = pairs[order][1:] == pairs[order][:-1]
        if not same.any():
            return events
        if duplicates == "error":
            row = order[1:][same][0]
            user = self.users.ids()[events["user"][row]]
            item = self.items.ids()[events["item"][row]]
            raise DataParameterError(
                "{source}: user {user_id} has item {item_id} more than once; {duplicates=first} or "
                "{duplicates=last} keeps one of them",
                source=self.source,
                user_id=user,
                item_id=item,
            )
        keep = np.ones(len(events), bool)
        keep[order[1:][same] if duplicates == "first" else order[:-1][same]] = False
        return events[keep]

    def _times(self, values: pd.Series, where: Where) -> np.ndarray:
        """int64 or float64, as the first rows have them; the unit is settled when all have come."""
        times = Times(len(values))
        times.put(values, slice(0, len(values)), where)
        found = times.integers if times.fractions is None else times.fractions
        if self.times is None:
            self.times = found.dtype
        if found.dtype != self.times and self.times.kind == "i":
            raise DataError(
                f"{where(0)}: fractions of seconds from here on, and whole numbers before; round them, or give "
                "frames whose times are floats"
            )
        found = found.astype(self.times)
        self.low, self.high = min(self.low, found.min()), max(self.high, found.max())
        if self.times.kind == "i":
            self.divisor = int(np.gcd(self.divisor, np.gcd.reduce(found)))
        return found

    def _seconds(self, times: np.ndarray, unit: int) -> np.ndarray:
        if unit == 1:
            return times
        return (
            times // unit
            if self.times is not None and self.times.kind == "i" and self.divisor % unit == 0
            else times / unit
        )

    def _where(self) -> Where:
        start, source = self.num_rows + self.first_row, self.source
        return lambda row: f"{source}:{start + row}"


def _code(vocabulary: Vocabulary, values: pd.Series, where: Where) -> np.ndarray:
    """int32[M]; of categories only those that occur are looked at."""
    if not isinstance(values.dtype, pd.CategoricalDtype):
        return vocabulary.codes(values, where)
    codes = values.cat.codes.to_numpy()
    if (codes < 0).any():
        raise DataError(f"{where(int((codes < 0).argmax()))}: empty {vocabulary.name!r}")
    found, uniques = pd.factorize(codes)
    rows = np.zeros(len(uniques), np.int64)
    rows[found[::-1]] = np.arange(len(codes))[::-1]  # the first of each
    names = pd.Series(values.cat.categories.to_numpy()[uniques])
    return vocabulary.codes(names, lambda row: where(int(rows[row])))[found]


def _ratings(values: pd.Series, where: Where) -> np.ndarray:
    array = as_numbers(values, "rating", where)
    large = np.abs(array) > np.finfo(np.float32).max
    if large.any():
        raise DataError(f"{where(int(large.argmax()))}: a rating is too large for float32; correct the line")
    return array.astype(np.float32)


def _write(file: BinaryIO, rows: np.ndarray) -> None:
    file.write(rows.view(np.uint8).data)


def _select(rows: np.ndarray, start: int, stop: int, count: int) -> np.ndarray:
    """The rows of clients `start` to `stop`, in their order, of a file that may be larger than memory."""
    found = np.empty(count, rows.dtype)
    filled = 0
    for first in range(0, len(rows), ROWS):
        block = np.asarray(rows[first : first + ROWS])
        users = block["user"]
        block = block[(users >= start) & (users < stop)]
        found[filled : filled + len(block)] = block
        filled += len(block)
    return found


def _sorted(events: np.ndarray, timestamp: str | None) -> np.ndarray:
    """By client, then by time, then as they came."""
    if timestamp is not None:
        events = events[stable_order(events["time"].copy())]
    return events[stable_order(events["user"].copy())]
