"""The floor: the same rounds by a hand-written C kernel, compiled at run time."""

import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks.side import Side
from experiments.benchmarks.task import DIM, NEGATIVES, POSITIVES, RATE, Draws, Task, checksum
from fedjax_rec.rows.permutation import MAX_SHUFFLE, _double_rounds, _primes_above
from fedjax_rec.types import RoundInfo

FLAGS = ("-O3", "-march=native", "-ffast-math", "-shared", "-fPIC")


COUNTS = ("num_items", "dim", "positives", "negatives", "epochs", "turns", "words")


class _Task(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("num_items", "dim", "positives", "negatives", "epochs", "turns", "words")
        ),
        ("learning_rate", ctypes.c_float),
        *((name, ctypes.c_void_p) for name in ("offsets", "items", "bitmap", "primes")),
    ]


class Seconds(NamedTuple):
    """Where one round went."""

    clients: float  # the clients' work
    server: float  # the server's passes over the table: clearing the sums, adding them


class Floor:
    """The compiled kernel, ready for one task."""

    def __init__(self, task: Task, epochs: int) -> None:
        """Compile and lay out the data.

        Args:
            task: the data.
            epochs: E.

        Raises:
            RuntimeError: if there is no C compiler.
        """
        self.library = ctypes.CDLL(str(_compile()))
        words = -(-task.num_items // 32)
        bits = np.zeros((len(task.offsets) - 1, words), np.uint32)
        owners = np.repeat(np.arange(len(task.offsets) - 1), np.diff(task.offsets))
        np.bitwise_or.at(
            bits, (owners, task.items // 32), np.uint32(1) << (task.items % 32).astype(np.uint32)
        )
        primes = _primes_above(MAX_SHUFFLE)
        self.held = [task.offsets.astype(np.int32), task.items, bits, primes]
        sizes = (task.num_items, DIM, POSITIVES, NEGATIVES, epochs, _double_rounds(task.num_items), words)
        self.task = _Task(*sizes, RATE, *(array.ctypes.data for array in self.held))

    def round(self, table: np.ndarray, vectors: np.ndarray, cohort: np.ndarray, keys: np.ndarray) -> Seconds:
        """One round, in place.

        Args:
            table: float32[I, D], the global table.
            vectors: float32[N, D], the private vectors.
            cohort: int32[C].
            keys: uint32[C, 2].

        Returns:
            seconds of the clients' work, and of the server's passes over the table.
        """
        start = time.perf_counter()
        total = np.full_like(table, 0.0)  # written now, not at the first touch
        begun = time.perf_counter()
        cohort, keys = np.ascontiguousarray(cohort, np.int32), np.ascontiguousarray(keys, np.uint32)
        pointers = [ctypes.c_void_p(x.ctypes.data) for x in (table, vectors, cohort, keys)]
        self.library.run_cohort(
            ctypes.byref(self.task), *pointers, ctypes.c_int(len(cohort)), ctypes.c_void_p(total.ctypes.data)
        )
        middle = time.perf_counter()
        table += total / len(cohort)
        return Seconds(middle - begun, time.perf_counter() - middle + begun - start)


def _compile() -> Path:
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise RuntimeError("no C compiler (cc, gcc or clang) is installed")
    library = Path(tempfile.mkdtemp()) / "floor.so"
    source = Path(__file__).with_name("floor.c")
    subprocess.run([compiler, *FLAGS, str(source), "-o", str(library), "-lm"], check=True)  # noqa: S603
    return library


def floor_side(task: Task, draws: Draws, epochs: int) -> Side:
    """The kernel, ready to run all rounds of the draws, each time from the start.

    Args:
        task: the data.
        draws: cohorts and keys.
        epochs: E.

    Returns:
        the side.

    Raises:
        RuntimeError: if there is no C compiler.
    """
    floor = Floor(task, epochs)

    def run() -> float:
        table, vectors, seconds = draws.table.copy(), draws.vectors.copy(), 0.0
        for cohort, keys in zip(draws.cohorts, draws.keys, strict=True):
            seconds += math.fsum(floor.round(table, vectors, cohort, keys))
        held["table"] = table
        return seconds

    held: dict[str, np.ndarray] = {}
    run()
    counts = np.diff(task.offsets)[draws.cohorts]
    zero = np.zeros(len(draws.cohorts))
    none: Any = [zero] * len(RoundInfo._fields)
    infos = RoundInfo(*none)._replace(
        clients=zero + draws.cohorts.shape[1], examples=counts.sum(1) * (1.0 + NEGATIVES) * epochs
    )
    return Side(run, draws.cohorts.size, {"checksum": checksum(held["table"])}, lambda: infos, lambda: 1)
