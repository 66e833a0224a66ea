"""What the settings choose: the algorithm, who is hidden and how, and with which parameters users are ranked."""

import dataclasses
from collections.abc import Mapping
from typing import Any, cast

from fedjax_rec.algorithms.registry import accepted, entry_of, factory_of, sized_defaults
from fedjax_rec.client.keys import key_of
from fedjax_rec.client.population import Population, population_of
from fedjax_rec.data.defaults import MIN_COHORT, Size, default_cohort, default_eval_every
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.chunks import on_devices_that_fit
from fedjax_rec.engine.devices import choose_devices, client_mesh
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.evaluation_points import after_fold_in, after_local_training
from fedjax_rec.evaluation.evaluator import EvaluationPoint, server_parameters
from fedjax_rec.hosts.processes import num_processes
from fedjax_rec.privacy.dp_fedavg import PrivateFederation, dp_fedavg
from fedjax_rec.runs.availability import devices_of
from fedjax_rec.runs.inputs import fold_in_epochs_of
from fedjax_rec.runs.settings import FAIR, Settings, complete, without_size
from fedjax_rec.samplers.data_dependent import loss_proportional, size_capped
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.server.fairness import q_fedavg
from fedjax_rec.server.optimizers import LOCALS, SERVERS
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.types import Algorithm, Sampler


def private_of(settings: Settings, num_clients: int) -> PrivateFederation | None:
    """How the settings federate in private.

    Args:
        settings: the experiment.
        num_clients: N.

    Returns:
        sampler, transform and aggregator, and what they spend; None without noise.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> private_of(Settings(), 1000) is None
        True
        >>> found = private_of(Settings(clip=0.5, noise_multiplier=1.0, cohort=100), 1000)
        >>> found.sampler.probability, f"{found.delta:.1e}"
        (0.1, '5.0e-04')
    """
    if not settings.private:
        return None
    return dp_fedavg(
        num_clients,
        cohort=settings.cohort or default_cohort(num_clients),
        rounds=cast("int", complete(settings).rounds),
        clip=cast("float", settings.clip),
        delta=num_clients**-1.1 if settings.delta is None else settings.delta,
        noise_multiplier=settings.noise_multiplier,
        target_epsilon=settings.target_epsilon,
        capacity=settings.capacity,
        allow_large_delta=settings.allow_large_delta,
    )


def advice(settings: Settings) -> str:
    """What to try when training diverges, of what this algorithm has.

    Args:
        settings: of the run that diverged.

    Returns:
        words for a `ParameterError`, with parameters in braces.

    Example:
        >>> advice(Settings()), advice(Settings(algorithm="fedals"))
        ('lower {learning_rate}, or use {aggregator} mean', 'raise {regularisation}')
    """
    known = accepted(settings.algorithm)
    if "learning_rate" not in known:
        return "raise {regularisation}"
    mild = settings.algorithm == "fedmf" and settings.aggregator in (None, "sum")
    return "lower {learning_rate}" + ", or use {aggregator} mean" * mild


def make_algorithm(settings: Settings, private: PrivateFederation | None = None) -> Algorithm:
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
    return factory_of(settings.algorithm)(**arguments_of(settings, private))


