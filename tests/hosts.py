"""One of several processes that train together, as `test_hosts` starts them: `python -m tests.hosts ...`."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr
from fedjax_rec.engine.hosts import check_same, exchange, from_first, num_processes, of_first
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.types import Algorithm

ODD = np.array([-0.0, np.nan, 1e-45], np.float32)  # whose bits a sum with zeros would change


def algorithm_on(mesh: Any) -> Algorithm:
    """Fixed-point sums, whose bits depend on no order."""
    rule = fr.server.fixed_point(fr.server.total(), capacity=32)
    return fr.fedmf(dim=2, cohort=24, lanes=4, num_negatives=1, mesh=mesh, aggregator=rule)


def train(algorithm: Algorithm, folder: Path | None, rounds: int, **settings: Any) -> dict[str, Any]:
    """Train, going on from the folder's newest checkpoint."""
    split = fr.leave_one_out(fr.data.synthetic(40, 90, seed=1))
    checkpoint = None if folder is None else fr.Checkpoints(folder, every=2, on_message=str)
    given: dict[str, Any] = {
        "eval_every": 2,
        "keep": "last",
        "checkpoint": checkpoint,
        "rounds": rounds,
    } | settings
    state, history = fr.simulate(algorithm, split, **given)
    return {
        "bits": digest(to_arrays(state)),
        "evaluations": [[round_, metrics] for round_, metrics in history.evaluations],
        "loss": np.asarray(history.rounds.loss).tolist(),
    }


def train_from_store(store: Path, mesh: Any) -> list[float]:
    """Train the clients of a store, chunk by chunk: losses, and sums of what they and the server keep."""
    algorithm = fr.fedmf(dim=2, cohort=12, lanes=4, num_negatives=1, mesh=mesh, stream_clients=8)
    state, history = fr.simulate(algorithm, fr.open_population(store), rounds=3, eval_every=2)
    sums = [float(np.abs(array).sum()) for array in to_arrays((state.private, state.server))]
    return [*np.asarray(history.rounds.loss).tolist(), *sums]


def refusal(act: Callable[[], Any]) -> str:
    """What an action is refused with."""
    try:
        act()
    except ValueError as problem:
        return str(problem)
    return ""


def _refuse() -> None:
    raise ValueError("of process 0")


def main(address: str, processes: int, process_id: int, folder: Path) -> dict[str, Any]:
    """Join, try the words that processes have, train from the start, and go on from one process's checkpoint."""
    fr.initialize_distributed(address, processes, process_id)
    mesh = fr.client_mesh()
    algorithm = algorithm_on(mesh)
    return {
        "processes": num_processes(),
        "devices": 0 if mesh is None else mesh.size,
        "exchanged": exchange({"text": "x" * 100 * process_id, "number": 0.1}),
        "from first": from_first([ODD if process_id == 0 else np.zeros(3, np.float32)])[0].tobytes().hex(),
        "of first": of_first(lambda: "told"),
        "refused by first": refusal(lambda: of_first(_refuse)),
        "other data": refusal(lambda: check_same(lambda: {"data_hash": "5f" if process_id == 0 else "0c"})),
        "other seed": refusal(lambda: train(algorithm, None, 2, seed=process_id)),
        "uneven": refusal(lambda: fr.client_mesh(3)),
        "new": train(algorithm, folder / "new", 4),
        "old": train(algorithm, folder / "old", 4),
        "stored": train_from_store(folder / "store", mesh) if (folder / "store").exists() else [],
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    found = main(given[0], int(given[1]), int(given[2]), Path(given[3]))
    Path(given[3], f"found-{given[2]}.json").write_text(json.dumps(found), encoding="utf-8")
