"""Resuming a run by its folder: its settings are in its checkpoints, in `RUN/checkpoints/train`."""

import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

from fedjax_rec.checkpoints import Checkpoints
from fedjax_rec.folders import CHECKPOINTS
from fedjax_rec.lock import hold
from fedjax_rec.settings import Settings
from fedjax_rec.steps import find_step


def stored_settings(folder: str | Path, rounds: int | None = None) -> Settings:
    """Read the settings of a run from its newest sound checkpoint.

    Args:
        folder: of the run.
        rounds: that the run shall reach now; by default as many as before.

    Returns:
        the settings.

    Raises:
        ValueError: if the folder holds no sound checkpoint, or the run cannot have other rounds.

    Example:
        >>> stored_settings("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run holds no checkpoints; a run saves them with --checkpoint-every
    """
    folder = Path(folder)
    found = find_step(folder / CHECKPOINTS / "train")
    if found.path is None:
        raise ValueError(f"{folder} holds no checkpoints; a run saves them with --checkpoint-every")
    try:
        settings = Settings(**found.meta["notes"]["settings"])
    except (KeyError, TypeError) as problem:
        raise ValueError(f"{found.path} holds no settings that this version knows: {problem}") from problem
    if rounds is None:
        return settings
    if settings.target_epsilon is not None and rounds != settings.rounds:
        raise ValueError(
            f"rounds={rounds}: the noise was chosen so that {settings.rounds} rounds spend "
            f"target_epsilon={settings.target_epsilon}; start a new run"
        )
    return dataclasses.replace(settings, rounds=rounds)


@contextlib.contextmanager
def holding(folder: Path) -> Iterator[None]:
    """Hold a run folder for the life of a run with checkpoints; one that fails before it is saved leaves nothing.

    Args:
        folder: of the run.

    Yields:
        nothing.

    Raises:
        OSError: if another process writes the run, or it cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as place, holding(Path(place) / "run"):
        ...     (Path(place) / "run" / "checkpoints").is_dir()
        True
    """
    root = folder / CHECKPOINTS
    fresh = not root.exists()
    try:
        with hold(root):
            yield
    except BaseException:
        if fresh and not any(root.glob("*/round-*")):
            shutil.rmtree(root, ignore_errors=True)
            with contextlib.suppress(OSError):
                folder.rmdir()
        raise


def checkpoints_of(settings: Settings, folder: str | Path) -> Checkpoints | None:
    """Where a run of these settings is saved.

    Args:
        settings: of the run.
        folder: of the run.

    Returns:
        for `run_experiment`; None where the settings ask for none.

    Example:
        >>> checkpoints_of(Settings(checkpoint_every=20), "runs/mine").every
        20
    """
    if settings.checkpoint_every is None:
        return None
    return Checkpoints(Path(folder) / CHECKPOINTS, every=settings.checkpoint_every)
