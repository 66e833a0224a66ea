"""The engine against its floor and its peers, on one task, in one run; then how its cost moves.

    python -m experiments.benchmarks.engine [--data-dir DIR] [--peers floor,torch,fedjax,naive] [--quick]
                                            [--json FILE]

Every side does the same work on the same data and cohorts; sides that share the random draws show the same
checksum after 5 rounds. The engine and the floor run in turns. A peer that cannot run is named as skipped, never
estimated; torch and FedJAX run in environments of their own, each made by the command that the message names. With
`--quick` two cases, no sweep and no scaling, within a minute.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax

from experiments.benchmarks import floor, naive, scale
from experiments.benchmarks.peers import measure_peer
from experiments.benchmarks.side import Side, engine_side, race, spread
from experiments.benchmarks.task import DIM, Draws, Task, algorithm, load, share_draws
from fedjax_rec.engine.devices import client_mesh, use_cores
from fedjax_rec.training.checkpoints.versions import versions

PEERS = ("floor", "torch", "fedjax", "naive")
CASES = ((1, 1000), (5, 1000), (1, 100), (5, 100))
ROUNDS = 5  # in a compiled block, and before the checksum
SWEEP = (8, 16, 32, 64, 128)  # lanes


def run(task: Task, data_dir: str | None, peers: list[str], *, quick: bool) -> dict[str, Any]:
    """Measure all sides.

    Args:
        task: the data.
        data_dir: where it was read from, for the parts that run as programs of their own.
        peers: names of `PEERS`.
        quick: fewer cases, no sweep, no scaling.

    Returns:
        the report: results, ratios, scaling, skipped, versions, machine.
    """
    repeats = 3 if quick else 7
    skipped: dict[str, str] = {}
    results: dict[str, dict[str, Any]] = {"engine": {}}
    for epochs, cohort in CASES[:2] if quick else CASES:
        tell(f"engine and floor: {epochs} local epoch(s), cohorts of {cohort:,}")
        for side, result in race(_sides(task, epochs, cohort, peers, skipped), repeats).items():
            results.setdefault(side, {})[f"e{epochs}_c{cohort}"] = result
    draws = share_draws(task, max(cohort for _, cohort in CASES), 1)
    for peer in ("torch", "fedjax"):
        if peer in peers:
            tell(f"{peer}, in its own environment")
            try:
                found = measure_peer(peer, task, draws, 30 if quick else 100, 3 if quick else 5)
                if "rows" in found:
                    results[f"{peer}_rows"] = {"e1_c1000": found.pop("rows")}
                results[peer] = {"e1_c1000": found}
            except (RuntimeError, OSError, ValueError) as problem:
                skipped[peer] = str(problem)
    if "naive" in peers:
        tell("naive vmap")
        results["naive"] = {"e1_c1000": _naive(task, draws, 1 if quick else 3)}
    scaling = {} if quick else {"sweep": _sweep(task)} | _parts(data_dir, skipped)
    return {
        "task": {"data": task.name, "clients": len(task.offsets) - 1, "items": task.num_items, "dim": DIM},
        "results": results,
        "ratios": ratios(results),
        "scaling": scaling,
        "skipped": skipped,
        "versions": versions(),
        "machine": {
            "cores": os.cpu_count(),
            "devices": len(jax.devices()),
            "processor": platform.machine(),
            "system": platform.system(),
        },
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def tell(text: str) -> None:
    """Say on standard error what is being measured.

    Args:
        text: a line.
    """
    print(f"measuring {text}", file=sys.stderr, flush=True)


def _sides(
    task: Task, epochs: int, cohort: int, peers: list[str], skipped: dict[str, str]
) -> dict[str, Side]:
    side = engine_side(algorithm(cohort, epochs, mesh=client_mesh()), task.population, cohort, ROUNDS)
    sides = {"engine": side}
    if "floor" in peers and "floor" not in skipped:
        try:
            sides["floor"] = floor.floor_side(task, share_draws(task, cohort, ROUNDS), epochs)
        except (RuntimeError, OSError, subprocess.CalledProcessError) as problem:
            skipped["floor"] = str(problem)
    return sides


def _naive(task: Task, draws: Draws, repeats: int) -> dict[str, Any]:
    rates = [naive.measure(task, draws, naive.CHUNK)[0][0] for _ in range(repeats)]
    return spread(rates)


def _sweep(task: Task) -> dict[str, Any]:
    """Lanes tried by hand, in turns; the rule's choice stands in the results."""
    found = {}
    for epochs, cohort in CASES:
        tell(f"lanes: {epochs} local epoch(s), cohorts of {cohort:,}")
        sides = {}
        for lanes in SWEEP:
            made = algorithm(cohort, epochs, mesh=client_mesh(), lanes=lanes * len(jax.devices()))
            sides[str(lanes)] = engine_side(made, task.population, cohort, 2 if cohort > 100 else ROUNDS)
        found[f"e{epochs}_c{cohort}"] = {
            int(lanes): {
                name: result[name] for name in ("clients_per_second", "min", "max", "lane_efficiency")
            }
            for lanes, result in race(sides, 3).items()
        }
    return found


