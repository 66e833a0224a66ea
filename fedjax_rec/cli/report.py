"""`fedjax-rec report`: one HTML page about runs."""

import argparse
from typing import Any

from fedjax_rec.errors import printable


def add_parser(commands: Any) -> None:
    """Describe `report` and its flags."""
    parser = commands.add_parser(
        "report",
        help="write one HTML page about runs",
        description="Write one HTML page about runs of one protocol, which needs no other file and no network: "
        "scores with intervals, learning curves, clients, groups, bytes, privacy, and how to repeat each run.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", nargs="*", metavar="RUN", help="run folders; the first is what others are compared with"
    )
    parser.add_argument(
        "--out", metavar="FILE", help="a new file (default: report.html in the first run's folder)"
    )
    parser.add_argument(
        "--metric",
        help="as of compare, several with commas; figures show the first (default: ndcg@10, and hr@10 or "
        "recall@10)",
    )
    parser.add_argument("--ranking", default="full", help="full, or sampled99 (default: full)")
    parser.add_argument(
        "--group-seeds",
        action="store_true",
        help="runs that differ in their seed alone are one row, and one curve with a band",
    )


def call(given: argparse.Namespace) -> int:
    """Write the page, and say where it is."""
    from fedjax_rec.runs.page import write_report

    metrics = None if given.metric is None else [name.strip() for name in given.metric.split(",")]
    path = write_report(
        given.runs, given.out, metrics=metrics, ranking=given.ranking, group_seeds=given.group_seeds
    )
    print(f"report: {printable(str(path))}")
    return 0
