"""Evaluation points: the server's parameters, after local training, after folding held-out clients in."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.data.splitters import strong_generalisation
from fedjax_rec.engine.devices import replicate
from fedjax_rec.evaluation.evaluation_points import after_fold_in, after_local_training, server_parameters
from fedjax_rec.evaluation.ranking import rank_split
from fedjax_rec.rows.tables import read_rows
from fedjax_rec.types import Params

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def split():
    """A small population."""
    return fr.leave_one_out(fr.data.synthetic(20, 90))


@pytest.fixture(scope="module")
def held_out():
    """A trained model, the clients that trained it and others."""
    clients = strong_generalisation(fr.data.synthetic(400, 200))
    algorithm = fr.fedmf(dim=8, cohort=100)
    state, _ = fr.simulate(algorithm, clients.training, rounds=120, eval_every=60)
    return algorithm, state, clients


def test_the_server_is_the_default(split):
    """Naming it changes nothing."""
    algorithm = fr.fedmf(dim=4)
    state = algorithm.init(KEY, fr.population_of(split))
    plain, named = (
        fr.make_evaluator(algorithm, split, point=point)(state)
        for point in (None, server_parameters(algorithm))
    )
    np.testing.assert_array_equal(np.asarray(plain.full), np.asarray(named.full))


def test_after_local_training_is_the_clients_view_of_the_coming_round(split):
    """Each user is ranked with its own update added, and with its new private leaves."""
    algorithm = fr.fedmf(dim=4, sampler=fr.samplers.everyone(), learning_rate=0.3)
    population = fr.population_of(split)
    state, _ = fr.simulate(algorithm, population, rounds=3, eval_every=3)
    after, _ = algorithm.round(KEY, state, population)
    scores = np.zeros((split.num_users, split.num_items), np.float32)
    some = range(0, split.num_users, 3)
    for user in some:
        update = fr.client_update(algorithm, KEY, state, population, user)
        tables = {
            name: table.at[update.ids].add(update.rows[name]) for name, table in state.server.tables.items()
        }
        private = jax.tree.map(lambda p, user=user: p[user], after.private)
        assert algorithm.score is not None
        scores[user] = algorithm.score(private, fr.Server({}, tables))
    expected = rank_split(lambda users: jnp.asarray(scores)[users], split)
    point = after_local_training(algorithm, population, KEY)
    found = fr.make_evaluator(algorithm, split, point=point)(state)
    plain = fr.make_evaluator(algorithm, split)(state)
    difference = np.abs(np.asarray(found.full) - np.asarray(expected.full))[list(some)]
    assert difference.max() <= 1  # a last bit may exchange two neighbours
    assert difference.mean() < 0.05
    assert np.abs(np.asarray(plain.full) - np.asarray(found.full)).mean() > 1


def test_fold_in_trains_private_leaves_alone(held_out):
    """Against plain descent, batch by batch, on the server's rows as they are."""
    algorithm, state, clients = held_out
    population = fr.population_of(clients.heldout)
    private, server = after_fold_in(algorithm, population, KEY, epochs=2).prepare(state)
    assert server is state.server
    assert private["vector"].shape == (80, 8)
    loss, _ = algorithm.work.descent
    own = jax.vmap(lambda i: algorithm.model.init_private(jax.random.fold_in(stream(KEY, "private"), i)))

    @jax.jit
    def step(vector, client, t):
        batch = algorithm.work.batches.batch(client, population, t)
        rows = read_rows(server.tables, batch.ids)
        grads = jax.grad(lambda own: loss(Params(own, server.shared, rows), batch)[0])(vector)
        return jax.tree.map(lambda p, g: p - 0.012 * g, vector, grads)

    for user in (0, 7, 79):
        ids = jnp.array([user])
        vector = jax.tree.map(lambda p: p[0], own(ids))
        for epoch in range(2):
            key = jax.random.fold_in(stream(KEY, "evaluation"), epoch)
            client = jax.tree.map(lambda x: x[0], name_clients(key, ids, population))
            for t in range(int(algorithm.work.batches.num_batches(client.num_examples))):
                vector = step(vector, client, jnp.int32(t))
        np.testing.assert_allclose(private["vector"][user], vector["vector"], rtol=2e-5, atol=1e-6)


def test_fold_in_serves_clients_that_never_trained(held_out):
    """With a history folded in they do better than without, and than by popularity; and far from perfectly."""
    algorithm, state, clients = held_out
    population = fr.population_of(clients.heldout)
    found = []
    for epochs in (0, 40):
        point = after_fold_in(algorithm, population, KEY, epochs=epochs)
        ranks = fr.make_evaluator(algorithm, clients.heldout, point=point)(state)
        found.append(fr.evaluation.metrics_from_ranks(ranks.sampled, [10])["hr@10"])
    counts = jnp.asarray(np.bincount(clients.training.items, minlength=200), jnp.float32)
    popular = rank_split(lambda users: jnp.broadcast_to(counts, (len(users), 200)), clients.heldout)
    floor = fr.evaluation.metrics_from_ranks(popular.sampled, [10])["hr@10"]
    assert max(found[0], floor) + 0.05 < found[1] < 0.95


def test_what_cannot_be_folded_in(split):
    """One line each."""
    algorithm = fr.fedmf(dim=2)
    population = fr.population_of(split)
    with pytest.raises(ValueError, match="epochs must be at least 0, not -1"):
        after_fold_in(algorithm, population, KEY, epochs=-1)
    without = algorithm._replace(work=algorithm.work._replace(descent=None))
    with pytest.raises(ValueError, match="cannot train private leaves while the rows stay"):
        after_fold_in(without, population, KEY)
    with pytest.raises(ValueError, match="cannot rank items"):
        after_local_training(algorithm._replace(score=None), population, KEY)


def leaves_of(point, state):
    """With which clients are scored."""
    assert point.scored_leaves is not None
    return point.scored_leaves(state)


@pytest.mark.parametrize("make", [fr.fedals, partial(fr.fedrecon, loss="bce"), fr.fedease])
def test_devices_share_the_clients_that_represent_themselves(split, make):
    """Each trains some of them, which gives what one device gives."""
    population = fr.population_of(split)
    leaves = []
    for mesh in (None, fr.client_mesh(3)):
        algorithm = make(mesh=mesh)
        state = replicate(algorithm.init(KEY, population), mesh)
        state, _ = algorithm.round(KEY, state, replicate(population, mesh))
        found = leaves_of(server_parameters(algorithm, population), state)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))
        leaves.append(found)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), *leaves)


def test_devices_share_the_clients_that_are_folded_in(held_out):
    algorithm, state, clients = held_out
    population = fr.population_of(clients.heldout)
    shared = fr.fedmf(dim=8, cohort=100, mesh=fr.client_mesh(3))
    one = leaves_of(after_fold_in(algorithm, population, KEY, epochs=2), state)
    three = leaves_of(after_fold_in(shared, population, KEY, epochs=2), replicate(state, shared.mesh))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), one, three)