def arguments_of(settings: Settings, private: PrivateFederation | None = None) -> dict[str, Any]:
    """What the factory of the algorithm is given.

    Args:
        settings: the experiment.
        private: as in `make_algorithm`.

    Returns:
        its keyword arguments.

    Raises:
        ValueError: if a value is out of range, or there are too few devices.

    Example:
        >>> arguments_of(Settings(dim=8))["dim"]
        8
    """
    s, known = without_size(complete(settings)), accepted(settings.algorithm)
    offered: dict[str, Any] = {name: getattr(s, name) for name in s.__dataclass_fields__} | {
        "mesh": client_mesh(s.devices or _usual_devices(s)),
    }
    offered |= devices_of(vars(s))._asdict()
    if s.local_optimizer is not None:
        offered["local_optimizer"] = LOCALS[s.local_optimizer](cast("float", offered.pop("learning_rate")))
    if s.server_optimizer is not None or s.server_learning_rate is not None:
        rule = SERVERS[s.server_optimizer or "fedavg"]
        rate = rule.learning_rate if s.server_learning_rate is None else s.server_learning_rate
        offered["server_optimizer"] = rule.make(rate)
    offered["sampler"] = _sampler_of(s)
    if offered["sampler"] is not None:
        offered["cohort"] = None  # which is the sampler's own
    if s.aggregator == FAIR:
        if not s.learning_rate:
            raise ParameterError(f"{{aggregator}} {FAIR} needs clients with a learning rate above 0")
        offered["aggregator"] = q_fedavg(
            1.0 if s.fairness is None else s.fairness, lipschitz=1 / s.learning_rate
        )
    given = {name: value for name, value in offered.items() if name in known and value is not None}
    if s.clip is not None:
        given["transform"] = clip(s.clip)
    if private is not None:
        given |= private.federation | {"cohort": None}
    return given | s.own_options()


def make_that_fits(
    settings: Settings, population: Population, private: PrivateFederation | None = None
) -> Algorithm:
    """The same for this data: on one device where nobody said how many, if several bring nothing or do not fit.

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
    fixed = settings.devices is not None or (settings.table_shards or 1) > 1
    if fixed or "mesh" not in accepted(settings.algorithm):
        return make_algorithm(settings, private)
    server_bound = entry_of(settings.algorithm).server_bound
    is_servers = server_bound is not None and server_bound(population.size)
    return on_devices_that_fit(
        lambda devices: make_algorithm(dataclasses.replace(settings, devices=devices), private),
        num_processes() if is_servers else _usual_devices(complete(settings)),
        population,
    )


def _usual_devices(settings: Settings) -> int:
    """How many devices share a cohort of this size where nobody says: whole groups that share item tables."""
    found = choose_devices(settings.async_buffer or settings.cohort or MIN_COHORT, settings.lanes)
    return found - found % (settings.table_shards or 1) or found


def _sampler_of(settings: Settings) -> Sampler | None:
    """The sampler that is asked for by name; None for the algorithm's own."""
    cohort = settings.cohort
    if settings.sampler == "size-capped":
        return size_capped(cast("int", settings.size_cap), cohort=cohort)
    if settings.sampler == "loss-proportional":
        return loss_proportional(cohort=cohort)
    return uniform(cohort) if settings.sampler == "uniform" else None


def with_sized_defaults(settings: Settings, size: Size) -> Settings:
    """Fill in what follows from the size of the data, as the central twin of an algorithm does.

    Args:
        settings: the experiment.
        size: of the training data, which with a refit is that before it, as for central methods.

    Returns:
        the settings; those without a flag of their own stand in `options`.

    Example:
        >>> with_sized_defaults(Settings(algorithm="fedease"), Size(4, 6, 16)).regularisation
        4.0
    """
    given = _given(settings)
    size = size._replace(cohort=settings.cohort)
    sized = sized_defaults(settings.algorithm, size)
    sized = sized_defaults(settings.algorithm, size, {name: given[name] for name in sized if name in given})
    return with_values(settings, {name: value for name, value in sized.items() if name not in given})


def with_eval_every(settings: Settings, ranked: Size) -> Settings:
    """Fill in the rounds between validations, where nobody says how many.

    They follow from the size where a run goes on until it has converged. Rounds, a target or a patience in rounds
    that somebody chose are meant for the algorithm's own interval, as are checkpoints that would fit no other.

    Args:
        settings: the experiment, completed.
        ranked: size of the data whose validation items are ranked.

    Returns:
        the settings.

    Example:
        >>> settings, size = complete(Settings()), Size(29858, 40979, 659365)
        >>> with_eval_every(settings, size).eval_every
        100
        >>> with_eval_every(dataclasses.replace(settings, checkpoint_every=40), size).eval_every
        20
    """
    if settings.eval_every is not None:
        return settings
    own = entry_of(settings.algorithm).eval_every
    fixed = settings.min_rounds is None or settings.patience is not None or settings.target is not None
    often = own if fixed else default_eval_every(ranked, own, cast("int", settings.min_rounds))
    if (settings.checkpoint_every or 0) % often:
        often = own
    return dataclasses.replace(settings, eval_every=often)


