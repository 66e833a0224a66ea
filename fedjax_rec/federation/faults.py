"""What goes wrong with clients: they fail, sleep, come late, or do only part of their work.

`federate(..., faults=Faults(...))` draws a cohort as ever; `apply_faults` then says which of its clients arrive,
and with how many of their local batches. All is decided inside the compiled round by (seed, round, client id), so
that a resumed run meets the same faults. In this order:

    awake?  ->  fails?  ->  slowness x batches > deadline?  ->  among the first `keep`?  ->  at least `minimum`?

Time is counted in local batches of a median device. A client's slowness is exp(spread n_i + jitter n_it): n_i is
standard normal and its own for the run, n_it is new in each round. A round that nobody survives is skipped and
counted (`RoundInfo.skipped`); `RoundInfo.missing` counts the clients that were drawn in vain.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.types import Key


class Faults(NamedTuple):
    """Which clients of a cohort arrive; by default all, with all of their work.

    Example:
        >>> import fedjax_rec as fr
        >>> algorithm = fr.fedmf(dim=4, cohort=120, faults=Faults(drop_out=0.1, spread=0.5, keep=100))
    """

    drop_out: float = 0.0  # probability that a client fails, in each round anew
    awake: float = 1.0  # share of the day in which a client answers; when its day begins is its own
    day: int = 24  # rounds
    spread: float = 0.0  # standard deviation of the log of a device's slowness
    jitter: float = 0.0  # the same, from round to round
    deadline: float | None = (
        None  # local batches of a median device, over all local epochs; None: no deadline
    )
    partial: bool = False  # the late send what they have, an equal part of each epoch, instead of nothing
    keep: int | None = None  # over-selection: the first so many count, the others are sent home
    minimum: int = 1  # a round with fewer clients is skipped


def check_faults(faults: Faults) -> None:
    """Refuse faults that are out of range.

    Args:
        faults: of the clients.

    Raises:
        ParameterError: naming the field and the way out.

    Example:
        >>> check_faults(Faults(drop_out=1.5))
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: Faults.drop_out=1.5 is out of range; give a number from 0 to 1
    """
    check_arguments(Faults, faults._asdict())
    for name, least, most, words in (
        ("drop_out", 0.0, 1.0, "a number from 0 to 1"),
        ("awake", 0.0, 1.0, "a number from 0 to 1"),
        ("spread", 0.0, 10.0, "a number from 0 to 10"),
        ("jitter", 0.0, 10.0, "a number from 0 to 10"),
        ("day", 1, float("inf"), "at least 1 round"),
        ("minimum", 1, float("inf"), "at least 1 client"),
        ("keep", 1, float("inf"), "at least 1 client, or None"),
        ("deadline", 0.0, float("inf"), "a time of at least 0, or None"),
    ):
        value = getattr(faults, name)
        if value is not None and not least <= value <= most:
            raise ParameterError(f"{{Faults.{name}}}={value} is out of range; give {words}")
    if faults.partial and faults.deadline is None:
        raise ParameterError(
            "{Faults.partial}=True needs a deadline, after which the late send what they have"
        )
    if (faults.spread or faults.jitter) and faults.deadline is None and faults.keep is None:
        name, value = ("spread", faults.spread) if faults.spread else ("jitter", faults.jitter)
        raise ParameterError(
            f"{{Faults.{name}}}={value} changes nothing where nobody waits for the slow; give a deadline or keep"
        )


def apply_faults(
    faults: Faults,
    key: Key,
    round_: jax.Array,
    ids: jax.Array,
    alive: jax.Array,
    batches: jax.Array,
    epochs: int,
) -> tuple[jax.Array, jax.Array]:
    """Who arrives, and with how much work.

    Args:
        faults: of the clients.
        key: the run's stream of faults.
        round_: int32[], the number of the round.
        ids: int32[C], the cohort.
        alive: bool[C], its slots that are taken by clients with data.
        batches: int32[C], local batches of each client in an epoch.
        epochs: local epochs.

    Returns:
        bool[C], who takes part, and int32[C], local batches that each does in every epoch.

    Example:
        >>> ids, there, faults = jnp.arange(3), jnp.ones(3, bool), Faults(deadline=4.0, partial=True)
        >>> work = jnp.array([1, 3, 9])
        >>> arrived, done = apply_faults(faults, jax.random.key(0), jnp.int32(0), ids, there, work, 2)
        >>> arrived.tolist(), done.tolist()
        ([True, True, True], [1, 2, 2])
    """
    own = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
    now = jax.vmap(lambda one: jax.random.fold_in(one, round_ + 1))(
        own
    )  # round 0 is not the device's own key
    arrived = alive & _awake(faults, own, round_) & ~_fails(faults, now)
    slow = slowness(own, now, spread=faults.spread, jitter=faults.jitter)
    done = batches
    if faults.deadline is not None and faults.partial:
        done = jnp.minimum(batches, (faults.deadline / (slow * epochs)).astype(jnp.int32))
    time = slow * done * epochs
    if faults.deadline is not None:
        arrived = arrived & (done > 0) & (time <= faults.deadline * (1 + 1e-6))
    if faults.keep is not None:
        rank = jnp.argsort(jnp.argsort(jnp.where(arrived, time, jnp.inf), stable=True), stable=True)
        arrived = arrived & (rank < faults.keep)
    return arrived & (arrived.sum() >= faults.minimum), done


def _awake(faults: Faults, own: Key, round_: jax.Array) -> jax.Array:
    """Whether each client's day has got to where it answers; the hours are whole rounds."""
    begins = jax.vmap(lambda one: jax.random.randint(jax.random.fold_in(one, 0), (), 0, faults.day))(own)
    return (round_ + begins) % faults.day < faults.awake * faults.day


def _fails(faults: Faults, now: Key) -> jax.Array:
    return jax.vmap(lambda one: jax.random.bernoulli(jax.random.fold_in(one, 1), faults.drop_out))(now)


def slowness(own: Key, now: Key, *, spread: float, jitter: float) -> jax.Array:
    """Time that a local batch takes on each device, on a median one 1: exp(spread n_i + jitter n_it).

    Args:
        own: [C], each client's key of faults.
        now: [C], the same for one round.
        spread: standard deviation of its log over devices.
        jitter: the same, from round to round.

    Returns:
        float32[C].

    Example:
        >>> keys = jax.random.split(jax.random.key(0), 3)
        >>> slowness(keys, keys, spread=0.0, jitter=0.0).tolist()
        [1.0, 1.0, 1.0]
    """
    device, load = (
        jax.vmap(lambda one: jax.random.normal(jax.random.fold_in(one, 2)))(k) for k in (own, now)
    )
    return jnp.exp(spread * device + jitter * load)
