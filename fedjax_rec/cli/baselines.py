"""`fedjax-rec baselines`: fit central recommenders on the split that `run` has with the same flags."""

import argparse
from pathlib import Path
from typing import Any

from fedjax_rec.cli.output import stage
from fedjax_rec.cli.parser import add_settings, settings_of
from fedjax_rec.errors import printable

SETTING_GROUPS = ("data", "protocol")  # the settings that mean something here, and single ones
SETTING_FIELDS = ("seed", "cache", "out", "tune")


def add_parser(commands: Any) -> None:
    """Describe `baselines` and its flags."""
    parser = commands.add_parser(
        "baselines",
        help="fit central baselines on the split of a run",
        description="Fit central recommenders, which see all training events at once, on the split that `run` has "
        "with the same flags; choose their settings on validation, measure them, and write a folder, by default "
        "runs/DATASET-baselines-N.",
        allow_abbrev=False,
    )
    add_settings(parser, SETTING_GROUPS, SETTING_FIELDS)
    methods = parser.add_argument_group("methods")
    methods.add_argument(
        "--baselines", default="all", metavar="NAMES", help="methods with commas between them (default: all)"
    )
    methods.add_argument(
        "--options",
        metavar="METHOD.SETTING=NUMBER,...",
        help="use these settings, such as ease.regularisation=300, and do not choose the method's settings on "
        "validation",
    )


def call(given: argparse.Namespace) -> int:
    """Fit and measure the methods, write their folder and print the table."""
    settings = settings_of(given)
    from fedjax_rec.engine.kept_programs import keep_programs
    from fedjax_rec.evaluation.central import parse_method_names, parse_method_settings
    from fedjax_rec.runs import report
    from fedjax_rec.runs.baselines import fill_baseline_folder, run_baseline_experiment
    from fedjax_rec.runs.reserve import reserve_folder

    if settings.cache:
        keep_programs()
    names = parse_method_names(given.baselines)
    fixed = parse_method_settings(given.options.split(",") if given.options else [])
    with reserve_folder(settings.out, f"{Path(settings.dataset).stem}-baselines") as folder:
        outcome = run_baseline_experiment(settings, names=names, fixed_settings=fixed, on_stage=stage)
        fill_baseline_folder(outcome, folder)
    for line in outcome.split.log:
        print(line)
    print(report.baseline_table(outcome))
    print(f"folder: {printable(str(folder))}")
    return 0
