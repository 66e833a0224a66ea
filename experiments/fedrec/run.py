"""FedRec's batch version on five random 80/20 splits of MovieLens 100K, against its authors' logs.

    python -m experiments.fedrec.run --data-dir DATA            # 8 settings x 5 splits

All 943 clients in each of 100 rounds, the authors' constants. Predictions are clipped to 1..5, as theirs are, and
the last round counts, as theirs does. Their five splits are not with the logs; ours are drawn by seeds 0 to 4.
See the README beside this file for the numbers to expect.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import fedjax_rec as fr
from fedjax_rec.client.population import build
from fedjax_rec.types import State

ROUNDS, SPLITS, USERS, ITEMS, TEST = 100, 5, 943, 1682, 20_000
SETTINGS: dict[str, tuple[dict[str, Any], float]] = {  # name: (settings, the authors' mean RMSE)
    "rho 0": ({"rho": 0}, 0.9424),
    "rho 1, user averaging": ({"rho": 1, "local_steps": 0}, 0.9710),
    "rho 2, user averaging": ({"rho": 2, "local_steps": 0}, 0.9843),
    "rho 3, user averaging": ({"rho": 3, "local_steps": 0}, 0.9920),
    "rho 1, hybrid 10/10": ({"rho": 1, "averaging_rounds": 10, "local_steps": 10}, 0.9432),
    "rho 2, hybrid 5/15": ({"rho": 2, "averaging_rounds": 5, "local_steps": 15}, 0.9431),
    "rho 3, hybrid 5/15": ({"rho": 3, "averaging_rounds": 5, "local_steps": 15}, 0.9431),
    "rho 1, FedRec++": ({"rho": 1, "local_steps": 0, "denoise": True}, 0.9424),
}


class Fold(NamedTuple):
    """One random split."""

    training: fr.Population
    users: np.ndarray  # int[20,000], of the test ratings
    items: np.ndarray
    ratings: np.ndarray


def split(folder: Path, seed: int) -> Fold:
    """Hold out a fifth of all ratings at random."""
    rows = np.loadtxt(folder / "ml-100k" / "u.data", dtype=np.int64)
    order = np.random.default_rng(seed).permutation(len(rows))
    test, training = rows[order[:TEST]], rows[order[TEST:]]
    training = training[np.argsort(training[:, 0], kind="stable")]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(training[:, 0] - 1, minlength=USERS))])
    population = build(offsets, training[:, 1] - 1, training[:, 2].astype(float), ITEMS)
    return Fold(population, test[:, 0] - 1, test[:, 1] - 1, test[:, 2].astype(float))


def measure(state: State, fold: Fold) -> tuple[float, float]:
    """RMSE and MAE of the test ratings, predictions clipped to 1..5."""
    users, items = np.asarray(state.private["vector"]), np.asarray(state.server.tables["vector"])
    error = np.clip((users[fold.users] * items[fold.items]).sum(1), 1, 5) - fold.ratings
    return float(np.sqrt(np.mean(error**2))), float(np.mean(np.abs(error)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every setting on every split, and print means and standard deviations over splits."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--splits", type=int, default=SPLITS)
    parser.add_argument("--only", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="these settings")
    given = parser.parse_args(arguments)
    folds = [split(given.data_dir, seed) for seed in range(given.splits)]
    for name in given.only:
        settings, published = SETTINGS[name]
        tick, algorithm, found = time.perf_counter(), fr.fedrec(**settings), []
        block = jax.jit(lambda key, data, a=algorithm: fr.training.train(key, a, data, ROUNDS)[0])
        for seed, fold in enumerate(folds):
            found.append(measure(block(jax.random.key(seed), fold.training), fold))
        values = np.array(found)
        spread = values.std(0, ddof=1) if len(found) > 1 else np.zeros(2)
        print(f"{name:22} RMSE {values[:, 0].mean():.4f} +- {spread[0]:.4f} (published {published:.4f})  "
              f"MAE {values[:, 1].mean():.4f}  {time.perf_counter() - tick:.0f} s", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
