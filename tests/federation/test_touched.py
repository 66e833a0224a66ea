"""Rounds on the rows that a cohort touches are the rounds over all rows, wherever the clients' histories are."""

import dataclasses
import json
from functools import lru_cache, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.client.stored import open_population
from fedjax_rec.data.store import synthesise
from fedjax_rec.engine.chunks import plan_run
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.errors import ParameterError
from fedjax_rec.federation import row_finder, touched
from fedjax_rec.federation.host_memory import copy_state, make_block, put_state
from fedjax_rec.federation.row_finder import find_rows
from fedjax_rec.rows import draws
from fedjax_rec.samplers.data_dependent import power_of_choice
from fedjax_rec.server.optimizers import fedadagrad
from fedjax_rec.server.resting import lets_rows_rest, rest_untouched, rows_of_state
from fedjax_rec.testing import assert_close, tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.types import Server

pytestmark = pytest.mark.as_compiled

KEY = jax.random.key(3)
SIZE = row_finder.table_size  # of compact tables; `_one_size` puts another in its place
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "num_negatives": 1}
MAKES: dict[str, Any] = {
    "plain": partial(fr.fedmf, cohort=5, **SMALL),
    "epochs": partial(fr.fedmf, cohort=5, local_epochs=3, aggregator="touchers", **SMALL),
    "local adam": partial(fr.fedmf, cohort=5, local_optimizer=optax.adam(0.01), aggregator="mean", **SMALL),
    "adagrad": partial(fr.fedmf, cohort=5, server_optimizer=fedadagrad(0.1), **SMALL),
    "lazy adam": partial(fr.fedmf, cohort=5, server_optimizer=rest_untouched(optax.adam(0.1)), **SMALL),
    "clip": partial(fr.fedmf, cohort=5, transform=fr.transforms.clip(0.05), **SMALL),
    "losses": partial(fr.fedmf, sampler=power_of_choice(9, cohort=5), **SMALL),
    "faults": partial(
        fr.fedmf, cohort=6, faults=fr.Faults(drop_out=0.2, spread=0.5, deadline=8.0, partial=True), **SMALL
    ),
    "ratings": partial(fr.fedmf, loss="mse", cohort=5, dim=3, batch_size=10),
    "change": partial(fr.fedmf, cohort=5, aggregator="change", **SMALL),
    "fedncf": partial(fr.fedncf, dim=4, layers=1, cohort=5, aggregator="rows", num_negatives=1),
    "fedper": partial(fr.fedper, dim=3, cohort=5, aggregator="rows", num_negatives=1),
}
ROUNDED = (
    "fedncf",
    "fedper",
)  # whose dense leaves are summed in another program, in other vector instructions


@pytest.fixture(autouse=True)
def _one_size(monkeypatch):
    """One size of compact tables, and so one program for all rounds: many would be those of a large catalogue."""
    monkeypatch.setattr("fedjax_rec.federation.row_finder.table_size", lambda _: 40)


def train(algorithm, data=None, rounds=4, **options):
    data = tiny_population() if data is None else data
    return fr.simulate(algorithm, data, rounds=rounds, seed=KEY, eval_every=2, **options)


