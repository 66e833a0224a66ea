"""Runs of several processes: one that is killed, has other data or a damaged share, or does not answer."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from fedjax_rec.data.store import synthesise
from fedjax_rec.training.checkpoints.store import find_latest

LIMIT = 600.0  # seconds after which a process hangs, on a machine that does other things
MORE = 4  # rounds that one process trains on from what two have left
EVERY = 2  # rounds between validations and checkpoints
TOLERANCE = 1e-4  # of a validation metric: another number of processes sums floats in another order


class Ended(NamedTuple):
    """A process that has ended."""

    status: int
    lines: list[str]  # of its errors


class Process:
    """A command of fedjax-rec whose words go to a file.

    Args:
        arguments: of the command line.
        words: of the file.
    """

    def __init__(self, arguments: Sequence[str], words: Path) -> None:
        self.words = words
        command = [sys.executable, "-m", "fedjax_rec", *arguments]
        with words.open("w") as file:
            self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=file)  # noqa: S603 - our own

    def end(self) -> Ended:
        """Wait until it has ended.

        Returns:
            how; status -1 if it hangs, and is killed.
        """
        try:
            status = self.process.wait(timeout=LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = -1
        words = self.words.read_text(encoding="utf-8").replace("\r", "\n")
        return Ended(status, words.strip().splitlines())


def _write_data(path: Path, seed: int = 0) -> Path:
    """48 users with 12 events each."""
    rng = np.random.default_rng(seed)
    lines = [f"{user},{item}" for user in range(48) for item in rng.permutation(70)[:12]]
    path.write_text("user,item\n" + "\n".join(lines), encoding="utf-8")
    return path


def _arguments(data: Path, folder: Path, rounds: int) -> list[str]:
    given = {
        "dataset": data, "out": folder, "order": "file", "dim": 2, "rounds": rounds, "eval-every": EVERY,
        "checkpoint-every": EVERY, "cohort": 32,
    }  # fmt: skip
    return ["run", "--quiet", *(word for name, value in given.items() for word in (f"--{name}", str(value)))]


def _together() -> list[str]:
    """Flags of two processes, to which each adds its number."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return [
            "--coordinator",
            f"127.0.0.1:{free.getsockname()[1]}",
            "--processes",
            "2",
            "--process-id",
        ]


def _is_told(ended: Ended, *texts: str) -> bool:
    """Whether it ended in one line with a status, and no traceback."""
    last = ended.lines[-1] if ended.lines else ""
    clean = not any("Traceback" in line for line in ended.lines)
    return (
        clean
        and ended.status in (1, 2)
        and last.startswith("fedjax-rec: error: ")
        and any(t in last for t in texts)
    )


@fault("one of two processes killed", times=10, short=1)
def killed(injection: Injection) -> Tally:
    """With kill -9, at any moment after the first checkpoint: the other one ends, and one process goes on."""
    return tally(_kill(injection, number) for number in range(injection.times))


def _kill(injection: Injection, number: int) -> Outcome:
    folder = injection.folder / f"run-{number}"
    data = _write_data(injection.folder / f"data-{number}.csv")
    flags = _together()
    both = [
        Process([*_arguments(data, folder, 10**6), *flags, str(k)], injection.folder / f"words-{number}-{k}")
        for k in (0, 1)
    ]
    victim = int(injection.rng.integers(2))
    try:
        end = time.monotonic() + LIMIT
        while not list(folder.glob("checkpoints/train/round-0*[2468]")) and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(injection.rng.uniform(0, 1))
        both[victim].process.kill()
        other = both[1 - victim].end()
    finally:
        for one in both:
            one.process.kill()
            one.process.wait()
    if not _is_told(other, "lost another one", "another process of this run ended"):
        return "lost"
    latest = find_latest(folder / "checkpoints/train")
    if latest is None or latest.path is None or latest.damaged:
        return "lost"
    rounds = int(latest.meta["round"]) + MORE
    resumed = Process(["resume", str(folder), "--rounds", str(rounds)], injection.folder / "resumed").end()
    if resumed.status:
        return "lost"
    straight = injection.folder / f"straight-{number}"
    Process(_arguments(data, straight, rounds), injection.folder / "alone").end()
    return "survived" if _is_alike(folder, straight) else "silent"


