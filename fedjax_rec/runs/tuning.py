"""Tuning as a part of a run: settings of the algorithm are tried on validation, and the run has the best of them.

The search is random, around the settings that the run would have without it, which come first; `training.halving`
gives the better ones more rounds. Test items are not looked at. How many settings were tried stands in the
protocol's file and in the result, all of them in `tuning.json`.
"""

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

from fedjax_rec.algorithms.registry import accepted, entry_of, factory_of
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.runs.build import arguments_of, clip_batch_size, with_eval_every, with_values
from fedjax_rec.runs.settings import FAIR, Settings
from fedjax_rec.runs.setup import Setup
from fedjax_rec.server.optimizers import LOCALS
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.store import find_latest
from fedjax_rec.training.halving import Halving, halve
from fedjax_rec.training.spaces import trials_of
from fedjax_rec.training.sweep import Sweep, SweepInterrupted, Trial, best_trial
from fedjax_rec.training.trials import Factory

TABLE = "tuning"  # of a checkpoint's metadata, as `tuning_table` gives it
NOTE = "tuning"  # how what is noted on an error begins
_REPORT_SECONDS = 2.0  # at least, between two reports of progress


class Tuned(NamedTuple):
    """What a search found."""

    settings: Settings  # of the run, with the best ones
    halving: Halving


def tune(
    settings: Settings,
    setup: Setup,
    protocol: Protocol,
    on_stage: Callable[[str], Any] = str,
) -> Tuned:
    """Try settings of the algorithm on validation.

    Args:
        settings: of the run, completed; `tune` says how many.
        setup: what they made.
        protocol: says by which metric.
        on_stage: called with a line of text where something new begins that may take seconds.

    Returns:
        the settings that won, and all that were tried.

    Raises:
        ValueError: if the algorithm has nothing to tune, or no trial reached a metric.
    """
    count = cast("int", settings.tune)
    known = accepted(settings.algorithm)
    flags = {name: getattr(settings, name) for name in known if name in settings.__dataclass_fields__}
    # a server that is fair divides by the clients' learning rate, which is no setting of one place then
    fixed = ("learning_rate",) if settings.aggregator == FAIR else ()
    trials = trials_of(
        settings.algorithm,
        setup.split.size._replace(cohort=settings.cohort),
        flags | settings.own_options(),
        count,
        seed=settings.seed,
        fixed=fixed,
    )
    if trials == [{}]:
        raise ParameterError(f"{settings.algorithm} has no numbers to tune; leave out {{tune}}")
    repeats = setup.algorithm.repeats
    rounds = cast("int", settings.min_rounds or settings.rounds)
    report = _Report(settings.algorithm, on_stage)
    finished: list[Trial] = []
    try:
        found = halve(
            _factory_of(settings, setup),
            setup.split,
            trials,
            rounds=1 if repeats else rounds,
            eval_every=1 if repeats else _interval(settings, setup),
            seed=settings.seed,
            metric=protocol.selection,
            max_rounds=0 if repeats or settings.min_rounds is None else cast("int", settings.rounds),
            max_seconds=math.inf if settings.max_seconds is None else settings.max_seconds,
            on_rung=report.begin_rung,
            on_block=report.tell_rounds,
            on_trial=finished.append,
        )
    except BaseException as problem:
        if isinstance(problem, SweepInterrupted) and problem.result is not None:
            finished += problem.result.trials
        problem.add_note(f"{NOTE} ended early and keeps no file; {_best_of(finished, protocol.selection)}")
        raise
    return Tuned(with_values(settings, found.best.settings), found)


def _interval(settings: Settings, setup: Setup) -> int:
    """Rounds between validations: rungs are short, so that what follows from the size is not for them."""
    given = cast("int", settings.eval_every)
    by_size = with_eval_every(dataclasses.replace(settings, eval_every=None), setup.split.size).eval_every
    return entry_of(settings.algorithm).eval_every if given == by_size else given


def _best_of(finished: Sequence[Trial], metric: str) -> str:
    """What a search has found until now, in words."""
    measured = [trial for trial in finished if trial.round]
    if not measured:
        return "no trial was measured"
    best = max(measured, key=lambda trial: trial.validation)
    return (
        f"the best of its trials until then, with validation {metric} {best.validation:.4f}: {text_of(best)}"
    )


def text_of(trial: Trial) -> str:
    """The settings of a trial in words.

    Args:
        trial: any.

    Returns:
        NAME=VALUE, NAME=VALUE.

    Example:
        >>> text_of(Trial({"dim": 8, "loss": "bpr"}, 0.1, 1, 0.0, ()))
        'dim=8, loss=bpr'
    """
    return ", ".join(f"{name}={value}" for name, value in trial.settings.items())


