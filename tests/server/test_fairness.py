"""q-FedAvg, AFL, and samplers that look at the clients: against numpy, and under the laws."""

from functools import cache, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks.adversary import CollusionAttack, PoisonedRows, colluding
from fedjax_rec.client.keys import stream
from fedjax_rec.engine import cohort as engine
from fedjax_rec.samplers.data_dependent import (
    PowerOfChoice,
    loss_proportional,
    power_of_choice,
    size_capped,
)
from fedjax_rec.samplers.tracking import draw_cohort
from fedjax_rec.server.fairness import agnostic, project_to_simplex, q_fedavg
from fedjax_rec.testing import (
    KEY,
    LAWS,
    assert_close,
    run,
    tiny_population,
)
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.transforms.compression import quantise
from fedjax_rec.types import Tracked
from tests.algorithms import test_fedmf as fedmf
from tests.laws import BRIEF
from tests.references import imbalance as ref
from tests.references.fedmf import first_state
from tests.references.rounds import deviation

RATE = fedmf.RATE
Q_RATE = 1 / fedmf.RATE
GROUPS = (0, 1, 2, 0, 1, 2, 0, 0, 1, 2, 1, 0)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


# --- Against plain numpy -------------------------------------------------------------------------------------


@cache
def _engine_states(loss, epochs, rule):
    case = fedmf.Case(loss=loss, epochs=epochs)
    made = fedmf.make_engine(case)
    rules: dict[str, dict[str, Any]] = {
        "q .5": {"aggregator": q_fedavg(0.5, lipschitz=Q_RATE)},
        "q 2": {"aggregator": q_fedavg(2.0, lipschitz=Q_RATE)},
        "clients": {"aggregator": agnostic(0.05)},
        "groups": {"aggregator": agnostic(0.3, groups=GROUPS)},
    }
    sampler = power_of_choice(fedmf.COHORT, cohort=fedmf.COHORT) if rule == "clients" else None
    cohort = None if sampler else fedmf.COHORT
    given: dict[str, Any] = {"sampler": sampler, "cohort": cohort, "lanes": 3, **rules[rule]}
    algorithm = fr.federate(made.model, made.work, **given)
    key = jax.random.key(fedmf.SEED)
    one = jax.jit(algorithm.round, compiler_options=fedmf.QUICK)
    states = [algorithm.init(key, fedmf.population())]
    for _ in range(fedmf.ROUNDS):
        states.append(one(key, states[-1], fedmf.population())[0])
    return states


def _setting(loss, epochs):
    setting = fedmf.make_setting(fedmf.Case(loss=loss, epochs=epochs))
    return setting._replace(server=fedmf.ref.sgd(1.0))


def _apart(state, engine_state, first):
    flat = partial(fedmf.flatten)
    return deviation(
        flat(*fedmf.read(engine_state)), flat(state.server, state.private), flat(*fedmf.read(first))
    )


@pytest.mark.parametrize(("q", "loss", "epochs"), [(0.5, "mse", 2), (2.0, "bce", 1)])
def test_q_fedavg_equals_the_reference(q, loss, epochs):
    """Dense and row leaves, waves of one epoch and of two; a reference with another L disagrees."""
    first, *states = _engine_states(loss, epochs, f"q {q:g}".replace("0.", "."))
    setting = _setting(loss, epochs)
    for lipschitz, right in ((Q_RATE, True), (2 * Q_RATE, False)):
        state = first_state(setting, *fedmf.read(first))
        rule = ref.q_fedavg(q, lipschitz)
        apart = []
        for clients, found in zip(fedmf.draw_cohorts(rated=loss == "mse"), states, strict=True):
            state, _ = ref.run_round(setting, state, clients, lambda sent, losses, _, r=rule: r(sent, losses))
            apart.append(_apart(state, found, first))
        assert max(apart) <= 1 if right else max(apart) > 100


@pytest.mark.parametrize("rule", ["groups"])
def test_agnostic_equals_the_reference(rule):
    """Model and lambda, groups of which some may be away; the weights do move."""
    first, *states = _engine_states("mse", 2, rule)
    groups = np.array(GROUPS)
    setting = _setting("mse", 2)
    state = first_state(setting, *fedmf.read(first))
    weights = np.full(3, 1 / 3)
    np.testing.assert_allclose(first.tracked.mixture, weights, rtol=1e-6)
    for clients, found in zip(fedmf.draw_cohorts(rated=True), states, strict=True):
        here = [client for client in clients if client.ratings]

        def step(sent, losses, clients, weights=weights):
            del losses
            return ref.mix(weights, groups, sent, clients)

        state, losses = ref.run_round(setting, state, clients, step)
        weights = ref.ascend(weights, groups, 0.3, losses, here)
        np.testing.assert_allclose(found.tracked.mixture, weights, atol=1e-5)
        assert _apart(state, found, first) <= 1
    assert np.ptp(weights) > 0.05


