"""One experiment: settings in, outcome out. Load, split, train, select, perhaps refit, evaluate, compare.

Nothing here touches the file system besides reading the data; `run_folder` writes what comes out.
"""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from fedjax_rec.algorithms.own import adopt
from fedjax_rec.client.population import population_of
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.splits import Split, append_users, known_items
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.central.price import Price, price_of_federation
from fedjax_rec.evaluation.evaluator import EvaluationPoint, make_evaluator, make_rating_predictor, make_top_k
from fedjax_rec.evaluation.metrics import rating_errors
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.evaluation.reference_ranks import popularity_scores, rank_common_scores, truth_ranks
from fedjax_rec.evaluation.summary import K, Metrics, result_metrics, summarise
from fedjax_rec.federation.traffic import Traffic, count_traffic, upload_of
from fedjax_rec.hosts.processes import check_same
from fedjax_rec.runs.baselines import FittedBaselines, baseline_details, run_centrals
from fedjax_rec.runs.build import advice
from fedjax_rec.runs.folders import to_json_values
from fedjax_rec.runs.inputs import with_absolute_paths
from fedjax_rec.runs.outcome import Outcome, Trained
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.runs.setup import (
    Setup,
    at_lower_rate,
    key_of,
    merge_validation_of,
    set_up,
    spending_after,
    with_settings,
)
from fedjax_rec.runs.stores import count_items
from fedjax_rec.runs.tuning import TABLE, kept_search, noting, tune, tuning_table
from fedjax_rec.training.checkpoints.manager import Checkpoints, check_checkpoints
from fedjax_rec.training.checkpoints.versions import versions
from fedjax_rec.training.halving import Halving
from fedjax_rec.training.history import DivergedWarning, History, Interrupted, Progress, Stop
from fedjax_rec.training.simulate import simulate
from fedjax_rec.types import Algorithm, Key, PyTree, State

StageCheckpoints = Callable[[str], Checkpoints | None]  # "train" or "refit" -> where it is saved
MAY_DIFFER = {  # settings, when a run goes on
    "dataset",  # where it lies: its hash may not differ
    "rounds",
    "max_seconds",
    "out",
    "data_dir",
    "checkpoint_every",
    "checkpoint_minutes",
    "pause_exit_code",
    "cache",
    "client_store",
}


