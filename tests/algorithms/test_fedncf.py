"""FedNCF against a numpy reference of its rounds, and against its central twin."""

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.fedncf import TOWERS, _score
from fedjax_rec.client.keys import stream
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.testing import fixed, tiny_population
from fedjax_rec.types import Params
from tests.crosses import sampled
from tests.references import rounds as ref
from tests.references.networks import neural_factorisation

KEY = jax.random.key(7)
ROUNDS = 3
RATE = 0.05
REGULARISATION = 0.02
COHORT = (0, 5, 3, 7, 11, 2)  # client 3 has no data
SETTING = ref.Setting(neural_factorisation, RATE, epochs=2, regularisation=REGULARISATION, scale=(1.0, 0.5))


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _make(architecture, aggregator, sampler=fixed(COHORT), epochs=2, prox=0.0):  # noqa: B008 - a constant
    return fr.fedncf(
        architecture=architecture,
        dim=6,
        layers=3 if architecture == "gmf" else 2,  # the default, where there is no tower
        num_negatives=2,
        batch_size=9,
        local_epochs=epochs,
        learning_rate=RATE,
        network_scale=0.5,
        regularisation=REGULARISATION,
        prox=prox,
        aggregator=aggregator,
        sampler=sampler,
        lanes=3,
    )


def _worst(population, architecture, aggregator, aggregate, setting=SETTING):
    algorithm = _make(architecture, aggregator, prox=setting.prox)
    states = ref.run_engine(algorithm, population, KEY, ROUNDS)
    start = values = ref.read(states[0])
    apart = []
    for round_, state in enumerate(states[1:]):
        cohort = ref.draw(algorithm, population, KEY, round_, COHORT, positives=3)
        values = ref.run_round(setting, *values, cohort, aggregate)
        apart.append(ref.deviation(ref.read(state), values, start))
    return max(apart)


@pytest.mark.parametrize("architecture", sampled(TOWERS, ["neumf"], "it is made of both others"))
def test_rounds_equal_the_reference(architecture, population):
    """MF-FedAvg, two local epochs: every leaf, after every round."""
    assert _worst(population, architecture, "touchers", ref.touchers) <= 1


def test_averaging_over_all_participants_equals_the_reference(population):
    """The other normalisation."""
    assert _worst(population, "neumf", "mean", ref.mean) <= 1


def test_the_pull_equals_the_reference(population):
    """FedProx's mu is of the objective, so that a leaf's scale acts on the pull as on the loss."""
    assert _worst(population, "mlp", "touchers", ref.touchers, SETTING._replace(prox=0.5)) <= 1


@pytest.mark.parametrize(
    ("aggregate", "change"),
    [
        (ref.mean, {}),
        (ref.touchers, {"regularisation": 1.01 * REGULARISATION}),
        (ref.touchers, {"epochs": 1}),
    ],
)
def test_a_wrong_reference_disagrees(aggregate, change, population):
    """Rows averaged over everybody, L2 a little off, an epoch too few."""
    assert _worst(population, "neumf", "touchers", aggregate, SETTING._replace(**change)) > 10


def test_one_client_at_a_time_is_central_training(population):
    """With one client a round and a plain sum, the rounds are central SGD on the clients' examples in turn."""
    algorithm = _make("neumf", "sum", uniform(1), epochs=1)
    states = ref.run_engine(algorithm, population, KEY, 5)
    shared, tables, users = start = ref.read(states[0])
    users = list(users)
    seen = set()
    for round_ in range(5):
        ids, _ = uniform(1)(jax.random.fold_in(stream(KEY, "cohort"), round_), population.num_clients)
        (client,) = ref.draw(algorithm, population, KEY, round_, ids.tolist(), positives=3)
        seen.add(client.id)
        for batch in client.batches:  # one model, no copies
            values = (users[client.id], shared, tables)
            grads = ref.regularised(SETTING, *values, batch)
            grads = grads[0], ref.combine(lambda g: 0.5 * g, grads[1]), grads[2]
            users[client.id], shared, tables = ref.combine(lambda w, g: w - RATE * g, values, grads)
    assert len(seen) > 3
    assert ref.deviation(ref.read(states[-1]), (shared, tables, users), start) <= 1


def test_scores_are_the_training_logits(population):
    """Scoring all items and training see the same network: a score is what the reference's forward pass gives."""
    algorithm = _make("mlp", "mean")
    state = ref.run_engine(algorithm, population, KEY, 1)[-1]
    shared, tables, users = ref.read(state)
    got = algorithm.score(jax.tree.map(lambda p: p[2], state.private), state.server)
    for item in (0, 17):
        x = np.concatenate([users[2]["mlp"], tables["mlp"][item]])
        for layer in shared["tower"]:
            x = np.maximum(x @ layer["weights"] + layer["bias"], 0)
        assert float(got[item]) == pytest.approx(
            float(x @ shared["output"]["weights"][:, 0] + shared["output"]["bias"][0]), rel=1e-5
        )


def test_unknown_architecture_is_refused():
    with pytest.raises(ValueError, match=r"unknown architecture 'ncf'; choose one of gmf, mlp, neumf"):
        fr.fedncf(architecture="ncf")


@pytest.mark.parametrize("architecture", ["gmf", "mlp", "neumf"])
def test_the_catalogue_is_scored_as_pairs_are(architecture):
    """By factors: the items' part of the first layer is the same for all users."""
    algorithm = fr.fedncf(architecture=architecture, dim=6, layers=1 if architecture == "mlp" else 3)
    state = algorithm.init(jax.random.key(0), tiny_population())
    server = jax.tree.map(lambda x: x + 0.1, state.server)  # biases are not 0
    private = jax.tree.map(lambda p: p[5], state.private)
    pairs = _score(Params(private, server.shared, server.tables))
    assert algorithm.score is not None
    np.testing.assert_allclose(algorithm.score(private, server), pairs, rtol=1e-5, atol=1e-6)
