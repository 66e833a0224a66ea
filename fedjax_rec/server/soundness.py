"""What an aggregator is made of, for the table of what goes with what; and noise that would not hide anything."""

from fedjax_rec.compatibility import Feature, Features, check_together
from fedjax_rec.server.noise import bands_of
from fedjax_rec.transforms.base import Bound, Transform
from fedjax_rec.types import Aggregator, CyclicSampler, Sampler

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
        >>> from fedjax_rec.transforms.clipping import clip
        >>> bound_of(clip(2.0)).norm, bound_of(None).norm
        (2.0, None)
    """
    if transform is None or transform.bound is None:
        return Bound()
    return transform.bound(Bound())


def check_sound(
    aggregator: Aggregator, transform: Transform | None, *, sampler: Sampler | None = None
) -> None:
    """Refuse a chain whose noise is too little to hide one client.

    Args:
        aggregator: may add noise, for contributions of a norm that it names.
        transform: of each client's update.
        sampler: who takes part.

    Raises:
        ValueError: saying why, and what to do.

    Example:
        >>> from fedjax_rec.server.aggregators import gaussian
        >>> check_sound(gaussian(noise_multiplier=1.0, norm=0.5, expected=100), None)
        Traceback (most recent call last):
        ValueError: noise for updates of norm 0.5 hides nothing of updates without a bound; ...
    """
    bound = bound_of(transform)
    noise = aggregator.noise
    if noise is None:
        return
    norm = noise.norm
    bands = bands_of(noise.mixing)
    # What was made of a private sum afterwards is none: how far a client moves other functions is not known.
    features = {**features_of(aggregator), Feature.STACKED: None}
    weight, finish, expected = noise.made_for
    features |= {Feature.BY_EXAMPLES: aggregator.weight is not weight}
    features |= {Feature.BY_COUNT: aggregator.finish is not finish}
    check_together({Feature.GAUSSIAN_SUM: True, **features})
    if noise.expected != expected:
        raise ValueError(
            f"the sum is divided by {expected:g} and its noise by {noise.expected:g}, so that it is not what the "
            "noise multiplier says; make it anew with aggregators.gaussian"
        )
    if noise.sampler is not None and (type(sampler), sampler) != (type(noise.sampler), noise.sampler):
        raise ValueError(
            f"the noise was chosen for cohorts of {noise.sampler}, and hides less or more of those of {sampler}; "
            "give the sampler that comes with it, or other noise by aggregators.gaussian"
        )
    if bound.norm is None:
        raise ValueError(
            f"noise for updates of norm {norm} hides nothing of updates without a bound; give "
            f"transform=transforms.clip({norm}), last in its chain"
        )
    if bound.norm > norm * (1 + SLACK):
        raise ValueError(
            f"noise for updates of norm {norm} is too little for those of norm {bound.norm}; clip them "
            f"to {norm}, or make the noise for {bound.norm}"
        )
    if aggregator.fixed is not None and (bound.grid is None or aggregator.fixed.unit > bound.grid):
        raise ValueError(
            f"rounding to multiples of 2^-{aggregator.fixed.bits} may raise a norm of {bound.norm} beyond what "
            f"the noise hides; clip last with privacy.clip_to_grid(norm, {aggregator.fixed.bits}, "
            f"numbers=...), and "
            "make the noise for the norm that this leaves"
        )
    groups = sampler.groups if isinstance(sampler, CyclicSampler) else 1
    if groups < bands:
        raise ValueError(
            f"noise of {bands} bands hides a client that takes part once in as many rounds; draw "
            f"cohorts with samplers.cyclic_poisson(..., groups={bands})"
        )


def features_of(aggregator: Aggregator) -> Features:
    """What an aggregator is made of.

    Args:
        aggregator: any.

    Returns:
        its features.

    Example:
        >>> from fedjax_rec.server.aggregators import mean_of_touchers
        >>> [feature.title for feature, there in features_of(mean_of_touchers()).items() if there]
        ['an aggregator by rows']
    """
    fixed = aggregator.fixed
    return {
        Feature.SERVER_NOISE: aggregator.noise,
        Feature.STACKED: aggregator.stacked,
        Feature.BY_ROW: aggregator.by_row,
        Feature.BY_HEAT: aggregator.rows.heat,
        Feature.FIXED_POINT: fixed,
        Feature.COARSE: fixed is not None and fixed.modulus < 32,
        Feature.THRESHOLD: aggregator.min_clients if aggregator.min_clients > 1 else None,
        Feature.CLIENT_STATS: aggregator.client_stats,
        Feature.LOSSES: aggregator.losses,
        Feature.LOSS_FACTORS: aggregator.loss_factor,
        Feature.LEARNT_WEIGHTS: aggregator.mixture,
    }
