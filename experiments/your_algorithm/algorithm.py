"""An algorithm to copy (`your_algorithm`): logistic matrix factorisation, averaged by the server.

    python -m experiments.your_algorithm.algorithm         # about 10 s on two CPU cores; needs no data

Say here which paper this is and which of its algorithms, and every departure from it. This one is McMahan et al.
2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1, on the score

    s_ui = p_u . q_i + b_i + c

with p_u private, q_i and b_i in the server's tables, and c shared. Departures: each row is averaged over the
clients that touched it, and the loss of a batch is a sum.

Expected: test NDCG@10, full ranking, .152 on the synthetic default, where Popularity has .041.
"""

from typing import Unpack

import jax
import jax.numpy as jnp
import optax

import fedjax_rec as fr
from fedjax_rec.client import Loss, with_negatives
from fedjax_rec.federation import FederationSettings
from fedjax_rec.types import Aggregator, Key, PyTree

# --- The factory: settings in, algorithm out -----------------------------------------------------------------


def your_algorithm(
    *,
    dim: int = 16,
    num_negatives: int = 4,
    batch_size: int = 64,
    local_epochs: int = 1,
    learning_rate: float | jax.Array = 0.1,
    regularisation: float | jax.Array = 0.01,
    init_scale: float | jax.Array = 0.3,
    aggregator: Aggregator | str = "touchers",
    **federation: Unpack[FederationSettings],
) -> fr.types.Algorithm:
    """Put model, client's work and server together.

    Args:
        dim: D, width of the vectors.
        num_negatives: negatives per positive.
        batch_size: examples in a local batch, positives and negatives together.
        local_epochs: E.
        learning_rate: of the clients' SGD.
        regularisation: L2 on the private vector and the rows of each batch.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).
        aggregator: a name of `fedjax_rec.server.aggregators.NAMES`, or an `Aggregator`.
        federation: who takes part, what travels, what the server does with it: as in `fr.federate`.

    Returns:
        the algorithm.

    Raises:
        ValueError: if a size is below 1.

    Example:
        >>> your_algorithm(dim=4).work.epochs
        1
    """
    if dim < 1:
        raise ValueError(f"dim must be at least 1, not {dim}")
    batches = with_negatives(batch_size, num_negatives, labels=True)
    loss = logistic_loss(regularisation)
    work = fr.local_training(loss, optax.sgd(learning_rate), batches, epochs=local_epochs)
    return fr.federate(model(dim, init_scale), work, aggregator=aggregator, **federation)


# --- The model: what is learnt, where it lives, and how it scores ---------------------------------------------


def model(dim: int, init_scale: float | jax.Array) -> fr.Model:
    """Private {"vector" [D]}, shared {"offset" []}, tables {"vector" [I, D], "bias" [I]}.

    Args:
        dim: D.
        init_scale: vectors start as normal(0, init_scale / sqrt(D)).

    Returns:
        the model.

    Example:
        >>> model(4, 0.1).init_private(jax.random.key(0))["vector"].shape
        (4,)
    """
    scale = init_scale / dim**0.5

    def init_private(key: Key) -> PyTree:
        return {"vector": scale * jax.random.normal(key, (dim,))}

    def init_server(key: Key, population: fr.Population) -> fr.Server:
        vectors = scale * jax.random.normal(key, (population.num_items, dim))
        return fr.Server({"offset": jnp.float32(0)}, {"vector": vectors, "bias": jnp.zeros(len(vectors))})

    def score(private: PyTree, server: fr.Server) -> jax.Array:
        return scores(fr.Params(private, *server))

    return fr.Model(init_private, init_server, score)


def scores(params: fr.Params) -> jax.Array:
    """Score the rows at hand: those of a batch in training, all items in evaluation.

    Args:
        params: of one client.

    Returns:
        float32[B], or float32[I].

    Example:
        >>> rows = {"vector": jnp.ones((3, 2)), "bias": jnp.zeros(3)}
        >>> scores(fr.Params({"vector": jnp.ones(2)}, {"offset": jnp.float32(1)}, rows)).tolist()
        [3.0, 3.0, 3.0]
    """
    affinity = params.tables["vector"] @ params.private["vector"]
    return affinity + params.tables["bias"] + params.shared["offset"]


# --- One client's work: the loss of one local batch, for ONE client ------------------------------------------


def logistic_loss(regularisation: float | jax.Array) -> Loss:
    """-log sigmoid(s) on positives, -log sigmoid(-s) on negatives, plus L2.

    Args:
        regularisation: lambda, of lambda / 2 (|q_i|^2 + b_i^2 + |p_u|^2) for every row of the batch.

    Returns:
        (params, batch) -> summed loss and number of examples; empty slots (mask 0) count for nothing.

    Example:
        >>> logistic_loss(0.01).__name__
        'loss'
    """

    def loss(params: fr.Params, batch: fr.Batch) -> tuple[jax.Array, jax.Array]:
        mask = batch.data["mask"]
        rows = params.tables
        fit = optax.sigmoid_binary_cross_entropy(scores(params), batch.data["label"])
        size = (rows["vector"] ** 2).sum(1) + rows["bias"] ** 2 + (params.private["vector"] ** 2).sum()
        return (mask * (fit + 0.5 * regularisation * size)).sum(), mask.sum()

    return loss


# --- Try it ----------------------------------------------------------------------------------------------------


def main(rounds: int = 200) -> dict[str, float]:
    """Train on the synthetic default and compare with Popularity.

    Args:
        rounds: T.

    Returns:
        test NDCG@10, full ranking, by name.
    """
    split = fr.leave_one_out(fr.load_dataset("synthetic"))
    algorithm = your_algorithm()
    state, history = fr.simulate(algorithm, split, rounds=rounds, eval_every=20, on_block=fr.progress_bar())
    test = fr.make_evaluator(algorithm, split)(state)
    ranks = {"your_algorithm": test, "popularity": fr.evaluation.popularity_ranks(split)}
    found = {name: fr.evaluation.metrics_from_ranks(each.full)["ndcg@10"] for name, each in ranks.items()}
    print(f"round {history.selected_round}: " + ", ".join(f"{n} {v:.4f}" for n, v in found.items()))
    return found


if __name__ == "__main__":
    main()
