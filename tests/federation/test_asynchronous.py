"""Asynchronous rounds: the engine against events one by one, and what must hold whatever the numbers."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks.adversary import label_flip
from fedjax_rec.attacks.promotion import explicit_boosting
from fedjax_rec.client.batches import positives_per_batch
from fedjax_rec.client.keys import client_keys, name_clients, stream
from fedjax_rec.client.population import build
from fedjax_rec.federation.asynchronous import FedBuff, staleness_scale
from fedjax_rec.rows.permutation import domain, permute_index
from fedjax_rec.server.aggregators import fixed_point, gaussian
from fedjax_rec.testing import KEY, assert_close, check_one_trace, check_seeds, fixed, tiny_population
from fedjax_rec.transforms.clipping import clip
from tests.crosses import sampled
from tests.references import fedbuff as slow
from tests.references import fedmf as ref

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
RATE, STRENGTH, NEGATIVES, BATCH, SERVER_RATE = 0.05, 0.02, 3, 8, 0.5
ROUNDS = 7
QUICK = {"xla_backend_optimization_level": 0}
UNEVEN = FedBuff(buffer=3, concurrency=7, max_staleness=2, spread=0.8, jitter=0.4)


@cache
def population():
    return tiny_population()


def _alike(clients=12):
    """A population of clients with equally many examples."""
    random = np.random.default_rng(1)
    items = np.concatenate([random.permutation(40)[:6] for _ in range(clients)])
    return build(np.arange(clients + 1) * 6, items, None, 40)


@cache
def _programs(algorithm):
    """First state and one round, compiled in a hurry."""
    return tuple(jax.jit(part, compiler_options=QUICK) for part in (algorithm.init, algorithm.round))


def _rounds(algorithm, data, rounds, state=None):
    """States (the first included) and reports of rounds, each run by itself."""
    key, (init, one) = jax.random.key(KEY), _programs(algorithm)
    states, infos = [init(key, data) if state is None else state], []
    for _ in range(rounds):
        state, info = one(key, states[-1], data)
        states.append(state)
        infos.append(info)
    return states, infos


@cache
def _usual():
    """The algorithm of several tests."""
    return fr.fedmf(**SMALL, asynchronous=UNEVEN)


# --- Against the reference ------------------------------------------------------------------------------------


def _world(algorithm, setting, fedbuff):
    """The draws of the library, and the training of the reference."""
    key, data = jax.random.key(KEY), population()
    counts = np.diff(data.offsets)
    batch = jax.jit(algorithm.work.batches.batch)
    positives = positives_per_batch(BATCH, NEGATIVES)
    many = data.num_clients

    def order(number, turn):
        drawn = jax.random.fold_in(jax.random.fold_in(stream(key, "cohort"), number), turn)
        words = jax.random.key_data(drawn).astype(jnp.uint32)
        ids = np.asarray(permute_index(words, jnp.arange(domain(many)), many))
        return [int(i) for i in ids if i < many]

    def duration(client, birth):
        own = jax.random.fold_in(stream(key, "faults"), client)
        now = jax.random.fold_in(own, birth + 1)
        device, load = (float(jax.random.normal(jax.random.fold_in(k, 2))) for k in (own, now))
        batches = -(-counts[client] // positives) * setting.epochs
        return float(np.exp(fedbuff.spread * device + fedbuff.jitter * load) * batches)

    def train(client, birth, private, server):
        words = client_keys(jax.random.fold_in(stream(key, "client"), birth), jnp.array([client]))
        named = name_clients(key, jnp.array([client]), data)._replace(key=words)
        named = jax.tree.map(lambda x: x[0], named)
        own = slice(int(data.offsets[client]), int(data.offsets[client + 1]))
        ratings = dict.fromkeys(np.asarray(data.examples["items"][own]).tolist(), 1.0)
        count = -(-len(ratings) // positives)
        cut = [
            _group(np.asarray(batch(named, data, jnp.int32(t)).ids), positives, data.num_items)
            for t in range(count)
        ]
        values, _, _ = ref.train_client(setting, ref.Client(client, ratings, cut), private, server)
        return {"user": values["user"]}, {name: values[name] - server[name] for name in server}

    return slow.World(order, duration, train, lambda client: counts[client] > 0)


def _group(ids, positives, items):
    """Give each positive its own negatives."""
    pairs = zip(ids[:positives].tolist(), ids[positives:].reshape(positives, -1).tolist(), strict=True)
    return [(i, [j for j in row if j < items]) for i, row in pairs if i < items]


def _read(state):
    """The model and the private store under the reference's names, in float64."""
    tables = {"vector": "item", "bias": "item_bias"}
    server = {tables[name]: np.asarray(leaf, np.float64) for name, leaf in state.server.tables.items()}
    return server, [{"user": vector} for vector in np.asarray(state.private["vector"], np.float64)]


