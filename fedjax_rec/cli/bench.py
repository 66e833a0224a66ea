"""`fedjax-rec bench`: how fast rounds are on this machine, beside what `plan` predicts."""

import argparse
import contextlib
import json
from typing import Any

from fedjax_rec.cli.output import Unfailing, tell

NOTE = (
    "to compare: two quiet cores of an AMD Zen 4 trained 32,111 clients/s in one epoch, 20,121 in small cohorts "
    "and 6,797 in five epochs, one H200 140,343 in one epoch, on MovieLens 1M itself (experiments/benchmarks)"
)


def add_parser(commands: Any) -> None:
    """Describe `bench` and its flags."""
    parser = commands.add_parser(
        "bench",
        help="measure how fast rounds are on this machine",
        description="Train fedmf on drawn histories of MovieLens 1M's size in a few standard shapes, and show "
        "rounds, clients and examples a second. Half a minute on two quiet cores.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=3.0,
        metavar="S",
        help="of each shape (default: 3), compilation apart",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--quiet", action="store_true", help="say nothing of the progress")


def call(given: argparse.Namespace) -> int:
    """Measure, and print."""
    from tqdm import tqdm

    from fedjax_rec.engine.devices import use_cores
    from fedjax_rec.runs.bench import SHAPES, run_bench

    with contextlib.suppress(RuntimeError):  # jax has started
        use_cores()
    if not given.quiet:
        tell(f"{len(SHAPES)} shapes, {given.seconds:g} s each and their compilation")
    with tqdm(total=len(SHAPES), unit="shape", file=Unfailing(), disable=given.quiet) as bar:
        found = run_bench(seconds=given.seconds, on_shape=lambda _: bar.update())
    rows = [as_dict(each) for each in found]
    if given.json:
        from fedjax_rec.training.checkpoints.versions import versions

        print(json.dumps({"shapes": rows, "versions": versions(), "note": NOTE}, indent=2))
        return 0
    print(f"{'':14}{'rounds/s':>10}{'clients/s':>12}{'least':>10}{'most':>10}{'examples/s':>13}")
    for row in rows:
        print(
            f"{row['name']:14}{row['rounds_per_second']:10,.1f}{row['clients_per_second']:12,.0f}"
            f"{row['least_clients_per_second']:10,.0f}{row['most_clients_per_second']:10,.0f}"
            f"{row['examples_per_second']:13,.0f}"
        )
    print(f"fedmf, D = 64, on {found[0].devices} device(s); medians, and the slowest and fastest repeat")
    print(NOTE)
    return 0


def as_dict(measured: Any) -> dict[str, Any]:
    """A measurement as plain values.

    Args:
        measured: of `runs.bench.run_bench`.

    Returns:
        by name.
    """
    shape = measured.shape
    return {
        **shape._asdict(),
        "events": measured.events,
        "devices": measured.devices,
        "lanes": measured.lanes,
        "repeats": len(measured.seconds),
        "compile_seconds": measured.compile_seconds,
        "rounds_per_second": 1 / measured.median,
        "clients_per_second": measured.clients_per_second,
        "least_clients_per_second": shape.cohort / max(measured.seconds),
        "most_clients_per_second": shape.cohort / min(measured.seconds),
        "examples_per_second": measured.examples_per_second,
    }