def settings_by_events(settings: Settings, size: Size) -> tuple[str, ...]:
    """The settings that are what follows from the number of events, in this run or in the one that it repeats.

    Args:
        settings: with what follows from the size.
        size: of the training data.

    Returns:
        their names.

    Example:
        >>> settings_by_events(Settings(algorithm="fedease", regularisation=4.0), Size(4, 6, 16))
        ('regularisation',)
    """
    given = _given(settings)
    sized = sized_defaults(settings.algorithm, size._replace(cohort=settings.cohort))
    own = accepted(settings.algorithm)
    return tuple(name for name, value in sized.items() if given.get(name) == value != own[name])


def _given(settings: Settings) -> dict[str, Any]:
    """The algorithm's settings that have a value."""
    flags = settings.__dataclass_fields__
    values = {name: getattr(settings, name) for name in accepted(settings.algorithm) if name in flags}
    return {name: value for name, value in (values | settings.own_options()).items() if value is not None}


def with_values(settings: Settings, values: Mapping[str, float]) -> Settings:
    """The same run with other settings of the algorithm.

    Args:
        settings: the experiment.
        values: by name; those without a flag of their own go into `options`.

    Returns:
        the settings.

    Example:
        >>> found = with_values(Settings(algorithm="fedals", options="memory=0.5"), {"dim": 8, "unobserved": 0.1})
        >>> found.dim, found.options
        (8, 'memory=0.5,unobserved=0.1')
    """
    flags = settings.__dataclass_fields__
    options = settings.own_options() | {name: value for name, value in values.items() if name not in flags}
    changes: dict[str, Any] = {name: value for name, value in values.items() if name in flags}
    if len(changes) < len(values):
        changes["options"] = ",".join(f"{name}={value}" for name, value in options.items())
    return dataclasses.replace(settings, **changes)


def clip_batch_size(settings: Settings, longest: int) -> Settings:
    """Lower a batch size that no client can fill: the work is the same, without the empty slots.

    Args:
        settings: the experiment.
        longest: examples of the longest client.

    Returns:
        the settings, their batch size at most that of the longest client's whole history.

    Example:
        >>> clip_batch_size(Settings(batch_size=10**9, num_negatives=4), 398).batch_size
        1990
    """
    if settings.batch_size is None:
        return settings
    longest = max(longest, 1) + int(settings.refit)
    width = 1 if settings.loss == "mse" else 1 + (settings.num_negatives or 0)
    return dataclasses.replace(settings, batch_size=min(settings.batch_size, longest * width))


def point_of(settings: Settings, algorithm: Algorithm, population: Population) -> EvaluationPoint:
    """With which parameters the settings rank the clients that train.

    Args:
        settings: the experiment.
        algorithm: of the run.
        population: what the clients train on.

    Returns:
        the evaluation point: one for all rankings of a run, so that it compiles once.

    Raises:
        ValueError: if the model does not score items, or the algorithm's clients train no table of their own.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> point_of(Settings(), make_algorithm(Settings()), tiny_population()).name
        'server'
    """
    if settings.evaluation_point == "server":
        return server_parameters(algorithm, population)
    return after_local_training(algorithm, population, key_of(settings.seed))


def fold_in_of(settings: Settings, algorithm: Algorithm, heldout: Split) -> EvaluationPoint:
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
        >>> from fedjax_rec.runs.inputs import load_inputs
        >>> settings = Settings(splitter="strong")
        >>> fold_in_of(settings, make_algorithm(settings), load_inputs(settings).heldout).score is not None
        True
    """
    epochs = fold_in_epochs_of(settings)
    return after_fold_in(algorithm, population_of(heldout), key_of(settings.seed), epochs=epochs)
