"""The engine in float32 against the numpy reference in float64 (law 12): every kind of leaf, and the loss.

Tolerances. A leaf may differ by `tolerance` x the largest change that training made in it, plus a few ulp: an ulp
is float32's rounding of the leaf's largest value, for parameters are stored in float32 after every step.

* 1e-5 and 2 ulp, the suite's float32 tolerance, wherever the rule is smooth.
* 5e-5 for local Adam: optax computes 1 - beta_2^t in float32, with a relative error of up to 2^-24 / 0.001 = 6e-5,
  of which the root leaves half. (Rounded in the same way, the reference agrees to 1e-6.)
* rate / tau ulp for FedAdam and FedYogi: where an aggregate is far below tau their update is rate / tau times the
  aggregate, and a delta w - M carries the rounding of w.

The rates keep the rounds stable: the sum of nine clients overshoots with larger ones, and doubles every rounding.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.client.batches import positives_per_batch
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population, build
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.server import optimizers as servers
from fedjax_rec.types import Algorithm
from fedjax_rec.types import State as EngineState
from tests.crosses import crossed, sampled
from tests.references import fedmf as ref

ROUNDS = 3
ITEMS = 29
DIM = 4
COHORT = 9
LANES = 3
TOLERANCE = 1e-5
ADAM_TOLERANCE = 5e-5
ULPS = 2.0
HISTORIES = (15, 1, 7, 0, 3, 12, 2, 5, 9, 4, 1, 8)  # client 3 has no data
NEGATIVES = 3  # the longest history asks for 45 negatives of 29 items, so that some positives have none
BATCH = {"bce": 8, "bpr": 8, "mse": 4}  # 2 positives or 4 ratings in a batch
RATE = 0.05
REGULARISATION = 0.02
MU = 0.3
SERVER_RATE = 0.1
ADAPTIVE_RATE = 0.05
SEED = 7
# two dozen programs are compiled for a few milliseconds of work each: spare LLVM's optimiser
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}

OBJECTIVES = {"bce": ref.bce, "bpr": ref.bpr, "mse": ref.mse}
LOCALS: dict[str, tuple[optax.GradientTransformation, ref.Optimizer]] = {
    "sgd": (optax.sgd(RATE), ref.sgd(RATE)),
    "momentum": (optax.sgd(RATE, momentum=0.9), ref.momentum(RATE)),
    "adam": (optax.adam(RATE), ref.adam(RATE)),
    "adagrad": (optax.adagrad(RATE), ref.adagrad(RATE)),
}
AGGREGATES = {
    "sum": ref.total,
    "mean": ref.mean,
    "examples": ref.by_examples,
    "touchers": ref.mean_of_touchers,
}
RULES: dict[str, tuple[optax.GradientTransformation, ref.Optimizer]] = {
    "fedavg": (servers.fedavg(SERVER_RATE), ref.sgd(SERVER_RATE)),
    "fedavgm": (servers.fedavgm(SERVER_RATE), ref.momentum(SERVER_RATE)),
    "fedadam": (servers.fedadam(ADAPTIVE_RATE), ref.fedadam(ADAPTIVE_RATE)),
    "fedyogi": (servers.fedyogi(ADAPTIVE_RATE), ref.fedyogi(ADAPTIVE_RATE)),
    "fedadagrad": (servers.fedadagrad(ADAPTIVE_RATE), ref.fedadagrad(ADAPTIVE_RATE)),
}


ADAPTIVE = ("fedadam", "fedyogi", "fedadagrad")  # these multiply what is far below tau by rate / tau


class Case(NamedTuple):
    """A setting of the algorithm; equal cases share one run of the engine."""

    loss: str = "mse"  # it alone has every kind of leaf: private, shared, and a scalar of each
    epochs: int = 2
    local: str = "sgd"
    aggregator: str = "sum"
    server: str = "fedavg"
    prox: float = 0.0
    item_bias: bool = True
    cohort: int = COHORT
    lanes: int = LANES


def make_engine(case: Case) -> Algorithm:
    """The library's side of a case."""
    return fedmf(
        dim=DIM,
        loss=case.loss,
        num_negatives=4 if case.loss == "mse" else NEGATIVES,  # the default, where none are drawn
        batch_size=BATCH[case.loss],
        local_epochs=case.epochs,
        regularisation=REGULARISATION,
        item_bias=case.item_bias,
        init_scale=1.0,
        prox=case.prox,
        local_optimizer=LOCALS[case.local][0],
        cohort=case.cohort,
        aggregator=case.aggregator,
        server_optimizer=RULES[case.server][0],
        lanes=case.lanes,
    )


