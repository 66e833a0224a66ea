"""The runs: one cohort, one budget, one choice of settings."""

import time
from typing import Any, NamedTuple

import numpy as np
import optax

import fedjax_rec as fr
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.devices import choose_devices
from fedjax_rec.evaluation.summary import name_sampled, result_metrics
from fedjax_rec.privacy.dp_fedavg import dp_fedavg


class Setting(NamedTuple):
    """What all runs share."""

    split: Split
    cohorts: tuple[int, ...] = (6040, 2000, 604)
    epsilons: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
    trials: int = 6  # settings tried on validation, for each cohort and budget
    seeds: tuple[int, ...] = (0, 1, 2)
    passes: float = 40.0  # local trainings of an average client, at the most
    dim: int = 8

    @property
    def delta(self) -> float:
        """N^-1.1, the usual one."""
        return self.split.num_users**-1.1


class Choice(NamedTuple):
    """What is tuned."""

    share: float = 1.0  # of the passes: fewer rounds need less noise each
    clip: float = 0.1  # C
    step: float = 0.02  # clip x server learning rate, the latter in cohorts: 1 is the sum of all updates
    learning_rate: float = 0.02
    init_scale: float = 0.3


SPACE = {
    "share": fr.training.choice(0.5, 1.0),
    "clip": fr.training.log_uniform(0.02, 0.2),
    "step": fr.training.log_uniform(0.007, 0.06),
    "learning_rate": fr.training.log_uniform(0.01, 0.06),
    "init_scale": fr.training.log_uniform(0.1, 1.0),
}


def choices(count: int) -> list[Choice]:
    """The settings to try, the same for every cohort and budget: the default, then draws (seed 0)."""
    return [Choice(), *(Choice(**each) for each in fr.training.sample_settings(SPACE, count - 1, seed=0))]


def rounds_of(setting: Setting, cohort: int, choice: Choice) -> int:
    """As many local trainings for all cohorts: a smaller one has more rounds."""
    return max(1, round(choice.share * setting.passes * setting.split.num_users / cohort))


def run_once(
    setting: Setting, cohort: int, epsilon: float | None, choice: Choice, *, seed: int, which: str
) -> dict[str, Any]:
    """Train for a fixed number of rounds and rank once: no round is selected, for that would look at data.

    Without a budget (None) there is neither clip nor noise, and the server adds up as much.
    """
    began, split = time.perf_counter(), setting.split
    rounds, population = rounds_of(setting, cohort, choice), fr.population_of(split)
    spent: dict[str, Any] = {}
    federation: dict[str, Any] = {"cohort": cohort, "aggregator": "mean"}
    if epsilon is not None:
        private = dp_fedavg(
            split.num_users,
            cohort=cohort,
            rounds=rounds,
            clip=choice.clip,
            delta=setting.delta,
            target_epsilon=epsilon,
        )
        federation = private.federation
        spent = {"noise_multiplier": private.noise_multiplier, "epsilon": private.epsilon(rounds)}
    algorithm = fr.fedmf(
        dim=setting.dim,
        learning_rate=choice.learning_rate,
        init_scale=choice.init_scale,
        server_optimizer=optax.sgd(choice.step / choice.clip * cohort),
        mesh=fr.client_mesh(choose_devices(cohort)),
        **federation,
    )
    state, history = fr.simulate(algorithm, population, rounds=rounds, seed=seed, keep="last")
    found = result_metrics(fr.make_evaluator(algorithm, split, which=which)(state), split, which=which)
    sampled = found[name_sampled(split)]
    return {
        "hr@10": sampled["hr@10"], "ndcg@10": sampled["ndcg@10"], "full_ndcg@10": found["full"]["ndcg@10"],
        "signal": float(np.median(history.rounds.signal)), "rounds": rounds, "stopped": history.stopped,
        "seconds": round(time.perf_counter() - began, 1),
    } | spent  # fmt: skip


def tune(setting: Setting, cohort: int, epsilon: float | None) -> dict[str, Any]:
    """Every choice on validation; the best by sampled HR@10, whose seeds are then tested."""
    tried = []
    for choice in choices(setting.trials):
        found = run_once(setting, cohort, epsilon, choice, seed=0, which="validation")
        tried.append(found | {"choice": choice._asdict()})
    best = max(tried, key=lambda trial: trial["hr@10"])
    chosen = Choice(**best["choice"])
    tests = [run_once(setting, cohort, epsilon, chosen, seed=seed, which="test") for seed in setting.seeds]
    return {
        "cohort": cohort, "epsilon": epsilon, "delta": setting.delta, "choice": best["choice"],
        "trials": tried, "tests": tests,
    }  # fmt: skip