def assert_same(found, expected):
    """Bit for bit."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@lru_cache(maxsize=1)  # cells of a name follow one another
def over_all_rows(name):
    state, history = train(MAKES[name](server_rows="all"))
    return state, history.rounds


PARTS = [(24, 1), (2, 1), (4, 2)]  # clients of a chunk, devices
USUAL = [
    ("plain", (24, 1)),
    ("epochs", (24, 1)),
    ("adagrad", (24, 1)),
    ("lazy adam", (2, 1)),
    ("clip", (24, 1)),
    ("faults", (2, 1)),
    ("ratings", (4, 2)),
    ("fedncf", (24, 1)),
]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(
            *cell,
            marks=() if cell in USUAL else pytest.mark.thorough("its rule or parts stand in another cell"),
        )
        for cell in product(MAKES, PARTS)
    ],
)
def test_touched_rows_are_all_rows(name, parts):
    """Bit for bit in one chunk; to rounding where chunks and devices add up in another order."""
    size, devices = parts
    expected, infos = over_all_rows(name)
    algorithm = MAKES[name](server_rows="touched", stream_clients=size, mesh=client_mesh(devices))
    found, history = train(algorithm)
    assert history.plan.touched_rows is not None
    assert history.num_compilations == 1
    same = infos._replace(lane_steps=history.rounds.lane_steps)  # how lanes were filled is another matter
    if size < 24 or name in ROUNDED:
        assert_close(found, expected, name, 2e-5)
        assert_close(history.rounds, same, f"reports of {name}", 2e-5)
        return
    assert_same(found, expected)
    assert_close(history.rounds, same, f"reports of {name}", 1e-6)


def test_from_a_store_and_from_a_checkpoint(tmp_path):
    """The bits of the clients in memory, and of a run that never stopped; rooms that are too small grow."""
    store = synthesise(tmp_path / "drawn", clients=30, items=40, events_per_client=6)
    algorithm = MAKES["adagrad"](server_rows="touched", stream_clients=3)
    expected, history = train(algorithm, open_population(store.path).load())
    checkpoint = Checkpoints(tmp_path / "run", every=2)
    train(algorithm, open_population(store.path), rounds=2, checkpoint=checkpoint)
    found, again = train(algorithm, open_population(store.path), checkpoint=checkpoint, resume=True)
    assert_same(found, expected)
    assert_same(again.rounds, history.rounds)


def test_room_for_batches_grows(monkeypatch):
    """A cohort with more batches than there is room for trains all the same, with the same bits."""
    expected, _ = over_all_rows("plain")
    monkeypatch.setattr(touched, "BLOCK", 2)
    monkeypatch.setattr(row_finder, "BLOCK", 2)
    monkeypatch.setattr(touched, "room_of", lambda *_: 1)
    found, _ = train(MAKES["plain"](server_rows="touched"))
    assert_same(found, expected)


def test_the_tables_are_in_one_program_alone():
    """That which writes the rows back: neither training nor the server's step has a number for each item."""
    population = tiny_population(num_items=90)
    algorithm = MAKES["adagrad"](server_rows="touched", aggregator="touchers")
    chunked = algorithm.streaming(population)
    state = put_state(chunked, None, algorithm.init(KEY, population))
    programs = make_block(algorithm, chunked, 2).text(KEY, state, population).split("module @")
    assert ["tensor<90x3xf32>" in program for program in programs] == [False, False, False, False, True]
    assert ["tensor<90xf32>" in program for program in programs] == [False, False, False, False, True]
    assert [
        name in program for name, program in zip(["draw", "train", "finish"], programs[1:], strict=False)
    ] == [True] * 3


def test_a_step_that_is_not_taken_and_clients_that_are_unsound():
    """The model stays; of a client whose numbers are bad nothing is summed."""
    broken = fr.server.total()._replace(finish=lambda totals: jax.tree.map(lambda x: x / 0.0, totals.deltas))
    population = tiny_population()
    algorithm = MAKES["plain"](server_rows="touched", aggregator=broken)
    start = algorithm.init(KEY, population)
    after, history = train(algorithm, rounds=1, state=copy_state(start))
    assert history.rounds.skipped.tolist() == [1]
    assert_same(after.server, start.server)
    vectors = start.private["vector"].at[1].set(jnp.nan)
    start = start._replace(private={"vector": vectors})
    found, expected = (
        fr.simulate(
            fr.fedmf(cohort=24, server_rows=rows, **SMALL),
            population,
            rounds=1,
            seed=KEY,
            state=copy_state(start),
        )
        for rows in ("touched", "all")
    )
    assert_same(found[0], expected[0])
    assert found[1].rounds.unsound.tolist() == expected[1].rounds.unsound.tolist() == [1]


