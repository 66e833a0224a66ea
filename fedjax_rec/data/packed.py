"""Packed files: gzip, bz2 and zip with one member, told by their first bytes whatever their names."""

import bz2
import gzip
import io
import zipfile
import zlib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from fedjax_rec.data.archives import open_single
from fedjax_rec.data.errors import DataError

MAX_RATIO = 100  # of a packed file's unpacked and packed size,
MIN_BYTES_FOR_RATIO = 2**24  # bytes, up to which any ratio is allowed
SUFFIXES = (".gz", ".bz2", ".zip")
_MARKS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"PK\x03\x04": "zip"}
_BLOCK_BYTES = 2**20


def read_bytes(path: Path, limit: int | None = None) -> bytes:
    """A file's contents, unpacked where it is packed.

    Args:
        path: the file.
        limit: bytes after which reading stops; None for all.

    Returns:
        Its bytes.

    Raises:
        DataError: if it is missing, a directory, unreadable, broken, a zip archive of several files, or packed so
            that it unpacks to more than 16 MiB and a hundred times its size.

    Example:
        >>> read_bytes(Path("/nowhere/u.data"))
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: /nowhere/u.data: no such file
    """
    if not path.is_file():
        raise DataError(f"{path}: {'a directory, not a file' if path.is_dir() else 'no such file'}")
    kind = ""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            kind = kind_of(start)
            if not kind and limit is not None:
                return start + file.read(limit)
        # not read by the same handle: what is buffered would be joined to the rest, as a second copy
        return _unpack(path, kind, limit) if kind else path.read_bytes()
    except (gzip.BadGzipFile, zipfile.BadZipFile, EOFError, zlib.error, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: broken or truncated {kind} ({error})") from error
    except OSError as error:
        if error.errno is None:  # bz2 says so of damage
            raise DataError(f"{path}: broken or truncated {kind} ({error})") from error
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def inner_name(path: Path) -> str:
    """A file's name without what says how it is packed.

    Args:
        path: the file.

    Returns:
        its name in lower case.

    Example:
        >>> inner_name(Path("U.data.gz"))
        'u.data'
    """
    name = path.name.lower()
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def kind_of(start: bytes) -> str:
    """How a file is packed.

    Args:
        start: its first bytes, 4 or more.

    Returns:
        "gzip", "bz2" or "zip"; "" if it is not.

    Example:
        >>> kind_of(b"BZh9"), kind_of(b"user")
        ('bz2', '')
    """
    return next((name for mark, name in _MARKS.items() if start.startswith(mark)), "")


def _unpack(path: Path, kind: str, limit: int | None) -> bytes:
    max_bytes = max(MIN_BYTES_FOR_RATIO, MAX_RATIO * path.stat().st_size)
    data = io.BytesIO()
    with _open(path, kind) as source:
        if limit is not None:
            return source.read(limit)
        while block := source.read(_BLOCK_BYTES):
            if data.tell() + len(block) > max_bytes:
                raise DataError(
                    f"{path}: {kind} of more than {max_bytes:,} bytes of text; unpack it, if that is right"
                )
            data.write(block)
    return data.getvalue()


def _open(path: Path, kind: str) -> AbstractContextManager[Any]:
    if kind == "zip":
        return open_single(path)
    return gzip.open(path) if kind == "gzip" else bz2.open(path)
