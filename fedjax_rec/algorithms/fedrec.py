"""Ratings of sampled items hide which ones a client has rated (`fedrec`), and can be taken out again.

Lin, Liang, Pan & Ming 2020, "FedRec: Federated recommendation with explicit feedback" (IEEE Intelligent Systems),
batch version, and its authors' code. A client samples rho n_u of the items that it has not rated and gives them
virtual ratings: its mean rating (user averaging) or, once t > `averaging_rounds`, the prediction by a copy of its
vector that it has trained for `local_steps` steps of full-batch descent (hybrid filling). With
e_i = r_i - u . v_i over its n_u rated and n'_u sampled items, in round t with gamma_t = gamma decay^t:

    sends           g_i = -e_i u + lambda v_i            for each of these items
    u   <- u - gamma_t sum_i (-e_i v_i + lambda u) / (n_u + n'_u)
    server:  v_i <- v_i - gamma_t (mean of g_i over the clients that sent one)

`denoise` is FedRec++ (Liang, Pan & Ming 2021, AAAI, "FedRec++: Lossless federated recommendation with explicit
feedback"): what the sampled items put in is taken out of the sums again, u learns from rated items alone, and the
result is that of rho = 0.

Departures:

* of the rho n_u drawn items those that the client has rated are dropped, not replaced: n'_u is about
  rho n_u (1 - n_u / I);
* FedRec++'s denoising clients, who pass on the sums of the others' virtual gradients, are not simulated, and their
  hop is not in the traffic: the uplink carries those sums apart instead;
* scores are not clipped to the ratings' range, which would tie the best items; the authors clip them for RMSE.
"""

import math
from functools import partial
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import rated_with_negatives
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate, set_default_sampler
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.server.aggregators import mean_of_touchers
from fedjax_rec.server.optimizers import scheduled_by_round
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    LocalBatches,
    Model,
    PyTree,
    Rows,
    RowUpload,
    Server,
    StepInfo,
    Totals,
)


class Local(NamedTuple):
    """What a client knows while it goes over its items."""

    user: jax.Array  # float32[D], u, at rest in the round
    filler: jax.Array  # float32[D], the copy whose predictions fill in
    gradient: jax.Array  # float32[D], summed over this pass
    total: jax.Array  # float32[], sum of the ratings
    rated: jax.Array  # float32[], n_u
    used: jax.Array  # float32[], examples in the last pass
    passes: jax.Array  # int32[], done in this round
    round: jax.Array  # float32[], t


class Rule(NamedTuple):
    """The constants of a run."""

    passes: int  # of a client over its items in a round
    averaging_rounds: float  # the last round of user averaging
    denoise: bool
    learning_rate: float
    decay: float
    regularisation: float

    def rate(self, round_: jax.Array) -> jax.Array:
        """Give gamma_t, float32[]."""
        return self.learning_rate * self.decay**round_

    def descend(self, round_: jax.Array, grads: PyTree) -> PyTree:
        """The server's step: gamma_t times each row's mean gradient."""
        return jax.tree.map(lambda g: -self.rate(round_) * g, grads)


