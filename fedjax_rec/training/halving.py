"""Successive halving: many settings for few rounds, the best of them for more, the last few for all.

Jamieson & Talwalkar 2016, "Non-stochastic best arm identification and hyperparameter optimization"
(arXiv:1502.07943), algorithm 1, with a third kept at each rung (Li et al. 2018, "Hyperband", arXiv:1603.06560,
eta = 3). A rung is a `sweep`, so that its trials share compiled programs; a trial that is kept starts anew, and
its run is as long as the rung. N settings and T rounds make K rungs of about N T / 3^(K - 1) rounds each.
The first settings are the default ones: they go on in every rung, and others replace them if they win by two
standard errors. A fast rate is ahead after few rounds and behind after many: where a run may be longer than the
last rung and one of the two was still improving there, both are compared again for as many rounds as it takes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.convergence import PATIENCE_SHARE, patience_ends_at, peak_round
from fedjax_rec.evaluation.statistics import beats
from fedjax_rec.training.search_spaces import TrialSettings
from fedjax_rec.training.sweep import ERROR_METRICS, Sweep, Trial, best_trial, sweep
from fedjax_rec.training.trials import Factory

KEPT = 3  # one of so many goes on


class Halving(NamedTuple):
    """All rungs, the shortest first."""

    rungs: tuple[Sweep, ...]
    best: Trial  # of the last rung, whose trials alone had all rounds; the default, or what beats it clearly

    @property
    def num_settings(self) -> int:
        """How many settings were tried."""
        return len(self.rungs[0].trials)


def rungs_of(count: int, rounds: int, eval_every: int) -> list[tuple[int, int]]:
    """How many settings each rung has, and for how many rounds.

    Args:
        count: settings to try.
        rounds: of the last rung.
        eval_every: rounds between validations, of which a rung has at least two, if a run has.

    Returns:
        pairs of settings and rounds.

    Example:
        >>> rungs_of(20, 400, 20)
        [(20, 40), (6, 120), (2, 400)]
        >>> rungs_of(5, 1, 1)
        [(5, 1)]
    """
    counts = [count]
    lengths = [rounds]
    while counts[-1] >= KEPT and lengths[-1] >= 2 * KEPT * eval_every:
        counts.append(counts[-1] // KEPT)
        lengths.append(lengths[-1] // KEPT // eval_every * eval_every)
    return list(zip(counts, reversed(lengths), strict=True))


def halve(
    factory: Factory,
    split: Split,
    settings: Sequence[Mapping[str, Any]],
    *,
    rounds: int,
    eval_every: int,
    seed: int = 0,
    metric: str = "ndcg@10",
    max_rounds: int = 0,
    max_seconds: float = math.inf,
    on_rung: Callable[[int, int, int, int], Any] | None = None,
    on_block: Callable[[int, int], Any] | None = None,
    on_trial: Callable[[Trial], Any] | None = None,
) -> Halving:
    """Find the best of many settings on validation.

    Args:
        factory: settings -> algorithm.
        split: its validation items are ranked, over the full catalogue.
        settings: the trials, that of the default settings first: it goes on in every rung.
        rounds: T, of the last rung; 1 where all rounds of an algorithm are the same.
        eval_every: rounds between validations.
        seed: of all runs.
        metric: as in `sweep`.
        max_rounds: of the run that is to come, where it ends when it has converged: what has won against the
            default settings is then compared with them again, for as many rounds as both take to converge.
            0 where a run has T rounds.
        max_seconds: of that run, a ceiling of the same kind.
        on_rung: called before each rung with its number, from 1, the number of rungs, settings and rounds.
        on_block: as in `sweep`, of a rung.
        on_trial: as in `sweep`, in every rung.

    Returns:
        what was tried.

    Raises:
        ValueError: as `sweep`.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(60, 90))
        >>> trials = [{"dim": 4, "learning_rate": rate} for rate in (0.05, 1e30, 0.02)]
        >>> found = halve(fr.fedmf, split, trials, rounds=6, eval_every=1)
        >>> [len(rung.trials) for rung in found.rungs], found.best.settings["learning_rate"] < 1
        ([3, 2], True)
    """
    plan = rungs_of(len(settings), rounds, eval_every)
    sign = -1.0 if metric in ERROR_METRICS else 1.0
    going = [dict(each) for each in settings]
    rungs: list[Sweep] = []

    def try_for(length: int, planned: int) -> None:
        if on_rung is not None:
            on_rung(len(rungs) + 1, planned, len(going), length)
        rungs.append(
            sweep(
                factory,
                split,
                going,
                rounds=length,
                eval_every=eval_every,
                seeds=(seed,),
                metric=metric,
                on_block=on_block,
                on_trial=on_trial,
            )
        )

    # Many settings for few rounds, few for all.
    for count, length in plan:
        if rungs:
            going = _kept(rungs[-1].trials, settings[0], sign, count)
        try_for(length, len(plan))

    # What has won has to win at the length of a run, too.
    winner = _winner(rungs[-1].trials, settings[0], sign)
    while more := _more_rounds(rungs[-1], winner, settings[0], sign, eval_every, max_rounds, max_seconds):
        going = [dict(settings[0]), winner.settings]
        try_for(more, len(rungs) + 1)
        winner = _winner(rungs[-1].trials, settings[0], sign)
    return Halving(tuple(rungs), winner)


def _more_rounds(
    rung: Sweep,
    winner: Trial,
    default: Mapping[str, Any],
    sign: float,
    eval_every: int,
    max_rounds: int,
    max_seconds: float,
) -> int:
    """For how many rounds the winner and the default are to be compared again; 0 if that is decided.

    It is where neither was still improving, by the patience that runs have, or what a run may have in all is not
    half as much again: that would say nothing else.
    """
    usual = _usual(rung.trials, default)
    if usual is None or winner is usual or not max_rounds:
        return 0
    curves = [[(number, sign * value) for number, value in trial.curve] for trial in (usual, winner)]
    if max(patience_ends_at(peak_round(curve), PATIENCE_SHARE) for curve in curves) <= rung.rounds:
        return 0
    affordable = max_seconds * len(rung.trials) * rung.rounds / max(rung.seconds, 1e-9)
    more = int(min(KEPT * rung.rounds, max_rounds, affordable)) // eval_every * eval_every
    return more if 2 * more >= 3 * rung.rounds else 0


def _kept(
    trials: Sequence[Trial], default: Mapping[str, Any], sign: float, count: int
) -> list[TrialSettings]:
    """The settings that go on: the default ones, unless they diverged, and the best of the others."""
    going = sorted(
        ranked(trials, sign), key=lambda trial: trial.settings != default
    )  # stable: else by their metric
    most = (
        max(count, 2) if going[:1] and going[0].settings == default else count
    )  # alone it would have no rival
    return [trial.settings for trial in going[:most]]


def _winner(trials: Sequence[Trial], default: Mapping[str, Any], sign: float) -> Trial:
    """The best of those that beat the default by two standard errors; the default, where none does.

    So are the settings of central methods chosen. What diverged is beaten by whatever did not.
    """
    usual = _usual(trials, default)
    if usual is None:
        return best_trial(trials, sign)
    better = [
        trial for trial in ranked(trials, sign) if beats(sign * _by_user(trial), sign * _by_user(usual))
    ]
    return better[0] if better else usual


def _usual(trials: Sequence[Trial], default: Mapping[str, Any]) -> Trial | None:
    """The default settings' trial, if it was measured."""
    return next((trial for trial in trials if trial.settings == default and trial.round), None)


def _by_user(trial: Trial) -> np.ndarray:
    assert trial.by_user is not None  # noqa: S101 - of every trial that was measured; this tells the type checker
    return trial.by_user


def ranked(trials: Sequence[Trial], sign: float) -> list[Trial]:
    """Put the best trials first, and leave out what has diverged.

    Args:
        trials: of a rung.
        sign: -1 where less is better.

    Returns:
        those that reached a metric.

    Example:
        >>> [t.round for t in ranked([Trial({}, 0.1, 1, 0.0, ()), Trial({}, 0.3, 2, 0.0, ())], 1.0)]
        [2, 1]
    """
    known = [trial for trial in trials if trial.round and not math.isnan(trial.validation)]
    return sorted(known, key=lambda trial: -sign * trial.validation)
