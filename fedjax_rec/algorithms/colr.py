"""Correlated low-rank updates (`colr`): matrix factorisation whose clients upload r floats an item row.

Nguyen et al. 2024, "Towards efficient communication and secure federated recommendation system via low-rank
training" (WWW 2024, arXiv:2401.03748), section 4. In each round the item table is Q + A B. B [r, D] is random,
frozen and the same for all clients; a client trains A from 0, in its rows only, and sends those. The server adds
the mean of A times B to Q, and draws the next B:

    B = sqrt(D / r) O, with r orthonormal rows O    A_i <- A_i - eta sqrt(r / D) dL/dA_i    Q <- Q + mean(A) B

so that a local step moves a row by -eta sqrt(D / r) (dL/dq_i) O^T O: its gradient's part in a random subspace.
With r = D that is all of it, and a round is one of `fedmf` without item biases and with "touchers".

Departures from the paper and its code:

* the loss of a local batch is the sum over its examples, where the code takes the mean and scales the learning
  rate by the batch size; L2 is on effective rows q_i + a_i B, as in `fedmf`;
* clients are drawn, where the code goes round a fixed shuffle; negatives spare training items only;
* B is counted as r x D floats on the way down, where a seed would do; the rows asked for come as Q, in D floats.
"""

from typing import Unpack, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.losses import at_least, binary_cross_entropy
from fedjax_rec.algorithms.fedmf import matrix_factorisation
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import positives_per_batch, with_negatives
from fedjax_rec.client.local_training import Loss
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.federate import RoundSettings, federate
from fedjax_rec.types import (
    KEY_IMPL,
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    LocalBatches,
    Model,
    Params,
    PyTree,
    Rows,
    RowUpload,
    Server,
    StepInfo,
)


@register()
def colr(
    *,
    dim: int = 64,
    rank: int = 8,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 2,
    learning_rate: float | jax.Array = 0.5,
    regularisation: float | jax.Array = 0.001,
    init_scale: float = 1.0,
    aggregator: Aggregator | str = "touchers",
    **federation: Unpack[RoundSettings],
) -> Algorithm:
    """CoLR on matrix factorisation, with score s = p_u . q_i and binary cross-entropy.

    Args:
        dim: D, width of the vectors.
        rank: r, width of what is sent for an item row, 1 to D.
        num_negatives: negatives per positive.
        batch_size: examples in a local batch, positives and negatives together, in whole positives.
        local_epochs: E.
        learning_rate: eta, of the local SGD.
        regularisation: L2, on the private vector and the rows of each batch.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        aggregator: what is made of the clients' A: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part and what travels, as in `federate`; the server rule is CoLR's own.

    Returns:
        the algorithm; local epochs train all of A's rows by plain SGD.

    Raises:
        ValueError: if the rank exceeds the width, or a setting is out of range.

    Example:
        >>> from fedjax_rec.federation.federate import client_update
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = colr(dim=8, rank=2, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> client_update(algorithm, jax.random.key(0), state, population, 0).rows["factor"].shape[1]
        2
    """
    check_arguments(colr, locals())
    at_least(1, dim=dim, rank=rank, num_negatives=num_negatives, batch_size=batch_size)
    at_least(1, local_epochs=local_epochs)
    at_least(0, learning_rate=learning_rate, regularisation=regularisation, init_scale=init_scale)
    if rank > dim:
        raise ValueError(f"rank={rank} exceeds dim={dim}; lower the rank")
    loss = binary_cross_entropy(_score, positives_per_batch(batch_size, num_negatives), regularisation)
    batches = with_negatives(batch_size, num_negatives)
    work = low_rank_training(loss, batches, learning_rate, rank=rank, epochs=local_epochs)
    model = with_basis(matrix_factorisation(dim, init_scale, item_bias=False, ratings=False), dim, rank)
    return federate(model, work, aggregator=aggregator, server_optimizer=compose(), **federation)


def with_basis(model: Model, dim: int, rank: int) -> Model:
    """Matrix factorisation whose server holds the round's basis, and the words from which the next is drawn.

    Args:
        model: of `matrix_factorisation`, without item biases.
        dim: D.
        rank: r.

    Returns:
        private {"vector" [D]}, shared {"basis" [r, D], "words" uint32[2]}, tables {"vector" [I, D]}.

    Example:
        >>> model = with_basis(matrix_factorisation(4, 0.1, item_bias=False, ratings=False), 4, 2)
        >>> model.init_private(jax.random.key(0))["vector"].shape
        (4,)
    """

    def init_server(key: Key, population: Population) -> Server:
        vector_key, basis_key = jax.random.split(key)
        basis, words = draw_basis(jax.random.key_data(basis_key), rank, dim)
        return Server({"basis": basis, "words": words}, model.init_server(vector_key, population).tables)

    return model._replace(init_server=init_server)


