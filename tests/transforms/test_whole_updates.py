"""Transforms of whole updates, stacked aggregators: against what the clients send one by one."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec import transforms
from fedjax_rec.algorithms.fedmf import matrix_factorisation
from fedjax_rec.engine.plan import with_copy
from fedjax_rec.federation.federate import client_update
from fedjax_rec.runs.build import make_that_fits
from fedjax_rec.runs.inputs import load_inputs
from fedjax_rec.runs.settings import Settings
from fedjax_rec.server import aggregators
from fedjax_rec.server import stacked as reducers
from fedjax_rec.testing import KEY, assert_close, fixed, run, tiny_population
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import Server, Stack, Update
from tests.crosses import crossed, sampled

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "learning_rate": 0.3}
IDS = np.array([0, 1, 2, 3, 4, 5, 9])  # client 3 has no data


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _updates(population, **settings):
    """Every client's update over the whole table, float64[C, ...], from runs of one client alone."""
    algorithm = fr.fedmf(**SMALL, sampler=fixed(IDS), **settings)
    key = jax.random.key(KEY)
    state = jax.jit(algorithm.init)(key, population)
    found = []
    for i in IDS:
        update = client_update(algorithm, key, state, population, int(i))
        table = jax.tree.map(lambda t: np.zeros(t.shape), state.server.tables)
        for name, rows in update.rows.items():
            table[name][np.asarray(update.ids)] = rows
        found.append((jax.tree.map(np.asarray, update.shared), table))
    return state, jax.tree.map(lambda *x: np.stack(x).astype(np.float64), *found)


def _step(population, **settings):
    """The state after one round."""
    return run(fr.fedmf(**SMALL, sampler=fixed(IDS), **settings), population, rounds=1)


def _expected(state, update):
    return jax.tree.map(lambda old, new: old + new, tuple(state.server), update)


@pytest.mark.parametrize(("loss", "epochs"), crossed(["bce", "mse"], [1, 2]))
def test_clip_scales_whole_updates(population, epochs, loss):
    """Clipping is one scale for all that a client sends, rows of all batches and dense leaves together."""
    settings = {"local_epochs": epochs, "loss": loss, "aggregator": "sum"}
    state, (shared, tables) = _updates(population, **settings)
    norm = np.sqrt(sum((x**2).reshape(len(IDS), -1).sum(1) for x in jax.tree.leaves((shared, tables))))
    bound = float(np.median(norm))
    factor = np.minimum(1.0, bound / np.maximum(norm, 1e-30))
    assert (factor < 1).any() and (factor == 1).any()  # noqa: PT018 - the bound must divide the clients
    expected = jax.tree.map(lambda x: np.tensordot(factor, x, 1), (shared, tables))
    clipped = _step(population, transform=transforms.clip(bound), lanes=2, **settings)
    assert_close(tuple(clipped.server), _expected(state, expected), "clipped")
    general = transforms.clip(bound)._replace(scale=None)  # the general path: updates put together first
    assert_close(_step(population, transform=general, lanes=2, **settings).server, clipped.server, "whole")


def test_transform_sees_each_client_alone(population):
    """What a transform is given is exactly the update that the client alone would send."""
    state, (_, tables) = _updates(population)

    def squared(key, sent, server):
        del key, server
        return sent._replace(rows=jax.tree.map(jnp.square, sent.rows))

    square = Transform("square", squared)
    expected: Any = ({}, jax.tree.map(lambda x: (x**2).sum(0), tables))
    after = _step(population, transform=square, lanes=3)
    assert_close(tuple(after.server), _expected(state, expected), "squared")


