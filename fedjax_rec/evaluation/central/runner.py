"""Run the central baselines on a split: settings by validation, fit, rank, measure.

**How settings are chosen.** Each method has default settings, which depend on nothing but the size of the training
data, and a few neighbours of them. All are fit on the training events and ranked on the validation items,
over the full catalogue. A neighbour replaces the default if its metric is higher by more than two standard
errors of the paired difference over users; of several the highest does. Without this margin the choice would
follow noise on small data (with the 943 users of MovieLens 100K a standard error is .003 to .006) and the
table would compare luck. The test items are never looked at.

With `refit` the chosen settings are then fit on train + validation.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.splits import Split, merge_validation
from fedjax_rec.evaluation.central.methods import METHODS, NAMES, Settings, fit, settings_of, trials_of
from fedjax_rec.evaluation.central.scorers import DivergedError, Scorer, check_dense, count_pairs
from fedjax_rec.evaluation.measure import Metrics, measure
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.ranking import Ranks, count_rivals, make_ranker

_MARGIN = 2.0  # standard errors by which a neighbour must beat the default settings
_SILENCE = 2.0  # seconds
Tell = Callable[[str], Any]


class Trial(NamedTuple):
    """Settings that were tried on validation."""

    settings: Settings
    validation: float  # mean of the selection metric, full ranking; nan where training diverged


class Baseline(NamedTuple):
    """What one central method reached."""

    settings: Settings  # of the tested model
    trials: tuple[Trial, ...]  # the default first; none where nothing was tried
    ranks: Ranks  # of the test items
    metrics: dict[str, Metrics]  # {"full": {...}, "sampled99": {...}}
    seconds: float  # trials, fit and ranking


def run_baselines(
    split: Split,
    *,
    names: Sequence[str] = NAMES,
    seed: int = 0,
    refit: bool = False,
    settings: Mapping[str, Mapping[str, float]] | None = None,
    selection: str = "ndcg@10",
    on_stage: Tell = str,
) -> dict[str, Baseline]:
    """Choose settings on validation, fit and measure each method.

    Args:
        split: train, validation and test items. Without validation items the default settings are used.
        names: of the methods, of `METHODS`.
        seed: of all that is random in a method.
        refit: whether the tested models are fit on train + validation.
        settings: by method, some settings to use as they are; such a method is not tried on validation.
        selection: the metric of the full validation ranking that settings are chosen by, such as "ndcg@10".
        on_stage: called with a line of text when something new begins that may take seconds.

    Returns:
        the baselines by name, in the order of the names.

    Raises:
        ValueError: on an unknown method or setting, before any fit; on a catalogue too large for a method.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> found = run_baselines(tiny_split(), names=["popularity", "ease"], refit=True)
        >>> found["ease"].settings, sorted(found["ease"].metrics)
        ({'regularisation': 3.0}, ['full', 'sampled2'])
    """
    given = settings or {}
    _check(split, names, given)
    Protocol(selection=selection)  # refuses what is no metric
    final = merge_validation(split) if refit else split
    bench = _Bench(split, "validation"), _Bench(final, "test")
    return {name: _run(name, *bench, seed, given.get(name, {}), selection, on_stage) for name in names}


def try_baseline(
    split: Split,
    name: str,
    trials: Sequence[Mapping[str, float]],
    *,
    seed: int = 0,
    selection: str = "ndcg@10",
    on_trial: Callable[[int, int], Any] | None = None,
) -> tuple[Trial, ...]:
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
        >>> found = try_baseline(tiny_split(), "ease", [{}, {"regularisation": 50.0}])
        >>> [trial.settings for trial in found]
        [{'regularisation': 3.0}, {'regularisation': 50.0}]
    """
    _check(split, [name], {})
    if not (split.validation >= 0).any():
        raise ValueError(
            "no user has a validation item to try settings on; give a split that holds some back"
        )
    Protocol(selection=selection)  # refuses what is no metric
    settings = [settings_of(name, split, changes) for changes in trials]
    bench, found = _Bench(split, "validation"), []
    for number, trial in enumerate(settings, start=1):
        try:
            value = float(_per_user(bench.rank(bench.fit(name, trial, seed=seed)), split, selection).mean())
        except DivergedError:
            value = float("nan")
        found.append(Trial(trial, value))
        if on_trial is not None:
            on_trial(number, len(settings))
    return tuple(found)


