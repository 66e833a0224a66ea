"""Run the central baselines on a split: settings by validation, fit, rank, measure.

**How settings are chosen.** Each method has default settings, which depend on nothing but the size of the training
data, and a few neighbours of them. All are fit on the training events and ranked on the validation items,
over the full catalogue. A neighbour replaces the default if its metric is higher by more than two standard
errors of the paired difference over users; of several the highest does. Without this margin the choice would
follow noise on small data (with the 943 users of MovieLens 100K a standard error is .003 to .006) and the
table would compare luck. The test items are never looked at. With `tune` as many settings as are asked for are
drawn around the defaults instead, and must win by as much: as a federated run is tuned.

A method that improves sweep by sweep (iALS) then has its number of epochs chosen on validation, as a federated run
selects its round, and by the same rule for the end (`fedjax_rec.evaluation.convergence`). A fixed number
would compare the luck of two numbers of sweeps. Settings that won at a small width must win at the final one, by
the same margin.

With `refit` the chosen settings are then fit on train + validation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.defaults import ALS_ROUNDS
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.data.splitters import as_split
from fedjax_rec.errors import check_arguments, suggest_names
from fedjax_rec.evaluation.central.registry import (
    METHOD_NAMES,
    METHODS,
    MethodSettings,
    drawn_settings,
    fit_method,
    method_settings,
    trial_settings,
)
from fedjax_rec.evaluation.central.scorers import DivergedError, Scorer
from fedjax_rec.evaluation.convergence import CEILING, PATIENCE_SHARE, patience_ends_at, peak_round
from fedjax_rec.evaluation.metrics import user_metric
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.ranking import Ranks, count_rivals, make_ranker
from fedjax_rec.evaluation.statistics import beats
from fedjax_rec.evaluation.summary import Metrics, result_metrics

_REPORT_SECONDS = 2.0  # at least, between two reports of a fit's progress
OnStage = Callable[[str], Any]


class BaselineTrial(NamedTuple):
    """Settings that were tried on validation."""

    settings: MethodSettings
    validation: float  # mean of the selection metric, full ranking; nan where training diverged


class BaselineResult(NamedTuple):
    """What one central method reached."""

    settings: MethodSettings  # of the tested model
    trials: tuple[BaselineTrial, ...]  # the default first; none where nothing was tried
    ranks: Ranks  # of the test items
    metrics: dict[str, Metrics]  # {"full": {...}, "sampled99": {...}}
    seconds: float  # trials, fit and ranking


@suggest_names
def run_baselines(
    split: Split | Frame,
    *,
    names: Sequence[str] = METHOD_NAMES,
    seed: int = 0,
    refit: bool = False,
    settings: Mapping[str, Mapping[str, float]] | None = None,
    selection: str = "ndcg@10",
    tune: int | None = None,
    on_stage: OnStage = str,
) -> dict[str, BaselineResult]:
    """Choose settings on validation, fit and measure each method.

    Args:
        split: train, validation and test items. Without validation items the default settings are used. A frame or
            data set is divided by `leave_one_out`.
        names: of the methods, of `METHODS`.
        seed: of all that is random in a method.
        refit: whether the tested models are fit on train + validation.
        settings: by method, some settings to use as they are; such a method is not tried on validation.
        selection: the metric of the full validation ranking that settings are chosen by, such as "ndcg@10".
        tune: settings to try of each method that has some, drawn at random around its defaults, instead of
            a few neighbours of the defaults.
        on_stage: called with a line of text when something new begins that may take seconds.

    Returns:
        the baselines by name, in the order of the names.

    Raises:
        ValueError: on an unknown method or setting, before any fit; on a catalogue too large for a method.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> found = run_baselines(tiny_split(), names=["popularity", "ease"], refit=True)
        >>> list(found["ease"].settings), sorted(found["ease"].metrics)
        (['regularisation'], ['full', 'sampled2'])
    """
    check_arguments(run_baselines, {"names": names})
    split = as_split(split, "run_baselines")
    fixed_settings = settings or {}
    _check(split, names, fixed_settings)
    Protocol(selection=selection)  # refuses what is no metric
    validation = _SplitContext(split, "validation")
    test = _SplitContext(merge_validation(split) if refit else split, "test")
    return {
        name: _run(name, validation, test, seed, fixed_settings.get(name, {}), selection, tune, on_stage)
        for name in names
    }


def try_baseline(
    split: Split,
    name: str,
    trials: Sequence[Mapping[str, float]],
    *,
    seed: int = 0,
    selection: str = "ndcg@10",
    on_trial: Callable[[int, int], Any] | None = None,
) -> tuple[BaselineTrial, ...]:
    """Fit a method with several settings and rank the validation items, for a search of one's own.

    Args:
        split: train and validation items; its test items are not looked at.
        name: of the method.
        trials: settings, each as it changes the defaults.
        seed: of all that is random in the method.
        selection: the metric of the full ranking, such as "ndcg@10".
        on_trial: called after each trial with its number, from 1, and the number of trials.

    Returns:
        the trials in their order, settings in full.

    Raises:
        ValueError: on an unknown method, setting or metric, without validation items, on a catalogue too large
            for the method, all before any fit; on a setting out of range.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> found = try_baseline(tiny_split(), "ease", [{"regularisation": 3.0}, {"regularisation": 50.0}])
        >>> [trial.settings for trial in found]
        [{'regularisation': 3.0}, {'regularisation': 50.0}]
    """
    _check(split, [name], {})
    if not (split.validation >= 0).any():
        raise ValueError(
            "no user has a validation item to try settings on; give a split that holds some back"
        )
    Protocol(selection=selection)  # refuses what is no metric
    settings = [method_settings(name, split, changes) for changes in trials]
    validation = _SplitContext(split, "validation")
    results = []
    for number, trial in enumerate(settings, start=1):
        try:
            ranks = validation.rank(validation.fit(name, trial, seed=seed))
            value = float(_validation_metric(ranks, split, selection).mean())
        except DivergedError:
            value = float("nan")
        results.append(BaselineTrial(trial, value))
        if on_trial is not None:
            on_trial(number, len(settings))
    return tuple(results)


class _Fit(NamedTuple):
    """Settings, and what they reach at the final width."""

    settings: MethodSettings
    values: np.ndarray  # float64[N'], the metric of each user


class _SplitContext:
    """A split and what the methods share on it, made when first asked for."""

    def __init__(self, split: Split, which: str) -> None:
        self.split = split
        self.shared = cache(lambda count: count(split))
        self.ranker = cache(lambda score_block: make_ranker(split, score_block, which=which))

    @property
    def has_items(self) -> bool:
        """Whether there are validation items to choose by."""
        return bool((self.split.validation >= 0).any())

    def fit(self, name: str, settings: MethodSettings, **supplied: Any) -> Scorer:
        if (count := METHODS[name].shared) is not None:
            supplied["gram"] = self.shared(count)
        return fit_method(name, self.split, settings, **supplied)

    def rank(self, scorer: Scorer) -> Ranks:
        return self.ranker(scorer.score_block)(scorer.params)


def _check(split: Split, names: Sequence[str], fixed_settings: Mapping[str, Mapping[str, float]]) -> None:
    for name in (*names, *fixed_settings):
        if name not in METHODS:
            raise ValueError(f"unknown baseline {name!r}; known: {', '.join(METHOD_NAMES)}")
    for name in names:
        if (check := METHODS[name].check) is not None:
            check(split)
    for name, changes in fixed_settings.items():
        if name not in names:
            raise ValueError(
                f"settings for {name!r}, which is not among the baselines to run: {', '.join(names)}"
            )
        method_settings(name, split, changes)


def _run(
    name: str,
    validation: _SplitContext,
    test: _SplitContext,
    seed: int,
    changes: Mapping[str, float],
    selection: str,
    tune: int | None,
    on_stage: OnStage,
) -> BaselineResult:
    started = time.perf_counter()
    default = settings = method_settings(name, validation.split, changes)
    trials: tuple[BaselineTrial, ...] = ()
    has_trials = METHODS[name].space if tune else METHODS[name].trials
    if not changes and has_trials and validation.has_items:
        settings, trials = _choose(name, validation, settings, seed, selection, tune, on_stage)
    if METHODS[name].selects_epochs and "epochs" not in changes and validation.has_items:
        choices = [settings] if settings == default else [default, settings]
        tried = [_best_epoch(name, validation, choice, seed, selection, on_stage) for choice in choices]
        best = tried[-1] if beats(tried[-1].values, tried[0].values) else tried[0]
        settings = best.settings
    on_stage(f"{name}: fitting {_format_settings(settings)}".rstrip())
    scorer = test.fit(name, settings, seed=seed, on_epoch=_report_epochs(on_stage, name))
    on_stage(f"{name}: ranking every test item")
    ranks = test.rank(scorer)
    return BaselineResult(
        settings=settings,
        trials=trials,
        ranks=ranks,
        metrics=result_metrics(ranks, test.split),
        seconds=time.perf_counter() - started,
    )


def _choose(
    name: str,
    validation: _SplitContext,
    settings: MethodSettings,
    seed: int,
    selection: str,
    tune: int | None,
    on_stage: OnStage,
) -> tuple[MethodSettings, tuple[BaselineTrial, ...]]:
    """The settings to use, and all that were tried."""
    size = validation.split.size
    if tune is None:
        tried = trial_settings(name, settings, size)
    else:
        tried = drawn_settings(name, settings, size, tune, seed=seed)
    best = settings
    best_gain = 0.0
    default = np.zeros(
        0
    )  # of each user; empty where the default diverges, and anything that does not is better
    trials = []
    for number, trial in enumerate(tried, start=1):
        on_stage(f"{name}: trying {_format_settings(trial)} on validation ({number} of {len(tried)})")
        try:
            ranks = validation.rank(validation.fit(name, trial, seed=seed))
        except DivergedError:
            trials.append(BaselineTrial(trial, float("nan")))
            continue
        values = _validation_metric(ranks, validation.split, selection)
        trials.append(BaselineTrial(trial, float(values.mean())))
        if number == 1:
            default = values
            continue
        gain = float(values.mean() - (default.mean() if len(default) else -np.inf))
        if gain > best_gain and (not len(default) or beats(values, default)):
            changed = {key: value for key, value in trial.items() if value != tried[0][key]}
            best = settings | changed
            best_gain = gain
    return best, tuple(trials)


def _best_epoch(
    name: str,
    validation: _SplitContext,
    settings: MethodSettings,
    seed: int,
    selection: str,
    on_stage: OnStage,
) -> _Fit:
    """The settings with the number of epochs that has the best validation."""
    best_epoch, best_values = 1, np.array([-np.inf])
    curve: list[tuple[int, float]] = []
    report = _report_epochs(on_stage, f"{name} on validation")

    def goes_on(epoch: int, scorer: Scorer) -> bool:
        nonlocal best_epoch, best_values
        values = _validation_metric(validation.rank(scorer), validation.split, selection)
        if values.mean() > best_values.mean():
            best_epoch, best_values = epoch, values
        curve.append((epoch, float(values.mean())))
        last = max(ALS_ROUNDS, patience_ends_at(peak_round(curve), PATIENCE_SHARE))
        report(epoch, last)
        return epoch < last

    on_stage(f"{name}: choosing the epochs of {_format_settings(settings)} on validation")
    most = CEILING * ALS_ROUNDS
    validation.fit(name, settings | {"epochs": most}, seed=seed, goes_on=goes_on)
    return _Fit(settings | {"epochs": best_epoch}, best_values)


def _validation_metric(ranks: Ranks, split: Split, selection: str) -> np.ndarray:
    """float64[N'], the metric of each user that has a validation item."""
    rivals = count_rivals(split, which="validation").full
    values = user_metric(ranks.full, selection, rivals=rivals)
    return values[~np.isnan(values)]


def _report_epochs(on_stage: OnStage, name: str) -> Callable[[int, int], None]:
    """Report an epoch when two seconds have passed since the last report."""
    last_report = time.perf_counter()

    def on_epoch(epoch: int, epochs: int) -> None:
        nonlocal last_report
        if (now := time.perf_counter()) - last_report >= _REPORT_SECONDS:
            last_report = now
            on_stage(f"{name}: epoch {epoch} of {epochs}")

    return on_epoch


def _format_settings(settings: MethodSettings) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in settings.items())
