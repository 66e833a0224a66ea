"""Comparison of finished runs: one table, one protocol, paired over the same users.

Two numbers share a table only if they were measured alike: runs of different protocols are refused, with the
fields that differ. Each run has the mean of a metric with its bootstrap interval over users; each but the
first has its difference to the first, with an interval and a paired permutation test. The p-values of a table
are adjusted together (Holm), so that a table of many runs does not find winners by chance. The tests speak of
*these* trained models and other users; whether another seed would win is asked of several seeds, which
`group_seeds` averages user by user, with a t interval over the seeds' means.
"""

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.errors import nearest
from fedjax_rec.data.files import read_arrays
from fedjax_rec.errors import check_arguments, suggest_names
from fedjax_rec.evaluation.metrics import METRIC_NAME, user_metric
from fedjax_rec.evaluation.pair_metrics import PAIR_METRICS
from fedjax_rec.evaluation.pair_ranking import PairRanks
from fedjax_rec.evaluation.ranking import MidRanks
from fedjax_rec.evaluation.statistics import (
    bootstrap_intervals,
    holm,
    permutation_test,
    seed_interval,
    wilcoxon_test,
)
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.seeds import group_by_seeds, warn_of_seeds

METRIC_FORMS = "hr@k, ndcg@k, mrr@k, recall@k, truncated_recall@k, precision@k, map@k, mrr, map, auc"
_RANK_ARRAYS = ("rank_full", "tied_full", "rank_sampled", "tied_sampled")
_FILES = ("config.json", "protocol.json", "result.json")


class StoredRun(NamedTuple):
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


class ComparisonRow(NamedTuple):
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
    seed_deviation: float | None = None  # standard deviation over seeds, None for one seed


class Comparison(NamedTuple):
    """A table of runs."""

    ranking: str
    protocol_id: str
    num_users: int  # with a test item
    rows: tuple[ComparisonRow, ...]
    warnings: tuple[str, ...] = ()  # what a reader must know before he believes the table

    def __repr__(self) -> str:
        return import_module("fedjax_rec.runs.comparison_formats").to_line(self)  # which reads this module

    def _repr_html_(self) -> str:
        return import_module("fedjax_rec.runs.comparison_formats").to_html(self)


def read_run(folder: str | Path) -> StoredRun:
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
            hint = f"; it holds runs: name {folder}/*" * any(folder.glob("*/config.json"))
            raise ValueError(f"{folder} is not a run folder: {name} is missing{hint}")
    if not (folder / "per_user.npz").is_file():
        raise ValueError(f"{folder} has no per-user data (per_user.npz is missing), so it cannot be compared")
    try:
        config = read_json(folder / "config.json")
        protocol = read_json(folder / "protocol.json")
        users = read_arrays(folder / "per_user.npz")
        _check_values(config, protocol)
        _check_users(users)
    except (ValueError, OSError, MemoryError) as problem:
        raise ValueError(f"{folder} is not a sound run folder: {problem}") from problem
    return StoredRun(folder, config, protocol, users)


def _check_values(config: dict[str, Any], protocol: dict[str, Any]) -> None:
    """Refuse what a comparison could not read of the settings and the protocol."""
    seed = config.get("seed", 0)
    if type(seed) is not int:
        raise ValueError(f"config.json has the seed {seed!r}, which is no whole number")
    if not isinstance(protocol.get("protocol_id"), str):
        raise ValueError("protocol.json has no protocol_id")


def _check_users(users: dict[str, np.ndarray]) -> None:
    """Refuse per-user arrays that do not describe the same users, and ranks that no user can have."""
    for name in ("user_ids", "test_item_ids"):
        if name not in users:
            raise ValueError(f"per_user.npz has no {name}")
    num_users = len(users["user_ids"]) if users["user_ids"].ndim == 1 else -1
    several = "test_offsets" in users
    if several:
        _check_offsets(users, num_users)
    num_items = len(users["test_item_ids"]) if several else num_users
    for name, values in users.items():
        of_items = name == "test_item_ids" or _is_of_ranks(name)
        expected = num_items if of_items else num_users + (name == "test_offsets")
        if values.ndim != 1 or len(values) != expected:
            counted = f"{num_items} test items" if several and of_items else f"{max(num_users, 0)} users"
            raise ValueError(f"per_user.npz has {name} of shape {list(values.shape)}, and {counted}")
        is_number = name not in ("user_ids", "test_item_ids")
        if is_number and values.dtype.kind not in "iuf":
            raise ValueError(f"per_user.npz has {name} of {values.dtype}, which is no number")
    is_tested = users["test_item_ids"].astype(str) != ""
    for name in users:
        method, rank, ranking = name.rpartition("rank_")
        if rank and (not method or method.endswith("_")):
            _check_ranks(users, method, ranking, is_tested)


