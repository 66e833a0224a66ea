"""Who gains from fair aggregation and sampling, and who stays stable, where few clients hold most of the data.

    python -m experiments.imbalance                         # a skewed synthetic population
    python -m experiments.imbalance --data-dir DATA         # MovieLens 100K
    python -m experiments.imbalance --smoke --results FOLDER     # a tiny population: it proves nothing

A way to train is a small JSON in a folder of `--results`; those that are there already are not run again.
Afterwards a table is printed, and `table.md` and `stability.png` are written beside them. See the README for what
to expect.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

import fedjax_rec as fr
from experiments.imbalance.runs import WAYS, Setting, measure_way
from experiments.keeping import command_line, file_name, keep_runs, parse, tiny_split

HERE = Path(__file__).parent
SMOKE = ("q-FedAvg 2", "AFL, quarters", "power of choice")
SHARE = 0.9  # of FedAvg's best validation: the target that rounds are counted to
COLUMNS = {
    "HR@10": "hr@10", "NDCG@10": "ndcg@10", "worst tenth": "auc worst_decile", "median": "auc median",
    "light": "ndcg@10 light", "heavy": "ndcg@10 heavy", "head": "ndcg@10 head", "tail": "ndcg@10 tail",
}  # fmt: skip


def setting_of(folder: Path | None, *, smoke: bool) -> Setting:
    """The setting of all runs."""
    if smoke:
        return Setting(tiny_split(), rounds=4, every=2, cohort=20, dim=4, seeds=(0, 1))
    if folder is not None:
        split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=folder))
        return Setting(split, rounds=150, seeds=(0, 1, 2))
    data = fr.data.synthetic(600, 800, seed=3, min_events=5, median_events=25, max_events=400)
    return Setting(fr.leave_one_out(data))


def run_missing(setting: Setting, names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Run what has no file yet, and read all."""
    found = []
    for run, _ in keep_runs({file_name(name): partial(measure_way, setting, name) for name in names}, folder):
        found.append(run)
        print(run["way"], f"{run['seconds']} s", flush=True)
    return found


def rounds_to(target: float, seeds: Sequence[dict[str, Any]], every: int) -> str:
    """The median of the seeds' rounds until validation reaches a target; those that never do are infinite."""
    curves = [np.array(seed["curve"]) for seed in seeds]
    reached = [(int(np.argmax(c >= target)) + 1) * every if (c >= target).any() else np.inf for c in curves]
    middle = float(np.median(reached))
    return f"{middle:.0f}" if np.isfinite(middle) else "-"


def describe(runs: Sequence[dict[str, Any]], every: int) -> str:
    """The runs as a Markdown table: mean and standard deviation over seeds."""
    titles = ["way", "rate", *COLUMNS, "rounds", "fall", "jump"]
    lines = ["| " + " | ".join(titles) + " |", "|" + "---|" * len(titles)]
    target = SHARE * float(np.mean([max(seed["curve"]) for seed in runs[0]["seeds"]]))
    for run in runs:
        values = {title: [seed[key] for seed in run["seeds"]] for title, key in COLUMNS.items()}
        cells = [f"{np.mean(x):.4f} ±{np.std(x, ddof=1):.4f}" for x in values.values()]
        cells.append(rounds_to(target, run["seeds"], every))
        cells += [f"{np.max([seed['fall'] for seed in run['seeds']]):.4f}"]
        cells += [f"{np.median([seed['jump'] for seed in run['seeds']]):.1f}"]
        lines.append(f"| {run['way']} | {run['rate']:g} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[dict[str, Any]], every: int, path: Path) -> None:
    """Validation over rounds, and the size of the server's steps, of the first seed of each way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, run in enumerate(runs):
        seed, style = run["seeds"][0], ("-", "--", ":")[number // 10 % 3]
        rounds = every * np.arange(1, len(seed["curve"]) + 1)
        left.plot(rounds, seed["curve"], style, label=run["way"])
        blocks = np.array(seed["norms"]).reshape(len(rounds), every)
        right.plot(rounds, blocks.max(1), style)
    left.set_ylabel("NDCG@10, validation, full ranking")
    right.set_ylabel("largest step of the server in each block")
    right.set_yscale("log")
    for axes in (left, right):
        axes.set_xlabel("round")
    figure.legend(*left.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    data = "folder of the data sets, for MovieLens 100K"
    given = parse(command_line(__doc__, HERE / "results", data), arguments)
    names = SMOKE if given.smoke else tuple(WAYS)
    folder = given.results / ("ml-100k" if given.data_dir and not given.smoke else "synthetic")
    setting = setting_of(given.data_dir, smoke=given.smoke)
    runs = run_missing(setting, names, folder)
    print(describe(runs, setting.every))
    (folder / "table.md").write_text(describe(runs, setting.every), encoding="utf-8")
    draw(runs, setting.every, folder / "stability.png")


if __name__ == "__main__":
    main()
