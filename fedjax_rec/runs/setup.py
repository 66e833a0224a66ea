"""What settings make before anything is trained: data, split, clients, algorithm; what cannot work is refused."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from fedjax_rec.algorithms.registry import entry_of
from fedjax_rec.client.population import Population, population_of
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.evaluator import EvaluationPoint
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.privacy.accounting import MAX_EPSILON
from fedjax_rec.privacy.spending import Spending, secret_key, spending_of
from fedjax_rec.runs.availability import check_population, devices_of
from fedjax_rec.runs.build import (
    clip_batch_size,
    fold_in_of,
    make_that_fits,
    point_of,
    private_of,
    settings_by_events,
    with_eval_every,
    with_sized_defaults,
)
from fedjax_rec.runs.inputs import load_attributes, load_inputs, protocol_of
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.store import find_latest
from fedjax_rec.types import Algorithm, Key, State

_SLACK = 1e-6  # of an epsilon, for rounding


class Setup(NamedTuple):
    """What the settings make before anything is trained."""

    settings: Settings  # with what was chosen here
    dataset: Dataset
    split: Split  # what is trained on
    population: Population  # its clients, made once for the plan, the training and the traffic
    heldout: Split | None  # of held-out clients, where the splitter makes some
    attributes: dict[str, np.ndarray]
    protocol: Protocol
    algorithm: Algorithm
    point: EvaluationPoint  # with which parameters clients are ranked
    fold_in_point: EvaluationPoint | None  # the same of held-out clients
    stored: StoredPopulation | None = None  # all clients, where the split is of a sample of a store's
    by_events: tuple[str, ...] = ()  # settings that are what follows from the number of events

    @property
    def training(self) -> Split | StoredPopulation:
        """What `simulate` is given."""
        return self.split if self.stored is None else self.stored

    def ranked(self, state: State) -> State:
        """The state of the clients of the split."""
        return state if self.stored is None else self.stored.of_sample(state)

    @property
    def tested(self) -> Split:
        """Holds the test items."""
        return self.split if self.heldout is None else self.heldout

    @property
    def test_point(self) -> EvaluationPoint:
        """With which parameters they are ranked."""
        return self.point if self.fold_in_point is None else self.fold_in_point


def set_up(settings: Settings, on_stage: Callable[[str], Any], dataset: Dataset | None = None) -> Setup:
    """Read and divide the data, and make the algorithm; whatever cannot work is refused here.

    Args:
        settings: the experiment, completed.
        on_stage: called with a line of text when what takes long begins.
        dataset: instead of the one that the settings name.

    Returns:
        what the settings make.

    Raises:
        ValueError: on data or settings that cannot work.
    """
    given = dataset is not None
    dataset, split, heldout, stored = load_inputs(settings, dataset)
    num_clients = split.num_users if stored is None else stored.num_clients
    _check(settings, split, num_clients)
    size = split.size if stored is None else stored.size
    settings = with_eval_every(with_sized_defaults(settings, size), split.size)
    attributes = {} if given else load_attributes(settings, split if heldout is None else heldout)
    protocol = protocol_of(settings, dataset, split)
    if settings.private:
        on_stage("accounting for the privacy of its users")
    private = private_of(settings, num_clients)
    if private is not None:  # recorded, for whoever goes on for more rounds
        settings = dataclasses.replace(settings, capacity=private.sampler.capacity, delta=private.delta)
    population = population_of(split) if stored is None else stored.directory
    algorithm = make_that_fits(clip_batch_size(settings, population.max_examples), population, private)
    setup = Setup(
        settings=settings,
        dataset=dataset,
        split=split,
        population=population,
        heldout=heldout,
        attributes=attributes,
        protocol=protocol,
        algorithm=algorithm,
        point=point_of(settings, algorithm, population),
        # held-out clients are ranked as they are folded in, which may be refused: before training
        fold_in_point=None if heldout is None else fold_in_of(settings, algorithm, heldout),
        stored=stored,
        by_events=settings_by_events(settings, size),
    )
    _check_noise(settings, spending_after(settings, setup, cast("int", settings.rounds)))
    return setup


def _check_noise(settings: Settings, spending: Spending | None) -> None:
    """Refuse an algorithm of one's own that does not add the noise asked for, or whose own noise does not fit."""
    if spending is None and settings.private:
        raise ParameterError(
            "{_algorithm} adds no noise, though it was given some; its factory must hand aggregator, sampler and "
            "transform on to fr.federate; or leave out {target_epsilon} and {noise_multiplier}",
            _algorithm=settings.algorithm,
        )
    if spending is None:
        return
    if math.isinf(spending.epsilon):
        raise ParameterError(
            f"{settings.rounds} rounds with noise_multiplier={spending.noise_multiplier:g} spend an epsilon of "
            f"more than {MAX_EPSILON:g}, which hides nothing; raise {{noise_multiplier}}, or lower {{rounds}} or "
            f"{{cohort}}"
        )
    if settings.target_epsilon is not None and spending.epsilon > settings.target_epsilon * (1 + _SLACK):
        raise ParameterError(
            "{_algorithm} adds less noise than it was given: {rounds} rounds spend epsilon {_epsilon:.6g}; its "
            "factory must hand aggregator, sampler and transform on to fr.federate",
            _algorithm=settings.algorithm,
            rounds=settings.rounds,
            _epsilon=spending.epsilon,
        )
    check_together(
        {
            RunFeature.NOISE: True,
            RunFeature.CLIP: True,
            RunFeature.REFIT: settings.refit or None,
            RunFeature.TUNE: settings.tune,
        }
    )