def _parts(data_dir: str | None, skipped: dict[str, str]) -> dict[str, Any]:
    """The parts of `scale`, each as a program of its own."""
    found = {}
    for part in scale.PARTS:
        tell(part)
        command = [sys.executable, "-m", "experiments.benchmarks.scale", part]
        command += ["--data-dir", data_dir] if data_dir else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own module
        if done.returncode:
            skipped[part] = (done.stderr.strip().splitlines() or ["it failed"])[-1]
        else:
            found[part] = json.loads(done.stdout)
    return found


def ratios(results: dict[str, dict[str, Any]]) -> dict[str, float]:
    """The engine's rate over each side's: `floor_e1_c1000`, ..., `torch`, `fedjax`, `naive`.

    Args:
        results: side -> case -> result.

    Returns:
        name -> ratio of medians; `fedjax_rows` is FedJAX with a client step tuned by hand.
    """
    found = {}
    for side, cases in results.items():
        for case, result in cases.items():
            if side != "engine" and case in results["engine"]:
                name = f"floor_{case}" if side == "floor" else side
                rate = results["engine"][case]["clients_per_second"]
                found[name] = rate / result["clients_per_second"]
    return found


HEAD = f"{'side':<11} {'case':<10} {'clients/s':>10} {'min':>9} {'max':>9} {'rounds/s':>9} {'examples/s':>11}"
HEAD += f" {'lanes':>6} {'useful':>7} {'compile s':>9}  norm after {ROUNDS} rounds"


def show(report: dict[str, Any]) -> str:
    """The report as text.

    Args:
        report: of `run`.

    Returns:
        lines.
    """
    task, machine = report["task"], report["machine"]
    lines = [
        f"{task['data']}: {task['clients']:,} clients, {task['items']:,} items; {machine['devices']} devices",
        HEAD,
    ]
    for side, cases in report["results"].items():
        lines += [_row(side, case, result) for case, result in cases.items()]
    lines += [f"engine / {name}: {ratio:.2f}" for name, ratio in report["ratios"].items()]
    for name, found in report["scaling"].items():
        lines.append(f"{name}: {json.dumps(_brief(found))}")
    lines += [f"skipped {name}: {why}" for name, why in report["skipped"].items()]
    return "\n".join(lines)


def _row(side: str, case: str, result: dict[str, Any]) -> str:
    def cell(name: str, width: int, form: str) -> str:
        return (format(result[name], form) if name in result else "").rjust(width)

    norm = result.get("checksum", {}).get("norm")
    return (
        f"{side:<11} {case:<10} {result['clients_per_second']:>10,.0f} {result['min']:>9,.0f} "
        f"{result['max']:>9,.0f} {cell('rounds_per_second', 9, '.1f')} {cell('examples_per_second', 11, ',.0f')} "
        f"{cell('lanes', 6, 'd')} {cell('lane_efficiency', 7, '.3f')} {cell('compile_seconds', 9, '.1f')}  "
        f"{'' if norm is None else f'{norm:.6f}'}"
    )


def _brief(found: Any) -> Any:
    """What a reader wants to see of a part: medians, and three digits."""
    if isinstance(found, dict):
        if "clients_per_second" in found:
            return round(found["clients_per_second"])
        return {str(name): _brief(value) for name, value in found.items()}
    return float(f"{found:.3g}") if isinstance(found, float) else found


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", help="folder that holds ml-1m-loo; without it histories are drawn")
    parser.add_argument("--peers", default=",".join(PEERS), help="sides besides the engine")
    parser.add_argument("--quick", action="store_true", help="two cases, no sweep of lanes, no scaling")
    parser.add_argument("--json", help="write the report to this file")
    given = parser.parse_args()
    peers = [name for name in given.peers.split(",") if name]
    if unknown := set(peers) - set(PEERS):
        parser.error(f"unknown peer {sorted(unknown)[0]!r}; known: {', '.join(PEERS)}")
    use_cores()
    try:
        task = load(given.data_dir)
    except (ValueError, OSError) as problem:
        parser.error(str(problem))
    report = run(task, given.data_dir, peers, quick=given.quick)
    print(show(report))
    if given.json:
        Path(given.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