def _is_of_ranks(name: str) -> bool:
    """Whether an array has ranks or ties, of the run or of a baseline."""
    return any(part == name or name.endswith(f"_{part}") for part in _RANK_ARRAYS)


def _check_offsets(users: dict[str, np.ndarray], num_users: int) -> None:
    """Refuse bounds of the users' test items that are none."""
    offsets = users["test_offsets"]
    items = users["test_item_ids"]
    sound = offsets.ndim == items.ndim == 1 and offsets.dtype.kind in "iu" and len(offsets) == num_users + 1
    if not (sound and offsets[0] == 0 and offsets[-1] == len(items) and (np.diff(offsets) >= 0).all()):
        raise ValueError(
            f"per_user.npz has test_offsets that do not divide the test items of {num_users} users"
        )


def _check_ranks(users: dict[str, np.ndarray], method: str, ranking: str, is_tested: np.ndarray) -> None:
    """Refuse ranks of which some are missing, or beyond the rivals that there were."""
    name = f"{method}rank_{ranking}"
    ranks = users[name]
    tied = users.get(f"{method}tied_{ranking}", np.zeros(len(ranks)))
    rivals = users.get(f"rivals_{ranking}", np.full(len(users["user_ids"]), np.inf))
    owners = _owners(users) if "test_offsets" in users else np.arange(len(ranks))
    rivals = rivals[owners]
    known = ~np.isnan(ranks)
    if (known != is_tested).any():
        raise ValueError(
            f"per_user.npz has {name} of {known.sum()} users, and {is_tested.sum()} with a test item"
        )
    fits = (ranks - tied / 2 >= 0) & (tied >= 0) & (ranks + tied / 2 <= rivals)
    if not fits[known].all():
        at = int(np.flatnonzero(known & ~fits)[0])
        raise ValueError(
            f"per_user.npz has {name} {ranks[at]} of user {str(users['user_ids'][owners[at]])!r}, with {tied[at]} "
            f"ties among {rivals[at]} rivals"
        )


def read_runs(source: str | Path) -> list[StoredRun]:
    """Read a run folder, all baselines of a folder of `fedjax-rec baselines`, or one baseline as FOLDER:METHOD.

    Args:
        source: a folder; with `:METHOD`, a central baseline in it, which a run with `--baselines` has too.

    Returns:
        one run, or one for each baseline.

    Raises:
        ValueError: as `read_run`, or if there is no such baseline.

    Example:
        >>> read_runs("no/such/run:ease")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: no such directory
    """
    folder, colon, method = str(source).rpartition(":")
    if not colon or Path(source).is_dir():
        run = read_run(source)
        if "rank_full" in run.users or _is_federated(run):
            return [
                run
            ]  # without ranks it is refused, by name, where they are read: no baseline stands in for it
        return [_baseline(run, name) for name in _methods(run)] or [run]
    run = read_run(folder)
    methods = _methods(run)
    if method not in methods:
        raise ValueError(f"{folder} has no baseline {method!r}; it has: {', '.join(methods) or 'none'}")
    return [_baseline(run, method)]


def _is_federated(run: StoredRun) -> bool:
    """Whether a folder is that of a federated run, rather than of baselines alone."""
    try:
        return "metrics" in json.loads((run.folder / "result.json").read_text("utf-8"))
    except (ValueError, OSError, TypeError):
        return False


def _methods(run: StoredRun) -> list[str]:
    """The central baselines of a folder."""
    suffix = "_rank_full"
    return [name.removesuffix(suffix) for name in run.users if name.endswith(suffix)]


def _baseline(run: StoredRun, method: str) -> StoredRun:
    """One baseline of a folder, with its ranks where those of a run are."""
    ranks = {name: run.users[f"{method}_{name}"] for name in _RANK_ARRAYS if f"{method}_{name}" in run.users}
    config = run.config | {"algorithm": method, "method": method}
    return run._replace(users=run.users | ranks, config=config, method=method)


