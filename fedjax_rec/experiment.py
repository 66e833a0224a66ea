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
from fedjax_rec.data.attributes import find_user_attributes, read_user_attributes
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.registry import load_dataset
from fedjax_rec.data.splits import Split, leave_one_out, merge_validation
from fedjax_rec.data.splitters import global_time, ratio
from fedjax_rec.devices import choose_devices, client_mesh
from fedjax_rec.evaluation.baselines import popularity_ranks, truth_ranks
from fedjax_rec.evaluation.central.methods import parse_names
from fedjax_rec.evaluation.central.price import Price, price_of_federation
from fedjax_rec.evaluation.central.runner import Baseline, run_baselines
from fedjax_rec.evaluation.evaluator import make_evaluator, make_lister, make_rater
from fedjax_rec.evaluation.measure import Metrics, measure
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.evaluation.ratings import rating_errors
from fedjax_rec.evaluation.summary import K, summarise
from fedjax_rec.population import population_of
from fedjax_rec.samplers import LEAST_COHORT, default_cohort
from fedjax_rec.servers import LOCALS, SERVERS
from fedjax_rec.settings import Settings, complete, parse_options
from fedjax_rec.simulate import History, Progress, Stop, simulate
from fedjax_rec.traffic import Traffic, count_traffic
from fedjax_rec.types import Algorithm, State

SPLITS: dict[str, Callable[..., Split]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "ratio": ratio,
}
ADVICE = "lower --learning-rate or --cohort, or use --aggregator mean"


class Outcome(NamedTuple):
    """All that a run found out."""

    settings: Settings
    protocol: Protocol
    algorithm: Algorithm
    split: Split  # what the tested model was trained on: with refit, train + validation
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
    dataset, split = load_split(settings)
    _check(settings, split)
    attributes = load_attributes(settings, split)
    protocol = protocol_of(settings, dataset, split)
    algorithm = make_algorithm(clip_batch_size(settings, split))
    centrals = _run_centrals(settings, protocol, split, on_stage)
    rounds = cast("int", settings.rounds)
    on_stage(f"compiling {settings.algorithm} for {split.num_users:,} clients and {split.num_items:,} items")
    state, history = _train(settings, algorithm, split, rounds, "best", on_block)
    if history.stopped == "diverged" and not history.evaluations:
        raise ValueError(f"training diverged within {len(history.rounds.loss)} rounds; {ADVICE}")
    validation = make_evaluator(algorithm, split, which="validation")(state)
    if settings.refit:
        on_stage(f"refitting on train + validation for {history.selected_round} rounds")
        split = merge_validation(split)
        state, refit = _train(settings, algorithm, split, history.selected_round, "last", on_block)
        if refit.stopped == "diverged":
            raise ValueError(f"the refit on train + validation diverged; {ADVICE}")
    on_stage("ranking every test item")
    test = make_evaluator(algorithm, split)(state)
    popularity = popularity_ranks(split)
    sampled = f"sampled{settings.num_candidates}"
    lists = np.asarray(make_lister(algorithm, split, K)(state).items)
    summary = summarise(test, split, lists, sampled=sampled, attributes=attributes)
    metrics: dict[str, dict[str, Any]] = {
        "test": {**measure(test, split, sampled), **summary, **measure_ratings(algorithm, split, state)},
        "validation": measure(validation, split, sampled, "validation"),
    }
    baselines = {"popularity": measure(popularity, split, sampled)}
    baselines |= {name: found.metrics for name, found in centrals.items()}
    price = _price(protocol, metrics, baselines) if centrals else None
    if dataset.truth is not None:
        baselines["best_reachable"] = measure(truth_ranks(dataset, split), split, sampled)
    return Outcome(
        settings=settings,
        protocol=protocol,
        algorithm=algorithm,
        split=split,
        state=state,
        history=history,
        traffic=count_traffic(state.server, history.rounds),
        test=test,
        validation=validation,
        popularity=popularity,
        metrics=metrics,
        baselines=baselines,
        centrals=centrals,
        price=price,
        seconds=time.perf_counter() - began,
    )


