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
from fedjax_rec.data.interactions import Dataset
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
from fedjax_rec.from_settings import advice, clip_batch_size, fold_in_of, make_that_fits, point_of, private_of
from fedjax_rec.inputs import load_attributes, load_inputs, protocol_of
from fedjax_rec.population import Population, population_of
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
    setup = _set_up(settings)
    saving = _saving(checkpoint, settings, setup.protocol)
    split, protocol = setup.split, setup.protocol
    centrals = _run_centrals(settings, protocol, split, on_stage)
    on_stage(f"compiling {settings.algorithm} for {split.num_users:,} clients and {split.num_items:,} items")
    state, history = _select(settings, setup, on_block, saving, resume)
    sampled = f"sampled{settings.num_candidates}"
    validation = make_evaluator(setup.algorithm, split, which="validation", point=setup.point)(state)
    validated = measure(validation, split, sampled, "validation")
    if settings.refit:
        on_stage(f"refitting on train + validation for {history.selected_round} rounds")
        setup = _merge(settings, setup)
        state = _refit(settings, setup, history.selected_round, on_block, saving)
    on_stage("ranking every test item")
    test = make_evaluator(setup.algorithm, setup.tested, point=setup.testing)(state)
    popularity = rank_common_scores(popularity_scores(setup.split), setup.tested)
    metrics = {"test": _measure_test(sampled, setup, state, test), "validation": validated}
    baselines = {"popularity": measure(popularity, setup.tested, sampled)}
    baselines |= {name: found.metrics for name, found in centrals.items()}
    price = _price(protocol, metrics, baselines) if centrals else None
    if setup.dataset.truth is not None:
        best = truth_ranks(setup.dataset, setup.tested)
        baselines["best_reachable"] = measure(best, setup.tested, sampled)
    return Outcome(
        settings=settings,
        protocol=protocol,
        algorithm=setup.algorithm,
        split=setup.split,
        tested=setup.tested,
        state=state,
        history=history,
        traffic=_count_traffic(setup, state, history),
        test=test,
        validation=validation,
        popularity=popularity,
        metrics=metrics,
        baselines=baselines,
        centrals=centrals,
        price=price,
        private=setup.private,
        seconds=time.perf_counter() - began,
    )


class _Setup(NamedTuple):
    """What the settings make before anything is trained."""

    dataset: Dataset
    split: Split  # what is trained on
    population: Population  # its clients
    heldout: Split | None  # of held-out clients, where the splitter makes some
    attributes: dict[str, np.ndarray]
    protocol: Protocol
    private: Private | None
    algorithm: Algorithm
    point: Point | None  # with which parameters clients are ranked
    folded: Point | None  # the same of held-out clients

    @property
    def tested(self) -> Split:
        """Holds the test items."""
        return self.split if self.heldout is None else self.heldout

    @property
    def testing(self) -> Point | None:
        """With which parameters they are ranked."""
        return self.point if self.heldout is None else self.folded


def _set_up(settings: Settings) -> _Setup:
    """Read and divide the data, and make the algorithm; whatever cannot work is refused here."""
    dataset, split, heldout = load_inputs(settings)
    _check(settings, split, timed=dataset.interactions.timestamps is not None)
    attributes = load_attributes(settings, split if heldout is None else heldout)
    protocol, private = protocol_of(settings, dataset, split), private_of(settings, split.num_users)
    population = population_of(split)
    algorithm = make_that_fits(clip_batch_size(settings, split), population, private)
    return _Setup(
        dataset=dataset,
        split=split,
        population=population,
        heldout=heldout,
        attributes=attributes,
        protocol=protocol,
        private=private,
        algorithm=algorithm,
        point=point_of(settings, algorithm, split),
        # held-out clients are ranked as they are folded in, which may be refused: before training
        folded=None if heldout is None else fold_in_of(settings, algorithm, heldout),
    )


def _merge(settings: Settings, setup: _Setup) -> _Setup:
    """Train + validation, for the refit."""
    split = merge_validation(setup.split)
    point = point_of(settings, setup.algorithm, split)
    return setup._replace(split=split, population=population_of(split), point=point)


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
    setup: _Setup,
    on_block: Callable[[Progress], Any] | None,
    saving: Saving,
    resume: bool | None,
) -> tuple[State, History]:
    """Train, and keep the state of the best round on validation."""
    state, history = simulate(
        setup.algorithm,
        setup.split,
        rounds=cast("int", settings.rounds),
        seed=settings.seed,
        eval_every=cast("int", settings.eval_every),
        stop=Stop(target=settings.target, patience=settings.patience, seconds=settings.max_seconds),
        point=setup.point,
        on_block=on_block,
        checkpoint=saving("train"),
        resume=resume,
    )
    if history.stopped == "diverged" and not history.evaluations:
        raise ValueError(f"training diverged within {len(history.rounds.loss)} rounds; {advice(settings)}")
    return state, history


def _refit(
    settings: Settings,
    setup: _Setup,
    rounds: int,
    on_block: Callable[[Progress], Any] | None,
    saving: Saving,
) -> State:
    """Train for so many rounds, and keep the last state."""
    state, history = simulate(
        setup.algorithm,
        setup.population,
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


def _measure_test(sampled: str, setup: _Setup, state: State, test: Ranks) -> dict[str, Any]:
    """All that is reported of the test items: means, spread, groups, the catalogue, intervals, rating errors."""
    algorithm, tested, point = setup.algorithm, setup.tested, setup.testing
    lists = np.asarray(make_lister(algorithm, tested, K, point=point)(state).items)
    return {
        **measure(test, tested, sampled),
        **summarise(test, tested, lists, sampled=sampled, attributes=setup.attributes),
        **measure_ratings(algorithm, tested, state, point),
    }


def _count_traffic(setup: _Setup, state: State, history: History) -> Traffic:
    upload = upload_of(setup.algorithm, setup.population, state)
    return count_traffic(state.server, history.rounds, upload)


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
        >>> split = load_inputs(Settings()).split
        >>> measure_ratings(make_that_fits(Settings(), population_of(split)), split, None)
        {}
    """
    if not algorithm.model.rates or split.test_ratings is None:
        return {}
    predictions = np.asarray(make_rater(algorithm, split, point=point)(state))
    return {"rating": rating_errors(predictions, split.test_ratings)}
