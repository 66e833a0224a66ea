"""PFedRec under both samplers of negatives and both evaluation points: what of its gain is a leak.

    python -m experiments.pfedrec.run --data-dir DATA                          # ML-100K, 100 rounds
    python -m experiments.pfedrec.run --data-dir DATA --dataset ml-1m-loo --rounds 60 --every 2

Each sampler trains once; both points rank it after every `every` rounds, and each chooses its round by the sampled
HR@10 of validation, as the official code does. The README beside this file has the numbers to expect.
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

import fedjax_rec as fr
from fedjax_rec.data.splits import NEGATIVES, Split
from fedjax_rec.evaluation.evaluation_points import after_local_training
from fedjax_rec.evaluation.evaluator import EvaluationPoint, server_parameters
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.types import State


class Best(NamedTuple):
    """The round that validation chose at one evaluation point, and what it tests at."""

    validation: float
    round: int
    test: Ranks


def measure(
    algorithm: fr.types.Algorithm,
    split: Split,
    points: dict[str, EvaluationPoint],
    *,
    rounds: int,
    every: int,
    seed: int,
    tell: Callable[[str], None] = print,
) -> dict[str, Best]:
    """Train once, and let each evaluation point choose its round.

    Args:
        algorithm: to train.
        split: its data, with the sampler of negatives.
        points: by name.
        rounds: of training.
        every: rounds between evaluations.
        seed: of the run.
        tell: given a line after each evaluation.

    Returns:
        the chosen round of each point.
    """
    key, population = jax.random.key(seed), fr.population_of(split)
    rankers = {
        name: [fr.make_evaluator(algorithm, split, which=w, point=point) for w in ("validation", "test")]
        for name, point in points.items()
    }
    state: State = jax.jit(algorithm.init)(key, population)
    one_round = jax.jit(algorithm.round, donate_argnums=1)
    best: dict[str, Best] = {}
    for done in range(1, rounds + 1):
        state, _ = one_round(key, state, population)
        if done % every and done < rounds:
            continue
        for name, (validate, test) in rankers.items():
            value = fr.evaluation.metrics_from_ranks(validate(state).sampled, [10])["hr@10"]
            if name not in best or value >= best[name].validation:
                best[name] = Best(value, done, test(state))
            tell(f"round {done:3d}  {name:>6}  validation HR@10 {value:.4f}")
    return best


def row(label: str, best: Best) -> str:
    """One line of a table: sampled and full HR@10 and NDCG@10 in percent.

    Args:
        label: of the line.
        best: what to print.

    Returns:
        the line.
    """
    parts = []
    for ranks in best.test:
        metrics = fr.evaluation.metrics_from_ranks(ranks, [10])
        parts.append(f"{100 * metrics['hr@10']:5.2f} / {100 * metrics['ndcg@10']:5.2f}")
    return f"| {label} | {best.round} | {parts[1]} | {parts[0]} |"


def peak() -> float:
    """Largest resident memory of this process so far, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def points_of(algorithm: fr.types.Algorithm, split: Split, seed: int) -> dict[str, EvaluationPoint]:
    """The client's own table after local training, and the server's.

    Args:
        algorithm: of the run.
        split: of the run.
        seed: of the run.

    Returns:
        by name.
    """
    population = fr.population_of(split)
    local = after_local_training(algorithm, population, jax.random.key(seed))
    return {"local": local, "server": server_parameters(algorithm, population)}


def arguments(text: str | None) -> argparse.ArgumentParser:
    """The flags that experiments of this kind share.

    Args:
        text: what the experiment does.

    Returns:
        the parser.
    """
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--dataset", default="ml-100k")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--negatives", choices=NEGATIVES, action="append", help="by default both")
    return parser


def main() -> None:
    """Print the table of the README."""
    parser = arguments(__doc__)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--item-factor", type=float, default=80.0)
    given = parser.parse_args()
    split = fr.leave_one_out(fr.load_dataset(given.dataset, data_dir=given.data_dir))
    algorithm = fr.pfedrec(learning_rate=given.learning_rate, item_factor=given.item_factor)
    print("| negatives, table | round | sampled HR@10 / NDCG@10 | full HR@10 / NDCG@10 |")
    for negatives in given.negatives or NEGATIVES:
        began, part = time.perf_counter(), split._replace(negatives=negatives)
        points = points_of(algorithm, part, given.seed)
        best = measure(
            algorithm, part, points, rounds=given.rounds, every=given.every, seed=given.seed, tell=_quiet
        )
        for name, found in best.items():
            print(row(f"{negatives}, {name}", found), flush=True)
        seconds = time.perf_counter() - began
        print(f"{seconds:.0f} s, {peak():.2f} GiB, {np.sum(np.diff(part.offsets) > 0):,} clients", flush=True)


def _quiet(line: str) -> None:
    del line


if __name__ == "__main__":
    main()
