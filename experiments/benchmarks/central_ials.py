"""Central iALS beside the `implicit` package, tuned alike: no price of federation over a weak rival.

    python -m experiments.benchmarks.central_ials DATA [DATA ...] [--trials 20] [--seeds 3]

DATA are files or registered names with `=FLAG:VALUE,...` for settings of `fedjax-rec run`. Both minimise a
weighted sum of squares over all pairs, here and there with 64 numbers a vector and 15 sweeps. Ours scales a
row's penalty with its events (nu = 1 in Rendle et al. 2021), `implicit` does not (nu = 0). Each is given the
same draws of two numbers, the ridge of a mean user and the weight of an unobserved pair, log-uniform over two
and three orders of magnitude; the best on validation is trained again on train + validation, and the test items
are ranked by the library's own evaluation. The seconds of a fit are without ranking. `NOTES.md` has what this
gave.
"""

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_rec.data import merge_validation
from fedjax_rec.data.defaults import als_ridge_of_one
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation import metrics_from_ranks
from fedjax_rec.evaluation.central import fit_ials
from fedjax_rec.evaluation.central.scorers import Factors, Scorer, score_factors, training_table
from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.runs.inputs import load_split
from fedjax_rec.runs.settings import Settings, complete

DIM, SWEEPS = 64, 15
RIDGES, WEIGHTS = (0.8, 80.0), (1e-3, 1.0)


class Trial(NamedTuple):
    """One choice, with one meaning on both sides."""

    ridge: float  # of a mean user
    unobserved: float  # weight of a pair without an event; those with one weigh 1 more


Fit = Callable[[Split, Trial, int], Scorer]


def ours(split: Split, trial: Trial, seed: int) -> Scorer:
    """Fit with the library."""
    strength = trial.ridge / als_ridge_of_one(split.size, trial.unobserved)
    return fit_ials(
        split, seed=seed, dim=DIM, epochs=SWEEPS, regularisation=strength, unobserved=trial.unobserved
    )


def theirs(split: Split, trial: Trial, seed: int) -> Scorer:
    """Fit with `implicit`, whose objective is that of the trial over the weight of the unobserved."""
    from implicit.als import AlternatingLeastSquares
    from scipy.sparse import csr_matrix

    alpha = 1 / trial.unobserved
    model = AlternatingLeastSquares(
        factors=DIM,
        regularization=trial.ridge * alpha,
        alpha=1 + alpha,  # the weight of an event, where others have 1
        iterations=SWEEPS,
        random_state=seed,
    )
    table = csr_matrix(training_table(split).astype(np.float32))
    model.fit(table, show_progress=False)
    users, items = jnp.asarray(model.user_factors), jnp.asarray(model.item_factors)
    return Scorer(score_factors, Factors(users, items, jnp.zeros(split.num_items)))


def measure(split: Split, scorer: Scorer, which: str) -> float:
    """Full-ranking NDCG@10."""
    ranks = make_ranker(split, scorer.score_block, which=which)(scorer.params)
    return metrics_from_ranks(ranks.full)["ndcg@10"]


def tune(split: Split, fit: Fit, trials: list[Trial]) -> tuple[Trial, float, float]:
    """The best trial, its validation, and the median seconds of a fit."""
    values, seconds = [], []
    for trial in trials:
        start = time.perf_counter()
        scorer = fit(split, trial, 0)
        seconds.append(time.perf_counter() - start)
        values.append(measure(split, scorer, "validation"))
    best = int(np.argmax(values))
    return trials[best], values[best], statistics.median(seconds)


def settings_of(text: str) -> Settings:
    """Read DATA=FLAG:VALUE,..."""
    name, _, flags = text.partition("=")
    pairs: dict[str, Any] = dict(flag.split(":") for flag in flags.split(",") if flag)
    given: dict[str, Any] = {flag: int(value) if value.isdigit() else value for flag, value in pairs.items()}
    return complete(dataclasses.replace(Settings(dataset=name), **given))


def main() -> None:
    """Tune and test both sides on every data set, and print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", nargs="+")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    bounds = np.log(np.array([RIDGES, WEIGHTS]))
    draws = np.exp(rng.uniform(bounds[:, 0], bounds[:, 1], size=(given.trials, 2)))
    trials = [Trial(*map(float, draw)) for draw in draws]
    for text in given.data:
        _, split = load_split(settings_of(text))
        merged = merge_validation(split)
        for name, fit in {"ours": ours, "implicit": theirs}.items():
            best, validation, seconds = tune(split, fit, trials)
            tests = [measure(merged, fit(merged, best, seed), "test") for seed in range(given.seeds)]
            print(
                f"{split.name:12} {name:9} validation {validation:.4f}  test {statistics.mean(tests):.4f} "
                f"({min(tests):.4f} to {max(tests):.4f})  ridge {best.ridge:.3g}, unobserved "
                f"{best.unobserved:.3g}  {seconds:.2f} s a fit",
                flush=True,
            )


if __name__ == "__main__":
    main()