def load_split(settings: Settings) -> tuple[Dataset, Split]:
    """Read the data and hold out what the protocol says.

    Args:
        settings: the experiment.

    Returns:
        the data set and its split.

    Raises:
        ValueError: if the data is missing or malformed, or a user has too few events.

    Example:
        >>> load_split(Settings())[1].name
        'synthetic'
    """
    s = settings
    columns = {name: getattr(s, name) for name in ("user", "item", "rating", "timestamp")}
    dataset = load_dataset(s.dataset, data_dir=s.data_dir, duplicates=s.duplicates, progress=True, **columns)
    split = SPLITS[s.splitter](
        dataset,
        **shares_of(s),
        min_user_events=s.min_user_events,
        min_rating=s.min_rating,
        core=s.core,
        num_candidates=s.num_candidates,
        seed=s.protocol_seed,
    )
    return dataset, split._replace(negatives=s.negatives)


def shares_of(settings: Settings) -> dict[str, float]:
    """The shares that the splitter holds out.

    Args:
        settings: the experiment.

    Returns:
        by name; empty for leave-one-out.

    Example:
        >>> shares_of(Settings(splitter="ratio", test_share=0.2))
        {'validation_share': 0.1, 'test_share': 0.2}
    """
    if settings.splitter == "leave-one-out":
        return {}
    given = {"validation_share": settings.validation_share, "test_share": settings.test_share}
    return {name: 0.1 if share is None else share for name, share in given.items()}


def load_attributes(settings: Settings, split: Split) -> dict[str, np.ndarray]:
    """Read what is known about the users, from the file that lies beside the data, if any.

    Args:
        settings: the experiment.
        split: names the users.

    Returns:
        str[N] by name, empty where unknown; an empty dict where there is no such file.

    Raises:
        ValueError: if the file is malformed.

    Example:
        >>> load_attributes(Settings(), load_split(Settings())[1])
        {}
    """
    file = find_user_attributes(settings.dataset, settings.data_dir)
    return {} if file is None else read_user_attributes(file, split.user_ids)


def protocol_of(settings: Settings, dataset: Dataset, split: Split) -> Protocol:
    """Write down how this experiment is evaluated.

    Args:
        settings: the experiment.
        dataset: its data.
        split: its split.

    Returns:
        the protocol.

    Raises:
        ValueError: if another number of candidates is asked for than the official lists hold.

    Example:
        >>> protocol_of(Settings(), *load_split(Settings())).candidates
        'sampled'
    """
    official = dataset.test is not None and dataset.test.candidates is not None
    held = split.candidates_test.shape[1]
    if official and settings.num_candidates != held:
        raise ValueError(f"{split.name} has official lists of {held} candidates; leave out --num-candidates")
    return Protocol(
        data_hash=split.data_hash,
        splitter=settings.splitter,
        validation_share=shares_of(settings).get("validation_share"),
        test_share=shares_of(settings).get("test_share"),
        negatives=split.negatives,
        core=settings.core,
        min_user_events=settings.min_user_events,
        min_rating=settings.min_rating,
        candidates="official" if official else "sampled",
        num_candidates=settings.num_candidates,
        refit=settings.refit,
        seed=settings.protocol_seed,
    )


def make_algorithm(settings: Settings) -> Algorithm:
    """Build the algorithm that the settings name; it takes those settings that its factory knows.

    Args:
        settings: the experiment.

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
    return factory_of(s.algorithm)(**given | parse_options(s))


def clip_batch_size(settings: Settings, split: Split) -> Settings:
    """Lower a batch size that no client can fill: the work is the same, without the empty slots.

    Args:
        settings: the experiment.
        split: says how long the longest history is.

    Returns:
        the settings, their batch size at most that of the longest client's whole history.

    Example:
        >>> settings = complete(Settings(batch_size=10**9))
        >>> clip_batch_size(settings, load_split(settings)[1]).batch_size
        1990
    """
    if settings.batch_size is None:
        return settings
    longest = int(np.diff(split.offsets).max(initial=1)) + int(settings.refit)
    width = 1 if settings.loss == "mse" else 1 + (settings.num_negatives or 0)
    return dataclasses.replace(settings, batch_size=min(settings.batch_size, longest * width))


def _check(settings: Settings, split: Split) -> None:
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


def measure_ratings(algorithm: Algorithm, split: Split, state: State) -> dict[str, Metrics]:
    """Errors of the predicted ratings of the test items, where the model's scores are ratings.

    Args:
        algorithm: of the run.
        split: holds the ratings.
        state: the tested model.

    Returns:
        {"rating": {"rmse": ..., "mae": ...}} in units of the ratings, predictions not clipped; else empty.

    Example:
        >>> measure_ratings(make_algorithm(Settings()), load_split(Settings())[1], None)
        {}
    """
    if not algorithm.model.rates or split.test_ratings is None:
        return {}
    predictions = np.asarray(make_rater(algorithm, split)(state))
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