@pytest.mark.parametrize("lanes", sampled([1, 4], [4], "three lanes against four are two counts"))
def test_noise_is_the_clients_own(population, lanes):
    """Noise depends on round and client only: neither lanes nor the order of the cohort changes it."""
    noisy = transforms.chain(transforms.clip(0.5), transforms.add_noise(0.1))
    one = _step(population, transform=noisy, lanes=3)
    assert_close(_step(population, transform=noisy, lanes=lanes), one, "other lanes")
    shuffled = fr.fedmf(**SMALL, sampler=fixed(IDS[::-1]), transform=noisy, lanes=3)
    assert_close(run(shuffled, population, rounds=1), one, "another order")
    plain = _step(population, transform=transforms.clip(0.5), lanes=3)
    moved = np.asarray(one.server.tables["vector"] - plain.server.tables["vector"])
    start = run(fr.fedmf(**SMALL), population, 0).server.tables["vector"]
    touched = np.asarray(plain.server.tables["vector"] != start).any(1)
    assert 0.1 < moved[touched].std() < 0.4  # about 0.1 x root of the touchers
    assert not moved[~touched].any()


def test_quantise_is_unbiased():
    """Stochastic rounding has the value as its mean, and takes at most 2^bits values."""
    rows = jnp.linspace(-1.0, 1.0, 7)[:, None]
    sent = Update({}, jnp.arange(7), rows, jnp.float32(1))
    draw = jax.vmap(lambda k: transforms.quantise(2).update(k, sent, Server({}, jnp.zeros((7, 1)))).rows)
    values = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert len(np.unique(values.round(5))) == 4
    np.testing.assert_allclose(values.mean(0), rows, atol=5 * (2 / 3) / 2 / np.sqrt(4000))


@pytest.mark.parametrize("lanes", sampled([1, 3], [3], "the oracle has no lanes"))
def test_median(population, lanes):
    """The median over the clients that took part, absent ones left out, untouched rows counting as 0."""
    state, (_, tables) = _updates(population)
    present = [n for n, i in enumerate(IDS) if i != 3]
    expected = jax.tree.map(lambda x: np.median(x[present], axis=0), tables)
    assert any(x.any() for x in jax.tree.leaves(expected))
    after = _step(population, aggregator=reducers.median(), lanes=lanes)
    assert_close(tuple(after.server), _expected(state, ({}, expected)), "median")


def test_trimmed_mean(population):
    """A sixth of six clients is cut off at each end."""
    state, (_, tables) = _updates(population)
    present = [n for n, i in enumerate(IDS) if i != 3]
    expected = jax.tree.map(lambda x: np.sort(x[present], axis=0)[1:-1].mean(0), tables)
    after = _step(population, aggregator=reducers.trimmed_mean(1 / 6), lanes=2)
    assert_close(tuple(after.server), _expected(state, ({}, expected)), "trimmed mean")


def test_krum(population):
    """Krum sends on the update that is nearest to its nearest others."""
    state, (_, tables) = _updates(population)
    present = [n for n, i in enumerate(IDS) if i != 3]
    flat = np.concatenate([x[present].reshape(len(present), -1) for x in jax.tree.leaves(tables)], axis=1)
    distance = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    best = np.sort(distance, axis=1)[:, 1 : 1 + len(present) - 1 - 2].sum(1).argmin()
    expected = jax.tree.map(lambda x: x[present][best], tables)
    after = _step(population, aggregator=reducers.krum(1), lanes=2)
    assert_close(tuple(after.server), _expected(state, ({}, expected)), "krum")


@pytest.mark.parametrize("size", [1e4, 1e19, np.inf, np.nan])
@pytest.mark.parametrize("slot", [0, 9])
def test_krum_is_not_fooled(size, slot):
    """However far one update lies, or if it is no number, Krum takes none of the outliers."""
    rng = np.random.default_rng(0)
    honest = rng.normal(size=(10, 20)).astype(np.float32) * 0.1
    updates = np.insert(honest, slot, np.float32(size), axis=0)
    updates = np.insert(updates, 0, honest.mean(0) + 10, axis=0)
    stack = Stack(
        Server(jnp.asarray(updates), {}), jnp.ones(12, bool), jnp.zeros((12, 0), bool), jnp.ones(12)
    )
    chosen = np.asarray(reducers.krum(2).finish(stack).shared)
    assert (honest == chosen).all(1).any()