def make_setting(case: Case) -> ref.Setting:
    """The reference's side of a case."""
    rules = LOCALS[case.local][1], AGGREGATES[case.aggregator], RULES[case.server][1]
    return ref.Setting(OBJECTIVES[case.loss], REGULARISATION, case.epochs, *rules, case.prox)


@cache
def population() -> Population:
    """A ragged population with ratings of 1 to 5."""
    random = np.random.default_rng(SEED)
    items = np.concatenate([random.permutation(ITEMS)[:n] for n in HISTORIES])
    offsets = np.concatenate([[0], np.cumsum(HISTORIES)])
    return build(offsets, items, random.integers(1, 6, len(items)).astype(np.float64), ITEMS)


@cache
def draw_cohorts(*, rated: bool, cohort: int = COHORT) -> tuple[tuple[ref.Client, ...], ...]:
    """Each round's clients with the items of their batches: all the randomness that both sides share."""
    key = jax.random.key(SEED)
    data = population()

    @jax.jit
    def name(round_: jax.Array) -> Any:
        ids, _ = uniform(cohort)(jax.random.fold_in(stream(key, "cohort"), round_), len(HISTORIES))
        return name_clients(jax.random.fold_in(stream(key, "client"), round_), ids, data)

    batch = jax.jit(make_engine(Case("mse" if rated else "bce")).work.batches.batch)
    rounds = []
    for round_ in range(ROUNDS):
        names = jax.tree.map(np.asarray, name(jnp.int32(round_)))
        clients = [jax.tree.map(lambda leaf, i=i: leaf[i], names) for i in range(cohort)]
        rounds.append(tuple(draw_client(batch, client, rated=rated) for client in clients))
    return tuple(rounds)