@pytest.mark.parametrize(("epochs", "aggregator"), [(1, "mean"), (2, "sum")], ids=["lanes", "waves"])
def test_rounds_equal_events_one_by_one(epochs, aggregator):
    """Who arrives, when, how stale; the model and the private parameters after each round."""
    algorithm = fr.fedmf(
        dim=4,
        num_negatives=NEGATIVES,
        batch_size=BATCH,
        local_epochs=epochs,
        learning_rate=RATE,
        regularisation=STRENGTH,
        init_scale=1.0,
        aggregator=aggregator,
        server_optimizer=optax.sgd(SERVER_RATE),
        asynchronous=UNEVEN,
        lanes=2,
    )
    states, infos = _rounds(algorithm, population(), ROUNDS)
    setting = ref.Setting(ref.bce, STRENGTH, epochs, ref.sgd(RATE), ref.total, ref.sgd(SERVER_RATE))
    rules = slow.Rules(*UNEVEN[:4], SERVER_RATE, aggregator == "mean")
    world = _world(algorithm, setting, UNEVEN)
    server, private = _read(states[0])
    models, private, log, under = slow.run(rules, world, server, private, ROUNDS)
    for t, state in enumerate(states):
        assert_close(_read(state)[0], models[t], f"the model after round {t}")
    assert_close(_read(states[-1])[1], private, "private parameters")
    assert not all(event.counted for event in log), (
        "some arrival should be too stale, or the test shows little"
    )
    for t, info in enumerate(infos):
        events = [event for event in log if event.step == t]
        ages = [t - event.birth for event in events if event.counted]
        assert int(info.clients) == len(ages)
        assert int(info.missing) == len(events) - len(ages)
        assert float(info.staleness) == pytest.approx(np.mean(ages) if ages else 0.0)
    flight = states[-1].in_flight
    assert flight.ids.tolist() == [trip.client for trip in under]
    assert flight.start_rounds.tolist() == [trip.birth for trip in under]
    left = np.array([trip.arrives for trip in under]) - log[-1].time
    np.testing.assert_allclose(flight.time_left, left, rtol=1e-4, atol=1e-4)


# --- Against rounds in step -----------------------------------------------------------------------------------


def test_one_client_at_a_time_is_in_step():
    """With K = M = 1 nobody is ever stale: the same as drawing a cohort of that client, bit for bit."""
    data, key = _alike(), jax.random.key(KEY)
    algorithm = fr.fedmf(**SMALL, asynchronous=FedBuff(buffer=1, concurrency=1), lanes=1)
    states, infos = _rounds(algorithm, data, 4)

    @partial(jax.jit, compiler_options=QUICK)
    def step(state, ids):
        return fr.fedmf(**SMALL, sampler=fixed(ids), lanes=1).round(key, state, data)[0]

    state = states[0]._replace(in_flight=())
    for before, after, info in zip(states, states[1:], infos, strict=False):
        state = step(state, before.in_flight.ids)
        assert_close(after._replace(in_flight=()), state, "one at a time", 0)
        assert float(info.staleness) == 0


def test_equal_devices_arrive_together():
    """With K = M and equal devices the first buffer is the first cohort; the next is all stale by one, but one."""
    data, key = _alike(), jax.random.key(KEY)
    algorithm = fr.fedmf(**SMALL, asynchronous=FedBuff(buffer=6, concurrency=6), lanes=3)
    states, infos = _rounds(algorithm, data, 2)
    first = states[0]._replace(in_flight=())
    in_step = fr.fedmf(**SMALL, sampler=fixed(states[0].in_flight.ids), lanes=3)
    expected, info = jax.jit(in_step.round)(key, first, data)
    assert_close(states[1]._replace(in_flight=()), expected, "the first buffer", 1e-6)
    assert int(infos[0].clients) == int(info.clients) == 6
    assert float(infos[0].staleness) == 0
    assert float(infos[1].staleness) == pytest.approx(5 / 6)


# --- What must hold -------------------------------------------------------------------------------------------


