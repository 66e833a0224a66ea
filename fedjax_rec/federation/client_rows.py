"""What clients keep between rounds, in files: leaves [N, ...] of which only rows that were written take room.

Where a client starts is a function of its key, so that its row is drawn until it has been written: a population of
any size costs a bit of disk for each client that trained, and one byte of memory for each that did not.

Files are read and written by system calls and not mapped: a page of a mapping counts as memory of the process, and
a full disk would end it by a signal where a write says so. They have no names, and so go with the process, however
it ends; whoever looks at all clients at once maps a whole one (`map_rows`).
"""

import itertools
import os
import tempfile
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import numpy as np

from fedjax_rec.engine.chunks import chunk_size
from fedjax_rec.types import PyTree

Draw = Callable[[np.ndarray], Any]  # ids int[S] -> where these clients start, [S, ...]


class ClientRows:
    """One leaf [N, ...] in a file: rows are read and written by arrays of ids, as those of a numpy array are.

    Args:
        folder: where the file lies.
        shape: [N, ...].
        dtype: of the rows.
        draw: where clients start.

    Raises:
        OSError: if the folder cannot be written.

    Example:
        >>> rows = ClientRows(Path(tempfile.mkdtemp()), (5, 2), np.float32, lambda ids: np.ones((len(ids), 2)))
        >>> rows[np.array([4, 1])] = np.zeros((2, 2))
        >>> rows[np.array([0, 1])].tolist(), rows.written.tolist(), rows.shape
        ([[1.0, 1.0], [0.0, 0.0]], [1, 4], (5, 2))
    """

    def __init__(self, folder: Path, shape: tuple[int, ...], dtype: Any, draw: Draw) -> None:
        self.folder = folder
        self.shape = tuple(shape)
        self.dtype = np.dtype(dtype)
        self._draw = draw
        self._is_written = np.zeros(self.shape[0], bool)
        self.row_bytes = self.dtype.itemsize * int(np.prod(self.shape[1:]))
        self._file = self._open()
        weakref.finalize(self, self._file.close)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of all rows, of which the file takes those that were written."""
        return self.size * self.dtype.itemsize

    @property
    def disk_bytes(self) -> int:
        """Bytes that the file takes on the disk."""
        return 512 * os.fstat(self._file.fileno()).st_blocks

    @property
    def written(self) -> np.ndarray:
        """int[W], whose rows the file holds, in order."""
        return np.flatnonzero(self._is_written)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        """The rows of clients int[S], [S, ...]."""
        ids = np.asarray(ids)
        here = np.flatnonzero(self._is_written[ids])
        if len(here) == len(ids):
            found = np.empty((len(ids), *self.shape[1:]), self.dtype)
        else:
            found = np.array(self._draw(ids), self.dtype)
        data = found.view(np.uint8).reshape(-1) if found.size else found
        for first, last in _runs(here, ids[here]):
            span = memoryview(cast("Any", data))[
                here[first] * self.row_bytes : (here[last] + 1) * self.row_bytes
            ]
            self._read(span, int(ids[here[first]]) * self.row_bytes)
        return found

    def __setitem__(self, ids: np.ndarray, rows: Any) -> None:
        """Write the rows [S, ...] of clients int[S], each of them once."""
        ids = np.asarray(ids)
        rows = np.ascontiguousarray(np.broadcast_to(rows, (len(ids), *self.shape[1:])), self.dtype)
        data = rows.view(np.uint8).reshape(-1) if rows.size else rows
        for first, last in _runs(np.arange(len(ids)), ids):
            span = memoryview(cast("Any", data))[first * self.row_bytes : (last + 1) * self.row_bytes]
            self._write(span, int(ids[first]) * self.row_bytes)
        self._is_written[ids] = True

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """All rows, in memory."""
        del copy  # it always is one
        found = np.empty(self.shape, self.dtype)
        for ids, rows in self.blocks():
            found[ids] = rows
        return found if dtype is None else found.astype(dtype, copy=False)

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All rows, some of consecutive clients at a time, each with the ids."""
        size = min(chunk_size(self), max(len(self), 1))
        for first in range(0, len(self), size):
            ids = np.arange(first, first + size).clip(max=len(self) - 1)  # all are drawn by one program
            count = min(size, len(self) - first)
            yield ids[:count], self[ids][:count]

    def copy(self, folder: Path | None = None) -> "ClientRows":
        """The same rows in another file, of this folder or of another one."""
        return self.empty(folder).take(self)

    def empty(self, folder: Path | None = None) -> "ClientRows":
        """Another file, of this folder or of another one, in which nothing is written yet."""
        return ClientRows(folder or self.folder, self.shape, self.dtype, self._draw)

    def take(self, other: "ClientRows") -> "ClientRows":
        """Write what another file holds, which holds all that this one does."""
        size = max(chunk_size(self), 1)
        for ids in np.split(other.written, range(size, len(other.written), size)):
            self[ids] = other[ids]
        return self

    def map_all(self) -> np.ndarray:
        """All rows as an array on the file, once those that were not are written; later writes show in it."""
        if not self.size:
            return np.asarray(self)
        if not self._is_written.all():
            for ids, rows in self.blocks():
                self[ids] = rows
        return np.asarray(np.memmap(cast("Any", self._file), self.dtype, "r", shape=self.shape))

    def _open(self) -> BinaryIO:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return tempfile.TemporaryFile(dir=self.folder, buffering=0)
        except OSError as problem:
            raise self._failure(problem) from problem

    def _read(self, span: memoryview, place: int) -> None:
        while span:
            count = os.preadv(self._file.fileno(), [span], place)
            if not count:
                raise OSError(f"{self.folder}: a file of what clients keep ends before its rows do")
            span, place = span[count:], place + count

    def _write(self, span: memoryview, place: int) -> None:
        try:
            while span:
                count = os.pwrite(self._file.fileno(), span, place)
                span, place = span[count:], place + count
        except OSError as problem:
            raise self._failure(problem) from problem

    def _failure(self, problem: OSError) -> OSError:
        return OSError(
            f"{self.folder}: what clients keep cannot be written there ({problem.strerror}); make room, or name "
            "another folder"
        )

    def __repr__(self) -> str:
        return f"<ClientRows {self.dtype}{list(self.shape)}, {len(self.written):,} written>"


