"""Searches that an Optuna study leads: it is asked for settings, they are tried as one program, and it is told."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypedDict, Unpack

from fedjax_rec.data.frames import Frame
from fedjax_rec.data.splits import Split
from fedjax_rec.data.splitters import as_split
from fedjax_rec.errors import check_arguments
from fedjax_rec.training.search_spaces import Choice, LogUniform, TrialSettings
from fedjax_rec.training.sweep import ERROR_METRICS, Sweep, Trial, sweep
from fedjax_rec.training.trials import Factory

PLAIN = (type(None), bool, int, float, str)  # what a study can store


class Study(Protocol):
    """Optuna's study, as `optuna.create_study` makes it."""

    @property
    def direction(self) -> Any:
        """Whether what it is told should be large or small."""

    def ask(self, fixed_distributions: dict[str, Any]) -> Any:
        """A new trial with `params`."""

    def tell(self, trial: Any, values: float | None = None, *, state: Any = None) -> Any:
        """What a trial reached, or that it failed."""


class SweepOptions(TypedDict, total=False):
    """What `sweep` takes besides."""

    rounds: int
    eval_every: int
    seeds: Sequence[int]
    patience: int | None
    on_block: Callable[[int, int], Any] | None


def search(
    study: Study,
    factory: Factory,
    split: Split | Frame,
    space: Mapping[str, Any],
    *,
    trials: int,
    batch: int = 8,
    metric: str = "ndcg@10",
    **options: Unpack[SweepOptions],
) -> Sweep:
    """Let a study choose settings, a batch at a time, each of which is trained as one program by `sweep`.

    A larger batch trains faster and tells the study later. What a study knows it keeps: a second call goes on.

    Args:
        study: `optuna.create_study(direction="maximize")`; "minimize" for rmse and mae.
        factory: settings -> algorithm.
        split: whose validation items are ranked; a frame or data set is divided by `leave_one_out`.
        space: by name a `log_uniform`, a `choice` of numbers or texts, or a value that stays as it is.
        trials: how many, at least 1.
        batch: how many the study gives before it is told of any, at least 1.
        metric: that is told, as in `sweep`.
        **options: rounds, eval_every, seeds, patience and on_block of each `sweep`.

    Returns:
        the trials of this call and the best of them; one that diverged has failed in the study.

    Raises:
        ValueError: if the study's direction is not the metric's, a number is out of range, or a choice is of
            something that a study cannot store; as `sweep` does, if no trial reached a metric.
        ImportError: without optuna (`pip install 'fedjax_rec[optuna]'`).

    Example:
        >>> import fedjax_rec as fr
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(direction="maximize", sampler=optuna.samplers.RandomSampler(seed=0))
        >>> space = {"dim": 4, "learning_rate": fr.training.log_uniform(0.01, 0.1)}
        >>> found = search(study, fr.fedmf, fr.data.synthetic(60, 90), space, trials=2, rounds=4, eval_every=2)
        >>> found.best.validation == study.best_value
        True

    Source: Akiba et al. 2019, "Optuna: a next-generation hyperparameter optimization framework", section 2.
    """
    check_arguments(search, locals())
    for name, number in (("trials", trials), ("batch", batch)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    wanted = "minimize" if metric in ERROR_METRICS else "maximize"
    if study.direction.name.lower() != wanted:
        raise ValueError(
            f"the study would {study.direction.name.lower()} {metric}; make it with direction={wanted!r}"
        )
    start_time = time.perf_counter()
    split = as_split(split, "search")
    distributions = {name: _distribution(name, values) for name, values in space.items() if _is_range(values)}
    fixed = {name: values for name, values in space.items() if not _is_range(values)}
    done: list[Trial] = []
    sweeps: list[Sweep] = []
    while len(done) < trials:
        asked = [study.ask(distributions) for _ in range(min(batch, trials - len(done)))]
        settings = [fixed | trial.params for trial in asked]
        found, reached = _try(study, asked, factory, split, settings, metric, options)
        done += reached
        sweeps += [] if found is None else [found]
    best = _best(done, metric)
    if best is None:
        raise ValueError(f"none of {trials} trials reached {metric}; lower the learning rates of the space")
    return sweeps[-1]._replace(trials=tuple(done), best=best, seconds=time.perf_counter() - start_time)


def _try(
    study: Study,
    asked: Sequence[Any],
    factory: Factory,
    split: Split,
    settings: list[TrialSettings],
    metric: str,
    options: SweepOptions,
) -> tuple[Sweep | None, list[Trial]]:
    """Train one batch and tell the study; whatever ends it early, no trial stays under way."""
    from optuna.trial import TrialState

    reached: list[Trial] = []
    found = None
    try:
        found = sweep(factory, split, settings, metric=metric, on_trial=reached.append, **options)
        reached = list(found.trials)
    except ValueError:
        if len(reached) < len(settings):  # else all have diverged, which the study is told
            raise
    finally:
        told = {number: trial for number, trial in enumerate(reached) if found is not None and trial.round}
        for number, trial in enumerate(asked):
            if number in told:
                study.tell(trial, told[number].validation)
            else:
                study.tell(trial, state=TrialState.FAIL)
    return found, reached


def _best(trials: list[Trial], metric: str) -> Trial | None:
    """Of equals the first; None if no trial reached a metric."""
    measured = [trial for trial in trials if trial.round]
    sign = -1.0 if metric in ERROR_METRICS else 1.0
    return max(measured, key=lambda trial: sign * trial.validation, default=None)


def _is_range(values: Any) -> bool:
    return isinstance(values, LogUniform | Choice)


def _distribution(name: str, values: LogUniform | Choice) -> Any:
    """Optuna's word for a range."""
    try:
        from optuna import distributions
    except ImportError as problem:
        raise ImportError("a study needs optuna; pip install 'fedjax_rec[optuna]'") from problem
    if isinstance(values, LogUniform):
        return distributions.FloatDistribution(values.low, values.high, log=True)
    for option in values.options:
        if not isinstance(option, PLAIN):
            raise ValueError(
                f"{name}={option!r} is nothing that a study can store; choose among numbers, texts and None"
            )
    return distributions.CategoricalDistribution(values.options)
