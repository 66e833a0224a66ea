"""`fedjax-rec version`: versions, without importing what they are of."""

import argparse
import json
from importlib.metadata import PackageNotFoundError, version
from platform import python_version
from typing import Any

import fedjax_rec
from fedjax_rec.startup import PROGRAM

STANDS_ON = ("jax", "jaxlib", "flax", "optax", "numpy", "pandas")


def add_parser(commands: Any) -> None:
    """Describe `version` and its flag."""
    parser = commands.add_parser(
        "version",
        help="show the versions of this program and of what it stands on",
        description="Show the versions of this program, of Python, and of the libraries behind a run's numbers.",
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def call(given: argparse.Namespace) -> int:
    """Print them, a line each."""
    found = {PROGRAM: fedjax_rec.__version__, "python": python_version()} | {
        name: _version_of(name) for name in STANDS_ON
    }
    print(
        json.dumps(found, indent=2)
        if given.json
        else "\n".join(f"{name} {text}" for name, text in found.items())
    )
    return 0


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
