"""The folders that checkpoints are made of, each written whole or not at all.

    CHECKPOINTS/round-00000040/arrays/...   every array, as orbax writes them
    CHECKPOINTS/round-00000040/meta.json    what they are, and all else that a run goes on from
    CHECKPOINTS/round-00000040/seal.json    the SHA-256 of every file, written last

A checkpoint is made as a hidden neighbour, flushed, sealed and then renamed: a name without a dot always had a
seal. Nothing is ever unpickled.
"""

import contextlib
import importlib
import json
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rec.data.files import flush
from fedjax_rec.hosts.processes import num_processes
from fedjax_rec.training.checkpoints.leaves import Leaf, digest, packed_width
from fedjax_rec.training.checkpoints.meta import Meta, read_meta
from fedjax_rec.training.checkpoints.seal import find_damage, seal, write_durably

OVERHEAD = 2**17  # bytes that a checkpoint takes besides its arrays, at most
SCHEMA = 2  # of meta.json; no other is read
INSTALL_HINT = "checkpoints need orbax-checkpoint; pip install 'fedjax_rec[checkpoints]'"
_NAME = re.compile(r"round-(\d{8})")
_DRAFT = ".draft-"
_OLD = ".old-"


class Latest(NamedTuple):
    """The newest checkpoint that can be believed."""

    path: Path | None  # None: there is no checkpoint at all
    meta: Meta
    damaged: tuple[str, ...]  # newer checkpoints that cannot, and what is wrong with them


def import_orbax() -> Any:
    """Import orbax-checkpoint.

    Returns:
        the module.

    Raises:
        ImportError: if it is not installed, with the command that installs it.

    Example:
        >>> import_orbax().__name__
        'orbax.checkpoint'
    """
    try:
        return importlib.import_module("orbax.checkpoint")
    except ImportError as problem:
        raise ImportError(INSTALL_HINT) from problem


