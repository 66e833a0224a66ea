"""What a run spends of its privacy budget: (epsilon, delta) of its rounds, by `dp-accounting` alone.

The unit is one user: neighbouring populations differ in all that one client holds, which is there or not (add or
remove one). One round releases a sum of clipped updates with Gaussian noise of standard deviation z C, C being the
clipping norm; how it composes depends on how its cohort was drawn, so **the sampler says which event a round is**:

| sampler | event | accountant |
|---|---|---|
| `poisson(q, capacity)` | Poisson sampling truncated to a fixed capacity | PLD |
| `cyclic_poisson(q, capacity, groups)` | the same within a group, once in so many rounds | PLD |
| `everyone()` | the Gaussian mechanism itself | PLD |
| `uniform(C)` | C of N without replacement, replace one | RDP |

Two neighbours under "replace one" differ by 2 C, not C. `dp-accounting` takes the noise of a sample without
replacement relative to that, so `round_event` halves z there, and nowhere else: the one place for this conversion.
What a client sends to a server that it does not trust is another release (`message_event`).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binom

from fedjax_rec.samplers import CyclicPoisson, Everyone, Poisson, Uniform, cyclic_poisson, poisson
from fedjax_rec.types import Informed, Sampler

SHARE = 0.01  # of delta that a full cohort may cost: surplus clients are dropped that seldom
INSTALL = "privacy accounting needs dp-accounting; pip install 'fedjax_rec[privacy]'"


class Round(NamedTuple):
    """What one round is to an accountant."""

    event: Any  # a DpEvent
    neighbours: str  # "add-or-remove-one" or "replace-one"
    accountant: str  # "pld" or "rdp"
    every: int = 1  # rounds that are one event to each client
    most: int | None = None  # rounds for which the noise was made: nothing hides more of them


def round_event(sampler: Sampler, noise_multiplier: float, num_clients: int) -> Round:
    """The event of one round: who was drawn, and how much noise hid them.

    Args:
        sampler: of the run.
        noise_multiplier: z, standard deviation of the noise on the sum over the clipping norm.
        num_clients: N.

    Returns:
        the event, the neighbours that it is about, and the accountant that knows it.

    Raises:
        ValueError: if the sampler has no known event.
        ImportError: without dp-accounting.

    Example:
        >>> from fedjax_rec.samplers import everyone
        >>> round_event(everyone(), 2.0, 100).accountant
        'pld'
    """
    dp = library()
    if isinstance(sampler, Everyone):
        return Round(dp.GaussianDpEvent(noise_multiplier), "add-or-remove-one", "pld")
    if isinstance(sampler, Poisson | CyclicPoisson):
        every = sampler.groups if isinstance(sampler, CyclicPoisson) else 1
        size = -(-num_clients // every)
        event = dp.TruncatedSubsampledGaussianDpEvent(
            dataset_size=size,
            sampling_probability=sampler.probability,
            truncated_batch_size=min(sampler.capacity, size),
            noise_multiplier=noise_multiplier,
        )
        return Round(event, "add-or-remove-one", "pld", every)
    if isinstance(sampler, Uniform):
        gaussian = dp.GaussianDpEvent(noise_multiplier / 2)
        event = dp.SampledWithoutReplacementDpEvent(num_clients, sampler.size(num_clients), gaussian)
        return Round(event, "replace-one", "rdp")
    if isinstance(sampler, Informed):
        raise ValueError(
            f"{sampler!r} draws clients by their data, so that the cohort itself reveals it; draw cohorts with "
            "samplers.poisson, uniform or everyone"
        )
    raise ValueError(
        f"nothing is known of what {sampler!r} reveals; draw cohorts with samplers.poisson, uniform or everyone"
    )


def message_event(noise_multiplier: float) -> Round:
    """The event of one message of one client to a server that it does not trust, of any two that it could send.

    Two updates clipped to C differ by 2 C at most; the accountant of "replace one" doubles the sensitivity itself.
    That a cohort was drawn hides nothing from a server that drew it.

    Args:
        noise_multiplier: z, standard deviation of the client's own noise over the clipping norm.

    Returns:
        the event, its neighbours and its accountant.

    Raises:
        ImportError: without dp-accounting.

    Example:
        >>> round(epsilon_of(message_event(5.0), 1, 1e-5), 4)  # the Gaussian mechanism of sigma = 5 / 2
        1.555
    """
    return Round(library().GaussianDpEvent(noise_multiplier), "replace-one", "pld")


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
    found, more = 2 * math.sqrt(rounds) * library().get_sigma_gaussian(epsilon, delta), 1e-6
    while epsilon_of(message_event(found), rounds, delta) > epsilon:  # the accountant rounds up
        found, more = found * (1 + more), 2 * more
    return float(found)


def epsilon_of(spent: Round, rounds: int, delta: float) -> float:
    """Epsilon of so many rounds.

    Args:
        spent: one round.
        rounds: T.
        delta: above 0 and below 1.

    Returns:
        epsilon; 0 for no rounds, infinite for more than there is noise for.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fedjax_rec.samplers import everyone
        >>> round(epsilon_of(round_event(everyone(), 3**0.5, 100), 3, 0.126936), 3)
        1.0

    Source: Koskela et al. 2020 (PLD); Mironov 2017 (RDP); as `dp-accounting` composes them.
    """
    if rounds < 0 or not 0 < delta < 1:
        raise ValueError(f"rounds={rounds} must be at least 0, and delta={delta} between 0 and 1")
    if rounds == 0:
        return 0.0
    if spent.most is not None and rounds > spent.most:
        return math.inf
    dp = library()
    accountant = _accountant(spent)
    events = -(-rounds // spent.every)
    return float(accountant.compose(dp.SelfComposedDpEvent(spent.event, events)).get_epsilon(delta))


def noise_for(
    sampler: Sampler, num_clients: int, rounds: int, *, epsilon: float, delta: float, tolerance: float = 1e-3
) -> float:
    """The least noise multiplier with which so many rounds stay within a budget.

    Args:
        sampler: of the run.
        num_clients: N.
        rounds: T, at least 1.
        epsilon: the budget, above 0.
        delta: of the budget.
        tolerance: of the result, relative; the result is always on the safe side.

    Returns:
        z.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fedjax_rec.samplers import everyone
        >>> z = noise_for(everyone(), 100, 3, epsilon=1.0, delta=0.126936)
        >>> 1.731 < z < 1.735
        True
    """
    if rounds < 1 or not epsilon > 0:
        raise ValueError(
            f"a budget needs rounds of at least 1 and epsilon above 0, not {rounds} and {epsilon}"
        )

    def spends(multiplier: float) -> float:
        return epsilon_of(round_event(sampler, multiplier, num_clients), rounds, delta)

    return _least_noise(spends, epsilon, tolerance)


def rounds_for(spent: Round, *, epsilon: float, delta: float, most: int = 10**6, near: int = 0) -> int:
    """How many rounds a budget allows.

    Args:
        spent: one round.
        epsilon: the budget.
        delta: of the budget.
        most: the answer is at most this.
        near: a guess, which saves time.

    Returns:
        the largest T whose epsilon is within the budget.

    Example:
        >>> from fedjax_rec.samplers import everyone
        >>> rounds_for(round_event(everyone(), 3**0.5, 100), epsilon=1.001, delta=0.126936)
        3
    """

    def fits(rounds: int) -> bool:
        return epsilon_of(spent, rounds, delta) <= epsilon

    low, step = (near if 0 < near <= most and fits(near) else 0), 1
    while low < most and fits(min(low + step, most)):
        low, step = min(low + step, most), 2 * step
    high = min(low + step, most + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


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
    sizes = np.arange(num_clients + 1)
    fits = rounds * binom.sf(sizes, num_clients, probability) <= SHARE * delta
    return max(1, int(np.argmax(fits)))


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


def draw_poisson(
    num_clients: int, cohort: int, rounds: int, delta: float, groups: int = 1
) -> Poisson | CyclicPoisson:
    """Poisson cohorts of a mean size, with room that is almost never too small.

    Args:
        num_clients: N.
        cohort: clients of a round on average, at most N, or a group's share of them.
        rounds: T.
        delta: of the budget.
        groups: of which each has its turn, 1 for a draw from all.

    Returns:
        the sampler.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> draw_poisson(1000, 1000, 10, 1e-4).capacity
        1000
    """
    size = num_clients if groups == 1 else -(-num_clients // groups)
    if not 1 <= cohort <= size:
        parts = "" if groups == 1 else f" in one of {groups} groups; lower the cohort or the bands"
        raise ValueError(f"cohort={cohort} must be between 1 and the {size} clients that there are{parts}")
    capacity = capacity_for(size, cohort / size, rounds, delta)
    if groups == 1:
        return poisson(cohort / size, capacity)
    return cyclic_poisson(cohort / size, capacity, groups)


def _least_noise(spends: Callable[[float], float], epsilon: float, tolerance: float) -> float:
    """The least multiplier that spends at most epsilon: log epsilon is nearly linear in log z, used here."""
    known = lru_cache(maxsize=None)(spends)
    high = 1.0
    while known(high) > epsilon:
        high *= 2
    while known(high / 2) <= epsilon:
        high /= 2

    def excess(log_z: float) -> float:
        return math.log(max(known(math.exp(log_z)), 1e-12) / epsilon)

    found = math.exp(brentq(excess, math.log(high / 2), math.log(high), xtol=tolerance / 2))
    while known(found) > epsilon:  # the root may be a little short of it
        found *= 1 + tolerance / 2
    return found


def _accountant(spent: Round) -> Any:
    dp = library()
    relations = {
        "add-or-remove-one": dp.NeighboringRelation.ADD_OR_REMOVE_ONE,
        "replace-one": dp.NeighboringRelation.REPLACE_ONE,
    }
    kinds = {"pld": dp.pld.PLDAccountant, "rdp": dp.rdp.RdpAccountant}
    return kinds[spent.accountant](neighboring_relation=relations[spent.neighbours])


def library() -> Any:
    """The package `dp_accounting`, imported when it is first needed.

    Returns:
        the module.

    Raises:
        ImportError: where it is not installed, saying how to install it.

    Example:
        >>> library().GaussianDpEvent(2.0).noise_multiplier
        2.0
    """
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as missing:
        raise ImportError(INSTALL) from missing
    return dp_accounting
