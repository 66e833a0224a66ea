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
        raise ValueError(f"--out {folder} exists and is not empty; name a new folder")
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
