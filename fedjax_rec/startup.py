"""The first moments of the command line, while its imports take seconds: standard streams, and signals."""

import atexit
import io
import itertools
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

PROGRAM = "fedjax-rec"
_INTERRUPTED = f"{PROGRAM}: interrupted, nothing was written\n"


def is_command_line() -> bool:
    """Whether this process was started as `fedjax-rec` or as `python -m fedjax_rec`.

    Returns:
        True or False.

    Example:
        >>> is_command_line()
        False
    """
    started = sys.orig_argv
    as_module = ("-m", "fedjax_rec") in itertools.pairwise(started)
    return as_module or Path(sys.argv[0] if sys.argv else "").stem in (PROGRAM, f"{PROGRAM}-script")


def guard_imports() -> None:
    """End at a signal with one line instead of a traceback, until `cli.main` takes over; elsewhere do nothing."""
    if not is_command_line() or threading.current_thread() is not threading.main_thread():
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _end)


def leave(status: int) -> int:
    """End the process of a command that has computed, without unloading its libraries.

    What is registered for the exit is done, and streams are flushed. Unloading then can fail in OpenBLAS
    while XLA's threads end: `fedjax-rec run --algorithm fedals --dim 192` on MovieLens 1M and two CPU devices
    ended with a segmentation fault after its results, more often than not (jaxlib 0.10.2, scipy 1.17.1).

    Args:
        status: of the process.

    Returns:
        the status, where this is no process of the command line, or a stream is closed: Python ends then as ever.

    Example:
        >>> leave(3)
        3
    """
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    if not is_command_line() or not all(thread.daemon for thread in others):
        return status
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        return status
    atexit._run_exitfuncs()  # noqa: SLF001 - Python's own way, which no public name has
    os._exit(status)


def _end(number: int, _: Any) -> None:
    """At once: an exception could be swallowed by what is being imported, and there is nothing to lose yet."""
    try:
        os.write(2, _INTERRUPTED.encode())
    finally:
        os._exit(128 + number)


def open_streams() -> None:
    """Let no standard stream be missing, and none end a run: closed ones go nowhere, odd characters are escaped.

    A file that is opened while standard error is closed gets its number, and then what libraries write there.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, io.TextIOWrapper(io.FileIO(os.devnull, "w"), encoding="utf-8"))
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
