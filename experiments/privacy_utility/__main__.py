"""What user-level differential privacy costs on MovieLens 1M, by epsilon and by cohort.

    python -m experiments.privacy_utility --data-dir DATA               # under 90 minutes on two cores
    python -m experiments.privacy_utility --smoke --results FOLDER      # a tiny population: it proves nothing

Each cohort and budget is a small JSON in `--results`; those that are there already are not repeated. Afterwards
a table is printed, and `table.md` and `utility.png` are written beside them. See the README beside this file for
what to expect.
"""

import contextlib
import statistics
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.keeping import command_line, keep_runs, parse, tiny_split
from experiments.privacy_utility.runs import Setting, tune
from fedjax_rec.evaluation.reference_ranks import popularity_ranks
from fedjax_rec.evaluation.summary import name_sampled, result_metrics

HERE = Path(__file__).parent


def setting_of(folder: Path | None, *, smoke: bool) -> Setting:
    """The setting of all runs."""
    if smoke:
        return Setting(
            tiny_split(), cohorts=(60,), epsilons=(8.0,), trials=2, seeds=(0, 1), passes=2.0, dim=4
        )
    return Setting(fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=folder)))


def run_missing(setting: Setting, folder: Path, *, only_read: bool = False) -> list[dict[str, Any]]:
    """Run what has no file yet, unless files are only to be read, and read all."""
    from tqdm import tqdm

    tasks = {
        f"{cohort}-{'plain' if epsilon is None else f'{epsilon:g}'}": partial(tune, setting, cohort, epsilon)
        for cohort in setting.cohorts
        for epsilon in (*setting.epsilons, None)
    }
    kept = keep_runs(tasks, folder, read=only_read)
    return [run for run, _ in tqdm(kept, total=len(tasks), unit="budget", file=sys.stderr)]


def spread(run: dict[str, Any], name: str) -> tuple[float, float]:
    """Mean and standard deviation of a test metric over seeds."""
    values = [test[name] for test in run["tests"]]
    return statistics.fmean(values), statistics.stdev(values)


def describe(runs: Sequence[dict[str, Any]], popularity: float) -> str:
    """The runs as a Markdown table, cohort by cohort."""
    lines = [
        "| cohort | epsilon | HR@10 | NDCG@10 | noise z | signal / noise | rounds | clip |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        test, budget = run["tests"][0], "none" if run["epsilon"] is None else f"{run['epsilon']:g}"
        scores = " | ".join("{:.4f} ± {:.4f}".format(*spread(run, name)) for name in ("hr@10", "ndcg@10"))
        noise, clip = "- | -", "-"
        if run["epsilon"] is not None:
            noise, clip = (
                f"{test['noise_multiplier']:.2f} | {test['signal']:.2f}",
                f"{run['choice']['clip']:.3f}",
            )
        lines.append(f"| {run['cohort']} | {budget} | {scores} | {noise} | {test['rounds']} | {clip} |")
    lines += ["", f"Popularity, which is not private: HR@10 {popularity:.4f}."]
    return "\n".join(lines) + "\n"


def draw(runs: Sequence[dict[str, Any]], popularity: float, path: Path) -> None:
    """HR@10 over epsilon, a line a cohort, dashed without privacy."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, cohort in enumerate(sorted({run["cohort"] for run in runs})):
        own = [run for run in runs if run["cohort"] == cohort]
        points = [(run["epsilon"], *spread(run, "hr@10")) for run in own if run["epsilon"] is not None]
        epsilons, means, deviations = zip(*sorted(points), strict=True)
        axes.errorbar(
            epsilons, means, deviations, marker="o", capsize=3, color=f"C{number}", label=f"{cohort}"
        )
        for run in own:
            if run["epsilon"] is None:
                axes.axhline(spread(run, "hr@10")[0], linestyle="--", color=f"C{number}", linewidth=1)
    axes.axhline(popularity, linestyle=":", color="black", label="Popularity")
    axes.set_xscale("log", base=2)
    budgets = sorted({run["epsilon"] for run in runs if run["epsilon"] is not None})
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.set_xlabel("epsilon, of the whole run (dashed: without privacy)")
    axes.set_ylabel("HR@10, test, 1 + 99 candidates")
    axes.legend(title="clients in a round")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    parser = command_line(__doc__, HERE / "results")
    parser.add_argument("--table", action="store_true", help="run nothing; write what is there")
    given = parse(parser, arguments)
    with contextlib.suppress(RuntimeError):  # jax has started: it stays as it is
        fr.use_cores()
    setting = setting_of(given.data_dir, smoke=given.smoke)
    runs = run_missing(setting, given.results, only_read=given.table)
    split = setting.split
    popularity = result_metrics(popularity_ranks(split), split)[name_sampled(split)]["hr@10"]
    text = describe(runs, popularity)
    print(text)
    (given.results / "table.md").write_text(text, encoding="utf-8")
    draw(runs, popularity, given.results / "utility.png")


if __name__ == "__main__":
    main()
