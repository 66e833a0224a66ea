"""How the engine's cost moves: with the catalogue, the cohort, the population, and what is done with updates.

Run as a program of its own by the benchmark, so that the peak of its memory is that of one case:

    python -m experiments.benchmarks.scale catalogue        # one line of JSON
"""

import argparse
import dataclasses
import json
import resource
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from experiments.benchmarks import floor
from experiments.benchmarks.side import engine_side, race, spread
from experiments.benchmarks.task import SEED, Task, algorithm, draw, load, share_draws
from fedjax_rec.client.membership import Membership
from fedjax_rec.engine.devices import client_mesh, use_cores
from fedjax_rec.server.aggregators import fixed_point, gaussian, mean
from fedjax_rec.training.seeds import train

MILLION = 1_000_000


def catalogue(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """I = 1,000,000: clients' work against the floor's at that I, the server's pass and the memory apart."""
    del data_dir  # no data set has such a catalogue: histories are drawn with ML-1M's lengths
    task = draw(6040, MILLION)
    before = _peak()
    mesh, rounds = client_mesh(), 5
    population = task.population
    busy = engine_side(algorithm(1000, 1, mesh=mesh), population, 1000, rounds)
    idle = engine_side(algorithm(1000, 1, mesh=mesh, sampler=nobody(1000)), population, 1000, rounds)
    peak = _peak()
    draws = share_draws(task, 1000, rounds)
    kernel, wholes, work, passes = floor.Floor(task, 1), [], [], []
    for _ in range(repeats):
        wholes.append(busy.run() / rounds)
        passes.append(idle.run() / rounds)
        table, vectors = draws.table.copy(), draws.vectors.copy()
        spent = [kernel.round(table, vectors, c, k) for c, k in zip(draws.cohorts, draws.keys, strict=True)]
        work.append(1000 * len(spent) / sum(s.clients for s in spent))
    rates = [1000 / (whole - median(passes)) for whole in wholes]
    table_bytes = MILLION * 64 * 4
    return {
        "engine": spread(rates),
        "floor": spread(work),
        "ratio": median(rates) / median(work),
        "server_pass_seconds": {"median": median(passes), "min": min(passes), "max": max(passes)},
        "peak_bytes": peak,
        "peak_bytes_before": before,
        "bytes_beyond_table": peak - table_bytes,
        "planned_bytes": busy.facts["planned_bytes"],
    }


def nobody(cohort: int) -> fr.types.Sampler:
    """A sampler whose cohort never comes: what is left of a round is the server's."""
    base = fr.samplers.uniform(cohort)
    return lambda key, num_clients: (base(key, num_clients)[0], jnp.zeros(cohort, bool))


def flatness(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """Cost per client over cohorts of 100, 1,000 and all, and over 6,040 and 1,000,000 clients, in turns."""
    task, mesh = load(data_dir), client_mesh()
    population, most = task.population, len(task.offsets) - 1
    cohorts = (100, 1000, most)
    sides = {
        f"c{cohort}": engine_side(algorithm(cohort, 1, mesh=mesh), population, cohort, max(1, 6000 // cohort))
        for cohort in cohorts
    }
    sides["n1000000"] = engine_side(algorithm(1000, 1, mesh=mesh), _many(task, MILLION), 1000, 6)
    found = race(sides, repeats)
    base = found["c1000"]["clients_per_second"]
    cost = {name: base / result["clients_per_second"] for name, result in found.items()}
    return {"results": found, "cost_per_client_against_c1000": cost, "peak_bytes": _peak()}


def _many(task: Task, clients: int) -> fr.Population:
    """So many clients: the task's histories again and again, each client with a vector of its own."""
    base = task.population
    turns = -(-clients // base.num_clients)
    counts = np.tile(np.diff(task.offsets), turns)[:clients]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    items = np.tile(task.items, turns)[: offsets[-1]]
    words = base.membership.cells.shape[0] // base.num_clients
    cells = np.tile(np.asarray(base.membership.cells), turns)[: clients * words]
    return dataclasses.replace(
        base,
        examples={"items": jnp.asarray(items)},
        offsets=jnp.asarray(offsets, jnp.int32),
        membership=Membership(jnp.asarray(cells), base.membership.starts),
    )


def rounds(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """What is done with updates, against the plain round: transforms, fixed point, stacked aggregators."""
    population, mesh = load(data_dir).population, client_mesh()

    def side(cohort: int, count: int, **changes: Any) -> Any:
        return engine_side(algorithm(cohort, 1, mesh=mesh, **changes), population, cohort, count)

    large = {
        "plain": side(1000, 2),
        "clip": side(1000, 2, transform=fr.transforms.clip(1.0)),
        "clip_and_noise": side(
            1000,
            2,
            transform=fr.transforms.clip(1.0),
            aggregator=gaussian(noise_multiplier=1.0, norm=1.0, expected=1000.0),
        ),
        "quantise": side(1000, 1, transform=fr.transforms.quantise(8)),
        "noise": side(
            1000, 1, transform=fr.transforms.chain(fr.transforms.clip(1e9), fr.transforms.add_noise(1e-3))
        ),
        "fixed_point": side(1000, 2, aggregator=fixed_point(mean(), capacity=1000)),
    }
    small = {
        "plain_c100": side(100, 10),
        "median_c100": side(100, 1, aggregator=fr.server.median()),
        "krum_c100": side(100, 1, aggregator=fr.server.krum(10)),
    }
    found = race(large, repeats) | race(small, repeats)
    cost = {
        name: found["plain_c100" if name.endswith("c100") else "plain"]["clients_per_second"]
        / result["clients_per_second"]
        for name, result in found.items()
    }
    return {"results": found, "cost_against_plain": cost}


def devices(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """The same rounds on one device and on all."""
    population = load(data_dir).population
    sides = {
        f"d{count}_e{epochs}": engine_side(
            algorithm(1000, epochs, mesh=client_mesh(count)), population, 1000, max(1, 3 // epochs)
        )
        for count in sorted({1, len(jax.devices())})
        for epochs in (1, 5)
    }
    return {"results": race(sides, repeats)}


def large_batches(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """So many lanes a core: ten visits of the whole catalogue (FedRAP), and batches of 1,024 (FedAvg-MF)."""
    task, mesh, lanes = load(data_dir), client_mesh(), (1, 2, 4, 8, 16, 32)
    cores = 1 if mesh is None else mesh.size
    few, all_ = _many(task, 400), task.population
    found = {}
    for count in lanes:
        place: dict[str, Any] = {"lanes": count * cores, "mesh": mesh}
        found[f"fedrap_{count}"] = engine_side(fr.fedrap(**place), few, 400, 1)
        found[f"fedmf_{count}"] = engine_side(fr.fedmf(cohort=604, batch_size=1024, **place), all_, 604, 5)
    return {"results": race(found, repeats)}


def blocks(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """Rounds in a compiled block: what a call costs, against 50 rounds in one."""
    population, mesh = load(data_dir).population, client_mesh()
    sides = {
        f"rounds{count}": engine_side(algorithm(100, 1, mesh=mesh), population, 100, count)
        for count in (1, 5, 20, 50)
    }
    return {"results": race(sides, repeats)}


def seeds(data_dir: str | None, repeats: int) -> dict[str, Any]:
    """Three seeds: a loop over runs, one compiled batch (`lax.map`), and `vmap`; seeds per second."""
    population, key = load(data_dir).population, jax.random.key(SEED)
    side, keys, length = algorithm(200, 1), jax.random.split(key, 3), 5

    def one(key: jax.Array) -> Any:
        return train(key, side, population, length)[0].server.tables

    alone, mapped, stacked = jax.jit(one), jax.jit(lambda k: jax.lax.map(one, k)), jax.jit(jax.vmap(one))
    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: [alone(key) for key in keys],
        "lax_map": lambda: mapped(keys),
        "vmap": lambda: stacked(keys),
        "train_seeds": lambda: fr.train_seeds(keys, side, population, length)[0].server.tables,
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            tick = time.perf_counter()
            jax.block_until_ready(way())
            if turn:  # the first compiles
                spent[name].append(len(keys) / (time.perf_counter() - tick))
    return {
        name: {"seeds_per_second": median(rates), "min": min(rates), "max": max(rates)}
        for name, rates in spent.items()
    }


def _peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


PARTS = {
    "devices": devices,
    "rounds": rounds,
    "flatness": flatness,
    "catalogue": catalogue,
    "large_batches": large_batches,
    "blocks": blocks,
    "seeds": seeds,
}


def main() -> None:
    """Measure one part and print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--data-dir")
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    use_cores()
    print(json.dumps(PARTS[given.part](given.data_dir, given.repeats)))


if __name__ == "__main__":
    main()
