"""Client faults: who arrives is what was asked for, and the server sums exactly those."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client.keys import name_clients
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.lane_steps import Uplink
from fedjax_rec.federation.faults import Faults, apply_faults
from fedjax_rec.server.aggregators import gaussian, total
from fedjax_rec.testing import KEY, assert_close, fixed, tiny_population
from fedjax_rec.transforms.clipping import clip

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
MANY = 4000


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _strike(faults, *, rounds=1, batches=3, epochs=1, many=MANY):
    """bool[rounds, many] and int32[rounds, many]."""
    ids, there = jnp.arange(many), jnp.ones(many, bool)
    work = jnp.broadcast_to(jnp.asarray(batches), (many,))
    key = jax.random.key(3)
    one = jax.jit(lambda t: apply_faults(faults, key, t, ids, there, work, epochs))
    arrived, done = jax.vmap(one)(jnp.arange(rounds))
    return np.asarray(arrived), np.asarray(done)


def test_nothing_happens_by_default():
    """Everybody arrives with all of their work."""
    arrived, done = _strike(Faults())
    assert arrived.all()
    assert (done == 3).all()


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_drop_out_has_its_rate_and_is_new_each_round(rate):
    """Binomial in number; a client that failed is as likely to fail again as any other."""
    arrived, _ = _strike(Faults(drop_out=rate), rounds=4)
    slack = 4.5 * np.sqrt(rate * (1 - rate) / MANY)
    assert np.abs(1 - arrived.mean(1) - rate).max() <= slack
    again = (~arrived[0] & ~arrived[1]).mean()
    assert again == pytest.approx(rate**2, abs=slack)


def test_clients_sleep_and_wake_once_a_day():
    """Each answers in 6 rounds of 24 in one stretch, the days begin all over the clock, and the next is alike."""
    arrived, _ = _strike(Faults(awake=0.25), rounds=48)
    assert (arrived[:24].sum(0) == 6).all()
    assert (arrived[:24] == arrived[24:]).all()
    assert ((arrived != np.roll(arrived, 1, 0)).sum(0) == 4).all()  # two days: awake twice, asleep twice
    begins = np.bincount((arrived[:24] & ~np.roll(arrived[:24], 1, 0)).argmax(0), minlength=24)
    assert np.abs(begins - MANY / 24).max() < 5 * np.sqrt(MANY / 24)


def test_the_slow_are_late():
    """Log time is normal: a deadline of the median time cuts off half, and a device stays as slow as it is."""
    arrived, done = _strike(Faults(spread=0.5, deadline=3.0), rounds=2)
    assert arrived.mean() == pytest.approx(0.5, abs=4.5 * 0.5 / np.sqrt(MANY))
    assert (arrived[0] == arrived[1]).all()
    assert (done == 3).all()
    shaken, _ = _strike(Faults(jitter=0.5, deadline=3.0), rounds=2)
    assert (shaken[0] & shaken[1]).mean() == pytest.approx(0.25, abs=4.5 * 0.44 / np.sqrt(MANY))
    twice, _ = _strike(Faults(spread=0.5, deadline=3.0), epochs=2)  # twice the work in the same time
    assert twice.mean() == pytest.approx(0.0828, abs=4.5 * 0.28 / np.sqrt(MANY))  # P[n < -log(2) / 0.5]


def test_partial_work_is_what_fits():
    """The late send as many batches as the time allows; without time for one, nothing."""
    faults = Faults(spread=0.5, deadline=3.0)
    whole, _ = _strike(faults)
    arrived, done = _strike(faults._replace(partial=True))
    assert (done[whole] == 3).all()
    assert (done[~whole] < 3).all()
    assert (arrived == (done > 0)).all()
    assert set(done[~whole].tolist()) == {0, 1, 2}


def test_the_first_count_and_a_minimum_must_come():
    """`keep` takes the fastest of those that arrive; fewer than the minimum is nobody."""
    times = Faults(spread=0.5, drop_out=0.5)
    arrived, _ = _strike(times)
    first, _ = _strike(times._replace(keep=100))
    assert first.sum() == 100
    assert not (first & ~arrived).any()
    fast, _ = _strike(Faults(spread=0.5, deadline=1.5, drop_out=0.5))  # about 8 % of those that arrive
    assert not (first & ~fast).any()
    count = int(arrived.sum())
    assert _strike(times._replace(minimum=count))[0].sum() == count
    assert _strike(times._replace(minimum=count + 1))[0].sum() == 0


@pytest.mark.parametrize(
    "settings", [{}, {"local_epochs": 2}, {"transform": clip(0.1)}], ids=["lanes", "waves", "clip"]
)
def test_the_server_sums_the_survivors(population, settings):
    """A round under faults equals one of the survivors alone, in another order; the others are as they were."""
    ids, there = np.arange(population.num_clients), np.diff(population.offsets) > 0
    make = partial(fr.fedmf, **SMALL, **settings, lanes=4)
    faulty = make(sampler=fixed(ids), faults=Faults(drop_out=0.5))
    state = faulty.init(jax.random.key(KEY), population)
    one_round = jax.jit(faulty.round)

    @jax.jit
    def alone(state, cohort):
        draw = lambda key, n: cohort  # noqa: ARG005, E731 - a sampler
        return make(sampler=draw).round(jax.random.key(KEY), state, population)

    for _ in range(3):
        after, info = one_round(jax.random.key(KEY), state, population)
        moved = (after.private["vector"] != state.private["vector"]).any(1)
        expected, _ = alone(state, (jnp.asarray(ids[::-1].copy()), moved[::-1]))
        assert_close(after, expected, "survivors alone")
        assert int(info.clients) == moved.sum()
        assert int(info.missing) == there.sum() - moved.sum() > 0
        state = after


def test_a_round_of_nobody_is_skipped(population):
    """Model, clients and the server's momentum stay; it is counted, and does not end a run."""
    optimizer = optax.sgd(1.0, momentum=0.9)
    calm = fr.fedmf(**SMALL, cohort=8, server_optimizer=optimizer)
    lost = fr.fedmf(**SMALL, cohort=8, server_optimizer=optimizer, faults=Faults(drop_out=1.0))
    state, _ = fr.simulate(calm, population, rounds=1)
    kept = jax.tree.map(np.asarray, state)
    after, history = fr.simulate(lost, population, rounds=9, state=state)
    assert history.stopped == "rounds"
    assert history.rounds.skipped.tolist() == [1] * 8
    assert history.rounds.clients.tolist() == [0] * 8
    assert_close(after._replace(round=kept.round), kept, "a round of nobody", 0)


