"""What figures are drawn of: a run's history, numbers and users, from wherever it is."""

import dataclasses
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
from fedjax_rec.runs.seeds import group_by_seeds
from fedjax_rec.training.history import History, frame

EVALUATED = "run folders, or what fr.fit or run_experiment returned"
TAKEN = "a run folder, what fr.fit or run_experiment returned, or a History"


class RunRecord(NamedTuple):
    """What is known of one run; of a bare history no more than that."""

    label: str
    history: pd.DataFrame  # a row a round, as `frame` and `history.csv` have it
    result: dict[str, Any]  # as `result.json` holds it
    stored: StoredRun | None = None  # settings, protocol and users
    seeds: tuple["RunRecord", ...] = ()  # where it stands for several: their records, and all above are means

    def users(self, metric: str, ranking: str) -> np.ndarray:
        """A metric of each user that has a test item, float64[N].

        Args:
            metric: as of `compare_runs`.
            ranking: "full", or "sampled99".

        Raises:
            ValueError: if the run has no users, or the metric or ranking is unknown.
        """
        if self.seeds:
            return np.mean([seed.users(metric, ranking) for seed in self.seeds], axis=0)
        if self.stored is None:
            raise ValueError(
                f"{self.label} is a History, which says nothing of single users; client_distribution takes "
                f"{EVALUATED}"
            )
        values = user_values(self.stored, metric, ranking)
        return values[~np.isnan(values)]


def record_of(run: Any, label: str | None = None, *, taker: str = "record_of") -> RunRecord:
    """Read what figures need of a run.

    Args:
        run: a run folder, what `fr.fit` or `run_experiment` returned, a `History`, or a record.
        label: what it is called; by default its folder, or its algorithm.
        taker: the function that was given it, as errors call it.

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
        raise wrong_type(taker, "run", run, TAKEN)
    return record if label is None else record._replace(label=label)


def records_of(
    runs: Sequence[Any],
    labels: Sequence[str] | None,
    *,
    group_seeds: bool = False,
    taker: str = "records_of",
) -> list[RunRecord]:
    """Read several runs, under names that tell them apart.

    Args:
        runs: each as of `record_of`; or one list of such.
        labels: one for each, or None.
        group_seeds: whether runs that differ in their seed alone become one record, as of `merge_seeds`.
        taker: the function that was given them, as errors call it.

    Returns:
        the records.

    Raises:
        ValueError: if there is none, or there are not as many labels as runs.

    Example:
        >>> records_of([], None)
        Traceback (most recent call last):
        ValueError: nothing to draw; give one run or several
    """
    if len(runs) == 1 and type(runs[0]) in (list, tuple):  # named tuples are runs
        runs = runs[0]
    if not runs:
        raise ValueError("nothing to draw; give one run or several")
    if labels is not None and len(labels) != len(runs):
        raise ValueError(f"{len(labels)} labels for {len(runs)} runs; give one for each")
    names = [None] * len(runs) if labels is None else labels
    records = [record_of(run, name, taker=taker) for run, name in zip(runs, names, strict=True)]
    if group_seeds:
        records = merge_seeds(records)
    names = [record.label for record in records]
    return [
        record._replace(label=f"{record.label} ({names[: index + 1].count(record.label)})")
        if names.count(record.label) > 1
        else record
        for index, record in enumerate(records)
    ]


def merge_seeds(records: Sequence[RunRecord]) -> list[RunRecord]:
    """Put records together whose runs differ in their seed alone.

    Args:
        records: of runs; a bare history, whose settings are not known, stands alone.

    Returns:
        the records in the order of their first runs. One of several seeds has their means: at the rounds that all
        of them have, of the numbers of their results, of each user; `seeds` has them one by one.

    Example:
        >>> merge_seeds([])
        []
    """
    by_protocol: dict[Any, list[StoredRun]] = {}
    for record in records:
        if record.stored is not None:
            by_protocol.setdefault(record.result.get("protocol_id"), []).append(record.stored)
    groups = [group for stored in by_protocol.values() for group in group_by_seeds(stored)]
    group_of = {id(run): number for number, group in enumerate(groups) for run in group}
    merged: dict[Any, list[RunRecord]] = {}
    for record in records:
        merged.setdefault(group_of.get(id(record.stored), id(record)), []).append(record)
    return [members[0] if len(members) == 1 else _merge(members) for members in merged.values()]


def _merge(members: Sequence[RunRecord]) -> RunRecord:
    first = members[0]
    stacked = pd.concat([record.history.select_dtypes("number") for record in members]).groupby("round")
    history = stacked.mean()[stacked.size() == len(members)]
    complete = stacked.count().loc[history.index] == len(
        members
    )  # a round that only some validated has no mean
    return first._replace(
        label=f"{first.label}, {len(members)} seeds",
        history=history.where(complete).reset_index(),
        result=_mean([record.result for record in members]),
        seeds=tuple(members),
    )


def _mean(values: Sequence[Any]) -> Any:
    """Means of the numbers of results, whole ones of whole ones; what is no number is the first's."""
    first = values[0]
    if isinstance(first, dict):
        common = [name for name in first if all(isinstance(each, dict) and name in each for each in values)]
        return {name: _mean([each[name] for each in values]) for name in common}
    if any(isinstance(each, bool) or not isinstance(each, int | float) for each in values):
        return first
    mean = float(np.mean(values))
    return round(mean) if all(isinstance(each, int) for each in values) else mean


