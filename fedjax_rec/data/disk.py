"""Files on the disk: their checksums, and having the disk hold them."""

import hashlib
import os
from pathlib import Path


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
