"""What clients keep, on the device or in host memory: seconds a round, and peak memory.

    python -m experiments.benchmarks.streaming [--data-dir DIR] [--json FILE]

FedRAP (D = 32, everyone in each round) keeps 2.7 GiB on MovieLens 1M, SCAFFOLD (D = 64, cohorts of 604) 5.4 GiB.
From host memory they go to the device so many clients at a time (`fedjax_rec.federation.streaming`). Each
measurement is a process of its own, sizes take turns, and medians are reported with the least and the most; about
30 minutes on two cores. `parts.choose_part` was read off this. Without `--data-dir` histories are drawn with
MovieLens-1M's lengths. What to expect stands in `NOTES.md`.
"""

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

import fedjax_rec as fr
from experiments.benchmarks.task import draw, load
from fedjax_rec.client.population import Population
from fedjax_rec.training.checkpoints.versions import versions
from fedjax_rec.types import Algorithm

ROUNDS = {"fedrap": 2, "scaffold": 6}
SIZES = (0, 16, 32, 64, 256)  # clients of a part; 0 is one piece


def make(name: str, size: int, devices: int) -> Algorithm:
    """An algorithm whose clients keep whole tables.

    Args:
        name: a key of `ROUNDS`.
        size: S, clients of a part; 0 for one piece.
        devices: over which they are split.

    Returns:
        the algorithm.
    """
    given: dict[str, Any] = {"stream_clients": size, "mesh": fr.client_mesh(devices)}
    makes: dict[str, Callable[[], Algorithm]] = {
        "fedrap": lambda: fr.fedrap(dim=32, **given),
        "scaffold": lambda: fr.scaffold(dim=64, **given),
    }
    return makes[name]()


def measure(name: str, size: int, devices: int, population: Population) -> dict[str, Any]:
    """Train, in this process.

    Args:
        name: a key of `ROUNDS`.
        size: S, clients of a part; 0 for one piece.
        devices: over which they are split.
        population: the clients.

    Returns:
        seconds a round, the peak of this process in GiB, and the last loss, by which sizes can be compared.
    """
    rounds = ROUNDS[name]
    _, history = fr.simulate(
        make(name, size, devices), population, rounds=rounds, eval_every=rounds, keep="last"
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": history.train_seconds / rounds, "gib": peak, "loss": float(history.rounds.loss[-1])}


def measure_apart(name: str, size: int, devices: int, data_dir: str | None) -> dict[str, Any] | None:
    """The same in a process of its own, whose peak is this measurement's.

    Args:
        name: a key of `ROUNDS`.
        size: S, clients of a part; 0 for one piece.
        devices: over which they are split.
        data_dir: folder that holds `ml-1m-loo`; None draws.

    Returns:
        as `measure`; None where it is refused for want of memory.
    """
    one = ["--one", name, "--sizes", str(size), "--devices", str(devices)]
    command = [sys.executable, "-m", "experiments.benchmarks.streaming", *one]
    done = subprocess.run(  # noqa: S603 - our own module
        command + (["--data-dir", data_dir] if data_dir else []), capture_output=True, text=True, check=False
    )
    if done.returncode and "GiB" not in done.stderr:
        raise RuntimeError(done.stderr)
    return None if done.returncode else json.loads(done.stdout.splitlines()[-1])


def line(name: str, size: int, devices: int, found: list[dict[str, Any] | None]) -> str:
    """One line of the table.

    Args:
        name: of the algorithm.
        size: S.
        devices: over which a part is split.
        found: the repeats.

    Returns:
        the text.
    """
    sound = [each for each in found if each is not None]
    what = f"{name:9} {devices} device(s), {'one piece' if not size else f'{size:4} at a time':14}"
    if not sound:
        return f"{what} refused: it does not fit"
    seconds = [each["seconds"] for each in sound]
    spread = f"{median(seconds):6.2f} s a round ({min(seconds):.2f} to {max(seconds):.2f})"
    return (
        f"{what} {spread}, peak {median(each['gib'] for each in sound):5.2f} GiB, loss {sound[0]['loss']:.5f}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--data-dir", help="folder that holds ml-1m-loo; drawn histories without")
    parser.add_argument("--json", type=Path, help="file for the report")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=list(SIZES), help="clients of a part; 0: one piece"
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--one", choices=ROUNDS, help="measure the first size on the first devices, in this process"
    )
    return parser.parse_args()


def main() -> None:
    """Measure, print a table, and write a report if asked."""
    given = _parse()
    if given.one:
        fr.use_cores(given.devices[0])
        population = (load(given.data_dir) if given.data_dir else draw(6040, 3706)).population
        print(json.dumps(measure(given.one, given.sizes[0], given.devices[0], population)))
        return
    cases = [(name, size, devices) for name in ROUNDS for devices in given.devices for size in given.sizes]
    found: dict[tuple[str, int, int], list] = {case: [] for case in cases}
    for case in tqdm(cases * given.repeats, unit="run"):
        name, size, devices = case
        found[case].append(measure_apart(name, size, devices, given.data_dir))
    print("\n".join(line(*case, repeats) for case, repeats in found.items()))
    if given.json:
        rows = [{"case": case, "repeats": repeats} for case, repeats in found.items()]
        given.json.write_text(json.dumps({"rows": rows, "versions": versions()}, indent=1) + "\n")


if __name__ == "__main__":
    main()
