"""`fedjax-rec compare`: run folders of one protocol side by side."""

import argparse
from typing import Any

from fedjax_rec.cli.output import tell

# Those of `runs.comparison_formats`, which is imported only when the command is called.
FORMATS = ("table", "csv", "json", "latex", "markdown")


def add_parser(commands: Any) -> None:
    """Describe `compare` and its flags."""
    parser = commands.add_parser(
        "compare",
        help="compare finished runs of one protocol",
        description="Compare run folders with the first of them: means with bootstrap intervals over users, "
        "paired differences, and tests adjusted over the table. Runs of different protocols are refused.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs",
        nargs="*",
        metavar="RUN",
        help="run folders, 2 or more; FOLDER:METHOD is a central baseline in it, a folder of `baselines` is all",
    )
    parser.add_argument(
        "--metric",
        default="ndcg@10",
        help="hr@k, ndcg@k, mrr@k, recall@k, truncated_recall@k, precision@k, map@k, mrr, map or auc; several "
        "with commas (default: ndcg@10)",
    )
    parser.add_argument("--ranking", default="full", help="full, or sampled99 (default: full)")
    parser.add_argument(
        "--format", default="table", choices=FORMATS, help="how it is written (default: table)"
    )
    parser.add_argument(
        "--group-seeds", action="store_true", help="runs that differ in their seed alone share a row"
    )


def call(given: argparse.Namespace) -> int:
    """Compare the runs and print the comparison."""
    from fedjax_rec.runs.compare import compare_runs
    from fedjax_rec.runs.comparison_formats import render

    comparison = compare_runs(
        given.runs,
        metrics=[name.strip() for name in given.metric.split(",")],
        ranking=given.ranking,
        group_seeds=given.group_seeds,
    )
    print(render(comparison, given.format))
    if given.format == "csv":  # which has no room for words
        for line in comparison.warnings:
            tell(line)
    return 0
