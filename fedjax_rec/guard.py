"""Guards inside the round: one client's bad numbers never reach the others, a bad step never reaches the model.

A client is unsound if one of its numbers (its new private leaves, its dense deltas, the rows that it sends) is
not finite, or so large that its square would overflow. It counts as absent from the start: the cohort runs again
without it, so that the round equals, bit for bit, the round of the others. A sound cohort runs once, and pays for
little more than a look at its sums.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.engine import Result
from fedjax_rec.types import RoundInfo, Totals

EXPLODED = 1e3  # times the first round's loss: finite, and beyond all use
LOST = 3  # so many lost rounds in a row are no accident


class Attempt(NamedTuple):
    """One run of a cohort, and whether there is to be another."""

    result: Result
    left: jax.Array  # bool[C], who takes part
    watched: jax.Array  # bool[], whether rows are looked at one by one
    again: jax.Array  # bool[]


def run_sound(
    attempt: Callable[[jax.Array, jax.Array], Result], alive: jax.Array
) -> tuple[Result, jax.Array]:
    """Run a cohort, and again without those who turn out to be unsound.

    Args:
        attempt: (bool[C], who takes part; bool[], whether rows are looked at one by one) -> what came of it.
        alive: bool[C], who is to take part.

    Returns:
        the result without the unsound, and bool[C], who is left.

    Example:
        >>> nothing = Result((), (), (), jnp.int32(0), jnp.int32(0))
        >>> def attempt(alive, watched):
        ...     return nothing._replace(unsound=alive & jnp.array([False, True, False]), batches=alive.sum())
        >>> result, left = run_sound(attempt, jnp.array([True, True, False]))
        >>> int(result.batches), left.tolist()
        (1, [True, False, False])
    """
    run = jax.jit(attempt)  # traced once, for its shapes and for the loop
    shapes = jax.eval_shape(run, alive, jnp.bool_(False))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def turn(last: Attempt) -> Attempt:
        result = run(last.left, last.watched)
        suspect = _suspect(result) & ~last.watched
        left = last.left & ~result.unsound
        return Attempt(result, left, last.watched | suspect, suspect | (left != last.left).any())

    first = Attempt(nothing, alive, jnp.bool_(False), jnp.bool_(True))
    final = jax.lax.while_loop(lambda last: last.again, turn, first)
    return final.result, final.left


def _suspect(result: Result) -> jax.Array:
    """Whether sums hold a bad number, or fixed-point ones cut one off; a stack's updates are looked at anyway."""
    if not isinstance(result.totals, Totals):
        return jnp.bool_(False)
    floats = [x for x in jax.tree.leaves(result.totals) if jnp.issubdtype(x.dtype, jnp.floating)]
    return ~jnp.isfinite(sum(jnp.square(x).sum() for x in floats)) | (result.report.saturated > 0)


def lost(infos: RoundInfo) -> jax.Array:
    """Which rounds were lost: somebody trained but the step was not taken, or most clients were unsound.

    Args:
        infos: leaves [T].

    Returns:
        bool[T].

    Example:
        >>> info = RoundInfo(*[jnp.zeros(3)] * 12)._replace(clients=jnp.array([5, 5, 5]))
        >>> lost(info._replace(unsound=jnp.array([0, 5, 6]), skipped=jnp.array([1, 0, 0]))).tolist()
        [True, False, True]
    """
    return ((infos.skipped > 0) & (infos.clients > 0)) | (infos.unsound > infos.clients)


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
    loss, streak = np.asarray(infos.loss), np.convolve([*np.asarray(lost(infos)), False], np.ones(LOST))
    return not bool(
        (np.isfinite(loss) & ~(loss > EXPLODED * max(first, 1e-6))).all() and streak.max(initial=0) < LOST
    )


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
