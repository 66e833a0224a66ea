"""The command line: inject faults and count what becomes of them.

    python -m experiments.faults                # every row of the table in the README
    python -m experiments.faults --short        # few of each, with a toy instead of a real algorithm
    python -m experiments.faults --only "kill -9" SIGTERM

Duration and numbers to expect stand in the README beside this file.
"""

import argparse
import importlib
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from experiments.faults.registry import FAULTS, Injection, Tally
from experiments.faults.workload import use_cache

MODULES = (
    "kills",
    "damage",
    "disk",
    "drift",
    "clients",
    "files",
    "forged",
    "several",
    "stores",
)  # whose import registers faults
MOST_DEVICES = 8  # of one core each


def register() -> None:
    """Import every module that registers faults."""
    for name in MODULES:
        importlib.import_module(f"experiments.faults.{name}")


def inject(name: str, *, short: bool, seed: int = 0) -> Tally:
    """Inject one fault as often as its row says.

    Args:
        name: of the row.
        short: fewer times, and into a toy.
        seed: of what is random.

    Returns:
        the counts.
    """
    row = FAULTS[name]
    with tempfile.TemporaryDirectory() as folder:
        injection = Injection(
            times=row.short if short else row.times,
            folder=Path(folder),
            rng=np.random.default_rng([seed, *name.encode()]),
            real=not short,
        )
        return row.inject(injection)


def line(name: str, counts: Tally) -> str:
    """A line of the report.

    Args:
        name: of the fault.
        counts: what became of it.

    Returns:
        `NAME: injected N, survived N, lost N, silent N`.
    """
    return f"{name}: " + ", ".join(f"{kind} {count}" for kind, count in counts._asdict().items())


def main(arguments: Sequence[str] | None = None) -> int:
    """Inject faults and print a line for each kind.

    Args:
        arguments: of the command line.

    Returns:
        the exit status: 1 if any fault was not survived.
    """
    register()
    parser = argparse.ArgumentParser(prog="python -m experiments.faults", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--short", action="store_true", help="few of each, in less than a minute")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), metavar="NAME", help="these rows")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: 0)")
    given = parser.parse_args(arguments)
    start_time = time.perf_counter()
    not_survived = 0
    for name in given.only or FAULTS:
        counts = inject(name, short=given.short, seed=given.seed)
        not_survived += counts.injected - counts.survived
        print(line(name, counts), flush=True)
    print(f"{time.perf_counter() - start_time:.0f} s")
    return int(not_survived > 0)


if __name__ == "__main__":
    use_cache()
    jax.config.update("jax_num_cpu_devices", MOST_DEVICES)
    raise SystemExit(main())
