"""Federated alternating least squares (`fedals`): iALS with the users' side on the devices.

Chien et al. 2021, "Private alternating least squares: practical private matrix completion with tighter rates"
(ICML), algorithm 1 without its noise and clipping, on the objective of `fedjax_rec.evaluation.central.ials`: Hu et
al. 2008 with the regularisation of Rendle et al. 2021. With S the training pairs and s_ui = p_u . q_i,

    sum over S of (1 - s_ui)^2 + w0 sum over all pairs of s_ui^2
        + reg sum_u (n_u + w0 I) |p_u|^2 + reg sum_i (n_i + w0 N) |q_i|^2.

A round is a sweep. Each client solves for p_u exactly and sends its sufficient statistics: p_u p_u^T and p_u for
every own item, and p_u p_u^T once for all pairs. The server adds them up and solves for every q_i exactly. There
is no learning rate, and with all clients in every round it is centralised iALS to the letter. Clients are scored
with vectors solved anew for the last item vectors: one more half sweep.

Departures from the paper:

* implicit feedback: the term in w0 over all pairs, for which the server sends Q^T Q; the paper fits ratings;
* no noise, clipping or sampling of rows: with `transform=` a client's whole update can be clipped and noised;
* a client without data counts for nothing, not even in N (in the central module it counts);
* partial participation, of which the paper knows nothing: see `memory`.
"""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_rec.algorithms.common.moments import moments_by_item
from fedjax_rec.algorithms.common.solve import (
    Equations,
    check_ridge,
    check_settings,
    exact_solve,
    solve_spd,
    solved_model,
    with_gram,
)
from fedjax_rec.algorithms.registry import register
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.data.defaults import ALS_ROUNDS, Size, als_dim, als_weights
from fedjax_rec.engine.devices import map_in_shares
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate, set_default_sampler
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.server.aggregators import named
from fedjax_rec.server.soundness import bound_of, features_of
from fedjax_rec.types import Aggregator, Algorithm, PyTree, Server

_BATCH = 64  # items solved at once


def _by_size(size: Size, dim: int | None = None, **given: Any) -> dict[str, Any]:
    return {"dim": als_dim(size) if dim is None else dim, **als_weights(size, **given)._asdict()}


@register(rounds=ALS_ROUNDS, eval_every=1, defaults_by_size=_by_size)
def fedals(
    *,
    dim: int = 64,
    regularisation: float | jax.Array | None = None,
    unobserved: float | jax.Array | None = None,
    memory: float = 0.0,
    init_scale: float = 0.1,
    batch_size: int = 32,
    aggregator: Aggregator | str = "sum",
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """Federated ALS: exact solves on both sides, no learning rate.

    Client u:  (sum over own i of q_i q_i^T + w0 Q^T Q + reg (n_u + w0 I) 1) p_u = sum over own i of q_i.
    Server:  (A_i + w0 A + reg (n_i + w0 n) 1) q_i = b_i, with the cohort's sums A_i of p_u p_u^T and b_i of p_u
    over its n_i clients that own i, and A of p_u p_u^T over all its n clients.

    All clients take part unless `cohort` or `sampler` is given. Then, with `memory=0`, the items are fit to the
    cohort alone, and an item that nobody in it has becomes 0. With `memory` m > 0 the server keeps running sums,
    S <- m S + (the cohort's sums), as Mairal et al. 2010, section 3.4.2, keep theirs; m = 1 - C / N makes
    them weigh as much as one sum over everybody.

    Args:
        dim: D, width of the vectors; a run has it by the size of its data (`fedjax_rec.data.defaults.als_dim`).
        regularisation: reg, above 0; by default that of central iALS for data of this size
            (`fedjax_rec.data.defaults.als_weights`), which the server sends.
        unobserved: w0, the weight of every pair; by default the same.
        memory: m, in [0, 1), the share of the earlier rounds' sums that the server keeps; above 0 it holds
            I D (D + 1) / 2 more numbers.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)); users' at 0, for they are solved first.
        batch_size: own items in a local batch; for speed and memory only: where rows are not summed item by item
            (`moments`), a lane sends B D (D + 1) / 2 numbers at a time.
        aggregator: "sum", or `fixed_point(total(), ...)`; "examples" weighs clients, in the objective too.
        federation: who takes part and what travels: as in `federate`. The server's rule is its own.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a setting is out of range, or the aggregator normalises single rows.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedals(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients), sorted(state.server.tables)
        (23, ['vector'])

    Source: Mairal et al. 2010, "Online learning for matrix factorization and sparse coding", JMLR 11.
    """
    check_arguments(fedals, locals())
    check_settings(
        dim=(dim, 1), batch_size=(batch_size, 1), unobserved=(unobserved, 0), init_scale=(init_scale, 0)
    )
    check_ridge(regularisation)
    if not 0 <= memory < 1:
        raise ValueError(
            f"memory must be at least 0 and below 1, not {memory}; 1 - cohort / clients is a good one"
        )
    rule = named(aggregator) if isinstance(aggregator, str) else aggregator
    noise = bound_of(federation.get("transform")).deviation > 0
    check_together({Feature.FEDALS: True, Feature.CLIENT_NOISE: noise, **features_of(rule)})
    set_default_sampler(federation, everyone())
    equations = Equations(
        weights=lambda size: als_weights(size, regularisation, unobserved)._asdict(),
        everywhere=lambda weights: weights["unobserved"],
        own=lambda weights: 1.0,  # noqa: ARG005
        gain=lambda weights: 1.0,  # noqa: ARG005
        ridge=lambda weights, own, items: weights["regularisation"] * (own + weights["unobserved"] * items),
    )
    return federate(
        solved_model(dim, init_scale, equations, batch_size),
        exact_solve(equations, batch_size, _row_statistics, _statistics, sum_by_item=moments_by_item),
        aggregator=rule,
        # fixed-point sums promise bits that no number of devices changes, which batches of a share would
        server_optimizer=_least_squares(memory, None if rule.fixed is not None else federation.get("mesh")),
        **federation,
    )


def _statistics(vector: jax.Array) -> PyTree:
    """What every pair of a client adds to every item: p p^T, its upper triangle; and the client itself."""
    rows, columns = np.triu_indices(len(vector))
    return {"count": jnp.float32(1), "moment": vector[rows] * vector[columns]}


def _row_statistics(weights: PyTree, vector: jax.Array, rows: jax.Array) -> PyTree:
    """What a client adds to each own item: the same, and p."""
    del weights
    statistics = _statistics(vector) | {"target": vector}
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (len(rows), *x.shape)), statistics)


