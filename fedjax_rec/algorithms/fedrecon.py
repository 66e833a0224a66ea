"""Federated reconstruction (`fedrecon`): clients without a state learn their vector anew in every round.

Singhal et al. 2021, "Federated reconstruction: partially local federated learning" (NeurIPS, arXiv:2102.03448),
algorithm 1, with the constants of the authors' MovieLens experiment. A client cuts its history into batches; the
even ones are its support, the odd ones its query set. In a round it

1. draws p_u ~ uniform(-init_range, init_range) anew;
2. reconstructs: `recon_epochs` passes of SGD on p_u over the support set, at most `max_steps` steps, V frozen;
3. updates: `local_epochs` passes of SGD on V over the query set, p_u frozen;
4. sends its rows' changes, and weighs as many query examples as it has ("bce": query positives).

The loss of a batch is the mean over its examples, as there. To be scored, a client reconstructs p_u on all of its
batches (`Model.represent`), up to `max_steps` steps as in a round: with the paper's 50 the first 250 ratings of a
longer history count, in the order of the data. A client that never took part is served like any other.

Departures:

* `loss="bce"` fits implicit data, with negatives that stand in the half of their positive; the paper has ratings;
* the authors shuffle a user's ratings once and keep at most 300; here the order is that of the data, or `shuffle`
  draws new halves in every round, and only the batches beyond 2 `max_steps` are left out;
* a support row is sent with a change of 0, so that the traffic reported is about twice what is needed, and
  normalisers of single rows are refused, which would count its clients;
* the authors zero an update that is not finite; here its client counts as absent (`fedjax_rec.engine.guard`).
"""

from functools import partial
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.batches import (
    first_batches,
    in_order,
    numbered,
    positives_per_batch,
    rated,
    with_negatives,
)
from fedjax_rec.client.local_training import stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.errors import check_arguments, check_unused
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.server.aggregators import by_examples, named
from fedjax_rec.server.soundness import features_of
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
)

# by loss, the defaults of recon_learning_rate, max_steps and learning_rate; those of "mse" are the paper's
LOSSES: dict[str, tuple[float, int, float]] = {
    "mse": (0.1, 50, 0.5),
    "bce": (0.5, 200, 5.0),  # chosen on the validation items of MovieLens 100K
}


class Rule(NamedTuple):
    """The constants of a client's work."""

    positives: int  # in a batch
    loss: str
    recon_epochs: int
    recon_learning_rate: float | jax.Array
    max_steps: int
    learning_rate: float | jax.Array


class Local(NamedTuple):
    """What a client knows while it works."""

    vector: jax.Array  # float32[D], p_u
    steps: jax.Array  # int32[], of reconstruction
    epoch: jax.Array  # int32[]