def draw_client(batch: Any, client: Any, *, rated: bool) -> ref.Client:
    """One client's ratings, and its batches as the library cuts them."""
    data = population()
    number = int(client.id)
    own = slice(int(data.offsets[number]), int(data.offsets[number + 1]))
    items = np.asarray(data.examples["items"][own])
    ratings = np.asarray(data.examples["ratings"][own])
    positives = BATCH["mse"] if rated else positives_per_batch(BATCH["bce"], NEGATIVES)
    count = -(-len(items) // positives)
    batches = [group(np.asarray(batch(client, data, jnp.int32(t)).ids), positives) for t in range(count)]
    assert sorted(i for groups in batches for i, _ in groups) == sorted(items.tolist())
    return ref.Client(number, dict(zip(items.tolist(), ratings.tolist(), strict=True)), batches)


def group(ids: np.ndarray, positives: int) -> ref.Batch:
    """Give each positive its own negatives: P slots of positives, then P times their negatives, in order."""
    negatives = ids[positives:].reshape(positives, -1)
    pairs = zip(ids[:positives].tolist(), negatives.tolist(), strict=True)
    return [(i, [j for j in row if j < ITEMS]) for i, row in pairs if i < ITEMS]


def read(state: EngineState) -> tuple[ref.Values, list[ref.Values]]:
    """The engine's server and private store under the reference's names, in float64."""
    tables = {"vector": "item", "bias": "item_bias"}
    names = {"vector": "user", "bias": "user_bias"}
    server = {tables[name]: np.asarray(leaf, np.float64) for name, leaf in state.server.tables.items()}
    server |= {name: np.asarray(leaf, np.float64) for name, leaf in state.server.shared.items()}
    store = {names[name]: np.asarray(leaf, np.float64) for name, leaf in state.private.items()}
    return server, [{name: leaf[n] for name, leaf in store.items()} for n in range(len(HISTORIES))]


def flatten(server: ref.Values, private: list[ref.Values]) -> ref.Values:
    """Server and private store [N, ...] as one dictionary."""
    return server | {name: np.stack([client[name] for client in private]) for name in private[0]}


@cache
def run_engine(case: Case) -> tuple[list[EngineState], list[float]]:
    """The states, the first one included, and the loss of each round."""
    algorithm = make_engine(case)
    key = jax.random.key(SEED)
    states = [algorithm.init(key, population())]
    losses = []
    one_round = jax.jit(algorithm.round, compiler_options=QUICK)
    for _ in range(ROUNDS):
        state, info = one_round(key, states[-1], population())
        states.append(state)
        losses.append(float(info.loss))
    return states, losses


def run_reference(case: Case, setting: ref.Setting) -> tuple[list[ref.Values], list[float]]:
    """The same from the engine's first parameters."""
    state = ref.first_state(setting, *read(run_engine(case)[0][0]))
    states = [flatten(state.server, state.private)]
    losses = []
    for clients in draw_cohorts(rated=case.loss == "mse", cohort=case.cohort):
        state, loss = ref.run_round(setting, state, clients)
        states.append(flatten(state.server, state.private))
        losses.append(loss)
    return states, losses


def allowance(case: Case) -> tuple[float, float]:
    """Tolerance and ulps of a case; see the top of this file."""
    if case.local == "adam":
        return ADAM_TOLERANCE, ULPS
    return TOLERANCE, ADAPTIVE_RATE / servers.TAU if case.server in ADAPTIVE else ULPS


def deviations(
    got: ref.Values, wanted: ref.Values, start: ref.Values, allowed: tuple[float, float]
) -> dict[str, float]:
    """Of each leaf, the largest difference as a share of what is allowed."""
    tolerance, ulps = allowed
    result = {}
    for name, array in wanted.items():
        slack = ulps * np.finfo(np.float32).eps * np.abs(array).max()
        moved = np.abs(array - start[name]).max()
        result[name] = float(np.abs(got[name] - array).max() / (tolerance * moved + slack))
    return result


def compare(case: Case, setting: ref.Setting) -> list[dict[str, float]]:
    """The deviations of every leaf and of the loss after every round; none above 1 means agreement."""
    states, losses = run_engine(case)
    wanted_states, wanted_losses = run_reference(case, setting)
    allowed = allowance(case)
    rounds = []
    for round_ in range(ROUNDS):
        got = flatten(*read(states[round_ + 1]))
        apart = deviations(got, wanted_states[round_ + 1], wanted_states[0], allowed)
        rounds.append(apart | {"loss": abs(losses[round_] / wanted_losses[round_] - 1) / allowed[0]})
    return rounds


def check(case: Case) -> None:
    """Require that engine and reference agree after every round."""
    rounds = compare(case, make_setting(case))
    assert all(max(apart.values()) <= 1 for apart in rounds), rounds


@pytest.mark.parametrize(("loss", "epochs"), crossed(list(OBJECTIVES), [1, 3]))
def test_each_loss_equals_the_reference(loss, epochs):
    """Analytic gradients of the three losses, once and three times over the data."""
    check(Case(loss, epochs))


def test_a_model_without_item_biases_equals_the_reference():
    check(Case("bce", item_bias=False))


@pytest.mark.parametrize(
    "local", sampled(LOCALS, ["momentum", "adam"], "sgd has no state, adagrad one as adam")
)
def test_each_local_optimizer_equals_the_reference(local):
    """Dense training of a client's rows: momentum and Adam move rows of the other batches too."""
    check(Case(local=local))


@pytest.mark.parametrize("local", sampled(["sgd", "momentum"], ["momentum"], "sgd has no state"))
def test_fedprox_equals_the_reference(local):
    """The pull acts on shared leaves and on every touched row, in every step."""
    check(Case(local=local, prox=MU))


@pytest.mark.parametrize("aggregator", AGGREGATES)
def test_each_aggregator_equals_the_reference(aggregator):
    check(Case(aggregator=aggregator))


@pytest.mark.parametrize("server", RULES)
def test_each_server_rule_equals_the_reference(server):
    check(Case(server=server))


@pytest.mark.parametrize("lanes", sampled([1, 3, 12], [1, 12], "three lanes are those of all other cases"))
def test_any_number_of_lanes_equals_the_reference(lanes):
    """Nine clients on one lane, on three by continuous batching, and all abreast with lanes to spare."""
    check(Case(local="momentum", lanes=lanes))


def test_the_server_adds_the_sum_of_the_updates_to_the_letter():
    """M(t+1) = M(t) + a * sum_i delta_i, every round from the engine's own M(t)."""
    case = Case()
    states, _ = run_engine(case)
    setting = make_setting(case)
    for round_, cohort in enumerate(draw_cohorts(rated=True)):
        start, private = read(states[round_])
        clients = [client for client in cohort if client.ratings]
        _, sent, _ = ref.train_cohort(setting, ref.first_state(setting, start, private), clients)
        wanted = {name: start[name] + SERVER_RATE * sum(delta[name] for delta in sent) for name in start}
        got, _ = read(states[round_ + 1])
        assert max(deviations(got, wanted, start, (TOLERANCE, ULPS)).values()) <= 1


def resting(optimizer: ref.Optimizer) -> ref.Optimizer:
    """A wrong optimizer: it leaves a coordinate, and its memory, alone while its gradient is 0."""

    def step(grad: np.ndarray, memory: Any) -> tuple[np.ndarray, Any]:
        update, new = optimizer.step(grad, memory)
        keep = grad != 0
        return np.where(keep, update, 0.0), jax.tree.map(lambda a, b: np.where(keep, a, b), new, memory)

    return optimizer._replace(step=step)


SLIPS: dict[str, tuple[Case, dict[str, Any]]] = {
    "momentum forgets the rows of other batches": (
        Case(local="momentum"),
        {"local": resting(ref.momentum(RATE))},
    ),
    "Adam forgets the rows of other batches": (Case(local="adam"), {"local": resting(ref.adam(RATE))}),
    "the regularisation is a little off": (Case(), {"regularisation": 1.01 * REGULARISATION}),
    "an epoch too few": (Case(), {"epochs": 1}),
    "rows are averaged over everybody": (Case(aggregator="touchers"), {"aggregate": ref.mean}),
    "clients weigh the same": (Case(aggregator="examples"), {"aggregate": ref.mean}),
    "FedYogi is FedAdam": (Case(server="fedyogi"), {"server": ref.fedadam(ADAPTIVE_RATE)}),
    "FedAdam corrects its bias": (
        Case(server="fedadam"),
        {"server": ref.adam(ADAPTIVE_RATE, b2=0.99, tau=servers.TAU)},
    ),
    "FedAdagrad's tau is off": (
        Case(server="fedadagrad"),
        {"server": ref.fedadagrad(ADAPTIVE_RATE, tau=1.1 * servers.TAU)},
    ),
}


@pytest.mark.parametrize("slip", SLIPS)
def test_the_comparison_notices_a_slip(slip):
    """A reference that is wrong in one place disagrees, by at least ten times what is allowed."""
    case, change = SLIPS[slip]
    rounds = compare(case, make_setting(case)._replace(**change))
    assert max(max(apart.values()) for apart in rounds) > 10


def test_the_comparison_notices_a_pull_on_visited_rows_only(monkeypatch):
    """FedProx pulls back every row that the client has moved, in every step."""
    pull_back = ref.pull_back

    def partly(grads: ref.Values, *rest: Any) -> ref.Values:
        return {name: np.where(grads[name] != 0, pull, 0.0) for name, pull in pull_back(grads, *rest).items()}

    monkeypatch.setattr(ref, "pull_back", partly)
    case = Case(prox=MU)
    assert max(max(apart.values()) for apart in compare(case, make_setting(case))) > 10
