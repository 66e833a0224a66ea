"""The engine against its floor and its peers, on one task, in one run.

    python -m experiments.benchmarks.engine [--data-dir DIR] [--peers floor,torch,naive] [--quick] [--json FILE]

With `--quick` within a minute. Every side does the same work on the same data and cohorts; sides that share the
random draws show the same checksum. A peer that cannot run is named as skipped, never estimated. Torch runs in its
own environment, which one command makes: `python -m venv .venv-torch && .venv-torch/bin/pip install torch numpy`.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import floor, naive
from experiments.benchmarks.task import (
    DIM,
    POSITIVES,
    RATE,
    SEED,
    Draws,
    Task,
    algorithm,
    checksum,
    load,
    share_draws,
)
from fedjax_rec.experiment import versions
from fedjax_rec.federate import choose_lanes
from fedjax_rec.simulate import run_block
from fedjax_rec.types import Client

PEERS = ("floor", "torch", "naive")
CASES = ((1, 1000), (5, 1000), (1, 100), (5, 100))
PEER_CLIENTS = 60
TORCH = Path(__file__).resolve().parents[2] / ".venv-torch" / "bin" / "python"


def measure_engine(
    task: Task, epochs: int, cohort: int, lanes: int, rounds: int, repeats: int
) -> dict[str, Any]:
    """Clients per second of the engine, compilation apart.

    Args:
        task: the data.
        epochs: E.
        cohort: C.
        lanes: L.
        rounds: in a compiled block.
        repeats: blocks on the clock, after one that is not.

    Returns:
        rates, compile seconds, lane efficiency, memory, checksum after 5 rounds.
    """
    side, population, key = algorithm(cohort, epochs, lanes), task.population, jax.random.key(SEED)
    block = jax.jit(
        lambda key, state, population, count: run_block(side, rounds, key, state, population, count)
    )
    state = jax.jit(side.init)(key, population)
    tick = time.perf_counter()
    compiled = block.lower(key, state, population, jnp.int32(0)).compile()
    compile_seconds = time.perf_counter() - tick
    after, _ = compiled(key, state, population, jnp.int32(min(5, rounds)))
    rates, infos = [], None
    for _ in range(repeats):
        tick = time.perf_counter()
        state, infos = jax.block_until_ready(block(key, state, population, jnp.int32(rounds)))
        rates.append(cohort * rounds / (time.perf_counter() - tick))
    assert infos is not None  # noqa: S101 - at least one repeat
    return {
        **spread(rates),
        "lanes": lanes,
        "rounds_per_second": median(rates) / cohort,
        "examples_per_second": median(rates) * float(infos.examples.mean()) / cohort,
        "lane_efficiency": float(infos.batches.sum() / infos.lane_steps.sum()),
        "compile_seconds": compile_seconds,
        "compilations": cast("Any", block)._cache_size(),  # noqa: SLF001 - the only way to count what jax compiled
        "checksum": checksum(np.asarray(after.server.tables["vector"])),
    }


def spread(rates: list[float]) -> dict[str, float]:
    """Median, least and most of some rates.

    Args:
        rates: clients per second.

    Returns:
        the three.
    """
    return {"clients_per_second": median(rates), "min": min(rates), "max": max(rates)}


def best_lanes(task: Task, epochs: int, cohort: int, sizes: tuple[int, ...], repeats: int) -> dict[str, Any]:
    """Sweep the lanes; the rule's choice is reported beside the best.

    Args:
        task: the data.
        epochs: E.
        cohort: C.
        sizes: lanes to try besides the rule's.
        repeats: blocks on the clock.

    Returns:
        the result with the rule's lanes, and `sweep`: lanes -> clients per second.
    """
    rule, rounds = choose_lanes(cohort, epochs=epochs), max(5, 4000 // (cohort * epochs))
    found = {n: measure_engine(task, epochs, cohort, n, rounds, repeats) for n in sorted({rule, *sizes})}
    return {**found[rule], "sweep": {n: result["clients_per_second"] for n, result in found.items()}}


def measure_torch(task: Task, draws: Draws, epochs: int, clients: int) -> dict[str, Any]:
    """The torch loop, in its own environment.

    Args:
        task: the data.
        draws: cohorts and keys.
        epochs: E.
        clients: how many of the first cohort.

    Returns:
        rates and version.

    Raises:
        RuntimeError: if it cannot run.
    """
    python = Path(os.environ.get("FEDJAX_REC_TORCH", TORCH))
    if not python.exists():
        raise RuntimeError(f"{python.name} of .venv-torch is missing; see the README beside this file")
    batches, population = algorithm(1, 1).work.batches, task.population
    name = jax.jit(lambda client, t: batches.batch(client, population, t).ids)
    blocks: list[np.ndarray] = []
    offsets = [0]
    for row, client in enumerate(draws.cohorts[0, :clients]):
        start, end = task.offsets[client], task.offsets[client + 1]
        who = Client(
            jnp.int32(client), jnp.int32(start), jnp.int32(end - start), jnp.asarray(draws.keys[0, row])
        )
        blocks += [np.asarray(name(who, jnp.int32(t))) for t in range(-(-int(end - start) // POSITIVES))]
        offsets.append(len(blocks))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.npz"
        vectors = draws.vectors[draws.cohorts[0, :clients]]
        arrays = {"ids": np.stack(blocks), "offsets": offsets, "table": draws.table, "vectors": vectors}
        settings = {"rate": RATE, "positives": POSITIVES, "epochs": epochs, "repeats": 3}
        np.savez(path, allow_pickle=False, **{k: np.asarray(v) for k, v in (arrays | settings).items()})
        script = str(Path(__file__).with_name("torch_peer.py"))
        done = subprocess.run([str(python), script, str(path)], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    found = json.loads(done.stdout)
    return {**spread(found["rates"]), "version": found["version"], "clients": clients}


def run(task: Task, peers: list[str], *, quick: bool) -> dict[str, Any]:
    """Measure all sides.

    Args:
        task: the data.
        peers: names of `PEERS`.
        quick: fewer cases, no sweep.

    Returns:
        the report: results, ratios, skipped, versions, machine.
    """
    repeats = 3 if quick else 5
    cases = CASES[:2] if quick else CASES
    results: dict[str, dict[str, Any]] = {"engine": {}}
    skipped: dict[str, str] = {}
    for epochs, cohort in cases:
        case = f"e{epochs}_c{cohort}"
        sizes = () if quick else (16, 32, 64, 128)
        results["engine"][case] = best_lanes(task, epochs, cohort, sizes, repeats)
        if "floor" in peers and "floor" not in skipped:
            try:
                rates, table = floor.measure(task, share_draws(task, cohort, 5), epochs, repeats)
                results.setdefault("floor", {})[case] = spread(rates) | {"checksum": checksum(table)}
            except (RuntimeError, OSError, subprocess.CalledProcessError) as problem:
                skipped["floor"] = str(problem)
    draws = share_draws(task, 1000, 1)
    if "torch" in peers:
        try:
            results["torch"] = {"e1_c1000": measure_torch(task, draws, 1, PEER_CLIENTS)}
        except (RuntimeError, OSError) as problem:
            skipped["torch"] = str(problem)
    if "naive" in peers:
        rates, _ = naive.measure(task, draws, 20 if quick else PEER_CLIENTS)
        results["naive"] = {"e1_c1000": spread(rates)}
    return {
        "task": {"data": task.name, "clients": len(task.offsets) - 1, "items": task.num_items, "dim": DIM},
        "results": results,
        "ratios": ratios(results),
        "skipped": skipped,
        "versions": versions(),
        "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "system": platform.system()},
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The engine's rate over each side's: `floor_e1_c1000`, ..., `torch`, `naive`.

    Args:
        results: side -> case -> result.

    Returns:
        name -> ratio of medians.
    """
    found = {}
    for side, cases in results.items():
        for case, result in cases.items():
            if side != "engine" and case in results["engine"]:
                name = f"floor_{case}" if side == "floor" else side
                rate = results["engine"][case]["clients_per_second"]
                found[name] = rate / result["clients_per_second"]
    return found


