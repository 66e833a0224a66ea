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
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.samplers.data_independent import (
    CyclicPoisson,
    Everyone,
    Poisson,
    Uniform,
)
from fedjax_rec.types import Algorithm, DataDependentSampler, Sampler

UNIT = "user"  # what neighbours differ in: all that one client holds
MAX_EPSILON = 100.0  # beyond, nothing is hidden, and counting takes minutes and gigabytes
_ORDERS = (*range(2, 64), 96, 128, 256, 512)  # of the quick estimate, in whole numbers
_MAX_ESTIMATE = 4 * MAX_EPSILON  # it is at most so far off
_FINE = (1.0, 1e-4)  # an estimate up to which privacy losses are counted in such steps
_COARSE_STEP = 1e-3
_INSTALL_HINT = "privacy accounting needs dp-accounting; pip install 'fedjax_rec[privacy]'"


class RoundEvent(NamedTuple):
    """What one round is to an accountant."""

    event: Any  # a DpEvent
    neighbours: str  # "add-or-remove-one" or "replace-one"
    accountant: str  # "pld" or "rdp"
    rounds_per_event: int = 1  # consecutive rounds that are one event to each client
    max_rounds: int | None = None  # for which the noise was made: nothing hides more of them


def round_event(sampler: Sampler, noise_multiplier: float, num_clients: int) -> RoundEvent:
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
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> round_event(everyone(), 2.0, 100).accountant
        'pld'
    """
    dp = import_dp_accounting()
    kind: Any = type(sampler)  # itself: what is made of one of these may draw in another way
    if kind is Everyone:
        return RoundEvent(dp.GaussianDpEvent(noise_multiplier), "add-or-remove-one", "pld")
    if kind in (Poisson, CyclicPoisson):
        assert isinstance(sampler, Poisson | CyclicPoisson)  # noqa: S101 - this tells the type checker
        if sampler.num_clients not in (None, num_clients):
            raise ValueError(
                f"{sampler} draws from {sampler.num_clients:,} clients, not from {num_clients:,}; make another one"
            )
        groups = sampler.groups if isinstance(sampler, CyclicPoisson) else 1
        size = -(-num_clients // groups)
        if sampler.probability == 1 and sampler.capacity >= size:  # everyone, whom no draw hides
            gaussian = dp.GaussianDpEvent(noise_multiplier)
            return RoundEvent(gaussian, "add-or-remove-one", "pld", rounds_per_event=groups)
        event = dp.TruncatedSubsampledGaussianDpEvent(
            dataset_size=size,
            sampling_probability=_drawn_share(sampler.probability),
            truncated_batch_size=min(sampler.capacity, size),
            noise_multiplier=noise_multiplier,
        )
        return RoundEvent(event, "add-or-remove-one", "pld", rounds_per_event=groups)
    if kind is Uniform:
        assert isinstance(sampler, Uniform)  # noqa: S101 - this tells the type checker
        gaussian = dp.GaussianDpEvent(noise_multiplier / 2)
        event = dp.SampledWithoutReplacementDpEvent(num_clients, sampler.size(num_clients), gaussian)
        return RoundEvent(event, "replace-one", "rdp")
    if isinstance(sampler, DataDependentSampler):
        raise ValueError(
            f"{sampler!r} draws clients by their data, so that the cohort itself reveals it; draw cohorts with "
            "samplers.poisson, uniform or everyone"
        )
    raise ValueError(
        f"nothing is known of what {sampler!r} reveals; draw cohorts with samplers.poisson, uniform or everyone"
    )


def _drawn_share(probability: float) -> float:
    """With which probability a draw is below q: draws are multiples of 2^-23, and compared as float32."""
    return min(1.0, math.ceil(float(np.float32(probability)) * 2**23) / 2**23)


def event_of(algorithm: Algorithm, num_clients: int) -> RoundEvent | None:
    """What one round of an algorithm spends, read off what runs: its sampler, its clip and its noise.

    Args:
        algorithm: any.
        num_clients: N, of the population that it runs on.

    Returns:
        the event; None where no noise is added.

    Raises:
        ValueError: if its sampler has no known event, or is for another number of clients; if its rounds are not
            those that `federate` made.
        ImportError: without dp-accounting, where there is noise.

    Example:
        >>> import fedjax_rec as fr
        >>> event_of(fr.fedmf(dim=2), 100) is None
        True
    """
    mechanism = algorithm.mechanism
    if mechanism is None or (mechanism.noise is None and not mechanism.client_noise > 0):
        return None
    if mechanism.made_for != (algorithm.init, algorithm.round, algorithm.streaming):
        raise ValueError(
            "the algorithm's init, round or streaming was replaced after fr.federate made it, so that nothing is "
            "known of what its rounds reveal; give federate what they should do, or leave out the noise"
        )
    if mechanism.client_noise > 0:
        return message_event(mechanism.client_noise)
    noise = mechanism.noise
    if noise is None or not noise.multiplier > 0 or mechanism.sampler is None:
        return None
    event = round_event(mechanism.sampler, noise.multiplier, num_clients)
    return event._replace(max_rounds=noise.max_rounds)


def message_event(noise_multiplier: float) -> RoundEvent:
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
    return RoundEvent(import_dp_accounting().GaussianDpEvent(noise_multiplier), "replace-one", "pld")


def epsilon_of(per_round: RoundEvent, rounds: int, delta: float) -> float:
    """Epsilon of so many rounds.

    Args:
        per_round: the event of one round.
        rounds: T.
        delta: above 0 and below 1.

    Returns:
        epsilon; 0 for no rounds, infinite for more than there is noise for, and beyond `MAX_EPSILON`.

    Raises:
        ValueError: if a number is out of range.

    Example:
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> round(epsilon_of(round_event(everyone(), 3**0.5, 100), 3, 0.126936), 3)
        1.0

    Source: Koskela et al. 2020 (PLD); Mironov 2017 (RDP); as `dp-accounting` composes them.
    """
    if rounds < 0 or not 0 < delta < 1:
        raise ValueError(f"rounds={rounds} must be at least 0, and delta={delta} between 0 and 1")
    if rounds == 0:
        return 0.0
    if per_round.max_rounds is not None and rounds > per_round.max_rounds:
        return math.inf
    num_events = -(-rounds // per_round.rounds_per_event)
    estimate = _estimate(per_round, num_events, delta)
    if estimate > _MAX_ESTIMATE:
        return math.inf
    dp = import_dp_accounting()
    accountant = _accountant(per_round, estimate)
    accountant.compose(dp.SelfComposedDpEvent(per_round.event, num_events))
    epsilon = float(accountant.get_epsilon(delta))
    return epsilon if epsilon <= MAX_EPSILON else math.inf


def _estimate(per_round: RoundEvent, num_events: int, delta: float) -> float:
    """About epsilon in a moment, by Renyi's divergence and as if no cohort were cut off; not for a guarantee."""
    dp = import_dp_accounting()
    event = per_round.event
    if isinstance(event, dp.TruncatedSubsampledGaussianDpEvent):
        gaussian = dp.GaussianDpEvent(event.noise_multiplier)
        event = dp.PoissonSampledDpEvent(event.sampling_probability, gaussian)
    relation = _relation_of(per_round)
    accountant = dp.rdp.RdpAccountant(orders=_ORDERS, neighboring_relation=relation)
    try:
        accountant.compose(dp.SelfComposedDpEvent(event, num_events))
        return float(accountant.get_epsilon(delta))
    except (ZeroDivisionError, OverflowError):  # the square of so little noise is no number
        return math.inf


def _accountant(per_round: RoundEvent, estimate: float) -> Any:
    """The accountant of an event, which rounds losses up to steps: fine ones where epsilon is small."""
    dp = import_dp_accounting()
    relation = _relation_of(per_round)
    if per_round.accountant == "rdp":
        return dp.rdp.RdpAccountant(neighboring_relation=relation)
    largest, fine_step = _FINE
    step = fine_step if estimate <= largest else _COARSE_STEP
    return dp.pld.PLDAccountant(relation, value_discretization_interval=step)


def _relation_of(per_round: RoundEvent) -> Any:
    relations = import_dp_accounting().NeighboringRelation
    return {"add-or-remove-one": relations.ADD_OR_REMOVE_ONE, "replace-one": relations.REPLACE_ONE}[
        per_round.neighbours
    ]


def import_dp_accounting() -> Any:
    """The package `dp_accounting`, imported when it is first needed.

    Returns:
        the module.

    Raises:
        ImportError: where it is not installed, saying how to install it.

    Example:
        >>> import_dp_accounting().GaussianDpEvent(2.0).noise_multiplier
        2.0
    """
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError as missing:
        raise ImportError(_INSTALL_HINT) from missing
    return dp_accounting