def test_a_loss_undefined_without_examples_harms_nobody(population):
    """A lane without examples may compute anything: clients beside it are clipped as if alone."""

    def loss(params, batch):
        mask = batch.data["mask"]
        score = params.tables["vector"] @ params.private["vector"]
        return (mask * jnp.square(score - 1)).sum() / mask.sum(), mask.sum()

    work = fr.local_training(loss, optax.sgd(0.3), fr.client.with_negatives(10), epochs=2)
    model = matrix_factorisation(3, 0.5, item_bias=False, ratings=False)

    def after(lanes, transform):
        algorithm = fr.federate(
            model, work, sampler=fixed(IDS), aggregator=aggregators.total(), lanes=lanes, transform=transform
        )
        return run(algorithm, population, rounds=1)

    expected = after(1, transforms.clip(0.01))
    assert np.isfinite(expected.server.tables["vector"]).all()
    assert_close(after(4, transforms.clip(0.01)), expected, "beside others")
    assert_close(after(4, transforms.clip(0.01)._replace(scale=None)), expected, "whole")


@pytest.mark.parametrize(
    "make", sampled([reducers.median, reducers.krum], [reducers.krum], "one stack is made")
)
def test_stack_on_a_mesh(population, make):
    """A stack that lies on several devices gives the same median and Krum."""
    aggregator = make() if make is reducers.median else make(1)
    one = _step(population, aggregator=aggregator, lanes=4)
    mesh = fr.client_mesh(4)
    assert_close(_step(population, aggregator=aggregator, lanes=4, mesh=mesh), one, "a mesh of 4")


def test_transform_on_a_mesh(population):
    """Clipping and noise on several devices are those of one."""
    noisy = transforms.chain(transforms.quantise(6), transforms.clip(0.5), transforms.add_noise(0.1))
    one = _step(population, transform=noisy, lanes=4)
    assert_close(_step(population, transform=noisy, lanes=4, mesh=fr.client_mesh(4)), one, "a mesh of 4")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: transforms.clip(0.0), "clipping norm"),
        (lambda: transforms.add_noise(-1.0), "deviation"),
        (lambda: transforms.quantise(0), "bits"),
        (transforms.chain, "at least one"),
        (lambda: reducers.krum(-1), "faulty"),
        (lambda: reducers.trimmed_mean(0.5), "trimmed share"),
        (lambda: aggregators.fixed_point(reducers.median(), capacity=3), "stacked"),
        (lambda: aggregators.fixed_point(aggregators.mean(), capacity=0), "capacity"),
        (lambda: aggregators.fixed_point(aggregators.mean(), capacity=10**8), "bits behind the point"),
        (lambda: fr.fedmf(row_update="best"), "unknown row update"),
    ],
)
def test_bad_values_are_refused(build, words):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        build()


def test_a_stack_that_cannot_fit_is_refused(population, monkeypatch):
    """The memory of a stacked round is known before it runs."""
    algorithm = fr.fedmf(**SMALL, sampler=fixed(IDS), aggregator=reducers.median())
    plan = algorithm.plan(population)
    need = sum(plan.num_bytes.values())
    assert plan.num_bytes["stack"] > 0
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * need)
    run(algorithm, population, rounds=1)
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda devices: devices * need - 1)
    with pytest.raises(ValueError, match="GiB, and there are"):
        _step(population, aggregator=reducers.median())