def _expected_step(algorithm, states, t, exponent):
    """The sum of what `client_update` shows for the state that each arrival of round t started from."""
    key, data = jax.random.key(KEY), population()
    before, after = states[t].in_flight, states[t + 1]
    landed = [
        (int(i), int(birth))
        for i, birth in zip(before.ids, before.start_rounds, strict=True)
        if (np.asarray(states[t].private["vector"][i]) != after.private["vector"][i]).any()
    ]
    step = {name: np.zeros(leaf.shape) for name, leaf in after.server.tables.items()}
    for client, birth in landed:
        held = states[birth]._replace(private=states[t].private, in_flight=())
        update = fr.client_update(algorithm, key, held, data, client)
        for name, rows in update.rows.items():
            np.add.at(step[name], np.asarray(update.ids), (1.0 + t - birth) ** -exponent * np.asarray(rows))
    return landed, step


def test_a_stale_client_trains_from_the_model_that_it_was_sent():
    """Its update is that of its birth's model and keys; computed on the newest, the step would be another one."""
    fedbuff = FedBuff(buffer=2, concurrency=9, max_staleness=8, spread=0.3)
    algorithm = fr.fedmf(**SMALL, learning_rate=0.3, init_scale=1.0, asynchronous=fedbuff)
    states, infos = _rounds(algorithm, population(), 6)
    seen = 0
    for t in range(6):
        landed, step = _expected_step(algorithm, states, t, 0.5)
        if len(landed) < 2:  # somebody started and arrived within the round
            continue
        moved = jax.tree.map(jnp.subtract, states[t + 1].server.tables, states[t].server.tables)
        assert_close(moved, step, f"round {t}", 1e-4)
        if float(infos[t].staleness) >= 2:
            seen += 1
            newest = [state._replace(server=states[t].server) for state in states]
            other = _expected_step(algorithm, newest[: t + 1] + states[t + 1 :], t, 0.5)[1]
            with pytest.raises(AssertionError, match="the newest"):
                assert_close(moved, other, "the newest", 1e-4)
    assert seen >= 2


def test_every_client_that_starts_arrives_once():
    """Nobody is under way twice, nobody lacks data, and all that start arrive or are still under way."""
    data, rounds = population(), 40
    states, infos = _rounds(_usual(), data, rounds)
    started, under = set(), set()
    for t, state in enumerate(states):
        flight = state.in_flight
        assert len(set(flight.ids.tolist())) == UNEVEN.concurrency
        assert (np.diff(data.offsets)[flight.ids] > 0).all()
        assert (flight.time_left >= 0).all()
        assert (flight.start_rounds <= t).all()
        under = set(zip(flight.ids.tolist(), flight.start_rounds.tolist(), strict=True))
        started |= under
    arrived = sum(int(info.clients) + int(info.missing) for info in infos)
    assert sum(int(info.clients) for info in infos) == rounds * UNEVEN.buffer
    assert arrived > rounds * UNEVEN.buffer, "some arrival should be too stale"
    # a client that starts and arrives within one round is seen at no round's end
    assert len(started) <= arrived + UNEVEN.concurrency
    assert all(float(info.staleness) <= UNEVEN.max_staleness for info in infos)


def test_the_slow_hold_nobody_up():
    """A device that is slower by thousands stays under way while the others come and go."""
    algorithm = fr.fedmf(dim=1, asynchronous=FedBuff(buffer=4, concurrency=8, spread=3.0))
    states, _ = _rounds(algorithm, population(), 10)
    births = states[-1].in_flight.start_rounds
    assert (births == 0).any()
    assert (births >= 9).any()


