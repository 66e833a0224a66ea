"""FCF against plain numpy that sends dense gradients, as the paper does."""

from functools import cache

import jax
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client.keys import stream
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.testing import fixed, tiny_population
from tests.references import fcf as ref

ALPHA = 3.0
REG = 0.7
DIM = 4
RATE = 0.05
B1 = 0.4
B2 = 0.99
EQUAL = (
    1e-4  # of the largest number: Adam divides by the root of a moment, near 0 it doubles what is rounded off
)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # compiles sooner


def apart(got, wanted):
    """Largest difference, relative to the largest number."""
    return np.abs(np.asarray(got, np.float64) - wanted).max() / np.abs(wanted).max()


@cache
def histories():
    population = tiny_population()
    cuts = np.asarray(population.offsets)[1:-1]
    return [history.tolist() for history in np.split(np.asarray(population.examples["items"]), cuts)]


def make(**settings):
    optimizer = optax.adam(RATE, b1=B1, b2=B2)
    defaults = {
        "dim": DIM,
        "alpha": ALPHA,
        "regularisation": REG,
        "server_optimizer": optimizer,
        "batch_size": 7,
    }
    return fr.fcf(**(defaults | settings))


def run_both(rounds=6, *, confident=True, **settings):
    """Engine and reference from the engine's first items: after every round (state, info, items, vectors)."""
    population = tiny_population()
    key = jax.random.key(1)
    found = []
    setting = ref.Setting(ALPHA, REG, RATE, B1, B2, confident=confident)
    algorithm = make(cohort=9, **settings)
    state = algorithm.init(key, population)
    step = jax.jit(algorithm.round, compiler_options=QUICK)
    items = np.asarray(state.server.tables["vector"], np.float64)
    memory = ref.Memory(0, np.zeros_like(items), np.zeros_like(items))
    for round_ in range(rounds):
        ids, _ = uniform(9)(jax.random.fold_in(stream(key, "cohort"), round_), population.num_clients)
        cohort = [u for u in ids.tolist() if histories()[u]]
        state, info = step(key, state, population)
        items, memory, users = ref.run_round(setting, items, memory, [histories()[u] for u in cohort])
        found.append((state, info, items, dict(zip(cohort, users, strict=True))))
    return found


@pytest.mark.parametrize("settings", [{}, {"batch_size": 64, "lanes": 1}])
def test_equals_the_reference(settings):
    """Items, Gram matrix and users over six rounds of nine clients."""
    for state, info, items, users in run_both(**settings):
        vectors = np.stack(list(users.values()))
        assert apart(state.server.tables["vector"], items) < EQUAL
        assert apart(state.server.shared["gram"], items.T @ items) < EQUAL
        assert apart(state.private["vector"][np.array(list(users))], vectors) < EQUAL
        assert int(info.clients) == len(users)


def test_a_wrong_reference_disagrees():
    """A gradient without confidence, as an unofficial implementation has it."""
    state, _, items, _ = run_both(rounds=1, confident=False)[-1]
    assert apart(state.server.tables["vector"], items) > 100 * EQUAL


@pytest.mark.parametrize("client", [0, 4, 17])
def test_the_closed_form_is_the_dense_upload(client):
    """-(p p^T) y_i for all items plus the own rows' corrections is f(u, i) of every item."""
    population = tiny_population()
    key = jax.random.key(2)
    algorithm = make(init_scale=2.0)
    state = algorithm.init(key, population)
    update = fr.client_update(algorithm, key, state, population, client)
    items = np.asarray(state.server.tables["vector"], np.float64)
    dense = -items @ np.asarray(update.shared["moment"], np.float64)
    dense[np.asarray(update.ids)] += np.asarray(update.rows["vector"])
    setting = ref.Setting(ALPHA, REG, RATE, B1, B2)
    p = ref.solve_user(setting, items, histories()[client])
    assert apart(dense, ref.gradient(setting, items, histories()[client], p)) < 1e-5


def test_the_step_descends_the_objective():
    """J' is the derivative of J in the items: a small step of plain descent lowers it by |J'|^2 times the rate."""
    population = tiny_population()
    key = jax.random.key(3)
    rate = 1e-5
    setting = ref.Setting(ALPHA, REG, RATE, B1, B2)
    everyone = [u for u in range(24) if histories()[u]]
    algorithm = make(sampler=fixed(range(24)), server_optimizer=optax.sgd(rate), init_scale=2.0)
    before = algorithm.init(key, population)
    after, _ = algorithm.round(key, before, population)
    users = np.asarray(after.private["vector"], np.float64)[everyone]
    old, new = (np.asarray(state.server.tables["vector"], np.float64) for state in (before, after))
    own = [histories()[u] for u in everyone]
    lower = ref.objective(setting, old, users, own) - ref.objective(setting, new, users, own)
    assert lower == pytest.approx(((new - old) ** 2).sum() / rate, rel=0.02)


@pytest.mark.thorough("a figure of a whole real set; on small data rounds equal the reference")
def test_learns_ml_100k(shared_data):
    """Eighty rounds of the defaults at 16 dimensions; Adam's steps of .01 are small beside the first vectors."""
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    population = fr.population_of(split)
    key = jax.random.key(0)
    algorithm = fr.fcf(dim=16)
    state = algorithm.init(key, population)
    step = jax.jit(algorithm.round, donate_argnums=1)
    evaluate = fr.make_evaluator(algorithm, split)
    for _ in range(80):
        state, _ = step(key, state, population)
    popular = fr.evaluation.metrics_from_ranks(fr.evaluation.popularity_ranks(split).full)["ndcg@10"]
    assert fr.evaluation.metrics_from_ranks(evaluate(state).full)["ndcg@10"] > 1.3 * popular


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 0}, "dim must be at least 1"),
        ({"alpha": -1.0}, "alpha must be at least 0"),
        ({"regularisation": 0.0}, "regularisation must be a finite number above 0"),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        fr.fcf(**settings)
