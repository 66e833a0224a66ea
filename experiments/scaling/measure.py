"""Seconds of a round against clients, cohort, items, width, local epochs and events of a client.

    python -m experiments.scaling.measure experiments/scaling/points.csv

`fedmf` at its defaults (SGD, 4 negatives, mean of the updates) on histories drawn with a long tail. Each point is
one compiled block of rounds, repeated for a few seconds; it has the median, the least and the most of the wall
clock, and the processor's seconds, which other work on the machine moves least. A point takes below 20 seconds on
two quiet cores. `role` says to which points the model is fitted, and which are held out: of both some vary one
thing at a time, others all at once, drawn at random. Points that the file has already are not measured again.
"""

import csv
import gc
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import fedjax_rec as fr
from fedjax_rec.client.population import Population
from fedjax_rec.engine.devices import client_mesh, replicate, use_cores
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.runs.bench import draw_histories

SECONDS = 1.5  # on the clock, each point; at least three repeats
MOST_ROUNDS = 256  # in a repeat


class Point(NamedTuple):
    """What is varied."""

    clients: int = 20_000
    items: int = 10_000
    events: int = 50  # of a client, mean
    dim: int = 32
    cohort: int = 1000
    epochs: int = 1
    devices: int = 2


FITTED = [
    Point(),
    *[Point(cohort=cohort) for cohort in (100, 300, 3000)],
    *[Point(dim=dim) for dim in (8, 128)],
    *[Point(items=items) for items in (1000, 100_000, 500_000)],
    Point(clients=2000),
    Point(epochs=5),
    Point(devices=1),
    Point(events=150),
    Point(epochs=5, dim=128),
    Point(epochs=2),
]
HELD_OUT = [
    Point(clients=50_000, items=30_000, events=80, dim=64, cohort=600),
    Point(clients=30_000, items=5000, events=60, dim=24, cohort=1500, epochs=3),
    Point(clients=10_000, items=20_000, events=40, dim=96, cohort=200),
    Point(clients=40_000, items=15_000, events=25, dim=40, cohort=800, devices=1),
    Point(clients=5000, items=3000, events=120, dim=16, cohort=400),
]


def drawn_points(count: int, seed: int) -> list[Point]:
    """Points in which everything differs, on a log scale.

    Args:
        count: how many.
        seed: of the draw.

    Returns:
        points whose rounds visit 500,000 events and a table of 6.4 million numbers at most.
    """
    rng = np.random.default_rng(seed)
    points: list[Point] = []
    while len(points) < count:
        low, high = np.log([2000, 1000, 20, 8, 50, 1, 1]), np.log([50_000, 100_000, 150, 128, 2000, 5, 3])
        point = Point(*map(int, np.exp(rng.uniform(low, high))))
        visits = point.cohort * point.events * point.epochs
        if visits <= 500_000 and point.items * point.dim <= 6_400_000 and 2 * point.cohort <= point.clients:
            points.append(point)
    return points


def draw(point: Point, seed: int = 0) -> Population:
    """Histories of a long tail, over a catalogue with popular items.

    Args:
        point: says how many and how long.
        seed: of the draw.

    Returns:
        the population.
    """
    sizes = point.clients, point.items, point.events
    return draw_histories(sizes, sigma=0.8, tilt=3, longest=point.items // 4, seed=seed)


def measure(point: Point) -> dict[str, float]:
    """Seconds of a round.

    Args:
        point: what is trained.

    Returns:
        by column of the table.
    """
    population = draw(point)
    algorithm = fr.fedmf(
        dim=point.dim, cohort=point.cohort, local_epochs=point.epochs, mesh=client_mesh(point.devices)
    )
    planned = sum(algorithm.plan(population).num_bytes.values())
    mean_events = population.size.num_events / point.clients
    population = replicate(population, algorithm.mesh)
    key = jax.random.key(0)
    block = jax.jit(partial(run_block, algorithm, MOST_ROUNDS), donate_argnums=1)
    state = jax.jit(algorithm.init)(key, population)
    state, _ = jax.block_until_ready(block(key, state, population, jnp.int32(1)))  # compiles

    rounds = 1
    walls: list[float] = []
    processor: list[float] = []
    begin = time.perf_counter()
    while len(walls) < 3 or time.perf_counter() - begin < SECONDS:
        wall, used = time.perf_counter(), time.process_time()
        state, _ = jax.block_until_ready(block(key, state, population, jnp.int32(rounds)))
        spent = time.perf_counter() - wall
        if spent < SECONDS / 16 and rounds < MOST_ROUNDS:  # a longer repeat for the clock
            rounds *= 4
            walls, processor = [], []
            continue
        walls.append(spent / rounds)
        processor.append((time.process_time() - used) / rounds)
    return {
        "mean_events": mean_events,
        "seconds": median(walls),
        "least": min(walls),
        "most": max(walls),
        "processor": median(processor),
        "planned_bytes": float(planned),
    }


def main() -> None:
    """Measure all points, those of as many cores in a process that is bound to these, and write the table."""
    path = Path(sys.argv[1])
    if len(sys.argv) == 2:
        for count in ("1", "2"):
            subprocess.run([sys.executable, "-m", "experiments.scaling.measure", path, count], check=True)  # noqa: S603
        return
    cores = int(sys.argv[2])
    os.sched_setaffinity(0, set(range(cores)))
    use_cores(cores)
    names = [*Point._fields, "role", "mean_events", "seconds", "least", "most", "processor", "planned_bytes"]
    known = list(csv.DictReader(path.open())) if path.exists() else []
    done = [Point(**{name: int(row[name]) for name in Point._fields}) for row in known]
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        if not known:
            writer.writeheader()
        fitted, held_out = FITTED + drawn_points(32, seed=0), HELD_OUT + drawn_points(16, seed=1)
        points = [("fit", point) for point in fitted] + [("held out", point) for point in held_out]
        own = [each for each in points if each[1] not in done and each[1].devices == cores]
        for role, point in tqdm(own):
            found = measure(point)
            writer.writerow(point._asdict() | {"role": role} | {n: f"{v:.6g}" for n, v in found.items()})
            file.flush()
            gc.collect()
            jax.clear_caches()


if __name__ == "__main__":
    main()
