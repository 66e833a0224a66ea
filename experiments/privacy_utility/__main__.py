"""What user-level differential privacy costs on MovieLens 1M, by epsilon and by cohort.

    python -m experiments.privacy_utility --data-dir DATA               # under 90 minutes on two cores
    python -m experiments.privacy_utility --smoke --results FOLDER      # a tiny population: it proves nothing

Each cohort and budget is a small JSON in `--results`; those that are there already are not repeated. Afterwards
a table is printed, and `table.md` and `utility.png` are written beside them. See the README beside this file for
what to expect.
"""

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.privacy_utility.runs import Setting, tune
from fedjax_rec.evaluation.baselines import popularity_ranks
from fedjax_rec.evaluation.measure import measure, name_sampled

HERE = Path(__file__).parent


def setting_of(folder: Path | None, *, smoke: bool) -> Setting:
    """The setting of all runs."""
    if smoke:
        data = fr.synthetic(60, 50, seed=1, min_events=4, median_events=10)
        split = fr.leave_one_out(data, num_candidates=20)
        return Setting(split, cohorts=(60,), epsilons=(8.0,), trials=2, seeds=(0, 1), passes=2.0, dim=4)
    return Setting(fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=folder)))


def run_missing(setting: Setting, folder: Path, *, only_read: bool = False) -> list[dict[str, Any]]:
    """Run what has no file yet, unless files are only to be read, and read all."""
    from tqdm import tqdm

    folder.mkdir(parents=True, exist_ok=True)
    tasks = [(cohort, epsilon) for cohort in setting.cohorts for epsilon in (*setting.epsilons, None)]
    found = []
    for cohort, epsilon in tqdm(tasks, unit="budget", file=sys.stderr):
        path = folder / f"{cohort}-{'plain' if epsilon is None else f'{epsilon:g}'}.json"
        if not path.exists() and not only_read:
            path.write_text(json.dumps(tune(setting, cohort, epsilon)) + "\n", encoding="utf-8")
        if path.exists():
            found.append(json.loads(path.read_text(encoding="utf-8")))
    return found


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
    axes.set_xlabel("epsilon, of the whole run (dashed: without privacy)")
    axes.set_ylabel("HR@10, test, 1 + 99 candidates")
    axes.legend(title="clients in a round")
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--smoke", action="store_true", help="a tiny population; name other --results")
    parser.add_argument("--table", action="store_true", help="run nothing; write what is there")
    given = parser.parse_args(arguments)
    if given.smoke and given.results == HERE / "results":
        parser.error("--smoke must not mix with real runs; name another folder with --results")
    with contextlib.suppress(RuntimeError):  # jax has started: it stays as it is
        fr.use_cores()
    setting = setting_of(given.data_dir, smoke=given.smoke)
    runs = run_missing(setting, given.results, only_read=given.table)
    split = setting.split
    popularity = measure(popularity_ranks(split), split)[name_sampled(split)]["hr@10"]
    text = describe(runs, popularity)
    print(text)
    (given.results / "table.md").write_text(text, encoding="utf-8")
    draw(runs, popularity, given.results / "utility.png")


if __name__ == "__main__":
    main()
