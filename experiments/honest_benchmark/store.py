"""One small JSON file for each finished unit: what a table needs, no interactions, no paths.

A unit is finished if its file says so *for the same recipe*: other budgets or data make it unfinished, and so does
a failure, which is tried again.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_rec.runs.folders import to_json_values

RESULTS = Path(__file__).parent / "results"
Result = dict[str, Any]


class Unit(NamedTuple):
    """What is computed in one go."""

    dataset: str
    name: str  # of a variant, "central-NAME", or "reference"
    policy: str  # "tune", "clean", "paper-leaky"; "" for the reference
    seed: int = 0

    @property
    def file(self) -> str:
        """Where its result stands, below the results' folder."""
        parts = [self.name, self.policy, str(self.seed)] if self.policy else [self.name]
        return f"{self.dataset}/{'.'.join(parts)}.json"


def read(folder: Path, unit: Unit) -> Result | None:
    """What is known of a unit.

    Args:
        folder: of the results.
        unit: which.

    Returns:
        its result or failure; None if there is none.
    """
    path = folder / unit.file
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def finished(folder: Path, unit: Unit, recipe: Result) -> Result | None:
    """The result of a unit, if it was computed by this recipe and did not fail.

    Args:
        folder: of the results.
        unit: which.
        recipe: what it depends on.

    Returns:
        the result or None.
    """
    found = read(folder, unit)
    return (
        found
        if found is not None
        and found["recipe"] == json.loads(json.dumps(to_json_values(recipe)))
        and "failed" not in found
        else None
    )


def write(folder: Path, unit: Unit, result: Result) -> None:
    """Write a result, whole or not at all.

    Args:
        folder: of the results.
        unit: which.
        result: plain values; what is not finite becomes null.
    """
    path = folder / unit.file
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".draft")
    text = json.dumps(to_json_values(unit._asdict() | result), indent=1, sort_keys=True, allow_nan=False)
    draft.write_text(text + "\n", encoding="utf-8")
    draft.replace(path)


def read_all(folder: Path) -> list[Result]:
    """Every result and failure.

    Args:
        folder: of the results.

    Returns:
        in order of their files' names.
    """
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*/*.json"))]
