"""Federated reconstruction on unseen users: RMSE and accuracy after reconstructing on half of their ratings.

    python -m experiments.fedrecon.run --data-dir DATA            # 5 seeds x 2 data sets

Users are split 80/10/10, ratings shuffled, at most 300 a user. 100 clients a round, 500 rounds, the constants of
the paper's MovieLens experiment. An unseen user reconstructs on its even batches of 5 and is measured on its odd
ones. No round is selected: the last one counts. The numbers to expect are in the README beside this file.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_rec as fr
from experiments.fedrecon.baselines import BASELINES, Users
from fedjax_rec.client.population import build
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.types import Algorithm, State

DATASETS = ("ml-100k", "ml-latest-small")
BATCH, MOST, COHORT, ROUNDS, SEEDS = 5, 300, 100, 500, 5
EVERY = 50  # rounds between looks at the loss
KNOWN = 20  # training ratings of an item that a model can know
PARTS = ("training", "validation", "test")
VARIANTS: dict[str, dict[str, Any]] = {
    "fedrecon": {},
    "fedrecon, new halves": {"shuffle": True},  # each rating trains the items in some rounds
    "fedrecon, new halves, 200 steps": {"shuffle": True, "recon_epochs": 10, "max_steps": 200},
}


class Table(NamedTuple):
    """Ratings in random order."""

    users: np.ndarray  # int[M]
    items: np.ndarray  # int[M]
    ratings: np.ndarray  # float[M]
    num_items: int


def read(name: str, folder: Path) -> Table:
    """Read a registered data set with ratings."""
    found = fr.load_dataset(name, data_dir=folder).interactions
    if found.ratings is None:
        raise ValueError(f"{name!r} has no ratings to reconstruct")
    return Table(found.users, found.items, found.ratings.astype(float), found.num_items)


def split_users(table: Table, seed: int) -> dict[str, Users]:
    """Deal the users 8:1:1 and shuffle each one's ratings, of which at most `MOST` are kept."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(table.users))
    users = table.users[order]
    everyone = rng.permutation(table.users.max() + 1)
    cuts = np.split(everyone, [round(0.8 * len(everyone)), round(0.9 * len(everyone))])
    parts = {}
    for name, part in zip(PARTS, cuts, strict=True):
        rows = [order[users == user][:MOST] for user in part]
        sizes = np.array([len(own) for own in rows])
        flat = np.concatenate(rows)
        parts[name] = Users(np.repeat(np.arange(len(part)), sizes), table.items[flat], table.ratings[flat])
    return parts


def halves(users: Users) -> tuple[Users, Users]:
    """Each user's even batches of 5, and the odd ones."""
    counts = np.bincount(users.users)
    place = np.arange(len(users.users)) - np.repeat(np.cumsum(counts) - counts, counts)
    odd = place // BATCH % 2 == 1
    return (
        Users(*(column[~odd] for column in users)),
        Users(*(column[odd] for column in users)),
    )


def population_of(users: Users, num_items: int) -> fr.Population:
    """Put users' ratings on device, in their order."""
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users.users))])
    return build(offsets, users.items, users.ratings, num_items)


def measure(prediction: np.ndarray, query: Users, known: np.ndarray) -> np.ndarray:
    """RMSE and share of |error| <= 0.5, over all of the query and over known items: float[4]."""
    error = np.abs(prediction - query.ratings)
    parts = error, error[known[query.items]]
    return np.array([f(part) for part in parts for f in (_root_mean_square, _accuracy)])


def _root_mean_square(error: np.ndarray) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _accuracy(error: np.ndarray) -> float:
    return float(np.mean(error <= 0.5))


def reconstruct(
    algorithm: Algorithm, state: State, support: Users, query: Users, num_items: int
) -> np.ndarray:
    """Predict the query of users whose vectors are reconstructed on their support."""
    point = server_parameters(algorithm, population_of(support, num_items))
    private, server = point.prepare(state._replace(private=_fresh(algorithm, support)))
    vectors, items = np.asarray(private["vector"]), np.asarray(server.tables["vector"])
    return (vectors[query.users] * items[query.items]).sum(1)


def _fresh(algorithm: Algorithm, users: Users) -> dict[str, jax.Array]:
    """Private leaves of the right shape for other users; reconstruction does not read them."""
    keys = jax.random.split(jax.random.key(0), int(users.users.max()) + 1)
    return jax.vmap(algorithm.model.init_private)(keys)


def run_seed(table: Table, seed: int, rounds: int = ROUNDS) -> dict[str, np.ndarray]:
    """Train on the training users and measure the test users, beside what needs no training."""
    parts = split_users(table, seed)
    training, (support, query) = parts["training"], halves(parts["test"])
    known = np.bincount(training.items, minlength=table.num_items) >= KNOWN
    found = {name: measure(rule(training, support, query), query, known) for name, rule in BASELINES.items()}
    population = population_of(training, table.num_items)
    for name, settings in VARIANTS.items():
        algorithm = fr.fedrecon(cohort=min(COHORT, population.num_clients), **settings)
        state, history = fr.simulate(algorithm, population, rounds=rounds, seed=seed, eval_every=EVERY)
        if history.stopped == "diverged":
            found[name] = np.full(4, np.nan)
        else:
            found[name] = measure(
                reconstruct(algorithm, state, support, query, table.num_items), query, known
            )
    return found


def show(name: str, runs: Sequence[dict[str, np.ndarray]]) -> None:
    """Print each method's mean and standard deviation over the seeds in which it did not diverge."""
    for method in runs[0]:
        values = np.array([run[method] for run in runs])
        sound = values[np.isfinite(values).all(axis=1)]
        spread = sound.std(0, ddof=1) if len(sound) > 1 else np.zeros(4)
        middle = sound.sum(0) / max(len(sound), 1)
        cells = [f"{mean:.4f} +- {std:.4f}" for mean, std in zip(middle, spread, strict=True)]
        cells = cells if len(sound) else 4 * ["diverged"]
        print(f"| {name} | {method} | {len(sound)} of {len(runs)} | {' | '.join(cells)} |", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every data set and seed, and print means and standard deviations over seeds that did not diverge."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args(arguments)
    print("| data | method | seeds | RMSE | accuracy | RMSE, known | accuracy, known |")
    print(f"|{7 * '---|'}")
    for name in DATASETS:
        table = read(name, given.data_dir)
        show(name, [run_seed(table, seed, given.rounds) for seed in range(given.seeds)])


if __name__ == "__main__":
    main()
