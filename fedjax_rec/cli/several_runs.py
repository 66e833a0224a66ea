"""Several runs of one command: each algorithm with each seed, in one process, and one table of them all."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedjax_rec.cli.output import tell
from fedjax_rec.cli.parser import FLAGS
from fedjax_rec.errors import printable
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.ranges import MAX_SEEDS
from fedjax_rec.runs.settings import Settings, complete

if TYPE_CHECKING:
    from fedjax_rec.runs.compare import Comparison
    from fedjax_rec.runs.outcome import Outcome


class Notes(NamedTuple):
    """What a run says beside its scores, as of `runs.report`."""

    data: list[str]  # the same for all runs of one command
    price: list[str]  # how both sides of the price of federation were tuned
    training: list[str]  # of this run alone
    ending: list[str]  # which rule ended it


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


def train_each(settings: Sequence[Settings], train: Callable[..., int], *, as_json: bool = False) -> int:
    """Train one after the other, and print how they compare.

    Args:
        settings: of each.
        train: trains one of them, given its settings and the folder that is reserved for it, calls `on_outcome`
            with what was found out, and returns its exit status.
        as_json: whether the comparison is one JSON object.

    Returns:
        the exit status: that of the first run that did not end well, after which none begins.
    """
    from fedjax_rec.runs.compare import compare_runs, read_run
    from fedjax_rec.runs.comparison_formats import render
    from fedjax_rec.runs.folders import choose_folder
    from fedjax_rec.runs.reserve import reserve_folder
    from fedjax_rec.runs.run_folder import name_of
    from fedjax_rec.runs.seeds import central_baselines

    outs = _folders_of(settings)
    for each, out in zip(settings, outs, strict=True):
        choose_folder(out, name_of(each))  # refused before the first one trains
    folders: list[Path] = []
    notes: list[Notes] = []
    try:
        for each, out in zip(settings, outs, strict=True):
            with reserve_folder(out, name_of(each)) as folder:
                here = replace(each, out=str(folder))
                status = train(here, folder, on_outcome=lambda outcome: notes.append(_notes_of(outcome)))
            if not (folder / "result.json").exists():  # it was stopped, and said so
                _tell_finished(folders, len(settings))
                return status
            folders.append(folder)
    except BaseException:
        _tell_finished(folders, len(settings))
        raise
    asked = settings[0].baselines is not None
    runs = [read_run(folder) for folder in folders] if asked else []
    central = [run.name for run in central_baselines(runs, group_seeds=True)]
    comparison = compare_runs([*map(str, folders), *central], metrics=["ndcg@10", "hr@10"], group_seeds=True)
    names = [folder.name for folder in folders]
    told = by_run(names, [note.training for note in notes])
    comparison = comparison._replace(warnings=(*comparison.warnings, *told))
    if as_json:
        print(render(comparison, "json"))
        return 0
    lines = [
        *_once(note.data for note in notes),
        *render(comparison, "table").splitlines(),
        *by_run(names, [note.ending for note in notes]),
        *prices(comparison, central),
        *_once(note.price for note in notes),
        *spent_together(folders),
        *(f"run folder: {folder}" for folder in folders),
    ]
    print("\n".join(map(printable, lines)))
    return 0


def _notes_of(outcome: "Outcome") -> Notes:
    from fedjax_rec.runs.report import data_notes, endings, remarks, tuning_of_price

    price = tuning_of_price(outcome)
    return Notes(data_notes(outcome), price, remarks(outcome, FLAGS), endings(outcome, FLAGS))


def _once(notes: Iterable[Sequence[str]]) -> list[str]:
    """The lines of all runs, each once."""
    return list(dict.fromkeys(line for lines in notes for line in lines))


def by_run(names: Sequence[str], remarks: Sequence[Sequence[str]]) -> list[str]:
    """What is said of runs, each line once, behind the names of the runs that it is said of.

    Args:
        names: of the runs.
        remarks: the lines on each.

    Returns:
        the lines, in the order in which they are met.

    Example:
        >>> by_run(["a", "b", "c"], [["slow"], [], ["slow", "odd"]])
        ['a, c: slow', 'c: odd']
    """
    of_line: dict[str, list[str]] = {}
    for name, lines in zip(names, remarks, strict=True):
        for line in lines:
            of_line.setdefault(line, []).append(name)
    return [f"{', '.join(names)}: {line}" for line, names in of_line.items()]


def prices(comparison: "Comparison", central: Sequence[str]) -> list[str]:
    """The price of federation of each federated row: its mean over that of the best central one.

    Args:
        comparison: of all runs and baselines.
        central: the names of the baselines.

    Returns:
        a line for each federated row; none without a baseline.
    """
    from fedjax_rec.algorithms.own import label_of

    lines: dict[str, list[str]] = {}
    for metric in dict.fromkeys(row.metric for row in comparison.rows):
        rows = [row for row in comparison.rows if row.metric == metric]
        baselines = [row for row in rows if row.run.removesuffix(f" ({len(row.seeds)} seeds)") in central]
        best = max(baselines, key=lambda row: row.mean, default=None)
        for row in rows:
            if best is not None and best.mean > 0 and row not in baselines:
                price = f"{metric} {row.mean / best.mean:.3f} ({best.algorithm})"
                lines.setdefault(row.algorithm, []).append(price)
    labels = [label_of(name) for name in lines]  # of two of one name, all of it is shown
    shown = [name if labels.count(label_of(name)) > 1 else label_of(name) for name in lines]
    return [
        f"{name} / best central: {', '.join(found)}"
        for name, found in zip(shown, lines.values(), strict=True)
    ]


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
