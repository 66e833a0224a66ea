"""Experiments whose runs are small JSON files: their command line, and running what has no file yet."""

import argparse
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import fedjax_rec as fr
from fedjax_rec.data.splits import Split

Run = dict[str, Any]


class Kept(NamedTuple):
    """A run that has its file."""

    run: Run
    fresh: bool  # whether it was just made


def command_line(
    about: str | None, results: Path, data: str = "folder of the data sets"
) -> argparse.ArgumentParser:
    """The options that all have: `--data-dir`, `--results`, `--smoke`."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, help=data)
    parser.add_argument("--results", type=Path, default=results)
    parser.add_argument("--smoke", action="store_true", help="a tiny population; name other --results")
    return parser


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; a tiny population must not leave its runs among the real ones."""
    given = parser.parse_args(arguments)
    if given.smoke and given.results == parser.get_default("results"):
        parser.error("--smoke must not mix with real runs; name another folder with --results")
    return given


def tiny_split() -> Split:
    """The population of `--smoke`: 60 users, 50 items, 20 candidates."""
    data = fr.data.synthetic(60, 50, seed=1, min_events=4, median_events=10)
    return fr.leave_one_out(data, num_candidates=20)


def file_name(name: str) -> str:
    """A name that a file can have."""
    return "".join(c if c.isalnum() else "-" for c in name)


def keep_runs(tasks: Mapping[str, Callable[[], Run]], folder: Path, *, read: bool = False) -> Iterator[Kept]:
    """Run what has no file yet, one after the other, and read the others; `read` runs nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, task in tasks.items():
        path = folder / f"{name}.json"
        fresh = not path.exists()
        if fresh and read:
            continue
        if fresh:
            path.write_text(json.dumps(task()) + "\n", encoding="utf-8")
        yield Kept(json.loads(path.read_text(encoding="utf-8")), fresh)