@suggest_names
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
        metrics: `hr`, `ndcg`, `mrr`, `recall`, `truncated_recall`, `precision` or `map` @k with any k from 1 up,
            `mrr`, `map` or `auc`. Of one test item a user recall@k is hr@k.
        ranking: `full`, or `sampled99` by the protocol's number of candidates.
        group_seeds: whether runs that differ in their seed alone share a row; where all do, each has its own, and
            their mean one more.

    Returns:
        the table, metric by metric, runs in the order given.

    Raises:
        ValueError: if there are fewer than 2 runs, protocols or users differ, or something is unknown.

    Example:
        >>> compare_runs([])
        Traceback (most recent call last):
        ValueError: compare needs 2 runs or more; none was given
    """
    check_arguments(compare_runs, locals())
    for metric in metrics:
        check_metric(metric)
    runs = [run for folder in folders for run in read_runs(folder)]
    if len(runs) < 2:
        given = f"only {folders[0]}" if folders else "none"
        raise ValueError(f"compare needs 2 runs or more; {given} was given")
    _check_alike(runs)
    suffix = _array_suffix(ranking, runs[0].protocol)
    one_by_one = [[run] for run in runs]
    groups = group_by_seeds(runs) if group_seeds else one_by_one
    rows = []
    for metric in metrics:
        if len(groups) > 1:
            rows += _rows(groups, metric, suffix)
        else:  # seeds of one configuration stand one by one, and below them their mean
            (mean,) = _rows(groups, metric, suffix)
            rows += [*_rows(one_by_one, metric, suffix), mean._replace(run=f"mean of {len(runs)} seeds")]
    return Comparison(
        ranking=ranking,
        protocol_id=runs[0].protocol["protocol_id"],
        num_users=int(np.sum(~np.isnan(_user_values(runs[0], "hr@1", suffix)))),
        rows=tuple(_adjust(rows)),
        warnings=warn_of_seeds(groups) if group_seeds else (),
    )


def check_metric(metric: str) -> None:
    """Refuse an unknown metric.

    Args:
        metric: its name.

    Raises:
        ValueError: with the nearest known name.

    Example:
        >>> check_metric("ndgc@10")
        Traceback (most recent call last):
        ValueError: unknown metric 'ndgc@10'; did you mean 'ndcg@10'? known: hr@k, ndcg@k, mrr@k, ...
    """
    if not METRIC_NAME.fullmatch(metric):
        hint = nearest(metric, [*(f"{kind}@10" for kind in PAIR_METRICS), "mrr", "map", "auc"])
        raise ValueError(f"unknown metric {metric!r}; did you mean {hint!r}? known: {METRIC_FORMS}")


def _check_alike(runs: Sequence[StoredRun]) -> None:
    """Refuse a run given twice, other protocols, other users."""
    first = runs[0]
    for index, run in enumerate(runs):
        same = [other for other in runs[:index] if other.folder.resolve() == run.folder.resolve()]
        if any(other.method == run.method for other in same):
            raise ValueError(f"{run.name} is given twice; name every run once")
        fields = sorted((run.protocol.keys() | first.protocol.keys()) - {"protocol_id", "tuned"})
        pairs = [(name, first.protocol.get(name), run.protocol.get(name)) for name in fields]
        differ = [
            f"{name} {expected!r} against {value!r}" for name, expected, value in pairs if expected != value
        ]
        if differ or run.protocol["protocol_id"] != first.protocol["protocol_id"]:
            differences = ", ".join(differ) or "their protocol_id"
            raise ValueError(f"{first.name} and {run.name} have different protocols: {differences}")
        names = ("user_ids", "test_item_ids", *(["test_offsets"] if "test_offsets" in first.users else []))
        for name in names:
            if not np.array_equal(_array(run, name), _array(first, name)):
                raise ValueError(f"{first.name} and {run.name} do not rank the same users: {name} differ")


def _array(run: StoredRun, name: str) -> np.ndarray:
    if name not in run.users:
        raise ValueError(f"{run.folder} has no per-user data named {name!r} in per_user.npz; run it again")
    return run.users[name]


def _array_suffix(ranking: str, protocol: dict[str, Any]) -> str:
    """What the names of a ranking's arrays in per_user.npz end in."""
    sampled = f"sampled{protocol.get('num_candidates')}"
    if ranking not in {"full", "sampled", sampled}:
        raise ValueError(f"unknown ranking {ranking!r}; choose one of 'full', {sampled!r}")
    return "full" if ranking == "full" else "sampled"


