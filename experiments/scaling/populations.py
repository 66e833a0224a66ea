"""Populations beyond memory: drawing, training and converting a store of 10^9 events, by the product's commands.

    python -m experiments.scaling.populations experiments/scaling/populations.csv [--steps draw train convert]

*draw* is `fedjax-rec data synthesise`. *train* trains FedMF (D = 64, C = 1,000) from that store, with what
clients keep in files (`client_store`), and from as many clients as fit (100,000, of the same lengths) in
memory, each in a process of its own and in turns. *convert* writes events of the store as a parquet file, a
stream of row groups in which those of 64 places are mixed, and is then `fedjax-rec data convert`. Memory is
sampled: what is the process's own, and pages of files, which the kernel may drop. Processor seconds stand
beside those of the clock, for machines that do other work. What to expect stands in `README.md`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr

STEPS = ("draw", "train", "convert")
SMALL = 100_000  # clients that are trained in memory
PLACES = 64  # of the store, whose events are mixed in a parquet file
GROUP = 2**22  # rows of a row group
FIELDS = (
    *("step", "way", "clients", "items", "events", "seconds", "processor seconds", "own GiB", "files GiB"),
    *("first round", "first round, processor", "round", "round, least", "round, most", "round, processor"),
)


class Memory(threading.Thread):
    """The most that a process has had in memory so far, sampled: its own, and pages of files.

    Args:
        process: its number.
    """

    def __init__(self, process: int) -> None:
        super().__init__(daemon=True)
        self.status = Path(f"/proc/{process}/status")
        self.most = {"RssAnon": 0, "RssFile": 0}  # KiB
        self.start()

    def run(self) -> None:
        """Look every fifth of a second, until the process is gone."""
        while True:
            try:
                lines = self.status.read_text(encoding="ascii").splitlines()
            except OSError:
                return
            found = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Rss")}
            if not found:  # it has ended, and was not waited for
                return
            self.most = {name: max(size, found[name]) for name, size in self.most.items()}
            time.sleep(0.2)

    def told(self) -> dict[str, float]:
        """In GiB."""
        names = {"RssAnon": "own GiB", "RssFile": "files GiB"}
        return {told: round(self.most[name] / 2**20, 2) for name, told in names.items()}


def run_measured(command: Sequence[object]) -> tuple[dict[str, Any], str]:
    """Run a command.

    Args:
        command: its words.

    Returns:
        seconds, processor seconds and memory; what it printed.
    """
    start, before = time.perf_counter(), os.times()
    process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)  # noqa: S603
    memory = Memory(process.pid)
    said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} ended with status {process.returncode}")
    after = os.times()
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    took = {"seconds": round(time.perf_counter() - start, 1), "processor seconds": round(processor, 1)}
    return took | memory.told(), said


def train(way: str, path: Path, rounds: int) -> dict[str, Any]:
    """Train, in this process.

    Args:
        way: "store" or "memory".
        path: of the store.
        rounds: that are timed, behind the first.

    Returns:
        numbers by name.
    """
    start, before = time.perf_counter(), sum(os.times()[:2])
    fr.use_cores()
    memory = Memory(os.getpid())
    stored = fr.open_population(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        data: Any = stored if way == "store" else stored.load()
        algorithm = fr.fedmf(dim=64, cohort=1000, stream_clients=1000, mesh=fr.client_mesh())
        ticks = []
        _, history = fr.simulate(
            algorithm,
            data,
            rounds=rounds + 1,
            eval_every=1,
            keep="last",
            on_block=lambda _: ticks.append((time.perf_counter() - start, sum(os.times()[:2]) - before)),
            client_store=folder if way == "store" else None,
        )
    clock, processor = np.diff(np.array(ticks), axis=0).T
    return {
        **memory.told(),
        "first round": round(ticks[0][0], 1),
        "first round, processor": round(ticks[0][1], 1),
        "round": round(float(np.median(clock)), 3),
        "round, least": round(float(clock.min()), 3),
        "round, most": round(float(clock.max()), 3),
        "round, processor": round(float(np.median(processor)), 3),
        "loss": float(history.rounds.loss[-1]),
    }


def write_parquet(store: fr.data.store.Store, path: Path, rows: int) -> None:
    """Write so many events of a store as a stream of row groups, those of `PLACES` places mixed.

    Args:
        store: of at least as many events.
        path: of the file.
        rows: of it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    schema = pa.schema([("user", pa.int64()), ("item", pa.int64()), ("timestamp", pa.int64())])
    share = rows // PLACES
    step = GROUP // PLACES
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, share, step):
            spans = [
                (place * share + first, place * share + min(first + step, share)) for place in range(PLACES)
            ]
            items = np.concatenate([store.read("items", *span) for span in spans])
            events = np.concatenate([np.arange(*span) for span in spans])
            users = np.searchsorted(store.offsets, events, side="right") - 1
            mixed = rng.permutation(len(events))
            columns = [users[mixed], items[mixed].astype(np.int64), 10**9 + events[mixed]]
            writer.write_table(pa.table([pa.array(column) for column in columns], schema))


def main() -> None:
    """Measure what is asked for; each measurement is a line of the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="csv, to which lines are added")
    parser.add_argument("--steps", nargs="+", default=STEPS, choices=STEPS)
    parser.add_argument("--clients", type=float, default=10e6)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--events-per-client", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=20, help="that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="of training, of which each way takes turns")
    parser.add_argument("--rows", type=float, help="that are converted; by default all events")
    parser.add_argument("--folder", type=Path, help="for stores, kept there; by default one that is removed")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)  # a way and a store: in this process
    given = parser.parse_args()
    if given.one:
        print(json.dumps(train(given.one[0], Path(given.one[1]), given.rounds)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        folder.mkdir(exist_ok=True)
        _measure(given, folder)


def _measure(given: argparse.Namespace, folder: Path) -> None:
    sizes = {"items": int(given.items), "clients": int(given.clients)}
    whole, small = folder / f"drawn-{int(given.clients)}", folder / f"drawn-{SMALL}"

    def note(step: str, way: str, store: Path, **found: Any) -> None:
        opened = fr.data.store.open_store(store)
        line = {"step": step, "way": way, "clients": opened.num_clients, "items": opened.num_items}
        line |= {"events": opened.num_events, **found}
        print(json.dumps(line), flush=True)
        is_new = not given.file.exists()
        with given.file.open("a", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, extrasaction="ignore", lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(line)

    command = [sys.executable, "-m", "fedjax_rec", "data"]
    for path, clients in ((whole, sizes["clients"]), (small, SMALL)):
        if path.exists():
            continue
        drawn = [
            "--clients",
            clients,
            "--items",
            sizes["items"],
            "--events-per-client",
            given.events_per_client,
        ]
        found, _ = run_measured([*command, "synthesise", *drawn, path])
        note("draw", "", path, **found)
    if "train" in given.steps:
        here = [sys.executable, "-m", "experiments.scaling.populations", given.file, "--rounds", given.rounds]
        for _ in range(given.repeats):
            for way, path in (("store", whole), ("memory", small)):
                found, said = run_measured([*here, "--one", way, path])
                note("train", way, path, **found | json.loads(said))
    if "convert" in given.steps:
        store = fr.data.store.open_store(whole)
        source, made = folder / "events.parquet", folder / "converted"
        write_parquet(store, source, min(int(given.rows or store.num_events), store.num_events))
        found, _ = run_measured([*command, "convert", source, made])
        note("convert", f"parquet, {source.stat().st_size / 1e9:.1f} GB", made, **found)


if __name__ == "__main__":
    main()
