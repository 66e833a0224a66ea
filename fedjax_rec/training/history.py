"""When a run stops, what it says on the way, and what is known of it afterwards."""

import warnings
from collections.abc import Sequence
from html import escape
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
import pandas as pd

from fedjax_rec.evaluation.convergence import patience_ends_at, peak_round
from fedjax_rec.evaluation.metrics import KS, METRIC_NAME, RankLike, metrics_from_ranks, user_metric
from fedjax_rec.evaluation.pair_metrics import PAIR_METRICS
from fedjax_rec.training.divergence import all_unsound
from fedjax_rec.types import Algorithm, Plan, RoundInfo, State

Metrics = dict[str, float]

_SHOWN = ("full/hr@10", "full/ndcg@10", "sampled99/hr@10", "sampled99/ndcg@10")  # in a notebook
_SHOWN_ROWS = 5


class Stop(NamedTuple):
    """When a run ends, besides its number of rounds.

    A run always stops as "diverged" when its loss is no longer finite or a thousand times that of the first round,
    or when three rounds in a row are lost (`fedjax_rec.training.divergence.diverged`).
    """

    metric: str = "ndcg@10"  # full-ranking validation metric, by a name that `user_metric` knows, but auc
    target: float | None = None  # stop once the metric reaches this
    patience: int | None = None  # stop after so many rounds without a better metric
    # stop after so much wall-clock time, looked at after a block, and every ten seconds or round of a longer one
    seconds: float | None = None
    patience_share: float | None = (
        None  # stop after so large a share of the rounds so far without a better mean over their last half
    )
    min_rounds: int = 0  # before which no patience ends

    def peak_of(self, evaluations: Sequence[tuple[int, Metrics]]) -> int:
        """The round up to which mean validation has risen.

        Args:
            evaluations: (round, validation metrics), in order.

        Returns:
            the round; 0 without evaluations.

        Example:
            >>> Stop().peak_of([(10, {"full/ndcg@10": 0.1}), (20, {"full/ndcg@10": 0.3})])
            20
        """
        return peak_round([(done, metrics[f"full/{self.metric}"]) for done, metrics in evaluations])

    def ends_at(self, best_round: int, peak: int | None = None) -> int | None:
        """The round at which patience ends, if no later one is better.

        Args:
            best_round: with the best validation so far, for `patience`.
            peak: up to which its mean has risen (`fedjax_rec.evaluation.convergence.peak_round`), for
                `patience_share`; by default `best_round`.

        Returns:
            the round; None without patience.

        Example:
            >>> Stop(patience_share=0.25, min_rounds=400).ends_at(120), Stop(patience_share=0.25).ends_at(900)
            (400, 1200)
        """
        ends = []
        if self.patience is not None:
            ends.append(best_round + self.patience)
        if self.patience_share is not None:
            ends.append(patience_ends_at(best_round if peak is None else peak, self.patience_share))
        return max(self.min_rounds, *ends) if ends else None

    def end_after(self, best_round: int, evaluations: Sequence[tuple[int, Metrics]]) -> int | None:
        """The round at which patience ends, by the validations so far.

        Args:
            best_round: with the best one; below 0 before the first.
            evaluations: (round, validation metrics), in order.

        Returns:
            the round; None without patience.

        Example:
            >>> Stop(patience=5).end_after(10, [(10, {"full/ndcg@10": 0.3})])
            15
        """
        return self.ends_at(max(best_round, 0), self.peak_of(evaluations))

    def forecast(
        self, done: int, rounds: int, end: int | None, block: int, elapsed: float, pace: float
    ) -> tuple[int, str]:
        """Where a run will end that goes on as it is, and by which rule.

        Args:
            done: rounds so far.
            rounds: at most.
            end: where patience does, as of `ends_at`; None without.
            block: rounds between two validations.
            elapsed: seconds so far.
            pace: seconds a round takes.

        Returns:
            the round at which it has no patience or no rounds left, and "patience" or "rounds"; "seconds" if the
            clock is expected to end it before.

        Example:
            >>> stop = Stop(patience_share=0.25, seconds=60.0)
            >>> stop.forecast(100, 1000, 125, 10, 20.0, 0.2), stop.forecast(100, 1000, 125, 10, 50.0, 0.5)
            ((130, 'patience'), (130, 'seconds'))
        """
        by_patience = end is not None and end <= rounds
        last = rounds if end is None else min(rounds, -(-max(end, done) // block) * block)
        if self.seconds is not None and elapsed + pace * (last - done) > self.seconds:
            return last, "seconds"
        return last, "patience" if by_patience else "rounds"

    def reached(self, best_round: int, evaluations: Sequence[tuple[int, Metrics]]) -> str:
        """Which rule of validation ends a run.

        Args:
            best_round: with the best validation so far.
            evaluations: (round, validation metrics), in order; the last one is of now.

        Returns:
            "target" or "patience"; empty where the run goes on.

        Example:
            >>> Stop(target=0.2).reached(10, [(10, {"full/ndcg@10": 0.3})])
            'target'
        """
        now, metrics = evaluations[-1]
        if self.target is not None and metrics[f"full/{self.metric}"] >= self.target:
            return "target"
        end = self.end_after(best_round, evaluations)
        return "patience" if end is not None and now >= end else ""


class PrivacyBudget(Protocol):
    """What a run asks before it goes on, such as `fedjax_rec.privacy.ledger.Ledger`."""

    def admit(self, algorithm: Algorithm, num_clients: int) -> None:
        """Raise an error if rounds of this algorithm on so many clients are not what is counted."""

    def would_exceed(self, rounds: int, run: str = "") -> bool:
        """Return whether so many rounds of a run, counted from its start, are more than is allowed."""

    def check(self, rounds: int, done: int = 0, run: str = "") -> None:
        """Raise an error that says how many are allowed, if so many rounds are too many; `done` were allowed."""

    def record(self, rounds: int, run: str = "") -> None:
        """Note that so many rounds of a run, counted from its start, were run; or refuse a run that may not be."""


def cutoffs_of(stop: Stop) -> list[int]:
    """The ranking cut-offs to measure: the usual ones and that of the stopping metric.

    Args:
        stop: the stopping rules.

    Returns:
        cut-offs, ascending.

    Raises:
        ValueError: if the metric is unknown.

    Example:
        >>> cutoffs_of(Stop(metric="hr@7"))
        [5, 7, 10, 20]
    """
    found = METRIC_NAME.fullmatch(stop.metric)
    if not found or stop.metric == "auc":
        kinds = ", ".join(f"{kind}@k" for kind in PAIR_METRICS)
        raise ValueError(f"stop metric {stop.metric!r} is unknown; use {kinds}, mrr or map")
    return sorted({*KS, *([int(found["k"])] if found["k"] else [])})


def measure(ranks: RankLike, stop: Stop) -> Metrics:
    """The usual metrics, and that which a run may stop by.

    Args:
        ranks: of one held-out item per user, or of several.
        stop: the stopping rules.

    Returns:
        means over the users that have a positive, by name.

    Example:
        >>> measure(np.array([0.0, 2.0]), Stop(metric="recall@1"))["recall@1"]
        0.5
    """
    values = metrics_from_ranks(ranks, cutoffs_of(stop))
    if stop.metric not in values:
        values[stop.metric] = float(np.nanmean(user_metric(ranks, stop.metric)))
    return values


class Progress(NamedTuple):
    """What a progress callback gets after each block, and after pieces of a block that takes long."""

    round: int
    rounds: int  # that will be reached, if no validation is better than the best so far
    clients: int  # trained since the last report
    loss: float  # of the last round
    validation: Metrics | None  # None between two validations, too
    clients_per_second: float
    stopped: str  # empty while the run goes on, then as `History.stopped`
    # which will end it then: "rounds", "patience", or at its pace before that "seconds"; then as `stopped`
    rule: str = "rounds"
    server_rows: str = "all"  # which item rows rounds sum and step: "all", or "touched" ones


class History(NamedTuple):
    """What happened, round by round."""

    rounds: RoundInfo  # numpy leaves [T], one entry a round
    evaluations: tuple[tuple[int, Metrics], ...]  # (round, validation metrics; full/..., sampled99/...)
    selected_round: int  # the round whose state was returned
    # "rounds", "target", "patience", "seconds", "diverged", "interrupted", or "repeats": others would be the same
    stopped: str
    seconds: float  # wall clock, everything included
    train_seconds: float  # in compiled blocks of rounds
    compile_seconds: float
    num_compilations: int  # programs of the blocks of rounds; 1, unless jax compiled again on the way
    plan: Plan  # the engine's choices: lanes, devices, ... and the memory they need
    first_round: int = 1  # more than 1 where the run was resumed

    def __repr__(self) -> str:
        """In a line."""
        done = self.first_round + len(self.rounds.loss) - 1
        which = f"rounds {self.first_round} to {done}" if len(self.rounds.loss) else "no rounds"
        loss = f", loss {self.rounds.loss[-1]:.4f}" if len(self.rounds.loss) else ""
        return (
            f"<History: {which}, selected {self.selected_round}, stopped by "
            f"{self.stopped!r}{loss}, {len(self.evaluations)} validations, {self.seconds:.1f} s>"
        )

    def _repr_html_(self) -> str:
        """The line, and the last validations."""
        last = [{"round": done} | metrics for done, metrics in self.evaluations[-_SHOWN_ROWS:]]
        table = pd.DataFrame(last)
        shown = [name for name in ("round", *_SHOWN) if name in table]
        rows = table[shown].to_html(index=False, float_format="{:.4f}".format) if last else ""
        return f"<p>{escape(repr(self))}</p>{rows}"

    def frame(self) -> pd.DataFrame:
        """A row a round, as `fedjax_rec.training.frame` gives it."""
        return frame(self)

    def plot(self, *, metrics: Sequence[str] = ("ndcg@10",), loss: bool = True, **options: Any) -> Any:
        """Draw loss and validation against rounds.

        Args:
            metrics: that validation measures; where nothing was validated they are left out.
            loss: whether training loss has a panel, too.
            options: others of `fr.plots.learning_curves`.

        Returns:
            the figure, of matplotlib.
        """
        plots = import_module("fedjax_rec").plots  # of a higher floor, to which this is a short way
        return plots.learning_curves(self, metrics=metrics if self.evaluations else (), loss=loss, **options)

    @property
    def still_improving(self) -> bool:
        """Whether a ceiling cut a run off whose last validation was the best one."""
        cut_off = self.stopped in ("rounds", "seconds", "interrupted")
        return cut_off and len(self.evaluations) > 1 and self.evaluations[-1][0] == self.selected_round

    @property
    def clients_per_second(self) -> float:
        """Clients trained per second spent in compiled blocks of rounds."""
        return float(np.sum(self.rounds.clients)) / max(self.train_seconds, 1e-9)

    @property
    def lane_efficiency(self) -> float:
        """Local batches that the clients needed / (lanes x loop steps)."""
        return float(np.sum(self.rounds.batches)) / max(float(np.sum(self.rounds.lane_steps)), 1.0)


class DivergedWarning(UserWarning):
    """A run's numbers were no longer finite or far too large, mostly before it had run its rounds."""


def warn_if_diverged(history: History) -> None:
    """Say so: its losses and metrics look like those of a model that learned nothing.

    Args:
        history: of a run; one in which no client was ever sound warns however it ended.
    """
    rounds = history.rounds
    unsound = all_unsound(rounds)
    learned = bool(np.any(rounds.clients > 0))
    if history.stopped != "diverged" and (learned or not unsound.any()):
        return
    done = len(rounds.loss) + history.first_round - 1
    found = "the best validated one before" if history.evaluations else "of no use"
    text = (
        f"training diverged by round {done}; the state is {found}, and history.stopped says 'diverged'; lower the "
        "learning rate, or regularise more"
    )
    if unsound[-1]:
        advice = "lower the learning rate, or look" if learned else "nothing was learned; look"
        text = (
            f"all {int(rounds.unsound[-1]):,} clients of the cohort returned numbers that are not finite, in "
            f"round {done} and in {unsound.sum():,} of {len(unsound):,} rounds; {advice} for what is not "
            "finite in the loss, the model's start or the data"
        )
    warnings.warn(text, DivergedWarning, stacklevel=3)


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, ended a run after its block of rounds; `result` has what was done.

    It is an error, so that no loop over runs takes half a run for a whole one.

    Args:
        state: as `simulate` would have returned it.
        history: its `stopped` is "interrupted", unless the run had just ended.

    Example:
        >>> try:
        ...     raise Interrupted("the state", "the history")
        ... except KeyboardInterrupt as stop:
        ...     state, history = stop.result
        >>> state
        'the state'
    """

    def __init__(self, state: State, history: History) -> None:
        super().__init__(state, history)
        self.result = (state, history)

    def __str__(self) -> str:
        history = self.result[1]
        done = len(history.rounds.loss) + history.first_round - 1
        return (
            f"interrupted after round {done}, and what was done is kept; in a notebook: "
            "import sys; state, history = sys.last_value.result"
        )


_COLUMNS = {"unsound": "unsound_clients", "skipped": "skipped_rounds", "missing": "missing_clients"}


def frame(history: History) -> pd.DataFrame:
    """A history as a data frame, a row a round; validation columns are NaN between evaluations.

    Columns that add up to a key of a run's `result.json` have its name. Without noise there is no column "signal".

    Args:
        history: as `simulate` returns it.

    Returns:
        columns round, loss, clients, ..., validation/full/ndcg@10, ...

    Example:
        >>> import fedjax_rec as fr
        >>> data = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
        >>> _, history = fr.simulate(fr.fedmf(dim=2, cohort=2), fr.Population.from_frame(data), rounds=4)
        >>> frame(history)["round"].tolist()
        [1, 2, 3, 4]
    """
    table = pd.DataFrame({name: np.asarray(values) for name, values in history.rounds._asdict().items()})
    table = table.rename(columns=_COLUMNS)
    if np.isinf(table["signal"]).all():
        table = table.drop(columns="signal")
    table.insert(0, "round", np.arange(len(table)) + history.first_round)
    if not history.evaluations:
        return table
    rows = [{"round": done} | metrics for done, metrics in history.evaluations]
    scores = pd.DataFrame(rows).set_index("round")
    return table.join(scores.add_prefix("validation/"), on="round")
