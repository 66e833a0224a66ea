"""What `meta.json` of a checkpoint must hold: its seal says that nothing changed it, not who wrote it.

Whatever is read back is checked before it is believed: a file that was made by hand, or by another program, is
refused by the name of what is wrong with it.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_rec.types import RoundInfo

Meta = dict[str, Any]  # what meta.json holds
_LEAF = {"name": str, "shape": list, "dtype": str}
_RUN = {"evaluations": list, "best": dict, "first_round": int, "stopped": str, "seconds": dict}
_IDENTITY = {
    "must_match": dict,
    "plan": dict,
    "values": str,
    "program": str,
    "versions": dict,
    "custom_metadata": dict,
}
_BEST = {"value": float, "round": int, "has_state": bool}
_SECONDS = {"all": float, "train": float, "compile": float}
_MOST_DIMENSIONS = 32  # of an array


def read_meta(path: Path) -> Meta:
    """Read a file as what describes some arrays.

    Args:
        path: of the file.

    Returns:
        its values; those of a run are looked at by `check_run`.

    Raises:
        ValueError: saying what is wrong with it.
        OSError: if it cannot be read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "meta.json").write_text('{"round": 5}')
        ...     read_meta(Path(folder) / "meta.json")
        Traceback (most recent call last):
        ValueError: digest is missing
    """
    try:
        meta = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _require(isinstance(meta, dict), "it holds no names and values")
    _check_fields(meta, "", {"round": int, "digest": str, "leaves": list})
    _require(meta["round"] >= 0, f"round is {meta['round']}")
    for number, leaf in enumerate(meta["leaves"]):
        _check_fields(leaf, f"leaves[{number}]", _LEAF)
        _require(set(leaf) - {"rows"} == set(_LEAF), f"leaves[{number}] has fields that none has")
        sizes = leaf["shape"]
        fits = len(sizes) <= _MOST_DIMENSIONS and all(_is(size, int) and size >= 0 for size in sizes)
        _require(fits, f"leaves[{number}] has no shape")
        rows = leaf.get("rows", 0)
        few = _is(rows, int) and 0 <= rows <= (sizes[0] if sizes else 0)
        _require(few, f"leaves[{number}] has no such number of rows")
    return meta


def check_run(meta: Meta) -> None:
    """Refuse what no run can go on from.

    Args:
        meta: of `read_meta`.

    Raises:
        ValueError: saying what is wrong with it.

    Example:
        >>> check_run({"round": 5, "digest": "", "leaves": []})
        Traceback (most recent call last):
        ValueError: must_match is missing
    """
    _check_fields(meta, "", _IDENTITY | {"run": dict})
    run = meta["run"]
    _check_fields(run, "run", _RUN)
    _check_fields(run["best"], "run.best", _BEST)
    _check_fields(run["seconds"], "run.seconds", _SECONDS)
    _require(1 <= run["first_round"] <= meta["round"] + 1, f"run.first_round is {run['first_round']}")
    _require(run["best"]["round"] <= meta["round"], f"run.best.round is {run['best']['round']}")
    sound = all(math.isfinite(value) and value >= 0 for value in run["seconds"].values())
    _require(sound, "run.seconds are not")
    last = -1
    for evaluation in run["evaluations"]:
        pair = _is(evaluation, list) and len(evaluation) == 2 and _is(evaluation[0], int)
        _require(
            pair and last < evaluation[0] <= meta["round"], "run.evaluations are not in the order of rounds"
        )
        last, metrics = evaluation
        numbers = _is(metrics, dict) and all(_is(value, float) for value in metrics.values())
        _require(numbers, "run.evaluations are no numbers")
    _check_history(meta)


def _check_history(meta: Meta) -> None:
    """The columns of the rounds so far are those that every round reports, of one length."""
    columns = {leaf["name"]: leaf["shape"] for leaf in meta["leaves"] if leaf["name"].startswith("rounds/")}
    expected = {f"rounds/{name}" for name in RoundInfo._fields}
    _require(not columns or set(columns) == expected, "leaves of rounds are not those that a round reports")
    lengths = {tuple(shape) for shape in columns.values()}
    same = len(lengths) <= 1 and all(len(shape) == 1 and shape[0] <= meta["round"] for shape in lengths)
    _require(same, "leaves of rounds differ in their lengths")
    groups = {leaf["name"].partition("/")[0] for leaf in meta["leaves"]}
    _require(groups <= {"state", "best", "rounds"}, "leaves are of something else than a run")


def _check_fields(values: Any, name: str, types: Mapping[str, type]) -> None:
    _require(_is(values, dict), f"{name} holds no names and values")
    for field, kind in types.items():
        path = f"{name}.{field}".removeprefix(".")
        _require(field in values, f"{path} is missing")
        _require(_is(values[field], kind), f"{path} is no {kind.__name__}")


def _is(value: Any, kind: type) -> bool:
    """Whether a value is of a type of JSON's; a float may be written as an integer, and true is no number."""
    kinds = (float, int) if kind is float else (kind,)
    return type(value) in kinds


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ValueError(complaint)
