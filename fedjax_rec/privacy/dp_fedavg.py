"""User-level central differential privacy: who is drawn, what is clipped, what noise is added, and what it spends.

McMahan et al. 2018, "Learning differentially private recurrent language models" (arXiv:1710.06963), algorithm 1,
with uniform weights and the fixed denominator q N (their f~_f):

* each client takes part with probability q, by itself (`samplers.poisson`, truncated to a capacity that is
  exceeded almost never, which the accountant knows);
* its whole update, all rows and dense leaves together, is scaled down to norm C (`transforms.clip`); rows of one
  client are summed before, for a client holds an item once;
* the server adds normal(0, (z C)^2) to **every** number of the sum, of rows that nobody touched too, and divides
  by q N (`aggregators.gaussian`).

The result is a value that any algorithm with a plain sum takes: `fr.fedmf(**private.federation)`. What stays on
devices (user vectors) needs no noise. **Not covered**: validation metrics, by which a round is selected, and all
other numbers that a simulation prints: they are those of the experimenter, not releases of the system.
"""

from functools import partial
from typing import Any, NamedTuple

from fedjax_rec.errors import check_arguments
from fedjax_rec.privacy.accounting import RoundEvent, epsilon_of, round_event
from fedjax_rec.privacy.banded import noise_coefficients
from fedjax_rec.privacy.calibration import check_delta, choose_noise, noise_for, poisson_sampler, rounds_for
from fedjax_rec.samplers.data_independent import CyclicPoisson, Poisson
from fedjax_rec.server.aggregators import gaussian
from fedjax_rec.transforms.base import Transform
from fedjax_rec.transforms.clipping import clip as clip_to
from fedjax_rec.types import Aggregator


class PrivateFederation(NamedTuple):
    """A private way to federate, and the means to say what it spends."""

    sampler: Poisson | CyclicPoisson
    transform: Transform
    aggregator: Aggregator
    noise_multiplier: float  # z
    clip: float  # C
    delta: float
    per_round: RoundEvent  # what one round spends
    planned_rounds: int  # for which noise and capacity were chosen

    @property
    def federation(self) -> dict[str, Any]:
        """What a factory takes: sampler, transform and aggregator."""
        return {name: getattr(self, name) for name in ("sampler", "transform", "aggregator")}

    def epsilon(self, rounds: int) -> float:
        """Epsilon of the model after so many rounds, at `delta`."""
        return epsilon_of(self.per_round, rounds, self.delta)

    def rounds_within(self, epsilon: float) -> int:
        """How many rounds stay within a budget."""
        return rounds_for(self.per_round, epsilon=epsilon, delta=self.delta, guess=self.planned_rounds)


def dp_fedavg(
    num_clients: int,
    *,
    cohort: int,
    rounds: int,
    clip: float,
    delta: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    bands: int = 1,
    capacity: int | None = None,
    allow_large_delta: bool = False,
) -> PrivateFederation:
    """Federated averaging that hides each user, calibrated to a budget or with the noise given.

    Args:
        num_clients: N.
        cohort: q N, clients of a round on average, at most N.
        rounds: T that the budget is for.
        clip: C, the largest L2 norm of a client's update, above 0.
        delta: of the guarantee, such as N^-1.1.
        noise_multiplier: z; give it or the target.
        target_epsilon: the epsilon that T rounds may spend.
        bands: more than 1 for noise that later rounds take back in part (`privacy.banded`); a client then takes
            part once in so many rounds, and no more than T rounds are taken.
        capacity: B, most clients of a round; by default so many that dropping the surplus costs a hundredth of
            delta. Whatever it is, it is accounted for.
        allow_large_delta: take a delta of 1 / N and more, which allows to publish one client's data whole.

    Returns:
        sampler, transform and aggregator, with what a round of them spends; other populations are refused.

    Raises:
        ValueError: if a number is out of range, delta is 1 / N or more, or not exactly one of noise and target is
            given.
        ImportError: without dp-accounting, or without jax-privacy for `bands` above 1.

    Example:
        >>> private = dp_fedavg(1000, cohort=1000, rounds=10, clip=0.5, delta=1e-4, noise_multiplier=8.0)
        >>> round(private.epsilon(10), 1), private.sampler.capacity
        (1.3, 1000)
        >>> import fedjax_rec as fr
        >>> algorithm = fr.fedmf(dim=8, **private.federation)
    """
    check_arguments(dp_fedavg, locals())
    check_delta(delta, num_clients, allow_large=allow_large_delta)
    mixing = noise_coefficients(rounds, bands) if bands != 1 else ()
    sampler = poisson_sampler(num_clients, cohort, rounds, delta, groups=bands, capacity=capacity)
    calibrate = partial(noise_for, sampler, num_clients, rounds, delta=delta)
    noise_multiplier = choose_noise(noise_multiplier, target_epsilon, calibrate)
    per_round = round_event(sampler, noise_multiplier, num_clients)
    aggregator = gaussian(noise_multiplier=noise_multiplier, norm=clip, expected=cohort, mixing=mixing)
    assert aggregator.noise is not None  # noqa: S101 - `gaussian` makes it; this tells the type checker
    return PrivateFederation(
        sampler=sampler,
        transform=clip_to(clip),
        aggregator=aggregator._replace(noise=aggregator.noise._replace(sampler=sampler)),
        noise_multiplier=noise_multiplier,
        clip=clip,
        delta=delta,
        per_round=per_round._replace(max_rounds=rounds if bands > 1 else None),
        planned_rounds=rounds,
    )
