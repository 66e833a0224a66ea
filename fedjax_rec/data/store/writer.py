"""Writing a store: all of it or nothing, by one process at a time.

Columns are appended to files of a folder beside the store, `.NAME.partial`, summed as they are written, flushed to
the disk, described in `meta.json`, and the folder then gets the store's name. Whatever fails before leaves nothing
behind, and what a kill left behind the next writer removes.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.files import flush
from fedjax_rec.data.store.format import FORMAT, META, VERSION, check_column, seal_of
from fedjax_rec.data.store.verification import sample_sums
from fedjax_rec.locks import lock_file


class StoreWriter:
    """The columns of a store that is being written; `write_store` makes one."""

    def __init__(self, folder: Path) -> None:
        """In a folder that is there."""
        self.folder = folder
        self._files: dict[str, BinaryIO] = {}
        self._sums: dict[str, Any] = {}
        self._dtypes: dict[str, np.dtype] = {}
        self._lengths: dict[str, int] = {}
        self._meta: dict[str, Any] | None = None

    def append(self, name: str, values: np.ndarray) -> None:
        """Write some more values of a column, whose type the first ones decide.

        Args:
            name: of the column.
            values: [n].
        """
        values = np.ascontiguousarray(values)
        dtype = values.dtype.newbyteorder("<")
        if name not in self._files:
            check_column(name, dtype)
            self._files[name] = (self.folder / f"{name}.bin").open("wb")
            self._sums[name] = hashlib.sha256()
            self._dtypes[name] = dtype
            self._lengths[name] = 0
        data = values.astype(self._dtypes[name], copy=False).view(np.uint8).data
        self._files[name].write(data)
        self._sums[name].update(data)
        self._lengths[name] += len(values)

    def describe(self, *, name: str, num_items: int, order: str, origin: str) -> None:
        """Say what the columns hold.

        Args:
            name: what results call the store.
            num_items: I.
            order: of each client's events, one of `format.ORDERS`.
            origin: what it is made from, for people.
        """
        self._meta = {"name": name, "num_items": int(num_items), "order": order, "origin": origin}

    def seal(self) -> None:
        """Flush the columns to the disk, and describe and seal them."""
        if self._meta is None or not {"offsets", "items"} <= set(self._files):
            raise DataError("a store needs offsets, items and a description before it is sealed")
        columns = {}
        for name, file in self._files.items():
            file.flush()
            os.fsync(file.fileno())
            file.close()
            columns[name] = {
                "dtype": self._dtypes[name].str,
                "length": self._lengths[name],
                "sha256": self._sums[name].hexdigest(),
                "samples": sample_sums(self.folder / f"{name}.bin"),
            }
        meta = {"format": FORMAT, "version": VERSION, **self._meta, "columns": columns}
        with (self.folder / META).open("w", encoding="utf-8") as text:
            json.dump(meta | {"seal": seal_of(meta)}, text, indent=1, sort_keys=True)
            text.flush()
            os.fsync(text.fileno())

    def close(self) -> None:
        """Close whatever is open."""
        for file in self._files.values():
            with contextlib.suppress(OSError):  # of a full disk, on what was not written yet
                file.close()


@contextlib.contextmanager
def write_store(path: str | Path) -> Iterator[StoreWriter]:
    """Make a store: it is there when the block ends well, and else nothing is.

    Args:
        path: its folder, which there may not be.

    Yields:
        the writer, which must be told what it holds.

    Raises:
        DataError: if something has the name, another process writes it, or the disk is full.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "two"
        >>> with write_store(path) as writer:
        ...     writer.append("offsets", np.array([0, 2]))
        ...     writer.append("items", np.array([4, 1], np.int32))
        ...     writer.describe(name="two", num_items=5, order="time", origin="an example")
        >>> sorted(file.name for file in path.iterdir())
        ['items.bin', 'meta.json', 'offsets.bin']
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise DataError(f"{path}: cannot be written ({problem.strerror}); name another folder") from problem
    with _lock(path):
        if path.exists() or path.is_symlink():
            raise DataError(f"{path}: is there already; remove it, or name another folder")
        shutil.rmtree(partial, ignore_errors=True)  # of one that was killed
        writer = StoreWriter(partial)
        try:
            partial.mkdir()
            yield writer
            writer.seal()
            partial.rename(path)
            flush(path.parent)
        except OSError as problem:
            raise DataError(
                f"{problem.filename or path}: cannot be written ({problem.strerror or problem}); nothing was "
                "kept, make room or name another folder"
            ) from problem
        finally:
            writer.close()
            shutil.rmtree(partial, ignore_errors=True)


def check_room(path: Path, num_bytes: int) -> None:
    """Refuse a store that the disk cannot hold, before any of it is written.

    Args:
        path: of the store.
        num_bytes: that it will take.

    Raises:
        DataError: with both numbers.

    Example:
        >>> check_room(Path("/tmp/store"), 2**60)
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: /tmp/store: takes 1,152,921,504.6 GB, and the disk has ...
    """
    there = next(folder for folder in (path.parent, *path.parents, Path()) if folder.exists())
    free = shutil.disk_usage(there).free
    if num_bytes > free:
        raise DataError(
            f"{path}: takes {num_bytes / 1e9:,.1f} GB, and the disk has {free / 1e9:,.1f} GB; make room, or name "
            "another folder"
        )


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Keep other processes from writing the same store."""
    with contextlib.ExitStack() as held:
        try:
            file = path.with_name(f".{path.name}.lock")
            held.enter_context(lock_file(file, path, required=False, temporary=True))
        except OSError as problem:
            raise DataError(str(problem)) from problem
        yield
