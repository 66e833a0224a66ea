"""Eight small configurations: `fedjax-rec sweep` against eight `fedjax-rec run`s one after the other.

    python -m experiments.benchmarks.sweeps [REPEATS]

Both are whole processes with compiled programs kept on the disk by a first, untimed turn; they take turns, so that
other work on the machine hits both. Takes about four minutes on two cores. A run does more than a trial: it ranks
the test items and writes its folder; `NOTES.md` has what this gave.
"""

import itertools
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATES = ("0.01", "0.02", "0.03", "0.05")
PENALTIES = ("0.01", "0.05")
SHARED = ("--rounds", "40", "--eval-every", "10", "--dim", "16")


def timed(*arguments: str) -> float:
    """Seconds of one process."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "fedjax_rec", *arguments, "--quiet"]
    subprocess.run(command, check=True, capture_output=True)  # noqa: S603 - our own module
    return time.perf_counter() - start


def one_by_one(folder: Path) -> float:
    """Seconds of eight runs."""
    return sum(
        timed("run", *SHARED, "--learning-rate", rate, "--regularisation", penalty, "--out", f"{folder}/{n}")
        for n, (rate, penalty) in enumerate(itertools.product(RATES, PENALTIES))
    )


def batched(folder: Path) -> float:
    """Seconds of a sweep over the same eight."""
    grid = ("--set", f"learning_rate={','.join(RATES)}", "--set", f"regularisation={','.join(PENALTIES)}")
    return timed("sweep", *grid, "--budget", "40", *SHARED[2:], "--out", f"{folder}/sweep")


def main() -> None:
    """Measure in turns, and print medians and all figures."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    runs, sweeps = [], []
    for turn in range(repeats + 1):
        with tempfile.TemporaryDirectory() as folder:
            seconds = one_by_one(Path(folder)), batched(Path(folder))
        print(f"turn {turn}: {seconds[0]:.1f} s one by one, {seconds[1]:.1f} s as a sweep", flush=True)
        if turn:
            runs.append(seconds[0])
            sweeps.append(seconds[1])
    one, other = statistics.median(runs), statistics.median(sweeps)
    print(f"medians of {repeats}: {one:.1f} s, {other:.1f} s: {one / other:.1f} times faster")


if __name__ == "__main__":
    main()
