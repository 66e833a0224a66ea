"""No price of federation: federated ALS and central iALS from the same item vectors, side by side.

    python -m experiments.fedals.run --data-dir DATA             # ML-100K and ML-1M
    python -m experiments.fedals.run --data-dir DATA ml-100k     # one of them
    python -m experiments.fedals.run --data-dir DATA --seed 1    # other item vectors to start from

Both are trained on train + validation for a fixed number of sweeps; settings and sweeps were chosen on validation
items. The central side is `fedjax_rec.evaluation.central.ials` with one more half sweep for the users, as the
federated clients do before they are scored. The numbers to expect are in the README beside this file.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central import ials
from fedjax_rec.evaluation.evaluator import EvaluationPoint
from fedjax_rec.evaluation.summary import result_metrics


class Task(NamedTuple):
    """A size of the model, and settings for it."""

    dim: int
    regularisation: float
    sweeps: int


UNOBSERVED = 0.3
TASKS = {
    "ml-100k": (Task(64, 0.01, 8),),
    "ml-1m-loo": (Task(128, 0.007, 8), Task(192, 0.007, 8)),  # 192 is what central iALS has by default
}
METRICS = (("full", "hr@10"), ("full", "ndcg@10"), ("sampled99", "hr@10"), ("sampled99", "ndcg@10"))


def train_federated(
    split: Split, task: Task, seed: int
) -> tuple[fr.types.Algorithm, fr.types.State, fr.types.State, float]:
    """All clients in every round; returns the first and the last state, and seconds per round after the first."""
    algorithm = fr.fedals(
        dim=task.dim, regularisation=task.regularisation, unobserved=UNOBSERVED, mesh=fr.client_mesh()
    )
    population, key = fr.population_of(split), jax.random.key(seed)
    first = state = jax.jit(algorithm.init)(key, population)
    step = jax.jit(algorithm.round)
    state, _ = step(key, state, population)
    began = time.perf_counter()
    for _ in range(task.sweeps - 1):
        state = jax.block_until_ready(step(key, state, population)[0])
    return algorithm, first, state, (time.perf_counter() - began) / (task.sweeps - 1)


def train_centrally(split: Split, task: Task, items: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The same number of sweeps from these items, and the users' last half sweep."""
    by_user, by_item = ials.block_rows(split)
    weights = task.regularisation, UNOBSERVED
    for _ in range(task.sweeps):
        users = ials.solve_factors(items, by_user, split.num_users, *weights)
        items = ials.solve_factors(users, by_item, split.num_items, *weights)
    return ials.solve_factors(items, by_user, split.num_users, *weights), items


def run(name: str, split: Split, task: Task, seed: int) -> None:
    """Train both ways and print what they reach."""
    algorithm, first, state, seconds = train_federated(split, task, seed)
    # a copy on one device: the central side factorises in batches, which jaxlib must not do on two at a time
    central = train_centrally(split, task, jnp.asarray(np.asarray(first.server.tables["vector"])))
    point = EvaluationPoint(lambda _: central, lambda factors, users: factors[0][users] @ factors[1].T)
    federated_ranks = fr.make_evaluator(algorithm, split)(state)
    central_ranks = fr.make_evaluator(algorithm, split, point=point)(state)
    items = np.asarray(central[1])
    apart = np.abs(np.asarray(state.server.tables["vector"]) - items).max() / np.abs(items).max()
    same = float(np.mean(np.asarray(federated_ranks.full) == np.asarray(central_ranks.full)))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{name}, D = {task.dim}, reg = {task.regularisation}, {task.sweeps} sweeps, seed {seed}: "
        f"{seconds:.1f} s per round"
    )
    print(f"  items differ by {apart:.1e} of the largest number; {same:.2%} of the full ranks are equal")
    for side, ranks in (("federated", federated_ranks), ("central", central_ranks)):
        found: dict[str, Any] = result_metrics(ranks, split, "sampled99")
        print(f"  {side:10}", *(f"{part} {metric} {found[part][metric]:.4f}" for part, metric in METRICS))
    print(f"  peak memory of the process so far {memory:.1f} GiB", flush=True)


def main() -> None:
    """Run the data sets that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("names", nargs="*", default=list(TASKS), help=f"of {', '.join(TASKS)}")
    parser.add_argument("--seed", type=int, default=0, help="of the first item vectors")
    args = parser.parse_args()
    fr.use_cores()
    for name in args.names:
        split = fr.data.merge_validation(fr.leave_one_out(fr.load_dataset(name, data_dir=args.data_dir)))
        for task in TASKS[name]:
            run(name, split, task, args.seed)


if __name__ == "__main__":
    main()