def run_experiment(
    settings: Settings,
    *,
    algorithm: Algorithm | Callable[..., Algorithm] | str | None = None,
    on_stage: Callable[[str], Any] = str,
    on_block: Callable[[Progress], Any] | None = None,
    on_trained: Callable[[Trained], Any] | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool | None = None,
    dataset: Dataset | None = None,
    keep_interrupted: bool = False,
    fitted: FittedBaselines | None = None,
) -> Outcome:
    """Run what the settings say.

    Args:
        settings: the experiment.
        algorithm: instead of that of the settings, one of your own: its factory, which takes those settings that
            it has parameters for, the algorithm itself, or a name (`fedjax_rec.algorithms.own`).
        on_stage: called with a line of text when a new stage begins.
        on_block: called with a `Progress` after each block of rounds, of the refit too.
        on_trained: called with the model before it is ranked, so that it can be kept whatever follows.
        checkpoint: where to save the run; its refit is saved beside it.
        resume: as in `simulate`.
        dataset: instead of the one that the settings name, whose name is then that of this one: no command makes
            such a run again.
        keep_interrupted: whether a run that Ctrl-C ends while it trains is measured as it is then, without a
            refit; its `history.stopped` is "interrupted".
        fitted: central baselines of other runs, which are not fitted again where data, protocol and settings are
            the same; those of this run are added.

    Returns:
        the outcome.

    Raises:
        ValueError: on data or settings that cannot work, before any training.
        OSError: if a checkpoint cannot be written.

    Example:
        >>> outcome = run_experiment(Settings(rounds=2, dim=4, eval_every=1))
        >>> sorted(outcome.metrics)
        ['test', 'validation']
    """
    start_time = time.perf_counter()
    if algorithm is not None:
        settings = dataclasses.replace(settings, algorithm=adopt(algorithm))
    asked = with_absolute_paths(settings) if dataset is None else settings
    settings = complete(asked)
    on_stage(f"reading {settings.dataset}")
    setup = set_up(settings, on_stage, dataset)
    settings = setup.settings
    key = key_of(settings, checkpoint)
    split = setup.split
    protocol = setup.protocol
    asked_values = dataclasses.asdict(settings)
    check_same(lambda: _what_runs(protocol, asked_values))
    tuning = None
    if settings.tune is not None:
        kept = None if resume is False else kept_search(checkpoint, settings)
        settings, tuning = kept or tune(settings, setup, protocol, on_stage)
        setup = with_settings(settings, setup)
    stage_checkpoints = _checkpoint_stages(checkpoint, setup, settings, asked_values, key, tuning)
    centrals = run_centrals(settings, protocol, split, on_stage, fitted)

    # Train, select the round on validation, and perhaps train again on train + validation for so many rounds.
    with noting(tuning):
        state, history, settings, setup = _train(
            settings, setup, key, on_stage, on_block, stage_checkpoints, resume, keep_interrupted
        )
    state = setup.ranked(state)
    if on_trained is not None:
        on_trained(_trained(setup, state, history, asked))
    sampled = f"sampled{settings.num_candidates}"
    on_stage("ranking every validation item")
    validation = make_evaluator(setup.algorithm, split, which="validation", point=setup.point)(state)
    validated = result_metrics(validation, split, sampled, "validation")
    if settings.refit and history.stopped != "interrupted":
        on_stage(f"refitting on train + validation for {history.selected_round} rounds")
        setup = merge_validation_of(settings, setup)
        del state  # the refit needs its memory
        state = _refit(settings, setup, history.selected_round, on_block, stage_checkpoints("refit"))
        if on_trained is not None:
            on_trained(_trained(setup, state, history, asked))

    # Test, beside what needs no federation.
    on_stage("ranking every test item")
    test = make_evaluator(setup.algorithm, setup.tested, point=setup.test_point)(state)
    popular = popularity_scores(setup.split) if setup.stored is None else count_items(setup.stored)
    popularity = rank_common_scores(popular, setup.tested)
    metrics = {"test": _measure_test(sampled, setup, state, test), "validation": validated}
    baselines = {"popularity": result_metrics(popularity, setup.tested, sampled)}
    baselines |= {name: baseline.metrics for name, baseline in centrals.items()}
    price = _price(protocol, metrics, baselines, baseline_details(centrals), tuning) if centrals else None
    if setup.dataset.truth is not None:
        best = truth_ranks(setup.dataset, setup.tested)
        baselines["best_reachable"] = result_metrics(best, setup.tested, sampled)
    trained = _trained(setup, state, history, asked if dataset is None else None)
    return Outcome(
        settings=settings,
        protocol=protocol,
        algorithm=setup.algorithm,
        split=setup.split,
        tested=setup.tested,
        state=state,
        users=trained.users,
        known=trained.known,
        scored_leaves=trained.scored_leaves,
        history=history,
        traffic=_count_traffic(setup, state, history),
        test=test,
        validation=validation,
        popularity=popularity,
        metrics=metrics,
        baselines=baselines,
        centrals=centrals,
        price=price,
        spending=spending_after(settings, setup, len(history.rounds.loss)),
        seconds=time.perf_counter() - start_time,
        num_clients=trained.num_clients,
        tuning=tuning,
        asked=trained.asked,
    )


def _what_runs(protocol: Protocol, values: dict[str, Any]) -> dict[str, Any]:
    """What the processes of a run must have alike, before any of them trains."""
    own = {"dataset", "data_dir", "out", "cache", "pause_exit_code"}  # of each host
    data = {"data_hash": protocol.data_hash, "protocol_id": protocol_id(protocol)}
    return versions() | data | {name: value for name, value in values.items() if name not in own}


