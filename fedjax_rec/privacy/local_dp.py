"""Local differential privacy: each client clips and adds noise itself, for a server that it does not trust.

A client scales its update down to norm C, and adds normal(0, (z C)^2) to every number that it sends. What the
server then does with it, any aggregator or optimizer, is post-processing and spends nothing.

* **Unit**: one user. Neighbours are any two histories of that client ("replace one"): their updates differ by up
  to 2 C, twice what central privacy counts, and nobody else's noise helps. Drawing cohorts does not amplify.
* **Composition**: over the rounds in which the client takes part; at worst all, which is what `epsilon` counts.
* **Not covered** by default: *which rows* a client sends, which tells its items (`fedjax_rec.attacks.inference`).
  The guarantee is for histories that touch the same rows. With `items` every row is sent, with noise, and this is
  covered too, for the price of a whole table. Nor are covered: who takes part, the number of examples where an
  aggregator weighs by it, and the numbers that a simulation prints.

The noise is that of the analytic Gaussian mechanism, not of sqrt(2 log(1.25 / delta)) / epsilon, which does not
hold for epsilon > 1.
"""

from functools import partial
from typing import Any, NamedTuple

from fedjax_rec.errors import check_arguments
from fedjax_rec.privacy.accounting import UNIT, RoundEvent, epsilon_of, message_event
from fedjax_rec.privacy.calibration import choose_noise, message_noise_for, rounds_for
from fedjax_rec.transforms.base import Transform
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import add_noise
from fedjax_rec.transforms.clipping import clip as clip_to
from fedjax_rec.transforms.row_hiding import all_rows

NOT_COVERED = ("who takes part", "numbers of examples, where an aggregator weighs by them", "printed metrics")
TOUCHED_ROWS = "which rows a client touched"


class LocallyPrivateFederation(NamedTuple):
    """A locally private way to federate, and the means to say what it spends."""

    transform: Transform
    noise_multiplier: float  # z, of the clipping norm
    clip: float  # C
    delta: float
    per_round: RoundEvent  # what one message of one client spends
    planned_rounds: int  # messages of one client for which the noise was chosen
    not_covered: tuple[str, ...]

    @property
    def federation(self) -> dict[str, Any]:
        """What a factory takes: the transform."""
        return {"transform": self.transform}

    @property
    def unit(self) -> str:
        """Whose change is hidden."""
        return UNIT

    def epsilon(self, rounds: int) -> float:
        """Epsilon of a client that took part in so many rounds, at `delta`."""
        return epsilon_of(self.per_round, rounds, self.delta)

    def rounds_within(self, epsilon: float) -> int:
        """How many rounds one client may take part in within a budget."""
        return rounds_for(self.per_round, epsilon=epsilon, delta=self.delta, guess=self.planned_rounds)


def local_dp(
    *,
    rounds: int,
    clip: float,
    delta: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    items: int | None = None,
) -> LocallyPrivateFederation:
    """Noise on the client, calibrated to a budget or given.

    Args:
        rounds: T, in which a client may take part, and which the budget is for.
        clip: C, the largest L2 norm of a client's update, above 0.
        delta: of the guarantee.
        noise_multiplier: z; give it or the target.
        target_epsilon: the epsilon that T rounds may spend.
        items: I, to send every row of the tables, so that the rows tell nothing; None: the touched rows only.

    Returns:
        a transform, with what a round of it spends.

    Raises:
        ValueError: if a number is out of range, or not exactly one of noise and target is given.
        ImportError: without dp-accounting.

    Example:
        >>> private = local_dp(rounds=10, clip=0.5, delta=1e-5, target_epsilon=8.0)
        >>> round(private.epsilon(10), 3), private.not_covered[0]
        (8.0, 'which rows a client touched')
        >>> import fedjax_rec as fr
        >>> algorithm = fr.fedmf(dim=8, aggregator="mean", **private.federation)

    Source: Duchi et al. 2013, "Local privacy and statistical minimax rates" (the model); Balle & Wang 2018,
    "Improving the Gaussian mechanism for differential privacy" (the noise).
    """
    check_arguments(local_dp, locals())
    calibrate = partial(message_noise_for, rounds, delta=delta)
    noise_multiplier = choose_noise(noise_multiplier, target_epsilon, calibrate)
    rows = () if items is None else (all_rows(items),)
    deviation = noise_multiplier * clip
    return LocallyPrivateFederation(
        transform=chain(clip_to(clip), *rows, add_noise(deviation)),
        noise_multiplier=noise_multiplier,
        clip=clip,
        delta=delta,
        per_round=message_event(deviation / clip),
        planned_rounds=rounds,
        not_covered=NOT_COVERED if items is not None else (TOUCHED_ROWS, *NOT_COVERED),
    )