def test_weights_of_the_stale():
    """(1 + tau)^-exponent, and a mean divides by the number of arrivals, not by their weights."""
    np.testing.assert_allclose(staleness_scale(jnp.arange(9), 0.5), 1 / np.sqrt(1 + np.arange(9)), rtol=1e-6)
    assert (staleness_scale(jnp.arange(9), 0.0) == 1).all()
    make = partial(fr.fedmf, **SMALL, asynchronous=FedBuff(3, 8, 9), lanes=3)
    states, infos = _rounds(make(), population(), 3)
    other, _ = _rounds(make(aggregator="mean"), population(), 1, states[2])
    total, average = (
        x.server.tables["vector"] - states[2].server.tables["vector"] for x in (states[3], other[1])
    )
    assert float(infos[2].staleness) > 0
    assert_close(3 * average, total, "a mean of three", 1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(
            {"transform": clip(0.05)}, marks=pytest.mark.thorough("two epochs, and one epoch of another")
        ),
        {"transform": clip(0.05), "local_epochs": 2},
        {"transform": fr.transforms.qsgd(4)},
    ],
    ids=["clip", "clip, 2 epochs", "qsgd"],
)
def test_transforms_come_before_the_scale(settings):
    """A client transforms its update first; the server then scales what it got."""
    fedbuff = FedBuff(buffer=3, concurrency=8, max_staleness=3)
    algorithm = fr.fedmf(**SMALL, **settings, asynchronous=fedbuff)
    start, _ = _rounds(algorithm, population(), 0)
    # all are about to arrive; later, they are 3 steps old, and the model is still the first
    fresh = start[0]._replace(in_flight=start[0].in_flight._replace(time_left=0.001 * jnp.arange(8)))
    (plain, _), (scaled, info) = (
        (states[1].server.tables["vector"] - fresh.server.tables["vector"], infos[0])
        for states, infos in (
            _rounds(algorithm, population(), 1, fresh._replace(round=jnp.int32(t))) for t in (0, 3)
        )
    )
    assert float(info.staleness) == 3
    assert float(jnp.abs(plain).max()) > 0
    assert_close(2 * scaled, plain, "half of it", 1e-4)


def test_resume_is_bitwise():
    """Going on from stored arrays equals running straight through, flight and old models included."""
    straight, _ = _rounds(_usual(), population(), 6)
    stored = jax.tree.map(np.asarray, straight[3])
    resumed, _ = _rounds(_usual(), population(), 3, jax.tree.map(jnp.asarray, stored))
    assert_close(resumed[-1], straight[6], "a resumed run", 0)


def test_a_checkpoint_holds_the_flight(tmp_path):
    """`simulate` saves it, goes on from it bit for bit, and its history tells the staleness."""
    algorithm = fr.fedmf(**SMALL, asynchronous=UNEVEN)
    straight, history = fr.simulate(algorithm, population(), rounds=6, eval_every=2)
    place = fr.Checkpoints(tmp_path, every=2)
    fr.simulate(algorithm, population(), rounds=4, eval_every=2, checkpoint=place)
    resumed, again = fr.simulate(
        algorithm, population(), rounds=6, eval_every=2, checkpoint=place, resume=True
    )
    assert_close(resumed, straight, "a resumed run", 0)
    assert fr.frame(again)["staleness"].tolist() == fr.frame(history)["staleness"].tolist()
    assert fr.frame(history)["staleness"].max() > 0
    assert history.num_compilations == 1


def test_one_trace_and_a_batch_of_seeds():
    """Laws 9 and 10: one program serves every buffer, and seeds run side by side."""
    make = partial(fr.fedmf, **SMALL, asynchronous=UNEVEN)
    check_one_trace(make, population(), 20)
    check_seeds(make, population(), by_vmap=False)


def test_devices_are_invisible():
    """One client at a time, on one device, equals four devices."""
    make = partial(fr.fedmf, **SMALL, loss="mse", asynchronous=UNEVEN)  # with a shared leaf
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("clients",))
    expected = _rounds(make(lanes=1), population(), 4)[0][-1]
    found = _rounds(make(lanes=4, mesh=mesh), population(), 4)[0][-1]
    assert_close(found, expected, "devices")


@pytest.mark.parametrize(
    "make", sampled([fr.pfedrec, fr.fedrap, fr.fednova], [fr.fedrap], "all send changes of the model")
)
def test_other_algorithms_run(make):
    """Any whose clients send changes of the model: they train, and their loss is finite."""
    states, infos = _rounds(make(dim=4, asynchronous=UNEVEN), population(), 3)
    assert sum(int(info.clients) for info in infos) > 5
    assert all(np.isfinite(info.loss) and not info.skipped for info in infos)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(states[-1].server))


def test_fixed_point_sums_and_flipped_labels_go_along():
    """Integer sums in place of floats; malicious clients who need no plan."""
    plain = _rounds(_usual(), population(), 3)[0][-1]
    whole = fr.fedmf(**SMALL, asynchronous=UNEVEN, aggregator=fixed_point(fr.server.total(), capacity=3))
    assert_close(_rounds(whole, population(), 3)[0][-1].server, plain.server, "integers", 1e-4)
    bad = fr.fedmf(**SMALL, asynchronous=UNEVEN, adversary=label_flip(range(12), num_negatives=4))
    moved = _rounds(bad, population(), 3)[0][-1].server.tables["vector"]
    assert (moved != plain.server.tables["vector"]).any()