def _train(
    settings: Settings,
    setup: Setup,
    key: Key | int,
    on_stage: Callable[[str], Any],
    on_block: Callable[[Progress], Any] | None,
    stage_checkpoints: StageCheckpoints,
    resume: bool | None,
    keep: bool,
) -> tuple[State, History, Settings, Setup]:
    """The selected state and its history; of a run that diverged, once more at a lower rate, if that is better."""
    clients, items = setup.population.num_clients, setup.split.num_items
    on_stage(f"compiling {settings.algorithm} for {clients:,} clients, {items:,} items")
    on_stage(_rule(settings))
    state, history = _select(settings, setup, key, on_block, stage_checkpoints("train"), resume, keep)
    private = spending_after(settings, setup, 0) is not None
    if history.stopped == "diverged" and (milder := at_lower_rate(settings, private=private)) is not None:
        on_stage(
            f"diverged in round {len(history.rounds.loss)} at learning_rate={settings.learning_rate:g}; once "
            f"more at {milder.learning_rate:g}"
        )
        again = with_settings(milder, setup)
        found = _select(milder, again, key, on_block, stage_checkpoints("again"), None, keep)
        if _best(found[1]) >= _best(history):
            (state, history), settings, setup = found, milder, again
    if history.stopped == "diverged" and not history.evaluations:
        raise ParameterError(
            f"training diverged within {len(history.rounds.loss)} rounds; {advice(settings)}"
        )
    return state, history, settings, setup


def _checkpoint_stages(
    checkpoint: Checkpoints | None,
    setup: Setup,
    settings: Settings,
    values: dict[str, Any],
    key: Key | int,
    tuning: Halving | None,
) -> StageCheckpoints:
    """Where each stage of the run is saved, and what may not differ when it goes on: values before a search."""
    if checkpoint is None:
        return lambda _: None
    if setup.algorithm.repeats and checkpoint.every is None:
        checkpoint = checkpoint._replace(minutes=math.inf)  # the one round is saved for a signal alone
    check_checkpoints(checkpoint, cast("int", settings.eval_every))
    # where a privacy budget is given, the rounds choose the noise
    may_differ = MAY_DIFFER if settings.target_epsilon is None else MAY_DIFFER - {"rounds"}
    must_match = {
        "data_hash": setup.protocol.data_hash,
        **{name: value for name, value in values.items() if name not in may_differ},
        "protocol_id": protocol_id(setup.protocol),
    }
    found = {} if tuning is None else {TABLE: to_json_values(tuning_table(tuning))}
    secret = {} if isinstance(key, int) else {"key": jax.random.key_data(key).tolist()}
    named = checkpoint._replace(
        must_match=must_match | dict(checkpoint.must_match),
        custom_metadata={"settings": values} | found | secret | dict(checkpoint.custom_metadata),
    )
    return lambda stage: named._replace(folder=Path(checkpoint.folder) / stage)


