"""Adaptive clipping: the norm C follows a quantile of the clients' update norms, at a small cost in noise.

Each client also sends whether its update was within C; the server, which knows the noisy share b of those, sets

    C <- C exp(-eta (b - gamma)),   b = 1/2 + (sum_i (b_i - 1/2) + normal(0, s_b^2)) / n

so that C falls where more than a share gamma is within it, and rises where fewer are. Centred, a bit moves its sum
by 1/2. Both sums together are one Gaussian mechanism of multiplier z if that of the updates is

    z_delta = (z^-2 - (2 s_b)^-2)^(-1/2)

Here C travels in the global model, as log C in a leaf of its own, which is what clients read and the server steps.
Clients send their updates over C, of norm 1 at most, with the bit scaled to have the updates' noise; the server
multiplies by C again, after the noise. So one plain noisy sum serves both, and its accountant need not know C.

Source: Andrew et al. 2021, "Differentially private learning with adaptive clipping", algorithm 1 and theorem 1.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.errors import check_arguments, check_not_used_up
from fedjax_rec.federation.federate import federate
from fedjax_rec.privacy.accounting import RoundEvent, epsilon_of, round_event
from fedjax_rec.privacy.calibration import check_delta, choose_noise, noise_for, poisson_sampler, rounds_for
from fedjax_rec.server.aggregators import gaussian
from fedjax_rec.transforms.base import Bound, Transform
from fedjax_rec.types import Algorithm, ClientWork, Context, Key, Model, Server, State, Update


class AdaptivePrivateAlgorithm(NamedTuple):
    """A private algorithm whose clipping norm adapts, and the means to say what it spends."""

    algorithm: Algorithm
    noise_multiplier: float  # z, of both sums together
    delta: float
    per_round: RoundEvent  # what one round spends
    planned_rounds: int  # for which noise and capacity were chosen

    def epsilon(self, rounds: int) -> float:
        """Epsilon of the model after so many rounds, at `delta`."""
        return epsilon_of(self.per_round, rounds, self.delta)

    def rounds_within(self, epsilon: float) -> int:
        """How many rounds stay within a budget."""
        return rounds_for(self.per_round, epsilon=epsilon, delta=self.delta, guess=self.planned_rounds)


def clipping_norm(state: State) -> float:
    """The clipping norm of the coming round.

    Args:
        state: of an algorithm of `adaptive_dp`.

    Returns:
        C.

    Example:
        >>> shared = {"model": (), "clip": jnp.log(jnp.float32(0.5))}
        >>> clipping_norm(State(jnp.int32(0), Server(shared, ()), (), ()))
        0.5
    """
    check_not_used_up(state)
    return float(jnp.exp(state.server.shared["clip"]))


def adaptive_dp(
    algorithm: Algorithm,
    num_clients: int,
    *,
    cohort: int,
    rounds: int,
    delta: float,
    noise_multiplier: float | None = None,
    target_epsilon: float | None = None,
    start: float = 0.1,
    quantile: float = 0.5,
    rate: float = 0.2,
    count_noise: float | None = None,
    server_optimizer: optax.GradientTransformation | None = None,
    allow_large_delta: bool = False,
) -> AdaptivePrivateAlgorithm:
    """Federated averaging that hides each user, with a clipping norm that finds itself.

    Args:
        algorithm: whose model and clients' work are taken; how it was federated is not.
        num_clients: N.
        cohort: n = q N, clients of a round on average, at most N.
        rounds: T that capacity and budget are for.
        delta: of the guarantee.
        noise_multiplier: z; give it or the target.
        target_epsilon: the epsilon that T rounds may spend.
        start: C of the first round, above 0.
        quantile: gamma, of the norms, between 0 and 1.
        rate: eta, above 0.
        count_noise: s_b, above z / 2; by default n / 20.
        server_optimizer: `optax.sgd(1.0)` by default; the norm is not its business.
        allow_large_delta: as in `dp_fedavg`.

    Returns:
        an algorithm, with what a round of it spends.

    Raises:
        ValueError: if a number is out of range, not exactly one of noise and target is given, or the algorithm's
            clients send something else than changes of the model.
        ImportError: without dp-accounting.

    Example:
        >>> import fedjax_rec as fr
        >>> plain, setting = fr.fedmf(dim=4), {"cohort": 100, "rounds": 10, "delta": 1e-4}
        >>> private = adaptive_dp(plain, 100, **setting, noise_multiplier=2.0)
        >>> private.algorithm.score is not None, private.noise_multiplier
        (True, 2.0)
    """
    check_arguments(adaptive_dp, locals())
    if not (start > 0 and 0 < quantile < 1 and rate > 0):
        raise ValueError(f"start={start}, quantile={quantile} or rate={rate} is out of range")
    check_together(
        {
            Feature.ADAPTIVE_CLIPPING: True,
            Feature.OWN_UPLOAD: algorithm.work.upload,
            Feature.STARTS_FROM_DATA: algorithm.model.starts_from or None,
        }
    )
    check_delta(delta, num_clients, allow_large=allow_large_delta)
    sampler = poisson_sampler(num_clients, cohort, rounds, delta)
    calibrate = partial(noise_for, sampler, num_clients, rounds, delta=delta)
    noise_multiplier = choose_noise(noise_multiplier, target_epsilon, calibrate)
    scale = _scale_of_bit(noise_multiplier, cohort / 20 if count_noise is None else count_noise)
    norm = math.hypot(1.0, scale / 2)  # of an update over C and its bit
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    private_algorithm = federate(
        _add_norm_leaf(algorithm.model, start),
        _hide_norm_leaf(algorithm.work),
        sampler=sampler,
        transform=_normalise(scale, norm),
        aggregator=gaussian(noise_multiplier=noise_multiplier, norm=norm, expected=cohort),
        server_optimizer=_step_norm(optimizer, scale, quantile, rate),
        mesh=algorithm.mesh,
    )
    return AdaptivePrivateAlgorithm(
        algorithm=private_algorithm,
        noise_multiplier=noise_multiplier,
        delta=delta,
        per_round=round_event(sampler, noise_multiplier, num_clients),
        planned_rounds=rounds,
    )


def _scale_of_bit(noise_multiplier: float, count_noise: float) -> float:
    """By what to scale the bit so that the noise of the updates, z_delta, is s_b on it: z_delta / s_b."""
    if not 0 < noise_multiplier < 2 * count_noise:
        raise ValueError(
            f"noise_multiplier={noise_multiplier} must be above 0 and below twice count_noise={count_noise}; "
            "raise count_noise, or the cohort"
        )
    return (noise_multiplier**-2 - (2 * count_noise) ** -2) ** -0.5 / count_noise


def _normalise(scale: float, norm: float) -> Transform:
    """The client's part: its update over C, of norm 1 at most, and the bit."""

    def update(key: Key, sent: Update, server: Server) -> Update:
        del key
        size = jnp.sqrt(sent.squared_norm())
        limit = jnp.exp(server.shared["clip"])
        model, rows = jax.tree.map(lambda x: x / jnp.maximum(size, limit), (sent.shared["model"], sent.rows))
        bit = scale * (jnp.where(size <= limit, 1.0, 0.0) - 0.5)
        return sent._replace(shared={"model": model, "clip": bit}, rows=rows)

    def bound(known: Bound) -> Bound:
        return known._replace(norm=norm)

    return Transform("adaptive clip", update, bound=bound)