def _unpack(moment: jax.Array, dim: int) -> jax.Array:
    """The symmetric matrix [D, D] of its upper triangle."""
    index = np.zeros((dim, dim), np.int32)  # of each entry in the triangle
    rows, columns = np.triu_indices(dim)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return moment[index]


def _least_squares(memory: float, mesh: Mesh | None) -> optax.GradientTransformation:
    """The server's rule: solve every item's normal equations, and send their Gram matrix along."""

    def init(server: Server) -> Server:
        if memory == 0:
            return Server((), ())
        items, dim = server.tables["vector"].shape
        sums = _statistics(jnp.zeros(dim)) | {"count": jnp.float32(0)}
        rows = sums | {"target": jnp.zeros(dim)}
        return Server(sums, jax.tree.map(lambda x: jnp.zeros((items, *x.shape)), rows))

    def solve(sums: Server, dim: int, weights: PyTree) -> jax.Array:
        # what the pairs of all clients add to every item
        everywhere = jax.tree.map(lambda total: weights["unobserved"] * total, sums.shared)

        def solve_item(common: PyTree, own: PyTree) -> jax.Array:
            everywhere, regularisation = common
            ridge = regularisation * (own["count"] + everywhere["count"])
            ridge = jnp.where(ridge > 0, ridge, 1.0)  # nobody has it and unobserved = 0: q = 0 needs a ridge
            matrix = _unpack(own["moment"] + everywhere["moment"], dim) + ridge * jnp.eye(dim)
            return solve_spd(matrix, own["target"])

        common = (everywhere, weights["regularisation"])
        return map_in_shares(solve_item, common, sums.tables, mesh, batch_size=_BATCH)

    def update(updates: Server, state: Server, params: Server | None = None) -> tuple[Server, Server]:
        if params is None:
            raise ValueError("least squares need the parameters: call update(updates, state, params)")
        # the sums of all rounds that are remembered
        sums = jax.tree.map(jnp.negative, updates)
        if memory > 0:
            state = sums = jax.tree.map(lambda old, new: memory * old + new, state, sums)
        # item vectors [I, D] that solve them; a round without any client has no equations
        old = params.tables["vector"]
        weights = params.shared["weights"]
        new = jnp.where(sums.shared["count"] > 0, solve(sums, old.shape[1], weights), old)
        return jax.tree.map(jnp.subtract, with_gram(new, weights), params), state

    return optax.GradientTransformation(init, update)
