"""Runs that differ in their seed alone: which these are, what is missing among them, their central baselines."""

import json
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from fedjax_rec.runs.configuration import before_tuning

if TYPE_CHECKING:
    from fedjax_rec.runs.compare import StoredRun

# settings that make no other configuration
_IGNORED_SETTINGS = (
    "seed",
    "out",
    "dataset",  # where it lies: its hash is a part of the protocol
    "data_dir",
    "devices",
    "lanes",
    "row_update",
    "stream_clients",
    "client_store",
    "server_rows",
    "table_shards",
    "baselines",
    "checkpoint_every",
    "checkpoint_minutes",
    "pause_exit_code",
    "cache",
)


def group_by_seeds(runs: Sequence["StoredRun"]) -> list[list["StoredRun"]]:
    """Put runs together that differ in their seed alone; what a search chose for each makes no difference.

    Args:
        runs: in any order.

    Returns:
        the groups, in the order of their first runs.

    Example:
        >>> group_by_seeds([])
        []
    """
    groups: dict[str, list[Any]] = {}
    for run in runs:
        asked = before_tuning(run.config)
        settings = {name: value for name, value in asked.items() if name not in _IGNORED_SETTINGS}
        groups.setdefault(json.dumps(settings, sort_keys=True), []).append(run)
    return list(groups.values())


def central_baselines(
    runs: Sequence["StoredRun"], without: Collection[str] = (), *, group_seeds: bool = False
) -> list["StoredRun"]:
    """The central baselines in the folders of federated runs, each method once.

    Args:
        runs: federated ones.
        without: methods to leave out.
        group_seeds: whether a method is taken once a seed, of all runs of the first configuration that has it, so
            that it shares a row as these runs do.

    Returns:
        a run for each, whose `name` is what `compare_runs` takes, in the order in which they are met.

    Example:
        >>> central_baselines([])
        []
    """
    found: dict[str, list[StoredRun]] = {}
    for group in group_by_seeds(runs) if group_seeds else [[run] for run in runs]:
        of_group: dict[str, list[StoredRun]] = {}
        for run in group:
            for name in run.users:
                method = name.removesuffix("_rank_full")
                if method not in (name, *without):
                    of_group.setdefault(method, []).append(run._replace(method=method))
        found |= {method: found.get(method, members) for method, members in of_group.items()}
    return [run for group in found.values() for run in group]


def warn_of_seeds(groups: Sequence[Sequence["StoredRun"]]) -> tuple[str, ...]:
    """Say where rows are means over other seeds: one that failed left no run, and is no part of a mean.

    Args:
        groups: of `group_by_seeds`.

    Returns:
        a line for each group that lacks a seed; a central method that was run once is no mean, and lacks none.

    Example:
        >>> warn_of_seeds([])
        ()
    """
    groups = [group for group in groups if len(group) > 1 or not group[0].method]
    seeds = [{run.config.get("seed", 0) for run in group} for group in groups]
    everything = set[Any]().union(*seeds)
    lines = []
    for group, own in zip(groups, seeds, strict=True):
        missing = sorted(everything - own, key=str)
        if missing:
            lines.append(
                f"{group[0].name}: {len(own)} of {len(everything)} seeds, none of {', '.join(map(str, missing))}; "
                "a seed that failed leaves no run, and a mean without it is too good"
            )
    return tuple(lines)
