"""What the command line says on the way, on standard error: nothing that happens there can end a run."""

import contextlib
import sys

from fedjax_rec.errors import printable
from fedjax_rec.startup import PROGRAM
from fedjax_rec.training.checkpoints.signals import raise_if_stopped


class Unfailing:
    """Standard error as a stream whose writes never fail: a full disk or a closed pipe costs words, not the run.

    Example:
        >>> Unfailing().write("")
        0
    """

    encoding = "utf-8"  # what tqdm asks for, to choose its characters

    def write(self, text: str) -> int:
        """Write what can be written."""
        with contextlib.suppress(OSError, ValueError, AttributeError):  # AttributeError: there is no stream
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether a person looks."""
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return sys.stderr.isatty()
        return False

    def fileno(self) -> int:
        """Of standard error, for the width of its window."""
        return sys.stderr.fileno()


def tell(text: str) -> None:
    """Say a line on standard error.

    Args:
        text: the line.
    """
    print(f"{PROGRAM}: {printable(text)}", file=Unfailing(), flush=True)


def stage(text: str) -> None:
    """Say what begins now, unless a signal asked to stop.

    Args:
        text: the line.

    Raises:
        StopSignal: if there was a signal.
    """
    raise_if_stopped()
    print(printable(text), file=Unfailing(), flush=True)
