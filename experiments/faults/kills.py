"""Processes that die: kill -9 at any moment, SIGTERM, and SIGTERM twice."""

import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from experiments.faults.registry import Outcome, Setting, Tally, fault, tally
from experiments.faults.work import child, reference
from fedjax_rec.steps import find_step

LONGEST = 0.6  # seconds from the start of a process, or from its first round, to its end
PATIENCE = 120.0  # seconds after which a process is taken for dead


def context() -> Any:
    """Processes that are forked from one that has imported everything and computed nothing.

    Returns:
        a context of `multiprocessing`.
    """
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["experiments.faults.work"])
    return found


class Victim:
    """A process that runs, and what it has acknowledged so far."""

    def __init__(self, folder: Path, setting: Setting) -> None:
        self.folder, self.acknowledged, self.final = folder, -1, ""
        self.reading, writing = context().Pipe(duplex=False)
        self.process = context().Process(target=child, args=(folder, setting.real, writing), daemon=True)
        self.process.start()
        writing.close()

    def hear(self, seconds: float, *, rounds: int = 10**9) -> bool:
        """Listen for some time, or until so many rounds are acknowledged; whether the process lives on."""
        end = time.monotonic() + seconds
        while self.acknowledged < rounds and (left := end - time.monotonic()) > 0:
            if not self._next(self.reading, left):
                return False
        return True

    def _next(self, reading: Connection, seconds: float) -> bool:
        try:
            if reading.poll(seconds):
                told = reading.recv()
                if isinstance(told, str):
                    self.final = told
                    return False
                self.acknowledged = max(self.acknowledged, told)
        except (EOFError, OSError):
            return False
        return True

    def end(self, number: int) -> int:
        """Send a signal, hear the last words, and wait; the exit code."""
        if self.process.is_alive():
            os.kill(self.process.pid, number)
        self.hear(PATIENCE)
        self.process.join(PATIENCE)
        self.reading.close()
        return self.process.exitcode


def _intact(folder: Path, acknowledged: int) -> bool:
    """Whether the folder holds every acknowledged round, by this process or one before, and nothing damaged."""
    try:
        found = find_step(folder)
    except ValueError:
        return False
    last = 0 if found.path is None else found.meta["round"]
    return not found.damaged and last >= acknowledged


def _chain(setting: Setting, number: int) -> Iterator[Outcome]:
    """Kill one run after another, each as often as it takes to end; a wrong end damns all of its kills."""
    left = setting.times
    while left:
        folder, kills = Path(tempfile.mkdtemp(dir=setting.place)) / "run", list[bool]()
        victim, safe = Victim(folder, setting), 0
        while left and _wait(victim, setting, early=number == signal.SIGKILL):
            code, left = victim.end(number), left - 1
            safe = max(safe, victim.acknowledged)
            right = bool(victim.final) or code == (0 if number == signal.SIGTERM else -number)
            kills.append(right and _intact(folder, safe))
            if victim.final:
                break
            victim = Victim(folder, setting)
        victim.hear(PATIENCE)
        victim.process.join(PATIENCE)
        wrong = victim.final not in ("", reference(real=setting.real))
        if not kills and not victim.final:  # it does not even start
            kills, left = [False], left - 1
        for sound in kills:
            yield "silent" if wrong else "survived" if sound and victim.final else "lost"


def _wait(victim: Victim, setting: Setting, *, early: bool) -> bool:
    """Until a random moment: mostly after the first round, sometimes while the process still starts."""
    if (not early or setting.rng.random() < 0.8) and not victim.hear(PATIENCE, rounds=1):
        return False
    return victim.hear(setting.rng.uniform(0.0, LONGEST))


@fault("kill -9", times=200, short=3)
def kill(setting: Setting) -> Tally:
    """At a random moment of starting, training or saving: no acknowledged round is lost, the end is the same."""
    return tally(_chain(setting, signal.SIGKILL))


@fault("SIGTERM", times=20, short=1)
def terminate(setting: Setting) -> Tally:
    """The block is finished and saved, the status is 0, the end is the same."""
    return tally(_chain(setting, signal.SIGTERM))
