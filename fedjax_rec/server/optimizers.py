"""Server rules as optax transformations: the FedOpt family, named as in the papers, and rules that know the round.

The server descends on the negated aggregate, so `fedavg(1.0)` adds it.

Sources: McMahan et al. 2017 (FedAvg); Hsu et al. 2019, "Measuring the effects of non-identical data distribution"
(FedAvgM); Reddi et al. 2021, "Adaptive federated optimization", algorithm 2 (FedAdam, FedYogi, FedAdagrad), whose
beta_1 = 0.9, beta_2 = 0.99 and tau = 1e-3 are the defaults here.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.errors import check_arguments
from fedjax_rec.types import PyTree, Server

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
    check_arguments(fedavg, locals())
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
    check_arguments(fedavgm, locals())
    return optax.sgd(learning_rate, momentum=momentum)


class FedOptState(NamedTuple):
    """Moments of the aggregates, one entry per parameter."""

    mean: PyTree  # () where b1 = 0: it is the aggregate then, and nothing is remembered
    square: PyTree


def _fedopt(
    learning_rate: float, square: Callable[[jax.Array, jax.Array], jax.Array], b1: float, tau: float
) -> optax.GradientTransformation:
    """Reddi et al. 2021, algorithm 2, to the letter: no bias correction, tau outside the root, v_{-1} = tau^2.

    A row that nobody touched has mean 0 and stays where it is.
    """
    forgets = isinstance(b1, (int, float)) and b1 == 0

    def init(params: PyTree) -> FedOptState:
        mean = () if forgets else jax.tree.map(jnp.zeros_like, params)
        return FedOptState(mean, jax.tree.map(lambda p: jnp.full_like(p, tau**2), params))

    def update(descent: PyTree, state: FedOptState, params: PyTree = None) -> tuple[PyTree, FedOptState]:
        del params
        mean = descent if forgets else jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mean, descent)
        squares = jax.tree.map(lambda v, g: square(v, g * g), state.square, descent)
        steps = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), mean, squares)
        return steps, FedOptState(() if forgets else mean, squares)

    return optax.GradientTransformation(init, update)


def fedadam(
    learning_rate: float = 0.01, *, b1: float = 0.9, b2: float = 0.99, tau: float = TAU
) -> optax.GradientTransformation:
    """Scale by a moving average of squares: v <- b2 v + (1 - b2) delta^2.

    Args:
        learning_rate: a, the paper's eta.
        b1: decay of the mean.
        b2: decay of the squares.
        tau: adaptivity, added to the root.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedadam(1.0, b1=0.0, b2=0.0, tau=0.5)
        >>> update, _ = rule.update({"w": jnp.array(-2.0)}, rule.init({"w": jnp.array(0.0)}))
        >>> round(float(update["w"]), 4)
        0.8
    """
    check_arguments(fedadam, locals())
    return _fedopt(learning_rate, lambda v, s: b2 * v + (1 - b2) * s, b1, tau)


def fedyogi(
    learning_rate: float = 0.01, *, b1: float = 0.9, b2: float = 0.99, tau: float = TAU
) -> optax.GradientTransformation:
    """Scale by squares that move additively: v <- v - (1 - b2) delta^2 sign(v - delta^2).

    Args:
        learning_rate: a, the paper's eta.
        b1: decay of the mean.
        b2: one minus the step of the squares.
        tau: adaptivity, added to the root.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedyogi(1.0, b1=0.0, b2=0.0, tau=0.0)
        >>> update, _ = rule.update({"w": jnp.array(-2.0)}, rule.init({"w": jnp.array(0.0)}))
        >>> float(update["w"])
        1.0
    """
    check_arguments(fedyogi, locals())
    return _fedopt(learning_rate, lambda v, s: v - (1 - b2) * s * jnp.sign(v - s), b1, tau)


def fedadagrad(
    learning_rate: float = 0.05, *, b1: float = 0.0, tau: float = TAU
) -> optax.GradientTransformation:
    """Scale by the sum of squares: v <- v + delta^2.

    Args:
        learning_rate: a, the paper's eta.
        b1: decay of the mean; the paper uses 0 here.
        tau: adaptivity, added to the root.

    Returns:
        an optax transformation.

    Example:
        >>> rule = fedadagrad(1.0, tau=0.0)
        >>> update, _ = rule.update({"w": jnp.array(-2.0)}, rule.init({"w": jnp.array(0.0)}))
        >>> float(update["w"])
        1.0
    """
    check_arguments(fedadagrad, locals())
    return _fedopt(learning_rate, jnp.add, b1, tau)


class Rule(NamedTuple):
    """A named optimizer and its default learning rate."""

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


def scheduled_by_round(step: Callable[[jax.Array, PyTree], PyTree]) -> optax.GradientTransformation:
    """A rule that depends on the round, for servers whose shared leaves are {"round": t} and nothing else.

    Args:
        step: (t float32[], negated aggregate of the tables) -> what is added to the tables.

    Returns:
        an optax transformation over `Server`, which also counts the round.

    Raises:
        ValueError: in an update without parameters, of which t is one.

    Example:
        >>> rule = scheduled_by_round(lambda t, tables: -(0.5**t) * tables)
        >>> moved, _ = rule.update(Server({}, -4.0), rule.init(0.0), Server({"round": 2.0}, 0.0))
        >>> float(moved.shared["round"]), float(moved.tables)
        (1.0, 1.0)
    """

    def update(updates: Server, state: PyTree, params: Server | None = None) -> tuple[Server, PyTree]:
        if params is None:
            raise ValueError("the server's step needs the parameters: call update(updates, state, params)")
        return Server({"round": jnp.float32(1)}, step(params.shared["round"], updates.tables)), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
