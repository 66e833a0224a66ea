"""Files on the disk: checksums, flushing, and `.npz` files of plain numbers and text, never of pickled objects."""

import hashlib
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fedjax_rec.data.errors import DataError

MAX_RATIO = 100  # of a file's arrays, unpacked, to its size,
MIN_BYTES_FOR_RATIO = 2**26  # bytes, up to which any ratio is allowed
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def sha256_of(path: Path) -> str:
    """Checksum of a file.

    Args:
        path: the file.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256_of(path)[:16]
        'e3b0c44298fc1c14'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def md5_of(path: Path) -> str:
    """The checksum that some hosts publish alone: it finds damage, and nothing that somebody meant to hide.

    Args:
        path: the file.

    Returns:
        32 hexadecimal digits.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> md5_of(path)[:8]
        'd41d8cd9'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file, or which names a folder has.

    Args:
        path: of a file or a folder.

    Raises:
        OSError: if the disk does not.

    Example:
        >>> flush(Path("."))
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file that `numpy.savez` wrote; nothing is unpickled.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        DataError: naming the file and the array, if anything in it is no array of numbers or text, or is damaged;
            or if a small file would take gigabytes of memory.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.npz"
        >>> np.savez(path, ids=np.arange(2))
        >>> read_arrays(path)
        {'ids': array([0, 1])}
    """
    name = ""
    try:
        with zipfile.ZipFile(path) as bundle:
            arrays = {}
            _refuse_bomb(path, bundle)
            for entry in bundle.infolist():
                name = f" {entry.filename}:"
                _check_header(bundle, entry)
                with bundle.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read(file)
        return arrays
    except Exception as problem:  # damaged or hostile bytes make numpy and zipfile raise almost anything
        raise DataError(f"{path}:{name} {problem or type(problem).__name__}") from problem


def _refuse_bomb(path: Path, bundle: zipfile.ZipFile) -> None:
    """Refuses a small file of arrays that would fill the memory: a column may compress well, never all."""
    unpacked = sum(entry.file_size for entry in bundle.infolist())
    size = path.stat().st_size
    if unpacked > max(MIN_BYTES_FOR_RATIO, MAX_RATIO * size):
        raise DataError(f"unpacks to {unpacked:,} bytes, over {MAX_RATIO} times its size of {size:,}")


def _read(file: Any) -> np.ndarray:
    return npy.read_array(file, allow_pickle=False)


def _check_header(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Refuses by the header alone, so that nothing is unpickled and no more is allocated than there is."""
    if not entry.filename.endswith(".npy"):
        raise DataError("not an array; only what numpy.savez writes is read")
    with bundle.open(entry) as file:
        source: Any = file
        version = npy.read_magic(source)
        if version not in _HEADERS:
            raise DataError(f"an array of format {version}, which numpy.savez does not write")
        shape, _, dtype = _HEADERS[version](source)
        if dtype.hasobject:
            raise DataError("pickled objects, which are never read; save numbers or text")
        if math.prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise DataError("damaged, its size is not that of its shape")
