"""Processes that die: kill -9 at any moment, SIGTERM, and SIGTERM twice."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from experiments.faults.workload import reference, run_in_child
from fedjax_rec.training.checkpoints.store import find_latest

LONGEST = 0.6  # seconds from the start of a process, or from its first round, to its end
PATIENCE = 120.0  # seconds after which a process is taken for dead


def context() -> Any:
    """Processes that are forked from one that has imported everything and computed nothing.

    Returns:
        a context of `multiprocessing`.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["experiments.faults.workload"])
    return forkserver


class Victim:
    """A process that runs, and what it has acknowledged so far."""

    def __init__(self, folder: Path, injection: Injection) -> None:
        self.folder = folder
        self.acknowledged = -1  # rounds
        self.digest = ""  # of the end, if the run has reached it
        self.receiver, sender = context().Pipe(duplex=False)
        arguments = (folder, injection.real, sender)
        self.process = context().Process(target=run_in_child, args=arguments, daemon=True)
        self.process.start()
        sender.close()

    def listen(self, seconds: float, *, rounds: int = 10**9) -> bool:
        """Listen for some time, or until so many rounds are acknowledged; whether the process lives on."""
        deadline = time.monotonic() + seconds
        while self.acknowledged < rounds and (left := deadline - time.monotonic()) > 0:
            if not self._receive(left):
                return False
        return True

    def _receive(self, seconds: float) -> bool:
        try:
            if self.receiver.poll(seconds):
                message = self.receiver.recv()
                if isinstance(message, str):
                    self.digest = message
                    return False
                self.acknowledged = max(self.acknowledged, message)
        except (EOFError, OSError):
            return False
        return True

    def kill(self, number: int) -> int:
        """Send a signal, receive the last messages, and wait; the exit code."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        self.listen(PATIENCE)
        self.process.join(PATIENCE)
        self.receiver.close()
        return self.process.exitcode


def _is_intact(folder: Path, acknowledged: int) -> bool:
    """Whether the folder holds every acknowledged round, by this process or one before, and nothing damaged."""
    try:
        latest = find_latest(folder)
    except ValueError:
        return False
    last = 0 if latest.path is None else latest.meta["round"]
    return not latest.damaged and last >= acknowledged


def _kill_runs(injection: Injection, number: int) -> Iterator[Outcome]:
    """Kill one run after another, each as often as it takes to end; a wrong end damns all of its kills."""
    left = injection.times
    expected_code = 0 if number == signal.SIGTERM else -number
    while left:
        folder = Path(tempfile.mkdtemp(dir=injection.folder)) / "run"
        victim = Victim(folder, injection)
        acknowledged = 0
        kills: list[bool] = []  # whether each was as it must be
        while left and _wait(victim, injection, early=number == signal.SIGKILL):
            code = victim.kill(number)
            left -= 1
            acknowledged = max(acknowledged, victim.acknowledged)
            is_right = bool(victim.digest) or code == expected_code
            kills.append(is_right and _is_intact(folder, acknowledged))
            if victim.digest:
                break
            victim = Victim(folder, injection)
        victim.listen(PATIENCE)
        victim.process.join(PATIENCE)
        is_wrong = victim.digest not in ("", reference(real=injection.real))
        if not kills and not victim.digest:  # it does not even start
            kills = [False]
            left -= 1
        for is_sound in kills:
            yield "silent" if is_wrong else "survived" if is_sound and victim.digest else "lost"


def _wait(victim: Victim, injection: Injection, *, early: bool) -> bool:
    """Until a random moment: mostly after the first round, sometimes while the process still starts."""
    if (not early or injection.rng.random() < 0.8) and not victim.listen(PATIENCE, rounds=1):
        return False
    return victim.listen(injection.rng.uniform(0.0, LONGEST))


@fault("kill -9", times=200, short=3)
def kill(injection: Injection) -> Tally:
    """At a random moment of starting, training or saving: no acknowledged round is lost, the end is the same."""
    return tally(_kill_runs(injection, signal.SIGKILL))


@fault("SIGTERM", times=20, short=1)
def terminate(injection: Injection) -> Tally:
    """The block is finished and saved, the status is 0, the end is the same."""
    return tally(_kill_runs(injection, signal.SIGTERM))
