"""The runs: one setting, and how its updates travel."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fedjax_rec as fr
from experiments.communication.secure_cost import secure_cost
from fedjax_rec import transforms
from fedjax_rec.data.splits import Split
from fedjax_rec.federation.traffic import count_traffic
from fedjax_rec.privacy.secure_aggregation import secure_aggregation
from fedjax_rec.transforms import compression
from fedjax_rec.transforms import sparsification as sparsifiers
from fedjax_rec.transforms.error_feedback import error_feedback

# of the secure sum; of 80 clients, after 0, 10, 50 and 100 rounds, none had a larger norm than .83
MODULUS, NORM = 24, 4.0


class Setting(NamedTuple):
    """What all runs share."""

    split: Split
    rounds: int = 100
    every: int = 10
    cohort: int = 200
    dim: int = 16
    seed: int = 0


Federation = dict[str, Any]
WAYS: dict[str, Callable[[Setting], Federation]] = {
    "32-bit rows": lambda _: {},
    "quantise(8)": lambda _: {"transform": transforms.quantise(8)},
    "quantise(4)": lambda _: {"transform": transforms.quantise(4)},
    "quantise(2)": lambda _: {"transform": transforms.quantise(2)},
    "qsgd(1)": lambda _: {"transform": compression.qsgd(1)},
    "terngrad": lambda _: {"transform": compression.terngrad()},
    "drive": lambda _: {"transform": compression.drive()},
    "sign, feedback": lambda _: {"transform": error_feedback(compression.sign())},
    "top_k(.1), feedback": lambda _: {"transform": error_feedback(sparsifiers.top_k(0.1))},
    "rand_k(.1)": lambda _: {"transform": sparsifiers.rand_k(0.1)},
    "low_rank(4)": lambda _: {"transform": sparsifiers.low_rank(4)},
    "secure sum": lambda s: secure_aggregation(norm=NORM, capacity=s.cohort, modulus=MODULUS).federation,
}


def measure_run(setting: Setting, name: str) -> dict[str, Any]:
    """Train in one way; the state of the best validation round is tested."""
    began, way = time.perf_counter(), WAYS[name](setting)
    algorithm = fr.fedmf(dim=setting.dim, cohort=setting.cohort, **way)
    state, history = fr.simulate(
        algorithm, setting.split, rounds=setting.rounds, seed=setting.seed, eval_every=setting.every
    )
    test = fr.evaluation.metrics_from_ranks(fr.make_evaluator(algorithm, setting.split)(state).full, ks=[10])
    up = count_traffic(state.server, history.rounds, transform=way.get("transform")).up
    if name == "secure sum":
        numbers = sum(table.size for table in state.server.tables.values())
        up = secure_cost(setting.cohort, numbers, MODULUS).up
    return {
        "way": name, "kilobytes": up / 1e3, "ndcg@10": test["ndcg@10"], "hr@10": test["hr@10"],
        "round": history.selected_round, "stopped": history.stopped,
        "rows": float(np.sum(history.rounds.rows) / np.sum(history.rounds.clients)),
        "saturated": int(np.sum(history.rounds.saturated)),
        "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip
