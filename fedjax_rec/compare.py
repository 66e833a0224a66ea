"""Comparison of finished runs: one table, one protocol, paired over the same users.

Two numbers share a table only if they were measured alike: runs of different protocols are refused, with the
fields that differ. Each run has the mean of a metric with its bootstrap interval over users; each but the
first has its difference to the first, with an interval and a paired permutation test. The p-values of a table
are adjusted together (Holm), so that a table of many runs does not find winners by chance. The tests speak of
*these* trained models and other users; whether another seed would win is asked of several seeds, which
`group_seeds` averages user by user, with a t interval over the seeds' means.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.arrays import read_arrays
from fedjax_rec.data.errors import nearest
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.ranking import Places
from fedjax_rec.evaluation.statistics import (
    bootstrap_intervals,
    holm,
    permutation_test,
    seed_interval,
    wilcoxon_test,
)

KNOWN = "hr@k, ndcg@k, mrr@k, mrr, auc"
_METRIC = re.compile(r"(?:hr|ndcg|mrr)@([1-9]\d{0,8})|mrr|auc")
_FILES = ("config.json", "protocol.json", "result.json")
# settings that make no other configuration
_NO_MATTER = ("seed", "out", "data_dir", "devices", "lanes", "baselines", "checkpoint_every")


class Run(NamedTuple):
    """What a comparison needs of a run folder, or of one central baseline in a folder."""

    folder: Path
    config: dict[str, Any]
    protocol: dict[str, Any]  # with its id
    users: dict[str, np.ndarray]  # the arrays of per_user.npz
    method: str = ""  # a central baseline; empty for the federated run

    @property
    def name(self) -> str:
        """The folder, with the baseline's name where it is one."""
        return f"{self.folder}:{self.method}" if self.method else str(self.folder)


class Row(NamedTuple):
    """One run, or several seeds of it, in one metric; the fields of a difference are None for the first."""

    metric: str
    run: str
    algorithm: str
    seeds: tuple[int, ...]
    mean: float
    low: float  # of the 95 % interval over users
    high: float
    seed_low: float | None  # of the 95 % interval over seeds, None for one seed
    seed_high: float | None
    difference: float | None  # to the first row of the metric
    difference_low: float | None
    difference_high: float | None
    p: float | None  # paired permutation test, Holm over the table
    p_wilcoxon: float | None  # Wilcoxon's signed-rank test, Holm over the table


class Comparison(NamedTuple):
    """A table of runs."""

    ranking: str
    protocol_id: str
    num_users: int  # with a test item
    rows: tuple[Row, ...]


