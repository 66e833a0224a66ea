"""Plain-numpy reference, in float64, of a round of averaging for any model with rows, and the draws it shares.

A round (McMahan et al. 2017, algorithm 1), on trees of arrays; a client holds the whole table:

    for each client i of the cohort that has data:              # `train_client`
        w = (private_i, M)
        for each local epoch, for each local batch:
            w = w - a (momentum of) gradient of the batch's summed loss, with L2 and FedProx's pull
        private_i, delta_i = w's private part, w - M
    M = M + aggregate(delta_1, delta_2, ...)

Only the random draws come from elsewhere: first parameters, cohorts, and the items of every local batch.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population
from fedjax_rec.types import Algorithm
from fedjax_rec.types import State as EngineState

# programs are compiled for a few milliseconds of work each: spare LLVM's optimiser
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
Tree = Any
Batch = tuple[np.ndarray, np.ndarray]  # item ids int[n], labels float[n]
# (private, shared, tables, batch) -> gradients of all three, tables dense, of the loss summed over the batch
Gradient = Callable[[Tree, Tree, Tree, Batch], tuple[Tree, Tree, Tree]]


class Client(NamedTuple):
    """One client of a round."""

    id: int
    examples: int  # n_i, positives
    batches: list[Batch]


class Setting(NamedTuple):
    """Local training."""

    gradient: Gradient
    rate: float
    epochs: int = 1
    regularisation: float = 0.0
    momentum: float = 0.0
    prox: float = 0.0
    scale: tuple[float, float] = (1.0, 1.0)  # factors on the gradients of private and shared leaves


class Sent(NamedTuple):
    """What a client sends."""

    client: Client
    shared: Tree
    tables: Tree
    touched: np.ndarray  # bool[I]
    steps: int


def combine(function: Callable, *trees: Tree) -> Tree:
    """Apply a function to corresponding arrays."""
    return jax.tree.map(function, *trees)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + np.exp(-x))


def factorisation(private: Tree, shared: Tree, tables: Tree, batch: Batch) -> tuple[Tree, Tree, Tree]:
    """Gradient of binary cross-entropy with s = p . q_i (+ b_i); its derivative in s is sigmoid(s) - y."""
    own, rows = combine(np.zeros_like, private), combine(np.zeros_like, tables)
    for item, label in zip(*batch, strict=True):
        vector, bias = tables["vector"][item], tables["bias"][item] if "bias" in tables else 0.0
        slope = sigmoid(private["vector"] @ vector + bias) - label
        own["vector"] += slope * vector
        rows["vector"][item] += slope * private["vector"]
        if "bias" in tables:
            rows["bias"][item] += slope
    return own, combine(np.zeros_like, shared), rows


def regularised(setting: Setting, private: Tree, shared: Tree, tables: Tree, batch: Batch) -> Tree:
    """The gradient with lambda / 2 (|private|^2 + |row|^2) for every row visited."""
    own, dense, rows = setting.gradient(private, shared, tables, batch)
    visits, strength = np.bincount(batch[0], minlength=items_of(tables)), setting.regularisation

    def shrink(gradient: np.ndarray, table: np.ndarray) -> np.ndarray:
        return gradient + strength * visits.reshape(-1, *[1] * (table.ndim - 1)) * table

    own = combine(lambda g, p: g + strength * len(batch[0]) * p, own, private)
    return own, dense, combine(shrink, rows, tables)


def items_of(tables: Tree) -> int:
    """I."""
    return len(jax.tree.leaves(tables)[0])


def train_client(setting: Setting, private: Tree, shared: Tree, tables: Tree, client: Client) -> Any:
    """ClientUpdate: what the client keeps and what it sends."""
    start = (shared, tables)
    values = (private, shared, tables)
    memory = combine(np.zeros_like, values)
    for batch in client.batches * setting.epochs:
        grads = regularised(setting, *values, batch)
        pulls = combine(lambda w, m: setting.prox * (w - m), values[1:], start)
        grads = (grads[0], *combine(np.add, grads[1:], pulls))
        own, dense = setting.scale  # of the whole objective's gradient, FedProx's pull included
        grads = (
            combine(lambda g, s=own: s * g, grads[0]),
            combine(lambda g, s=dense: s * g, grads[1]),
            grads[2],
        )
        memory = combine(lambda m, g: setting.momentum * m + g, memory, grads)
        values = combine(lambda w, m: w - setting.rate * m, values, memory)
    touched = np.zeros(items_of(tables), bool)
    for items, _ in client.batches:
        touched[items] = True
    dense, rows = combine(np.subtract, values[1:], start)
    return values[0], Sent(client, dense, rows, touched, setting.epochs * len(client.batches))


def add_up(trees: Sequence[Tree], weights: Sequence[float]) -> Tree:
    """sum_i weight_i tree_i."""
    return combine(lambda *x: sum(w * a for w, a in zip(weights, x, strict=True)), *trees)


def total(sent: Sequence[Sent]) -> Tree:
    """sum_i delta_i."""
    return add_up([(s.shared, s.tables) for s in sent], [1.0] * len(sent))


def mean(sent: Sequence[Sent]) -> Tree:
    """sum_i delta_i / |S|."""
    return combine(lambda x: x / len(sent), total(sent))


def touchers(sent: Sequence[Sent]) -> Tree:
    """MF-FedAvg: each row's mean over those who trained it."""
    count = np.maximum(sum(s.touched.astype(float) for s in sent), 1.0)
    rows = combine(lambda x: x / np.reshape(count, (-1, *[1] * (x.ndim - 1))), total(sent)[1])
    return mean(sent)[0], rows


