"""Sums item by item are the sums of what the clients send: against numpy, and against the long way."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.common import moments
from fedjax_rec.algorithms.common.moments import moments_by_item
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.engine import cohort as engine
from fedjax_rec.engine.cohort import Cohort, run_cohort, sums_item_by_item
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.engine.guard import run_sound
from fedjax_rec.engine.lane_steps import Uplink
from fedjax_rec.server.aggregators import by_examples, total
from fedjax_rec.testing import LAWS, assert_close, tiny_population
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.types import ClientStore, DeviceShare, RowTreatment
from tests.crosses import crossed

KEY = jax.random.key(5)
DIM = 3


@pytest.fixture(scope="module")
def population():
    return tiny_population()


@pytest.fixture(scope="module")
def start(population):
    return fr.fedals(dim=DIM).init(KEY, population)


@pytest.fixture
def always(monkeypatch):
    """Rows are summed item by item however few the events are."""
    monkeypatch.setattr(engine, "EVENTS", 0)


def cohort_of(population, ids):
    return name_clients(stream(KEY, "client"), jnp.asarray(ids), population)


@pytest.mark.parametrize("chunk", [1, 3, 128])
@pytest.mark.parametrize("shares", [1, 3])
def test_against_numpy(population, monkeypatch, chunk, shares):
    """Weighted sums over an item's clients; who has weight 0 is absent, whatever its numbers."""
    monkeypatch.setattr(moments, "CHUNK", chunk)
    rng = np.random.default_rng(chunk)
    ids = rng.permutation(population.num_clients)[:20]
    weight = rng.uniform(0.5, 2.0, 20).astype(np.float32) * (np.arange(20) % 4 > 0)
    vectors = rng.normal(size=(20, DIM)).astype(np.float32)
    vectors[0] = np.nan
    given = (population, jnp.asarray(ids), jnp.asarray(weight), {"vector": jnp.asarray(vectors)})
    each = [moments_by_item(*given, DeviceShare(index, shares)) for index in range(shares)]
    found = jax.tree.map(lambda *x: sum(x), *each)
    items = np.asarray(population.examples["items"])
    offsets = np.asarray(population.offsets)
    expected = {"count": np.zeros(40), "target": np.zeros((40, DIM)), "moment": np.zeros((40, 6))}
    for slot, client in enumerate(ids):
        for item in items[offsets[client] : offsets[client + 1]]:
            if weight[slot]:
                p = vectors[slot]
                expected["count"][item] += weight[slot]
                expected["target"][item] += weight[slot] * p
                expected["moment"][item] += weight[slot] * np.outer(p, p)[np.triu_indices(DIM)]
    assert_close(found, expected, "sums", 1e-6)


@pytest.mark.parametrize(("devices", "size", "rule"), crossed([1, 4], [24, 7], [total(), by_examples()]))
@pytest.mark.usefixtures("always")
def test_the_short_way_is_the_long_one(population, start, devices, size, rule):
    """The same totals, private leaves and report, of all clients and of a few, whatever they weigh."""
    work = fr.fedals(dim=DIM).work
    ids = np.random.default_rng(size).permutation(24)[:size]
    alive = jnp.arange(size) != 2

    def run(work):
        share = jnp.linspace(0.0, 2.0, size)
        where: dict[str, Any] = {"lanes": 4, "mesh": client_mesh(devices)}
        cohort = Cohort(cohort_of(population, ids), alive, weight_factor=share)
        given = (population, start.server, start.store, cohort)
        return jax.jit(lambda *given: run_cohort(work, Uplink(rule), *given, **where))(*given)

    assert work.upload is not None
    short = run(work)
    long = run(work._replace(upload=work.upload.without_shortcut()))
    assert_close(short, long, "the short way")
    assert float(short.totals.deltas.tables["count"].sum()) > 0


@pytest.mark.parametrize("law", ["lanes", "mesh", "sum", "absent", "resume", "seeds"])
@pytest.mark.usefixtures("always")
def test_laws(population, law):
    """The laws that sums could break hold on the short way too."""
    LAWS[law](partial(fr.fedals, dim=DIM, cohort=12), population)


def test_where_it_is_taken(population, monkeypatch):
    """Only for plain sums on CPUs, and only where the cohort has events enough for each item."""
    work = fr.fedals(dim=DIM).work
    plain = Uplink(total())
    events = len(population.examples["items"])
    items = population.num_items
    monkeypatch.setattr(engine, "EVENTS", events // (2 * (items + events // engine.CHUNK)))
    assert sums_item_by_item(work, plain, 13, population)
    assert not sums_item_by_item(work, plain, 6, population)
    assert not sums_item_by_item(work, Uplink(total(), clip(1.0)), 24, population)
    assert not sums_item_by_item(work, Uplink(fr.server.fixed_point(total(), capacity=24)), 24, population)
    assert not sums_item_by_item(
        work, Uplink(total()._replace(rows=RowTreatment(weights=True))), 24, population
    )
    assert not sums_item_by_item(fr.fcf(dim=DIM).work, plain, 24, population)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not sums_item_by_item(work, plain, 24, population)


def test_examples_of_nobody(population):
    """Clients are found by their offsets, as they are everywhere else."""
    given = (jnp.arange(20), jnp.ones(20), {"vector": jnp.ones((20, DIM))}, DeviceShare(0, 1))
    cut = dataclasses.replace(population, offsets=population.offsets[2:-2])
    counts = moments_by_item(cut, *given)["count"]
    own = slice(int(cut.offsets[0]), int(cut.offsets[-1]))
    np.testing.assert_array_equal(counts, np.bincount(population.examples["items"][own], minlength=40))


@pytest.mark.usefixtures("always")
def test_a_client_that_stops_early_sends_less(population, start):
    """The short way knows only whole histories: it is not taken where clients may stop before their end."""
    work = fr.fedals(dim=DIM, batch_size=4).work
    ids = np.arange(24)

    def counts(limit):
        cohort = Cohort(cohort_of(population, ids), jnp.ones(24, bool), batch_limit=jnp.full(24, limit))
        result = run_cohort(work, Uplink(total()), population, start.server, start.store, cohort, lanes=4)
        return float(result.totals.deltas.tables["count"].sum())

    assert counts(99) == float(population.offsets[-1])
    assert counts(1) == np.minimum(np.diff(population.offsets), 4).sum()


@pytest.mark.usefixtures("always")
def test_bad_clients_are_absent(population, start):
    """Whose vector is not finite leaves no trace in the sums."""
    work = fr.fedals(dim=DIM).work
    began = work.start

    def start_badly(key, private, shared, context):
        local = began(key, private, shared, context)
        return local._replace(matrix=local.matrix + 0 * private["vector"].sum())

    bad = jnp.arange(24) % 5 == 1
    private = {"vector": jnp.where(bad[:, None], jnp.nan, start.private["vector"])}
    clients = cohort_of(population, np.arange(24))
    work = work._replace(start=start_badly)

    def attempt(alive, check_rows):
        given = (population, start.server, ClientStore(private), Cohort(clients, alive))
        return run_cohort(work, Uplink(total()), *given, lanes=4, check_rows=check_rows)

    result, left = run_sound(attempt, jnp.ones(24, bool))
    expected, _ = run_sound(attempt, ~bad)
    assert_close(result.totals, expected.totals, "sums without the bad ones", 0)
    assert np.array_equal(left, ~bad)
