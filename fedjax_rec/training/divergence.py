"""When a run has diverged: what its rounds report, read on the host."""

from typing import Any

import jax
import numpy as np

from fedjax_rec.types import RoundInfo

EXPLODED = 1e3  # times the first round's loss: finite, and beyond all use
LOST = 3  # so many lost rounds in a row are no accident


def lost(infos: RoundInfo) -> jax.Array:
    """Which rounds were lost: somebody trained but the step was not taken, or most clients were unsound.

    Args:
        infos: leaves [T].

    Returns:
        bool[T].

    Example:
        >>> info = RoundInfo(*[np.zeros(3)] * 12)._replace(clients=np.array([5, 5, 5]))
        >>> lost(info._replace(unsound=np.array([0, 5, 6]), skipped=np.array([1, 0, 0]))).tolist()
        [True, False, True]
    """
    return ((infos.skipped > 0) & (infos.clients > 0)) | (infos.unsound > infos.clients)


def all_unsound(infos: RoundInfo) -> Any:
    """Which rounds had clients, no numbers of which were finite.

    Args:
        infos: leaves [T].

    Returns:
        bool[T].

    Example:
        >>> info = RoundInfo(*[np.zeros(3)] * 12)._replace(clients=np.array([5, 0, 0]))
        >>> all_unsound(info._replace(unsound=np.array([4, 5, 0]))).tolist()
        [False, True, False]
    """
    return (np.asarray(infos.clients) == 0) & (np.asarray(infos.unsound) > 0)


def report_losses(infos: RoundInfo) -> RoundInfo:
    """The same, where the loss of rounds without a sound client is NaN: on device it is 0, the mean of nobody.

    Args:
        infos: leaves [T].

    Returns:
        leaves [T].

    Example:
        >>> info = RoundInfo(*[np.zeros(2)] * 12)._replace(unsound=np.array([0, 5]))
        >>> report_losses(info).loss.tolist()
        [0.0, nan]
    """
    loss: Any = np.where(all_unsound(infos), np.nan, infos.loss).astype(np.float32)
    return infos._replace(loss=loss)


def diverged(infos: RoundInfo, first: float) -> bool:
    """Whether a run has diverged: a loss that is not finite or has exploded, or three lost rounds in a row.

    Args:
        infos: leaves [T], of the latest rounds.
        first: the loss of the run's first round of somebody.

    Returns:
        the verdict.

    Example:
        >>> info = RoundInfo(*[np.zeros(3)] * 12)
        >>> diverged(info, 0.7), diverged(info._replace(loss=np.array([0.7, 0.9, 701.0])), 0.7)
        (False, True)
    """
    loss = np.asarray(infos.loss)
    exploded = ~np.isfinite(loss) | (loss > EXPLODED * max(first, 1e-6))
    streak = longest = 0
    for round_lost in np.asarray(lost(infos)).tolist():
        streak = streak + 1 if round_lost else 0
        longest = max(longest, streak)
    return bool(exploded.any()) or longest >= LOST


def first_loss(infos: RoundInfo) -> float:
    """The loss of the first round of somebody; infinite if there was none.

    Args:
        infos: leaves [T], from the first round on.

    Returns:
        the loss.

    Example:
        >>> info = RoundInfo(*[np.ones(3)] * 12)
        >>> first_loss(info._replace(clients=np.array([0, 2, 2]), loss=np.array([0, 0.5, 0.4])))
        0.5
    """
    some = np.asarray(infos.loss)[np.asarray(infos.clients) > 0]
    return float(some[0]) if some.size else np.inf
