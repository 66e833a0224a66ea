"""FedMF in plain numpy and float64: slow, short, and written from the papers; an oracle for the compiled engine.

McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1, on
the model of Koren et al. 2009, "Matrix factorization techniques for recommender systems", eq. 4 and 5. Python
loops run over clients, epochs, batches and examples. Nothing is sparse here: every client trains a dense copy of
the whole model, so a row that no batch of the client touches stays put because its gradient is 0, and momentum
and Adam go on moving a row that some *other* batch of the client touched. That the row-sparse engine agrees is
the point of the test.

One round, algorithm 1 with the server rule of Reddi et al. 2021, "Adaptive federated optimization", algorithm 1:

    for each client i of the cohort that has data:              # `run_round`
        w = (private_i, M)
        for each local epoch, for each local batch:             # `train_client`
            g = gradient of the batch's summed loss             # `gradient`
            g = g + mu (w - M) on what the server owns          # FedProx, `pull_back`
            w = w + optimizer(g)
        private_i, delta_i = w's private part, w - M
    M = M + server_rule(-aggregate(delta_1, delta_2, ...))      # optax descends, hence the sign

Only the random draws come from elsewhere: first parameters, cohorts, and the items of every local batch.
"""

from collections.abc import Callable, Sequence
from math import exp, log1p
from typing import Any, NamedTuple

import numpy as np

Values = dict[str, np.ndarray]  # "user" [D], "user_bias" [], "intercept" [], "item" [I, D], "item_bias" [I]
Batch = list[tuple[int, list[int]]]  # positives (or rated items), each with its own negatives

PRIVATE = ("user", "user_bias")  # stays on its client
TABLES = ("item", "item_bias")  # a row an item


class Client(NamedTuple):
    """One client of a round."""

    id: int
    ratings: dict[int, float]  # its training items, each with its rating
    batches: list[Batch]  # the same in every local epoch


class Optimizer(NamedTuple):
    """A rule for one array: `start(shape) -> memory` and `step(gradient, memory) -> what to add, memory`."""

    start: Callable[[tuple[int, ...]], Any]
    step: Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]


class Setting(NamedTuple):
    """All that a run needs besides data and random draws."""

    objective: Callable[[dict[int, float], Batch, dict[int, float]], tuple[float, dict[int, float], int]]
    regularisation: float
    epochs: int
    local: Optimizer
    aggregate: Callable[[Sequence[Values], Sequence[Client]], Values]
    server: Optimizer
    prox: float = 0.0


class State(NamedTuple):
    """What a run carries from round to round."""

    server: Values
    private: list[Values]  # one a client of the population
    memory: dict[str, Any]  # the server rule's, one an array of `server`


# --- Losses: value, its derivative in each item's score, and number of examples ------------------------------


def sigmoid(x: float) -> float:
    """1 / (1 + e^-x)."""
    return 1.0 / (1.0 + exp(-x))


def softplus(x: float) -> float:
    """log(1 + e^x) = -log sigmoid(-x)."""
    return log1p(exp(x))


def items_of(batch: Batch) -> list[int]:
    """Every item that a batch touches, positives and negatives."""
    return [item for positive, negatives in batch for item in (positive, *negatives)]


def bce(
    scores: dict[int, float], batch: Batch, ratings: dict[int, float]
) -> tuple[float, dict[int, float], int]:
    """Binary cross-entropy, -log sigmoid(s) on positives and -log sigmoid(-s) on negatives.

    He et al. 2017, "Neural collaborative filtering", eq. 7; its derivative is sigmoid(s) - y.
    """
    value, slopes = 0.0, {}
    for item in items_of(batch):
        label = 1.0 if item in ratings else 0.0
        value += softplus(-scores[item]) if label else softplus(scores[item])
        slopes[item] = sigmoid(scores[item]) - label
    return value, slopes, len(slopes)


def bpr(
    scores: dict[int, float], batch: Batch, ratings: dict[int, float]
) -> tuple[float, dict[int, float], int]:
    """Pairwise loss, -log sigmoid(s_i - s_j) for a positive i and each of its negatives j; an example is a pair.

    Rendle et al. 2009, "BPR: Bayesian personalized ranking from implicit feedback", section 4.1.
    """
    del ratings
    value, slopes, pairs = 0.0, dict.fromkeys(items_of(batch), 0.0), 0
    for i, negatives in batch:
        for j in negatives:
            value += softplus(scores[j] - scores[i])
            slopes[i] -= sigmoid(scores[j] - scores[i])
            slopes[j] += sigmoid(scores[j] - scores[i])
            pairs += 1
    return value, slopes, pairs


def mse(
    scores: dict[int, float], batch: Batch, ratings: dict[int, float]
) -> tuple[float, dict[int, float], int]:
    """Half the squared error of each rating, (r - s)^2 / 2: Koren et al. 2009, eq. 5."""
    value, slopes = 0.0, {}
    for item in items_of(batch):
        slopes[item] = scores[item] - ratings[item]
        value += 0.5 * slopes[item] ** 2
    return value, slopes, len(slopes)