@contextlib.contextmanager
def noting(halving: Halving | None) -> Iterator[None]:
    """Note what a search has found on whatever ends the run that it was for before its results are written.

    Args:
        halving: of `tune`; None where nothing was searched.

    Yields:
        nothing.

    Example:
        >>> with noting(None):
        ...     pass
    """
    try:
        yield
    except BaseException as problem:
        if halving is not None:
            problem.add_note(
                f"{NOTE} was done, and is done again if no checkpoint was saved; the same without it: "
                f"{text_of(halving.best)}"
            )
        raise


def _factory_of(settings: Settings, setup: Setup) -> Factory:
    """The algorithm of the run with other numbers, which may be traced; devices are for trials here."""
    given = arguments_of(clip_batch_size(settings, setup.population.max_examples))
    make = factory_of(settings.algorithm)
    if "mesh" in accepted(settings.algorithm):
        given["mesh"] = None

    def factory(**tried: Any) -> Any:
        changes = dict(tried)
        if settings.local_optimizer is not None and "learning_rate" in tried and "local_optimizer" in given:
            # which has the rate, so that the factory is given no other
            changes["local_optimizer"] = LOCALS[settings.local_optimizer](changes.pop("learning_rate"))
        return make(**given | changes)

    return factory


def kept_search(checkpoint: Checkpoints | None, settings: Settings) -> Tuned | None:
    """What a search found whose run goes on, from the newest checkpoint of its training.

    Args:
        checkpoint: where the run is saved, as `run_experiment` is given it.
        settings: of the run, as they were before the search.

    Returns:
        the settings that won and all that were tried; None where nothing was saved, and the search is to be made.

    Raises:
        ValueError: if what was saved is no search.
    """
    latest = None if checkpoint is None else find_latest(Path(checkpoint.folder) / "train")
    if latest is None or latest.path is None or TABLE not in latest.meta["custom_metadata"]:
        return None
    try:
        halving = _halving_of(latest.meta["custom_metadata"][TABLE])
        return Tuned(with_values(settings, halving.best.settings), halving)
    except (LookupError, TypeError, ValueError) as problem:
        raise ValueError(f"{latest.path} holds no search that this version knows: {problem}") from problem


def _halving_of(table: Mapping[str, Any]) -> Halving:
    """What `tuning_table` was made of, but for the trials' curves."""
    rungs = []
    for rung in table["rungs"]:
        trials = tuple(_stored_trial(**trial) for trial in rung["trials"])
        rungs.append(Sweep(trials, best_trial(trials), table["metric"], rung["rounds"], (), rung["seconds"]))
    best = [trial for trial in rungs[-1].trials if trial.settings == table["best"]]
    return Halving(tuple(rungs), best[0])


def _stored_trial(settings: dict[str, Any], validation: float | None, round: int) -> Trial:  # noqa: A002
    return Trial(settings, math.nan if validation is None else validation, round, math.nan, ())


class _Report:
    """Says what is tried, and every two seconds how far it is."""

    def __init__(self, algorithm: str, on_stage: Callable[[str], Any]) -> None:
        self.algorithm = algorithm
        self.on_stage = on_stage
        self.rung = ""
        self.last = time.perf_counter()

    def begin_rung(self, number: int, rungs: int, count: int, rounds: int) -> None:
        plural = "s" * (rounds != 1)
        self.rung = f"tuning {self.algorithm}: {count} settings for {rounds:,} round{plural} each"
        self.rung += f" ({number} of {rungs})" * (rungs > 1)
        self.on_stage(self.rung)

    def tell_rounds(self, done: int, total: int) -> None:
        if (now := time.perf_counter()) - self.last >= _REPORT_SECONDS:
            self.last = now
            self.on_stage(f"{self.rung}: {done / total:.0%}")


def tuning_table(halving: Halving) -> dict[str, Any]:
    """What `tuning.json` holds.

    Args:
        halving: of `tune`.

    Returns:
        the metric, how many settings were tried, the best, and by rung its rounds and its trials.
    """
    rungs = [
        {"rounds": rung.rounds, "seconds": rung.seconds, "trials": [_trial(trial) for trial in rung.trials]}
        for rung in halving.rungs
    ]
    return {
        "metric": halving.rungs[0].metric,
        "settings_tried": halving.num_settings,
        "best": halving.best.settings,
        "rungs": rungs,
    }


def _trial(trial: Any) -> dict[str, Any]:
    return {"settings": trial.settings, "validation": trial.validation, "round": trial.round}
