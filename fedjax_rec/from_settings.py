"""What the settings choose: the algorithm, who is hidden and how, and with which parameters users are ranked."""

import dataclasses
from typing import Any, cast

import jax
import numpy as np

from fedjax_rec.algorithms.registry import accepted, factory_of
from fedjax_rec.data.splits import Split
from fedjax_rec.device_settings import devices_of
from fedjax_rec.devices import choose_devices, client_mesh
from fedjax_rec.evaluation.evaluator import Point
from fedjax_rec.fairness import q_fedavg
from fedjax_rec.informed import loss_proportional, size_capped
from fedjax_rec.inputs import fold_in_epochs_of
from fedjax_rec.parts import on_devices_that_fit
from fedjax_rec.points import after_fold_in, after_local_training
from fedjax_rec.population import Population, population_of
from fedjax_rec.privacy.central import Private, dp_fedavg
from fedjax_rec.samplers import LEAST_COHORT, default_cohort, uniform
from fedjax_rec.servers import LOCALS, SERVERS
from fedjax_rec.settings import FAIR, Settings, complete, parse_options
from fedjax_rec.transforms import clip
from fedjax_rec.types import Algorithm, Sampler


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
        "mesh": client_mesh(s.devices or _usual_devices(s)),
    }
    offered |= devices_of(vars(s), private=s.private)._asdict()
    if s.local_optimizer is not None:
        offered["local_optimizer"] = LOCALS[s.local_optimizer](cast("float", s.learning_rate))
    if s.server is not None or s.server_learning_rate is not None:
        rule = SERVERS[s.server or "fedavg"]
        rate = rule.learning_rate if s.server_learning_rate is None else s.server_learning_rate
        offered["server_optimizer"] = rule.make(rate)
    offered["sampler"] = _sampler_of(s)
    if s.aggregator == FAIR:
        if not s.learning_rate:
            raise ValueError(f"--aggregator {FAIR} needs clients with a learning rate above 0")
        offered["aggregator"] = q_fedavg(
            1.0 if s.fairness is None else s.fairness, lipschitz=1 / s.learning_rate
        )
    given = {name: value for name, value in offered.items() if name in known}
    if s.clip is not None:
        given["transform"] = clip(s.clip)
    if private is not None:
        given |= private.federation | {"cohort": None}
    return factory_of(s.algorithm)(**given | parse_options(s))


def make_that_fits(settings: Settings, population: Population, private: Private | None = None) -> Algorithm:
    """The same for this data: on one device where nobody said how many, and a copy on each of them does not fit.

    Args:
        settings: the experiment.
        population: the clients.
        private: as in `make_algorithm`.

    Returns:
        the algorithm.

    Raises:
        ValueError: as `make_algorithm`.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> make_that_fits(Settings(), tiny_population()).work.epochs
        1
    """
    if settings.devices is not None:
        return make_algorithm(settings, private)
    return on_devices_that_fit(
        lambda devices: make_algorithm(dataclasses.replace(settings, devices=devices), private),
        _usual_devices(complete(settings)),
        population,
    )


def _usual_devices(settings: Settings) -> int:
    """How many devices share a cohort of this size where nobody says."""
    return choose_devices(settings.async_buffer or settings.cohort or LEAST_COHORT, settings.lanes)


def _sampler_of(settings: Settings) -> Sampler | None:
    """The sampler that is asked for by name; None for the algorithm's own."""
    cohort = settings.cohort
    if settings.sampler == "size-capped":
        return size_capped(cast("int", settings.size_cap), cohort=cohort)
    if settings.sampler == "loss-proportional":
        return loss_proportional(cohort=cohort)
    return uniform(cohort) if settings.sampler == "uniform" else None


def clip_batch_size(settings: Settings, split: Split) -> Settings:
    """Lower a batch size that no client can fill: the work is the same, without the empty slots.

    Args:
        settings: the experiment.
        split: says how long the longest history is.

    Returns:
        the settings, their batch size at most that of the longest client's whole history.

    Example:
        >>> from fedjax_rec.inputs import load_inputs
        >>> settings = complete(Settings(batch_size=10**9))
        >>> clip_batch_size(settings, load_inputs(settings).split).batch_size
        1990
    """
    if settings.batch_size is None:
        return settings
    longest = int(np.diff(split.offsets).max(initial=1)) + int(settings.refit)
    width = 1 if settings.loss == "mse" else 1 + (settings.num_negatives or 0)
    return dataclasses.replace(settings, batch_size=min(settings.batch_size, longest * width))


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
        >>> from fedjax_rec.inputs import load_inputs
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
        >>> from fedjax_rec.inputs import load_inputs
        >>> settings = Settings(splitter="strong")
        >>> fold_in_of(settings, make_algorithm(settings), load_inputs(settings).heldout).score is not None
        True
    """
    epochs = fold_in_epochs_of(settings)
    return after_fold_in(algorithm, population_of(heldout), jax.random.key(settings.seed), epochs=epochs)
