"""The runs: one setting, the ways to train in it, and what is measured of a run."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from fedjax_rec import transforms
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.groups import activity_quantiles, distribution, group_means, head_items
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.samplers import data_dependent
from fedjax_rec.server import fairness
from fedjax_rec.server import optimizers as servers
from fedjax_rec.types import Algorithm, Key, RoundInfo, State

TUNING_SEED, K = 1000, 10


class Setting(NamedTuple):
    """What all runs share."""

    split: Split
    rounds: int = 200
    every: int = 10
    cohort: int = 60
    dim: int = 16
    learning_rate: float = 0.05
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


class Way(NamedTuple):
    """One way to train: what is given to `federate`, and the server's rates to choose from."""

    federation: Callable[[Setting], dict[str, Any]]
    rates: tuple[float, ...]  # of a mean over the cohort: times C they are those of a sum
    server: Callable = servers.fedavg


MEAN, ADAPTIVE = (15.0, 30.0, 60.0, 120.0, 240.0, 480.0), (0.03, 0.1, 0.3, 1.0)


def sizes_of(split: Split) -> np.ndarray:
    """Training events of each user."""
    return np.diff(split.offsets)


def quarter_of(split: Split) -> np.ndarray:
    """Each user's quarter by activity, 0 for the lightest."""
    return np.array([int(label[1:]) - 1 for label in activity_quantiles(sizes_of(split))])


def _fair(q: float) -> Callable[[Setting], dict[str, Any]]:
    return lambda s: {"aggregator": fairness.q_fedavg(q, lipschitz=1 / s.learning_rate)}


def _averaged(**federation: Any) -> Callable[[Setting], dict[str, Any]]:
    return lambda _: {"aggregator": "mean", **federation}


WAYS: dict[str, Way] = {
    "FedAvg": Way(_averaged(), MEAN),
    "FedAvg by examples": Way(_averaged(aggregator="examples"), MEAN),
    "FedAvg by touchers": Way(_averaged(aggregator="touchers"), (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)),
    "q-FedAvg .5": Way(_fair(0.5), (240.0, 480.0, 960.0, 1920.0, 3840.0)),
    "q-FedAvg 2": Way(_fair(2.0), (480.0, 960.0, 1920.0, 3840.0, 7680.0)),
    "AFL, clients": Way(lambda s: {"aggregator": fairness.agnostic(0.1 / s.split.num_users)}, MEAN),
    "AFL, quarters": Way(lambda s: {"aggregator": fairness.agnostic(0.05, groups=quarter_of(s.split))}, MEAN),
    "loss-proportional": Way(
        lambda s: {"aggregator": "mean", "sampler": data_dependent.loss_proportional(cohort=s.cohort)}, MEAN
    ),
    "power of choice": Way(
        lambda s: {
            "aggregator": "mean",
            "sampler": data_dependent.power_of_choice(2 * s.cohort, cohort=s.cohort),
        },
        MEAN,
    ),
    "size-capped": Way(
        lambda s: {
            "aggregator": "mean",
            "sampler": data_dependent.size_capped(int(np.median(sizes_of(s.split))), cohort=s.cohort),
        },
        MEAN,
    ),
    "clip .15": Way(_averaged(transform=transforms.clip(0.15)), (30.0, 60.0, 120.0, 240.0, 480.0, 960.0)),
    "FedAdam": Way(_averaged(), ADAPTIVE, servers.fedadam),
    "FedYogi": Way(_averaged(), ADAPTIVE, servers.fedyogi),
}


def make(setting: Setting, name: str, rate: Any) -> Algorithm:
    """FedMF in one way, with a rate of the server that may be traced."""
    way = WAYS[name]
    given = {"cohort": setting.cohort} | way.federation(setting)
    if "sampler" in given:
        del given["cohort"]
    return fr.fedmf(
        dim=setting.dim,
        learning_rate=setting.learning_rate,
        server_optimizer=way.server(rate),
        **given,
    )