def test_projection_equals_the_reference():
    """Random, tied, huge, and those that are on the simplex already."""
    random = np.random.default_rng(0)
    project = jax.jit(project_to_simplex)
    cases = [random.normal(0, scale, size) for size in (1, 2, 5, 300) for scale in (1e-3, 1.0, 30.0)]
    cases += [np.zeros(7), np.full(4, 1e4), np.array([5.0, 5.0, -5.0]), random.dirichlet(np.ones(9))]
    for values in cases:
        found = np.asarray(project(jnp.asarray(values, jnp.float32)))
        exact = ref.nearest_in_simplex(np.asarray(values, np.float32).astype(float))
        np.testing.assert_allclose(found, exact, atol=2e-6)
        assert abs(found.sum() - 1) < 1e-5
        assert found.min() >= 0
    np.testing.assert_allclose(project(jnp.asarray(cases[-1], jnp.float32)), cases[-1], atol=1e-6)


def test_q_of_nothing_is_the_mean(population):
    """Equal to FedAvg's mean, and to the bit where that takes the same way through the engine."""
    plain, same, fair = (
        run(fr.fedmf(cohort=12, **SMALL, **given), population)
        for given in (
            {"aggregator": "mean"},
            {"aggregator": "mean", "transform": clip(1e9)},
            {"aggregator": q_fedavg(0.0, lipschitz=80.0)},
        )
    )
    assert_close(fair, plain, "q = 0 against the mean", 1e-6)
    assert_close(fair, same, "q = 0 against the mean in waves", 0)


# --- Laws ----------------------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "q-fedavg": {"aggregator": q_fedavg(1.0, lipschitz=80.0), "cohort": 12},
    "q-fedavg, whole": {
        "aggregator": q_fedavg(1.0, lipschitz=80.0), "cohort": 12, "transform": quantise(8),
    },
    "agnostic": {"aggregator": agnostic(0.02), "cohort": 12},
    "agnostic, groups": {"aggregator": agnostic(0.05, groups=[i % 5 for i in range(24)]), "cohort": 12},
    "power of choice": {"sampler": power_of_choice(16, cohort=8)},
    "loss-proportional": {"sampler": loss_proportional(cohort=8)},
    "size-capped": {"sampler": size_capped(6, cohort=8)},
}  # fmt: skip
HELD = {
    "q-fedavg": ("lanes", "mesh", "order", "padding", "absent", "resume"),
    "q-fedavg, whole": ("lanes",),
    "agnostic": ("lanes", "mesh", "order", "absent", "resume"),
    "agnostic, groups": ("lanes", "order", "absent"),
    "power of choice": ("mesh", "resume", "one trace"),
    "loss-proportional": ("resume", "one trace"),
    "size-capped": ("resume", "one trace"),
}


@lru_cache(maxsize=1)
def _maker(case):
    def make(**federation):
        kept = {name: value for name, value in CASES[case].items() if name not in federation}
        if "sampler" in federation:
            kept.pop("cohort", None)
        return fr.fedmf(**SMALL, **kept, **federation)

    return make


@pytest.mark.parametrize(("case", "law"), [(case, law) for case in HELD for law in HELD[case]])
def test_law(case, law, population):
    (LAWS | BRIEF)[law](_maker(case), population)


def test_losses_are_the_same_on_lanes_and_waves(population, monkeypatch):
    """What clients tell does not depend on the schedule; those that were not drawn told nothing."""

    def make():
        return fr.fedmf(sampler=power_of_choice(12, cohort=8), aggregator=agnostic(0.02), lanes=4, **SMALL)

    on_lanes = run(make(), population, rounds=2)
    monkeypatch.setattr(engine, "run_lanes", engine.run_waves)
    again = run(make(), population, rounds=2)
    known = np.isfinite(on_lanes.tracked.losses)
    assert 8 < known.sum() <= 16
    assert not known[3]  # has no data
    assert np.array_equal(known, np.isfinite(again.tracked.losses))
    np.testing.assert_allclose(again.tracked.losses[known], on_lanes.tracked.losses[known], rtol=1e-5)
    assert_close((again.server, again.tracked.mixture), (on_lanes.server, on_lanes.tracked.mixture), "waves")


