"""A store that several processes read in shares: the cost of dealing clients to their owners, and that of sending.

    python -m experiments.benchmarks.shares [--dim 32] [--rounds 40]

Draws a store of 100,000 clients, 20,000 items and 100 events a client into a temporary folder. First, by numpy:
the work of the busiest process over the mean, for cohorts of 1,000 clients, if each trained where its history is,
and sorted and dealt as rounds do it. Then, in two processes of this machine: milliseconds a round, those in which
a cohort's histories are sent, and those for which rounds wait. A minute; what to expect stands in `docs/hosts.md`.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr
from fedjax_rec.data.store import Store, share_bounds
from fedjax_rec.federation.cohort_feed import CohortFeed
from fedjax_rec.hosts import Mailbox

COHORT = 1000
COHORTS = 200
WARM_UP = 5  # rounds, in which programs are compiled


def imbalance(store: Store, processes: int) -> dict[str, Any]:
    """The busiest process over the mean one.

    Args:
        store: the histories.
        processes: P.

    Returns:
        by way and unit: the mean and the worst of the cohorts.
    """
    rng = np.random.default_rng(0)
    lengths, bounds = np.diff(store.offsets), share_bounds(store.offsets, processes)
    ratios = []
    for _ in range(COHORTS):
        clients = rng.choice(store.num_clients, COHORT, replace=False)
        owners = np.searchsorted(bounds[1:-1], clients, side="right")
        events = lengths[clients]
        dealt = np.arange(COHORT) % processes, np.sort(events)[::-1]
        works = [
            np.bincount(process, weights, minlength=processes)
            for process, weights in ((owners, None), (owners, events), (dealt[0], None), dealt)
        ]
        ratios.append([work.max() / work.mean() for work in works])
    names = ("by owner, clients", "by owner, events", "dealt, clients", "dealt, events")
    means, worst = np.mean(ratios, axis=0).round(2).tolist(), np.max(ratios, axis=0).round(2).tolist()
    return {"processes": processes} | dict(zip(names, zip(means, worst, strict=True), strict=True))


def measure(path: Path, address: str, process_id: int, *, dim: int, rounds: int) -> dict[str, Any]:
    """Train as one of two processes.

    Args:
        path: of the store.
        address: of the coordinator.
        process_id: of this process.
        dim: D.
        rounds: T.

    Returns:
        milliseconds by name: of a round the mean, of the others the median.
    """
    fr.initialize_distributed(address, 2, process_id)
    sent, waited = _timed(Mailbox, "exchange"), _timed(CohortFeed, "take")
    clients = fr.open_population(path)
    algorithm = fr.fedmf(dim=dim, cohort=COHORT, mesh=fr.client_mesh(2))
    fr.simulate(algorithm, clients, rounds=WARM_UP, eval_every=WARM_UP)
    sent.clear()
    waited.clear()
    _, history = fr.simulate(algorithm, clients, rounds=rounds, eval_every=rounds)
    return {
        "round": round(history.train_seconds / rounds * 1e3, 1),
        "sending": round(float(np.median(sent)) * 1e3, 1),
        "waiting for the cohort": round(float(np.median(waited)) * 1e3, 1),
    }


def _timed(owner: Any, name: str) -> list[float]:
    """Seconds of each call of a method, from now on."""
    seconds: list[float] = []
    method: Callable[..., Any] = getattr(owner, name)

    def timed(*given: Any) -> Any:
        tick = time.perf_counter()
        found = method(*given)
        seconds.append(time.perf_counter() - tick)
        return found

    setattr(owner, name, timed)
    return seconds


def main() -> None:
    """Draw a store, count, and measure two processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dim", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # store, address, number: measured here
    given = parser.parse_args()
    sizes = {"dim": given.dim, "rounds": given.rounds}
    if given.one:
        path, address, number = given.one
        print(json.dumps(sizes | measure(Path(path), address, int(number), **sizes)))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = fr.data.store.synthesise(
            Path(folder) / "drawn", clients=100_000, items=20_000, events_per_client=100
        )
        for processes in (2, 4, 8, 64):
            print(json.dumps(imbalance(store, processes)), flush=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        command = [sys.executable, "-m", "experiments.benchmarks.shares"]
        command += ["--dim", str(given.dim), "--rounds", str(given.rounds), "--one", str(store.path), address]
        one_device = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        other = subprocess.Popen([*command, "1"], env=one_device, stdout=subprocess.DEVNULL)  # noqa: S603
        subprocess.run([*command, "0"], env=one_device, check=True)  # noqa: S603
        other.wait()


if __name__ == "__main__":
    main()