class _Bench:
    """A split and what the methods share on it, made when first asked for."""

    def __init__(self, split: Split, which: str) -> None:
        self.split = split
        self.pairs = cache(lambda: count_pairs(split))
        self.ranker = cache(lambda score_block: make_ranker(split, score_block, which=which))

    def fit(self, name: str, settings: Settings, **supplied: Any) -> Scorer:
        if METHODS[name].dense:
            supplied["pairs"] = self.pairs()
        return fit(name, self.split, settings, **supplied)

    def rank(self, scorer: Scorer) -> Ranks:
        return self.ranker(scorer.score_block)(scorer.params)


def _check(split: Split, names: Sequence[str], given: Mapping[str, Mapping[str, float]]) -> None:
    for name in (*names, *given):
        if name not in METHODS:
            raise ValueError(f"unknown baseline {name!r}; known: {', '.join(NAMES)}")
    if any(METHODS[name].dense for name in names):
        check_dense(split)
    for name, changes in given.items():
        if name not in names:
            raise ValueError(
                f"settings for {name!r}, which is not among the baselines to run: {', '.join(names)}"
            )
        settings_of(name, split, changes)


def _run(
    name: str,
    tried_on: _Bench,
    tested_on: _Bench,
    seed: int,
    changes: Mapping[str, float],
    selection: str,
    on_stage: Tell,
) -> Baseline:
    began = time.perf_counter()
    settings = settings_of(name, tried_on.split, changes)
    trials: tuple[Trial, ...] = ()
    if not changes and METHODS[name].trials and (tried_on.split.validation >= 0).any():
        settings, trials = _choose(name, tried_on, settings, seed, selection, on_stage)
    on_stage(f"{name}: fitting {_text(settings)}".rstrip())
    scorer = tested_on.fit(name, settings, seed=seed, on_epoch=_tell_epochs(on_stage, name))
    on_stage(f"{name}: ranking every test item")
    ranks = tested_on.rank(scorer)
    metrics = measure(ranks, tested_on.split)
    return Baseline(settings, trials, ranks, metrics, time.perf_counter() - began)


def _choose(
    name: str, bench: _Bench, settings: Settings, seed: int, selection: str, on_stage: Tell
) -> tuple[Settings, tuple[Trial, ...]]:
    """The settings to use, and all that were tried."""
    tried = trials_of(name, settings)
    trials, best, margin, default = [], settings, 0.0, np.zeros(0)
    for number, trial in enumerate(tried, start=1):
        on_stage(f"{name}: trying {_text(trial)} on validation ({number} of {len(tried)})")
        users = _per_user(bench.rank(bench.fit(name, trial, seed=seed)), bench.split, selection)
        default = users if number == 1 else default
        trials.append(Trial(trial, float(users.mean())))
        gain = users - default
        error = float(gain.std(ddof=1) / len(gain) ** 0.5) if len(gain) > 1 else np.inf
        if number > 1 and gain.mean() > max(margin, _MARGIN * error):
            changed = {key: value for key, value in trial.items() if value != tried[0][key]}
            best, margin = settings | changed, float(gain.mean())
    return best, tuple(trials)


def _per_user(ranks: Ranks, split: Split, selection: str) -> np.ndarray:
    """float64[N'], the metric of each user that has a validation item."""
    cutoffs = [int(selection.split("@")[1])] if "@" in selection else []
    rivals = count_rivals(split, which="validation").full
    values = user_metrics(ranks.full, cutoffs, rivals=rivals)[selection]
    return values[~np.isnan(values)]


def _tell_epochs(on_stage: Tell, name: str) -> Callable[[int, int], None]:
    """Tell of an epoch when two seconds have passed in silence."""
    told = time.perf_counter()

    def on_epoch(epoch: int, epochs: int) -> None:
        nonlocal told
        if (now := time.perf_counter()) - told >= _SILENCE:
            told = now
            on_stage(f"{name}: epoch {epoch} of {epochs}")

    return on_epoch


def _text(settings: Settings) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in settings.items())