def show(report: dict[str, Any]) -> None:
    """Print the report as a table.

    Args:
        report: of `run`.
    """
    print(
        f"{report['task']['data']}: {report['task']['clients']:,} clients, {report['task']['items']:,} items"
    )
    print(
        f"{'side':<8} {'case':<10} {'clients/s':>10} {'min':>9} {'max':>9}  {'lanes':>5} {'efficiency':>10}  norm"
    )
    for side, cases in report["results"].items():
        for case, result in cases.items():
            lanes, useful = result.get("lanes", ""), result.get("lane_efficiency")
            norm = result.get("checksum", {}).get("norm")
            print(
                f"{side:<8} {case:<10} {result['clients_per_second']:>10,.0f} {result['min']:>9,.0f} "
                f"{result['max']:>9,.0f}  {lanes:>5} {'' if useful is None else f'{useful:.3f}':>10}  "
                f"{'' if norm is None else f'{norm:.6f}'}"
            )
    for name, ratio in report["ratios"].items():
        print(f"engine / {name}: {ratio:.2f}")
    for name, why in report["skipped"].items():
        print(f"skipped {name}: {why}")


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder that holds ml-1m-loo; without it histories are drawn")
    parser.add_argument("--peers", default=",".join(PEERS), help="sides besides the engine")
    parser.add_argument("--quick", action="store_true", help="two cases, no sweep of lanes")
    parser.add_argument("--json", help="write the report to this file")
    given = parser.parse_args()
    peers = [name for name in given.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"unknown peer {sorted(unknown)[0]!r}; known: {', '.join(PEERS)}")
    try:
        task = load(given.data_dir)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    report = run(task, peers, quick=given.quick)
    show(report)
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
