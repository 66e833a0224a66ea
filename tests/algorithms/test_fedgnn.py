"""`fedgnn` against the numpy reference, against its central twin, and what it promises of its batches."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.algorithms.fedgnn import fedgnn
from fedjax_rec.client.batches import with_negatives
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.federation.federate import client_update
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.testing import assert_close, tiny_population
from tests.references import pooled as ref
from tests.references.pooled_rounds import KEY, QUICK, deviation, draw, run_library, run_reference

RATE = 0.02
STRENGTH = 0.05
MIX = 0.4
POWER = 0.5
SETTINGS: dict[str, Any] = {
    "dim": 3,
    "batch_size": 10,
    "learning_rate": RATE,
    "regularisation": STRENGTH,
    "mix": MIX,
    "init_scale": 1.0,
}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def read(state):
    """The engine's leaves under the reference's names, in float64."""
    tables = state.server.tables
    server = {"item": np.asarray(tables["vector"], float), "item_bias": np.asarray(tables["bias"], float)}
    return server, [{"user": row} for row in np.asarray(state.private["vector"], float)]


def setting(**changes):
    return ref.Setting(ref.mixed(MIX), RATE, POWER, STRENGTH, epochs=2)._replace(**changes)


@pytest.fixture(scope="module")
def algorithm():
    return fedgnn(**SETTINGS, local_epochs=2, sampler=everyone(), lanes=5)


@pytest.fixture(scope="module")
def found(algorithm, population):
    """Two rounds of all clients, two exact steps each."""
    return run_library(algorithm, population, read)


def test_equals_the_reference(algorithm, population, found):
    """Every leaf after every round, and the loss, to 1e-5."""
    assert deviation(found, run_reference(algorithm, population, read, setting())) < 1e-5


SLIPS = ({"through_history": False}, {"encode": ref.mixed(MIX + 0.01)}, {"power": 1.0}, {"epochs": 1})


@pytest.mark.parametrize("slip", SLIPS, ids=("history", "mix", "power", "epochs"))
def test_a_wrong_reference_disagrees(algorithm, population, found, slip):
    """No gradient through the history, another mix, another pooling, a step too few."""
    wrong = run_reference(algorithm, population, read, setting(**slip), rounds=1)
    assert deviation(found[:1], wrong) > 1e-3


def central_loss(params, positives, items):
    """The whole client's loss, as one would write it without any client: differentiated by jax."""
    p, q, b = params
    h = q[positives].sum(0) / len(positives) ** POWER
    score = q[items] @ ((1 - MIX) * p + MIX * h) + b[items]
    label = jnp.isin(items, positives).astype(jnp.float32)
    loss = jnp.logaddexp(0.0, score) - label * score
    return (loss + STRENGTH / 2 * ((q[items] ** 2).sum(1) + b[items] ** 2 + (p**2).sum())).sum()


def test_equals_the_central_twin(population):
    """A cohort of one client moves the tables by a gradient step on the plain loss of that client's whole data."""
    algorithm = fedgnn(**SETTINGS, cohort=1)
    key = jax.random.key(KEY)
    state = algorithm.init(key, population)
    after = jax.jit(algorithm.round, compiler_options=QUICK)(key, state, population)[0]
    moved = np.flatnonzero(
        (np.asarray(after.private["vector"]) != np.asarray(state.private["vector"])).any(1)
    )
    assert len(moved) == 1, "others than the one client have changed"
    positives, batches = draw(algorithm, population, 0)[moved[0]]
    before = (state.private["vector"][moved[0]], *(state.server.tables[name] for name in ("vector", "bias")))
    grads = jax.jit(jax.grad(central_loss))(
        before, jnp.array(positives), jnp.array([i for ids in batches for i in ids])
    )
    wanted = jax.tree.map(lambda x, g: x - RATE * g, before, grads)
    found = (after.private["vector"][moved[0]], *(after.server.tables[name] for name in ("vector", "bias")))
    assert_close(found, wanted, "one client's step")
    update = client_update(algorithm, key, state, population, int(moved[0]))
    assert sorted([i for ids in batches for i in ids]) == update.ids.tolist()


def test_batches_are_invisible(population):
    """How a client's data is cut changes nothing: a local step is exact."""
    key = jax.random.key(KEY)
    states = []
    for batch_size in (5, 50):
        algorithm = fedgnn(**(SETTINGS | {"batch_size": batch_size}), local_epochs=2, sampler=everyone())
        states.append(
            jax.jit(algorithm.round, compiler_options=QUICK)(
                key, algorithm.init(key, population), population
            )[0]
        )
    assert_close(states[1].server, states[0].server, "tables by batch size")
    assert_close(states[1].private, states[0].private, "private leaves by batch size")


def test_without_a_history_it_is_matrix_factorisation(population):
    """mix=0 scores p_u . q_i + b_i, whatever the client has pooled."""
    algorithm = fedgnn(**(SETTINGS | {"mix": 0.0}))
    state = algorithm.init(jax.random.key(KEY), population)
    private = {"vector": jnp.array([1.0, 2.0, 3.0]), "pooled": jnp.full(3, 9.0)}
    wanted = state.server.tables["vector"] @ private["vector"]
    assert algorithm.score is not None
    assert_close(algorithm.score(private, state.server), wanted, "scores")


def test_scored_by_the_current_rows(population):
    """Before it is scored a client pools the server's rows, not those of the round it last took part in."""
    algorithm = fedgnn(**SETTINGS)
    state = algorithm.init(jax.random.key(KEY), population)
    scores = server_parameters(algorithm, population)
    users = jnp.arange(population.num_clients)
    got = np.asarray(scores.score(scores.prepare(state), users), np.float64)
    server, private = read(state)
    for n in users.tolist():
        own = np.asarray(population.examples["items"])[population.offsets[n] : population.offsets[n + 1]]
        h = server["item"][own].sum(0) / max(len(own), 1) ** POWER
        wanted = server["item"] @ ((1 - MIX) * private[n]["user"] + MIX * h) + server["item_bias"]
        np.testing.assert_allclose(got[n], wanted, rtol=1e-5, atol=1e-6)


def test_negatives_are_those_of_every_algorithm(population):
    """The rows of a batch are those that `with_negatives` names."""
    algorithm = fedgnn(**SETTINGS)
    ours = draw(algorithm, population, 0)
    theirs = draw(
        algorithm._replace(work=algorithm.work._replace(batches=with_negatives(10, 4))), population, 0
    )
    assert ours == theirs


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mix": 1.5}, "mix must be between 0 and 1"),
        ({"dim": 0}, "dim"),
        ({"local_epochs": 0}, "local epochs"),
    ],
)
def test_bad_settings(changes, says):
    with pytest.raises(ValueError, match=says):
        fedgnn(**changes)
