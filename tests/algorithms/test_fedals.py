"""Federated ALS against plain numpy and against the central module: no price of federation at all."""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.client.keys import stream
from fedjax_rec.data.defaults import als_weights
from fedjax_rec.evaluation.central import ials
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.samplers.data_independent import everyone, uniform
from fedjax_rec.testing import fixed, run, tiny_population
from tests.references import fedals as ref

REG = 0.02
W0 = 0.3
DIM = 4
EQUAL = 1e-5  # of the largest number of an array
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles sooner


class RoundResult(NamedTuple):
    """A round on both sides."""

    state: Any
    info: Any
    items: np.ndarray
    vectors: dict[int, np.ndarray]  # of the clients that took part


def apart(got, wanted):
    """Largest difference, relative to the largest number."""
    return np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()


@cache
def histories():
    population = tiny_population()
    cuts = np.asarray(population.offsets)[1:-1]
    return [history.tolist() for history in np.split(np.asarray(population.examples["items"]), cuts)]


def run_both(rounds=4, *, scaled=True, restart=False, memory=0.0, **settings):
    """Engine and reference from the engine's first items (or those of each round): a `Turn` for every round."""
    population = tiny_population()
    key = jax.random.key(1)
    results = []
    algorithm = fr.fedals(dim=DIM, regularisation=REG, unobserved=W0, memory=memory, **settings)
    setting = ref.Setting(REG, W0, memory, scaled)
    state = algorithm.init(key, population)
    step = jax.jit(algorithm.round, compiler_options=QUICK)
    items = np.asarray(state.server.tables["vector"], np.float64)
    sums = ref.no_sums(*items.shape)
    sampler = uniform(settings["cohort"]) if "cohort" in settings else everyone()
    for round_ in range(rounds):
        ids, _ = sampler(jax.random.fold_in(stream(key, "cohort"), round_), population.num_clients)
        cohort = [u for u in ids.tolist() if histories()[u]]
        if restart:
            items = np.asarray(state.server.tables["vector"], np.float64)
        state, info = step(key, state, population)
        items, sums, vectors = ref.run_round(setting, items, sums, [histories()[u] for u in cohort])
        results.append(RoundResult(state, info, items, dict(zip(cohort, vectors, strict=True))))
    return results


def test_equals_the_reference():
    """Item vectors, users' vectors, the Gram matrix and what is reported, round after round."""
    before = None
    for result in run_both(lanes=5):
        users = np.stack(list(result.vectors.values()))
        assert apart(result.state.server.tables["vector"], result.items) < EQUAL
        assert apart(result.state.server.shared["gram"], result.items.T @ result.items) < EQUAL
        assert apart(result.state.private["vector"][jnp.array(list(result.vectors))], users) < EQUAL
        assert int(result.info.clients) == len(result.vectors)
        if before is not None:  # the loss is the mean error on own events, with the vectors just solved
            errors = [(1 - before[i] @ p) ** 2 for u, p in result.vectors.items() for i in histories()[u]]
            assert float(result.info.loss) == pytest.approx(np.mean(errors), rel=1e-5)
            assert float(result.info.examples) == len(errors)
        before = result.items


def test_a_wrong_reference_disagrees():
    """A ridge that does not grow with the number of events is another algorithm."""
    result = run_both(1, scaled=False)[-1]
    assert apart(result.state.server.tables["vector"], result.items) > 100 * EQUAL


@pytest.mark.parametrize("memory", [0.0, 0.75])
def test_partial_participation_equals_the_reference(memory):
    """A quarter of the clients a round: without memory an item of nobody becomes 0, with it the sums are kept.

    Each round starts from the engine's items: a few clients determine the items badly, and float32's rounding
    grows from round to round.
    """
    for result in run_both(6, restart=True, memory=memory, cohort=6):
        table = np.asarray(result.state.server.tables["vector"])
        assert apart(table, result.items) < 4 * EQUAL
        owned = {i for u in result.vectors for i in histories()[u]}
        assert (set(np.flatnonzero(np.abs(table).sum(1))) == owned) == (
            memory == 0 or result.state.round == 1
        )


