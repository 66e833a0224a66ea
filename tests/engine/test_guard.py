"""Guards: a client whose numbers are not finite is absent, and a step that is not finite is not taken."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.server.aggregators import fixed_point, total
from fedjax_rec.server.robust import norm_bound
from fedjax_rec.testing import fixed, tiny_population
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.transforms.compression import quantise

KEY = jax.random.key(3)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
WAYS: dict[str, dict[str, Any]] = {  # each way by which updates reach the sums
    "lanes": {},
    "waves": {"local_epochs": 2},
    "clip": {"transform": clip(1.0)},
    "whole": {"transform": quantise(8)},
    "stack": {"aggregator": norm_bound(1.0)},
    "fixed point": {"aggregator": fixed_point(total(), capacity=24)},
    "mesh": {"mesh": True},
    "server optimizer": {"server_optimizer": optax.adam(0.1)},
}
BAD = {"nan": np.nan, "infinite": np.inf, "1e30": 1e30}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


@pytest.fixture(scope="module", params=WAYS, ids=list(WAYS))
def tried(request, population):
    """One round of two programs, one with a cohort of its own; the clients' start and presence are arguments."""
    settings = dict(WAYS[request.param])
    if settings.pop("mesh", False):
        settings |= {"mesh": client_mesh(4), "lanes": 8}

    @jax.jit
    def run(vectors, alive):
        sampler = fixed(np.arange(population.num_clients))
        algorithm = fr.fedmf(sampler=lambda key, n: (sampler(key, n)[0], alive), **SMALL, **settings)
        state = algorithm.init(KEY, population)
        start = state._replace(private=state.private | {"vector": vectors})
        return start, *algorithm.round(KEY, start, population)

    return run, fr.fedmf(**SMALL).init(KEY, population).private["vector"]


def same(one, other):
    return all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    )


@pytest.mark.parametrize("value", BAD.values(), ids=list(BAD))
@pytest.mark.parametrize("share", [0.04, 0.3, 0.9, 1.0])
def test_bad_clients_are_absent(tried, population, value, share):
    """The round equals that of the others, bit for bit, and what the bad ones keep is what they had."""
    run, vectors = tried
    some = np.random.default_rng(int(100 * share)).permutation(population.num_clients)
    bad = np.zeros(population.num_clients, bool)
    bad[some[: max(1, int(share * len(some)))]] = True
    bad[3] = share == 1.0  # has no data, so that nothing of it can go wrong
    _, after, info = run(jnp.where(bad[:, None], value, vectors), jnp.ones(len(bad), bool))
    _, expected, others = run(vectors, jnp.asarray(~bad))
    assert same((after.server, after.opt_state), (expected.server, expected.opt_state))
    assert same(after.private["vector"][~bad], expected.private["vector"][~bad])
    assert int(info.unsound) == (bad & (np.arange(len(bad)) != 3)).sum()
    assert int(others.unsound) == 0
    assert int(info.skipped) == int(others.skipped) == (share == 1.0)
    assert int(info.clients) == int(others.clients)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.server))
    assert np.array_equal(
        after.private["vector"][bad], np.full((bad.sum(), 3), value, np.float32), equal_nan=True
    )


def test_denormal_numbers_do_no_harm(tried, population):
    """They are numbers: nobody is left out, and the model stays finite."""
    run, vectors = tried
    _, after, info = run(jnp.full_like(vectors, 1e-40), jnp.ones(population.num_clients, bool))
    assert int(info.unsound) == 0
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.server))


def test_a_bad_step_is_not_taken(population):
    """Model, optimizer and clients stay as they were; the round counts as skipped."""
    broken = total()._replace(finish=lambda totals: jax.tree.map(lambda x: x / 0.0, totals.deltas))
    algorithm = fr.federate(
        *fr.fedmf(**SMALL)[3:5], cohort=8, aggregator=broken, server_optimizer=optax.adam(0.1)
    )
    state = algorithm.init(KEY, population)
    after, info = jax.jit(algorithm.round)(KEY, state, population)
    assert same(after, state._replace(round=after.round))
    assert (int(info.skipped), int(info.unsound), float(info.update_norm)) == (1, 0, 0.0)
    assert int(after.round) == 1


def test_three_lost_rounds_in_a_row_end_a_run(population):
    """Fewer do not; the history counts them."""
    broken = total()._replace(finish=lambda totals: jax.tree.map(lambda x: x / 0.0, totals.deltas))
    algorithm = fr.federate(*fr.fedmf(**SMALL)[3:5], cohort=8, aggregator=broken)
    _, history = fr.simulate(algorithm, population, rounds=2, eval_every=2)
    assert history.stopped == "rounds"
    with pytest.warns(fr.training.DivergedWarning, match="by round 4; the state is of no use"):
        _, history = fr.simulate(algorithm, population, rounds=9, eval_every=2)
    assert history.stopped == "diverged"
    assert history.rounds.skipped.tolist() == [1, 1, 1, 1]


def test_an_empty_first_round_is_no_measure_of_loss(population):
    """The loss of the first round in which somebody trained is what later ones are compared with."""

    def late(key, num_clients):
        ids, alive = fixed(np.arange(8))(key, num_clients)
        return ids, alive & jax.random.bernoulli(key)

    algorithm = fr.fedmf(sampler=late, **SMALL)
    seeds = (fr.simulate(algorithm, population, rounds=4, seed=seed)[1] for seed in range(20))
    history = next(found for found in seeds if found.rounds.clients[0] == 0 and found.rounds.clients.any())
    assert history.stopped == "rounds"


def test_too_few_for_a_threshold_is_no_divergence(population):
    """Rounds that a threshold forbids are skipped one by one: nobody's update counts, and nothing has diverged."""
    rule = total()._replace(min_clients=25)
    algorithm = fr.fedmf(dim=2, aggregator=rule, cohort=20)
    state, history = fr.simulate(algorithm, population, rounds=5, keep="last")
    assert history.stopped == "rounds"
    assert history.rounds.skipped.tolist() == [1] * 5
    assert history.rounds.clients.tolist() == [0] * 5
    assert all(count in (19, 20) for count in history.rounds.missing)  # one client has no data
    once, _ = fr.simulate(algorithm, population, rounds=1, keep="last")
    np.testing.assert_array_equal(state.server.tables["vector"], once.server.tables["vector"])
