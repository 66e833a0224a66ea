"""How much noise a budget needs, how many rounds it allows, and cohorts that an accountant knows."""

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from fedjax_rec.errors import ParameterError
from fedjax_rec.privacy.accounting import (
    MAX_EPSILON,
    RoundEvent,
    epsilon_of,
    import_dp_accounting,
    message_event,
    round_event,
)
from fedjax_rec.samplers.data_independent import CyclicPoisson, Poisson, cyclic_poisson, poisson
from fedjax_rec.types import Sampler

_OVERFLOW_SHARE = 0.01  # of delta that a full cohort may cost: surplus clients are dropped that seldom


def choose_noise(
    noise_multiplier: float | None, target_epsilon: float | None, calibrate: Callable[..., float]
) -> float:
    """The noise that is asked for, by itself or by what it may spend.

    Args:
        noise_multiplier: z; give it or the target.
        target_epsilon: of the budget.
        calibrate: epsilon=target -> z.

    Returns:
        z, above 0.

    Raises:
        ValueError: if not exactly one of them is given, or z is not above 0.

    Example:
        >>> choose_noise(None, 2.0, lambda epsilon: 3.0 / epsilon)
        1.5
    """
    if noise_multiplier is not None and target_epsilon is None:
        chosen = noise_multiplier
    elif target_epsilon is not None and noise_multiplier is None:
        chosen = calibrate(epsilon=target_epsilon)
    else:
        raise ValueError(
            f"noise_multiplier={noise_multiplier} and target_epsilon={target_epsilon}: give exactly one of them"
        )
    if not chosen > 0:
        raise ValueError(f"noise_multiplier={chosen} hides nothing; give a number above 0")
    return chosen


def check_delta(delta: float, num_clients: int, *, allow_large: bool = False) -> None:
    """Refuse a delta with which all that one client holds could be published.

    Args:
        delta: of the guarantee.
        num_clients: N.
        allow_large: whether any delta below 1 will do.

    Raises:
        ParameterError: if it is not above 0, or not below 1 / N, or, where that is allowed, 1.

    Example:
        >>> check_delta(0.01, 1000)
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: delta=0.01 is 1 / 1,000 clients or more, which would allow to publish ...
    """
    if not 0 < delta < 1:
        raise ParameterError(f"delta={delta} must be above 0 and below 1")
    if delta * num_clients >= 1 and not allow_large:
        raise ParameterError(
            f"delta={delta:g} is 1 / {num_clients:,} clients or more, which would allow to publish one client's "
            "data whole; lower {delta}, or insist with {allow_large_delta}"
        )


def noise_for(
    sampler: Sampler, num_clients: int, rounds: int, *, epsilon: float, delta: float, tolerance: float = 1e-3
) -> float:
    """The least noise multiplier with which so many rounds stay within a budget.

    Args:
        sampler: of the run.
        num_clients: N.
        rounds: T, at least 1.
        epsilon: the budget, above 0 and at most `MAX_EPSILON`.
        delta: of the budget.
        tolerance: of the result, relative; the result is always on the safe side.

    Returns:
        z.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> z = noise_for(everyone(), 100, 3, epsilon=1.0, delta=0.126936)
        >>> 1.731 < z < 1.735
        True
    """
    if rounds < 1 or not 0 < epsilon <= MAX_EPSILON:
        raise ValueError(
            f"a budget needs rounds of at least 1 and epsilon above 0, at most {MAX_EPSILON:g}, beyond which "
            f"nothing is hidden, not {rounds} and {epsilon}"
        )

    def epsilon_at(multiplier: float) -> float:
        return epsilon_of(round_event(sampler, multiplier, num_clients), rounds, delta)

    return _least_noise(epsilon_at, epsilon, tolerance)


def message_noise_for(rounds: int, *, epsilon: float, delta: float) -> float:
    """The least noise multiplier with which so many messages of one client stay within a budget.

    T Gaussian releases of deviation s are one of deviation s / sqrt(T), so that z = 2 sqrt(T) sigma(epsilon,
    delta), sigma being that of the analytic Gaussian mechanism for a sensitivity of 1.

    Args:
        rounds: T, at least 1.
        epsilon: the budget, above 0.
        delta: of the budget.

    Returns:
        z.

    Raises:
        ValueError: if a number is out of range.
        ImportError: without dp-accounting.

    Example:
        >>> round(message_noise_for(1, epsilon=1.0, delta=1e-5), 2)
        7.46

    Source: Balle & Wang 2018, "Improving the Gaussian mechanism for differential privacy", algorithm 1, as
    `dp-accounting` solves it.
    """
    if rounds < 1 or not epsilon > 0 or not 0 < delta < 1:
        raise ValueError(
            "a budget needs rounds of at least 1, epsilon above 0 and delta between 0 and 1, not "
            f"{rounds}, {epsilon} and {delta}"
        )
    multiplier = 2 * math.sqrt(rounds) * import_dp_accounting().get_sigma_gaussian(epsilon, delta)
    increase = 1e-6
    while epsilon_of(message_event(multiplier), rounds, delta) > epsilon:  # the accountant rounds up
        multiplier *= 1 + increase
        increase *= 2
    return float(multiplier)


