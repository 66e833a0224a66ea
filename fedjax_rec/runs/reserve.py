"""A run has its folder before anything is computed: reserved, locked, and gone again if nothing is kept in it."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedjax_rec.locks import FolderInUse, lock_folder
from fedjax_rec.runs.folders import CHECKPOINTS, choose_folder, has_checkpoints, is_free


@contextlib.contextmanager
def reserve_folder(out: str | None, name: str) -> Iterator[Path]:
    """Make a new folder, which no other process will write.

    Args:
        out: the folder asked for, or None for the first free runs/NAME-NUMBER.
        name: of what is written, such as "ml-100k-fedmf".

    Yields:
        its absolute path.

    Raises:
        ValueError: if something would be overwritten.
        OSError: if another process writes there, or nothing can be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     with reserve_folder(f"{parent}/run", "any") as folder:
        ...         _ = (folder / "result.json").write_text("{}")
        ...     [path.name for path in folder.iterdir()]
        ['result.json']
    """
    with contextlib.ExitStack() as stack:
        while True:
            folder = choose_folder(out, name)
            try:
                stack.enter_context(_hold(folder))
            except FolderInUse:
                if out is not None:
                    raise
                continue  # the next number
            if is_free(folder):
                break
            stack.pop_all().close()  # another process filled it since it was chosen
        yield folder


@contextlib.contextmanager
def lock_run_folder(folder: Path) -> Iterator[Path]:
    """Lock the folder of a run that goes on.

    Args:
        folder: of the run.

    Yields:
        its path.

    Raises:
        OSError: if another process writes the run, or it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as parent, lock_run_folder(Path(parent) / "run") as folder:
        ...     (folder / "checkpoints").is_dir()
        True
    """
    with _hold(folder):
        yield folder


@contextlib.contextmanager
def _hold(folder: Path) -> Iterator[None]:
    """Lock a folder by its checkpoints' own; what is empty at the end goes, if it was made here."""
    root = folder / CHECKPOINTS
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with lock_folder(root, required=False):
        try:
            yield
        finally:
            if not has_checkpoints(folder):
                shutil.rmtree(root, ignore_errors=True)
            for path in made:
                with contextlib.suppress(OSError):
                    path.rmdir()