def read_run(folder: str | Path) -> Run:
    """Read what a comparison needs of a run folder.

    Args:
        folder: of a run.

    Returns:
        its settings, protocol and per-user arrays.

    Raises:
        ValueError: if it is no run folder, is damaged, or has no per-user data.

    Example:
        >>> read_run("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: no such directory
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a run folder: no such directory")
    for name in _FILES:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} is not a run folder: {name} is missing")
    if not (folder / "per_user.npz").is_file():
        raise ValueError(f"{folder} has no per-user data (per_user.npz is missing), so it cannot be compared")
    try:
        config, protocol = (json.loads((folder / name).read_text("utf-8")) for name in _FILES[:2])
        users = read_arrays(folder / "per_user.npz")
    except (ValueError, OSError) as problem:
        raise ValueError(f"{folder} is not a sound run folder: {problem}") from problem
    if not (isinstance(config, dict) and isinstance(protocol, dict) and "protocol_id" in protocol):
        raise ValueError(f"{folder} is not a sound run folder: protocol.json has no protocol_id")
    return Run(folder, config, protocol, users)


def read_runs(given: str | Path) -> list[Run]:
    """Read a run folder, all baselines of a folder of `fedjax-rec baselines`, or one baseline as FOLDER:METHOD.

    Args:
        given: a folder; with `:METHOD`, a central baseline in it, which a run with `--baselines` has too.

    Returns:
        one run, or one for each baseline.

    Raises:
        ValueError: as `read_run`, or if there is no such baseline.

    Example:
        >>> read_runs("no/such/run:ease")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: no such directory
    """
    place, colon, method = str(given).rpartition(":")
    if not colon or Path(given).is_dir():
        run = read_run(given)
        return (
            [run] if "rank_full" in run.users else [_baseline(run, name) for name in _methods(run)] or [run]
        )
    run = read_run(place)
    if method not in _methods(run):
        known = ", ".join(_methods(run)) or "none"
        raise ValueError(f"{place} has no baseline {method!r}; it has: {known}")
    return [_baseline(run, method)]


def _methods(run: Run) -> list[str]:
    """The central baselines of a folder."""
    ends = "_rank_full"
    return [name.removesuffix(ends) for name in run.users if name.endswith(ends)]


def _baseline(run: Run, method: str) -> Run:
    """One baseline of a folder, with its ranks where those of a run are."""
    kinds = ("rank_full", "tied_full", "rank_sampled", "tied_sampled")
    own = {kind: run.users[f"{method}_{kind}"] for kind in kinds if f"{method}_{kind}" in run.users}
    config = run.config | {"algorithm": method, "method": method}
    return run._replace(users=run.users | own, config=config, method=method)


def compare_runs(
    folders: Sequence[str | Path],
    *,
    metrics: Sequence[str] = ("ndcg@10",),
    ranking: str = "full",
    group_seeds: bool = False,
) -> Comparison:
    """Compare runs with the first of them.

    Args:
        folders: of 2 runs or more, each as `read_runs` takes it.
        metrics: `hr@k`, `ndcg@k`, `mrr@k` with any k from 1 up, `mrr` or `auc`.
        ranking: `full`, or `sampled99` by the protocol's number of candidates.
        group_seeds: whether runs that differ in their seed alone share a row.

    Returns:
        the table, metric by metric, runs in the order given.

    Raises:
        ValueError: if there are fewer than 2 runs, protocols or users differ, or something is unknown.

    Example:
        >>> compare_runs([])
        Traceback (most recent call last):
        ValueError: compare needs 2 runs or more; none was given
    """
    for metric in metrics:
        check_metric(metric)
    runs = [run for folder in folders for run in read_runs(folder)]
    if len(runs) < 2:
        given = f"only {folders[0]} was given" if folders else "none was given"
        raise ValueError(f"compare needs 2 runs or more; {given}")
    _check_alike(runs)
    part = _part(ranking, runs[0].protocol)
    groups = _group(runs) if group_seeds else [[run] for run in runs]
    if len(groups) < 2:
        raise ValueError(f"the {len(runs)} runs are seeds of one configuration; compare them one by one")
    rows = [row for metric in metrics for row in _rows(groups, metric, part)]
    number = int(np.sum(~np.isnan(runs[0].users[f"rank_{part}"])))
    return Comparison(ranking, runs[0].protocol["protocol_id"], number, tuple(_adjust(rows)))


def check_metric(metric: str) -> None:
    """Refuse an unknown metric.

    Args:
        metric: its name.

    Raises:
        ValueError: with the nearest known name.

    Example:
        >>> check_metric("ndgc@10")
        Traceback (most recent call last):
        ValueError: unknown metric 'ndgc@10'; did you mean 'ndcg@10'? known: hr@k, ndcg@k, mrr@k, mrr, auc
    """
    if not _METRIC.fullmatch(metric):
        hint = nearest(metric, ["hr@10", "ndcg@10", "mrr@10", "mrr", "auc"])
        raise ValueError(f"unknown metric {metric!r}; did you mean {hint!r}? known: {KNOWN}")


def _check_alike(runs: Sequence[Run]) -> None:
    """Refuse a run given twice, other protocols, other users."""
    first = runs[0]
    for place, run in enumerate(runs):
        same = [other for other in runs[:place] if other.folder.resolve() == run.folder.resolve()]
        if any(other.method == run.method for other in same):
            raise ValueError(f"{run.name} is given twice; name every run once")
        fields = sorted(name for name in run.protocol.keys() | first.protocol.keys() if name != "protocol_id")
        pairs = [(name, first.protocol.get(name), run.protocol.get(name)) for name in fields]
        differ = [f"{name} {one!r} against {other!r}" for name, one, other in pairs if one != other]
        if differ or run.protocol["protocol_id"] != first.protocol["protocol_id"]:
            found = ", ".join(differ) or "their protocol_id"
            raise ValueError(f"{first.name} and {run.name} have different protocols: {found}")
        for name in ("user_ids", "test_item_ids"):
            if not np.array_equal(_array(run, name), _array(first, name)):
                raise ValueError(f"{first.name} and {run.name} do not rank the same users: {name} differ")


def _array(run: Run, name: str) -> np.ndarray:
    if name not in run.users:
        raise ValueError(f"{run.folder} has no per-user data named {name!r} in per_user.npz; run it again")
    return run.users[name]


def _part(ranking: str, protocol: dict[str, Any]) -> str:
    sampled = f"sampled{protocol.get('num_candidates')}"
    if ranking not in {"full", "sampled", sampled}:
        raise ValueError(f"unknown ranking {ranking!r}; choose one of 'full', {sampled!r}")
    return "full" if ranking == "full" else "sampled"


def _group(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that differ in their seed alone, in the order of their first."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        settings = {name: value for name, value in run.config.items() if name not in _NO_MATTER}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return list(groups.values())


def _user_values(run: Run, metric: str, part: str) -> np.ndarray:
    """float64[N], a metric of each user."""
    places = Places(_array(run, f"rank_{part}"), _array(run, f"tied_{part}"))  # type: ignore[arg-type]
    k = metric.partition("@")[2]
    rivals = _array(run, f"rivals_{part}") if metric == "auc" else None
    return user_metrics(places, [int(k)] if k else [1], rivals=rivals)[metric]


def _rows(groups: Sequence[Sequence[Run]], metric: str, part: str) -> list[Row]:
    """The rows of one metric, p-values not yet adjusted."""
    every = [np.stack([_user_values(run, metric, part) for run in group]) for group in groups]
    values = np.stack([seeds.mean(axis=0) for seeds in every], axis=1)
    first, others = values[:, 0], values[:, 1:]
    means, gaps = bootstrap_intervals(values), bootstrap_intervals(others - first[:, None])
    rows = []
    for place, (group, mean, seeds) in enumerate(zip(groups, means, every, strict=True)):
        over_seeds = seed_interval(np.nanmean(seeds, axis=1)) if len(group) > 1 else None
        gap = gaps[place - 1] if place else None
        row = Row(
            metric=metric,
            run=group[0].name + (f" ({len(group)} seeds)" if len(group) > 1 else ""),
            algorithm=str(group[0].config.get("algorithm", "")),
            seeds=tuple(int(run.config.get("seed", 0)) for run in group),
            mean=mean.estimate,
            low=mean.low,
            high=mean.high,
            seed_low=over_seeds.low if over_seeds else None,
            seed_high=over_seeds.high if over_seeds else None,
            difference=gap.estimate if gap else None,
            difference_low=gap.low if gap else None,
            difference_high=gap.high if gap else None,
            p=permutation_test(values[:, place], first) if gap else None,
            p_wilcoxon=wilcoxon_test(values[:, place], first) if gap else None,
        )
        rows.append(row)
    return rows


def _adjust(rows: Sequence[Row]) -> list[Row]:
    """Adjust the p-values of a whole table."""
    permutation, wilcoxon = (
        holm(np.array([np.nan if p is None else p for p in column], np.float64))
        for column in ([row.p for row in rows], [row.p_wilcoxon for row in rows])
    )
    return [
        row if row.p is None else row._replace(p=float(permutation[place]), p_wilcoxon=float(wilcoxon[place]))
        for place, row in enumerate(rows)
    ]
