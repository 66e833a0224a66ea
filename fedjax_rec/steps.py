"""Steps: the folders that checkpoints are made of, each written whole or not at all.

    CHECKPOINTS/round-00000040/arrays/...   every array, as orbax writes them
    CHECKPOINTS/round-00000040/meta.json    what they are, and all else that a run goes on from
    CHECKPOINTS/round-00000040/seal.json    the SHA-256 of every file, written last

A step is made as a hidden neighbour, flushed, sealed and then renamed: a name without a dot always had a seal.
Nothing is ever unpickled.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.disk import flush
from fedjax_rec.leaves import Leaf, digest
from fedjax_rec.seal import find_damage, seal, write_durably

MARGIN = 2**17  # bytes that a step takes besides its arrays, at most
SCHEMA = 1  # of meta.json; a change of it needs a line in MIGRATIONS
INSTALL = "checkpoints need orbax-checkpoint; pip install 'fedjax_rec[checkpoints]'"
Meta = dict[str, Any]
_NAME = re.compile(r"round-(\d{8})")
_DRAFT, _OLD = ".draft-", ".old-"


class Found(NamedTuple):
    """The newest step that can be believed."""

    path: Path | None  # None: there is no step at all
    meta: Meta
    damaged: tuple[str, ...]  # newer steps that cannot, and what is wrong with them


def _from_0(meta: Meta) -> Meta:
    """Schema 0 kept neither times nor why a run had ended."""
    run = {"stopped": "", "seconds": dict.fromkeys(("all", "train", "compile"), 0.0)}
    return meta | {"schema": 1, "run": run | meta["run"]}


MIGRATIONS: dict[int, Callable[[Meta], Meta]] = {0: _from_0}  # from a schema to the next one


def migrate(meta: Meta, source: str) -> Meta:
    """Bring what an older version wrote to today's schema.

    Args:
        meta: of a step.
        source: its name, for the error.

    Returns:
        the same in schema `SCHEMA`.

    Raises:
        ValueError: if a newer version wrote it, or one that is no longer known.

    Example:
        >>> migrate({"schema": SCHEMA + 1}, "round-00000040")
        Traceback (most recent call last):
        ValueError: round-00000040: schema is 2 in the checkpoint, and this version reads 0 to 1; update fedjax_rec
    """
    while (schema := meta.get("schema")) != SCHEMA:
        if schema not in MIGRATIONS:
            raise ValueError(
                f"{source}: schema is {schema} in the checkpoint, and this version reads {min(MIGRATIONS)} to "
                f"{SCHEMA}; update fedjax_rec"
            )
        meta = MIGRATIONS[schema](meta)
    return meta


def library() -> Any:
    """Import orbax-checkpoint.

    Returns:
        the module.

    Raises:
        ImportError: if it is not installed, with the command that installs it.

    Example:
        >>> library().__name__
        'orbax.checkpoint'
    """
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as problem:
        raise ImportError(INSTALL) from problem


def step_paths(folder: Path) -> list[Path]:
    """The steps of a folder, sound or not.

    Args:
        folder: of checkpoints.

    Returns:
        their paths, newest first.

    Example:
        >>> step_paths(Path("no/such"))
        []
    """
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, reverse=True)


def round_of(path: Path) -> int:
    """The round after which a step was saved, by its name.

    Args:
        path: of a step.

    Returns:
        rounds done.

    Example:
        >>> round_of(Path("round-00000040"))
        40
    """
    return int(path.name.rpartition("-")[2])


def find_step(folder: Path) -> Found:
    """Find the newest step whose seal is whole.

    Args:
        folder: of checkpoints.

    Returns:
        the step, and which newer ones are damaged.

    Raises:
        ValueError: if there are steps and all are damaged, naming each; or if the schema is unknown.

    Example:
        >>> find_step(Path("no/such")).path is None
        True
    """
    damaged: list[str] = []
    for path in step_paths(folder):
        wrong = find_damage(path)
        if not wrong:
            meta = json.loads((path / "meta.json").read_bytes())
            if meta["round"] == round_of(path):
                return Found(path, migrate(meta, str(path)), tuple(damaged))
            wrong = [f"it is of round {meta['round']}"]
        damaged.append(
            f"{path.name}: {'; '.join(wrong[:3])}{f' and {len(wrong) - 3} more' * (len(wrong) > 3)}"
        )
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); start a new run")
    return Found(None, {}, ())


def write_step(folder: Path, meta: Meta, arrays: Sequence[np.ndarray], leaves: Sequence[Leaf]) -> Path:
    """Write a step: when this returns, a crash cannot lose it.

    Args:
        folder: of checkpoints.
        meta: with the round under "round"; schema, leaves and digest are added.
        arrays: plain arrays.
        leaves: what each of them is.

    Returns:
        the step's path.

    Raises:
        OSError: if it cannot be written; older steps are then as they were.
        ImportError: without orbax-checkpoint.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place:
        ...     leaf = Leaf("a", (2,), "float64")
        ...     _ = write_step(Path(place), {"round": 5}, [np.ones(2)], [leaf])
        ...     found = find_step(Path(place))
        ...     found.path.name, read_arrays(found.path, found.meta)[0].tolist()
        ('round-00000005', [1.0, 1.0])
    """
    ocp, path = library(), folder / f"round-{meta['round']:08}"
    draft = folder / f"{_DRAFT}{path.name}"
    known = {"schema": SCHEMA, "digest": digest(arrays), "leaves": [leaf._asdict() for leaf in leaves]}
    with _explained(path, draft):
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir()
        _make_sure_of_room(draft, sum(array.nbytes for array in arrays) + MARGIN)
        _save(ocp, draft / "arrays", arrays)
        write_durably(draft / "meta.json", json.dumps(meta | known, indent=1).encode())
        seal(draft)
        if path.exists():  # only a damaged step is ever written again
            path.rename(folder / f"{_OLD}{path.name}")
        draft.rename(path)
        flush(folder)
    shutil.rmtree(folder / f"{_OLD}{path.name}", ignore_errors=True)
    return path


@contextlib.contextmanager
def _explained(path: Path, draft: Path) -> Iterator[None]:
    """Whatever goes wrong while writing, in one line; nothing half written stays."""
    try:
        yield
    except Exception as problem:
        shutil.rmtree(draft, ignore_errors=True)
        text = getattr(problem, "strerror", None) or _reason(str(problem))
        raise OSError(
            f"the checkpoint {path} could not be written: {text}; those before it are as they were, so mend that "
            "and resume"
        ) from problem


def _make_sure_of_room(folder: Path, size: int) -> None:
    """Ask the system for the room before anything is written: a full disk is then found in order."""
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _reason(text: str) -> str:
    """The system's words within a library's long message."""
    known = [os.strerror(number) for number in (28, 27, 30, 13, 2, 5, 122)]
    return next((words for words in known if words in text), " ".join(text.split())[:200])


def _save(ocp: Any, path: Path, arrays: Sequence[np.ndarray]) -> None:
    """By position: names may hold anything. Orbax has no empty arrays, and gives scalars back as numbers."""
    kept = {f"{i:05}": np.atleast_1d(array) for i, array in enumerate(arrays) if array.size}
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as writer:
        writer.save(path.absolute(), ocp.args.PyTreeSave(kept or {"none": np.zeros(1)}))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every failure with its stack, several times; one line of ours says it."""
    logger = logging.getLogger("absl")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def read_arrays(path: Path, meta: Meta) -> list[np.ndarray]:
    """Read the arrays of a sound step.

    Args:
        path: of the step.
        meta: its own.

    Returns:
        plain arrays, in the order of `meta["leaves"]`.

    Raises:
        ValueError: if orbax reads something else than was written.
        ImportError: without orbax-checkpoint.

    Example:
        see `write_step`.
    """
    ocp = library()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            kept = reader.restore((path / "arrays").absolute())
        arrays = [_read(kept.get(f"{i:05}"), Leaf(**leaf)) for i, leaf in enumerate(meta["leaves"])]
    except Exception as problem:
        raise ValueError(f"{path} is sealed, but orbax cannot read it: {_reason(str(problem))}") from problem
    if digest(arrays) != meta["digest"]:
        raise ValueError(f"{path} is sealed, but orbax reads other numbers than were written")
    return arrays


def _read(value: Any, leaf: Leaf) -> np.ndarray:
    shape = tuple(leaf.shape)
    if value is None:
        return np.zeros(shape, "uint32" if leaf.dtype.startswith("key") else leaf.dtype)
    array = np.asarray(value)
    return array if leaf.dtype.startswith("key") else array.reshape(shape)


def tidy(folder: Path) -> None:
    """Remove what a killed run left half written or half removed; only whoever holds the folder may.

    Args:
        folder: of checkpoints.

    Example:
        >>> tidy(Path("."))
    """
    for path in folder.iterdir():
        if path.name.startswith((_DRAFT, _OLD)):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, keep: int, spared: Sequence[str] = ()) -> None:
    """Remove all but the newest steps.

    Args:
        folder: of checkpoints.
        keep: how many stay.
        spared: names of steps that neither count nor go: damaged ones, until the run writes them anew.

    Example:
        >>> prune(Path("no/such"), 3)
    """
    steps = [path for path in step_paths(folder) if path.name not in spared]
    for path in steps[keep:]:
        old = folder / f"{_OLD}{path.name}"
        with contextlib.suppress(OSError):
            path.rename(old)
            shutil.rmtree(old, ignore_errors=True)
