"""One experiment: settings in, outcome out. Load, split, train, select, perhaps refit, evaluate, compare.

Nothing here touches the file system besides reading the data; `run_folder` writes what comes out.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from fedjax_rec.algorithms.registry import ENTRIES
from fedjax_rec.checkpoints import Checkpoints, check
from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.device_settings import check_population, devices_of
from fedjax_rec.evaluation.baselines import popularity_scores, rank_common_scores, truth_ranks
from fedjax_rec.evaluation.central.methods import parse_names
from fedjax_rec.evaluation.central.price import Price, price_of_federation
from fedjax_rec.evaluation.central.runner import Baseline, run_baselines
from fedjax_rec.evaluation.evaluator import Point, make_evaluator, make_lister, make_rater
from fedjax_rec.evaluation.measure import Metrics, measure
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.evaluation.ratings import rating_errors
from fedjax_rec.evaluation.summary import K, summarise
from fedjax_rec.from_settings import advice, clip_batch_size, fold_in_of, make_algorithm, point_of, private_of
from fedjax_rec.inputs import load_attributes, load_inputs, protocol_of
from fedjax_rec.population import population_of
from fedjax_rec.privacy.central import Private
from fedjax_rec.samplers import default_cohort
from fedjax_rec.settings import Settings, complete
from fedjax_rec.simulate import History, Progress, Stop, simulate
from fedjax_rec.traffic import Traffic, count_traffic, upload_of
from fedjax_rec.types import Algorithm, State

Saving = Callable[[str], Checkpoints | None]
FREE = {"rounds", "max_seconds", "out", "data_dir", "checkpoint_every"}  # may differ when a run goes on


class Outcome(NamedTuple):
    """All that a run found out."""

    settings: Settings
    protocol: Protocol
    algorithm: Algorithm
    split: Split  # what the tested model was trained on: with refit, train + validation
    tested: Split  # holds the test items; another than `split` where the splitter holds out clients
    state: State  # the tested model
    history: History  # of the run that selected the round
    traffic: Traffic
    test: Ranks
    validation: Ranks | None  # of the selected state, before any refit
    popularity: Ranks
    metrics: dict[
        str, dict[str, Any]
    ]  # {"test": {"full": {...}, "sampled99": {...}, ...}, "validation": ...}
    baselines: dict[str, dict[str, Metrics]]  # {"popularity": {...}, "best_reachable": {...}}
    centrals: dict[str, Baseline]  # the central baselines that the settings name
    price: Price | None  # of federation, where there are some
    private: Private | None  # how noise was added, if it was
    seconds: float


def run_experiment(
    settings: Settings,
    *,
    on_stage: Callable[[str], Any] = str,
    on_block: Callable[[Progress], Any] | None = None,
    checkpoint: Checkpoints | None = None,
    resume: bool | None = None,
) -> Outcome:
    """Run what the settings say.

    Args:
        settings: the experiment.
        on_stage: called with a line of text when a new stage begins.
        on_block: called with a `Progress` after each block of rounds, of the refit too.
        checkpoint: where to save the run; its refit is saved beside it.
        resume: as in `simulate`.

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
    began, settings = time.perf_counter(), complete(settings)
    on_stage(f"reading {settings.dataset}")
    dataset, split, heldout = load_inputs(settings)
    _check(settings, split, timed=dataset.interactions.timestamps is not None)
    attributes = load_attributes(settings, split if heldout is None else heldout)
    protocol = protocol_of(settings, dataset, split)
    private = private_of(settings, split.num_users)
    algorithm = make_algorithm(clip_batch_size(settings, split), private)
    point = point_of(settings, algorithm, split)
    # held-out clients are ranked as they are folded in, which may be refused: before training
    folded = None if heldout is None else fold_in_of(settings, algorithm, heldout)
    saving = _saving(checkpoint, settings, protocol)
    centrals = _run_centrals(settings, protocol, split, on_stage)
    on_stage(f"compiling {settings.algorithm} for {split.num_users:,} clients and {split.num_items:,} items")
    state, history = _select(settings, algorithm, split, point, on_block, saving, resume)
    sampled = f"sampled{settings.num_candidates}"
    validation = make_evaluator(algorithm, split, which="validation", point=point)(state)
    validated = measure(
        validation, split, sampled, "validation"
    )  # of this split: a refit's has no such items
    if settings.refit:
        on_stage(f"refitting on train + validation for {history.selected_round} rounds")
        split = merge_validation(split)
        state = _refit(settings, algorithm, split, history.selected_round, on_block, saving)
        point = point_of(settings, algorithm, split)
    tested, testing = (split, point) if heldout is None else (heldout, folded)
    on_stage("ranking every test item")
    test = make_evaluator(algorithm, tested, point=testing)(state)
    popularity = rank_common_scores(popularity_scores(split), tested)
    measured = _measure_test(sampled, attributes, algorithm, tested, state, test, testing)
    metrics: dict[str, dict[str, Any]] = {"test": measured, "validation": validated}
    baselines = {"popularity": measure(popularity, tested, sampled)}
    baselines |= {name: found.metrics for name, found in centrals.items()}
    price = _price(protocol, metrics, baselines) if centrals else None
    if dataset.truth is not None:
        baselines["best_reachable"] = measure(truth_ranks(dataset, tested), tested, sampled)
    return Outcome(
        settings=settings,
        protocol=protocol,
        algorithm=algorithm,
        split=split,
        tested=tested,
        state=state,
        history=history,
        traffic=count_traffic(
            state.server, history.rounds, upload_of(algorithm, population_of(split), state)
        ),
        test=test,
        validation=validation,
        popularity=popularity,
        metrics=metrics,
        baselines=baselines,
        centrals=centrals,
        price=price,
        private=private,
        seconds=time.perf_counter() - began,
    )