def draw_basis(words: jax.Array, rank: int, dim: int) -> tuple[jax.Array, jax.Array]:
    """Draw B: r random orthonormal rows of length D, times sqrt(D / r), so that on average B^T B = 1.

    Args:
        words: uint32[2], of a key; consumed.
        rank: r.
        dim: D.

    Returns:
        B float32[r, D], and the words from which the next is drawn.

    Example:
        >>> basis, _ = draw_basis(jnp.zeros(2, jnp.uint32), 2, 8)
        >>> bool(jnp.allclose(basis @ basis.T, 4 * jnp.eye(2), atol=1e-5))
        True
    """
    basis_key, next_key = jax.random.split(jax.random.wrap_key_data(words, impl=KEY_IMPL))
    columns, _ = jnp.linalg.qr(jax.random.normal(basis_key, (dim, rank)))
    return (dim / rank) ** 0.5 * columns.T, jax.random.key_data(next_key)


def low_rank_training(
    loss: Loss, batches: LocalBatches, learning_rate: float | jax.Array, *, rank: int, epochs: int
) -> ClientWork:
    """SGD on the private leaves and on A, in the rows q_i + a_i B; A's rows are sent.

    Args:
        loss: of private leaves and effective rows {"vector" [B, D]}.
        batches: how the client's data is cut.
        learning_rate: eta.
        rank: r.
        epochs: E.

    Returns:
        the client's work; it sends {"factor" [B, r]} and nothing dense.

    Example:
        >>> low_rank_training(lambda params, batch: (0.0, 1.0), with_negatives(), 0.1, rank=2, epochs=3).epochs
        3
    """

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, context
        return {"private": private, "basis": shared["basis"]}

    def init_rows(values: PyTree) -> Rows:
        rows = values["vector"]
        return Rows({"vector": rows, "factor": jnp.zeros((rows.shape[0], rank))}, ())

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        # descend at the effective rows [B, D]
        params = Params(local["private"], (), {"vector": rows.values["vector"]})
        basis = local["basis"]
        (value, examples), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        private = jax.tree.map(lambda p, g: p - learning_rate * g, params.private, grads.private)
        # the gradient in A [B, r], by the chain rule through q_i + a_i B; the effective rows follow A
        factor_grad = grads.tables["vector"] @ basis.T
        step_of_factor = -learning_rate * (rank / basis.shape[1]) ** 0.5 * factor_grad
        vector = rows.values["vector"] + step_of_factor @ basis
        factor = rows.values["factor"] + step_of_factor
        new = Rows({"vector": vector, "factor": factor}, ())
        return {"private": private, "basis": basis}, new, StepInfo(value, examples)

    def finish(local: PyTree, shared: PyTree) -> tuple[PyTree, PyTree]:
        del shared
        return local["private"], {}

    def send(local: PyTree, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local, batch, old
        return {"factor": rows.values["factor"]}

    return ClientWork(batches, epochs, start, init_rows, step, finish, upload=RowUpload(send))


def compose() -> optax.GradientTransformation:
    """The server rule: Q <- Q + A B for the aggregated A, and a new B.

    Returns:
        an optax transformation; its updates are Server({}, {"factor" -A}), its parameters the server.

    Example:
        >>> basis, words = draw_basis(jnp.zeros(2, jnp.uint32), 1, 2)
        >>> server = Server({"basis": basis, "words": words}, {"vector": jnp.zeros((1, 2))})
        >>> descent = Server({}, {"factor": jnp.array([[-3.0]])})
        >>> steps, _ = compose().update(descent, optax.EmptyState(), server)
        >>> bool(jnp.allclose(steps.tables["vector"], 3 * basis))
        True
    """

    def update(
        descent: Server, state: optax.EmptyState, params: Server | None = None
    ) -> tuple[Server, optax.EmptyState]:
        server = cast("Server", params)
        basis = server.shared["basis"]
        new, words = draw_basis(server.shared["words"], *basis.shape)
        # words wrap around, and exactly
        step = {"basis": new - basis, "words": words - server.shared["words"]}
        return Server(step, {"vector": -(descent.tables["factor"] @ basis)}), state

    return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def _score(params: Params) -> jax.Array:
    """Logits of all rows at hand, float32[B]."""
    return params.tables["vector"] @ params.private["vector"]
