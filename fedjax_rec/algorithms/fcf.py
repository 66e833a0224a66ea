"""Federated collaborative filtering (`fcf`): exact users, the gradient of every item, Adam at the server.

Ammad-ud-din et al. 2019, "Federated collaborative filtering for privacy-preserving personalized recommendation
system" (arXiv:1901.09888), algorithm 1, on the objective of Hu et al. 2008, with r_ui = 1 for training pairs and 0
for all others, confidence c_ui = 1 + alpha r_ui and s_ui = p_u . y_i:

    J = sum over all pairs of c_ui (r_ui - s_ui)^2 + lambda (sum_u |p_u|^2 + sum_i |y_i|^2).

A client solves for p_u exactly and sends f_ui = c_ui (r_ui - s_ui) p_u for **every** item i. The server steps
along J'_i = -2 sum over the cohort of f_ui + 2 lambda y_i with Adam.

Departures:

* the dense upload is sent in closed form. For an item that u does not have, f_ui = -(p_u p_u^T) y_i, so that
  sum_u f_ui = -(sum_u p_u p_u^T) y_i + sum over owners of ((1 + alpha)(1 - s_ui) + s_ui) p_u: a client sends
  p_u p_u^T once and a correction for its own rows, and the server puts the same sum together. It follows that the
  traffic reported is less than the paper's, I x D numbers a client; that what travels names a client's items and,
  up to its sign, its vector, which the paper's upload hides better; that a `transform` acts on other numbers; and
  that only sums are taken, for no other normaliser treats both parts alike;
* the solve reads the own rows and Y^T Y, which the server sends besides Y;
* clients are scored with vectors solved anew for the last Y: no client is ranked by a stale vector;
* r_ui is 1 whatever the rating; and our defaults are chosen on validation items, not taken from the paper.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.solve import (
    Equations,
    check_ridge,
    check_settings,
    exact_solve,
    solved_model,
    with_gram,
)
from fedjax_rec.algorithms.registry import register
from fedjax_rec.data.defaults import fcf_weights
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate
from fedjax_rec.types import Algorithm, PyTree, Server


@register(defaults_by_size=lambda size, **given: fcf_weights(size, **given)._asdict())
def fcf(
    *,
    dim: int = 64,
    alpha: float | jax.Array | None = None,
    regularisation: float | jax.Array | None = None,
    init_scale: float = 0.1,
    batch_size: int = 32,
    server_optimizer: optax.GradientTransformation | None = None,
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """FCF: exact local solve, dense item gradients, Adam.

    Client u:  (Y^T C_u Y + lambda 1) p_u = Y^T C_u r_u.
    Server:  Y <- Adam(Y, -2 sum_u f_u + 2 lambda Y).

    Args:
        dim: D, width of the vectors.
        alpha: confidence of a training pair, beyond the 1 of every pair; by default central iALS's for data of
            this size, on the scale of J (`fedjax_rec.data.defaults.fcf_weights`).
        regularisation: lambda, above 0; by default the same; as in the paper not scaled by the cohort's share of
            the clients.
        init_scale: item vectors start as normal(0, init_scale / sqrt(D)); users' at 0, for they are solved first.
        batch_size: own items in a local batch; for speed only.
        server_optimizer: descends J'; by default Adam.
        federation: who takes part and what travels: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fcf(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients), sorted(state.server.tables)
        (23, ['vector'])
    """
    check_arguments(fcf, locals())
    check_settings(dim=(dim, 1), batch_size=(batch_size, 1), alpha=(alpha, 0), init_scale=(init_scale, 0))
    check_ridge(regularisation)
    optimizer = optax.adam(0.01, b1=0.4, b2=0.99) if server_optimizer is None else server_optimizer
    equations = Equations(
        weights=lambda size: fcf_weights(size, alpha, regularisation)._asdict(),
        everywhere=lambda weights: 1.0,  # noqa: ARG005
        own=lambda weights: weights["alpha"],
        gain=lambda weights: 1 + weights["alpha"],
        ridge=lambda weights, own, items: weights["regularisation"],  # noqa: ARG005
    )
    return federate(
        solved_model(dim, init_scale, equations, batch_size),
        exact_solve(equations, batch_size, _corrections, _moment),
        aggregator="sum",
        server_optimizer=_descend(optimizer),
        **federation,
    )


def _moment(vector: jax.Array) -> PyTree:
    """What gives -sum_u s_ui p_u for every item, once it is multiplied by -y_i: p p^T."""
    return {"moment": jnp.outer(vector, vector)}


def _corrections(weights: PyTree, vector: jax.Array, rows: jax.Array) -> PyTree:
    """What an own item's f_ui has besides -s_ui p_u."""
    score = rows @ vector
    return {"vector": jnp.outer((1 + weights["alpha"]) * (1 - score) + score, vector)}


def _descend(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The server's rule: put J' together, let the optimizer step along it, and send the new Gram matrix along."""

    def init(server: Server) -> optax.OptState:
        return optimizer.init(server.tables)

    def update(
        updates: Server, state: optax.OptState, params: Server | None = None
    ) -> tuple[Server, optax.OptState]:
        if params is None:
            raise ValueError("fcf's rule needs the parameters: call update(updates, state, params)")
        vectors = params.tables["vector"]
        weights = params.shared["weights"]
        # J' [I, D]: sum_u f_ui is what the own rows need besides -(sum_u p_u p_u^T) y_i
        moment = -updates.shared["moment"]
        correction = -updates.tables["vector"]
        summed = correction - jnp.einsum("id,de->ie", vectors, moment, precision="highest")
        gradient = {"vector": -2 * summed + 2 * weights["regularisation"] * vectors}
        # the step of Y, and of the Gram matrix with it
        steps, opt_state = optimizer.update(gradient, state, params.tables)
        taken = jax.tree.map(jnp.subtract, with_gram(vectors + steps["vector"], weights), params), opt_state
        # a round without any client takes no step, not even of L2
        nobody = jnp.trace(moment) <= 0
        not_taken = jax.tree.map(jnp.zeros_like, params), state
        return jax.tree.map(lambda old, new: jnp.where(nobody, old, new), not_taken, taken)

    return optax.GradientTransformation(init, update)