def test_the_plan_counts_the_old_models():
    """S + 1 of them."""
    make = lambda depth: fr.fedmf(**SMALL, asynchronous=UNEVEN._replace(max_staleness=depth))  # noqa: E731
    few, many = (make(depth).plan(population()).num_bytes for depth in (2, 12))
    assert many["versions"] - few["versions"] == 10 * (many["model"] - 0)
    assert fr.fedmf(**SMALL).plan(population()).num_bytes["versions"] == 0


@pytest.mark.parametrize("depth", sampled([0, 1, 3], [0], "more models that are kept is another size"))
def test_the_too_stale_stop_nothing(depth):
    """With K < M most come too late; they take no place in the buffer, so that every round takes its step."""
    algorithm = fr.fedmf(**SMALL, asynchronous=FedBuff(buffer=2, concurrency=10, max_staleness=depth))
    _, infos = _rounds(algorithm, population(), 12)
    assert sum(int(info.missing) for info in infos) > 0
    assert {int(info.clients) for info in infos} == {2}
    assert not any(int(info.skipped) for info in infos)
    assert all(float(info.update_norm) > 0 for info in infos)


@pytest.mark.parametrize(
    ("fedbuff", "message"),
    [
        (FedBuff(buffer=0), "FedBuff.buffer=0 is out of range; give at least 1"),
        (FedBuff(concurrency=0), "FedBuff.concurrency=0 is out of range"),
        (FedBuff(max_staleness=-1), "FedBuff.max_staleness=-1 is out of range"),
        (FedBuff(exponent=-0.5), "FedBuff.exponent=-0.5 is out of range"),
        (FedBuff(spread=float("nan")), "FedBuff.spread=nan is out of range"),
    ],
)
def test_numbers_out_of_range_are_refused(fedbuff, message):
    with pytest.raises(ValueError, match=message):
        fr.fedmf(asynchronous=fedbuff)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(fr.fedmf, cohort=5), "a cohort, since nobody waits"),
        (partial(fr.fedmf, sampler=fixed([0])), "a sampler, since who arrives"),
        (partial(fr.fedmf, faults=fr.Faults(drop_out=0.5)), "leave them out for FedBuff.spread"),
        (partial(fr.fedmf, aggregator=fr.server.median()), "compares updates"),
        (
            partial(
                fr.fedmf, transform=clip(1.0), aggregator=gaussian(noise_multiplier=1, norm=1, expected=9)
            ),
            "no accountant",
        ),
        (
            partial(fr.fedmf, adversary=fr.attacks.colluding(explicit_boosting([7]), [0])),
            "plan for the cohort",
        ),
        (fr.gpfedrec, "answers a whole cohort"),
        (fr.scaffold, "something else than changes"),
        (fr.fedals, "something else than changes"),
    ],
)
def test_what_cannot_be_combined_is_refused(make, message):
    with pytest.raises(ValueError, match=f"asynchronous rounds cannot have .*{message}|{message}") as caught:
        make(asynchronous=FedBuff(buffer=2, concurrency=3))
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # the way out


def test_too_few_clients_and_too_many_models_are_refused():
    """In one line, before anything is allocated."""

    def start(fedbuff):
        algorithm = fr.fedmf(dim=4, asynchronous=fedbuff)
        return jax.jit(algorithm.init)(jax.random.key(0), population())

    with pytest.raises(
        ValueError, match=r"20 clients under way and 5 .* population of 24; lower FedBuff.concurr"
    ):
        start(FedBuff(buffer=5, concurrency=20))
    with pytest.raises(ValueError, match=r"GiB, the device has .*; lower FedBuff.max_staleness or dim"):
        start(FedBuff(buffer=2, concurrency=2, max_staleness=10**10))


def test_a_population_almost_without_data():
    """Places that find nobody ask again, and hold no round up."""
    data = build(np.array([0, 3, 3, 6, 6, 6, 9, 9, 9]), np.array([0, 1, 2] * 3), None, 5)
    states, infos = _rounds(fr.fedmf(dim=2, asynchronous=FedBuff(buffer=2, concurrency=6)), data, 12)
    for state in states:
        ids = state.in_flight.ids[state.in_flight.ids < 8].tolist()
        assert len(set(ids)) == len(ids) <= 3
    assert sum(int(info.clients) for info in infos) > 6
