"""Item promotion against robust aggregation: exposure bought, and accuracy paid.

    python -m experiments.attack_defence --data-dir DATA                # MovieLens 100K, half an hour
    python -m experiments.attack_defence --smoke --results FOLDER       # a tiny population: it proves nothing

A run is a small JSON in `--results`; runs that are there already are not repeated. Afterwards a table is printed,
and `table.md` and `exposure.png` are written beside the runs. See the README beside this file for what to expect.
"""

import argparse
import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.attack_defence import grid, table

HERE = Path(__file__).parent
SMOKE = (("none", "PIECK-UEA"), ("none", "norm bound", "median, touchers"))  # attacks and defences


def settings_of(folder: Path | None, *, smoke: bool) -> tuple[grid.Setting, grid.Setting]:
    """The grid's setting and that of FedRecAttack's reference run."""
    if smoke:
        data = fr.synthetic(60, 50, seed=1, min_events=4, median_events=10)
        split = fr.leave_one_out(data, num_candidates=20)
        tiny = grid.make_setting(split, share=0.1, cohort=20, every=2, dim=4)
        return tiny, tiny
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=folder))
    return grid.make_setting(split), grid.make_setting(split, cohort=256, every=4, times=5, dim=32)


def run_missing(given: argparse.Namespace) -> None:
    """Run what has no file yet: the reference first, then the grid, one attack after the other."""
    setting, reference = settings_of(given.data_dir, smoke=given.smoke)
    attacks, defences = SMOKE if given.smoke else (tuple(grid.ATTACKS), tuple(grid.DEFENCES))
    given.results.mkdir(parents=True, exist_ok=True)

    def pair(attack: str, defence: str) -> dict[str, Any]:
        found = grid.measure_run(setting, grid.make_algorithm(setting, attack, defence))
        return {"attack": attack, "defence": defence} | found

    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        table.REFERENCE: lambda: grid.measure_run(reference, grid.reference_algorithm(reference))
    }
    for attack, defence in itertools.product(attacks, defences):
        tasks[table.name_run(attack, defence)] = partial(pair, attack, defence)
    for name, task in tasks.items():
        path = given.results / f"{name}.json"
        if not path.exists():
            found = task()
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")
            print(name, found["er@10"], found["hr@10"], f"{found['seconds']} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data-dir", type=Path, help="folder of the data sets")
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument(
        "--smoke", action="store_true", help="a tiny population instead; name other --results"
    )
    given = parser.parse_args(arguments)
    if given.smoke and given.results == HERE / "results":
        parser.error("--smoke must not mix with real runs; name another folder with --results")
    run_missing(given)
    runs = table.read_runs(given.results)
    text = table.describe(runs)
    print(text)
    (given.results / "table.md").write_text(text, encoding="utf-8")
    table.draw(runs, given.results / "exposure.png")


if __name__ == "__main__":
    main()