def open_rows(folder: Path, shapes: PyTree, draw: Callable[..., PyTree], *context: PyTree) -> PyTree:
    """A file for each leaf, in which nothing is written yet.

    Args:
        folder: of the files.
        shapes: of the leaves [N, ...].
        draw: (ids int[S], *context) -> where these clients start, leaves [S, ...]; traced by jax.
        context: what it needs besides.

    Returns:
        `ClientRows` in the place of the leaves.

    Raises:
        OSError: if the folder cannot be written.

    Example:
        >>> import jax.numpy as jnp
        >>> shapes = {"a": jax.ShapeDtypeStruct((9, 2), np.float32)}
        >>> folder = Path(tempfile.mkdtemp())
        >>> rows = open_rows(folder, shapes, lambda ids, x: {"a": x * jnp.ones((len(ids), 2))}, 7)
        >>> rows["a"][np.array([3])].tolist()
        [[7.0, 7.0]]
    """
    leaves, structure = jax.tree.flatten(shapes)

    def of_leaf(number: int) -> Draw:  # a program of its own, which draws no other leaf
        program = jax.jit(lambda ids, *context: jax.tree.leaves(draw(ids, *context))[number])
        return lambda ids: program(ids, *context)

    return jax.tree.unflatten(
        structure,
        [ClientRows(folder, leaf.shape, leaf.dtype, of_leaf(number)) for number, leaf in enumerate(leaves)],
    )


def map_rows(tree: PyTree) -> PyTree:
    """Arrays on the files, for what looks at all clients at once; their rows are all written first.

    Args:
        tree: of any leaves.

    Returns:
        the tree, numpy leaves in the place of `ClientRows`.

    Example:
        >>> rows = ClientRows(Path(tempfile.mkdtemp()), (3,), np.float32, np.asarray)
        >>> map_rows({"a": rows, "b": 1})
        {'a': array([0., 1., 2.], dtype=float32), 'b': 1}
    """
    return jax.tree.map(lambda leaf: leaf.map_all() if isinstance(leaf, ClientRows) else leaf, tree)


def _runs(places: np.ndarray, ids: np.ndarray) -> Iterator[tuple[int, int]]:
    """First and last of each run of neighbours, both in the array and in the file."""
    if not len(ids):
        return
    breaks = 1 + np.flatnonzero((np.diff(places) != 1) | (np.diff(ids) != 1))
    ends = [0, *breaks.tolist(), len(ids)]
    for first, end in itertools.pairwise(ends):
        yield first, end - 1
