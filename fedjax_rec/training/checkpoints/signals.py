"""SIGTERM and SIGINT as a request to stop: the first ends what runs in order; a second kills the process.

One handler serves the process. Where a round is under way a signal is only noted (`StopRequest.deferred`), for the
run to end after the block or its piece; elsewhere it raises `StopSignal` at once.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which SIGTERMs are one: SLURM sends it to a process and to its parent, which passes it on.
ONE_REQUEST = 1.0


class StopSignal(KeyboardInterrupt):
    """A signal asked the process to stop.

    Args:
        number: of the signal.

    Example:
        >>> str(StopSignal(signal.SIGTERM)), StopSignal(signal.SIGTERM).status
        ('SIGTERM', 143)
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = 128 + number  # what shells report of a process that died of it


class StopRequest:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = ""
        self.number = 0
        self._deferred = 0

    def note(self, number: int, _: object) -> None:
        """Handle a signal."""
        self.number = number
        self.signal = signal.Signals(number).name
        if not self._deferred:
            raise StopSignal(number)

    def check(self) -> None:
        """Raise a signal that came before, whoever swallowed it or deferred it.

        Raises:
            StopSignal: if there was one.
        """
        if self.signal:
            raise StopSignal(self.number)

    @contextlib.contextmanager
    def deferred(self) -> Iterator["StopRequest"]:
        """Only note signals inside.

        Yields:
            the request.
        """
        self._deferred += 1
        try:
            yield self
        finally:
            self._deferred -= 1


_caught: list[StopRequest] = []  # that of the handler which is installed, if one is


@contextlib.contextmanager
def catch_stop_signals(*, defer: bool = True) -> Iterator[StopRequest]:
    """Note the first SIGTERM or SIGINT instead of dying of it; inside another such block, its handler serves.

    Args:
        defer: whether a signal is only noted; else it also raises `StopSignal`.

    Yields:
        the request; in a thread other than the main one, where Python allows no handlers, it stays empty.

    Example:
        >>> with catch_stop_signals() as request:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> request.signal
        'SIGTERM'
    """
    if threading.current_thread() is not threading.main_thread():
        yield StopRequest()
        return
    if _caught:
        with _caught[0].deferred() if defer else contextlib.nullcontext(_caught[0]) as request:
            yield request
        return
    request = StopRequest()
    caught = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    previous = {one: signal.getsignal(one) for one in caught}
    _caught.append(request)
    try:
        with request.deferred() if defer else contextlib.nullcontext(), _die_of_a_second(caught):
            for one in caught:
                signal.signal(one, request.note)
            yield request
    finally:
        for one, handler in previous.items():
            signal.signal(one, handler)
        _caught.clear()


@contextlib.contextmanager
def defer_interrupt() -> Iterator[StopRequest]:
    """Note the first SIGINT, so that what is computed is kept; a second raises KeyboardInterrupt as ever.

    Yields:
        the request; it stays empty where SIGINT has a handler of the user's own.

    Example:
        >>> with defer_interrupt() as request:
        ...     signal.raise_signal(signal.SIGINT)
        >>> request.signal
        'SIGINT'
    """
    if _caught:
        with catch_stop_signals() as request:
            yield request
        return
    request = StopRequest()
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield request
        return

    def note(number: int, frame: object) -> None:
        if request.signal:
            raise KeyboardInterrupt
        request.note(number, frame)

    with request.deferred():
        signal.signal(signal.SIGINT, note)
        try:
            yield request
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def raise_if_stopped() -> None:
    """Raise a signal that was noted, or whose exception was swallowed on its way, in a `catch_stop_signals` block.

    Raises:
        StopSignal: if there was one.

    Example:
        >>> raise_if_stopped()
    """
    if _caught and threading.current_thread() is threading.main_thread():
        _caught[0].check()


@contextlib.contextmanager
def _die_of_a_second(caught: list[signal.Signals]) -> Iterator[None]:
    """End the process at the second signal, whatever its main thread computes."""
    # A thread, since Python's handlers wait for the end of a compiled block, where two signals arrive as one.
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    watchdog = threading.Thread(target=_watch, args=(read_end, {int(one) for one in caught}), daemon=True)
    watchdog.start()
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_end)
        watchdog.join()
        os.close(read_end)


def _watch(read_end: int, caught: set[int]) -> None:
    """Read the numbers of the signals as they arrive, until the pipe is closed."""
    first = 0.0
    while data := os.read(read_end, 1):
        if data[0] not in caught:
            continue
        now = time.monotonic()
        if first and not (data[0] == signal.SIGTERM and now - first < ONE_REQUEST):
            os._exit(128 + data[0])
        first = first or now