def user_values(run: StoredRun, metric: str, ranking: str = "full") -> np.ndarray:
    """A metric of each user of a run.

    Args:
        run: as `read_run` gives it.
        metric: as of `compare_runs`.
        ranking: `full`, or `sampled99` by the protocol's number of candidates.

    Returns:
        float64[N], NaN of users without a test item.

    Raises:
        ValueError: if the metric or the ranking is unknown, or the run has no such ranks.
    """
    check_metric(metric)
    return _user_values(run, metric, _array_suffix(ranking, run.protocol))


def _user_values(run: StoredRun, metric: str, suffix: str) -> np.ndarray:
    """float64[N], a metric of each user."""
    rivals = _array(run, f"rivals_{suffix}") if metric == "auc" else None
    return user_metric(_ranks(run, suffix), metric, rivals=rivals)


def _ranks(run: StoredRun, suffix: str) -> MidRanks | PairRanks:
    mid: Any = _array(run, f"rank_{suffix}")
    tied: Any = _array(run, f"tied_{suffix}")
    if "test_offsets" not in run.users:
        return MidRanks(mid, tied)
    owners: Any = _owners(run.users)
    return PairRanks(mid, tied, owners, len(run.users["user_ids"]))


def _owners(users: dict[str, np.ndarray]) -> np.ndarray:
    """int64[P], the user of each test item where users have several."""
    return np.repeat(np.arange(len(users["user_ids"])), np.diff(users["test_offsets"]))


def _rows(groups: Sequence[Sequence[StoredRun]], metric: str, suffix: str) -> list[ComparisonRow]:
    """The rows of one metric, p-values not yet adjusted."""
    # Each user's values: by group float64[S, N] of its seeds, and float64[N, G] with seeds averaged.
    by_seed = [np.stack([_user_values(run, metric, suffix) for run in group]) for group in groups]
    values = np.stack([seeds.mean(axis=0) for seeds in by_seed], axis=1)
    first = values[:, 0]
    means = bootstrap_intervals(values)
    differences = bootstrap_intervals(values[:, 1:] - first[:, None])

    rows = []
    for index, (group, mean, seeds) in enumerate(zip(groups, means, by_seed, strict=True)):
        seed_means = np.nanmean(seeds, axis=1)
        over_seeds = seed_interval(seed_means) if len(group) > 1 else None
        difference = differences[index - 1] if index else None
        row = ComparisonRow(
            metric=metric,
            run=group[0].name + (f" ({len(group)} seeds)" if len(group) > 1 else ""),
            algorithm=str(group[0].config.get("algorithm", "")),
            seeds=tuple(int(run.config.get("seed", 0)) for run in group),
            mean=mean.estimate,
            low=mean.low,
            high=mean.high,
            seed_low=over_seeds.low if over_seeds else None,
            seed_high=over_seeds.high if over_seeds else None,
            difference=difference.estimate if difference else None,
            difference_low=difference.low if difference else None,
            difference_high=difference.high if difference else None,
            p=permutation_test(values[:, index], first) if difference else None,
            p_wilcoxon=wilcoxon_test(values[:, index], first) if difference else None,
            seed_deviation=float(seed_means.std(ddof=1)) if over_seeds else None,
        )
        rows.append(row)
    return rows


def _adjust(rows: Sequence[ComparisonRow]) -> list[ComparisonRow]:
    """Adjust the p-values of a whole table."""
    permutation = _adjust_column([row.p for row in rows])
    wilcoxon = _adjust_column([row.p_wilcoxon for row in rows])
    return [
        row if row.p is None else row._replace(p=float(permutation[index]), p_wilcoxon=float(wilcoxon[index]))
        for index, row in enumerate(rows)
    ]


def _adjust_column(p_values: Sequence[float | None]) -> np.ndarray:
    return holm(np.array([np.nan if p is None else p for p in p_values], np.float64))
