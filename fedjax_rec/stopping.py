"""SIGTERM and SIGINT as a wish: the first is noted, so that a run can end in order; a second ends the process."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Wish:
    """Whether the process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self.signal = ""


@contextlib.contextmanager
def noting_signals() -> Iterator[Wish]:
    """Note the first SIGTERM or SIGINT instead of dying of it.

    Python runs its handlers between its own instructions only, and a block of rounds is one of them: a thread
    therefore counts the signals as they come.

    Yields:
        the wish; in a thread other than the main one, where Python allows no handlers, it stays empty.

    Example:
        >>> with noting_signals() as wish:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> wish.signal
        'SIGTERM'
    """
    wish = Wish()
    if threading.current_thread() is not threading.main_thread():
        yield wish
        return

    def note(number: int, _: object) -> None:
        wish.signal = signal.Signals(number).name

    heeded = [one for one in SIGNALS if signal.getsignal(one) is not signal.SIG_IGN]
    before = {one: signal.signal(one, note) for one in heeded}
    try:
        with _counting(heeded):
            yield wish
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


@contextlib.contextmanager
def _counting(heeded: list[signal.Signals]) -> Iterator[None]:
    """End the process at the second signal, whatever its main thread computes."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    watcher = threading.Thread(target=_watch, args=(reading, {int(one) for one in heeded}), daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writing)
        watcher.join()
        os.close(reading)


def _watch(reading: int, heeded: set[int]) -> None:
    count = 0
    while data := os.read(reading, 1):
        count += data[0] in heeded
        if count > 1:
            os._exit(128 + data[0])
