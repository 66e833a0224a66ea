"""A frame in, an evaluated model out: `fr.fit`, `fr.evaluate`, `fr.recommend`, on top of runs."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.algorithms.own import adopt, label_of
from fedjax_rec.algorithms.registry import accepted
from fedjax_rec.client.population import population_of
from fedjax_rec.data.errors import did_you_mean
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.inputs import as_dataset
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.readers import from_frame
from fedjax_rec.data.splits import Split
from fedjax_rec.errors import ParameterError, check_arguments, suggest_names, wrong_type
from fedjax_rec.evaluation.evaluator import make_evaluator, score_stored_leaves
from fedjax_rec.evaluation.summary import result_metrics
from fedjax_rec.runs.build import point_of
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.lists import best_lists, rows_of, table_of
from fedjax_rec.runs.markup import escape
from fedjax_rec.runs.outcome import Outcome
from fedjax_rec.runs.recommender import Recommender, load
from fedjax_rec.runs.run_folder import save
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.history import History, Progress
from fedjax_rec.types import Algorithm, State

_OF_FRAMES = ("user", "item", "rating", "timestamp", "duplicates")  # settings that say how a frame is read
_OF_COMMANDS = ("out", "cache", "checkpoint_every", "checkpoint_minutes", "pause_exit_code")
MODEL = (
    "what fr.fit or fr.load returned, or a run folder; fr.save(folder, algorithm, state, split) writes one"
)
_SHOWN = ("recall@10", "hr@10", "ndcg@10")  # of full ranking, in a line


class Fitted(NamedTuple):
    """A trained model and what it reaches, as `fit` gives it."""

    outcome: Outcome
    model: Recommender  # what `top_k` and `fr.recommend` ask

    @property
    def scores(self) -> pd.DataFrame:
        """Metrics on test, a row a method: the model, the baselines, the best reachable score if known."""
        test = self.outcome.metrics["test"]
        kinds = list(self.outcome.baselines["popularity"])
        found = {label_of(self.outcome.settings.algorithm): test} | self.outcome.baselines
        rows = {
            name: {f"{kind}/{metric}": value for kind in kinds for metric, value in values[kind].items()}
            for name, values in found.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index")

    @property
    def history(self) -> History:
        """Of the training that selected the round."""
        return self.outcome.history

    def recommend(self, users: Any = None, k: int = 10) -> pd.DataFrame:
        """List items, as `fr.recommend`."""
        return recommend(self, users, k)

    def save(self, folder: str | Path) -> Path:
        """Write a run folder, for `fr.load`, `compare` and `report`.

        Args:
            folder: where; it may not exist, or be empty.

        Returns:
            the folder.
        """
        return save(self.outcome, folder)

    def __repr__(self) -> str:
        """In a line."""
        outcome = self.outcome
        name = label_of(outcome.settings.algorithm)
        spending = outcome.spending
        spent = "" if spending is None else f"; epsilon {spending.epsilon:.3f} at delta {spending.delta:.2e}"
        return (
            f"<{name} on {outcome.split.name}: round {outcome.history.selected_round} of "
            f"{len(outcome.history.rounds.loss)}; test {_line(outcome.metrics['test'])}; popularity "
            f"{_line(outcome.baselines['popularity'])}; {self.model.split.num_users:,} users, "
            f"{self.model.split.num_items:,} items{spent}>"
        )

    def _repr_html_(self) -> str:
        scores = self.scores
        shown = [f"full/{metric}" for metric in _SHOWN if f"full/{metric}" in scores]
        table = scores[shown].rename(columns=lambda name: f"{name.removeprefix('full/')}, full ranking")
        return f"<p>{escape(repr(self))}</p>{table.to_html(float_format='{:.4f}'.format)}"


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C, or a notebook's stop button, ended a fit; `result` is the model as far as it came, evaluated.

    It is an error, so that no loop over fits takes half a one for a whole one.

    Args:
        fitted: as `fit` would have returned it.
    """

    def __init__(self, fitted: Fitted) -> None:
        super().__init__(fitted)
        self.result = fitted

    def __str__(self) -> str:
        rounds = len(self.result.history.rounds.loss)
        return (
            f"interrupted after round {rounds}, and the model is kept and evaluated; in a notebook: "
            "import sys; fitted = sys.last_value.result"
        )


