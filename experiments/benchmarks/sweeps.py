"""Eight small configurations: `fedjax-rec sweep` against eight `fedjax-rec run`s one after the other.

    python -m experiments.benchmarks.sweeps [REPEATS]

Both are whole processes with compiled programs kept on the disk by a first, untimed turn; they take turns, so that
other work on the machine hits both. Takes some minutes on two cores. A run does more than a trial: it ranks
the test items and writes its folder; `NOTES.md` has what this gave.
"""

import itertools
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

RATES = ("0.01", "0.02", "0.03", "0.05")
PENALTIES = ("0.01", "0.05")
SHARED = ("--rounds", "40", "--eval-every", "10", "--dim", "16")


class Spent(NamedTuple):
    """Seconds."""

    wall: float
    processor: float  # which other work on the machine moves less


def timed(*arguments: str) -> Spent:
    """Seconds of one process."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "fedjax_rec", *arguments, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own module
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(time.perf_counter() - start, used)


def one_by_one(folder: Path) -> Spent:
    """Seconds of eight runs."""
    spent = [
        timed("run", *SHARED, "--learning-rate", rate, "--regularisation", penalty, "--out", f"{folder}/{n}")
        for n, (rate, penalty) in enumerate(itertools.product(RATES, PENALTIES))
    ]
    return Spent(*map(sum, zip(*spent, strict=True)))


def batched(folder: Path) -> Spent:
    """Seconds of a sweep over the same eight."""
    grid = ("--set", f"learning_rate={','.join(RATES)}", "--set", f"regularisation={','.join(PENALTIES)}")
    return timed("sweep", *grid, "--budget", "40", *SHARED[2:], "--out", f"{folder}/sweep")


def main() -> None:
    """Measure in turns, and print medians and all figures."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    runs: list[Spent] = []
    sweeps: list[Spent] = []
    for turn in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            run, sweep = one_by_one(Path(folder)), batched(Path(folder))
        print(
            f"turn {turn}: {run.wall:.1f} s one by one ({run.processor:.1f} of the processor), "
            f"{sweep.wall:.1f} s as a sweep ({sweep.processor:.1f})",
            flush=True,
        )
        if turn:
            runs.append(run)
            sweeps.append(sweep)
    for name in Spent._fields:
        one, other = (statistics.median(getattr(each, name) for each in side) for side in (runs, sweeps))
        print(f"{name}, medians of {repeats}: {one:.1f} s, {other:.1f} s: {one / other:.1f} times faster")


if __name__ == "__main__":
    main()
