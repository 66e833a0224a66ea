"""Clients whose histories wait in a store: training from it is training in memory, bit for bit."""

import json
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client import stored
from fedjax_rec.client.population import contains
from fedjax_rec.client.stored import open_population, paper_cohort
from fedjax_rec.data.store import synthesise
from fedjax_rec.data.store.format import FORMAT, META, VERSION, Column, seal_of
from fedjax_rec.data.store.verification import sample_sums
from fedjax_rec.data.store.writer import write_store
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.errors import ParameterError
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.samplers.data_dependent import power_of_choice
from fedjax_rec.samplers.tracking import sizes_of
from fedjax_rec.testing import tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints

pytestmark = pytest.mark.as_compiled

KEY = jax.random.key(3)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
PRIVATE = dp_fedavg(24, cohort=8, rounds=5, clip=0.5, delta=1e-3, noise_multiplier=2.0)
MAKES: dict[str, Any] = {
    "plain": partial(fr.fedmf, cohort=10, **SMALL),
    "own tables": partial(fr.fedrap, dim=3, batch_size=8),
    "losses": partial(fr.fedmf, sampler=power_of_choice(16, cohort=9), **SMALL),
    "faults": partial(
        fr.fedmf, cohort=12, faults=fr.Faults(drop_out=0.2, spread=0.5, deadline=8.0, partial=True), **SMALL
    ),
    "private": partial(fr.fedmf, **PRIVATE.federation, **SMALL),
    "ratings": partial(
        fr.fedmf,
        loss="mse",
        intercept=3.0,
        cohort=10,
        server_optimizer=optax.adam(0.1),
        local_epochs=2,
        **SMALL,
    ),
    "attackers": partial(
        fr.fedmf, loss="mse", intercept=3.0, cohort=10, adversary=fr.attacks.label_flip([1, 7]), **SMALL
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny population, with ratings and a client without data, as a store."""
    population = tiny_population()
    path = tmp_path_factory.mktemp("stores") / "tiny"
    with write_store(path) as writer:
        writer.append("offsets", np.asarray(population.offsets, np.int64))
        writer.append("items", np.asarray(population.examples["items"]))
        writer.append("ratings", np.asarray(population.examples["ratings"]))
        writer.describe(name="tiny", num_items=population.num_items, order="time", origin="a test")
    return path


def assert_same(found, expected):
    """Bit for bit."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


def train(algorithm, data, rounds=4, **options):
    return fr.simulate(algorithm, data, rounds=rounds, seed=KEY, eval_every=2, **options)


@pytest.mark.parametrize(
    ("name", "size", "devices", "cells"),
    [
        ("plain", 24, 1, 2**24),
        ("plain", 4, 1, 0),
        pytest.param("plain", 8, 2, 0, marks=pytest.mark.thorough("others have these chunks and devices")),
        ("own tables", 8, 2, 0),
        pytest.param(
            "losses", 8, 2, 0, marks=pytest.mark.thorough("chunks of them: federation/test_streaming")
        ),
        ("faults", 8, 2, 0),
        ("private", 5, 1, 0),
        ("ratings", 5, 1, 0),
        ("attackers", 5, 1, 0),
        *(
            pytest.param(name, 8, 2, 0, marks=pytest.mark.thorough("others have these chunks and devices"))
            for name in ("private", "ratings", "attackers")
        ),
    ],
)
def test_training_from_a_store_is_training_in_memory(folder, monkeypatch, name, size, devices, cells):
    """On the same plan, in whatever chunks, over whatever devices, by bitmaps and by buckets; compiled once."""
    monkeypatch.setattr(stored, "BITMAP_CELLS", cells)
    algorithm = MAKES[name](stream_clients=size, mesh=client_mesh(devices))
    expected, infos = train(algorithm, tiny_population())
    found, history = train(algorithm, open_population(folder))
    assert_same(found, expected)
    assert_same(history.rounds, infos.rounds)
    assert history.num_compilations == 1


def test_a_run_goes_on_from_its_checkpoint(folder, tmp_path):
    """Bit for bit; and never on another store, or on the clients in memory."""
    algorithm = MAKES["plain"](stream_clients=5)
    expected, _ = train(algorithm, open_population(folder))
    checkpoint = Checkpoints(tmp_path / "run", every=2)
    train(algorithm, open_population(folder), rounds=2, checkpoint=checkpoint)
    found, _ = train(algorithm, open_population(folder), checkpoint=checkpoint, resume=True)
    assert_same(found, expected)
    other = synthesise(tmp_path / "other", clients=24, items=40, events_per_client=8)
    with pytest.raises(ValueError, match="data hash"):
        train(algorithm, open_population(other.path), checkpoint=checkpoint)


def test_a_sample_of_clients_is_ranked(tmp_path):
    """The last two events of all are held out; the sample is the seed's, and ranked as a split of it is."""
    store = synthesise(tmp_path / "drawn", clients=60, items=80, events_per_client=9)
    population = open_population(store.path, evaluate_clients=20, seed=4)
    split = population.split
    assert split is not None
    assert population.sample_ids is not None
    again, other = (open_population(store.path, evaluate_clients=20, seed=seed) for seed in (4, 5))
    assert np.array_equal(again.sample_ids, population.sample_ids)  # type: ignore[arg-type]
    assert not np.array_equal(other.sample_ids, population.sample_ids)  # type: ignore[arg-type]
    assert population.lengths.tolist() == (np.diff(store.offsets) - 2).tolist()
    for row, client in enumerate(population.sample_ids):
        own = store.gather(np.array([client])).items
        assert own[-2:].tolist() == [split.validation[row], split.test[row]]
        assert own[:-2].tolist() == split.items[split.offsets[row] : split.offsets[row + 1]].tolist()
        assert not set(own.tolist()) & set(split.candidates_test[row].tolist())
    algorithm = fr.fedmf(dim=4, cohort=10)
    state, history = train(algorithm, population)
    rank = fr.make_evaluator(algorithm, split, which="validation")
    found = fr.evaluation.metrics_from_ranks(rank(population.of_sample(state)).full, [10])["ndcg@10"]
    best = max(metrics["full/ndcg@10"] for _, metrics in history.evaluations)
    assert found == pytest.approx(best)
    with pytest.raises(ValueError, match="60 clients have 3 events or more, and evaluate_clients=61"):
        open_population(store.path, evaluate_clients=61)
    with pytest.raises(ValueError, match="no clients were sampled"):
        open_population(store.path).of_sample(state)


def test_rooms_that_are_too_small_grow(folder, monkeypatch):
    """A cohort larger than expected is trained all the same, with the same bits."""
    monkeypatch.setattr(stored, "BITMAP_CELLS", 0)
    algorithm = MAKES["plain"](stream_clients=5)
    expected, _ = train(algorithm, tiny_population())
    monkeypatch.setattr(stored, "room_of", lambda *_: 3)
    population = open_population(folder)
    found, _ = train(algorithm, population)
    assert_same(found, expected)
    assert population.fetch(np.arange(5), np.ones(5, bool)).examples["items"].shape[0] > 3


def test_a_cohort_has_the_shapes_that_were_planned(folder, monkeypatch):
    """Whoever is in it; what a client has, and what nobody has, is found as in the whole."""
    whole = tiny_population()
    ids = np.array([5, 0, 3, 11])
    present = np.array([True, False, True, True])
    for cells in (0, 2**24):
        monkeypatch.setattr(stored, "BITMAP_CELLS", cells)
        population = open_population(folder)  # anew: it keeps the rooms that it once chose
        cohort = population.fetch(ids, present)
        planned = paper_cohort(population.directory, 4)
        shapes = [jax.tree.map(lambda x: (x.shape, x.dtype), x) for x in (cohort, planned)]
        assert shapes[0] == shapes[1]
        every = jnp.arange(whole.num_items + 1)
        for place in np.flatnonzero(present).tolist():
            own = contains(jax.device_put(cohort), jnp.int32(place), every)
            np.testing.assert_array_equal(own, contains(whole, jnp.int32(ids[place]), every))


def test_what_needs_all_histories_is_refused(folder):
    """By the table, before anything is trained, and wherever rounds do not fetch them."""
    population = open_population(folder)
    for settings, told in (
        ({"aggregator": "heat"}, "histories in a store .* in how many histories an item is"),
        ({"loss": "mse"}, "a model that starts from them all; leave it out, or load"),
        ({"aggregator": fr.server.median()}, "an aggregator that sees all updates at once"),
        ({"asynchronous": fr.FedBuff(buffer=4, concurrency=8, max_staleness=2)}, "asynchronous rounds"),
        ({"stream_clients": 0}, "stream_clients=0 asks for rounds in one piece"),
    ):
        with pytest.raises(ParameterError, match=told):
            fr.simulate(fr.fedmf(dim=2, **settings), population, rounds=1)
    algorithm = fr.fedmf(dim=2)
    with pytest.raises(ValueError, match="wait in a store, and only simulate fetches them"):
        algorithm.round(KEY, algorithm.init(KEY, population.directory), population.directory)
    with pytest.raises(ValueError, match="leave it out"):
        fr.simulate(algorithm, population, population=tiny_population())


def test_a_store_that_changes_ends_the_run(tmp_path):
    """In one line that names the file, though another thread found it."""
    store = synthesise(tmp_path / "drawn", clients=60, items=80, events_per_client=9)
    population = open_population(store.path)
    (store.path / "items.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"items\.bin: ends within the events of a client"):
        fr.simulate(fr.fedmf(dim=2, cohort=10), population, rounds=1)


def test_more_events_than_32_bits_count(tmp_path):
    """Sparse files of more than 2^31 events: offsets wrap on the device, and clients behind that train as any."""
    own, long = np.arange(10, dtype="<i4"), 2**19
    offsets = np.cumsum([0, len(own), *[long] * 2**12, len(own)])
    assert offsets[-1] > 2**31
    path = tmp_path / "sparse"
    path.mkdir()
    offsets.astype("<i8").tofile(path / "offsets.bin")
    with (path / "items.bin").open("wb") as file:
        file.write(own.tobytes())
        file.seek(4 * int(offsets[-2]))
        file.write(own[::-1].tobytes())
    columns = {
        name: Column(dtype, length, "never read", sample_sums(path / f"{name}.bin"))._asdict()
        for name, dtype, length in (("offsets", "<i8", len(offsets)), ("items", "<i4", int(offsets[-1])))
    }
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "name": "sparse",
        "num_items": 12,
        "order": "time",
        "origin": "",
    }
    meta |= {"columns": columns}
    (path / META).write_text(json.dumps(meta | {"seal": seal_of(meta)}))
    population = open_population(path)
    last = population.num_clients - 1
    assert (np.asarray(population.directory.offsets) < 0).any()
    assert np.array_equal(sizes_of(population.directory), population.lengths)

    def ends(key: Any, num_clients: int) -> tuple[Any, Any]:
        del key
        return jnp.array([0, num_clients - 1]), jnp.array([True, True])

    assert population.fetch(*map(np.asarray, ends(KEY, last + 1))).examples["items"][:20].tolist() == [
        *own,
        *own[::-1],
    ]
    with pytest.raises(ValueError, match="2,147,483,668 examples are too many"):
        population.load()
    _, history = fr.simulate(fr.fedmf(dim=2, sampler=ends), population, rounds=2)
    assert history.rounds.clients.tolist() == [2, 2]
    assert history.rounds.loss[1] < history.rounds.loss[0]