# --- One client ----------------------------------------------------------------------------------------------


def score(values: Values, item: int) -> float:
    """Koren et al. 2009, eq. 4: m + b_u + b_i + p_u . q_i, of which each bias may be missing."""
    bias = sum(float(values[name]) for name in ("intercept", "user_bias") if name in values)
    if "item_bias" in values:
        bias += float(values["item_bias"][item])
    return bias + float(values["user"] @ values["item"][item])


def gradient(setting: Setting, values: Values, batch: Batch, client: Client) -> tuple[Values, float, int]:
    """Gradient of the summed loss plus lambda / 2 (|p_u|^2 + b_u^2 + |q_i|^2 + b_i^2) for each item touched.

    Koren et al. 2009, eq. 5 and their "stochastic gradient descent": with e the loss's derivative in the score,
    e q_i + lambda p_u for the user and e p_u + lambda q_i for the item.

    Returns:
        the gradient (dense), the regularised loss, and the number of the loss's examples.
    """
    items, strength = items_of(batch), setting.regularisation
    scores = {item: score(values, item) for item in items}
    value, slopes, examples = setting.objective(scores, batch, client.ratings)
    result = {name: np.zeros_like(array) for name, array in values.items()}
    for item in items:
        user, row = values["user"], values["item"][item]
        result["user"] += slopes[item] * row + strength * user
        result["item"][item] += slopes[item] * user + strength * row
        value += 0.5 * strength * float(user @ user + row @ row)
        if "item_bias" in values:
            result["item_bias"][item] += slopes[item] + strength * values["item_bias"][item]
            value += 0.5 * strength * float(values["item_bias"][item]) ** 2
        if "user_bias" in values:
            result["user_bias"] += slopes[item] + strength * values["user_bias"]
            value += 0.5 * strength * float(values["user_bias"]) ** 2
        if "intercept" in values:
            result["intercept"] += slopes[item]
    return result, value, examples


def pull_back(grads: Values, values: Values, server: Values, strength: float) -> Values:
    """FedProx: add the gradient of mu / 2 |w - M|^2 on all that the server owns (Li et al. 2020, eq. 2)."""
    pulls = {name: strength * (values[name] - server[name]) for name in server}
    return {name: grad + pulls.get(name, 0.0) for name, grad in grads.items()}


def train_client(
    setting: Setting, client: Client, private: Values, server: Values
) -> tuple[Values, float, int]:
    """McMahan et al. 2017, algorithm 1, ClientUpdate.

    Returns:
        the client's parameters after its last step, its summed loss and number of examples over all epochs.
    """
    values = {**private, **server}
    memory = {name: setting.local.start(array.shape) for name, array in values.items()}
    loss, examples = 0.0, 0
    for _ in range(setting.epochs):
        for batch in client.batches:
            grads, value, count = gradient(setting, values, batch, client)
            grads = pull_back(grads, values, server, setting.prox)
            values, memory = apply(setting.local, values, grads, memory)
            loss, examples = loss + value, examples + count
    return values, loss, examples


# --- Optimizers, one array at a time -------------------------------------------------------------------------


def apply(
    optimizer: Optimizer, values: Values, grads: Values, memory: dict[str, Any]
) -> tuple[Values, dict[str, Any]]:
    """One step on every array: memory's arrays may not share state, so each is stepped on its own."""
    steps = {name: optimizer.step(grads[name], memory[name]) for name in values}
    return {n: values[n] + steps[n][0] for n in values}, {n: steps[n][1] for n in values}


def sgd(rate: float) -> Optimizer:
    """w <- w - a g. As the server's rule this is FedAvg: M <- M + a * aggregate."""
    return Optimizer(lambda shape: None, lambda g, memory: (-rate * g, memory))  # noqa: ARG005


