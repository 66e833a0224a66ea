"""Federated EASE against plain numpy and against the central module: after one round, no price of federation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.fedease import _closed_form, weigh
from fedjax_rec.client.keys import stream
from fedjax_rec.evaluation.central.ease import fit_ease
from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.evaluation.summary import result_metrics
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.server.aggregators import fixed_point, total
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.types import Server
from tests.references.fedease import default_ridge, histories, weights_of

EQUAL = 1e-5  # of the largest number of an array


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
    state = algorithm.init(jax.random.key(0), population)
    step = jax.jit(algorithm.round)
    for _ in range(2):
        state, info = step(jax.random.key(0), state, population)
    table = histories(population)
    scores = table @ weights_of(table.T @ table, default_ridge(table.sum(), table.any(axis=1).sum()))
    assert apart(state.private["scores"], scores) < EQUAL
    errors = (1 - scores)[table > 0] ** 2
    assert float(info.loss) == pytest.approx(errors.mean(), rel=1e-4)
    assert float(info.examples) == len(errors)


def test_equals_central_ease():
    """The same weights as the central module's, and the same ranks."""
    split = fr.leave_one_out(fr.data.synthetic(300, 150, seed=1))
    population = fr.population_of(split)
    algorithm = fr.fedease()
    state = run(algorithm, population, rounds=1)
    central = fit_ease(split)
    assert apart(state.server.tables["weight"], np.asarray(central.params.weights)) < EQUAL
    ours = result_metrics(fr.make_evaluator(algorithm, split)(state), split)
    theirs = result_metrics(make_ranker(split, central.score_block)(central.params), split)
    assert ours["full"] == pytest.approx(theirs["full"], rel=1e-3)


@pytest.mark.parametrize("memory", [0.0, 0.75])
def test_partial_participation_equals_running_sums(memory):
    """The server's matrix is that of the cohort, or the running sum of all cohorts."""
    population = tiny_population()
    key = jax.random.key(3)
    algorithm = fr.fedease(memory=memory, cohort=9)
    state = algorithm.init(key, population)
    step = jax.jit(algorithm.round)
    table = histories(population)
    pairs, clients = 0.0, 0.0
    for round_ in range(3):
        ids, _ = uniform(9)(jax.random.fold_in(stream(key, "cohort"), round_), population.num_clients)
        cohort = table[np.asarray(ids)]
        pairs = memory * pairs + cohort.T @ cohort
        clients = memory * clients + cohort.any(axis=1).sum()  # who has no event takes no part
        state, _ = step(key, state, population)
        wanted = weights_of(pairs, default_ridge(np.trace(pairs), clients))
        assert apart(state.server.tables["weight"], wanted) < EQUAL
        assert float(state.server.shared["clients"]) == pytest.approx(clients)


def test_secure_sums_change_no_bit():
    """Sums of whole numbers in fixed point are exact: the weights are those of float sums."""
    population = tiny_population()
    rule = fixed_point(total(), capacity=24)
    plain = fr.fedease()
    secure = fr.fedease(aggregator=rule)
    weights = [run(a, population, rounds=1).server.tables["weight"] for a in (plain, secure)]
    assert (weights[0] == weights[1]).all()


def test_a_round_of_nobody_changes_nothing():
    """There is nothing to invert, and nothing is."""
    population = tiny_population()
    algorithm = fr.fedease(sampler=fixed([0, 1], [False, False]))
    state = run(algorithm, population, rounds=1)
    assert not np.asarray(state.server.tables["weight"]).any()


@pytest.mark.thorough("a figure of a whole real set; on small data it equals central EASE")
def test_no_price_of_federation_on_ml_100k(shared_data):
    """The central baseline's numbers on real data."""
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    algorithm = fr.fedease(regularisation=20.0)
    state = run(algorithm, fr.population_of(split), rounds=1)
    central = fit_ease(split, regularisation=20.0)
    ours = result_metrics(fr.make_evaluator(algorithm, split)(state), split)
    theirs = result_metrics(make_ranker(split, central.score_block)(central.params), split)
    assert ours["full"]["ndcg@10"] == pytest.approx(theirs["full"]["ndcg@10"], rel=2e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"regularisation": 0.0}, "regularisation must be a finite number above 0, not 0.0"),
        ({"memory": 1.0}, "memory must be at least 0 and below 1, not 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"aggregator": "touchers"}, "use aggregator sum"),
        ({"aggregator": "change"}, "use aggregator sum"),
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


def test_rounds_that_repeat_are_left_out(tmp_path):
    """With everybody a second round is the first again: it stops and says so; a cohort or memory do not."""
    split = fr.leave_one_out(fr.data.synthetic(30, 60), num_candidates=5)
    clients = fr.population_of(split)
    algorithm = fr.fedease()
    checkpoint = Checkpoints(tmp_path / "kept", every=1)
    once, history = fr.simulate(algorithm, clients, rounds=1, eval_every=1, checkpoint=checkpoint)
    assert history.stopped == "rounds"
    _, history = fr.simulate(algorithm, clients, rounds=9, eval_every=1, checkpoint=checkpoint)
    assert (history.stopped, len(history.rounds.loss)) == ("repeats", 1)  # it goes on, and is done

    # a state may be of other data: there is one round to do, which here is the same again
    again, history = fr.simulate(algorithm, clients, rounds=100, state=once)
    assert (history.stopped, int(again.round)) == ("repeats", 2)
    straight, _ = fr.simulate(algorithm, clients, rounds=1)
    assert_close(again.server, straight.server, "the same again", 0)

    for settings in ({"cohort": 5}, {"memory": 0.5}, {"faults": fr.Faults(drop_out=0.5)}):
        assert not fr.fedease(**settings).repeats
    assert fr.sweep(fr.fedease, split, {"regularisation": [0.5]}, rounds=100).rounds == 1


@pytest.mark.parametrize("count", [-3.0, 0.01, np.nan])
def test_a_count_that_noise_has_spoilt_is_held_to_what_is_possible(count):
    """A client has I events at most, so that there are M / I clients or more."""
    pairs = jnp.array([[3.0, 1.0, 0.0], [1.0, 3.0, 1.0], [0.0, 1.0, 2.0]])
    server = Server({"clients": jnp.float32(0)}, {"weight": jnp.zeros((3, 3))})
    updates = Server({"clients": -jnp.float32(count)}, {"pairs": -pairs})
    new, _ = _closed_form(None, 0.0).update(updates, (), server)
    assert apart(new.tables["weight"], weights_of(np.asarray(pairs), default_ridge(8.0, 8.0 / 3))) < EQUAL
    assert float(new.shared["clients"]) == pytest.approx(8.0 / 3)
