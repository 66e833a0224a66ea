"""GPFedRec against its numpy reference, both kinds of neighbours, and the graph by itself."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.common.user_graph import Graph, neighbours
from fedjax_rec.engine.devices import multiply_in_shares
from fedjax_rec.testing import tiny_population
from tests.references import gpfedrec as ref
from tests.references.catalogue_rounds import double, play

SIZE = 8
SETTING = ref.Setting(epochs=2, rate=0.5, factor=8.0, pull=0.5, alike=True, threshold=1.0)
ULPS = 2.0  # of the table: changes are small beside it


def _make(setting: ref.Setting):
    """The library's side of a setting."""
    return fr.gpfedrec(
        dim=8,
        num_negatives=3,
        batch_size=SIZE,
        local_epochs=setting.epochs,
        learning_rate=setting.rate,
        item_factor=setting.factor,
        pull=setting.pull,
        neighbours="similar" if setting.alike else "dissimilar",
        threshold=setting.threshold,
        lanes=2,
    )


def _read(state) -> tuple[list[ref.Client], np.ndarray]:
    private = double(state.private)
    clients = []
    for n in range(len(private["user"])):
        layers = [(layer["weights"][n], layer["bias"][n]) for layer in private["layers"]]
        clients.append(ref.Client(private["user"][n], layers, private["near"][n]))
    return clients, double(state.server.tables["vector"])


@pytest.fixture(scope="module", params=[True, False], ids=["similar", "dissimilar"])
def played(request):
    """A setting, and the library's rounds with it."""
    setting = SETTING._replace(alike=request.param)
    return setting, play(_make(setting), SIZE)


def _differences(setting, played) -> list[float]:
    """Largest difference of any leaf after each round beyond rounding, relative to how far the table moved."""
    states, infos, drawn = played
    clients, table = _read(states[0])
    rounding = ULPS * np.abs(table).max() * np.finfo(np.float32).eps
    moved = np.abs(_read(states[-1])[1] - table).max()
    found = []
    for state, info, batches in zip(states[1:], infos, drawn, strict=True):
        clients, table, loss = ref.run_round(setting, clients, table, batches)
        others, other = _read(state)
        apart = [np.abs(table - other).max(), abs(loss - float(info.loss))]
        for one, two in zip(clients, others, strict=True):
            pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
            apart += [np.abs(a - b).max() for a, b in pairs]
        found.append((max(apart) - rounding) / moved)
    return found


def test_rounds_equal_the_reference(played):
    """All leaves and the loss; a client without data keeps what it has and is nobody's neighbour."""
    setting, rounds = played
    assert max(_differences(setting, rounds)) < 1e-5
    first, last = (_read(rounds[0][index])[0][3] for index in (0, -1))
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(last), strict=True)
    )


@pytest.mark.parametrize("wrong", [{"pull": 0.4}, {"factor": 8.1}, {"threshold": 0.0}, {"alike": None}])
def test_a_wrong_reference_disagrees(played, wrong):
    """The pull, the rates, the threshold and the kind of neighbours count."""
    setting, rounds = played
    wrong = {"alike": not setting.alike} if "alike" in wrong else wrong
    assert max(_differences(setting._replace(**wrong), rounds)) > 1e-3


def test_neighbours_of_three_kinds_of_clients():
    """Two alike, one apart: the two are similar to each other, and dissimilar to the one; the absent to none."""
    tables = jnp.array([[1.0, 0.0], [1.0, 0.1], [-1.0, 0.2], [1.0, 0.0]])
    sent = jnp.array([True, True, True, False])
    similar = neighbours(Graph(True, 1.0), tables, sent)
    expected = np.array([[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(similar, expected)
    dissimilar = neighbours(Graph(False, 1.0), tables, sent)
    expected = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [0.5, 0.5, 0, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(dissimilar, expected)


def test_the_graph_of_nearly_parallel_tables():
    """Tables that differ in their seventh digit have the graph of float64, bit for bit of its edges."""
    rng = np.random.default_rng(0)
    tables = (1 + rng.normal(0, 1e-4, (20, 200))).astype(np.float32)
    unit = tables / np.linalg.norm(tables.astype(np.float64), axis=1, keepdims=True)
    distance = 0.5 * np.square(unit[:, None] - unit[None]).sum(-1)
    assert distance.mean() < 1e-7
    close = distance < distance.mean()
    clear = np.abs(distance / distance.mean() - 1) > 0.02  # beyond the rounding of unit tables
    found = np.asarray(neighbours(Graph(True, 1.0), jnp.asarray(tables), jnp.ones(20, bool))) > 0
    assert clear.mean() > 0.5
    assert 0.1 < close[clear & ~np.eye(20, dtype=bool)].mean() < 0.9
    np.testing.assert_array_equal(found[clear], close[clear])


def test_refused_settings():
    """One line each."""
    with pytest.raises(ValueError, match="unknown neighbours 'near'; choose one of similar, dissimilar"):
        fr.gpfedrec(neighbours="near")
    with pytest.raises(ValueError, match="dim must be at least 4, not 2"):
        fr.gpfedrec(dim=2)


@pytest.mark.parametrize("devices", [1, 2])
def test_pairs_are_compared_once(devices):
    """The rule and what is sent back need the same graph: it is compiled once, and each device has its share."""
    data = tiny_population()
    key = jax.random.key(0)
    algorithm = fr.gpfedrec(dim=4, mesh=fr.client_mesh(devices))
    state = algorithm.init(key, data)
    program = jax.jit(algorithm.round).lower(key, state, data).compile().as_text() or ""
    clients = data.num_clients
    assert len(re.findall(rf"f32\[{clients // devices},{clients}\]\S* dot\(", program)) == 1


@pytest.mark.parametrize("rows", [1, 7, 8])
def test_rows_that_do_not_divide_over_the_devices(rows):
    """A product in parts is the product."""
    left, right = (jax.random.normal(jax.random.key(n), (rows if n else 5, 5)) for n in (1, 0))
    found = jax.jit(lambda a, b: multiply_in_shares(a, b, fr.client_mesh(3)))(left, right)
    np.testing.assert_allclose(found, left @ right, rtol=1e-5)