@register(rounds=500)
def fedrecon(
    *,
    dim: int = 50,
    loss: str = "mse",
    num_negatives: int = 4,
    batch_size: int = 5,
    recon_epochs: int = 5,
    recon_learning_rate: float | jax.Array | None = None,
    max_steps: int | None = None,
    local_epochs: int = 1,
    learning_rate: float | jax.Array | None = None,
    init_range: float = 0.05,
    shuffle: bool = False,
    aggregator: Aggregator | str | None = None,
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """FedRecon on matrix factorisation, r_ui = p_u . q_i.

    Args:
        dim: D, width of the vectors.
        loss: "mse" fits ratings; "bce" tells positives from sampled negatives.
        num_negatives: negatives per positive (only for "bce").
        batch_size: examples in a local batch, positives and negatives together.
        recon_epochs: passes over the support set, at least 1.
        recon_learning_rate: of p_u; None is by loss, 0.1 or 0.5.
        max_steps: of reconstruction, and of an epoch of the update; None is by loss, 50 or 200.
        local_epochs: E, passes over the query set.
        learning_rate: of the item rows; None is by loss, 0.5 or 5.
        init_range: vectors start as uniform(-init_range, init_range).
        shuffle: whether halves are drawn anew in each round; always for "bce".
        aggregator: None is the mean weighted by query examples; or a name of `aggregators.NAMES`.
        federation: as in `federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: on an unknown loss, a setting out of range, or data without ratings for "mse".

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedrecon(dim=4), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.clients)
        23
    """
    check_arguments(fedrecon, locals())
    if loss not in LOSSES:
        raise ValueError(f"unknown loss {loss!r}; choose one of {', '.join(LOSSES)}")
    if loss == "mse":
        check_unused(fedrecon, locals(), ["num_negatives"], "loss='mse'", "which draws none")
    else:
        check_unused(fedrecon, locals(), ["shuffle"], f"loss={loss!r}", "whose halves are always drawn anew")
    defaults = LOSSES[loss]
    recon_learning_rate = defaults[0] if recon_learning_rate is None else recon_learning_rate
    max_steps = defaults[1] if max_steps is None else max_steps
    learning_rate = defaults[2] if learning_rate is None else learning_rate
    at_least(1, dim=dim, num_negatives=num_negatives, batch_size=batch_size, recon_epochs=recon_epochs)
    at_least(1, max_steps=max_steps, local_epochs=local_epochs)
    at_least(0, learning_rate=learning_rate, recon_learning_rate=recon_learning_rate, init_range=init_range)
    positives = batch_size
    batches = (rated if shuffle else in_order)(batch_size)
    if loss == "bce":
        positives = positives_per_batch(batch_size, num_negatives)
        batches = with_negatives(batch_size, num_negatives)
    chosen = named(aggregator) if isinstance(aggregator, str) else aggregator
    if chosen is not None:
        check_together({Feature.FEDRECON: True, **features_of(chosen)})
    rule = Rule(positives, loss, recon_epochs, recon_learning_rate, max_steps, learning_rate)
    start = partial(_draw, dim, init_range)
    represent = _work(numbered(batches), rule, start, everything=True)._replace(
        epochs=recon_epochs,
        upload=RowUpload(lambda local, rows, batch, old: {}),  # noqa: ARG005
    )
    return federate(
        _model(start, loss)._replace(represent=represent),
        _work(numbered(first_batches(batches, 2 * max_steps)), rule, start)._replace(
            epochs=recon_epochs + local_epochs
        ),
        aggregator=_by_query(positives, max_steps) if chosen is None else chosen,
        **federation,
    )


def _draw(dim: int, init_range: float, key: Key, *rows: int) -> jax.Array:
    return jax.random.uniform(key, (*rows, dim), minval=-init_range, maxval=init_range)


def _model(start: partial, loss: str) -> Model:
    def init_server(key: Key, population: Population) -> Server:
        if loss == "mse" and "ratings" not in population.examples:
            raise ValueError("the loss 'mse' fits ratings, but this data has none; use 'bce'")
        return Server({}, {"vector": start(key, population.num_items)})

    def score(private: PyTree, server: Server) -> jax.Array:
        return server.tables["vector"] @ private["vector"]

    return Model(lambda key: {"vector": start(key)}, init_server, score, predicts_ratings=loss == "mse")


def _work(batches: LocalBatches, rule: Rule, draw: partial, *, everything: bool = False) -> ClientWork:
    """Reconstruction, then the update; `everything`: all batches are support."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> Local:
        del private, shared, context  # a client remembers nothing
        return Local(draw(key), jnp.int32(0), jnp.int32(-1))

    def objective(vector: jax.Array, rows: jax.Array, batch: Batch) -> jax.Array:
        """Mean loss of the batch."""
        score = rows @ vector
        mask = batch.data["mask"]
        if rule.loss == "mse":
            each = (batch.data["rating"] - score) ** 2
        else:
            label = (jnp.arange(mask.shape[0]) < rule.positives).astype(jnp.float32)
            each = optax.sigmoid_binary_cross_entropy(score, label)
        return (mask * each).sum() / jnp.maximum(mask.sum(), 1.0)

    def step(local: Local, rows: Rows, batch: Batch, context: Context) -> tuple[Local, Rows, StepInfo]:
        del context
        # where the client is: even batches are support, and an epoch begins with batch 0
        t = batch.data["t"][0]
        v = rows.values["vector"]
        epoch = local.epoch + (t == 0)
        support = (t % 2 == 0) | everything
        # one gradient, of which p_u's serves reconstruction and V's the update [B, D]
        value, (user_grad, row_grads) = jax.value_and_grad(objective, (0, 1))(local.vector, v, batch)
        reconstructs = support & (epoch < rule.recon_epochs) & (local.steps < rule.max_steps)
        updates = ~support & (epoch >= rule.recon_epochs)
        vector = local.vector - jnp.where(reconstructs, rule.recon_learning_rate, 0.0) * user_grad
        v = v - jnp.where(updates, rule.learning_rate, 0.0) * row_grads
        count = jnp.where(updates, batch.data["mask"].sum(), 0.0)
        return (
            Local(vector, local.steps + reconstructs, epoch),
            Rows({"vector": v}, ()),
            StepInfo(value * count, count),
        )

    def finish(local: Local, shared: PyTree) -> tuple[PyTree, PyTree]:
        return {
            "vector": local.vector
        }, shared  # for who looks at the state: no round reads it; `shared` is empty

    return ClientWork(batches, 1, start, stateless_rows, step, finish)


def _by_query(positives: int, max_steps: int) -> Aggregator:
    """The mean weighted by the examples in odd batches."""

    def weight(num_examples: jax.Array) -> jax.Array:
        n = jnp.minimum(num_examples, 2 * max_steps * positives)
        pairs = n // (2 * positives)
        remainder = n % (2 * positives)
        return (pairs * positives + jnp.maximum(remainder - positives, 0)).astype(jnp.float32)

    return by_examples()._replace(weight=weight)
