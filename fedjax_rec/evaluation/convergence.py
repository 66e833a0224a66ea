"""When a training without a number of rounds has converged: one rule for federated rounds and for central epochs.

Validation of small data is noisy, so that the best of the values so far may be an early stroke of luck, and a
flat or slowly rising curve would be left too soon. What is judged is therefore its mean over the last half of
the rounds: once that has not risen for a quarter of the rounds so far, training ends. The round that is
*selected* is the one with the best single validation, as ever.
"""

import math
from collections.abc import Sequence

import numpy as np

PATIENCE_SHARE = 0.25  # of the rounds so far
CEILING = 25  # rounds of such a training, in units of the algorithm's least number
_WINDOW = 0.5  # of the rounds so far, whose validations are averaged


def peak_round(evaluations: Sequence[tuple[int, float]]) -> int:
    """The round up to which validation, averaged over the last half of the rounds, has risen.

    Args:
        evaluations: (round, metric), in order; a metric that is no number is worse than any.

    Returns:
        the round; 0 without evaluations.

    Example:
        >>> peak_round([(10, 0.1), (20, 0.5), (30, 0.3), (40, 0.4)])  # means .1, .5, .4, .35
        20
    """
    if not evaluations:
        return 0
    rounds, values = (np.asarray(column, float) for column in zip(*evaluations, strict=True))
    sums = np.append(0.0, np.where(np.isnan(values), -1e9, values).cumsum())
    ends = np.arange(1, len(rounds) + 1)
    starts = np.searchsorted(rounds, rounds * (1 - _WINDOW), side="right")
    means = (sums[ends] - sums[starts]) / (ends - starts)
    return int(rounds[means.argmax()])


def patience_ends_at(peak: int, share: float) -> int:
    """The round at which so large a share of the rounds so far brought nothing better.

    Args:
        peak: of `peak_round`.
        share: of the rounds so far, in (0, 1).

    Returns:
        the round.

    Example:
        >>> [patience_ends_at(peak, 0.25) for peak in (12, 100)]
        [16, 134]
    """
    return math.ceil(peak / (1 - share))
