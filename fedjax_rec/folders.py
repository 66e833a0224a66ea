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
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks, count_rivals

CHECKPOINTS, RESUME = "checkpoints", "fedjax-rec resume"


def choose_place(out: str | None, name: str) -> Path:
    """Choose a folder: the one asked for, or the first free runs/NAME-NUMBER.

    Args:
        out: the folder asked for, or None.
        name: of what is written, such as "ml-100k-fedmf".

    Returns:
        the absolute path of a folder that does not exist yet, or is empty; nothing is created.

    Raises:
        ValueError: if nothing can be written there, or something would be overwritten.

    Example:
        >>> choose_place("somewhere/new", "any").name
        'new'
    """
    if out is None:
        folder = next_free(Path("runs").absolute() / f"{name}-1")
    else:
        if "\0" in out:
            raise ValueError(f"--out {out!r} is no path: it holds a null character")
        folder = Path(out).expanduser().absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        hint = f", or go on with: {RESUME} {folder}" if (folder / CHECKPOINTS).is_dir() else ""
        raise ValueError(f"--out {folder} exists and is not empty; name a new folder{hint}")
    parent = next(place for place in folder.parents if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"--out {folder} cannot be created: {parent} is not a folder that can be written")
    return folder


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
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = write_folder(Path(place) / "run", lambda draft: dump_json(draft / "a.json", {}))
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
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = fill_folder(Path(place), lambda draft: dump_json(draft / "a.json", {}), "a.json")
        ...     [path.name for path in folder.iterdir()]
        ['a.json']
    """
    for left in folder.glob(".draft-*"):  # of a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".draft-", dir=folder) as place:
        write(Path(place))
        (folder / last).unlink(missing_ok=True)
        for path in sorted(Path(place).iterdir(), key=lambda path: (path.name == last, path.name)):
            path.replace(folder / path.name)
    return folder


def plain(value: Any) -> Any:
    """Turn a nest of dicts and lists into what JSON knows.

    Args:
        value: the nest; its leaves may be numpy numbers.

    Returns:
        the same in plain values; what is not finite is None.

    Example:
        >>> plain({"a": [np.float32(0.5), float("nan")]})
        {'a': [0.5, None]}
    """
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
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

    Example:
        see `write_folder`.
    """
    path.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def dump_protocol(path: Path, protocol: Protocol) -> None:
    """Write `protocol.json`: the protocol's id and all its fields.

    Args:
        path: of the file.
        protocol: how results were evaluated.

    Example:
        see `write_folder`.
    """
    dump_json(path, {"protocol_id": protocol_id(protocol)} | protocol.to_json())


def user_arrays(split: Split) -> dict[str, np.ndarray]:
    """What `per_user.npz` says of the users, whatever ranked their items.

    Args:
        split: with N users.

    Returns:
        by name, [N] each: `user_ids`, `test_item_ids` (external, as text), `train_events`, `rivals_full`,
        `rivals_sampled`.

    Example:
        >>> import fedjax_rec as fr
        >>> sorted(user_arrays(fr.leave_one_out(fr.load_dataset("synthetic"))))[:2]
        ['rivals_full', 'rivals_sampled']
    """
    rivals = count_rivals(split)
    return {
        "user_ids": split.user_ids,
        "test_item_ids": external_ids(split.item_ids, split.test),
        "train_events": np.diff(split.offsets),
        **{f"rivals_{part}": getattr(rivals, part) for part in Ranks._fields},
    }


def rank_arrays(ranks: Ranks, prefix: str = "") -> dict[str, np.ndarray]:
    """What `per_user.npz` says of one ranking of the test items.

    Args:
        ranks: of N users.
        prefix: of the names.

    Returns:
        by name, [N] each, for both rankings: `rank_*` (mid-ranks, NaN without a positive) and `tied_*` (rivals of
        equal score).

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> sorted(rank_arrays(fr.popularity_ranks(split), "popularity_"))[0]
        'popularity_rank_full'
    """
    arrays = {}
    for part in Ranks._fields:
        places = getattr(ranks, part)
        arrays[f"{prefix}rank_{part}"] = np.asarray(places.mid)
        arrays[f"{prefix}tied_{part}"] = np.asarray(places.tied)
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
