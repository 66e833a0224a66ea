"""A lock on a folder: one process writes it, for the life of its run.

The operating system drops the lock when the process ends, however it ends: a lock file that was left behind does
not block.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = ".lock"


class FolderInUse(OSError):  # noqa: N818 - it says what is the case, as `Paused` does
    """Another process has locked the folder."""


@contextlib.contextmanager
def lock_folder(folder: Path, *, required: bool = True) -> Iterator[None]:
    """Make a folder if there is none, and keep other processes from writing it.

    Args:
        folder: to write.
        required: whether a system without file locks is an error; else the folder is only made there.

    Yields:
        nothing.

    Raises:
        FolderInUse: (an OSError) if another process has locked it, naming that process.
        OSError: if nothing can be written there.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder, lock_folder(Path(folder)):
        ...     with lock_folder(Path(folder)):  # doctest: +ELLIPSIS
        ...         pass
        Traceback (most recent call last):
        fedjax_rec.training.checkpoints.lock.FolderInUse: ... is being written by process ...; wait for it, or ...
    """
    descriptor = _lock(folder, required)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)  # and with it the lock


def _lock(folder: Path, required: bool) -> int:
    """The lock file, open and locked: the one that has the name now, as another may just have been removed."""
    while True:
        descriptor = _open_lock_file(folder)
        try:
            _acquire(descriptor, folder, required)
            if os.path.samestat(os.fstat(descriptor), (folder / LOCK_FILE).stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _open_lock_file(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise OSError(f"{folder} cannot be written: {problem.strerror}; name another folder") from problem


def _acquire(descriptor: int, folder: Path, required: bool) -> None:
    try:
        import fcntl
    except ImportError as problem:  # not a POSIX system
        if not required:
            return
        raise OSError("checkpoints need the file locks of Linux or macOS; leave them out here") from problem
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as problem:
        owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "that is unknown"
        raise FolderInUse(
            f"{folder} is being written by process {owner}; wait for it, or name another folder"
        ) from problem
    except OSError as problem:  # a file system without locks
        if required:
            raise OSError(f"{folder} cannot be locked: {problem.strerror}; name another folder") from problem
