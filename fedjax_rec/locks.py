"""Locks: one process writes a folder or a store, for as long as it lives.

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
        fedjax_rec.locks.FolderInUse: ... is being written by process ...; wait for it, or ...
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise _cannot_be_written(folder, problem) from problem
    with lock_file(folder / LOCK_FILE, folder, required=required):
        yield


@contextlib.contextmanager
def lock_file(file: Path, what: Path, *, required: bool = True, temporary: bool = False) -> Iterator[None]:
    """Hold a lock file.

    Args:
        file: of the lock; its folder is there.
        what: is written meanwhile, for errors.
        required: whether a system without file locks is an error; else nobody is kept out there.
        temporary: whether the file is removed at the end.

    Yields:
        nothing.

    Raises:
        FolderInUse: (an OSError) if another process holds it, naming that process.
        OSError: if the file cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with lock_file(Path(folder, "own.lock"), Path(folder), temporary=True):
        ...         held = Path(folder, "own.lock").is_file()
        ...     print(held, Path(folder, "own.lock").is_file())
        True False
    """
    descriptor = _open_locked(file, what, required)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        if temporary:
            file.unlink(missing_ok=True)
        os.close(descriptor)  # and with it the lock


def _open_locked(file: Path, what: Path, required: bool) -> int:
    """The lock file, open and locked: the one that has the name now, as another may just have been removed."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as problem:
            raise _cannot_be_written(what, problem) from problem
        try:
            _acquire(descriptor, what, required)
            if os.path.samestat(os.fstat(descriptor), file.stat()):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _cannot_be_written(what: Path, problem: OSError) -> OSError:
    return OSError(f"{what} cannot be written: {problem.strerror}; name another folder")


def _acquire(descriptor: int, what: Path, required: bool) -> None:
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
            f"{what} is being written by process {owner}; wait for it, or name another folder"
        ) from problem
    except OSError as problem:  # a file system without locks
        if required:
            raise OSError(f"{what} cannot be locked: {problem.strerror}; name another folder") from problem
