"""Several runs of one command: each algorithm with each seed, in one process, and one table of them all."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from fedjax_rec.cli.output import tell
from fedjax_rec.errors import printable
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.ranges import MAX_SEEDS
from fedjax_rec.runs.settings import Settings, complete


def settings_of_each(settings: Settings, algorithms: Sequence[str], seeds: int) -> list[Settings]:
    """The settings of every run; all are checked before the first one begins.

    Args:
        settings: that they share.
        algorithms: by name.
        seeds: of each, from that of the settings on.

    Returns:
        algorithm by algorithm, seed by seed.

    Raises:
        ValueError: if a setting does not go with an algorithm, or there is no seed.

    Example:
        >>> [(each.algorithm, each.seed) for each in settings_of_each(Settings(), ["fedmf", "fedals"], 2)]
        [('fedmf', 0), ('fedmf', 1), ('fedals', 0), ('fedals', 1)]
    """
    if not 1 <= seeds <= MAX_SEEDS:
        raise ValueError(f"--seeds must be at least 1, and at most {MAX_SEEDS:,}, not {seeds:,}")
    twice = next((name for index, name in enumerate(algorithms) if name in algorithms[:index]), None)
    if twice is not None:
        raise ValueError(f"--algorithm {twice} is given twice; for several runs of one give --seeds")
    found = []
    for algorithm in algorithms:
        one = replace(settings, algorithm=algorithm)
        complete(one)
        found += [replace(one, seed=settings.seed + number) for number in range(seeds)]
    return found


def train_each(
    settings: Sequence[Settings], train: Callable[[Settings, Path], int], *, as_json: bool = False
) -> int:
    """Train one after the other, and print how they compare.

    Args:
        settings: of each.
        train: trains one in a folder that is reserved for it, and returns its exit status.
        as_json: whether the comparison is one JSON object.

    Returns:
        the exit status: that of the first run that did not end well, after which none begins.
    """
    from fedjax_rec.runs.compare import compare_runs
    from fedjax_rec.runs.comparison_formats import render
    from fedjax_rec.runs.folders import choose_folder
    from fedjax_rec.runs.reserve import reserve_folder
    from fedjax_rec.runs.run_folder import name_of

    outs = _folders_of(settings)
    for each, out in zip(settings, outs, strict=True):
        choose_folder(out, name_of(each))  # refused before the first one trains
    folders: list[Path] = []
    try:
        for each, out in zip(settings, outs, strict=True):
            with reserve_folder(out, name_of(each)) as folder:
                status = train(replace(each, out=str(folder)), folder)
            if not (folder / "result.json").exists():  # it was stopped, and said so
                _tell_finished(folders, len(settings))
                return status
            folders.append(folder)
    except BaseException:
        _tell_finished(folders, len(settings))
        raise
    comparison = compare_runs(
        [str(folder) for folder in folders],
        metrics=["ndcg@10", "hr@10"],
        group_seeds=True,
    )
    print(render(comparison, "json" if as_json else "table"))
    if not as_json:
        print(
            "\n".join(
                [*spent_together(folders), *(f"run folder: {printable(str(folder))}" for folder in folders)]
            )
        )
    return 0


def spent_together(folders: Sequence[Path]) -> list[str]:
    """What private runs on the same users spend together, by basic composition: epsilons and deltas add up.

    Args:
        folders: of the runs.

    Returns:
        a line; none where fewer than two runs are private.
    """
    results = [read_json(folder / "result.json") for folder in folders]
    spent = [result["privacy"] for result in results if result.get("privacy")]
    if len(spent) < 2:
        return []
    each = ", ".join(f"{one['epsilon']:.3f}" for one in spent)
    epsilon, delta = (sum(one[name] for one in spent) for name in ("epsilon", "delta"))
    line = (
        f"epsilon of each run: {each}; all are about the same users, who lose up to {epsilon:.3f} at delta "
        f"{delta:.2e} to whoever has all {len(spent)} models"
    )
    return [line]


def _folders_of(settings: Sequence[Settings]) -> list[str | None]:
    """Where each run goes: below the folder that was asked for, by the algorithm's short name and the seed."""
    from fedjax_rec.algorithms.own import label_of

    names = {each.algorithm: label_of(each.algorithm) for each in settings}
    if len(set(names.values())) < len(names):  # factories of one name, of several modules
        names = {name: re.sub(r"\W+", "-", name) for name in names}
    return [
        None if each.out is None else f"{each.out}/{names[each.algorithm]}-{each.seed}" for each in settings
    ]


def _tell_finished(folders: Sequence[Path], planned: int) -> None:
    """Of a command that does not end well, what is there all the same."""
    if folders:
        tell(f"{len(folders)} of {planned} runs were finished: {', '.join(map(str, folders))}")
