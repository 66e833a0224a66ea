"""Training from a store against training in memory: clients a second, memory, time to the first round.

    python -m experiments.benchmarks.stores [--clients 1e5] [--items 1e5] [--events-per-client 100] [--json FILE]

Draws a store of these sizes into a temporary folder, trains FedMF (D = 64, cohorts of 1,000) from it and, where it
fits, in memory, each in a process of its own, and deletes it. Processor seconds a round stand beside wall-clock
ones, for machines that do other work too. What to expect stands in `NOTES.md`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr

WAYS = ("store", "memory")


def measure(way: str, path: Path, *, rounds: int, cohort: int, dim: int) -> dict[str, Any]:
    """Train, in this process.

    Args:
        way: one of `WAYS`.
        path: of the store.
        rounds: T.
        cohort: C.
        dim: D.

    Returns:
        numbers by name; seconds and GiB.
    """
    start = time.perf_counter()
    fr.use_cores()
    stored = fr.open_population(path)
    data: Any = stored if way == "store" else stored.load()
    algorithm = fr.fedmf(dim=dim, cohort=cohort, stream_clients=cohort, mesh=fr.client_mesh())
    opened = time.perf_counter() - start
    ticks = []

    def on_block(_: fr.training.Progress) -> None:
        ticks.append((time.perf_counter(), sum(os.times()[:2])))

    _, history = fr.simulate(algorithm, data, rounds=rounds, eval_every=1, keep="last", on_block=on_block)
    wall, processor = np.diff(np.array(ticks), axis=0).T
    return {
        "way": way,
        "opened after": round(opened, 2),
        "first round after": round(ticks[0][0] - start, 2),
        "seconds a round": round(float(np.median(wall)), 4),
        "processor seconds a round": round(float(np.median(processor)), 4),
        "clients a second": round(cohort / float(np.median(wall))),
        "compilations": history.num_compilations,
        "last loss": float(history.rounds.loss[-1]),
        **_memory(),
    }


def _memory() -> dict[str, float]:
    """GiB of this process: the peak, and of now what is its own and what is of mapped files."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "Rss"))}
    names = {"VmHWM": "peak GiB", "RssAnon": "own GiB", "RssFile": "files GiB"}
    return {told: round(int(values[name]) / 2**20, 2) for name, told in names.items()}


def main() -> None:
    """Draw a store, and measure each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=float, default=1e5)
    parser.add_argument("--items", type=float, default=1e5)
    parser.add_argument("--events-per-client", type=float, default=100)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--ways", nargs="*", default=WAYS, choices=WAYS)
    parser.add_argument("--folder", help="where the store is drawn (default: the system's temporary folder)")
    parser.add_argument("--json", help="file for the numbers")
    parser.add_argument(
        "--one", nargs=2, help=argparse.SUPPRESS
    )  # a way and a store: measured in this process
    given = parser.parse_args()
    sizes = {"rounds": given.rounds, "cohort": given.cohort, "dim": given.dim}
    if given.one:
        print(json.dumps(measure(given.one[0], Path(given.one[1]), **sizes)))
        return
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        tick = time.perf_counter(), time.process_time()
        store = fr.data.store.synthesise(
            Path(folder) / "drawn",
            clients=int(given.clients),
            items=int(given.items),
            events_per_client=given.events_per_client,
            progress=True,
        )
        drawing = {
            "events": store.num_events,
            "events a second": round(store.num_events / (time.perf_counter() - tick[0])),
            "events a processor second": round(store.num_events / (time.process_time() - tick[1])),
        }
        print(json.dumps(drawing), flush=True)
        found = [drawing]
        for way in given.ways:
            options = [word for name, value in sizes.items() for word in (f"--{name}", str(value))]
            command = [
                sys.executable,
                "-m",
                "experiments.benchmarks.stores",
                *options,
                "--one",
                way,
                str(store.path),
            ]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603
            print(done.stdout, end="", flush=True)
            found.append(json.loads(done.stdout))
    if given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
