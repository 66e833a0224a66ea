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

from fedjax_rec.engine.lane_steps import CohortResult
from fedjax_rec.types import Totals


class _Attempt(NamedTuple):
    """One run of a cohort, and whether there is to be another."""

    result: CohortResult
    alive: jax.Array  # bool[C], who takes part
    check_rows: jax.Array  # bool[], whether rows are looked at one by one
    again: jax.Array  # bool[]


def run_sound(
    train: Callable[[jax.Array, jax.Array], CohortResult], alive: jax.Array
) -> tuple[CohortResult, jax.Array]:
    """Train a cohort, and again without those who turn out to be unsound.

    Args:
        train: (bool[C], who takes part; bool[], whether rows are looked at one by one) -> what came of it.
        alive: bool[C], who is to take part.

    Returns:
        the result without the unsound, and bool[C], who is left.

    Example:
        >>> from fedjax_rec.engine.lane_steps import Report
        >>> nothing = CohortResult((), (), Report(*[jnp.int32(0)] * 5), ())
        >>> def train(alive, check_rows):
        ...     return nothing._replace(unsound=alive & jnp.array([False, True, False]), totals=alive.sum())
        >>> result, left = run_sound(train, jnp.array([True, True, False]))
        >>> int(result.totals), left.tolist()
        (1, [True, False, False])
    """
    run = jax.jit(train)  # traced once, for its shapes and for the loop
    shapes = jax.eval_shape(run, alive, jnp.bool_(False))
    nothing = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def attempt(last: _Attempt) -> _Attempt:
        result = run(last.alive, last.check_rows)
        suspect = _is_suspect(result) & ~last.check_rows
        alive = last.alive & ~result.unsound
        again = suspect | (alive != last.alive).any()
        return _Attempt(result, alive, last.check_rows | suspect, again)

    first = _Attempt(nothing, alive, jnp.bool_(False), jnp.bool_(True))
    final = jax.lax.while_loop(lambda last: last.again, attempt, first)
    return final.result, final.alive


def _is_suspect(result: CohortResult) -> jax.Array:
    """Whether sums hold a bad number, or fixed-point ones cut one off; a stack's updates are looked at anyway."""
    if not isinstance(result.totals, Totals):
        return jnp.bool_(False)
    floats = [x for x in jax.tree.leaves(result.totals) if jnp.issubdtype(x.dtype, jnp.floating)]
    return ~jnp.isfinite(sum(jnp.square(x).sum() for x in floats)) | (result.report.saturated > 0)