class Run(NamedTuple):
    """A run: its best state by validation, and how it went."""

    state: State
    curve: list[float]  # validation NDCG@10 after each block
    infos: RoundInfo  # leaves [T]


class Program(NamedTuple):
    """One way, compiled once for all rates and seeds."""

    population: fr.Population
    start: Callable[..., State]
    block: Callable[..., tuple[State, RoundInfo]]  # (rate, key, state, population)
    validate: Callable[[State], Ranks]
    test: Callable[[State], Ranks]


def compile_way(setting: Setting, name: str) -> Program:
    """The program of one way."""
    plain = make(setting, name, 1.0)

    def block(rate: jax.Array, key: Key, state: State, population: Any) -> tuple[State, RoundInfo]:
        rounds = jnp.int32(setting.every)
        return run_block(make(setting, name, rate), setting.every, key, state, population, rounds)

    validate, test = (
        fr.make_evaluator(plain, setting.split, which=which) for which in ("validation", "test")
    )
    return Program(fr.population_of(setting.split), jax.jit(plain.init), jax.jit(block), validate, test)


def run(setting: Setting, program: Program, rate: float, seed: int) -> Run:
    """Train for all rounds; the state of the best validation is kept."""
    key, population = jax.random.key(seed), program.population
    state = best = program.start(key, population)
    curve: list[float] = []
    infos = []
    for _ in range(setting.rounds // setting.every):
        state, info = program.block(jnp.float32(rate), key, state, population)
        infos.append(jax.tree.map(np.asarray, info))
        score = fr.evaluation.metrics_from_ranks(program.validate(state).full, [K])[f"ndcg@{K}"]
        best = state if not curve or score > max(curve) else best
        curve.append(score)
    return Run(best, curve, jax.tree.map(lambda *parts: np.concatenate(parts), *infos))


def measure_way(setting: Setting, name: str) -> dict[str, Any]:
    """Choose the server's rate on validation with a seed of its own, and measure all seeds."""
    began, program = time.perf_counter(), compile_way(setting, name)
    tried = {rate: max(run(setting, program, rate, TUNING_SEED).curve) for rate in WAYS[name].rates}
    rate = max(tried, key=tried.__getitem__)
    found = [run(setting, program, rate, seed) for seed in setting.seeds]
    return {
        "way": name,
        "rate": rate,
        "tried": {str(rate): value for rate, value in tried.items()},
        "seeds": [measure(setting.split, program.test(each.state)) | follow(each) for each in found],
        "seconds": round(time.perf_counter() - began, 1),
    }


def measure(split: Split, ranks: Ranks) -> dict[str, float]:
    """Test metrics over all users, over the worst served, and by group."""
    seen = sizes_of(split) + (split.validation >= 0)
    values = user_metrics(ranks.full, [K], rivals=split.num_items - seen - 1)
    found = {name: float(np.nanmean(values[name])) for name in (f"hr@{K}", f"ndcg@{K}", "auc")}
    found |= {f"auc {name}": value for name, value in distribution(values["auc"]).items()}
    quarters = group_means(values, activity_quantiles(sizes_of(split)))
    held = head_items(np.bincount(split.items, minlength=split.num_items))[np.maximum(split.test, 0)]
    parts = group_means(values, np.where(held, "head", "tail"), split.test >= 0)
    groups = {"light": quarters["q1"], "heavy": quarters["q4"], **parts}
    return found | {f"ndcg@{K} {label}": group[f"ndcg@{K}"] for label, group in groups.items()}


def follow(one: Run) -> dict[str, Any]:
    """How a run went: its curve, the largest fall below its best so far, and the size of its steps."""
    curve, norms = np.array(one.curve), np.asarray(one.infos.update_norm, float)
    fall = (np.maximum.accumulate(curve) - curve).max()
    jumps = norms.max() / max(float(np.median(norms)), 1e-12)
    return {
        "curve": [round(float(x), 5) for x in curve],
        "norms": [round(float(x), 5) for x in norms],
        "fall": float(fall),
        "jump": float(jumps),
    }
