"""Resuming a run by its folder: its settings are in its checkpoints, in `RUN/checkpoints/train`.

The rounds themselves go on in `training.simulate`, from what `training.checkpoints.manager` restores.
"""

import dataclasses
from importlib.util import find_spec
from pathlib import Path

from fedjax_rec.data.registry import DATASETS
from fedjax_rec.errors import ParameterError
from fedjax_rec.runs.folders import CHECKPOINTS
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.store import find_latest


def stored_settings(
    folder: str | Path,
    rounds: int | None = None,
    *,
    dataset: str | None = None,
    data_dir: str | None = None,
) -> Settings:
    """Read the settings of a run from its newest sound checkpoint.

    Args:
        folder: of the run.
        rounds: that the run shall reach now; by default as many as before.
        dataset: where the data lies now, if it moved; the run goes on only if its hash is the same.
        data_dir: the same of the folder of a registered data set.

    Returns:
        the settings.

    Raises:
        ValueError: if the folder holds no sound checkpoint, the run cannot have other rounds, or the data is not
            where it was.

    Example:
        >>> stored_settings("no/such/run")
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: no/such/run holds no checkpoints; a run saves them with checkpoint_every
    """
    folder = Path(folder)
    latest = find_latest(folder / CHECKPOINTS / "train")
    if latest.path is None:
        raise ParameterError(
            "{folder} holds no checkpoints; a run saves them with {checkpoint_every}", folder=folder
        )
    try:
        settings = Settings(**latest.meta["custom_metadata"]["settings"])
    except (LookupError, TypeError) as problem:
        raise ValueError(f"{latest.path} holds no settings that this version knows: {problem}") from problem
    settings = _find_data(settings, dataset, data_dir)
    if rounds is None:
        return settings
    if settings.target_epsilon is not None and rounds != settings.rounds:
        raise ParameterError(
            f"{{rounds={rounds}}}: the noise was chosen so that {settings.rounds} rounds spend "
            f"{{target_epsilon={settings.target_epsilon:g}}}; start a new run"
        )
    return dataclasses.replace(settings, rounds=rounds)


def _find_data(settings: Settings, dataset: str | None, data_dir: str | None) -> Settings:
    """Where the data lies: where it is said to, or where it was, if it is still there."""
    if dataset is not None:
        settings = dataclasses.replace(settings, dataset=dataset, data_dir=data_dir)
    elif data_dir is not None:
        settings = dataclasses.replace(settings, data_dir=data_dir)
    if settings.dataset not in DATASETS and not Path(settings.dataset).expanduser().exists():
        raise ParameterError(
            "the data of this run is not at {path}; say where it lies now: {dataset}", path=settings.dataset
        )
    if settings.data_dir is not None and not Path(settings.data_dir).expanduser().is_dir():
        raise ParameterError(
            "the data of this run is not in {path}; say where it lies now: {data_dir}", path=settings.data_dir
        )
    return settings


def checkpoints_of(settings: Settings, folder: str | Path) -> Checkpoints | None:
    """Where a run of these settings is saved.

    Args:
        settings: of the run.
        folder: of the run.

    Returns:
        for `run_experiment`; None where nobody wants any, or by the clock, and orbax-checkpoint is missing.

    Example:
        >>> checkpoints_of(Settings(checkpoint_every=20), "runs/mine").every
        20
    """
    root = Path(folder) / CHECKPOINTS
    if settings.checkpoint_every is not None:
        return Checkpoints(root, every=settings.checkpoint_every)
    if not settings.checkpoint_minutes or find_spec("orbax") is None:
        return None
    return Checkpoints(root, minutes=settings.checkpoint_minutes, max_to_keep=1)