def _is_alike(folder: Path, other: Path) -> bool:
    """Whether two runs have the same test metrics, to rounding."""
    found, wanted = (
        json.loads((one / "result.json").read_text(encoding="utf-8"))["metrics"]["test"]["full"]
        for one in (folder, other)
    )
    return bool(np.allclose([found[name] for name in wanted], list(wanted.values()), atol=TOLERANCE))


@fault("two processes that differ", times=6, short=1)
def different(injection: Injection) -> Tally:
    """In their data or in their seed: both say which process has what, and nothing is written."""
    return tally(_differ(injection, number) for number in range(injection.times))


def _differ(injection: Injection, number: int) -> Outcome:
    flags = _together()
    folder = injection.folder / f"differ-{number}"
    by_data = number % 2 == 0
    processes = []
    for k in (0, 1):
        data = _write_data(injection.folder / f"differ-{number}-{k}.csv", seed=k if by_data else 0)
        seed = [] if by_data else ["--seed", str(k)]
        words = injection.folder / f"differs-{number}-{k}"
        processes.append(Process([*_arguments(data, folder, 4), *seed, *flags, str(k)], words))
    ended = [one.end() for one in processes]
    if not all(_is_told(one, "differs from process 0", "another process of this run ended") for one in ended):
        return "lost"
    named = any("differs from process 0" in one.lines[-1] for one in ended)
    return "survived" if named and not (folder / "result.json").exists() else "lost"


@fault("damaged share on one of two processes", times=6, short=1)
def damaged(injection: Injection) -> Tally:
    """Before the run, or in the middle of it: both say in one line which process has which file, with status 2."""
    return tally(_damage(injection, number) for number in range(injection.times))


def _damage(injection: Injection, number: int) -> Outcome:
    store = synthesise(injection.folder / f"store-{number}", clients=4000, items=200, events_per_client=50)
    copies = [Path(shutil.copytree(store.path, injection.folder / f"share-{number}-{k}")) for k in (0, 1)]
    victim, late = int(injection.rng.integers(2)), number % 2 == 0
    file = copies[victim] / "items.bin"
    if not late:
        values = bytearray(file.read_bytes())
        values[-9 if victim else 9] ^= 1  # in the share of the victim
        file.write_bytes(values)
    folder = injection.folder / f"shares-{number}"
    flags = _together()
    both = []
    for k in (0, 1):
        arguments = [*_arguments(copies[k], folder, 10**6), "--evaluate-clients", "50"]
        arguments = [each for each in arguments if each not in ("--order", "file")]  # a store has its own
        words = injection.folder / f"shared-{number}-{k}"
        both.append(Process([*arguments, *flags, str(k)], words))
    try:
        end = time.monotonic() + LIMIT
        while late and not list(folder.glob("checkpoints/train/round-0*[2468]")) and time.monotonic() < end:
            time.sleep(0.1)
        if late:
            time.sleep(injection.rng.uniform(0, 1))
            file.write_bytes(b"")
        ended = [one.end() for one in both]
    finally:
        for one in both:
            one.process.kill()
            one.process.wait()
    named = [_is_told(one, f": {file}: ") and f"process {victim} (" in one.lines[-1] for one in ended]
    return "survived" if all(named) and [one.status for one in ended] == [2, 2] else "lost"


@fault("no coordinator", times=4, short=1)
def unanswered(injection: Injection) -> Tally:
    """Nobody answers at its address: one line with the address once the limit is over, nothing is written."""
    return tally(_wait_in_vain(injection, number) for number in range(injection.times))


def _wait_in_vain(injection: Injection, number: int) -> Outcome:
    folder = injection.folder / f"alone-{number}"
    data = _write_data(injection.folder / "alone.csv")
    arguments = [*_arguments(data, folder, 4), *_together(), "1", "--join-timeout", "0.5"]
    ended = Process(arguments, injection.folder / f"waits-{number}").end()
    told = _is_told(ended, "waited 0.5 s in vain") and len(ended.lines) == 1
    return "survived" if told and not folder.exists() else "lost"