def test_rows_are_found():
    """Each once, ascending, in one of few sizes; and every id is the position of its row."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 1001, shape).astype(np.int32) for shape in ((7, 9), (3, 9))]  # 1,000 is empty
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_finder, "table_size", SIZE)
        rows, positions = find_rows(ids, 1000)
    distinct = np.setdiff1d(np.concatenate([each.ravel() for each in ids]), [1000])
    assert rows[: len(distinct)].tolist() == distinct.tolist()
    assert len(rows) == SIZE(len(distinct))
    assert set(rows[len(distinct) :].tolist()) <= {1000}
    for each, where in zip(ids, positions, strict=True):
        np.testing.assert_array_equal(np.where(each == 1000, len(rows), where), where)
        np.testing.assert_array_equal(rows[where[each < 1000]], each[each < 1000])
    sizes = {SIZE(rows) for rows in range(1000, 2001)}
    assert sorted(sizes) == [1024, 1280, 1536, 1792, 2048]


CHOSEN: dict[str, tuple[dict[str, Any], bool]] = {
    "sums": ({}, True),
    "touchers": ({"aggregator": "touchers"}, True),
    "all": ({"server_rows": "all"}, False),
    "one piece": ({"stream_clients": 0}, False),
    "momentum": ({"server_optimizer": optax.sgd(0.1, momentum=0.9)}, False),
    "adam": ({"server_optimizer": optax.adam(0.1)}, False),
    "lazy adam": ({"server_optimizer": rest_untouched(optax.adam(0.1))}, True),
    "heat": ({"aggregator": "heat"}, False),
    "quantise": ({"transform": fr.transforms.quantise(8)}, False),
    "adversary": ({"adversary": fr.attacks.label_flip([1], num_negatives=1)}, False),
    "median": ({"aggregator": fr.server.median()}, False),
}


@pytest.mark.parametrize("name", CHOSEN)
def test_the_plan_chooses(name, monkeypatch):
    """Touched rows in catalogues that are large enough, where nothing is in the way; in small ones never."""
    settings, chosen = CHOSEN[name]
    population = dataclasses.replace(tiny_population(), num_items=300)
    algorithm = fr.fedmf(**({"dim": 3, "batch_size": 4, "num_negatives": 1, "cohort": 1} | settings))
    assert plan_run(algorithm, population).touched_rows is None
    monkeypatch.setattr(touched, "LEAST_BYTES", 0)
    plan = plan_run(algorithm, population)
    assert (plan.touched_rows is not None) == chosen
    if chosen:
        longest = int(np.diff(population.offsets).max())
        assert plan.touched_rows == min(300, -(-longest // 2) * 4)
        assert plan.num_bytes["sums"] < algorithm.plan(population).num_bytes["sums"]
    monkeypatch.setattr(touched, "LEAST_ITEMS", 2000)
    assert plan_run(algorithm, population).touched_rows is None


def test_what_does_not_go_with_touched_rows():
    """By the table, in one line; of a server rule before the first round."""
    for settings, told in (
        ({"server_optimizer": optax.adam(0.1)}, "a server rule that moves rows that nobody touched"),
        ({"stream_clients": 0}, "stream_clients=0"),
        ({"aggregator": "heat"}, "in how many histories an item is"),
    ):
        with pytest.raises(ParameterError, match=f"server_rows='touched' works on the rows .* {told}"):
            fr.simulate(fr.fedmf(server_rows="touched", **SMALL, **settings), tiny_population(), rounds=1)
    with pytest.raises(ParameterError, match="ask which items their rows are of"):
        fr.pfedrec(server_rows="touched")
    with pytest.raises(ValueError, match="unknown server rows 'some'; choose one of touched, all"):
        fr.fedmf(server_rows="some")


def test_server_rules_that_let_rows_rest():
    """Found by trying; who remembers rows and counts rounds must declare it."""
    server = Server({"bias": jnp.zeros(2)}, {"vector": jnp.zeros((9, 3)), "bias": jnp.zeros(9)})
    rules = {
        optax.sgd(0.3): True,
        optax.sgd(optax.linear_schedule(1.0, 0.0, 10)): True,
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(1.0)): True,
        fedadagrad(): True,
        optax.chain(optax.clip_by_block_rms(1.0), optax.sgd(0.1)): False,
        optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1.0)): False,
        optax.sgd(0.1, momentum=0.9): False,
        optax.chain(optax.sgd(1.0), optax.apply_every(20)): False,
        rest_untouched(optax.sgd(0.1, momentum=0.9)): True,
    }
    assert [lets_rows_rest(rule, server) for rule in rules] == list(rules.values())
    assert not lets_rows_rest(optax.sgd(1.0), Server({}, {}))
    grown = optax.GradientTransformation(
        lambda s: jnp.zeros(2 * len(s.tables["bias"])), optax.sgd(1.0).update
    )
    with pytest.raises(ValueError, match=r"keeps \(18,\) for 9 items, which is not a row for each"):
        rows_of_state(grown, server)


def test_large_tables_are_drawn_in_their_own_memory(monkeypatch):
    """The program in which a run starts holds no second table: scaled behind the loop it did."""
    monkeypatch.setattr(draws, "AT_ONCE", 100)
    monkeypatch.setattr(draws, "BLOCK", 1000)
    algorithm, population = fr.fedmf(dim=64), dataclasses.replace(tiny_population(), num_items=20_000)
    start = jax.jit(lambda key: algorithm.init(key, population).server)
    memory = start.lower(KEY).compile().memory_analysis()
    assert memory is not None
    assert memory.output_size_in_bytes > 20_000 * 64 * 4
    assert memory.temp_size_in_bytes < 20_000 * 64 * 4 / 4


def test_rows_drawn_in_blocks(monkeypatch):
    """The numbers of `jax.random.normal`, with counters beyond 32 bits."""
    monkeypatch.setattr(draws, "AT_ONCE", 100)
    monkeypatch.setattr(draws, "BLOCK", 1000)
    for shape in ((333, 3), (12_345, 7), (7, 20), (333,)):
        found = jax.jit(lambda key, shape=shape: draws.normal_rows(key, *shape))(KEY)
        assert_close(found, jax.random.normal(KEY, shape), str(shape), 1e-6)
    for row, width in ((2**27, 64), (2**31 - 5, 300), (70_000, 65_535)):
        high, low = (np.asarray(x, np.uint64) for x in draws._counters(jnp.int32(row), width, 9))
        expected = np.uint64(row) * np.uint64(width) + np.arange(9, dtype=np.uint64)
        np.testing.assert_array_equal((high << np.uint64(32)) | low, expected)


def test_command_line(tmp_path, capsys, monkeypatch):
    """The flag and its record; what a run and a plan on paper say before."""
    monkeypatch.setattr(row_finder, "table_size", SIZE)
    run = ["run", "--rounds", "1", "--devices", "1", "--dim", "4", "--server-rows", "touched"]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["engine"]["touched_rows"] == 1200
    assert json.loads((tmp_path / "run" / "config.json").read_text())["server_rows"] == "touched"
    capsys.readouterr()
    assert main([*run, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["server_rows"] == "touched"
    plan = ["plan", "--clients", "1e5", "--items", "3e6", "--dim", "64", "--json"]
    chosen = {"--stored": "touched", "--server-optimizer=fedadam": "all", "--server-rows=all": "all"}
    for more, rows in chosen.items():
        assert main([*plan, more]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["server_rows"] == rows
        assert (found["memory_of_a_device"]["sums"] < 2**30) == (rows == "touched")