def test_the_best_state_counts(monkeypatch):
    """A run that holds on to its best state has room for two."""
    data = fr.leave_one_out(
        fr.data.synthetic(60, 50, seed=1, min_events=4, median_events=10), num_candidates=20
    )
    algorithm = fr.fedmf(**SMALL, cohort=10)
    _, history = fr.simulate(algorithm, data, rounds=1)
    num_bytes = history.plan.num_bytes
    assert num_bytes["best"] == num_bytes["private"] + num_bytes["model"] + num_bytes["versions"] > 0
    monkeypatch.setattr(
        "fedjax_rec.engine.plan.device_bytes", lambda devices: devices * sum(num_bytes.values()) - 1
    )
    stateless = algorithm._replace(init=lambda *_: pytest.fail("a state was made before the refusal"))
    with pytest.raises(ValueError, match=r"the best state so far takes .* keep='last'"):
        fr.simulate(stateless, data, rounds=1)
    assert "best" not in fr.simulate(algorithm, data, rounds=1, keep="last")[1].plan.num_bytes


def test_one_device_where_copies_do_not_fit(monkeypatch):
    """A run of the command line takes fewer devices by itself, but not fewer than it was told to."""
    settings = Settings(algorithm="fedrap", dim=2, stream_clients=0)
    clients = fr.population_of(load_inputs(settings).split)
    monkeypatch.setattr("fedjax_rec.runs.build.choose_devices", lambda *_: 2)
    two = make_that_fits(settings, clients)
    need = sum(with_copy(two.plan(clients)).num_bytes.values())
    assert two.plan(clients).devices == 2
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda _: need - 1)
    assert make_that_fits(settings, clients).plan(clients).devices == 1
    two_devices = dataclasses.replace(settings, devices=2)
    assert make_that_fits(two_devices, clients).plan(clients).devices == 2


def test_row_updates_agree(population):
    """However rows are added, the state is the same."""
    assert_close(_step(population, row_update="sorted", lanes=3), _step(population, lanes=3), "sorted")


def _growing():
    """Each time that a client takes part it sends its update once more than the time before."""

    def init(server):
        del server
        return {"times": jnp.float32(0)}

    def remember(key, sent, memory, server):
        del key, server
        times = memory["times"] + 1
        grown = jax.tree.map(lambda x: times * x, (sent.shared, sent.rows))
        return sent._replace(shared=grown[0], rows=grown[1]), {"times": times}

    return Transform("growing", lambda key, sent, server: sent, init=init, update_with_state=remember)  # noqa: ARG005


@pytest.mark.parametrize("epochs", [1, 2])
def test_transforms_remember(population, epochs):
    """What a client's transform keeps comes back in its next round; absent clients keep theirs, bit for bit."""
    settings = {"local_epochs": epochs, "transform": _growing()}
    first = _step(population, **settings)
    plain = _step(population, local_epochs=epochs)
    assert_close(first.server, plain.server, "the first time")
    state = run(fr.fedmf(**SMALL, sampler=fixed(IDS), **settings), population, rounds=3)
    times = np.zeros(population.num_clients)
    times[[i for i in IDS if i != 3]] = 3  # client 3 has no data
    np.testing.assert_array_equal(state.transform_state["times"], times)
    key = jax.random.key(KEY)
    algorithm = fr.fedmf(**SMALL, sampler=fixed(IDS), **settings)
    usual = fr.fedmf(**SMALL, sampler=fixed(IDS), local_epochs=epochs)
    second, _ = algorithm.round(key, first, population)
    once, _ = usual.round(key, first._replace(transform_state=()), population)
    twice = jax.tree.map(lambda new, old: 2 * (new - old) + old, once.server, first.server)
    assert_close(second.server, twice, "the second time")


def test_memory_does_not_see_lanes_devices_or_chains(population):
    """In a chain each element has its own; lanes and devices leave no trace."""
    chained = transforms.chain(_growing(), _growing(), transforms.clip(1e6))
    expected = run(fr.fedmf(**SMALL, cohort=12, transform=chained), population)
    assert [sorted(m) if m else m for m in expected.transform_state] == [["times"], ["times"], ()]
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("clients",))
    for settings in ({"lanes": 3}, {"lanes": 4, "mesh": mesh}):
        found = run(fr.fedmf(**SMALL, cohort=12, transform=chained, **settings), population)
        assert_close(found, expected, str(settings))