def at_lower_rate(settings: Settings, *, private: bool) -> Settings | None:
    """The settings with which a run that diverged is tried again, once.

    Args:
        settings: of the run that diverged, completed.
        private: whether its algorithm adds noise.

    Returns:
        the same with a third of the clients' learning rate; None where there is none to lower, or where a
        second run would spend its users' privacy twice.

    Example:
        >>> from fedjax_rec.runs.settings import complete
        >>> round(at_lower_rate(complete(Settings(learning_rate=0.3)), private=False).learning_rate, 6)
        0.1
    """
    if not settings.learning_rate or private:
        return None
    return dataclasses.replace(settings, learning_rate=settings.learning_rate / 3)


def with_settings(settings: Settings, setup: Setup) -> Setup:
    """The same data, for other settings of the algorithm.

    Args:
        settings: of the algorithm, without noise.
        setup: what other settings made.

    Returns:
        with the algorithm and points of these.
    """
    algorithm = make_that_fits(clip_batch_size(settings, setup.population.max_examples), setup.population)
    return setup._replace(
        settings=settings,
        algorithm=algorithm,
        point=point_of(settings, algorithm, setup.population),
        fold_in_point=None if setup.heldout is None else fold_in_of(settings, algorithm, setup.heldout),
    )


def spending_after(settings: Settings, setup: Setup, rounds: int) -> Spending | None:
    """What so many rounds spend, read off the algorithm and the population that run.

    Args:
        settings: of the run.
        setup: what they made.
        rounds: T.

    Returns:
        what is spent; None without noise.
    """
    num_clients = setup.population.num_clients
    delta = num_clients**-1.1 if settings.delta is None else settings.delta
    return spending_of(
        setup.algorithm,
        num_clients,
        rounds,
        delta,
        secret=settings.secret_noise,
        by_events=setup.by_events,
    )


def key_of(settings: Settings, checkpoint: Checkpoints | None) -> Key | int:
    """What the run's randomness comes from: the seed, or a secret that only checkpoints hold.

    Args:
        settings: of the run.
        checkpoint: where it is saved, perhaps already; None for nowhere.

    Returns:
        a number, or a key that is secret.
    """
    if not settings.secret_noise:
        return settings.seed
    latest = None if checkpoint is None else find_latest(Path(checkpoint.folder) / "train")
    if latest is None or latest.path is None:
        return secret_key()
    written = latest.meta.get("custom_metadata")
    words = written.get("key") if isinstance(written, dict) else None
    if not (
        isinstance(words, list) and len(words) == 2 and all(type(x) is int and 0 <= x < 2**32 for x in words)
    ):
        raise ValueError(f"{latest.path} holds no key of a run with secret noise; remove that folder")
    return jax.random.wrap_key_data(jax.numpy.asarray(words, np.uint32), impl="threefry2x32")


def merge_validation_of(settings: Settings, setup: Setup) -> Setup:
    """The same on train + validation, for the refit.

    Args:
        settings: of the run.
        setup: what they made.

    Returns:
        with the merged split, its population and point.
    """
    split = merge_validation(setup.split)
    population = population_of(split)
    point = point_of(settings, setup.algorithm, population)
    return setup._replace(split=split, population=population, point=point)


def _check(settings: Settings, split: Split, num_clients: int) -> None:
    cohort = settings.cohort or default_cohort(num_clients)
    if cohort > num_clients:
        raise ParameterError(
            f"cohort={cohort} exceeds the population of {num_clients} clients; lower {{cohort}}"
        )
    if (settings.minimum_cohort or 1) > cohort:
        raise ParameterError(
            f"{{minimum_cohort}}={settings.minimum_cohort} is more than the {cohort} clients of a cohort: every "
            "round would be skipped; lower it, or raise {cohort}"
        )
    check_population(devices_of(vars(settings)), num_clients)
    if settings.loss != "mse" and (settings.num_negatives or 0) > split.num_items:
        raise ParameterError(
            f"num_negatives={settings.num_negatives} exceeds the catalogue of {split.num_items} items; lower "
            "{num_negatives}"
        )
    entry = entry_of(settings.algorithm)
    check_together(
        {
            RunFeature.ALGORITHM_OF_RATINGS: settings.algorithm if entry.needs_ratings else None,
            RunFeature.ALGORITHM_OF_ORDER: settings.algorithm if entry.needs_order else None,
            RunFeature.RATINGS_LOSS: settings.loss == "mse",
            RunFeature.NO_RATINGS: split.name if split.ratings is None else None,
            RunFeature.NO_TIMESTAMPS: split.name if split.order == "random" else None,
        }
    )
