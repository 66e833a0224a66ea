"""Federated EASE against plain numpy and against the central module: after one round, no price of federation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.aggregators import fixed_point, total
from fedjax_rec.algorithms.fedease import weigh
from fedjax_rec.clients import stream
from fedjax_rec.evaluation.central.ease import default_regularisation, fit_ease
from fedjax_rec.evaluation.measure import measure
from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.samplers import uniform
from fedjax_rec.testing import fixed, run, tiny_population

EQUAL = 1e-5  # of the largest number of an array


def histories(population):
    """bool[N, I], X."""
    counts = np.diff(np.asarray(population.offsets))
    table = np.zeros((population.num_clients, population.num_items))
    table[np.repeat(np.arange(len(counts)), counts), np.asarray(population.examples["items"])] = 1
    return table


def weights_of(pairs, strength):
    """EASE in float64, column by column as a regression without the item itself: not by its closed form."""
    size, ridge = len(pairs), strength * np.sqrt(np.trace(pairs))
    weights = np.zeros((size, size))
    for item in range(size):
        others = np.arange(size) != item
        left = pairs[np.ix_(others, others)] + ridge * np.eye(size - 1)
        weights[others, item] = np.linalg.solve(left, pairs[others, item])
    return weights


def apart(got, wanted):
    """Largest difference, relative to the largest number."""
    return np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize("settings", [{}, {"batch_size": 1, "lanes": 1}, {"batch_size": 64, "lanes": 5}])
def test_one_round_equals_the_regressions(settings):
    """The closed form on sums over clients solves Steck's problem, however the clients are batched."""
    population = tiny_population()
    state = run(fr.fedease(regularisation=0.7, **settings), population, rounds=1)
    table = histories(population)
    assert apart(state.server.tables["weight"], weights_of(table.T @ table, 0.7)) < EQUAL
    assert not np.diagonal(state.server.tables["weight"]).any()


def test_a_client_scores_with_its_own_rows_alone():
    """In the second round it has downloaded the first's weights, and its loss is its error on its own items."""
    population = tiny_population()
    algorithm = fr.fedease()
    state, step = algorithm.init(jax.random.key(0), population), jax.jit(algorithm.round)
    for _ in range(2):
        state, info = step(jax.random.key(0), state, population)
    table = histories(population)
    scores = table @ weights_of(table.T @ table, 1.0)
    assert apart(state.private["scores"], scores) < EQUAL
    errors = (1 - scores)[table > 0] ** 2
    assert float(info.loss) == pytest.approx(errors.mean(), rel=1e-4)
    assert float(info.examples) == len(errors)


def test_equals_central_ease():
    """The same weights as the central module's, and the same ranks."""
    split = fr.leave_one_out(fr.synthetic(300, 150, seed=1))
    population, algorithm = fr.population_of(split), fr.fedease()
    state = run(algorithm, population, rounds=1)
    chosen = np.sqrt(len(split.items))
    central = fit_ease(split, regularisation=chosen)
    assert default_regularisation(split) == pytest.approx(chosen, abs=0.5)
    assert apart(state.server.tables["weight"], np.asarray(central.params.weights)) < EQUAL
    ours = measure(fr.make_evaluator(algorithm, split)(state), split)
    theirs = measure(make_ranker(split, central.score_block)(central.params), split)
    assert ours["full"] == pytest.approx(theirs["full"], rel=1e-3)


@pytest.mark.parametrize("memory", [0.0, 0.75])
def test_partial_participation_equals_running_sums(memory):
    """The server's matrix is that of the cohort, or the running sum of all cohorts."""
    population, key = tiny_population(), jax.random.key(3)
    algorithm = fr.fedease(memory=memory, cohort=9)
    state, step = algorithm.init(key, population), jax.jit(algorithm.round)
    table, pairs = histories(population), 0.0
    for turn in range(3):
        ids, _ = uniform(9)(jax.random.fold_in(stream(key, "cohort"), turn), population.num_clients)
        cohort = table[np.asarray(ids)]
        pairs = memory * pairs + cohort.T @ cohort
        state, _ = step(key, state, population)
        assert apart(state.server.tables["weight"], weights_of(pairs, 1.0)) < EQUAL


def test_secure_sums_change_no_bit():
    """Sums of whole numbers in fixed point are exact: the weights are those of float sums."""
    population = tiny_population()
    rule = fixed_point(total(), capacity=24)
    plain, secure = fr.fedease(), fr.fedease(aggregator=rule)
    weights = [run(a, population, rounds=1).server.tables["weight"] for a in (plain, secure)]
    assert (weights[0] == weights[1]).all()


def test_a_round_of_nobody_changes_nothing():
    """There is nothing to invert, and nothing is."""
    population = tiny_population()
    algorithm = fr.fedease(sampler=fixed([0, 1], [False, False]))
    state = run(algorithm, population, rounds=1)
    assert not np.asarray(state.server.tables["weight"]).any()


def test_no_price_of_federation_on_ml_100k(shared_data):
    """The central baseline's numbers on real data."""
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    algorithm = fr.fedease(regularisation=0.8)
    state = run(algorithm, fr.population_of(split), rounds=1)
    central = fit_ease(split, regularisation=0.8 * len(split.items) ** 0.5)
    ours = measure(fr.make_evaluator(algorithm, split)(state), split)
    theirs = measure(make_ranker(split, central.score_block)(central.params), split)
    assert ours["full"]["ndcg@10"] == pytest.approx(theirs["full"]["ndcg@10"], rel=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularisation": 0.0}, "regularisation must be a finite number above 0, not 0.0"),
        ({"memory": 1.0}, "memory must be at least 0 and below 1, not 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"aggregator": "touchers"}, "use --aggregator sum"),
        ({"aggregator": "change"}, "use --aggregator sum"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=message):
        fr.fedease(**settings)


def test_an_item_that_nobody_has_gets_no_weight():
    """Its row and column are 0 whatever the others are."""
    pairs = jnp.array([[2.0, 1.0, 0.0], [1.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    weights = np.asarray(weigh(pairs, jnp.float32(1.0)))
    assert not weights[2].any()
    assert not weights[:, 2].any()
