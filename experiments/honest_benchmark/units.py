"""The kinds of work: what is known of the data, tuning, a clean run, a leaky run."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import numpy as np

import fedjax_rec as fr
from experiments.honest_benchmark.spaces import needs_ratings, trials_near, trials_of
from experiments.honest_benchmark.store import Result
from experiments.honest_benchmark.task import Task, make, make_on_devices, rounds_of
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluation_points import after_local_training
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.evaluation.summary import name_sampled, result_metrics, user_intervals
from fedjax_rec.federation.traffic import count_traffic, upload_of
from fedjax_rec.runs.experiment import measure_ratings
from fedjax_rec.runs.inputs import protocol_of
from fedjax_rec.training.checkpoints.versions import versions

Tell = Callable[[int, int], Any]  # rounds done, rounds to do


def refer(task: Task) -> Result:
    """What needs no training: two predictions of ratings, and the best that is reachable where the truth is known.

    Args:
        task: the data.

    Returns:
        `ratings` by method; `best_reachable`, on synthetic data.
    """
    merged = fr.data.merge_validation(task.split)
    result: Result = {"ratings": central_ratings(merged)}
    if task.source.truth is not None:
        result["best_reachable"] = result_metrics(fr.evaluation.truth_ranks(task.source, merged), merged)
    return result | facts(task)


def central_ratings(split: Split) -> dict[str, float]:
    """RMSE on the test ratings of two predictions that need no training.

    Args:
        split: train + validation.

    Returns:
        by name; empty without ratings.

    Source of "biases": Koren 2010, "Factor in the neighbors", section 2.1, penalties 25 and 10.
    """
    if split.ratings is None or split.test_ratings is None:
        return {}
    users = np.repeat(np.arange(split.num_users), np.diff(split.offsets))
    mean = float(split.ratings.mean())
    item_bias = _shrunk(split.ratings - mean, split.items, split.num_items, 25.0)
    user_bias = _shrunk(split.ratings - mean - item_bias[split.items], users, split.num_users, 10.0)
    guesses = {"mean": np.full(split.num_users, mean), "biases": mean + user_bias + item_bias[split.test]}
    return {n: float(np.sqrt(np.nanmean((g - split.test_ratings) ** 2))) for n, g in guesses.items()}


def _shrunk(values: np.ndarray, groups: np.ndarray, count: int, penalty: float) -> np.ndarray:
    sums = np.bincount(groups, values, minlength=count)
    return sums / (penalty + np.bincount(groups, minlength=count))


def tune(task: Task, name: str, carried: list[Result] | None, tell: Tell) -> Result:
    """Choose settings and the number of rounds on validation.

    Args:
        task: the data and the budget.
        name: of the variant.
        carried: the best settings of another data set, if those are tried first.
        tell: called after each block.

    Returns:
        the trials, best first, and the best one's settings and round.
    """
    count = task.budget.trials
    trials = trials_of(name, count) if carried is None else trials_near(carried, count)
    rounds, eval_every = rounds_of(name, make(name, **trials[0]), task)
    metric = "rmse" if needs_ratings(name) else "ndcg@10"
    found = fr.sweep(
        lambda **settings: make(name, **settings),
        task.split,
        trials,
        rounds=rounds,
        eval_every=eval_every,
        metric=metric,
        patience=task.budget.patience * eval_every,
        on_block=tell,
    )
    sign = -1.0 if metric == "rmse" else 1.0
    table = best_first(
        [{"settings": t.settings, "validation": t.validation, "round": t.round} for t in found.trials], sign
    )
    budget = {"metric": metric, "rounds": rounds, "eval_every": eval_every, "seconds": found.seconds}
    return {"trials": table, "best": table[0]} | budget | facts(task)


def best_first(trials: list[Result], sign: float = 1.0) -> list[Result]:
    """Order trials by what they reached on validation.

    Args:
        trials: each with "validation", nan where training diverged.
        sign: 1 where more is better, -1 where less is.

    Returns:
        the trials, best first, diverged ones last.
    """
    return sorted(trials, key=lambda t: np.inf if np.isnan(t["validation"]) else -sign * t["validation"])


def run_clean(task: Task, name: str, seed: int, tuned: Result, tell: Tell) -> Result:
    """Train on train + validation for the chosen number of rounds, and test.

    Args:
        task: the data.
        name: of the variant.
        seed: of the run.
        tuned: what tuning chose.
        tell: called after each block.

    Returns:
        metrics, intervals, traffic and seconds.
    """
    best, merged = tuned["best"], fr.data.merge_validation(task.split)
    population = fr.population_of(merged)
    algorithm = make_on_devices(name, population, best["settings"])
    state, history = fr.simulate(
        algorithm,
        population,
        rounds=best["round"],
        eval_every=tuned["eval_every"],
        seed=seed,
        keep="last",
        on_block=lambda p: tell(p.round, p.rounds),
    )
    if history.stopped == "diverged":
        raise ValueError(f"the refit diverged by round {len(history.rounds.loss)}")
    ranks = fr.make_evaluator(algorithm, merged)(state)
    return _tested(algorithm, merged, state, ranks, history) | {"settings": best["settings"]} | facts(task)


def run_leaky(task: Task, name: str, seed: int, tuned: Result, tell: Tell) -> Result:
    """The same settings with negatives that spare the held-out items, the round selected on validation.

    Args:
        task: the data.
        name: of the variant.
        seed: of the run.
        tuned: what tuning chose, without the leak.
        tell: called after each block.

    Returns:
        as `run_clean`, and the same by each client's own table after training, where it has one.
    """
    leaky, settings = task.split._replace(negatives="paper-leaky"), tuned["best"]["settings"]
    population = fr.population_of(leaky)
    algorithm = make_on_devices(name, population, settings)
    state, history = fr.simulate(
        algorithm,
        leaky,
        rounds=tuned["rounds"],
        eval_every=tuned["eval_every"],
        seed=seed,
        stop=fr.Stop(patience=task.budget.patience * tuned["eval_every"]),
        on_block=lambda p: tell(p.round, p.rounds),
    )
    ranks = fr.make_evaluator(algorithm, leaky)(state)
    result = _tested(algorithm, leaky, state, ranks, history) | {"settings": settings} | facts(task)
    result["protocol_id"] = leaky_id(task)
    if algorithm.model.represent is None and algorithm.work.upload is None:
        point = after_local_training(make(name, **settings), population, jax.random.key(seed))
        own = fr.make_evaluator(algorithm, leaky, point=point)(state)
        result["local"] = {
            "metrics": result_metrics(own, leaky),
            "intervals": user_intervals(own, name_sampled(leaky)),
        }
    return result


def _tested(
    algorithm: fr.types.Algorithm,
    split: Split,
    state: fr.types.State,
    ranks: Ranks,
    history: fr.training.History,
) -> Result:
    return {
        "metrics": result_metrics(ranks, split) | measure_ratings(algorithm, split, state),
        "intervals": user_intervals(ranks, name_sampled(split)),
        "round": history.selected_round,
        "traffic": count_traffic(
            state.server, history.rounds, upload_of(algorithm, fr.population_of(split), state)
        )._asdict(),
        "clients_per_second": history.clients_per_second,
        "train_seconds": history.train_seconds,
    }


def leaky_id(task: Task) -> str:
    """The id of the leaky protocol, so that its numbers share no comparison with clean ones.

    Args:
        task: the data.

    Returns:
        12 hexadecimal digits.
    """
    settings = replace(task.settings, refit=False, negatives="paper-leaky")
    return fr.evaluation.protocol_id(
        protocol_of(settings, task.source, task.split._replace(negatives="paper-leaky"))
    )


def facts(task: Task) -> Result:
    """What every result says of how it came about.

    Args:
        task: the data.

    Returns:
        the protocol's id, and the versions of what computed it.
    """
    return {"protocol_id": task.protocol_id, "versions": versions()}


def timed(work: Callable[[], Result]) -> Result:
    """Do one unit's work; a failure is a result too.

    Args:
        work: what to do.

    Returns:
        its result, or {"failed": why}, with the seconds that it took.
    """
    began = time.perf_counter()
    try:
        result = work()
    except Exception as problem:
        first = (str(problem).strip().splitlines() or [""])[0]
        result = {"failed": f"{type(problem).__name__}: {first}"}
    return result | {"seconds": time.perf_counter() - began}
