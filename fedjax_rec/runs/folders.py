"""Folders of results: where they go, and how they are written: whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks, count_rivals

CHECKPOINTS = "checkpoints"
RESUME_COMMAND = "fedjax-rec resume"


def choose_folder(out: str | None, name: str) -> Path:
    """Choose a folder: the one asked for, or the first free runs/NAME-NUMBER.

    Args:
        out: the folder asked for, or None.
        name: of what is written, such as "ml-100k-fedmf".

    Returns:
        the absolute path of a folder that does not exist yet, or is empty; nothing is created.

    Raises:
        ValueError: if nothing can be written there, or something would be overwritten.

    Example:
        >>> choose_folder("somewhere/new", "any").name
        'new'
    """
    if out is None:
        folder = next_free(Path("runs").absolute() / f"{name}-1")
    else:
        if "\0" in out:
            raise ParameterError("{out} {value!r} is no path: it holds a null character", value=out)
        folder = Path(out).expanduser().absolute()
    if folder.exists() and not is_free(folder):
        hint = f", or go on with: {RESUME_COMMAND} {folder}" if has_checkpoints(folder) else ""
        raise ParameterError(
            "{out} {folder} exists and is not empty; name a new folder{hint}", folder=folder, hint=hint
        )
    parent = next(path for path in folder.parents if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ParameterError(
            "{out} {folder} cannot be created: {parent} is not a folder that can be written",
            folder=folder,
            parent=parent,
        )
    return folder


def is_free(folder: Path) -> bool:
    """Whether nothing in an existing folder would be overwritten; one that was only reserved is free again.

    Args:
        folder: that exists.

    Returns:
        True if it holds nothing of value.

    Example:
        >>> is_free(Path("."))
        False
    """
    if not folder.is_dir():
        return False
    root = folder / CHECKPOINTS
    return set(folder.iterdir()) <= {root} and not any(root.glob("*/round-*"))


def has_checkpoints(folder: Path) -> bool:
    """Whether a run can go on from what a folder holds.

    Args:
        folder: of the run.

    Returns:
        True if there is a checkpoint, sound or not.

    Example:
        >>> has_checkpoints(Path("no/such"))
        False
    """
    return any((folder / CHECKPOINTS).glob("*/round-*"))


def next_free(folder: Path) -> Path:
    """Count a folder's number up until nothing has the name.

    Args:
        folder: NAME-NUMBER.

    Returns:
        the folder, or the same with the next number that is free.

    Example:
        >>> next_free(Path("no/such/run-1")).name
        'run-1'
    """
    stem, _, number = folder.name.rpartition("-")
    while folder.exists():
        number = str(int(number) + 1)
        folder = folder.with_name(f"{stem}-{number}")
    return folder


def write_folder(folder: str | Path, write: Callable[[Path], None], *, renumber: bool = False) -> Path:
    """Write a folder atomically: into a hidden neighbour first, which is then renamed.

    Args:
        folder: where; it may not exist, or be empty.
        write: fills the folder that it is given.
        renumber: if the folder, NAME-NUMBER, is taken by now, use the next number that is free.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = write_folder(Path(parent) / "run", lambda draft: dump_json(draft / "a.json", {}))
        ...     [path.name for path in folder.iterdir()]
        ['a.json']
    """
    folder = Path(folder).absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        write(draft)
        draft.chmod(0o755)
        if renumber:
            folder = next_free(folder)
        if folder.exists():
            folder.rmdir()
        draft.rename(folder)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def fill_folder(folder: Path, write: Callable[[Path], None], last: str) -> Path:
    """Write files into a folder that holds others; the one that says that all are there goes first and comes last.

    Args:
        folder: where; files of the same names are replaced.
        write: fills the folder that it is given.
        last: the file without which the others are not believed.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = fill_folder(Path(parent), lambda draft: dump_json(draft / "a.json", {}), "a.json")
        ...     [path.name for path in folder.iterdir()]
        ['a.json']
    """
    for abandoned in folder.glob(".draft-*"):  # of a process that was killed
        shutil.rmtree(abandoned, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as draft:
        write(Path(draft))
        (folder / last).unlink(missing_ok=True)
        for path in sorted(Path(draft).iterdir(), key=lambda path: (path.name == last, path.name)):
            path.replace(folder / path.name)
    return folder


def to_json_values(value: Any) -> Any:
    """Turn a nest of dicts and lists into what JSON knows.

    Args:
        value: the nest; its leaves may be numpy numbers.

    Returns:
        the same in plain values; what is not finite is None.

    Example:
        >>> to_json_values({"a": [np.float32(0.5), float("nan")]})
        {'a': [0.5, None]}
    """
    if isinstance(value, dict):
        return {name: to_json_values(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [to_json_values(inner) for inner in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def dump_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file of JSON, indented.

    Args:
        path: of the file.
        value: plain values.

    Raises:
        ValueError: if a number is not finite.
    """
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a file that `dump_json` wrote, or that should be one.

    Args:
        path: of the file.

    Returns:
        its values by name.

    Raises:
        ValueError: naming the file, if it is no JSON object, or nested deeper than anything that is written here.
        OSError: if it cannot be read.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dump_json(Path(folder) / "a.json", {"b": 1})
        ...     read_json(Path(folder) / "a.json")
        {'b': 1}
    """
    try:
        values = json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError(f"{path.name} is nested too deeply") from None
    except ValueError as problem:
        raise ValueError(f"{path.name} is no JSON ({problem})") from problem
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no names and values")
    return values


def dump_protocol(path: Path, protocol: Protocol, *, tuned: int | None = None) -> None:
    """Write `protocol.json`: the protocol's id and all its fields.

    Args:
        path: of the file.
        protocol: how results were evaluated.
        tuned: how many settings were tried on validation; no part of the id, so that tuned and untuned results
            have a price of federation, which says so.
    """
    tried = {} if tuned is None else {"tuned": tuned}
    dump_json(path, {"protocol_id": protocol_id(protocol)} | protocol.to_json() | tried)


def user_arrays(split: Split) -> dict[str, np.ndarray]:
    """What `per_user.npz` says of the users, whatever ranked their items.

    Args:
        split: with N users.

    Returns:
        by name, [N] each: `user_ids`, `test_item_ids` (external, as text), `train_events`, `rivals_full`,
        `rivals_sampled`. Where users have several test items, `test_item_ids` are all of them, [P], user u's being
        `test_offsets[u]` to `test_offsets[u + 1]`.

    Example:
        >>> import fedjax_rec as fr
        >>> sorted(user_arrays(fr.leave_one_out(fr.load_dataset("synthetic"))))[:2]
        ['rivals_full', 'rivals_sampled']
    """
    rivals = count_rivals(split)
    items = {"test_item_ids": external_ids(split.item_ids, split.test)}
    if split.heldout is not None:
        held = split.heldout.test
        items = {"test_item_ids": external_ids(split.item_ids, held.items), "test_offsets": held.offsets}
    return {
        "user_ids": split.user_ids,
        **items,
        "train_events": np.diff(split.offsets),
        **{f"rivals_{ranking}": getattr(rivals, ranking) for ranking in Ranks._fields},
    }


def rank_arrays(ranks: Ranks, prefix: str = "") -> dict[str, np.ndarray]:
    """What `per_user.npz` says of one ranking of the test items.

    Args:
        ranks: of N users.
        prefix: of the names.

    Returns:
        by name, [N] each, or [P] where users have several test items, for both rankings: `rank_*` (mid-ranks, NaN
        without a positive) and `tied_*` (rivals of equal score).

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> sorted(rank_arrays(fr.evaluation.popularity_ranks(split), "popularity_"))[0]
        'popularity_rank_full'
    """
    arrays = {}
    for ranking in Ranks._fields:
        mid_ranks = getattr(ranks, ranking)
        arrays[f"{prefix}rank_{ranking}"] = np.asarray(mid_ranks.mid)
        arrays[f"{prefix}tied_{ranking}"] = np.asarray(mid_ranks.tied)
    return arrays


def external_ids(ids: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Give external ids as text.

    Args:
        ids: [I], external ids.
        codes: int[N], -1 for none.

    Returns:
        str[N], empty where there is none.

    Example:
        >>> external_ids(np.array([7, 8]), np.array([1, -1])).tolist()
        ['8', '']
    """
    names = ids.astype(str)
    return np.where(codes >= 0, names[np.maximum(codes, 0)], "")