def _of_outcome(outcome: Outcome) -> RunRecord:
    from fedjax_rec.runs.run_folder import per_user_arrays, result_of

    label = label_of(outcome.settings.algorithm)
    identity = {"protocol_id": protocol_id(outcome.protocol)} | outcome.protocol.to_json()
    settings = dataclasses.asdict(outcome.settings) | {"algorithm": label}
    stored = StoredRun(Path(label), settings, identity, per_user_arrays(outcome))
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


def bytes_until(record: RunRecord) -> np.ndarray:
    """What all clients together had sent and received by the end of each round.

    Args:
        record: of a run.

    Returns:
        float64[T], bytes.

    Raises:
        ValueError: if the run knows no bytes.
    """
    up, down = (record.result.get(f"bytes_{way}_per_client") for way in ("up", "down"))
    if up is None or down is None:
        raise ValueError(
            f"{record.label} is a History, which says nothing of bytes per client; communication takes {EVALUATED}"
            if record.stored is None
            else f"{record.label} has no bytes per client in its result.json; train it again with this version"
        )
    return np.cumsum(record.history["clients"].to_numpy(float)) * (up + down)


def groups_of(record: RunRecord, metric: str) -> dict[str, float]:
    """Means of the groups of a run.

    Args:
        record: of the run.
        metric: its name.

    Returns:
        by name of the group; empty where there are none.
    """
    found = record.result.get("metrics", {}).get("test", {}).get("groups", {})
    values = {}
    for kind, members in found.items():
        for label, numbers in members.items():
            if numbers.get(metric) is not None:
                values[name_of_group(kind, label, numbers)] = numbers[metric]
    return values


def metrics_of_groups(records: Sequence[RunRecord]) -> list[str]:
    """Metrics that groups of runs were measured by.

    Args:
        records: of the runs.

    Returns:
        their names, sorted.
    """
    found = [record.result.get("metrics", {}).get("test", {}).get("groups", {}) for record in records]
    members = [numbers for kinds in found for each in kinds.values() for numbers in each.values()]
    return sorted({name for numbers in members for name in numbers if "@" in name})


def name_of_group(kind: str, label: str, numbers: dict[str, Any]) -> str:
    """What a group is called.

    Args:
        kind: what it was divided by.
        label: of the group.
        numbers: of the group, as `result.json` holds them.

    Returns:
        such as "19 to 38 events".

    Example:
        >>> name_of_group("item_popularity", "head", {}), name_of_group("gender", "F", {})
        ('head items', 'gender F')
    """
    if kind == "activity" and "least_events" in numbers:
        return f"{numbers['least_events']} to {numbers['most_events']} events"
    return f"{label} items" if kind == "item_popularity" else f"{kind} {label}"
