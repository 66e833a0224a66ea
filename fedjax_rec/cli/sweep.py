"""`fedjax-rec sweep`: try settings on validation, over several seeds, as batches of one compiled program."""

import argparse
import contextlib
import json
import shlex
from pathlib import Path
from typing import Any, Self

from fedjax_rec.cli.output import Unfailing, stage, tell
from fedjax_rec.cli.parser import add_settings
from fedjax_rec.errors import printable
from fedjax_rec.runs.settings import Settings

SETTING_GROUPS = ("data", "protocol", "model", "client", "server", "imbalance")
SETTING_FIELDS = ("seed", "eval_every", "cache", "out")


def add_parser(commands: Any) -> None:
    """Describe `sweep` and its flags."""
    parser = commands.add_parser(
        "sweep",
        help="try settings on validation, over several seeds",
        description="Train with every combination of some settings and rank the validation items: many small runs "
        "as one compiled program. Writes a folder with a table, a picture, and the best settings as best.toml for "
        "`run --config`. A sweep that was stopped goes on by the same command with its folder as --out.",
        usage="%(prog)s --set NAME=VALUE,VALUE [--set ...] [--seeds N] [--budget ROUNDS] [--SETTING VALUE ...]",
        allow_abbrev=False,
    )
    own = parser.add_argument_group("sweep")
    own.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE,VALUE",
        help="values to try of a setting; may be repeated, and all combinations are tried",
    )
    own.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="runs of each, from --seed on (default: 1)"
    )
    own.add_argument(
        "--budget", type=int, metavar="ROUNDS", help="rounds of each trial (default: by algorithm)"
    )
    own.add_argument(
        "--halving",
        action="store_true",
        help="successive halving: all settings for few rounds, the better third for more, the last for the budget",
    )
    own.add_argument(
        "--config", metavar="FILE", help="a .toml file of settings, or a run folder; flags go first"
    )
    own.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    own.add_argument("--quiet", action="store_true", help="say nothing of the progress")
    add_settings(parser, SETTING_GROUPS, SETTING_FIELDS, given_only=True)


def call(given: argparse.Namespace) -> int:
    """Try the settings in a folder that is reserved first, or that holds a part of them already."""
    from fedjax_rec.cli.run import values_of_run
    from fedjax_rec.runs.search_plan import parse_grid
    from fedjax_rec.runs.sweeps import ask, is_sweep, rungs

    values = values_of_run(given)
    values.pop("rounds", None)  # of a file: trials have the budget
    settings = Settings(**values)
    space = parse_grid(given.set, settings.algorithm)
    for name in space:
        if getattr(given, name, None) is not None:
            raise ValueError(f"{name} is set by --{name.replace('_', '-')} and tried by --set; leave one out")
    asked = ask(settings, space, seeds=given.seeds, budget=given.budget, halving=given.halving)
    if not given.quiet:
        counts = ", then ".join(f"{count} for {rounds:,} rounds" for count, rounds in rungs(asked))
        stage(f"settings: {counts}; {asked.seeds} seeds each")
    from fedjax_rec.algorithms.own import label_of
    from fedjax_rec.runs.reserve import lock_run_folder, reserve_folder

    name = f"{Path(settings.dataset).stem}-{label_of(settings.algorithm)}-sweep"
    out = None if settings.out is None else Path(settings.out).expanduser().absolute()
    held = lock_run_folder(out) if out is not None and is_sweep(out) else reserve_folder(settings.out, name)
    with held as folder:
        return _sweep(given, asked, folder)


def _sweep(given: argparse.Namespace, asked: Any, folder: Path) -> int:
    from fedjax_rec.engine.devices import use_cores
    from fedjax_rec.runs import sweep_files
    from fedjax_rec.runs.configuration import command_of
    from fedjax_rec.runs.folders import to_json_values
    from fedjax_rec.runs.sweeps import is_sweep, run_sweep

    further = {
        "set": given.set,
        "seeds": None if given.seeds == 1 else given.seeds,
        "budget": given.budget,
        "halving": given.halving or None,
        "config": given.config,
        "out": str(folder),
    }
    flags = {name: value for name, value in vars(given).items() if name in Settings.__dataclass_fields__}
    again = command_of(Settings(**flags), "sweep", further)
    if not given.quiet:
        tell(f"folder: {folder}; after a kill or Ctrl-C go on with: {again}")
    with contextlib.suppress(RuntimeError):  # jax has started
        use_cores(cache=asked.settings.cache)
    with _Bar(quiet=given.quiet) as bar:
        try:
            swept = run_sweep(asked, folder, on_stage=bar.begin, on_rounds=bar.show)
        except KeyboardInterrupt:
            bar.close()
            kept = f"what is finished is kept in {folder}" if is_sweep(folder) else "no trial was finished"
            tell(f"stopped; {kept}; go on with: {again}" if is_sweep(folder) else f"stopped; {kept}")
            raise
    if given.json:
        print(json.dumps(to_json_values(sweep_files.as_json(swept) | {"folder": str(folder)}), indent=2))
        return 0
    print(printable_lines(sweep_files.sweep_table(swept)))
    print(f"folder: {printable(str(folder))}")
    print(printable(f"train with the best: fedjax-rec run --config {shlex.quote(str(folder / 'best.toml'))}"))
    return 0


def printable_lines(text: str) -> str:
    """A text of several lines, each as a terminal may show it.

    Args:
        text: with names and values that were given.

    Returns:
        the same lines.

    Example:
        >>> printable_lines("a" + chr(10) + "b").count(chr(10))
        1
    """
    return "\n".join(printable(line) for line in text.splitlines())


class _Bar:
    """A bar for each rung, over the rounds of all its runs."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self, text: str) -> None:
        self.close()
        if not self.quiet:
            stage(text)

    def show(self, done: int, total: int) -> None:
        if self.quiet:
            return
        if self.bar is None:
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="round", file=Unfailing())
        self.bar.update(done - self.bar.n)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