@register(rounds=100, eval_every=10, needs_ratings=True)
def fedrec(
    *,
    dim: int = 20,
    rho: int = 1,
    averaging_rounds: int = 10,
    local_steps: int = 10,
    denoise: bool = False,
    batch_size: int = 64,
    learning_rate: float = 0.8,
    decay: float = 0.9,
    regularisation: float = 0.001,
    init_range: float = 0.005,
    aggregator: Aggregator | str | None = None,
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """FedRec on probabilistic matrix factorisation, or FedRec++.

    All clients take part in every round, as in the paper, unless `cohort` or `sampler` says otherwise.

    Args:
        dim: D, width of the vectors.
        rho: sampled items per rated one; 0 hides nothing.
        averaging_rounds: T_predict; up to and including round t = this, the user's mean fills in.
        local_steps: T_local, steps of the copy that fills in afterwards; 0 stays with the mean.
        denoise: FedRec++.
        batch_size: rated and sampled items in a local batch; for speed only.
        learning_rate: gamma, of clients and server.
        decay: of gamma, per round.
        regularisation: lambda.
        init_range: vectors start as uniform(-init_range, init_range).
        aggregator: None is the mean over the senders of a row, "touchers"; `denoise` has its own.
        federation: who takes part and what travels: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a setting is out of range, or the data has no ratings.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedrec(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        23
    """
    check_arguments(fedrec, locals())
    at_least(1, dim=dim, batch_size=batch_size)
    at_least(0, rho=rho, averaging_rounds=averaging_rounds, local_steps=local_steps)
    at_least(0, learning_rate=learning_rate, decay=decay)
    at_least(0, regularisation=regularisation, init_range=init_range)
    check_together(
        {
            Feature.DENOISING: denoise,
            Feature.AGGREGATOR: aggregator,
            Feature.TRANSFORM: federation.get("transform"),
        }
    )
    set_default_sampler(federation, everyone())
    passes = max(local_steps, 1) + 1 if rho else 1
    last_averaging = averaging_rounds if local_steps else math.inf
    rule = Rule(passes, last_averaging, denoise, learning_rate, decay, regularisation)
    return federate(
        _model(dim, init_range),
        _work(rated_with_negatives(batch_size, rho), rule),
        aggregator=_denoised() if denoise else aggregator or "touchers",
        server_optimizer=scheduled_by_round(rule.descend),
        **federation,
    )


def _model(dim: int, init_range: float) -> Model:
    def draw(key: Key, shape: tuple[int, ...]) -> jax.Array:
        return jax.random.uniform(key, shape, minval=-init_range, maxval=init_range)

    def init_server(key: Key, population: Population) -> Server:
        if "ratings" not in population.examples:
            raise ValueError("fedrec fits ratings, but this data has none; use fedmf with loss 'bce'")
        return Server({"round": jnp.float32(0)}, {"vector": draw(key, (population.num_items, dim))})

    def score(private: PyTree, server: Server) -> jax.Array:
        return server.tables["vector"] @ private["vector"]

    return Model(lambda key: {"vector": draw(key, (dim,))}, init_server, score, predicts_ratings=True)


def _work(batches: LocalBatches, rule: Rule) -> ClientWork:
    """Passes 0 to T_local - 1 train the copy and learn the mean, the last one makes the gradients."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> Local:
        del key, context
        user = private["vector"]
        zero = jnp.float32(0)
        return Local(user, user, jnp.zeros_like(user), zero, zero, zero, jnp.int32(0), shared["round"])

    def init_rows(values: PyTree) -> Rows:
        # the state is written in `step`
        return Rows(values, {"vector": values["vector"], "virtual": values["vector"][:, 0]})

    def step(local: Local, rows: Rows, batch: Batch, context: Context) -> tuple[Local, Rows, StepInfo]:
        del context
        own = batch.data["own"]
        v = rows.values["vector"]
        last = local.passes == rule.passes - 1
        # a sampled item's virtual rating, and every item's error [B] by the vector that this pass is about
        mean = local.total / jnp.maximum(local.rated, 1.0)
        filled = jnp.where(local.round > rule.averaging_rounds, v @ local.filler, mean)
        vector = jnp.where(last, local.user, local.filler)
        error = jnp.where(own > 0, batch.data["rating"], filled) - v @ vector
        # of the items that are used in this pass: the rows' gradients [B, D], and sums over all passes' batches
        used = jnp.where(last & (not rule.denoise), batch.data["mask"], own)
        grads = -jnp.outer(error, vector) + rule.regularisation * v
        counted = own * (local.passes == 0)  # the mean is learnt in the first pass
        local = local._replace(
            gradient=local.gradient - (used * error) @ v + rule.regularisation * used.sum() * vector,
            total=local.total + counted @ batch.data["rating"],
            rated=local.rated + counted.sum(),
            used=local.used + jnp.where(last, used.sum(), 0.0),
        )
        info = StepInfo(jnp.where(last, own @ error**2, 0.0), jnp.where(last, own.sum(), 0.0))
        return local, rows._replace(opt_state={"vector": grads, "virtual": batch.data["mask"] - own}), info

    def send(local: Local, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local, batch, old
        grads = rows.opt_state["vector"]
        virtual = rows.opt_state["virtual"]
        if not rule.denoise:
            return {"vector": -grads}
        return {"vector": -grads, "noise": -virtual[:, None] * grads, "virtual": virtual}

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        step = rule.rate(shared["round"]) * local.gradient / jnp.maximum(local.used, 1.0)
        return {"vector": local.user - step}, jax.tree.map(jnp.zeros_like, shared)

    begin_pass = partial(_begin_pass, rule)
    return ClientWork(
        batches, rule.passes, start, init_rows, step, finish, end_epoch=begin_pass, upload=RowUpload(send)
    )


def _begin_pass(rule: Rule, local: Local, context: Context) -> Local:
    """Before another pass, step the copy by what the pass before has summed."""
    del context
    step = rule.rate(local.round) * local.gradient / jnp.maximum(local.rated, 1.0)
    filler = local.filler - step
    return local._replace(filler=filler, gradient=jnp.zeros_like(local.gradient), passes=local.passes + 1)


def _denoised() -> Aggregator:
    """Each row's mean over the clients that rated it: the virtual gradients, and who sent them, taken out."""

    def finish(totals: Totals) -> Server:
        sums = totals.deltas.tables
        senders = totals.row_weight
        assert senders is not None  # noqa: S101 - weights=True promises it; this tells the type checker
        # the clients that rated each row [I], and the mean of what they sent
        raters = senders - sums["virtual"]
        mean = (sums["vector"] - sums["noise"]) / jnp.maximum(raters, 1.0)[:, None]
        return Server(totals.deltas.shared, {"vector": jnp.where(raters[:, None] > 0, mean, 0.0)})

    return mean_of_touchers()._replace(finish=finish)