def momentum(rate: float, beta: float = 0.9) -> Optimizer:
    """v <- beta v + g, w <- w - a v (FedAvgM on the server: Hsu et al. 2019)."""

    def step(g: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v = beta * v + g
        return -rate * v, v

    return Optimizer(np.zeros, step)


def adam(rate: float, b1: float = 0.9, b2: float = 0.999, tau: float = 1e-8) -> Optimizer:
    """Kingma & Ba 2015, algorithm 1: m and v are moving averages of g and g^2, corrected for their start at 0."""

    def start(shape: tuple[int, ...]) -> tuple[int, np.ndarray, np.ndarray]:
        return 0, np.zeros(shape), np.zeros(shape)

    def step(g: np.ndarray, memory: tuple) -> tuple[np.ndarray, tuple]:
        t, m, v = memory
        t, m, v = t + 1, b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
        return -rate * corrected(m, b1, t) / (np.sqrt(corrected(v, b2, t)) + tau), (t, m, v)

    return Optimizer(start, step)


def fedopt(
    rate: float, square: Callable[[np.ndarray, np.ndarray], np.ndarray], b1: float, tau: float
) -> Optimizer:
    """Reddi et al. 2021, algorithm 2: m and v as there, v starts at tau^2, w <- w - a m / (sqrt(v) + tau)."""

    def step(g: np.ndarray, memory: tuple) -> tuple[np.ndarray, tuple]:
        m, v = memory
        m, v = b1 * m + (1 - b1) * g, square(v, g**2)
        return -rate * m / (np.sqrt(v) + tau), (m, v)

    return Optimizer(lambda shape: (np.zeros(shape), np.full(shape, tau**2)), step)


def fedadam(rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """v <- b2 v + (1 - b2) g^2."""
    return fedopt(rate, lambda v, s: b2 * v + (1 - b2) * s, b1, tau)


def fedyogi(rate: float, b1: float = 0.9, b2: float = 0.99, tau: float = 1e-3) -> Optimizer:
    """v <- v - (1 - b2) g^2 sign(v - g^2)."""
    return fedopt(rate, lambda v, s: v - (1 - b2) * s * np.sign(v - s), b1, tau)


def fedadagrad(rate: float, b1: float = 0.0, tau: float = 1e-3) -> Optimizer:
    """v <- v + g^2."""
    return fedopt(rate, lambda v, s: v + s, b1, tau)


def corrected(moment: np.ndarray, decay: float, t: int) -> np.ndarray:
    """Kingma & Ba 2015, section 3: the moving average after t steps, divided by the weights it holds."""
    return moment / (1 - decay**t)


def adagrad(rate: float, first: float = 0.1, inside: float = 1e-7) -> Optimizer:
    """Duchi et al. 2011: v <- v + g^2, w <- w - a g / sqrt(v + eps), with eps inside the root as in optax."""

    def step(g: np.ndarray, v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        v = v + g**2
        return np.where(v > 0, -rate * g / np.sqrt(v + inside), 0.0), v

    return Optimizer(lambda shape: np.full(shape, first), step)


# --- The server ----------------------------------------------------------------------------------------------


def weighted_sum(deltas: Sequence[Values], weights: Sequence[float]) -> Values:
    """sum_i weight_i delta_i, one client after another."""
    result = {name: np.zeros_like(array) for name, array in deltas[0].items()}
    for delta, weight in zip(deltas, weights, strict=True):
        result = {name: array + weight * delta[name] for name, array in result.items()}
    return result


def total(deltas: Sequence[Values], clients: Sequence[Client]) -> Values:
    """sum_i delta_i."""
    return weighted_sum(deltas, [1.0 for _ in clients])


def mean(deltas: Sequence[Values], clients: Sequence[Client]) -> Values:
    """sum_i delta_i / |S|, S being the clients that trained."""
    return weighted_sum(deltas, [1.0 / len(clients) for _ in clients])


def by_examples(deltas: Sequence[Values], clients: Sequence[Client]) -> Values:
    """sum_i n_i delta_i / sum_i n_i: McMahan et al. 2017, algorithm 1, last line of the server."""
    examples = [len(client.ratings) for client in clients]
    return weighted_sum(deltas, [n / sum(examples) for n in examples])


def mean_of_touchers(deltas: Sequence[Values], clients: Sequence[Client]) -> Values:
    """Each row's mean over the clients that touched it, other arrays' over all (Perifanis & Efraimidis 2022)."""
    result, sums = mean(deltas, clients), total(deltas, clients)
    for name in set(TABLES) & set(result):
        for row in range(len(result[name])):
            touchers = sum(row in rows_of(client) for client in clients)
            result[name][row] = sums[name][row] / max(touchers, 1)
    return result


def rows_of(client: Client) -> set[int]:
    """The rows that a client touches in the round."""
    return {item for batch in client.batches for item in items_of(batch)}


def first_state(setting: Setting, server: Values, private: list[Values]) -> State:
    """A run before its first round."""
    return State(server, private, {name: setting.server.start(array.shape) for name, array in server.items()})


def train_cohort(
    setting: Setting, state: State, clients: Sequence[Client]
) -> tuple[list[Values], list[Values], float]:
    """Every client's work from the same global model.

    Returns:
        what the clients keep, what they send (delta_i = w_i - M), and their mean loss per example.
    """
    kept, sent, losses, examples = [], [], 0.0, 0
    for client in clients:
        values, loss, count = train_client(setting, client, state.private[client.id], state.server)
        kept.append({name: values[name] for name in PRIVATE if name in values})
        sent.append({name: values[name] - state.server[name] for name in state.server})
        losses, examples = losses + loss, examples + count
    return kept, sent, losses / max(examples, 1)


def run_round(setting: Setting, state: State, cohort: Sequence[Client]) -> tuple[State, float]:
    """McMahan et al. 2017, algorithm 1, with Reddi et al. 2021's server rule; clients without data sit out.

    Returns:
        the next state, and the mean local loss per example.
    """
    clients = [client for client in cohort if client.ratings]
    kept, sent, loss = train_cohort(setting, state, clients)
    pseudo_gradient = {name: -array for name, array in setting.aggregate(sent, clients).items()}
    server, memory = apply(setting.server, state.server, pseudo_gradient, state.memory)
    private = list(state.private)
    for client, values in zip(clients, kept, strict=True):
        private[client.id] = values
    return State(server, private, memory), loss
