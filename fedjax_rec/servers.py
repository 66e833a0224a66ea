"""Server rules of the FedOpt family, as optax transformations named as in the papers.

The server descends on the negated aggregate, so `fedavg(1.0)` adds it.

Sources: McMahan et al. 2017 (FedAvg); Hsu et al. 2019, "Measuring the effects of non-identical data distribution"
(FedAvgM); Reddi et al. 2021, "Adaptive federated optimization", algorithm 2 (FedAdam, FedYogi, FedAdagrad), whose
beta_1 = 0.9, beta_2 = 0.99 and tau = 1e-3 are the defaults here.
"""

from collections.abc import Callable
from typing import NamedTuple

import optax

TAU = 1e-3  # Reddi et al. 2021, section 5: adaptivity


def fedavg(learning_rate: float = 1.0) -> optax.GradientTransformation:
    """Add the aggregate: M(t+1) = M(t) + a * aggregate.

    Args:
        learning_rate: a.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedavg(0.5)
        >>> float(rule.update(-2.0, rule.init(0.0))[0])
        1.0
    """
    return optax.sgd(learning_rate)


def fedavgm(learning_rate: float = 0.3, momentum: float = 0.9) -> optax.GradientTransformation:
    """Add a momentum of aggregates.

    Args:
        learning_rate: a.
        momentum: beta.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedavgm(0.5)
        >>> float(rule.update(-2.0, rule.init(0.0))[0])
        1.0
    """
    return optax.sgd(learning_rate, momentum=momentum)


def fedadam(
    learning_rate: float = 0.01, *, b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Scale each coordinate as Adam does (with its bias correction, which the paper leaves out).

    Args:
        learning_rate: a.
        b1: decay of the first moment.
        b2: decay of the second moment.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedadam(0.5)
        >>> update, _ = rule.update({"w": -2.0}, rule.init({"w": 0.0}))
        >>> round(float(update["w"]), 2)
        0.5
    """
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=TAU)


def fedyogi(
    learning_rate: float = 0.01, *, b1: float = 0.9, b2: float = 0.99
) -> optax.GradientTransformation:
    """Scale each coordinate as Yogi does, whose second moment moves by at most the squared aggregate.

    Args:
        learning_rate: a.
        b1: decay of the first moment.
        b2: decay of the second moment.

    Returns:
        an optax transformation.

    Example:
        >>> fedyogi().init({"w": 0.0}) is not None
        True
    """
    return optax.yogi(learning_rate, b1=b1, b2=b2, eps=TAU)


def fedadagrad(learning_rate: float = 0.05) -> optax.GradientTransformation:
    """Scale each coordinate by the root of its summed squares, as Adagrad does.

    Args:
        learning_rate: a.

    Returns:
        an optax transformation.

    Example:
        >>> fedadagrad().init({"w": 0.0}) is not None
        True
    """
    return optax.adagrad(learning_rate, initial_accumulator_value=0.0, eps=TAU)


class Rule(NamedTuple):
    """A named optimizer and the learning rate it takes unless told otherwise."""

    make: Callable[[float], optax.GradientTransformation]
    learning_rate: float


SERVERS = {
    "fedavg": Rule(fedavg, 1.0),
    "fedavgm": Rule(fedavgm, 0.3),
    "fedadam": Rule(fedadam, 0.01),
    "fedyogi": Rule(fedyogi, 0.01),
    "fedadagrad": Rule(fedadagrad, 0.05),
}
LOCALS: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adagrad": optax.adagrad,
    "rmsprop": optax.rmsprop,
}
