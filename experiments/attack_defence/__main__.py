"""Item promotion against robust aggregation: exposure bought, and accuracy paid.

    python -m experiments.attack_defence --data-dir DATA                # MovieLens 100K, half an hour
    python -m experiments.attack_defence --smoke --results FOLDER       # a tiny population: it proves nothing

A run is a small JSON in `--results`; runs that are there already are not repeated. Afterwards a table is printed,
and `table.md` and `exposure.png` are written beside the runs. See the README beside this file for what to expect.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.attack_defence import grid, table
from experiments.keeping import command_line, keep_runs, parse, tiny_split

HERE = Path(__file__).parent
SMOKE = (("none", "PIECK-UEA"), ("none", "norm bound", "median, touchers"))  # attacks and defences


def settings_of(folder: Path | None, *, smoke: bool) -> tuple[grid.Setting, grid.Setting]:
    """The grid's setting and that of FedRecAttack's reference run."""
    if smoke:
        tiny = grid.make_setting(tiny_split(), share=0.1, cohort=20, every=2, dim=4)
        return tiny, tiny
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=folder))
    return grid.make_setting(split), grid.make_setting(split, cohort=256, every=4, times=5, dim=32)


def run_missing(given: argparse.Namespace) -> None:
    """Run what has no file yet: the reference first, then the grid, one attack after the other."""
    setting, reference = settings_of(given.data_dir, smoke=given.smoke)
    attacks, defences = SMOKE if given.smoke else (tuple(grid.ATTACKS), tuple(grid.DEFENCES))

    def pair(attack: str, defence: str) -> dict[str, Any]:
        found = grid.measure_run(setting, grid.make_algorithm(setting, attack, defence))
        return {"attack": attack, "defence": defence} | found

    tasks: dict[str, Callable[[], dict[str, Any]]] = {
        table.REFERENCE: lambda: grid.measure_run(reference, grid.reference_algorithm(reference))
    }
    for attack, defence in itertools.product(attacks, defences):
        tasks[table.name_run(attack, defence)] = partial(pair, attack, defence)
    for name, (run, fresh) in zip(tasks, keep_runs(tasks, given.results), strict=True):
        if fresh:
            print(name, run["er@10"], run["hr@10"], f"{run['seconds']} s", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing; print the table; write it and the figure."""
    given = parse(command_line(__doc__, HERE / "results"), arguments)
    run_missing(given)
    runs = table.read_runs(given.results)
    text = table.describe(runs)
    print(text)
    (given.results / "table.md").write_text(text, encoding="utf-8")
    table.draw(runs, given.results / "exposure.png")


if __name__ == "__main__":
    main()