def rounds_for(
    per_round: RoundEvent, *, epsilon: float, delta: float, max_rounds: int = 10**6, guess: int = 0
) -> int:
    """How many rounds a budget allows.

    Args:
        per_round: the event of one round.
        epsilon: the budget.
        delta: of the budget.
        max_rounds: the answer is at most this.
        guess: of the answer, which saves time.

    Returns:
        the largest T whose epsilon is within the budget.

    Example:
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> rounds_for(round_event(everyone(), 3**0.5, 100), epsilon=1.001, delta=0.126936)
        3
    """

    def fits(rounds: int) -> bool:
        return epsilon_of(per_round, rounds, delta) <= epsilon

    # Steps that double until a number does not fit: the answer is at least `low` and below `high`.
    low = guess if 0 < guess <= max_rounds and fits(guess) else 0
    step = 1
    while low < max_rounds and fits(min(low + step, max_rounds)):
        low = min(low + step, max_rounds)
        step *= 2
    high = min(low + step, max_rounds + 1)

    # Bisection.
    while high - low > 1:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low


def poisson_sampler(
    num_clients: int, cohort: int, rounds: int, delta: float, groups: int = 1, capacity: int | None = None
) -> Poisson | CyclicPoisson:
    """Poisson cohorts of a mean size, with room that is almost never too small.

    Args:
        num_clients: N.
        cohort: clients of a round on average, at most N, or a group's share of them.
        rounds: T.
        delta: of the budget.
        groups: of which each has its turn, 1 for a draw from all.
        capacity: B; by default of `capacity_for`.

    Returns:
        the sampler, of this population alone.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> poisson_sampler(1000, 1000, 10, 1e-4).capacity
        1000
    """
    size = num_clients if groups == 1 else -(-num_clients // groups)
    if not 1 <= cohort <= size:
        hint = "" if groups == 1 else f" in one of {groups} groups; lower the cohort or the bands"
        raise ValueError(f"cohort={cohort} must be between 1 and the {size} clients that there are{hint}")
    if capacity is None:
        capacity = capacity_for(size, cohort / size, rounds, delta)
    if groups == 1:
        return poisson(cohort / size, capacity, num_clients=num_clients)
    return cyclic_poisson(cohort / size, capacity, groups, num_clients=num_clients)


def capacity_for(num_clients: int, probability: float, rounds: int, delta: float) -> int:
    """Room for a Poisson cohort that is almost never too small: P[any of T cohorts is larger] <= delta / 100.

    Args:
        num_clients: N.
        probability: q, with which each client is drawn.
        rounds: T.
        delta: of the budget.

    Returns:
        the smallest B with T P[Bin(N, q) > B] <= delta / 100, at most N.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> capacity_for(6040, 0.02, 200, 1e-5)
        193
    """
    if not 0 < probability <= 1 or rounds < 1 or not 0 < delta < 1:
        raise ValueError(
            f"probability={probability} and delta={delta} must be between 0 and 1, rounds={rounds} at least 1"
        )
    from scipy.stats import binom

    sizes = np.arange(num_clients + 1)
    fits = rounds * binom.sf(sizes, num_clients, probability) <= _OVERFLOW_SHARE * delta
    return max(1, int(np.argmax(fits)))


def _least_noise(epsilon_at: Callable[[float], float], epsilon: float, tolerance: float) -> float:
    """The least multiplier that spends at most epsilon: log epsilon is nearly linear in log z, used here."""
    from scipy.optimize import brentq

    cached = lru_cache(maxsize=None)(epsilon_at)

    # A bracket: `high` is within the budget, half of it is not.
    high = 1.0
    while cached(high) > epsilon:
        high *= 2
    while cached(high / 2) <= epsilon:
        high /= 2

    def excess(log_z: float) -> float:
        return math.log(max(cached(math.exp(log_z)), 1e-12) / epsilon)

    multiplier = math.exp(brentq(excess, math.log(high / 2), math.log(high), xtol=tolerance / 2))
    while cached(multiplier) > epsilon:  # the root may be a little short of it
        multiplier *= 1 + tolerance / 2
    return multiplier
