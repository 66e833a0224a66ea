"""One of several processes that train together, as `test_hosts` starts them: `python -m tests.hosts ...`."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr
from fedjax_rec.data.store.format import open_store
from fedjax_rec.data.store.shares import WHOLE, share_bounds
from fedjax_rec.data.store.writer import write_store
from fedjax_rec.hosts.processes import check_same, exchange, from_first, num_processes, of_first
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


def make_store(path: Path) -> Path:
    """40 clients with a few events each: ratings, times and names, so all columns that there are."""
    rng = np.random.default_rng(3)
    lengths = rng.integers(3, 20, 40)
    times = [np.sort(rng.integers(1, 10**6, length)) for length in lengths]
    with write_store(path) as writer:
        writer.append("offsets", np.concatenate([[0], np.cumsum(lengths)]))
        writer.append("items", np.concatenate([rng.permutation(50)[:n] for n in lengths]).astype(np.int32))
        writer.append("ratings", rng.uniform(1, 5, lengths.sum()).astype(np.float32))
        writer.append("timestamps", np.concatenate(times))
        writer.append("user_ids", np.char.encode([f"ünal {n}" for n in range(len(lengths))], "utf-8"))
        writer.append("item_ids", np.arange(50) * 7)
        writer.describe(name="made", num_items=50, order="time", origin="a test")
    return path


def copy_share(store: Path, copy: Path, processes: int, process_id: int) -> Path:
    """Copy a store, with rubbish in the place of all that is not of one process's share."""
    shutil.copytree(store, copy)
    offsets = np.fromfile(store / "offsets.bin", "<i8")
    first, stop = share_bounds(offsets, processes)[process_id : process_id + 2]
    for name, column in open_store(store).columns.items():
        if name not in WHOLE:
            start, end = (first, stop) if name == "user_ids" else offsets[[first, stop]]
            size = np.dtype(column.dtype).itemsize
            values = bytearray((copy / f"{name}.bin").read_bytes())
            values[: start * size] = b"\xee" * (start * size)
            values[end * size :] = b"\xee" * (len(values) - end * size)
            (copy / f"{name}.bin").write_bytes(values)
    return copy


def train_from_store(
    store: Path,
    folder: Path | None,
    mesh: Any,
    rounds: int = 4,
    *,
    integers: bool = True,
    server_rows: str = "all",
) -> dict[str, Any]:
    """Train the clients of a store, chunk by chunk, going on from the folder's newest checkpoint."""
    floats = fr.server.total()
    rule = fr.server.fixed_point(floats, capacity=12) if integers else floats
    algorithm = fr.fedmf(
        dim=2,
        cohort=12,
        lanes=4,
        num_negatives=1,
        mesh=mesh,
        stream_clients=8,
        aggregator=rule,
        server_rows=server_rows,
    )
    checkpoint = None if folder is None else fr.Checkpoints(folder, every=2, on_message=str)
    state, history = fr.simulate(
        algorithm,
        fr.open_population(store, evaluate_clients=10, num_candidates=9),
        rounds=rounds,
        eval_every=2,
        keep="last",
        checkpoint=checkpoint,
    )
    return {
        "sums": [float(np.abs(array).sum()) for array in to_arrays((state.private, state.server))],
        "bits": digest(to_arrays(state)),
        "evaluations": [[round_, metrics] for round_, metrics in history.evaluations],
        "loss": np.asarray(history.rounds.loss).tolist(),
    }


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
    share = folder / f"share-{process_id}"
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
        "stored": train_from_store(share, folder / "stored", fr.client_mesh(processes)),
        "touched": train_from_store(share, None, fr.client_mesh(processes), server_rows="touched"),
        "floats": train_from_store(share, None, fr.client_mesh(processes), 2, integers=False),
    }


if __name__ == "__main__":
    given = sys.argv[1:]
    found = main(given[0], int(given[1]), int(given[2]), Path(given[3]))
    Path(given[3], f"found-{given[2]}.json").write_text(json.dumps(found), encoding="utf-8")
