"""`fedtwotower` against the numpy reference and against its central twin."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.algorithms.fedtwotower import fedtwotower
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.federation.federate import client_update
from fedjax_rec.rows.tables import read_rows
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.testing import assert_close, tiny_population
from tests.references import pooled as ref
from tests.references.pooled_rounds import KEY, QUICK, deviation, draw, run_library, run_reference

RATE = 0.02
STRENGTH = 0.05
SPREADOUT = 0.01
BATCH = 10
SETTINGS: dict[str, Any] = {
    "dim": 3,
    "hidden": 4,
    "batch_size": BATCH,
    "learning_rate": RATE,
    "regularisation": STRENGTH,
}
SETTINGS |= {"spreadout": SPREADOUT}
NAMES = {"W": ("inner", "weights"), "b": ("inner", "bias"), "V": ("outer", "weights"), "c": ("outer", "bias")}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def read(state):
    """The engine's leaves under the reference's names, in float64."""
    tables = state.server.tables
    shared = state.server.shared
    server = {"item": np.asarray(tables["vector"], float), "item_bias": np.asarray(tables["bias"], float)}
    server |= {name: np.asarray(shared[layer][leaf], float) for name, (layer, leaf) in NAMES.items()}
    return server, [{} for _ in range(state.private["pooled"].shape[0])]


def setting(**changes):
    base = ref.Setting(ref.tower, RATE, 1.0, STRENGTH, SPREADOUT, epochs=2, averaged=tuple(NAMES))
    return base._replace(**changes)


@pytest.fixture(scope="module")
def algorithm():
    return fedtwotower(**SETTINGS, local_epochs=2, sampler=everyone(), lanes=5)


@pytest.fixture(scope="module")
def found(algorithm, population):
    """Two rounds of all clients, two exact steps each."""
    return run_library(algorithm, population, read)


def test_equals_the_reference(algorithm, population, found):
    """Every leaf after every round, and the loss, to 1e-5."""
    assert deviation(found, run_reference(algorithm, population, read, setting())) < 1e-5


SLIPS = ({"through_history": False}, {"spreadout": 0.0}, {"power": 0.5}, {"averaged": ()})


@pytest.mark.parametrize("slip", SLIPS, ids=("history", "spreadout", "power", "averaged"))
def test_a_wrong_reference_disagrees(algorithm, population, found, slip):
    """No gradient through the history, vectors not spread out, another pooling, a summed tower."""
    wrong = run_reference(algorithm, population, read, setting(**slip), rounds=1)
    assert deviation(found[:1], wrong) > 1e-3


def central_loss(server, positives, batches):
    """The whole client's loss, as one would write it without any client: differentiated by jax."""
    q = server.tables["vector"]
    b = server.tables["bias"]
    tower = server.shared
    h = q[jnp.array(positives)].mean(0)
    items = jnp.array([i for ids in batches for i in ids])
    inner = jax.nn.relu(h @ tower["inner"]["weights"] + tower["inner"]["bias"])
    score = q[items] @ (h + inner @ tower["outer"]["weights"] + tower["outer"]["bias"]) + b[items]
    loss = jnp.logaddexp(0.0, score) - jnp.isin(items, jnp.array(positives)) * score
    value = (loss + STRENGTH / 2 * ((q[items] ** 2).sum(1) + b[items] ** 2)).sum()
    for ids in batches:
        products = q[jnp.array(ids)] @ q[jnp.array(ids)].T
        value += SPREADOUT / 2 * ((products**2).sum() - (jnp.diag(products) ** 2).sum())
    return value


def test_equals_the_central_twin(population):
    """A client's update is a gradient step on the plain loss of its whole data."""
    algorithm = fedtwotower(**SETTINGS, cohort=1)
    key = jax.random.key(KEY)
    state = algorithm.init(key, population)
    client = int(np.diff(np.asarray(population.offsets)).argmax())
    positives, batches = draw(algorithm, population, 0)[client]

    def loss(server):
        return central_loss(server, positives, batches)

    grads = jax.jit(jax.grad(loss), compiler_options=QUICK)(state.server)
    update = client_update(algorithm, key, state, population, client)
    assert update.ids.tolist() == sorted([i for ids in batches for i in ids])
    assert_close(update.shared, jax.tree.map(lambda g: -RATE * g, grads.shared), "the tower", 2e-5)
    wanted = read_rows(jax.tree.map(lambda g: -RATE * g, grads.tables), update.ids)
    assert_close(update.rows, wanted, "rows", 2e-5)  # a delta carries the rounding of its row


def test_scored_by_history_and_model_alone(population):
    """Whatever the private store holds, a client's scores are a function of its history and the server's model."""
    algorithm = fedtwotower(**SETTINGS)
    state = algorithm.init(jax.random.key(KEY), population)
    point = server_parameters(algorithm, population)
    users = jnp.arange(population.num_clients)
    other = state._replace(private=jax.tree.map(lambda x: x + 1.0, state.private))
    has_data = np.diff(np.asarray(population.offsets)) > 0
    one, two = (np.asarray(point.score(point.prepare(s), users))[has_data] for s in (state, other))
    np.testing.assert_array_equal(one, two)
    server, _ = read(state)
    offsets = np.asarray(population.offsets)
    items = np.asarray(population.examples["items"])
    for row, n in zip(one, np.flatnonzero(has_data), strict=True):
        user, _ = ref.tower(server, server["item"][items[offsets[n] : offsets[n + 1]]].mean(0))
        np.testing.assert_allclose(row, server["item"] @ user + server["item_bias"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{"hidden": 0}, {"spreadout": -1.0}, {"local_epochs": 0}])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match="must be at least"):
        fedtwotower(**changes)