def _simulate(*given: Any, **options: Any) -> tuple[State, History]:
    """As `simulate`; of a run that diverged its caller speaks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DivergedWarning)
        return simulate(*given, **options)


def _simulate_as_far(*given: Any, **options: Any) -> tuple[State, History]:
    """As `_simulate`, also as far as it came."""
    try:
        return _simulate(*given, **options)
    except Interrupted as stop:
        return stop.result


def _select(
    settings: Settings,
    setup: Setup,
    key: Key | int,
    on_block: Callable[[Progress], Any] | None,
    checkpoint: Checkpoints | None,
    resume: bool | None,
    keep: bool,
) -> tuple[State, History]:
    """Train, and keep the state of the best round on validation; `keep` what there is when Ctrl-C ends it."""
    train = _simulate_as_far if keep else _simulate
    return train(
        setup.algorithm,
        setup.training,
        population=setup.population if setup.stored is None else None,
        rounds=cast("int", settings.rounds),
        seed=key,
        eval_every=cast("int", settings.eval_every),
        stop=Stop(
            target=settings.target,
            patience=settings.patience,
            seconds=settings.max_seconds,
            patience_share=settings.patience_share,
            min_rounds=settings.min_rounds or 0,
        ),
        point=setup.point,
        on_block=on_block,
        checkpoint=checkpoint,
        resume=resume,
        client_store=settings.client_store,
    )


def _best(history: History) -> float:
    """The best validation of a run; none counts as less than any."""
    return max((metrics["full/ndcg@10"] for _, metrics in history.evaluations), default=-math.inf)


def _rule(settings: Settings) -> str:
    """When the run will end, in words."""
    ends = [f"at most {settings.rounds:,} rounds"]
    if settings.max_seconds is not None:
        ends.append(f"{settings.max_seconds:g} s")
    if settings.patience_share is not None:
        least = f", after the first {settings.min_rounds:,}" if settings.min_rounds else ""
        ends.append(f"until {settings.patience_share:g} of the rounds so far brought nothing better{least}")
    return f"training: {', or '.join(ends)}"


def _refit(
    settings: Settings,
    setup: Setup,
    rounds: int,
    on_block: Callable[[Progress], Any] | None,
    checkpoint: Checkpoints | None,
) -> State:
    """Train for so many rounds, and keep the last state."""
    state, history = _simulate(
        setup.algorithm,
        setup.population,
        rounds=rounds,
        seed=settings.seed,
        eval_every=cast("int", settings.eval_every),
        keep="last",
        on_block=on_block,
        checkpoint=checkpoint,
        client_store=settings.client_store,
    )
    if history.stopped == "diverged":
        raise ParameterError(f"the refit on train + validation diverged; {advice(settings)}")
    return state


def _measure_test(sampled: str, setup: Setup, state: State, test: Ranks) -> dict[str, Any]:
    """All that is reported of the test items: means, spread, groups, the catalogue, intervals, rating errors."""
    algorithm = setup.algorithm
    tested = setup.tested
    point = setup.test_point
    lists = np.asarray(make_top_k(algorithm, tested, K, point=point)(state).items)
    return {
        **result_metrics(test, tested, sampled),
        **summarise(test, tested, lists, sampled=sampled, attributes=setup.attributes),
        **measure_ratings(algorithm, tested, state, point),
    }


def _trained(setup: Setup, state: State, history: History, asked: Settings | None) -> Trained:
    users = setup.split if setup.heldout is None else append_users(setup.split, setup.heldout)
    return Trained(
        settings=setup.settings,
        algorithm=setup.algorithm,
        split=setup.split,
        users=users,
        known=known_items(setup.dataset.interactions, users),
        state=state,
        scored_leaves=_scored_leaves(setup, state),
        history=history,
        num_clients=setup.population.num_clients,
        asked=asked,
    )


def _scored_leaves(setup: Setup, state: State) -> PyTree:
    """The private leaves with which clients are scored, those of held-out clients last."""
    if setup.point.scored_leaves is None:
        return state.private  # clients train their own tables anew, from these
    leaves = setup.point.scored_leaves(state)
    if setup.fold_in_point is None or setup.fold_in_point.scored_leaves is None:
        return leaves
    folded_in = setup.fold_in_point.scored_leaves(state)
    return jax.tree.map(lambda own, others: np.concatenate([own, others]), leaves, folded_in)


def _count_traffic(setup: Setup, state: State, history: History) -> Traffic:
    population = setup.population if setup.stored is None else population_of(setup.split)
    return count_traffic(state.server, history.rounds, upload_of(setup.algorithm, population, state))


def _price(
    protocol: Protocol,
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    details: dict[str, Any],
    tuning: Halving | None,
) -> Price:
    known = {"protocol_id": protocol_id(protocol)}
    measured = known | {"metrics": metrics} | ({} if tuning is None else {"trials": tuning.num_settings})
    return price_of_federation(measured, known | {"baselines": baselines, "details": details})


def measure_ratings(
    algorithm: Algorithm, split: Split, state: State, point: EvaluationPoint | None = None
) -> dict[str, Metrics]:
    """Errors of the predicted ratings of the test items, where the model's scores are ratings.

    Args:
        algorithm: of the run.
        split: holds the ratings.
        state: the tested model.
        point: with which parameters; by default the server's.

    Returns:
        {"rating": {"rmse": ..., "mae": ...}} in units of the ratings, predictions not clipped; else empty.

    Example:
        >>> from fedjax_rec.runs.setup import set_up
        >>> setup = set_up(complete(Settings()), str)
        >>> measure_ratings(setup.algorithm, setup.split, None)
        {}
    """
    if not algorithm.model.predicts_ratings or split.test_ratings is None:
        return {}
    predictions = np.asarray(make_rating_predictor(algorithm, split, point=point)(state))
    if split.heldout is None:
        return {"rating": rating_errors(predictions, split.test_ratings)}
    held = split.heldout.test
    return {"rating": rating_errors(predictions, cast("np.ndarray", held.ratings), held.owners)}
