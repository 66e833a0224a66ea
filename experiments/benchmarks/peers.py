"""Peers in environments of their own: a plain torch loop and FedJAX, on batches that share the engine's draws."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.side import spread
from experiments.benchmarks.task import POSITIVES, RATE, Draws, Task, algorithm
from fedjax_rec.types import Client

HERE = Path(__file__).resolve().parent
INSTALL = {
    "torch": "python -m venv .venv-torch && .venv-torch/bin/pip install torch numpy",
    "fedjax": "python3.11 -m venv .venv-fedjax && .venv-fedjax/bin/pip install fedjax==0.0.17 jax==0.5.3",
}


def measure_peer(peer: str, task: Task, draws: Draws, clients: int, repeats: int) -> dict[str, Any]:
    """Run a peer on the first clients of the first cohort, one local epoch.

    Args:
        peer: "torch" or "fedjax".
        task: the data.
        draws: cohorts and keys.
        clients: how many.
        repeats: on the clock.

    Returns:
        rates, version, and the norm of the summed update.

    Raises:
        RuntimeError: if its environment is missing or it fails.
    """
    given = os.environ.get(f"FEDJAX_REC_{peer.upper()}")
    python = Path(given) if given else HERE.parents[1] / f".venv-{peer}" / "bin" / "python"
    if not python.exists():
        raise RuntimeError(f"its environment is missing; make it with: {INSTALL[peer]}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "work.npz"
        _write(path, task, draws, clients, repeats)
        script = str(HERE / f"{peer}_peer.py")
        clean = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "XLA_FLAGS"}}
        done = subprocess.run(  # noqa: S603 - our own script
            [str(python), script, str(path)], capture_output=True, text=True, check=False, env=clean
        )
    if done.returncode:
        raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    found = json.loads(done.stdout)
    if "rows" in found:
        found["rows"] = {**spread(found["rows"].pop("rates")), **found["rows"], "clients": clients}
    return {**spread(found.pop("rates")), **found, "clients": clients}


def _write(path: Path, task: Task, draws: Draws, clients: int, repeats: int) -> None:
    """The peers' input: every batch of the clients, ids int32[batches, B], I for an empty slot."""
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
    vectors = draws.vectors[draws.cohorts[0, :clients]]
    arrays = {"ids": np.stack(blocks), "offsets": offsets, "table": draws.table, "vectors": vectors}
    settings = {"rate": RATE, "positives": POSITIVES, "epochs": 1, "repeats": repeats}
    np.savez(path, allow_pickle=False, **{k: np.asarray(v) for k, v in (arrays | settings).items()})
