"""Accuracy against what a client sends up in a round, on MovieLens 100K.

    python -m experiments.communication --data-dir DATA                 # twelve minutes on two busy cores
    python -m experiments.communication --smoke --results FOLDER        # a tiny population: it proves nothing

A run is a small JSON in `--results`; runs that are there already are not repeated. Afterwards a table is printed,
and `table.md` and `bytes.png` are written beside the runs. See the README beside this file for what to expect.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.communication.runs import WAYS, Setting, measure_run
from experiments.keeping import command_line, file_name, keep_runs, parse, tiny_split

HERE = Path(__file__).parent
SMOKE = ("32-bit rows", "secure sum")


def setting_of(folder: Path | None, *, smoke: bool) -> Setting:
    """The setting of all runs."""
    if smoke:
        return Setting(tiny_split(), rounds=2, every=1, cohort=20, dim=4)
    return Setting(fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=folder)))


def run_missing(setting: Setting, names: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Run what has no file yet, and read all."""
    found = []
    for run, _ in keep_runs({file_name(name): partial(measure_run, setting, name) for name in names}, folder):
        found.append(run)
        print(run["way"], f"{run['seconds']} s", flush=True)
    return found


def describe(runs: Sequence[dict[str, Any]]) -> str:
    """The runs as a Markdown table, the cheapest last."""
    lines = ["| what is sent | KB up | NDCG@10 | HR@10 | round |", "|---|---|---|---|---|"]
    for run in sorted(runs, key=lambda run: -run["kilobytes"]):
        scores = f"{run['ndcg@10']:.4f} | {run['hr@10']:.4f} | {run['round']}"
        lines.append(f"| {run['way']} | {run['kilobytes']:.2f} | {scores} |")
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[dict[str, Any]], path: Path) -> None:
    """NDCG@10 over the bytes, one point a way."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        axes.plot(run["kilobytes"], run["ndcg@10"], "o", color="black")
        axes.annotate(
            run["way"], (run["kilobytes"], run["ndcg@10"]), xytext=(4, 4), textcoords="offset points"
        )
    axes.set_xscale("log")
    axes.set_xlabel("KB that a client sends up in a round")
    axes.set_ylabel("NDCG@10, test, full ranking")
    axes.margins(x=0.2)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    given = parse(command_line(__doc__, HERE / "results"), arguments)
    names = SMOKE if given.smoke else tuple(WAYS)
    runs = run_missing(setting_of(given.data_dir, smoke=given.smoke), names, given.results)
    print(describe(runs))
    (given.results / "table.md").write_text(describe(runs), encoding="utf-8")
    draw(runs, given.results / "bytes.png")


if __name__ == "__main__":
    main()