def test_losses_equal_the_reference():
    """The mean over the first of two local epochs, of those that were drawn."""
    _, state, *_ = _engine_states("mse", 2, "clients")
    data = fedmf.population()
    losses = np.asarray(state.tracked.losses)
    first = _engine_states("mse", 2, "clients")[0]
    ids, alive = draw_cohort(
        power_of_choice(fedmf.COHORT, cohort=fedmf.COHORT),
        jax.random.fold_in(fedmf.stream(jax.random.key(fedmf.SEED), "cohort"), 0), data, first.tracked, 0,
    )  # fmt: skip
    names = fedmf.name_clients(
        jax.random.fold_in(fedmf.stream(jax.random.key(fedmf.SEED), "client"), 0), ids, data
    )
    batch = jax.jit(fedmf.make_engine(fedmf.Case()).work.batches.batch)
    drawn = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], names) for i in np.flatnonzero(alive)]
    clients = [fedmf.draw_client(batch, client, rated=True) for client in drawn]
    setting = _setting("mse", 2)
    expected = ref.first_losses(setting, first_state(setting, *fedmf.read(first)), clients)
    np.testing.assert_allclose(losses[[client.id for client in clients]], expected, rtol=1e-5)
    assert np.isinf(np.delete(losses, [client.id for client in clients])).all()


def test_a_bad_client_tells_nothing(population):
    """A loss that is no number is nobody's: lambda, losses and model equal those of a round without the client."""
    there = np.ones(24, bool)

    @jax.jit
    def go(vectors, alive):
        class Sampler(PowerOfChoice):
            def draw(self, key, sizes, losses):
                del key, sizes, losses
                return jnp.arange(24), alive

        algorithm = fr.fedmf(sampler=Sampler(24, 24), aggregator=agnostic(0.02), **SMALL)
        state = algorithm.init(jax.random.key(0), population)
        state = state._replace(private={"vector": vectors})
        return algorithm.round(jax.random.key(0), state, population)

    vectors = fr.fedmf(**SMALL).init(jax.random.key(0), population).private["vector"]
    found, info = go(vectors.at[5].set(np.nan), jnp.asarray(there))
    there[5] = False
    expected, _ = go(vectors, jnp.asarray(there))
    assert int(info.unsound) == 1
    assert_close(
        (found.server, found.tracked.mixture), (expected.server, expected.tracked.mixture), "without", 0
    )
    assert np.array_equal(found.tracked.losses, expected.tracked.losses)
    assert np.isinf(found.tracked.losses[5])


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """Lambda and losses are in the checkpoint, and the run has the bits of one that never stopped."""
    split = fr.leave_one_out(fr.data.synthetic(60, 80, seed=1, min_events=4, median_events=10))
    algorithm = fr.fedmf(dim=4, sampler=power_of_choice(30, cohort=16), aggregator=agnostic(1e-3))
    options: dict[str, Any] = {"eval_every": 2, "keep": "last"}
    straight, _ = fr.simulate(algorithm, split, rounds=6, **options)
    kept = fr.Checkpoints(tmp_path / "run", every=2)
    fr.simulate(algorithm, split, rounds=4, **options, checkpoint=kept)
    resumed, history = fr.simulate(algorithm, split, rounds=6, **options, checkpoint=kept, resume=True)
    assert history.first_round == 1
    assert all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(straight), strict=True)
    )
    assert np.ptp(resumed.tracked.mixture) > 0


def test_attackers_see_the_cohort_that_is_drawn(population):
    """Colluding clients are told who of them takes part, also where cohorts are drawn by size."""

    def craft(view):
        ids = jnp.full((3, 1), population.num_items)
        rows = jax.tree.map(lambda t: jnp.zeros((3, 1, *t.shape[1:])), view.server.tables)
        return PoisonedRows(ids, rows), view.present

    spies = colluding(CollusionAttack("spies", lambda *_: jnp.zeros(3, bool), craft), [5, 9, 14])
    sampler = size_capped(2, cohort=12)  # a plain call would draw 5 and not 14
    seen = run(fr.fedmf(sampler=sampler, adversary=spies, **SMALL), population, rounds=1).adversary
    key = jax.random.fold_in(stream(jax.random.key(KEY), "cohort"), 0)
    drawn = draw_cohort(sampler, key, population, Tracked(), 0)[0]
    assert seen.tolist() == np.isin([5, 9, 14], drawn).tolist()
    assert seen.any()
