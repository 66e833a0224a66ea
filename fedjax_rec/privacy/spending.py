"""What a run has spent of its users' privacy, read off the algorithm that ran, and what no epsilon covers."""

import secrets
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from fedjax_rec.privacy.accounting import UNIT, epsilon_of, event_of
from fedjax_rec.samplers.data_independent import CyclicPoisson, Poisson
from fedjax_rec.types import Algorithm, Key

RELEASED = (  # by a simulation, besides the model
    "the round that was chosen, by validation metrics of the same clients",
    "metrics, losses, norms, traffic and numbers of clients of rounds",
    "the run's folder: ranks and histories of users, and the leaves that clients keep to themselves",
    "sizes by the longest history: batches and memory",
    "how data were filtered and cut, where that goes by more than one user, as a k-core does",
    "which items there are",
    "popularity, the baseline",
    "the number of clients",
    "other runs on the same users, such as those by which settings were chosen: each spends again",
)
PUBLIC_SEED = "whoever has the seed can take the noise off again"
BY_EVENTS = "settings that follow from the number of events"
OF_MESSAGES = ("who takes part", "which rows a client touched, unless it sends all of them")


class Spending(NamedTuple):
    """What so many rounds have spent."""

    unit: str
    epsilon: float
    delta: float
    noise_multiplier: float  # z
    clip: float | None  # C, that the server's noise is for; None where clients add noise, of their own clip
    sampling_probability: float | None  # q; None for other cohorts than Poisson's
    capacity: int | None  # most clients of a round, of Poisson cohorts
    clients: int  # N
    neighbours: str
    accountant: str
    noise_seed: str  # "public" or "secret"
    not_covered: tuple[str, ...]


def spending_of(
    algorithm: Algorithm,
    num_clients: int,
    rounds: int,
    delta: float,
    *,
    secret: bool = False,
    by_events: Sequence[str] = (),
) -> Spending | None:
    """What so many rounds of an algorithm spend.

    Args:
        algorithm: that ran: nothing else is asked.
        num_clients: N, of its population.
        rounds: T.
        delta: of the guarantee.
        secret: whether the run's key is of `secret_key`.
        by_events: settings that follow from the number of events, which one user changes.

    Returns:
        what is spent; None where no noise is added.

    Raises:
        ValueError: if its sampler has no known event.
        ImportError: without dp-accounting, where there is noise.

    Example:
        >>> import fedjax_rec as fr
        >>> private = fr.privacy.dp_fedavg(100, cohort=100, rounds=10, clip=0.5, delta=1e-3, noise_multiplier=8.0)
        >>> spent = spending_of(fr.fedmf(dim=2, **private.federation), 100, 10, 1e-3)
        >>> spent.epsilon == private.epsilon(10), spent.noise_seed
        (True, 'public')
    """
    event = event_of(algorithm, num_clients)
    mechanism = algorithm.mechanism
    if event is None or mechanism is None:
        return None
    noise = mechanism.noise if mechanism.client_noise == 0 else None
    sampler = mechanism.sampler
    drawn = sampler if isinstance(sampler, Poisson | CyclicPoisson) else None
    not_covered: tuple[str, ...] = RELEASED if noise is not None else (*OF_MESSAGES, *RELEASED)
    if by_events:
        not_covered += (f"{BY_EVENTS}: {', '.join(by_events)}",)
    return Spending(
        unit=UNIT,
        epsilon=epsilon_of(event, rounds, delta),
        delta=delta,
        noise_multiplier=mechanism.client_noise if noise is None else noise.multiplier,
        clip=None if noise is None else noise.norm,
        sampling_probability=None if drawn is None else drawn.probability,
        capacity=None if drawn is None else drawn.capacity,
        clients=num_clients,
        neighbours=event.neighbours,
        accountant=event.accountant,
        noise_seed="secret" if secret else "public",
        not_covered=not_covered if secret else (PUBLIC_SEED, *not_covered),
    )


def secret_key() -> Key:
    """A run's key from the system's entropy, for noise and cohorts that nobody can draw again.

    A simulation is a function of its key: with a number as its seed, whoever knows the number can draw the noise
    again, and take it off. This key is written nowhere but, for a resume, in the run's checkpoints. It has the 64
    bits that jax's generator takes.

    Returns:
        a key, for `simulate(seed=...)`.

    Example:
        >>> bool((jax.random.key_data(secret_key()) != jax.random.key_data(secret_key())).any())
        True
    """
    words = np.frombuffer(secrets.token_bytes(8), np.uint32)
    return jax.random.wrap_key_data(jax.numpy.asarray(words), impl="threefry2x32")
