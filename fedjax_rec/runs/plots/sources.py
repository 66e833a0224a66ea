"""What figures are drawn of: a run's history, numbers and users, from wherever it is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from fedjax_rec.algorithms.own import label_of
from fedjax_rec.errors import wrong_type
from fedjax_rec.evaluation.protocol import protocol_id
from fedjax_rec.runs.compare import StoredRun, read_run, user_values
from fedjax_rec.runs.experiment import Outcome
from fedjax_rec.runs.folders import read_json
from fedjax_rec.training.history import History, frame

TAKEN = "a run folder, what fr.fit or run_experiment returned, or a History"


class RunRecord(NamedTuple):
    """What is known of one run; of a bare history no more than that."""

    label: str
    history: pd.DataFrame  # a row a round, as `frame` and `history.csv` have it
    result: dict[str, Any]  # as `result.json` holds it
    stored: StoredRun | None = None  # settings, protocol and users

    def users(self, metric: str, ranking: str) -> np.ndarray:
        """A metric of each user that has a test item, float64[N].

        Args:
            metric: as of `compare_runs`.
            ranking: "full", or "sampled99".

        Raises:
            ValueError: if the run has no users, or the metric or ranking is unknown.
        """
        if self.stored is None:
            raise ValueError(
                f"{self.label} is a history, which says nothing of single users; give the run's folder"
            )
        values = user_values(self.stored, metric, ranking)
        return values[~np.isnan(values)]


def record_of(run: Any, label: str | None = None) -> RunRecord:
    """Read what figures need of a run.

    Args:
        run: a run folder, what `fr.fit` or `run_experiment` returned, a `History`, or a record.
        label: what it is called; by default its folder, or its algorithm.

    Returns:
        the record.

    Raises:
        ValueError: if it is nothing of that kind, or a folder that is not sound.

    Example:
        >>> record_of("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: no such directory
    """
    run = getattr(run, "outcome", run)
    if isinstance(run, RunRecord):
        record = run
    elif isinstance(run, Outcome):
        record = _of_outcome(run)
    elif isinstance(run, History):
        record = RunRecord("run", frame(run), {"selected_round": run.selected_round})
    elif isinstance(run, str | Path):
        record = _of_folder(Path(run))
    else:
        raise wrong_type("record_of", "run", run, TAKEN)
    return record if label is None else record._replace(label=label)


def records_of(runs: Sequence[Any], labels: Sequence[str] | None) -> list[RunRecord]:
    """Read several runs, under names that tell them apart.

    Args:
        runs: each as of `record_of`.
        labels: one for each, or None.

    Returns:
        the records.

    Raises:
        ValueError: if there is none, or there are not as many labels as runs.

    Example:
        >>> records_of([], None)
        Traceback (most recent call last):
        ValueError: nothing to draw; give one run or several
    """
    if not runs:
        raise ValueError("nothing to draw; give one run or several")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"{len(labels)} labels for {len(runs)} runs; give one for each")
    records = [record_of(run, None if labels is None else labels[at]) for at, run in enumerate(runs)]
    names = [record.label for record in records]
    return [
        record._replace(label=f"{record.label} ({names[: index + 1].count(record.label)})")
        if names.count(record.label) > 1
        else record
        for index, record in enumerate(records)
    ]


def _of_outcome(outcome: Outcome) -> RunRecord:
    from fedjax_rec.runs.run_folder import per_user_arrays, result_of

    label = label_of(outcome.settings.algorithm)
    identity = {"protocol_id": protocol_id(outcome.protocol)} | outcome.protocol.to_json()
    stored = StoredRun(Path(label), {"algorithm": label}, identity, per_user_arrays(outcome))
    return RunRecord(label, frame(outcome.history), result_of(outcome), stored)


def _of_folder(folder: Path) -> RunRecord:
    stored = read_run(folder)
    try:
        result = read_json(folder / "result.json")
        if not isinstance(result.get("metrics"), dict):
            raise ValueError("result.json has no metrics; it is no folder of a federated run")
        history = pd.read_csv(folder / "history.csv")
        if "round" not in history or not len(history):
            raise ValueError("history.csv has no rounds")
    except (ValueError, OSError) as problem:
        raise ValueError(f"{folder} is not a sound run folder: {problem}") from problem
    name = folder.resolve().name
    algorithm = label_of(str(result.get("algorithm", "")))
    return RunRecord(name if algorithm in name else f"{name} ({algorithm})", history, result, stored)
