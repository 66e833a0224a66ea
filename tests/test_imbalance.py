"""q-FedAvg, AFL, and samplers that look at the clients: against numpy, under the laws, and refused with noise."""

import json
from functools import cache, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from experiments.imbalance import __main__ as experiment
from experiments.imbalance.runs import WAYS, make
from experiments.keeping import file_name
from fedjax_rec import engine, promotion, samplers
from fedjax_rec.adversary import Attack, Poison, colluding
from fedjax_rec.aggregators import fixed_point, gaussian
from fedjax_rec.algorithms.registry import NAMES, accepted, factory_of
from fedjax_rec.cli import main
from fedjax_rec.clients import stream
from fedjax_rec.fairness import agnostic, project_to_simplex, q_fedavg
from fedjax_rec.from_settings import make_algorithm
from fedjax_rec.informed import (
    LossProportional,
    PowerOfChoice,
    loss_proportional,
    power_of_choice,
    size_capped,
)
from fedjax_rec.knowledge import draw_cohort
from fedjax_rec.privacy.accounting import round_event
from fedjax_rec.secure import secure_sum
from fedjax_rec.settings import Settings
from fedjax_rec.testing import (
    KEY,
    LAWS,
    assert_close,
    check_lanes,
    check_mesh,
    fixed,
    run,
    tiny_population,
)
from fedjax_rec.transforms import add_noise, chain, clip, quantise
from fedjax_rec.types import Known
from tests import reference_imbalance as ref
from tests import test_fedmf_reference as fedmf
from tests.reference_fedmf import first_state
from tests.reference_rounds import deviation

RATE, Q_RATE = fedmf.RATE, 1 / fedmf.RATE
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
    key, one = jax.random.key(fedmf.SEED), jax.jit(algorithm.round, compiler_options=fedmf.QUICK)
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
        state, rule = first_state(setting, *fedmf.read(first)), ref.q_fedavg(q, lipschitz)
        apart = []
        for clients, found in zip(fedmf.draw_cohorts(rated=loss == "mse"), states, strict=True):
            state, _ = ref.run_round(setting, state, clients, lambda sent, losses, _, r=rule: r(sent, losses))
            apart.append(_apart(state, found, first))
        assert max(apart) <= 1 if right else max(apart) > 100