def _step_norm(
    optimizer: optax.GradientTransformation, scale: float, quantile: float, rate: float
) -> optax.GradientTransformation:
    """The server's part: times C, and the step of log C."""

    def init(server: Server) -> optax.OptState:
        return optimizer.init(_without_norm_leaf(server))

    def update(
        descent: Server, state: optax.OptState, server: Server | None = None
    ) -> tuple[Server, optax.OptState]:
        assert server is not None  # noqa: S101 - `federate` gives it
        limit = jnp.exp(server.shared["clip"])
        scaled = jax.tree.map(lambda x: limit * x, _without_norm_leaf(descent))
        steps, state = optimizer.update(scaled, state, _without_norm_leaf(server))
        above = -descent.shared["clip"] / scale + 0.5 - quantile  # b - gamma; descent is the negated sum
        return Server({"model": steps.shared, "clip": -rate * above}, steps.tables), state

    return optax.GradientTransformation(init, update)


def _without_norm_leaf(server: Server) -> Server:
    return server._replace(shared=server.shared["model"])


def _add_norm_leaf(model: Model, start: float) -> Model:
    """The model with log C beside its dense leaves."""

    def init_server(key: Key, population: Any) -> Server:
        server = model.init_server(key, population)
        return server._replace(shared={"model": server.shared, "clip": jnp.log(jnp.float32(start))})

    score = model.score
    init_common = model.init_common
    return model._replace(
        init_server=init_server,
        score=None if score is None else lambda private, server: score(private, _without_norm_leaf(server)),
        init_common=None
        if init_common is None
        else lambda key, server: init_common(key, _without_norm_leaf(server)),
        represent=None if model.represent is None else _hide_norm_leaf(model.represent),
    )


def _hide_norm_leaf(work: ClientWork) -> ClientWork:
    """The clients' work, which sees the model's own dense leaves, and sends nothing for log C."""

    def finish(local: Any, shared: Any) -> tuple[Any, Any]:
        private, delta = work.finish(local, shared["model"])
        return private, {"model": delta, "clip": jnp.float32(0)}

    def start(key: Key, private: Any, shared: Any, context: Context) -> Any:
        return work.start(key, private, shared["model"], context)

    zero_gradient = work.zero_gradient
    if zero_gradient is not None:
        is_identity = zero_gradient.is_identity
        zero_gradient = zero_gradient._replace(
            is_identity=lambda view: is_identity(view._replace(shared=view.shared["model"]))
        )
    return work._replace(start=start, finish=finish, zero_gradient=zero_gradient, descent=None)