def _check(settings: Settings, split: Split, *, timed: bool) -> None:
    cohort = settings.cohort or default_cohort(split.num_users)
    if cohort > split.num_users:
        raise ValueError(
            f"cohort={cohort} exceeds the population of {split.num_users} clients; lower --cohort"
        )
    if (settings.minimum_cohort or 1) > cohort:
        raise ValueError(
            f"--minimum-cohort={settings.minimum_cohort} is more than the {cohort} clients of a cohort: every "
            "round would be skipped; lower it, or raise --cohort"
        )
    check_population(devices_of(vars(settings), private=settings.private), split.num_users)
    if settings.loss != "mse" and (settings.num_negatives or 0) > split.num_items:
        raise ValueError(
            f"num_negatives={settings.num_negatives} exceeds the catalogue of {split.num_items} items; lower "
            "--num-negatives"
        )
    if ENTRIES[settings.algorithm].ratings and split.ratings is None:
        raise ValueError(
            f"{settings.algorithm} fits ratings, but {split.name} has none; choose another data set"
        )
    if ENTRIES[settings.algorithm].ordered and not timed:
        raise ValueError(
            f"{settings.algorithm} learns from the order of events, but {split.name} has no timestamps; choose "
            "another data set"
        )
    if settings.loss == "mse" and split.ratings is None:
        raise ValueError(f"loss='mse' fits ratings, but {split.name} has none; use --loss bce or bpr")


def _saving(checkpoint: Checkpoints | None, settings: Settings, protocol: Protocol) -> Saving:
    """Where each part of the run is saved, and what may not differ when it goes on."""
    if checkpoint is None:
        return lambda _: None
    check(checkpoint, cast("int", settings.eval_every))
    every = dataclasses.asdict(settings)
    free = FREE if settings.target_epsilon is None else FREE - {"rounds"}  # rounds choose the noise
    facts = {"data_hash": protocol.data_hash} | {name: every[name] for name in every if name not in free}
    whole = checkpoint._replace(
        facts=facts | {"protocol_id": protocol_id(protocol)} | dict(checkpoint.facts),
        notes={"settings": every} | dict(checkpoint.notes),
    )
    return lambda part: whole._replace(folder=Path(checkpoint.folder) / part)


def _select(
    settings: Settings,
    algorithm: Algorithm,
    split: Split,
    point: Point | None,
    on_block: Callable[[Progress], Any] | None,
    saving: Saving,
    resume: bool | None,
) -> tuple[State, History]:
    """Train, and keep the state of the best round on validation."""
    state, history = simulate(
        algorithm,
        split,
        rounds=cast("int", settings.rounds),
        seed=settings.seed,
        eval_every=cast("int", settings.eval_every),
        stop=Stop(target=settings.target, patience=settings.patience, seconds=settings.max_seconds),
        point=point,
        on_block=on_block,
        checkpoint=saving("train"),
        resume=resume,
    )
    if history.stopped == "diverged" and not history.evaluations:
        raise ValueError(f"training diverged within {len(history.rounds.loss)} rounds; {advice(settings)}")
    return state, history


def _refit(
    settings: Settings,
    algorithm: Algorithm,
    split: Split,
    rounds: int,
    on_block: Callable[[Progress], Any] | None,
    saving: Saving,
) -> State:
    """Train for so many rounds, and keep the last state."""
    state, history = simulate(
        algorithm,
        population_of(split),
        rounds=rounds,
        seed=settings.seed,
        eval_every=cast("int", settings.eval_every),
        keep="last",
        on_block=on_block,
        checkpoint=saving("refit"),
    )
    if history.stopped == "diverged":
        raise ValueError(f"the refit on train + validation diverged; {advice(settings)}")
    return state


def _measure_test(
    sampled: str,
    attributes: dict[str, np.ndarray],
    algorithm: Algorithm,
    tested: Split,
    state: State,
    test: Ranks,
    point: Point | None,
) -> dict[str, Any]:
    """All that is reported of the test items: means, spread, groups, the catalogue, intervals, rating errors."""
    lists = np.asarray(make_lister(algorithm, tested, K, point=point)(state).items)
    return {
        **measure(test, tested, sampled),
        **summarise(test, tested, lists, sampled=sampled, attributes=attributes),
        **measure_ratings(algorithm, tested, state, point),
    }


def _run_centrals(
    settings: Settings, protocol: Protocol, split: Split, on_stage: Callable[[str], Any]
) -> dict[str, Baseline]:
    """The central baselines that the settings name: before any training, so that they fail early."""
    if settings.baselines is None:
        return {}
    return run_baselines(
        split,
        names=parse_names(settings.baselines),
        seed=settings.seed,
        refit=settings.refit,
        selection=protocol.selection,
        on_stage=on_stage,
    )


def _price(protocol: Protocol, metrics: dict[str, Any], baselines: dict[str, Any]) -> Price:
    known = {"protocol_id": protocol_id(protocol)}
    return price_of_federation(known | {"metrics": metrics}, known | {"baselines": baselines})


def measure_ratings(
    algorithm: Algorithm, split: Split, state: State, point: Point | None = None
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
        >>> measure_ratings(make_algorithm(Settings()), load_inputs(Settings()).split, None)
        {}
    """
    if not algorithm.model.rates or split.test_ratings is None:
        return {}
    predictions = np.asarray(make_rater(algorithm, split, point=point)(state))
    return {"rating": rating_errors(predictions, split.test_ratings)}