@pytest.mark.parametrize("rule", ["groups"])
def test_agnostic_equals_the_reference(rule):
    """Model and lambda, groups of which some may be away; the weights do move."""
    first, *states = _engine_states("mse", 2, rule)
    groups, setting = np.array(GROUPS), _setting("mse", 2)
    state, weights = first_state(setting, *fedmf.read(first)), np.full(3, 1 / 3)
    np.testing.assert_allclose(first.known.mixture, weights, rtol=1e-6)
    for clients, found in zip(fedmf.draw_cohorts(rated=True), states, strict=True):
        here = [client for client in clients if client.ratings]

        def step(sent, losses, clients, weights=weights):
            del losses
            return ref.mix(weights, groups, sent, clients)

        state, losses = ref.run_round(setting, state, clients, step)
        weights = ref.ascend(weights, groups, 0.3, losses, here)
        np.testing.assert_allclose(found.known.mixture, weights, atol=1e-5)
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
BRIEF = {
    "lanes": partial(check_lanes, counts=(3,)),
    "mesh": partial(check_mesh, counts=(8,)),
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
    told = np.isfinite(on_lanes.known.losses)
    assert 8 < told.sum() <= 16
    assert not told[3]  # has no data
    assert np.array_equal(told, np.isfinite(again.known.losses))
    np.testing.assert_allclose(again.known.losses[told], on_lanes.known.losses[told], rtol=1e-5)
    assert_close((again.server, again.known.mixture), (on_lanes.server, on_lanes.known.mixture), "waves")


def test_losses_equal_the_reference():
    """The mean over the first of two local epochs, of those that were drawn."""
    _, state, *_ = _engine_states("mse", 2, "clients")
    data, told = fedmf.population(), np.asarray(state.known.losses)
    first = _engine_states("mse", 2, "clients")[0]
    ids, alive = draw_cohort(
        power_of_choice(fedmf.COHORT, cohort=fedmf.COHORT),
        jax.random.fold_in(fedmf.stream(jax.random.key(fedmf.SEED), "cohort"), 0), data, first.known, 0,
    )  # fmt: skip
    names = fedmf.name_clients(
        jax.random.fold_in(fedmf.stream(jax.random.key(fedmf.SEED), "client"), 0), ids, data
    )
    batch = jax.jit(fedmf.make_engine(fedmf.Case()).work.batches.batch)
    drawn = [jax.tree.map(lambda x, i=i: np.asarray(x)[i], names) for i in np.flatnonzero(alive)]
    clients = [fedmf.draw_client(batch, client, rated=True) for client in drawn]
    setting = _setting("mse", 2)
    expected = ref.first_losses(setting, first_state(setting, *fedmf.read(first)), clients)
    np.testing.assert_allclose(told[[client.id for client in clients]], expected, rtol=1e-5)
    assert np.isinf(np.delete(told, [client.id for client in clients])).all()


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
    assert_close((found.server, found.known.mixture), (expected.server, expected.known.mixture), "without", 0)
    assert np.array_equal(found.known.losses, expected.known.losses)
    assert np.isinf(found.known.losses[5])


def test_a_run_goes_on_from_its_checkpoint(tmp_path):
    """Lambda and losses are in the checkpoint, and the run has the bits of one that never stopped."""
    split = fr.leave_one_out(fr.synthetic(60, 80, seed=1, min_events=4, median_events=10))
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
    assert np.ptp(resumed.known.mixture) > 0


def test_attackers_see_the_cohort_that_is_drawn(population):
    """Colluding clients are told who of them takes part, also where cohorts are drawn by size."""

    def craft(sight):
        ids = jnp.full((3, 1), population.num_items)
        rows = jax.tree.map(lambda t: jnp.zeros((3, 1, *t.shape[1:])), sight.server.tables)
        return Poison(ids, rows), sight.present

    spies = colluding(Attack("spies", lambda *_: jnp.zeros(3, bool), craft), [5, 9, 14])
    sampler = size_capped(2, cohort=12)  # a plain call would draw 5 and not 14
    seen = run(fr.fedmf(sampler=sampler, adversary=spies, **SMALL), population, rounds=1).memory[1]
    key = jax.random.fold_in(stream(jax.random.key(KEY), "cohort"), 0)
    drawn = draw_cohort(sampler, key, population, Known(), 0)[0]
    assert seen.tolist() == np.isin([5, 9, 14], drawn).tolist()
    assert seen.any()


# --- Samplers ------------------------------------------------------------------------------------------------


def _drawn(sampler, sizes, losses, times=20_000):
    """How often each client is in the cohort."""
    keys = jax.random.split(jax.random.key(1), times)
    sizes, losses = jnp.asarray(sizes), jnp.asarray(losses, jnp.float32)
    ids, alive = jax.jit(jax.vmap(lambda key: sampler.draw(key, sizes, losses)))(keys)
    ids, alive = np.asarray(ids), np.asarray(alive)
    assert all(len(set(row[there])) == there.sum() for row, there in zip(ids[:200], alive[:200], strict=True))
    return np.bincount(ids[alive], minlength=len(sizes)) / times


def _by_turns(weights, cohort, times=20_000):
    random = np.random.default_rng(0)
    drawn = [ref.draw_by_turns(random, np.asarray(weights), cohort) for _ in range(times)]
    return np.bincount(np.ravel(drawn), minlength=len(weights)) / times


def test_sizes_count_up_to_the_cap():
    """Successive draws in proportion to min(n, cap); a cap of 1 is uniform; nobody without data."""
    sizes = [0, 1, 2, 5, 50, 5000]
    capped = np.minimum(sizes, 5)
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(size_capped(5, cohort=2), sizes, np.zeros(6))
    np.testing.assert_allclose(found, _by_turns(capped, 2), atol=error)
    assert found[0] == 0
    np.testing.assert_allclose(_drawn(size_capped(1, cohort=2), sizes, np.zeros(6))[1:], 0.4, atol=error)


def test_losses_count():
    """In proportion to them; the unknown as the largest of the known; where none is known, all alike."""
    sizes, losses = [3, 3, 3, 3, 0], [0.5, 1.0, 2.0, np.inf, np.inf]
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(loss_proportional(cohort=2), sizes, losses)
    np.testing.assert_allclose(found, _by_turns([0.5, 1.0, 2.0, 2.0, 0.0], 2), atol=error)
    alike = _drawn(loss_proportional(cohort=2), sizes, np.full(5, np.inf))
    np.testing.assert_allclose(alike, [0.5, 0.5, 0.5, 0.5, 0.0], atol=error)


def test_the_worst_served_candidates_are_kept():
    """The largest losses of d candidates; with as many candidates as places the draw is uniform."""
    sizes, losses = [3, 3, 3, 3, 0], [0.5, 1.0, 2.0, np.inf, np.inf]
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(power_of_choice(3, cohort=2), sizes, losses)  # of any 3 of 4 the 2 largest
    np.testing.assert_allclose(found, [0, 0.5, 0.75, 0.75, 0], atol=error)
    np.testing.assert_allclose(
        _drawn(power_of_choice(2, cohort=2), sizes, losses), [0.5] * 4 + [0], atol=error
    )


def test_too_few_clients_leave_slots_empty():
    for sampler in (size_capped(5, cohort=3), loss_proportional(cohort=3), power_of_choice(3, cohort=3)):
        ids, alive = sampler.draw(jax.random.key(0), jnp.array([0, 4, 0]), jnp.full(3, jnp.inf))
        assert alive.sum() == 1
        assert ids[jnp.argmax(alive)] == 1


def test_a_plain_call_takes_clients_to_be_alike():
    """Distinct clients, all alive, and the population's own error where there are too few."""
    for sampler in (size_capped(5, cohort=3), loss_proportional(cohort=3), power_of_choice(4, cohort=3)):
        ids, alive = sampler(jax.random.key(0), 5)
        assert (len(set(ids.tolist())), bool(alive.all())) == (3, True)
        with pytest.raises(ValueError, match=r"exceeds the population of 2|too few for a cohort"):
            sampler(jax.random.key(0), 2)


# --- Refusals ------------------------------------------------------------------------------------------------


def _federate(**given):
    return fr.fedmf(**SMALL, **given)


def _noisy(**given):
    rule = gaussian(noise_multiplier=1.0, norm=1.0, expected=8)
    return _federate(aggregator=rule, transform=clip(1.0), **given)


FAIR = q_fedavg(1.0, lipschitz=80.0)
REFUSED = {
    "q": (lambda: q_fedavg(-1.0, lipschitz=1.0), "q=-1.0 is out of range"),
    "lipschitz": (lambda: q_fedavg(1.0, lipschitz=0.0), "lipschitz=0.0 is out of range"),
    "rate": (lambda: agnostic(float("nan")), "rate=nan is out of range"),
    "no groups": (lambda: agnostic(groups=[]), "one number a client"),
    "other groups": (
        lambda: _federate(aggregator=agnostic(groups=[0, 1])).init(jax.random.key(0), tiny_population()),
        "2 groups do not fit 24 clients",
    ),
    "cap": (lambda: size_capped(0), "cap=0 must be at least 1"),
    "cohort": (lambda: loss_proportional(cohort=0), "cohort=0 must be at least 1"),
    "candidates": (lambda: power_of_choice(3, cohort=5), "3 candidates are too few"),
    "noise on weights by loss": (lambda: gaussian(FAIR, noise_multiplier=1, norm=1, expected=9), "by losses"),
    "noise on learnt weights": (
        lambda: gaussian(agnostic(), noise_multiplier=1, norm=1, expected=9),
        "by losses",
    ),
    "noise and sizes": (lambda: _noisy(sampler=size_capped(5)), "SizeCapped draws clients by their data"),
    "noise and losses": (lambda: _noisy(sampler=power_of_choice(9)), "PowerOfChoice draws clients by"),
    "local noise and losses": (
        lambda: _federate(aggregator=FAIR, transform=chain(clip(1.0), add_noise(1.0))),
        "tell more than noise on their updates hides",
    ),
    "integers": (lambda: fixed_point(FAIR, capacity=9), "sum depends on the order"),
    "secure": (lambda: secure_sum(agnostic(), capacity=9), "sum depends on the order"),
    "attackers": (
        lambda: _federate(aggregator=FAIR, adversary=colluding(promotion.explicit_boosting([7]), [0])),
        "would tell is not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_build(case):
    """Each refusal says why."""
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("sampler", [size_capped(5), loss_proportional(), power_of_choice(9)])
def test_the_accountant_refuses_draws_by_data(sampler):
    with pytest.raises(ValueError, match="draws clients by their data"):
        round_event(sampler, 1.0, 100)


def test_nothing_is_told_unless_asked(population):
    """Plain algorithms carry nothing more; a sampler by size asks for no losses."""
    assert run(_federate(cohort=8), population, rounds=1).known == Known()
    assert not isinstance(samplers.uniform(3), LossProportional)
    assert size_capped(3).hears_losses is False
    sampler, key = size_capped(3, cohort=8), jax.random.key(2)
    one, two = (draw_cohort(sampler, key, population, Known(), 0)[0].tolist() for _ in range(2))
    assert one == two
    assert fixed([1])(key, 3)[0].tolist() == [1]


# --- The command line and the experiment ---------------------------------------------------------------------


def test_the_command_line_is_fair(tmp_path):
    """`--aggregator q-fedavg` takes L from the learning rate, and cohorts are drawn as asked for."""
    drawn = ["--sampler", "size-capped", "--size-cap", "30", "--cohort", "40"]
    fair = ["--aggregator", "q-fedavg", "--fairness", "2", "--server-learning-rate", "100"]
    short = ["--rounds", "2", "--eval-every", "2", "--dim", "4", "--devices", "1"]
    main(["run", *drawn, *fair, *short, "--out", str(tmp_path / "run")])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["fairness"] == 2.0
    made = make_algorithm(Settings(aggregator="q-fedavg", learning_rate=0.5, sampler="loss-proportional"))
    assert made.init(jax.random.key(0), tiny_population()).known.losses.shape == (24,)


def test_every_algorithm_takes_a_sampler():
    assert [name for name in NAMES if "sampler" not in accepted(name)] == []


def test_smoke(tmp_path, monkeypatch, capsys):
    """A way, its file, table and figure; what is there is not run again, and smoke does not mix with it."""
    monkeypatch.setattr(experiment, "SMOKE", ("AFL, quarters",))
    experiment.main(["--smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.rglob("*.json")
    found = json.loads(path.read_text())
    assert len(found["seeds"]) == 2
    assert all(0 <= seed["ndcg@10"] <= seed["hr@10"] <= 1 for seed in found["seeds"])
    assert all(seed["auc worst_decile"] <= seed["auc median"] for seed in found["seeds"])
    assert (path.parent / "stability.png").stat().st_size > 1000
    found["seeds"][0]["hr@10"] = found["seeds"][1]["hr@10"] = 0.125
    path.write_text(json.dumps(found))
    capsys.readouterr()
    experiment.main(["--smoke", "--results", str(tmp_path)])
    assert "| 0.1250 ±0.0000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        experiment.main(["--smoke"])


def test_every_way_builds():
    """All ways make an algorithm, under names that files can have."""
    setting = experiment.setting_of(None, smoke=True)
    for name in WAYS:
        assert make(setting, name, 1.0).score is not None, name
    assert len({file_name(name) for name in WAYS}) == len(WAYS)


def test_rounds_are_counted_to_the_target():
    curves = [{"curve": [0.1, 0.3, 0.2]}, {"curve": [0.1, 0.1, 0.3]}, {"curve": [0.3, 0.0, 0.0]}]
    assert experiment.rounds_to(0.3, curves, 10) == "20"
    assert experiment.rounds_to(0.3, [*curves, {"curve": [0.0]}, {"curve": [0.0]}], 10) == "30"
    assert experiment.rounds_to(0.9, curves, 10) == "-"


@pytest.mark.parametrize("name", ["fedmf", "fedals", "fedtwotower", "fedgnn", "fedrecon", "fcf"])
def test_every_algorithm_tells_a_loss(name):
    """Also one whose first pass counts no example: a loss of 0 would silence it."""
    data = tiny_population()
    algorithm = factory_of(name)(dim=2, sampler=power_of_choice(12, cohort=6))
    state, _ = jax.jit(algorithm.round)(jax.random.key(0), algorithm.init(jax.random.key(0), data), data)
    told = np.asarray(state.known.losses)
    assert np.isfinite(told).sum() >= 5
    assert np.median(told[np.isfinite(told)]) > 0  # who has one example may have none to count
