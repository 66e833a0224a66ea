"""Federated self-attentive sequential recommendation (`fedsasrec`).

Kang & McAuley 2018, "Self-attentive sequential recommendation" (SASRec), trained by McMahan et al. 2017, algorithm
1. A client is one sequence, its last items in order of time; it keeps nothing between rounds. Item vectors are
rows, the attention's weights are shared. At each position the model predicts the next item, and what it says at
the last one scores the catalogue: s_ui = f_u . q_i.

Departures from SASRec:

* no dropout, so that a client's work is a function of its data and its negatives alone;
* one block where the paper has two (`blocks`), and SGD where it has Adam (`local_optimizer`);
* keys and values are normalised as queries are: the paper's g(LayerNorm(x)), which its authors' program is not;
  from the program come the factor sqrt(D) on item vectors and the layer norm at the end;
* the losses of a client's positions are summed, not averaged, and a client's negatives are distinct items outside
  of its whole history, drawn once per round.

Departures from algorithm 1: item rows are summed over clients, as in `fedmf`; the encoder's weights are averaged.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.algorithms.common.attention import encode, init_encoder
from fedjax_rec.algorithms.common.losses import at_least
from fedjax_rec.algorithms.common.sequences import sequences
from fedjax_rec.algorithms.registry import register
from fedjax_rec.client.local_training import Loss, local_training, stateless_rows
from fedjax_rec.client.population import Population
from fedjax_rec.errors import check_arguments, check_unused
from fedjax_rec.federation.federate import FederationSettings, federate
from fedjax_rec.rows.draws import normal_rows
from fedjax_rec.types import (
    Aggregator,
    Algorithm,
    Batch,
    ClientWork,
    Context,
    Key,
    Model,
    Params,
    PyTree,
    Rows,
    RowUpload,
    Server,
    StepInfo,
)


@register(rounds=200, eval_every=10, needs_order=True)
def fedsasrec(
    *,
    dim: int = 64,
    max_length: int = 50,
    blocks: int = 1,
    num_negatives: int = 1,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.002,
    regularisation: float | jax.Array = 0.0,
    init_scale: float | jax.Array = 0.1,
    local_optimizer: optax.GradientTransformation | None = None,
    aggregator: Aggregator | str = "rows",
    **federation: Unpack[FederationSettings],
) -> Algorithm:
    """SASRec on each client's latest items, one local batch a client.

    The loss is -log sigmoid(f_t . q_i) - sum_j log sigmoid(-f_t . q_j), summed over the positions t, whose next
    item is i and whose negatives are j, plus lambda / 2 |q|^2 of every row visited.

    Args:
        dim: D, width of the vectors and of the hidden layer.
        max_length: L, items that the model looks back on; training uses the last L + 1.
        blocks: of attention and feed-forward layers, with one head.
        num_negatives: negatives per position.
        local_epochs: E, steps on the sequence.
        learning_rate: of the default local optimizer, SGD.
        regularisation: lambda.
        init_scale: vectors and positions start as normal(0, init_scale / sqrt(D)).
        local_optimizer: any optax transformation that treats item rows apart, instead of SGD and its rate.
        aggregator: a name of `aggregators.NAMES` or an `Aggregator`.
        federation: who takes part, what travels, what the server does with it: as in `federate`.

    Returns:
        the algorithm; it takes the order of a client's examples in the population for that of time.

    Raises:
        ValueError: on an unknown aggregator or a setting out of range.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> algorithm, population = fedsasrec(dim=4, max_length=5, cohort=2), tiny_population()
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> state, info = algorithm.round(jax.random.key(0), state, population)
        >>> int(info.batches)
        2
    """
    check_arguments(fedsasrec, locals())
    if local_optimizer is not None:
        check_unused(fedsasrec, locals(), ["learning_rate"], "local_optimizer", "which has a rate of its own")
    at_least(1, dim=dim, max_length=max_length, blocks=blocks, num_negatives=num_negatives)
    at_least(0, learning_rate=learning_rate, regularisation=regularisation, init_scale=init_scale)
    rule = optax.sgd(learning_rate) if local_optimizer is None else local_optimizer
    work = local_training(
        _next_items(max_length, regularisation),
        rule,
        sequences(max_length, num_negatives),
        epochs=local_epochs,
    )
    model = self_attention(dim, max_length, blocks, init_scale)
    return federate(model, work, aggregator=aggregator, **federation)


def self_attention(dim: int, max_length: int, blocks: int, init_scale: float | jax.Array) -> Model:
    """The model: a vector per item and a shared encoder; a client's vector is what its sequence is encoded to.

    Args:
        dim: D.
        max_length: L.
        blocks: of the encoder.
        init_scale: vectors and positions start as normal(0, init_scale / sqrt(D)).

    Returns:
        private {"vector" [D]} (0 until a client represents itself), shared the encoder, tables {"vector" [I, D]}.

    Example:
        >>> self_attention(4, 10, 1, 0.1).represent.epochs
        1
    """
    scale = init_scale / dim**0.5

    def init_server(key: Key, population: Population) -> Server:
        row_key, encoder_key = jax.random.split(key)
        tables = {"vector": normal_rows(row_key, population.num_items, dim, scale=scale)}
        return Server(init_encoder(encoder_key, dim, max_length, blocks, scale), tables)

    return Model(
        lambda key: {"vector": jnp.zeros(dim)},  # noqa: ARG005 - nothing private is random
        init_server,
        lambda private, server: server.tables["vector"] @ private["vector"],
        represent=_represent(max_length),
    )


def _represent(max_length: int) -> ClientWork:
    """Encode the latest items by the server's model, and keep what it says at the last position."""

    def start(key: Key, private: PyTree, shared: PyTree, context: Context) -> PyTree:
        del key, context
        return private, shared

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        del context
        encoded = encode(local[1], rows.values["vector"], batch.data["mask"])
        return ({"vector": encoded[-1]}, local[1]), rows, StepInfo(jnp.float32(0), jnp.float32(0))

    return ClientWork(
        batches=sequences(max_length, 0),
        epochs=1,
        start=start,
        init_rows=stateless_rows,
        step=step,
        finish=lambda local, shared: (local[0], {}),  # noqa: ARG005 - a work's signatures
        upload=RowUpload(lambda local, rows, batch, old: {}),  # noqa: ARG005
    )


def _next_items(max_length: int, strength: float | jax.Array) -> Loss:
    """Of each position but the last, the next item against its negatives."""

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        vectors = params.tables["vector"]
        mask = batch.data["mask"]
        # f_t [L, D]; and [1 + K, L, D], the next items and then their negatives
        encoded = encode(params.shared, vectors[:max_length], mask[:max_length])
        candidates = vectors[1:].reshape(-1, max_length, vectors.shape[1])
        label = jnp.zeros(candidates.shape[:2]).at[0].set(1.0)
        # where both a position and its candidate are there
        counted = mask[1:].reshape(label.shape) * mask[None, :max_length]
        losses = optax.sigmoid_binary_cross_entropy((candidates * encoded[None]).sum(2), label)
        return (counted * losses).sum() + 0.5 * strength * (vectors**2).sum(), counted.sum()

    return loss