def fit(
    data: Dataset | Interactions | Frame | str,
    algorithm: Algorithm | Callable[..., Algorithm] | str = "fedmf",
    *,
    on_block: Callable[[Progress], Any] | None = None,
    on_stage: Callable[[str], Any] = str,
    **settings: Any,
) -> Fitted:
    """Divide data, train on them, select the round on validation, and measure the model on test.

    Args:
        data: a frame (pandas, polars, pyarrow, a dict of columns), a data set, or the name or file of one.
        algorithm: a name, a factory, or an algorithm that was made.
        on_block: called after each block of rounds, such as `fr.progress_bar()`.
        on_stage: called with a line of text when a new stage begins.
        settings: those of `fedjax-rec run` by name (`fr.runs.Settings`: rounds, seed, dim, splitter, baselines,
            ...), and those of the algorithm. Of a frame `user`, `item`, `rating` and `timestamp` name columns.

    Returns:
        the model with its scores. Without `rounds` it trains until validation stops improving, at most 8 minutes.

    Raises:
        ValueError: on data or settings that cannot work.
        FitInterrupted: if Ctrl-C ended the training; `result` has the model as far as it came.

    Example:
        >>> import fedjax_rec as fr
        >>> frame = {"user": [0, 0, 0, 1, 1, 1], "item": [0, 1, 2, 2, 1, 3], "timestamp": [1, 2, 3, 1, 2, 3]}
        >>> fitted = fit(frame, "fedmf", rounds=2, dim=2, num_candidates=1)
        >>> fitted.scores.index.tolist(), len(fitted.recommend(users=[0], k=1))
        (['fedmf', 'popularity'], 1)
    """
    dataset = None if isinstance(data, str) else _dataset_of(data, settings)
    name = data if isinstance(data, str) else dataset.name if dataset is not None else ""
    used = _settings_of(adopt(algorithm), settings)
    outcome = run_experiment(
        dataclasses.replace(used, dataset=name),
        on_block=on_block,
        on_stage=on_stage,
        dataset=dataset,
        keep_interrupted=True,
    )
    fitted = Fitted(outcome, _model_of(outcome))
    if outcome.history.stopped == "interrupted":
        raise FitInterrupted(fitted)
    return fitted


def _dataset_of(data: Any, settings: dict[str, Any]) -> Dataset:
    """The data set; of what the settings say of columns nothing is left in them."""
    columns = {name: settings.pop(name) for name in _OF_FRAMES if name in settings}
    if not columns:
        dataset = as_dataset(data, "fit", name="data")
        if dataset.parts is not None and "splitter" not in settings:
            raise ParameterError(
                "the data come divided; say whether their parts are kept apart, {splitter}='given', or taken "
                "together and divided anew, such as {splitter}='leave-one-out'"
            )
        return dataset
    if isinstance(data, Dataset | Interactions):
        raise ParameterError(
            "{" + next(iter(columns)) + "} says how a frame is read, and the data are read already"
        )
    return Dataset("frame", from_frame(data, **columns))


def _settings_of(algorithm: str, given: dict[str, Any]) -> Settings:
    """Settings of a run: those of the algorithm alone become options."""
    fields = [name for name in Settings.__dataclass_fields__ if name not in ("dataset", "algorithm")]
    for name in given:
        if name in _OF_COMMANDS:
            raise ParameterError(f"{name} is of commands, which write folders; use fitted.save(folder)")
        if name not in fields and name not in accepted(algorithm):
            raise ParameterError(
                f"fit has no setting {name!r}, nor has {algorithm}; "
                f"{did_you_mean(name, [*fields, *accepted(algorithm)])}see fr.runs.Settings"
            )
    own = [f"{name}={value}" for name, value in given.items() if name not in fields]
    named = {name: value for name, value in given.items() if name in fields}
    if own:
        named["options"] = ",".join([*filter(None, [named.get("options")]), *own])
    return Settings(algorithm=algorithm, **named)


def _model_of(outcome: Outcome) -> Recommender:
    """What `load` would read from the outcome's folder."""
    users = outcome.users
    point = (
        score_stored_leaves(outcome.algorithm)
        if outcome.settings.evaluation_point == "server"
        else point_of(outcome.settings, outcome.algorithm, population_of(users))
    )
    state = outcome.state._replace(private=outcome.scored_leaves)
    return Recommender(outcome.algorithm, state, users, outcome.known, point)


@suggest_names
def evaluate(algorithm: Algorithm, state: State, split: Split, *, which: str = "test") -> pd.DataFrame:
    """Measure a trained state by the full and the sampled ranking.

    Args:
        algorithm: that was trained.
        state: as `simulate` returns it.
        split: that it was trained on.
        which: "test" or "validation".

    Returns:
        a row a ranking ("full", "sampled99", ...), a column a metric.

    Raises:
        ValueError: if nothing can be ranked.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> state, _ = fr.simulate(fr.fedmf(dim=2), split, rounds=1)
        >>> evaluate(fr.fedmf(dim=2), state, split).index.tolist()
        ['full', 'sampled99']
    """
    check_arguments(evaluate, locals())
    ranks = make_evaluator(algorithm, split, which=which)(state)
    return pd.DataFrame.from_dict(result_metrics(ranks, split, which=which), orient="index")


@suggest_names
def recommend(
    model: Fitted | Recommender | str | Path, users: Any | Sequence[Any] = None, k: int = 10
) -> pd.DataFrame:
    """List the best items of users, without what they have met.

    Args:
        model: of `fit` or `fr.load`, or a run folder.
        users: an external id or several; by default all users.
        k: items for each, at most.

    Returns:
        columns user, rank, item, score.

    Raises:
        ArgumentError: if it is no model, such as a state, or k no whole number.
        ValueError: if a user is unknown, or k is below 1.
    """
    if not isinstance(model, Fitted | Recommender | str | Path):
        raise wrong_type("recommend", "model", model, MODEL)
    check_arguments(recommend, {"k": k})
    if isinstance(model, str | Path):
        model = load(model)
    read = model.model if isinstance(model, Fitted) else model
    if users is None:
        users = read.user_ids
    elif isinstance(users, str) or np.ndim(users) == 0:
        users = [users]
    return table_of(read, best_lists(read, rows_of(read, users), k))


def _line(metrics: dict[str, Any]) -> str:
    """The best known metrics of full ranking."""
    return ", ".join(f"{name} {metrics['full'][name]:.4f}" for name in _SHOWN if name in metrics["full"])
