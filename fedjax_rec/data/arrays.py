"""Arrays from `.npz` files: plain numbers and text, never pickled objects."""

import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fedjax_rec.data.errors import DataError

_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of a file that `numpy.savez` wrote; nothing is unpickled.

    Args:
        path: the file.

    Returns:
        The arrays by name.

    Raises:
        DataError: naming the file and the array, if anything in it is no array of numbers or text, or is damaged.

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
            for entry in bundle.infolist():
                name = f" {entry.filename}:"
                _refuse_odd(bundle, entry)
                with bundle.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read(file)
        return arrays
    except Exception as problem:  # damaged or hostile bytes make numpy and zipfile raise almost anything
        raise DataError(f"{path}:{name} {problem or type(problem).__name__}") from problem


def _read(file: Any) -> np.ndarray:
    return npy.read_array(file, allow_pickle=False)


def _refuse_odd(bundle: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Reads the header alone, so that nothing is unpickled and no more is allocated than there is."""
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
