"""A parent for one of several processes, which says in one line why jax ended it.

Where another process is gone, jax ends this one at once, with a page of its own and without asking Python. So the
work is done by a child, whose standard error is passed on but for what jax's runtime says of its processes; and a
child without a parent ends itself.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence

from fedjax_rec.startup import PROGRAM

FLAGS = ("--distributed", "--coordinator", "--processes", "--process-id", "--join-timeout")
COMMANDS = ("run", "resume")
_PIPE = (
    "FEDJAX_REC_SUPERVISOR"  # in a child's environment: the descriptor that closes when its parent is gone
)
_NOISE = re.compile(rb"[IWEF]\d{4} \d\d:\d\d:\d\d|\*\*\* Check failure|    @ |\[Gloo\]")
_MORE = re.compile(rb"RPC: |Additional GRPC|:UNKNOWN:|The tasks have|Original error|\d+\s*$|\s*$|Use error")
_ENDED = b"JAX distributed service detected fatal errors"
_REASON = re.compile(rb"absl::Status: ([^\n]{1,160})")


def wants_supervisor(arguments: Sequence[str]) -> bool:
    """Whether these arguments make this process one of several that has no parent yet.

    Args:
        arguments: of the command line.

    Returns:
        True or False.

    Example:
        >>> wants_supervisor(["run", "--distributed"]), wants_supervisor(["run", "--distributed", "--help"])
        (True, False)
    """
    names = {argument.partition("=")[0] for argument in arguments}
    asked = arguments[:1] and arguments[0] in COMMANDS and not names & {"-h", "--help", "--help-all"}
    return bool(asked and names & set(FLAGS) and _PIPE not in os.environ)


def supervise(arguments: Sequence[str]) -> int:
    """Run the command in a child.

    Args:
        arguments: of the command line.

    Returns:
        the child's exit status; 1 if jax ended it because another process is gone.
    """
    watched, held = os.pipe()
    child = subprocess.Popen(  # noqa: S603 - this program itself
        [sys.executable, "-m", "fedjax_rec", *arguments],
        stderr=subprocess.PIPE,
        env={**os.environ, _PIPE: str(watched)},
        pass_fds=(watched,),
    )
    os.close(watched)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _pass_on(child, number))
    assert child.stderr is not None  # noqa: S101 - it is a pipe; this tells the type checker
    dropped = pass_on_words(child.stderr.fileno(), 2)
    status = child.wait()
    os.close(held)
    if status == -signal.SIGABRT and _ENDED in dropped:
        reason = _REASON.search(dropped)
        why = f" ({reason[1].decode(errors='replace').strip()})" if reason else ""
        line = "another process of this run ended or cannot be reached, so that jax ended this one"
        os.write(2, f"{PROGRAM}: error: {line}{why}\n".encode())
        return 1
    if status < 0:
        os.write(2, dropped)
        return 128 - status
    return status


def _pass_on(child: subprocess.Popen, number: int) -> None:
    """Give a signal to the child, which Ctrl-C at a terminal has reached already."""
    with contextlib.suppress(OSError):
        if number == signal.SIGTERM or not os.isatty(2):
            child.send_signal(number)


def pass_on_words(source: int, target: int) -> bytes:
    r"""Copy what arrives until the end, as it arrives, without what jax's runtime says.

    Args:
        source: descriptor to read.
        target: descriptor to write.

    Returns:
        what was left out.

    Example:
        >>> read_end, write_end = os.pipe()
        >>> _ = os.write(write_end, b"E1129 16:50:24.89 1 x.cc:1] lost\nRPC: /Poll\n")
        >>> os.close(write_end)
        >>> pass_on_words(read_end, 1)
        b'E1129 16:50:24.89 1 x.cc:1] lost\nRPC: /Poll\n'
    """
    dropped, rest, noisy = b"", b"", False
    while True:
        arrived = os.read(source, 65536)
        *lines, rest = (rest + arrived).split(b"\n")
        for line in lines:
            noisy = bool(_NOISE.match(line) or (noisy and _MORE.match(line)))
            if noisy:
                dropped += line + b"\n"
            else:
                _write(target, line + b"\n")
        # The beginning of a line is passed on, such as a progress bar, unless it may become noise.
        if rest and not noisy and not re.match(rb"[IWEF]\d|\[G|\*\*\*|   ", rest):
            _write(target, rest)
            rest = b""
        if not arrived:
            if rest:
                _write(target, rest)
            return dropped


def _write(target: int, words: bytes) -> None:
    with contextlib.suppress(OSError):  # a closed terminal ends no run
        os.write(target, words)


def obey_supervisor() -> None:
    """In a child: end when the parent is gone, and keep what jax's runtime prints off standard output."""
    pipe = os.environ.get(_PIPE)
    if pipe is None:
        return

    def wait() -> None:
        with contextlib.suppress(OSError):
            os.read(int(pipe), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    own = os.dup(1)
    os.dup2(2, 1)
    sys.stdout = os.fdopen(own, "w", encoding="utf-8", errors="backslashreplace")