def list_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, sound or not.

    Args:
        folder: of checkpoints.

    Returns:
        their paths, newest first.

    Example:
        >>> list_checkpoints(Path("no/such"))
        []
    """
    paths = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(paths, reverse=True)


def round_of(path: Path) -> int:
    """The round after which a checkpoint was saved, by its name.

    Args:
        path: of a checkpoint.

    Returns:
        rounds done.

    Example:
        >>> round_of(Path("round-00000040"))
        40
    """
    return int(path.name.rpartition("-")[2])


def find_latest(folder: Path) -> Latest:
    """Find the newest checkpoint whose seal is whole.

    Args:
        folder: of checkpoints.

    Returns:
        the checkpoint, and which newer ones are damaged.

    Raises:
        ValueError: if there are checkpoints and all are damaged, naming each; or if the schema is unknown.

    Example:
        >>> find_latest(Path("no/such")).path is None
        True
    """
    damaged: list[str] = []
    for path in list_checkpoints(folder):
        damage = find_damage(path)
        if not damage:
            try:
                meta = read_meta(path / "meta.json")
            except (ValueError, OSError) as problem:
                damage = [f"meta.json is none that a run wrote: {problem}"]
            else:
                if meta["round"] == round_of(path):
                    _check_schema(meta, path)
                    return Latest(path, meta, tuple(damaged))
                damage = [f"it is of round {meta['round']}"]
        others = f" and {len(damage) - 3} more" if len(damage) > 3 else ""
        damaged.append(f"{path.name}: {'; '.join(damage[:3])}{others}")
    if damaged:
        raise ValueError(f"every checkpoint in {folder} is damaged ({', '.join(damaged)}); start a new run")
    return Latest(None, {}, ())


def _check_schema(meta: Meta, path: Path) -> None:
    if meta.get("schema") != SCHEMA:
        raise ValueError(
            f"{path}: schema is {meta.get('schema')} in the checkpoint, and this version reads {SCHEMA}; go on "
            "with the version of fedjax_rec that wrote it"
        )


def write_checkpoint(folder: Path, meta: Meta, arrays: Sequence[np.ndarray], leaves: Sequence[Leaf]) -> Path:
    """Write a checkpoint: when this returns, a crash cannot lose it.

    Args:
        folder: of checkpoints.
        meta: with the round under "round"; schema, leaves and digest are added.
        arrays: plain arrays.
        leaves: what each of them is.

    Returns:
        the checkpoint's path.

    Raises:
        OSError: if it cannot be written; older checkpoints are then as they were.
        ImportError: without orbax-checkpoint.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     leaf = Leaf("a", (2,), "float64")
        ...     _ = write_checkpoint(Path(folder), {"round": 5}, [np.ones(2)], [leaf])
        ...     latest = find_latest(Path(folder))
        ...     latest.path.name, read_arrays(latest.path, latest.meta)[0].tolist()
        ('round-00000005', [1.0, 1.0])
    """
    orbax = import_orbax()
    path = folder / f"round-{meta['round']:08}"
    draft = folder / f"{_DRAFT}{path.name}"
    replaced = folder / f"{_OLD}{path.name}"
    added = {"schema": SCHEMA, "digest": digest(arrays), "leaves": [_as_json(leaf) for leaf in leaves]}
    with _explain_failure(path, draft):
        # The draft is complete, flushed and sealed before it gets its name.
        shutil.rmtree(draft, ignore_errors=True)
        mode = stat.S_IMODE(folder.stat().st_mode)
        draft.mkdir(mode=mode)  # wherever it is moved to
        _reserve_space(draft, sum(array.nbytes for array in arrays) + OVERHEAD)
        _save_arrays(orbax, draft / "arrays", arrays)
        write_durably(draft / "meta.json", json.dumps(meta | added, indent=1).encode())
        if not mode & 0o077:  # a secret key may stand there
            (draft / "meta.json").chmod(0o600)
        seal(draft)
        if path.exists():  # only a damaged checkpoint is ever written again
            path.rename(replaced)
        draft.rename(path)
        flush(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    return path


def _as_json(leaf: Leaf) -> dict[str, Any]:
    """What `meta.json` says of a leaf; of one that is saved whole."""
    return {name: value for name, value in leaf._asdict().items() if name != "rows" or value is not None}


@contextlib.contextmanager
def _explain_failure(path: Path, draft: Path) -> Iterator[None]:
    """Whatever goes wrong while writing, in one line; nothing half written stays."""
    try:
        yield
    except Exception as problem:
        shutil.rmtree(draft, ignore_errors=True)
        reason = getattr(problem, "strerror", None) or _shorten(str(problem))
        raise OSError(
            f"the checkpoint {path} could not be written: {reason}; those before it are as they were, so mend "
            "that and resume"
        ) from problem


def _reserve_space(folder: Path, size: int) -> None:
    """Ask the system for the space before anything is written: a full disk is then found in order."""
    if not hasattr(os, "posix_fallocate"):
        return
    with tempfile.TemporaryFile(dir=folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)


def _shorten(text: str) -> str:
    """The system's words within a library's long message."""
    known = [os.strerror(number) for number in (28, 27, 30, 13, 2, 5, 122)]
    return next((words for words in known if words in text), " ".join(text.split())[:200])


def _save_arrays(orbax: Any, path: Path, arrays: Sequence[np.ndarray]) -> None:
    """By position: names may hold anything. Orbax has no empty arrays, and gives scalars back as numbers."""
    tree = {f"{i:05}": np.atleast_1d(array) for i, array in enumerate(arrays) if array.size}
    with _silence_logging(), _checkpointer(orbax) as checkpointer:
        checkpointer.save(path.absolute(), orbax.args.PyTreeSave(tree or {"none": np.zeros(1)}))


def _checkpointer(orbax: Any) -> Any:
    """Of this process alone: of several, orbax would wait for all to write."""
    if num_processes() == 1:
        return orbax.Checkpointer(orbax.PyTreeCheckpointHandler())
    me = jax.process_index()
    alone = orbax.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process-{me}"
    )
    handler = orbax.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return orbax.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _silence_logging() -> Iterator[None]:
    """Orbax logs every failure with its stack, several times; one line of ours says it."""
    logger = logging.getLogger("absl")
    was_disabled = logger.disabled
    logger.disabled = True
    try:
        yield
    finally:
        logger.disabled = was_disabled


def read_arrays(path: Path, meta: Meta) -> list[np.ndarray]:
    """Read the arrays of a sound checkpoint.

    Args:
        path: of the checkpoint.
        meta: its own.

    Returns:
        plain arrays, in the order of `meta["leaves"]`.

    Raises:
        ValueError: if orbax reads something else than was written.
        ImportError: without orbax-checkpoint.
    """
    orbax = import_orbax()
    try:
        with _checkpointer(orbax) as checkpointer:
            tree = checkpointer.restore((path / "arrays").absolute())
        arrays = [_reshape(tree.get(f"{i:05}"), Leaf(**leaf)) for i, leaf in enumerate(meta["leaves"])]
    except Exception as problem:
        raise ValueError(f"{path} is sealed, but orbax cannot read it: {_shorten(str(problem))}") from problem
    if digest(arrays) != meta["digest"]:
        raise ValueError(f"{path} is sealed, but orbax reads other numbers than were written")
    return arrays


def _reshape(value: Any, leaf: Leaf) -> np.ndarray:
    """An array as it was saved: scalars and empty arrays too."""
    is_key = leaf.dtype.startswith("key")
    if leaf.rows is not None:
        packed = np.zeros(0, np.uint8) if value is None else np.asarray(value, np.uint8)
        return packed.reshape(leaf.rows, packed_width(leaf))
    if value is None:
        return np.zeros(tuple(leaf.shape), "uint32" if is_key else leaf.dtype)
    array = np.asarray(value)
    return array if is_key else array.reshape(tuple(leaf.shape))


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed run left half written or half removed; only the folder's one writer may.

    Args:
        folder: of checkpoints.

    Example:
        >>> remove_leftovers(Path("."))
    """
    for path in folder.iterdir():
        if path.name.startswith((_DRAFT, _OLD)):
            shutil.rmtree(path, ignore_errors=True)


def prune(folder: Path, max_to_keep: int, damaged: Sequence[str] = ()) -> None:
    """Remove all but the newest checkpoints.

    Args:
        folder: of checkpoints.
        max_to_keep: how many stay.
        damaged: names of checkpoints that neither count nor go, until the run writes them anew.

    Example:
        >>> prune(Path("no/such"), 3)
    """
    sound = [path for path in list_checkpoints(folder) if path.name not in damaged]
    for path in sound[max_to_keep:]:
        removed = folder / f"{_OLD}{path.name}"
        with contextlib.suppress(OSError):
            path.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
