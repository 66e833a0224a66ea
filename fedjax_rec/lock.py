"""A lock on a folder: one process writes it, for the life of its run.

The operating system drops the lock when the process ends, however it ends: a lock file that was left behind does
not block.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOCK = ".lock"


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Make a folder if there is none, and keep other processes from writing it.

    Args:
        folder: to write.

    Yields:
        nothing.

    Raises:
        OSError: if another process holds it, naming that process; or if nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, hold(Path(place)):
        ...     with hold(Path(place)):  # doctest: +ELLIPSIS
        ...         pass
        Traceback (most recent call last):
        OSError: ... is being written by process ...; wait for it, or name another folder
    """
    handle = _open(folder)
    try:
        _take(handle, folder)
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)  # and with it the lock


def _open(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise OSError(f"{folder} cannot be written: {problem.strerror}; name another folder") from problem


def _take(handle: int, folder: Path) -> None:
    try:
        import fcntl
    except ImportError as problem:  # not a POSIX system
        raise OSError("checkpoints need the file locks of Linux or macOS; leave them out here") from problem
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as problem:
        who = os.pread(handle, 200, 0).decode(errors="replace").strip() or "that is unknown"
        raise OSError(
            f"{folder} is being written by process {who}; wait for it, or name another folder"
        ) from problem
