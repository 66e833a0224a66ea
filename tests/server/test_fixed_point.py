"""Fixed-point sums: they cannot wrap, have the same bits on any devices, and count what they cut off."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client.stored import open_population
from fedjax_rec.data.store import synthesise
from fedjax_rec.server import aggregators
from fedjax_rec.testing import KEY, assert_close, fixed, run, tiny_population

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "learning_rate": 0.3}
ADAM: dict[str, Any] = {"dim": 3, "batch_size": 10, "local_optimizer": optax.adam(0.02)}
IDS = np.array([0, 1, 2, 3, 4, 5, 9])  # client 3 has no data


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def test_more_clients_than_fixed_point_was_made_for(population):
    """Sums that could wrap are refused when the cohort is known."""
    few = aggregators.fixed_point(aggregators.total(), capacity=2)
    with pytest.raises(ValueError, match="raise their capacity"):
        run(fr.fedmf(**SMALL, sampler=fixed(IDS), aggregator=few), population, rounds=1)


@pytest.mark.parametrize("capacity", [1, 7, 1000, 10**6])
@pytest.mark.parametrize("limit", [0.256, 1.0, 3.7])
def test_fixed_point_cannot_wrap(capacity, limit):
    """The largest possible sum fits into 31 bits, and one bit more would not be safe."""
    try:
        found = aggregators.fixed_point(aggregators.total(), capacity=capacity, limit=limit).fixed
    except ValueError:
        return
    assert found is not None
    assert capacity * (np.floor(limit * 2.0**found.bits) + 1) <= 2**31 - 1
    assert capacity * (np.floor(limit * 2.0 ** (found.bits + 1)) + 1) > 2**31 - 1


@pytest.mark.as_compiled
@pytest.mark.parametrize(
    ("loss", "epochs"),
    [
        ("bce", 1),
        ("bpr", 2),
        pytest.param("mse", 1, marks=pytest.mark.thorough("bce trains on lanes, too")),
    ],
)
def test_fixed_point_has_equal_bits(population, loss, epochs):
    """Integer sums: the same bits on 1, 2, 4, 8 devices with equal lanes each, and in any order of the cohort."""
    rng = np.random.default_rng(0)
    ids = np.arange(population.num_clients)
    small = SMALL | {"learning_rate": 0.02}
    states = []
    for devices, order in ((1, ids), (2, ids), (4, ids), (8, ids), (1, rng.permutation(ids)), (8, ids[::-1])):
        algorithm = fr.fedmf(
            **small,
            sampler=fixed(order),
            aggregator=aggregators.fixed_point(aggregators.mean(), capacity=len(ids), limit=4.0),
            loss=loss,
            local_epochs=epochs,
            lanes=2 * devices,
            mesh=fr.client_mesh(devices),
        )
        states.append(run(algorithm, population, rounds=3))
    for state in states[1:]:
        assert_close(state, states[0], "fixed point", 0)
    plain = fr.fedmf(**small, sampler=fixed(ids), loss=loss, local_epochs=epochs, aggregator="mean")
    assert_close(states[0].server, run(plain, population, rounds=3).server, "against floats", 1e-4)


def test_fixed_point_with_adam(population):
    """Clients with Adam and several epochs: the same bits on two devices and four, to rounding on one."""
    one, two, four = (
        run(
            fr.fedmf(
                **ADAM,
                sampler=fixed(np.arange(population.num_clients)),
                aggregator=aggregators.fixed_point(
                    aggregators.mean(), capacity=population.num_clients, limit=4.0
                ),
                local_epochs=2,
                lanes=2 * devices,
                mesh=fr.client_mesh(devices),
            ),
            population,
            rounds=2,
        )
        for devices in (1, 2, 4)
    )
    assert_close(four, two, "two devices and four", 0)
    assert_close(two, one, "one device and two", 1e-6)


def test_fixed_point_with_a_server_that_solves():
    """Items are not solved in batches that depend on how many devices share them."""
    population = fr.population_of(fr.leave_one_out(fr.data.synthetic(60, 90)))
    two, four = (
        run(
            fr.fedals(
                dim=4,
                aggregator=aggregators.fixed_point(aggregators.total(), capacity=60, limit=16.0),
                lanes=16,
                mesh=fr.client_mesh(devices),
            ),
            population,
            rounds=2,
        )
        for devices in (2, 4)
    )
    assert_close(four, two, "two devices and four", 0)


PARTS: dict[str, dict[str, Any]] = {  # every way in which a cohort can be taken apart
    "chunks": {"stream_clients": 5},
    "chunks on two devices": {"stream_clients": 8, "mesh": fr.client_mesh(2), "lanes": 4},
    "touched rows": {"server_rows": "touched", "stream_clients": 3},
    "split tables": {"table_shards": 2, "stream_clients": 6, "mesh": fr.client_mesh(2), "lanes": 4},
}


@pytest.mark.as_compiled
def test_fixed_point_has_equal_bits_in_parts(tmp_path):
    """Chunks on as many lanes, of touched rows, over split tables, from a store: the bits of one piece."""
    store = synthesise(tmp_path / "drawn", clients=30, items=40, events_per_client=6)
    rule = aggregators.fixed_point(aggregators.mean(), capacity=11, limit=4.0)
    memory = open_population(store.path).load()

    def train(population, **parts):
        algorithm = fr.fedmf(**SMALL, **{"lanes": 2} | parts, cohort=11, num_negatives=1, aggregator=rule)
        return fr.simulate(algorithm, population, rounds=3, seed=KEY, eval_every=3)

    whole, history = train(memory, stream_clients=0)
    assert int(history.rounds.saturated.sum()) == 0
    for name, parts in PARTS.items():
        for population in (memory, open_population(store.path)):
            state, found = train(population, **parts)
            assert found.plan.stream_clients == parts["stream_clients"]
            for one, other in zip(*map(jax.tree.leaves, (state, whole)), strict=True):
                np.testing.assert_array_equal(np.asarray(one), np.asarray(other), err_msg=name)
            np.testing.assert_array_equal(found.rounds.rows, history.rounds.rows)


def test_capacity_is_that_of_a_cohort_and_not_of_a_chunk(population):
    """Chunks that fit do not make a cohort that could wrap one that cannot."""
    few = aggregators.fixed_point(aggregators.total(), capacity=5)
    with pytest.raises(ValueError, match="a cohort of 9 could wrap"):
        run(fr.fedmf(**SMALL, cohort=9, stream_clients=3, aggregator=few), population, rounds=1)
    algorithm = fr.fedmf(**SMALL, cohort=9, stream_clients=3, aggregator=few)
    with pytest.raises(ValueError, match="a cohort of 9 could wrap"):
        fr.simulate(algorithm, population, rounds=1)


def test_fixed_point_counts_what_it_cuts_off(population):
    """Numbers beyond the limit are cut off and counted; whose are no numbers is left out."""

    def info(limit, rate=3.0, scale=0.1):
        aggregator = aggregators.fixed_point(aggregators.total(), capacity=len(IDS), limit=limit)
        algorithm = fr.fedmf(
            **SMALL | {"learning_rate": rate, "init_scale": scale}, sampler=fixed(IDS), aggregator=aggregator
        )
        state = algorithm.init(jax.random.key(KEY), population)
        after, found = jax.jit(algorithm.round)(jax.random.key(KEY), state, population)
        gap = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), after.server.tables, state.server.tables)
        return int(found.saturated), max(gap.values()), int(found.unsound)

    assert info(10.0)[0] == 0
    cut, moved, unsound = info(0.2)
    assert cut > 0 == unsound
    assert moved <= 0.2 * len(IDS) * (1 + 1e-6)
    cut, moved, unsound = info(10.0, scale=1e30)  # scores overflow: not every delta is a number
    assert (cut, moved) == (0, 0.0)
    assert unsound > 0
