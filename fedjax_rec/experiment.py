"""One experiment: settings in, outcome out. Load, split, train, select, perhaps refit, evaluate, compare.

Nothing here touches the file system besides reading the data; `run_folder` writes what comes out.
"""

import dataclasses
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from fedjax_rec.algorithms.registry import ENTRIES, accepted, factory_of
from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.devices import choose_devices, client_mesh
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
from fedjax_rec.inputs import fold_in_epochs_of, load_attributes, load_inputs, protocol_of
from fedjax_rec.points import after_fold_in, after_local_training
from fedjax_rec.population import population_of
from fedjax_rec.privacy.central import Private, dp_fedavg
from fedjax_rec.samplers import LEAST_COHORT, default_cohort
from fedjax_rec.servers import LOCALS, SERVERS
from fedjax_rec.settings import Settings, complete, parse_options
from fedjax_rec.simulate import History, Progress, Stop, simulate
from fedjax_rec.traffic import Traffic, count_traffic, upload_of
from fedjax_rec.transforms import clip
from fedjax_rec.types import Algorithm, State


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
) -> Outcome:
    """Run what the settings say.

    Args:
        settings: the experiment.
        on_stage: called with a line of text when a new stage begins.
        on_block: called with a `Progress` after each block of rounds, of the refit too.

    Returns:
        the outcome.

    Raises:
        ValueError: on data or settings that cannot work, before any training.

    Example:
        >>> outcome = run_experiment(Settings(rounds=2, dim=4, eval_every=1))
        >>> sorted(outcome.metrics)
        ['test', 'validation']
    """
    began, settings = time.perf_counter(), complete(settings)
    on_stage(f"reading {settings.dataset}")
    dataset, split, heldout = load_inputs(settings)
    _check(settings, split, timed=dataset.interactions.timestamps is not None)
    protocol = protocol_of(settings, dataset, split)
    private = private_of(settings, split.num_users)
    algorithm = make_algorithm(clip_batch_size(settings, split), private)
    point = point_of(settings, algorithm, split)
    testing = (
        point if heldout is None else fold_in_of(settings, algorithm, heldout)
    )  # refuses before training
    centrals = _run_centrals(settings, protocol, split, on_stage)
    rounds = cast("int", settings.rounds)
    on_stage(f"compiling {settings.algorithm} for {split.num_users:,} clients and {split.num_items:,} items")
    state, history = _train(settings, algorithm, split, rounds, "best", on_block)
    if history.stopped == "diverged" and not history.evaluations:
        raise ValueError(f"training diverged within {len(history.rounds.loss)} rounds; {advice(settings)}")
    validation = make_evaluator(algorithm, split, which="validation", point=point)(state)
    sampled = f"sampled{settings.num_candidates}"
    validated = measure(
        validation, split, sampled, "validation"
    )  # of this split: a refit's has no such items
    if settings.refit:
        on_stage(f"refitting on train + validation for {history.selected_round} rounds")
        split = merge_validation(split)
        state, refit = _train(settings, algorithm, split, history.selected_round, "last", on_block)
        if refit.stopped == "diverged":
            raise ValueError(f"the refit on train + validation diverged; {advice(settings)}")
        testing = point_of(settings, algorithm, split) if heldout is None else testing
    tested = split if heldout is None else heldout
    on_stage("ranking every test item")
    test = make_evaluator(algorithm, tested, point=testing)(state)
    popularity = rank_common_scores(popularity_scores(split), tested)
    lists = np.asarray(make_lister(algorithm, tested, K, point=testing)(state).items)
    attributes = load_attributes(settings, tested)
    summary = summarise(test, tested, lists, sampled=sampled, attributes=attributes)
    metrics: dict[str, dict[str, Any]] = {
        "test": {
            **measure(test, tested, sampled),
            **summary,
            **measure_ratings(algorithm, tested, state, testing),
        },
        "validation": validated,
    }
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


def advice(settings: Settings) -> str:
    """What to try when training diverges, of what this algorithm has.

    Args:
        settings: of the run that diverged.

    Returns:
        words.

    Example:
        >>> advice(Settings()), advice(Settings(algorithm="fedals"))
        ('lower --learning-rate, or use --aggregator mean', 'raise --regularisation')
    """
    known = accepted(settings.algorithm)
    if "learning_rate" not in known:
        return "raise --regularisation"
    mild = settings.algorithm == "fedmf" and settings.aggregator in (None, "sum")
    return "lower --learning-rate" + ", or use --aggregator mean" * mild


def private_of(settings: Settings, num_clients: int) -> Private | None:
    """How the settings federate in private.

    Args:
        settings: the experiment.
        num_clients: N.

    Returns:
        sampler, transform and aggregator, and what they spend; None without noise.

    Raises:
        ValueError: if the algorithm has no plain sum, or a number is out of range.

    Example:
        >>> private_of(Settings(), 1000) is None
        True
        >>> found = private_of(Settings(clip=0.5, noise_multiplier=1.0, cohort=100), 1000)
        >>> found.sampler.probability, f"{found.delta:.1e}"
        (0.1, '5.0e-04')
    """
    if not settings.private:
        return None
    known = accepted(settings.algorithm)
    if not {"sampler", "transform", "aggregator"} <= set(known):
        raise ValueError(
            f"{settings.algorithm} has an aggregation of its own, which has no private form; choose another "
            "algorithm"
        )
    return dp_fedavg(
        num_clients,
        cohort=settings.cohort or default_cohort(num_clients),
        rounds=cast("int", complete(settings).rounds),
        clip=cast("float", settings.clip),
        delta=num_clients**-1.1 if settings.delta is None else settings.delta,
        noise_multiplier=settings.noise_multiplier,
        target_epsilon=settings.target_epsilon,
    )


