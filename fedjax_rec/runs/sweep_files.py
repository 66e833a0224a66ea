"""What a sweep leaves in its folder besides its state: a table, a csv, a picture, and the best settings."""

import csv
import json
import math
import warnings
from pathlib import Path
from typing import Any

from fedjax_rec.columns import aligned
from fedjax_rec.runs.sweeps import Swept, best_settings, spread
from fedjax_rec.runs.tuning import text_of
from fedjax_rec.training.sweep import Trial

SHOWN = 20  # rows of a table that is printed; the csv has all


def write_files(swept: Swept, folder: Path) -> None:
    """Write `trials.csv`, `sweep.png` and `best.toml`.

    Args:
        swept: of `run_sweep`.
        folder: where.
    """
    _write_csv(swept, folder / "trials.csv")
    _draw(swept, folder / "sweep.png")
    (folder / "best.toml").write_text(as_toml(swept), encoding="utf-8")


def as_toml(swept: Swept) -> str:
    """The best settings as a file that `fedjax-rec run --config` takes.

    Args:
        swept: of `run_sweep`.

    Returns:
        TOML.
    """
    best = swept.best
    lines = [f"# validation {swept.metric} {_measured(best)} in round {best.round}"]
    # strings of JSON are strings of TOML, and so are its numbers and truths
    lines += [
        f"{name} = {json.dumps(value, ensure_ascii=True)}" for name, value in best_settings(swept).items()
    ]
    return "\n".join(lines) + "\n"


def sweep_table(swept: Swept) -> str:
    """The best trials as text.

    Args:
        swept: of `run_sweep`.

    Returns:
        a table with a row a trial, and what was best.
    """
    names = list(swept.asked.space)
    rows = [[*names, "rounds", f"validation {swept.metric}", "spread", "best round"]]
    for rounds, trial in swept.rows[:SHOWN]:
        values = [str(trial.settings[name]) for name in names]
        rows.append([*values, f"{rounds:,}", *_cells(trial), f"{trial.round:,}"])
    lines = [aligned(rows, left=())]
    if len(swept.rows) > SHOWN:
        lines.append(f"... and {len(swept.rows) - SHOWN} more in trials.csv")
    best = swept.best
    lines.append(f"best: {text_of(best)} ({_measured(best)})")
    close = [
        trial
        for trial in swept.rungs[-1].trials
        if trial is not best and trial.validation >= best.validation - spread(best)
    ]
    if close:
        lines.append(f"within its spread over seeds: {'; '.join(text_of(trial) for trial in close[:3])}")
    return "\n".join(lines)


def as_json(swept: Swept) -> dict[str, Any]:
    """What was found, as plain values.

    Args:
        swept: of `run_sweep`.

    Returns:
        the metric, the best settings, and the trials, the best first.
    """
    trials = [
        {
            "settings": trial.settings,
            "rounds": rounds,
            "validation": trial.validation,
            "spread": spread(trial),
            "by_seed": list(trial.by_seed),
            "best_round": trial.round,
        }
        for rounds, trial in swept.rows
    ]
    return {"metric": swept.metric, "best": swept.best.settings, "trials": trials}


def _cells(trial: Trial) -> list[str]:
    mean = f"{trial.validation:.4f}" if trial.round else "diverged"
    return [mean, "" if math.isnan(spread(trial)) else f"{spread(trial):.4f}"]


def _measured(trial: Trial) -> str:
    mean, deviation = _cells(trial)
    return f"{mean} +- {deviation}" if deviation else mean


def _write_csv(swept: Swept, path: Path) -> None:
    names = list(swept.asked.space)
    first = swept.asked.settings.seed
    seeds = range(first, first + swept.asked.seeds)
    with path.open("w", newline="", encoding="utf-8") as file:
        write = csv.writer(file).writerow
        write(
            [*names, "rounds", "mean", "spread", *(f"seed_{seed}" for seed in seeds), "best_round", "seconds"]
        )
        for rung in swept.rungs:
            for trial in rung.trials:
                by_seed = trial.by_seed or (math.nan,) * len(seeds)
                numbers = [trial.validation, spread(trial), *by_seed]
                cells = ["" if math.isnan(value) else repr(float(value)) for value in numbers]
                values = [trial.settings[name] for name in names]
                write([*values, rung.rounds, *cells, trial.round, f"{trial.seconds:.3f}"])


def _draw(swept: Swept, path: Path) -> None:
    """Curves of validation, and each setting's longest trial with the spread of its seeds."""
    from matplotlib.figure import Figure

    rows = swept.rows[:SHOWN]
    figure = Figure(figsize=(10, max(3.4, 0.9 + 0.26 * len(rows))), layout="constrained")
    curves, points = figure.subplots(1, 2)
    for place, (_, trial) in reversed(list(enumerate(rows))):
        colour = "tab:green" if trial is swept.best else "tab:blue"
        known = [point for point in trial.curve if not math.isnan(point[1])]
        shade = 1.0 if trial is swept.best else 0.45
        curves.plot(*zip(*known, strict=True), color=colour, alpha=shade, marker=".") if known else None
        if trial.round:
            deviation = spread(trial)
            error = None if math.isnan(deviation) else deviation
            points.errorbar(trial.validation, place, xerr=error, fmt="o", color=colour, capsize=3)
    points.set_yticks(
        range(len(rows)), [f"{text_of(trial)} ({rounds:,})" for rounds, trial in rows], fontsize=7
    )
    points.set_ylim(len(rows) - 0.5, -0.5)
    points.set(xlabel=f"validation {swept.metric}", title=_points_title(swept))
    curves.set(xlabel="round", ylabel=f"validation {swept.metric}, mean over seeds")
    title = f"{swept.asked.settings.algorithm} on {Path(swept.asked.settings.dataset).name}"
    curves.set_title(title.encode("utf-8", "backslashreplace").decode(), parse_math=False)
    with warnings.catch_warnings():  # of characters that the font lacks
        warnings.simplefilter("ignore")
        figure.savefig(path, dpi=120)


def _points_title(swept: Swept) -> str:
    seeds = swept.asked.seeds
    return f"mean and spread over {seeds} seeds (rounds)" if seeds > 1 else "one seed (rounds)"
