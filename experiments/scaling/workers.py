"""Strong and weak scaling over cores, as devices of a process and as processes; ceilings of a core.

    python -m experiments.scaling.workers experiments/scaling/workers.csv experiments/scaling/ceilings.csv

A worker is one core, to which its process is bound. *Strong*: the cohort is the same however many work on it;
*weak*: each has the base's cohort for itself. `fedmf` at the base of `measure`, blocks of rounds without
validation; the clock's median, least and most, of all ways in turns. The ceilings are those of a roofline: the
numbers that a core multiplies and adds in a matrix product, and the bytes that it reads and writes in sums of
vectors, long ones (256 MiB) and such as stay in its cache (128 KiB, which one thread of a device adds).
"""

import argparse
import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import fedjax_rec as fr
from experiments.scaling.measure import Point, draw

BLOCK, BLOCKS = 50, 8  # rounds of a block, and blocks that are timed
REPEATS = 3  # of each way, in turns
LIMIT = 600  # seconds of one
FIELDS = ("kind", "way", "workers", "cohort", "round", "least", "most", "clients a second", "efficiency")


class Way(NamedTuple):
    """Who trains one cohort."""

    kind: str  # strong or weak
    way: str  # devices or processes
    workers: int
    cohort: int

    @property
    def processes(self) -> int:
        """How many there are, of one device each where they are more than one."""
        return self.workers if self.way == "processes" else 1


WAYS = (
    Way("base", "devices", 1, 1000),
    Way("strong", "devices", 2, 1000),
    Way("strong", "processes", 2, 1000),
    Way("weak", "devices", 2, 2000),
    Way("weak", "processes", 2, 2000),
)


def train(way: Way, process: int, address: str) -> list[float]:
    """Train, in this process, which is bound to its cores.

    Args:
        way: how many work.
        process: the number of this one.
        address: HOST:PORT of process 0.

    Returns:
        seconds of a round, block by block.
    """
    devices = way.workers // way.processes
    os.sched_setaffinity(0, range(process * devices, (process + 1) * devices))
    if way.processes > 1:
        fr.initialize_distributed(address, way.processes, process)
    fr.use_cores(devices)
    algorithm = fr.fedmf(dim=Point().dim, cohort=way.cohort, mesh=fr.client_mesh(way.workers))
    ticks: list[float] = []
    fr.simulate(
        algorithm,
        draw(Point()),
        rounds=BLOCK * (BLOCKS + 1),
        eval_every=BLOCK,
        keep="last",
        on_block=lambda _: ticks.append(time.perf_counter()),
    )
    return [float(seconds) / BLOCK for seconds in np.diff(ticks)]


def run_way(way: Way) -> list[float]:
    """Train in processes of their own.

    Args:
        way: how many work.

    Returns:
        seconds of a round, as process 0 measured them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "experiments.scaling.workers", "--child", json.dumps(way)]
    started = [
        subprocess.Popen([*command, str(number), address], stdout=subprocess.PIPE, text=True)  # noqa: S603
        for number in range(way.processes)
    ]
    try:
        said = [process.communicate(timeout=LIMIT)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    if any(process.returncode for process in started):
        raise RuntimeError(f"{way} ended with status {[process.returncode for process in started]}")
    return json.loads(said[0].splitlines()[-1])


def ceilings_of(cores: int) -> dict[str, float]:
    """What so many cores can do, measured in this process.

    Args:
        cores: to which it is bound; before jax computes anything.

    Returns:
        numbers a second that are multiplied or added, bytes a second that are read or written, in memory and near.
    """
    os.sched_setaffinity(0, set(range(cores)))
    side, length, short, times = 2048, 2**26, 2**15, 10_000
    square, long, near = jnp.ones((side, side)), jnp.ones(length), jnp.ones(short)
    product = _seconds(jax.jit(lambda a, _: a @ a), square, square)
    total = _seconds(jax.jit(lambda a, b: a + b), long, long + 1)
    again = jax.jit(lambda a, b: jax.lax.fori_loop(0, times, lambda _, left: left + b, a))
    cached = _seconds(again, near, near)
    return {
        "cores": cores,
        "flops": 2 * side**3 / product,
        "bytes": 3 * 4 * length / total,
        "cached bytes": 3 * 4 * short * times / cached,
    }


def _seconds(compute: Callable[..., jax.Array], *given: jax.Array) -> float:
    jax.block_until_ready(compute(*given))  # compiles
    spent = []
    for _ in range(9):
        start = time.perf_counter()
        jax.block_until_ready(compute(*given))
        spent.append(time.perf_counter() - start)
    return median(spent)


def run_ceilings() -> list[dict[str, float]]:
    """What one core can do, and two, each in a process of its own.

    Returns:
        a row for each number of cores.
    """
    command = [sys.executable, "-m", "experiments.scaling.workers", "--ceilings"]
    return [
        json.loads(subprocess.run([*command, cores], capture_output=True, text=True, check=True).stdout)  # noqa: S603
        for cores in ("1", "2")
    ]


def write(path: Path, fields: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    """Write a table.

    Args:
        path: of the csv.
        fields: its columns.
        rows: of it.
    """
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Measure all ways in turns, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ways", type=Path, nargs="?", help="csv of the ways")
    parser.add_argument("roofs", type=Path, nargs="?", help="csv of the ceilings")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)  # a way, a number and an address
    parser.add_argument("--ceilings", type=int, help=argparse.SUPPRESS)  # of so many cores
    given = parser.parse_args()
    if given.ceilings:
        print(json.dumps(ceilings_of(given.ceilings)))
        return
    if given.child:
        print(json.dumps(train(Way(*json.loads(given.child[0])), int(given.child[1]), given.child[2])))
        return
    if given.roofs is None:
        parser.error("name two files: a csv of the ways and one of the ceilings")
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    for way in tqdm(WAYS * REPEATS):
        seconds[way] += run_way(way)
    alone = WAYS[0].cohort / median(seconds[WAYS[0]])
    rows = []
    for way, found in seconds.items():
        rate = way.cohort / median(found)
        numbers = {"round": median(found), "least": min(found), "most": max(found), "clients a second": rate}
        numbers["efficiency"] = rate / alone / way.workers
        rows.append(way._asdict() | {name: f"{number:.4g}" for name, number in numbers.items()})
    write(given.ways, FIELDS, rows)
    ceilings = [{name: f"{number:.4g}" for name, number in row.items()} for row in run_ceilings()]
    write(given.roofs, ("cores", "flops", "bytes", "cached bytes"), ceilings)


if __name__ == "__main__":
    main()
