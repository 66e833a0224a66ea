"""What does not build: noise that would not hide what it is to hide."""

import jax.numpy as jnp

from fedjax_rec.samplers import CyclicPoisson
from fedjax_rec.types import Aggregator, Bound, Informed, Sampler, Server, Totals, Transform

SLACK = 1e-6  # of a norm, for rounding


def bound_of(transform: Transform | None) -> Bound:
    """What is known of one client's contribution.

    Args:
        transform: what a client does to its update; None for nothing.

    Returns:
        its norm at most, if anything bounds it, and the noise that the client adds itself.

    Raises:
        ValueError: if the transform is unsound by itself, such as noise without a clip.

    Example:
        >>> from fedjax_rec.transforms import clip
        >>> bound_of(clip(2.0)).norm, bound_of(None).norm
        (2.0, None)
    """
    if transform is None or transform.bound is None:
        return Bound()
    return transform.bound(Bound())


def check_sound(
    aggregator: Aggregator,
    transform: Transform | None,
    *,
    exchanges: bool = False,
    sampler: Sampler | None = None,
) -> None:
    """Refuse a chain whose noise would not hide one client.

    Args:
        aggregator: may add noise, for contributions of a norm that it names.
        transform: of each client's update.
        exchanges: whether the server sends clients more than the noisy model.
        sampler: who takes part.

    Raises:
        ValueError: saying why, and what to do.

    Example:
        >>> from fedjax_rec.aggregators import gaussian
        >>> check_sound(gaussian(noise_multiplier=1.0, norm=0.5, expected=100), None)
        Traceback (most recent call last):
        ValueError: noise for updates of norm 0.5 hides nothing of updates without a bound; ...
    """
    bound = bound_of(transform)
    if bound.deviation > 0 or aggregator.norm is not None:
        _check_told(aggregator, sampler)
    if aggregator.norm is None:
        return
    if bound.norm is None:
        raise ValueError(
            f"noise for updates of norm {aggregator.norm} hides nothing of updates without a bound; give "
            f"transform=transforms.clip({aggregator.norm}), last in its chain"
        )
    if bound.norm > aggregator.norm * (1 + SLACK):
        raise ValueError(
            f"noise for updates of norm {aggregator.norm} is too little for those of norm {bound.norm}; clip them "
            f"to {aggregator.norm}, or make the noise for {bound.norm}"
        )
    groups = sampler.groups if isinstance(sampler, CyclicPoisson) else 1
    if groups < aggregator.bands:
        raise ValueError(
            f"noise of {aggregator.bands} bands hides a client that takes part once in as many rounds; draw "
            f"cohorts with samplers.cyclic_poisson(..., groups={aggregator.bands})"
        )
    if aggregator.least > 1:
        raise ValueError(
            f"a round that needs {aggregator.least} clients tells by failing that one was away, which noise for "
            "one client's update does not hide; leave the threshold at 1, or train without noise"
        )
    if exchanges:
        raise ValueError(
            "this algorithm's server sends clients what it makes of others' updates without noise; it has no "
            "private form, choose another algorithm"
        )


def _check_told(aggregator: Aggregator, sampler: Sampler | None) -> None:
    """Refuse noise on updates beside what tells of the clients without noise."""
    if aggregator.hears_losses:
        raise ValueError(
            "clients that tell their losses tell more than noise on their updates hides; average the updates "
            "instead, or train without noise"
        )
    if isinstance(sampler, Informed):
        raise ValueError(
            f"{type(sampler).__name__} draws clients by their data, which noise on their updates does not hide; "
            "draw cohorts with samplers.poisson, uniform or everyone"
        )


def check_summable(aggregator: Aggregator) -> None:
    """Refuse aggregators whose sensitivity is not that of a plain sum.

    Args:
        aggregator: that noise is to be added to.

    Raises:
        ValueError: saying why, and what to do.

    Example:
        >>> from fedjax_rec.aggregators import by_examples
        >>> check_summable(by_examples())
        Traceback (most recent call last):
        ValueError: weights by examples let a client count as much as it likes, and are private; use the plain sum
    """
    if aggregator.stacked:
        raise ValueError(
            "medians, Krum and their like are no sums, which the accountant of Gaussian sums does not know; use "
            "the plain sum"
        )
    if aggregator.hears_losses:
        raise ValueError("weights by losses are of the clients' data, and private; use the plain sum")
    if aggregator.by_row:
        raise ValueError(
            "how many clients touched a row is private, so rows cannot be divided by it; use the plain sum"
        )
    if len({float(w) for w in aggregator.weight(jnp.array([1, 5, 70]))}) > 1:
        raise ValueError(
            "weights by examples let a client count as much as it likes, and are private; use the plain sum"
        )
    few, many = (_finish_of(aggregator, clients) for clients in (2.0, 3.0))
    if few != many:
        raise ValueError(
            "how many clients took part is private, so the sum cannot be divided by it; use the plain sum, the "
            "denominator is the expected number"
        )


def _finish_of(aggregator: Aggregator, clients: float) -> float:
    totals = Totals(Server(jnp.array(6.0), ()), jnp.array(clients), None)
    return float(aggregator.finish(totals).shared)
