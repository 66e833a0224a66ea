"""Rounds on the rows that a cohort touches against rounds over all rows, by the number of items.

    python -m experiments.scaling.touched experiments/scaling/touched.csv

`fedmf` at D = 64 and C = 1,000 on 100,000 clients of about 100 events, drawn with a long tail, on one CPU device.
Both ways train the same clients, in one process, one after the other, to equal losses. A row has the seconds of a
round (median, least and most over blocks of two), the processor's seconds, and the peak of resident memory from
the start of the run, the model's making included, beyond what there was before and beyond the table. All rows of
ten million items take 10 GiB.
"""

import csv
import gc
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import fedjax_rec as fr
from fedjax_rec.client.population import Population
from fedjax_rec.runs.bench import draw_histories
from fedjax_rec.training.history import Progress

ITEMS = (10**5, 3 * 10**5, 10**6, 3 * 10**6, 10**7)
CLIENTS, EVENTS, DIM, COHORT = 100_000, 100, 64, 1000
ROUNDS, BLOCK = 12, 2
NAMES = (
    "items",
    "rows",
    "chosen",
    "seconds",
    "least",
    "most",
    "processor",
    "table_bytes",
    "peak_beyond",
    "plan_beyond",
)


def measure(population: Population, rows: str) -> tuple[dict[str, Any], np.ndarray]:
    """Train some rounds.

    Args:
        population: the clients.
        rows: "touched" or "all".

    Returns:
        what the table has of it; the losses.
    """
    gc.collect()
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    ticks: list[tuple[float, float, int]] = []

    def tick(progress: Progress) -> None:
        ticks.append((time.perf_counter(), time.process_time(), progress.round))

    algorithm = fr.fedmf(dim=DIM, cohort=COHORT, server_rows=rows)
    options: dict[str, Any] = {"rounds": ROUNDS, "eval_every": BLOCK, "keep": "last", "on_block": tick}
    state, history = fr.simulate(algorithm, population, **options)
    walls, processor, rounds = np.diff(np.array(ticks), axis=0).T
    walls, processor = walls / rounds, processor / rounds
    table = sum(leaf.nbytes for leaf in jax.tree.leaves(state.server.tables))
    num_bytes = history.plan.num_bytes
    found = {
        "seconds": median(walls),
        "least": walls.min(),
        "most": walls.max(),
        "processor": median(processor),
        "table_bytes": table,
        "peak_beyond": _memory("VmHWM") - before - table,
        "plan_beyond": sum(num_bytes.values()) - num_bytes["data"] - num_bytes["model"],
    }
    return found, np.asarray(history.rounds.loss)


def _memory(name: str) -> int:
    """Bytes of this process: VmRSS, what is resident, or VmHWM, its peak."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def compare(items: int) -> list[dict[str, Any]]:
    """Both ways on one catalogue.

    Args:
        items: I.

    Returns:
        a row each.
    """
    population = draw_histories((CLIENTS, items, EVENTS), sigma=0.8, tilt=3, longest=2000, seed=0)
    chosen = fr.fedmf(dim=DIM, cohort=COHORT).streaming
    plan = None if chosen is None else chosen(population)
    by_itself = "all" if plan is None else "touched"
    found: list[dict[str, Any]] = []
    losses: list[np.ndarray] = []
    for rows in ("touched", "all"):
        values, loss = measure(population, rows)
        numbers: dict[str, Any] = {name: f"{value:.6g}" for name, value in values.items()}
        found.append({"items": items, "rows": rows, "chosen": by_itself} | numbers)
        losses.append(loss)
    if not np.array_equal(losses[0], losses[1]):
        raise SystemExit(f"the losses of {items:,} items differ: {losses}")
    return found


def main() -> None:
    """Measure every number of items in a process of its own, and write the table; go on where the file ends."""
    path = Path(sys.argv[1])
    if len(sys.argv) > 2:
        with path.open("a", newline="") as file:
            csv.DictWriter(file, NAMES).writerows(compare(int(sys.argv[2])))
        return
    if not path.exists():
        path.write_text(",".join(NAMES) + "\n", encoding="utf-8")
    done = {int(row["items"]) for row in csv.DictReader(path.open(encoding="utf-8"))}
    for items in tqdm([each for each in ITEMS if each not in done]):
        command = [sys.executable, "-m", "experiments.scaling.touched", str(path), str(items)]
        subprocess.run(command, check=True)  # noqa: S603 - this script


if __name__ == "__main__":
    main()