def run_round(
    setting: Setting,
    shared: Tree,
    tables: Tree,
    private: list[Tree],
    cohort: Sequence[Client],
    aggregate: Any,
) -> tuple[Tree, Tree, list[Tree]]:
    """The next shared leaves, tables and private leaves."""
    private, sent = list(private), []
    for client in cohort:
        private[client.id], update = train_client(setting, private[client.id], shared, tables, client)
        sent.append(update)
    shared, tables = combine(np.add, (shared, tables), aggregate(sent))
    return shared, tables, private


# --- The draws, and how both sides are compared --------------------------------------------------------------


def draw(
    algorithm: Algorithm, population: Population, key: Any, turn: int, ids: Sequence[int], positives: int
) -> list[Client]:
    """A round's clients that have data, with their local batches as the library cuts them."""
    names = name_clients(jax.random.fold_in(stream(key, "client"), turn), jnp.asarray(ids), population)
    named = [jax.tree.map(lambda leaf, i=i: leaf[i], names) for i in range(len(ids))]
    cut = jax.jit(lambda client, t: algorithm.work.batches.batch(client, population, t).ids)
    clients = []
    for client in named:
        count = int(client.num_examples)
        batches = [
            label(np.asarray(cut(client, jnp.int32(t))), positives, population.num_items)
            for t in range(int(algorithm.work.batches.num_batches(count)))
        ]
        clients += [Client(int(client.id), count, batches)] if count else []
    return clients


def label(ids: np.ndarray, positives: int, items: int) -> Batch:
    """The examples of a batch, without its empty slots."""
    labels = (np.arange(len(ids)) < positives).astype(float)
    return ids[ids < items], labels[ids < items]


def read(state: EngineState) -> tuple[Tree, Tree, list[Tree]]:
    """The engine's shared leaves, tables and private leaves, in float64."""
    server, store = jax.tree.map(lambda x: np.asarray(x, np.float64), (state.server, state.private))
    count = len(jax.tree.leaves(store)[0])
    return server.shared, server.tables, [combine(lambda x, n=n: x[n], store) for n in range(count)]


def run_engine(algorithm: Algorithm, population: Population, key: Any, rounds: int) -> list[EngineState]:
    """The library's states, the first one included."""
    states = [jax.jit(algorithm.init, compiler_options=QUICK)(key, population)]
    one_round = jax.jit(algorithm.round, compiler_options=QUICK)
    for _ in range(rounds):
        states.append(one_round(key, states[-1], population)[0])
    return states


def deviation(got: Tree, wanted: Tree, start: Tree) -> float:
    """The largest difference, as a share of 1e-5 of what its leaf moved by plus two float32 roundings."""
    worst = 0.0
    for one, other, first in zip(*map(jax.tree.leaves, (got, wanted, start)), strict=True):
        if other.size:
            slack = 2 * np.finfo(np.float32).eps * np.abs(other).max()
            allowed = 1e-5 * np.abs(other - first).max() + slack + 1e-9
            worst = max(worst, float(np.abs(one - other).max() / allowed))
    return worst
