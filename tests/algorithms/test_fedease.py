"""Federated EASE against plain numpy and against the central module: after one round, no price of federation."""

import signal
from dataclasses import replace
from functools import partial
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.common import histories as histories_of_clients
from fedjax_rec.algorithms.common.ease_weights import step_to_weights
from fedjax_rec.algorithms.common.histories import pack_history, sum_own_rows
from fedjax_rec.algorithms.fedease import _closed_form
from fedjax_rec.client.keys import stream
from fedjax_rec.engine import cohort as engine_cohort
from fedjax_rec.evaluation.central.ease import fit_ease
from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.evaluation.summary import result_metrics
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.runs.build import make_that_fits
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.settings import Settings
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.server.aggregators import fixed_point, total
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints, Paused
from fedjax_rec.types import Score, Server
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
    score = jax.vmap(cast("Score", algorithm.score), (0, None))
    assert apart(score(state.private, state.server), scores) < EQUAL
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
    weights = np.asarray(step_to_weights(pairs, jnp.diagonal(pairs), 1.0, jnp.zeros((3, 3))))
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


def test_a_client_keeps_its_history_as_bits_and_nothing_else():
    """Between rounds a client holds a bit an item, and no number for an item."""
    population = tiny_population(num_items=70)
    state = run(fr.fedease(), population, rounds=2)
    assert list(state.private) == ["history"]
    table = histories(population)
    words = np.asarray(state.private["history"])
    assert words.shape == (population.num_clients, 3)
    bits = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    assert (bits[:, :70] == table).all()
    assert not bits[:, 70:].any()


def test_rows_of_a_history_are_summed_for_one_and_for_many():
    """All bits of a word are found, and an empty history sums to 0."""
    rng = np.random.default_rng(0)
    own = rng.random((9, 100)) < np.linspace(0, 1, 9)[:, None]
    table = rng.integers(-9, 9, (100, 7)).astype(np.float32)
    words = jax.vmap(pack_history)(jnp.asarray(own))
    many = jax.jit(jax.vmap(sum_own_rows, (0, None)))(words, table)
    assert (np.asarray(many) == own @ table).all()
    assert (sum_own_rows(words[4], jnp.asarray(table)) == many[4]).all()


@pytest.mark.parametrize("settings", [{}, {"cohort": 9, "memory": 0.5}, {"aggregator": "mean"}])
def test_pairs_by_item_are_the_sent_rows_to_the_bit(settings, monkeypatch):
    """The sums of whole numbers do not tell which way they came about, whatever a tile holds."""
    population = tiny_population()
    monkeypatch.setattr(histories_of_clients, "TILE", 5)
    ways: list[bool] = []
    choose = engine_cohort.sums_item_by_item

    def note(*given):
        ways.append(choose(*given))
        return ways[-1]

    monkeypatch.setattr(engine_cohort, "sums_item_by_item", note)
    short = run(fr.fedease(**settings), population, rounds=2)
    assert ways
    assert all(ways)
    monkeypatch.setattr(engine_cohort, "sums_item_by_item", lambda *_: False)
    sent = run(fr.fedease(**settings), population, rounds=2)
    assert_close(short, sent, "sums item by item", 0)


def test_the_plan_of_forty_thousand_items_fits_a_machine_of_23_gib():
    """On paper: two tables of 6.4 GiB and little else; nothing of that size is made."""
    population = tiny_population(num_clients=4, num_items=41_488)
    plan = fr.fedease().plan(population)
    assert 2 * 4 * 41_488**2 < sum(plan.num_bytes.values()) < 20 * 2**30


@pytest.mark.parametrize("settings", [{}, {"regularisation": 20.0}])
def test_a_round_holds_two_tables(settings):
    """The old weights and the sum that becomes the new ones, as XLA lays it out; nothing is run."""
    population = tiny_population(num_clients=4, num_items=12_000)
    algorithm = fr.fedease(**settings)
    state = jax.eval_shape(algorithm.init, jax.random.key(0), population)
    program = jax.jit(partial(run_block, algorithm, 1), donate_argnums=1)
    memory = program.lower(jax.random.key(0), state, population, 1).compile().memory_analysis()
    assert memory is not None
    table = 4 * 12_000**2
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    needed = held - memory.alias_size_in_bytes
    assert needed < sum(algorithm.plan(population).num_bytes.values()) < 2.6 * table


def test_no_copy_is_kept_of_rounds_that_repeat():
    """The only round is the last one, whose state is the best: the plan counts one."""
    split = fr.leave_one_out(fr.data.synthetic(30, 60), num_candidates=5)
    _, history = fr.simulate(fr.fedease(), split, rounds=9, eval_every=1)
    assert "best" not in history.plan.num_bytes
    _, history = fr.simulate(fr.fedease(cohort=5), split, rounds=2, eval_every=1)
    assert "best" in history.plan.num_bytes


def test_no_clock_saves_the_one_round_of_a_run(tmp_path):
    """A checkpoint would be as large as the model, and nothing would go on from it; what is asked for is saved."""
    settings = Settings(dataset="synthetic", algorithm="fedease", rounds=3)
    run_experiment(settings, checkpoint=Checkpoints(tmp_path / "clock", minutes=0))
    assert not list(tmp_path.glob("clock/**/round-*"))
    run_experiment(settings, checkpoint=Checkpoints(tmp_path / "rounds", every=1))
    assert list(tmp_path.glob("rounds/**/round-*"))


def test_a_signal_saves_the_one_round_of_a_run(tmp_path):
    """Who is stopped goes on where it was, whatever the clock would not save."""

    def stop(_):
        signal.raise_signal(signal.SIGTERM)

    settings = Settings(dataset="synthetic", algorithm="fedease", rounds=3, refit=True)
    saved = Checkpoints(tmp_path / "saved", minutes=0)
    with pytest.raises(Paused):
        run_experiment(settings, checkpoint=saved, on_block=stop)
    assert list(tmp_path.glob("saved/**/round-*"))
    again = run_experiment(settings, checkpoint=saved, resume=None)
    assert again.history.selected_round == 1


def test_one_device_inverts(monkeypatch):
    """A run takes more where sums are the work, for every device would invert; what is asked for holds."""
    monkeypatch.setattr("fedjax_rec.runs.build.choose_devices", lambda *_: 2)
    few_items, many_items = (
        fr.population_of(fr.leave_one_out(fr.data.synthetic(30, items))) for items in (90, 2000)
    )
    settings = Settings(algorithm="fedease")
    found = [make_that_fits(settings, clients).plan(clients).devices for clients in (few_items, many_items)]
    assert found == [2, 1]
    asked = replace(settings, devices=2)
    assert make_that_fits(asked, many_items).plan(many_items).devices == 2