@pytest.mark.parametrize("settings", [{"batch_size": 1, "lanes": 1}, {"batch_size": 64}])
def test_batches_and_lanes_are_invisible(settings):
    result = run_both(3, **settings)[-1]
    assert apart(result.state.server.tables["vector"], result.items) < EQUAL


def test_a_round_of_nobody_changes_nothing():
    population = tiny_population()
    key = jax.random.key(0)
    algorithm = fr.fedals(dim=DIM, sampler=fixed([3, 0], [True, False]))  # client 3 has no data
    before = algorithm.init(key, population)
    after, info = algorithm.round(key, before, population)
    assert int(info.clients) == 0
    np.testing.assert_array_equal(after.server.tables["vector"], before.server.tables["vector"])


def central_sweeps(split, items, rounds, regularisation, unobserved):
    """The central module from the same items: (users of the last sweep, items after it)."""
    by_user, by_item = ials.block_rows(split)
    users = None
    for _ in range(rounds):
        users = ials.solve_factors(items, by_user, split.num_users, regularisation, unobserved)
        items = ials.solve_factors(users, by_item, split.num_items, regularisation, unobserved)
    return users, items


def test_equals_central_ials_and_scores_with_new_vectors():
    """Eight sweeps, then the half sweep of `represent`: the scores that users are ranked by."""
    split = fr.leave_one_out(fr.data.synthetic(90, 120, seed=1))
    population = fr.population_of(split)
    key = jax.random.key(0)
    algorithm = fr.fedals(dim=8, regularisation=REG, unobserved=W0)
    state = algorithm.init(key, population)
    _, items = central_sweeps(split, state.server.tables["vector"], 8, REG, W0)
    step = jax.jit(algorithm.round)
    for _ in range(8):
        state, _ = step(key, state, population)
    assert apart(state.server.tables["vector"], np.asarray(items)) < 1e-4
    users = ials.solve_factors(items, ials.block_rows(split)[0], split.num_users, REG, W0)
    point = server_parameters(algorithm, population)
    scores = point.score(point.prepare(state), jnp.arange(split.num_users))
    assert apart(scores, np.asarray(users) @ np.asarray(items).T) < 1e-4


@pytest.mark.thorough("a figure of a whole real set; on small data it equals central iALS")
def test_no_price_of_federation_on_ml_100k(shared_data):
    """Six sweeps at 32 dimensions: the same items, the same ranks but for ties of rounding, and good ones."""
    split = fr.data.merge_validation(fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data)))
    population = fr.population_of(split)
    key = jax.random.key(0)
    algorithm = fr.fedals(dim=32)
    state = algorithm.init(key, population)
    _, items = central_sweeps(split, state.server.tables["vector"], 6, *als_weights(split.size))
    step = jax.jit(algorithm.round, donate_argnums=1)
    for _ in range(6):
        state, _ = step(key, state, population)
    assert apart(state.server.tables["vector"], np.asarray(items)) < 1e-3
    found = fr.evaluation.metrics_from_ranks(fr.make_evaluator(algorithm, split)(state).full)
    assert found["hr@10"] > 0.13


def test_everybody_takes_part_unless_said_otherwise():
    population = tiny_population()
    assert fr.fedals(dim=2).plan(population).cohort == 24
    assert fr.fedals(dim=2, cohort=5).plan(population).cohort == 5
    assert fr.fedals(dim=2, sampler=everyone()).plan(population).cohort == 24


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"regularisation": 0.0}, "regularisation must be a finite number above 0"),
        ({"memory": 1.0}, "memory must be at least 0 and below 1"),
        ({"unobserved": -0.1}, "unobserved must be at least 0"),
        ({"aggregator": "touchers"}, "solves equations that it sums"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fr.fedals(**settings)


def test_an_item_that_nobody_has_is_nothing():
    """Without a weight on what was not observed, the items of an absent client have no equations at all."""
    population = tiny_population()
    state = run(fr.fedals(dim=4, unobserved=0.0, cohort=6), population, rounds=4)
    assert np.isfinite(np.asarray(state.server.tables["vector"])).all()
    assert (np.abs(np.asarray(state.server.tables["vector"])).max(1) == 0).any()