def test_partial_work_in_the_engine(population):
    """A limit of batches trains the first of them, and counts as many examples."""
    algorithm = fr.fedmf(**SMALL, local_epochs=2)
    work = algorithm.work
    state = algorithm.init(jax.random.key(KEY), population)
    clients = name_clients(jax.random.key(1), jnp.arange(8), population)
    full = np.asarray(work.batches.num_batches(clients.num_examples) * (clients.num_examples > 0))
    weighing = total()._replace(weight=lambda n: 1.0 * n)

    def run(limit):
        cohort = Cohort(clients, jnp.ones(8, bool), batch_limit=limit)
        return run_cohort(work, Uplink(weighing), population, state.server, state.store, cohort, lanes=4)

    whole, same = run(None), run(jnp.asarray(full))
    assert_close(same.totals, whole.totals, "a limit that does not bind", 0)
    half = run(jnp.full(8, 2))
    assert int(half.report.batches) == 2 * np.minimum(full, 2).sum() < int(whole.report.batches)
    n = np.asarray(clients.num_examples)
    counted = np.where(full > 2, np.ceil(n * np.minimum(full, 2) / np.maximum(full, 1)), n)
    assert float(half.totals.weight) == counted.sum() < float(whole.totals.weight)
    width = -(-n // np.maximum(full, 1))
    assert (np.ceil(counted / np.maximum(width, 1)) <= np.maximum(np.minimum(full, 2), 0) + (full == 0)).all()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        (Faults(drop_out=-0.1), "drop_out=-0.1 is out of range; give a number from 0 to 1"),
        (Faults(awake=2.0), "awake=2.0 is out of range"),
        (Faults(day=0), "day=0 is out of range; give at least 1 round"),
        (Faults(spread=float("nan")), "spread=nan is out of range"),
        (Faults(keep=0), "keep=0 is out of range"),
        (Faults(minimum=0), "minimum=0 is out of range"),
        (Faults(deadline=-1.0), "deadline=-1.0 is out of range"),
        (Faults(partial=True), "needs a deadline"),
    ],
)
def test_what_is_refused(faults, message):
    with pytest.raises(ValueError, match=message):
        fr.fedmf(faults=faults)


@pytest.mark.parametrize("faults", [Faults(keep=5), Faults(minimum=2)])
def test_private_rounds_do_not_depend_on_who_else_came(faults):
    """Noise hides one update, not what the others do because of it."""
    rule = gaussian(noise_multiplier=1.0, norm=1.0, expected=8.0)
    with pytest.raises(ValueError, match="does not hide"):
        fr.fedmf(transform=clip(1.0), aggregator=rule, faults=faults)
    fr.fedmf(transform=clip(1.0), aggregator=rule, faults=Faults(drop_out=0.5))