def make_algorithm(settings: Settings, private: Private | None = None) -> Algorithm:
    """Build the algorithm that the settings name; it takes those settings that its factory knows.

    Args:
        settings: the experiment.
        private: who is drawn, what is clipped and what noise is added; without it, nobody's noise.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a value is out of range, or there are too few devices.

    Example:
        >>> make_algorithm(Settings()).work.epochs
        1
    """
    s, known = complete(settings), accepted(settings.algorithm)
    offered: dict[str, Any] = {name: getattr(s, name) for name in s.__dataclass_fields__} | {
        "mesh": client_mesh(s.devices or choose_devices(s.cohort or LEAST_COHORT, s.lanes)),
    }
    if s.local_optimizer is not None:
        offered["local_optimizer"] = LOCALS[s.local_optimizer](cast("float", s.learning_rate))
    if s.server is not None or s.server_learning_rate is not None:
        rule = SERVERS[s.server or "fedavg"]
        rate = rule.learning_rate if s.server_learning_rate is None else s.server_learning_rate
        offered["server_optimizer"] = rule.make(rate)
    given = {name: value for name, value in offered.items() if name in known}
    if s.clip is not None:
        given["transform"] = clip(s.clip)
    if private is not None:
        given |= private.federation | {"cohort": None}
    return factory_of(s.algorithm)(**given | parse_options(s))


def point_of(settings: Settings, algorithm: Algorithm, split: Split) -> Point | None:
    """With which parameters the settings rank a split's users.

    Args:
        settings: the experiment.
        algorithm: of the run.
        split: holds what the clients train on.

    Returns:
        the evaluation point; None for the server's parameters.

    Raises:
        ValueError: if the algorithm's clients train no table of their own.

    Example:
        >>> point_of(Settings(), make_algorithm(Settings()), load_inputs(Settings()).split) is None
        True
    """
    if settings.evaluation_point == "server":
        return None
    return after_local_training(algorithm, population_of(split), jax.random.key(settings.seed))


def fold_in_of(settings: Settings, algorithm: Algorithm, heldout: Split) -> Point:
    """With which parameters held-out clients are ranked: private leaves of their own, from their histories.

    Args:
        settings: the experiment.
        algorithm: of the run.
        heldout: holds their histories.

    Returns:
        the evaluation point.

    Raises:
        ValueError: if the algorithm has no way to learn about a new client.

    Example:
        >>> settings = Settings(splitter="strong")
        >>> fold_in_of(settings, make_algorithm(settings), load_inputs(settings).heldout).score is not None
        True
    """
    epochs = fold_in_epochs_of(settings)
    return after_fold_in(algorithm, population_of(heldout), jax.random.key(settings.seed), epochs=epochs)


def clip_batch_size(settings: Settings, split: Split) -> Settings:
    """Lower a batch size that no client can fill: the work is the same, without the empty slots.

    Args:
        settings: the experiment.
        split: says how long the longest history is.

    Returns:
        the settings, their batch size at most that of the longest client's whole history.

    Example:
        >>> settings = complete(Settings(batch_size=10**9))
        >>> clip_batch_size(settings, load_inputs(settings).split).batch_size
        1990
    """
    if settings.batch_size is None:
        return settings
    longest = int(np.diff(split.offsets).max(initial=1)) + int(settings.refit)
    width = 1 if settings.loss == "mse" else 1 + (settings.num_negatives or 0)
    return dataclasses.replace(settings, batch_size=min(settings.batch_size, longest * width))


def _check(settings: Settings, split: Split, *, timed: bool) -> None:
    cohort = settings.cohort or default_cohort(split.num_users)
    if cohort > split.num_users:
        raise ValueError(
            f"cohort={cohort} exceeds the population of {split.num_users} clients; lower --cohort"
        )
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


def _train(
    settings: Settings,
    algorithm: Algorithm,
    split: Split,
    rounds: int,
    keep: str,
    on_block: Callable[[Progress], Any] | None,
) -> tuple[State, History]:
    stop = Stop(target=settings.target, patience=settings.patience, seconds=settings.max_seconds)
    return simulate(
        algorithm,
        split if keep == "best" else population_of(split),
        rounds=rounds,
        seed=settings.seed,
        eval_every=cast("int", settings.eval_every),
        stop=stop if keep == "best" else None,
        keep=keep,
        point=point_of(settings, algorithm, split) if keep == "best" else None,
        on_block=on_block,
    )


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


def versions() -> dict[str, str]:
    """Versions of what computed a result.

    Returns:
        name -> version.

    Example:
        >>> "jax" in versions()
        True
    """
    found = {"python": python_version(), "backend": jax.default_backend()}
    for name in ("fedjax_rec", "jax", "jaxlib", "flax", "optax", "numpy", "pandas"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
