"""Item tables split over devices are whole tables, in rounds, evaluations and checkpoints, with less memory."""

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
from fedjax_rec.engine.chunks import choose_run
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.engine.table_shards import (
    deal_clients,
    gather_rows,
    keep_split,
    rows_to_host,
    scatter_rows,
    split_rows,
    table_mesh,
)
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.evaluator import score_stored_leaves
from fedjax_rec.federation import row_finder
from fedjax_rec.federation.chunk_loop import TouchedRounds
from fedjax_rec.federation.cohort_feed import CohortFeed
from fedjax_rec.federation.host_memory import put_state
from fedjax_rec.rows import draws
from fedjax_rec.server.optimizers import fedadagrad
from fedjax_rec.server.resting import rest_untouched
from fedjax_rec.testing import assert_close, tiny_population
from fedjax_rec.training.checkpoints.manager import Checkpoints

pytestmark = pytest.mark.as_compiled

KEY = jax.random.key(3)
SIZE = row_finder.table_size  # of compact tables; `_one_size` puts another in its place
SPLIT = fr.leave_one_out(fr.data.synthetic(60, 37, seed=1, min_events=4, median_events=8))
SMALL: dict[str, Any] = {"cohort": 12, "num_negatives": 1}
MAKES: dict[str, Any] = {
    "fedmf": partial(fr.fedmf, dim=3, batch_size=10, server_optimizer=fedadagrad(0.1), **SMALL),
    "lazy adam": partial(
        fr.fedmf, dim=3, batch_size=10, server_optimizer=rest_untouched(optax.adam(0.1)), **SMALL
    ),
    "fedncf": partial(fr.fedncf, dim=4, layers=1, aggregator="rows", **SMALL),
    "fedper": partial(fr.fedper, dim=3, aggregator="rows", **SMALL),
}


@pytest.fixture(autouse=True)
def _one_size(monkeypatch):
    """One size of compact tables, and so one program for all rounds."""
    monkeypatch.setattr("fedjax_rec.federation.row_finder.table_size", lambda _: 40)


def train(algorithm, data=SPLIT, rounds=4, **options):
    return fr.simulate(algorithm, data, rounds=rounds, seed=KEY, eval_every=2, **options)


def assert_same(found, expected):
    """Bit for bit."""
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@lru_cache(maxsize=4)
def with_whole_tables(name, devices):
    return train(MAKES[name](server_rows="touched", mesh=client_mesh(devices)))


USUAL = [("fedmf", (2, 2)), ("fedmf", (8, 4)), ("fedncf", (4, 4))]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        pytest.param(
            *cell,
            marks=()
            if cell in USUAL
            else pytest.mark.thorough("its rule or its devices stand in another cell"),
        )
        for cell in product(MAKES, [(2, 2), (4, 4), (8, 4), (8, 8)])
    ],
)
def test_split_tables_are_whole_tables(name, parts):
    """On as many devices bit for bit, validations to rounding; to rounding on one device."""
    devices, shards = parts
    algorithm = MAKES[name](mesh=client_mesh(devices), table_shards=shards)
    found, history = train(algorithm)
    assert history.plan.table_shards == shards
    assert history.num_compilations == 1
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(found.server.tables))
    expected, others = with_whole_tables(name, devices)
    assert_same(found, expected)
    assert_same(history.rounds, others.rounds)
    assert_close(history.evaluations, others.evaluations, name, 1e-6)
    assert_close(found, with_whole_tables(name, 1)[0], name, 2e-5)
    split, whole = (
        (
            fr.make_evaluator(each, SPLIT)(found).full.mid,
            fr.evaluation.make_top_k(each, SPLIT, 3)(found).items,
        )
        for each in (algorithm, MAKES[name]())
    )
    assert_close(split, whole, "ranks and lists", 1e-6)


def test_resume_on_another_number_of_shards(tmp_path):
    """The bits of a run that never stopped, and a message; checkpoints hold whole tables."""
    expected, history = with_whole_tables("fedmf", 4)
    messages: list[str] = []
    checkpoint = Checkpoints(tmp_path / "run", every=2, on_message=messages.append)
    train(MAKES["fedmf"](mesh=client_mesh(4), table_shards=4), rounds=2, checkpoint=checkpoint)
    found, again = train(
        MAKES["fedmf"](mesh=client_mesh(4), table_shards=2), checkpoint=checkpoint, resume=True
    )
    assert_same(found, expected)
    assert_same(again.rounds, history.rounds)
    assert "table_shards" in " ".join(messages)


def test_from_a_store(tmp_path):
    """The bits of whole tables, on the same devices."""
    store = synthesise(tmp_path / "drawn", clients=30, items=37, events_per_client=6)
    make = partial(MAKES["fedmf"], stream_clients=4, mesh=client_mesh(4))
    expected, _ = train(make(server_rows="touched"), open_population(store.path))
    found, _ = train(make(table_shards=4), open_population(store.path))
    assert_same(found, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32])
def test_rows_are_read_and_written(dtype):
    """Every bit of them, also of -0 and NaN, where the last shard is not full; rows beyond the last are not."""
    mesh: Any = table_mesh(client_mesh(8), 4)
    rng = np.random.default_rng(0)
    table = np.array(jnp.asarray(rng.normal(size=(37, 3)) * 100).astype(dtype))
    table[5], table[36, 0] = -0.0, 7
    if dtype != jnp.int32:
        table[6] = np.nan
    rows = split_rows([table], mesh)
    assert {shard.data.shape for shard in rows[0].leaf.addressable_shards} == {(10, 3)}
    ids = jnp.asarray([0, 5, 6, 9, 10, 36, 37, 37], jnp.int32)
    read = jax.jit(partial(gather_rows, mesh))(rows, ids)[0]
    assert_same(np.asarray(read).view(np.uint8), table[np.minimum(ids, 36)].view(np.uint8))
    new = -np.asarray(read)
    written = jax.jit(partial(scatter_rows, mesh), donate_argnums=0)(rows, ids, [jnp.asarray(new)])
    table[ids[:6]] = new[:6]
    assert_same(rows_to_host(written)[0].view(np.uint8), table.view(np.uint8))


def test_rows_are_drawn_where_they_stay(monkeypatch):
    """The numbers of a table drawn whole, also in blocks; a device has no more than its share of them."""
    whole = jax.random.normal(KEY, (20_001, 8))
    monkeypatch.setattr(draws, "AT_ONCE", 100)
    monkeypatch.setattr(draws, "BLOCK", 1000)
    for devices in (2, 8):
        mesh: Any = table_mesh(client_mesh(devices), devices)
        draw = jax.jit(lambda key, mesh=mesh: keep_split([draws.normal_rows(key, 20_001, 8)], mesh))
        with jax.set_mesh(mesh):
            rows = draw(KEY)
            memory: Any = draw.lower(KEY).compile().memory_analysis()
        assert_close(rows_to_host(rows)[0], whole, f"on {devices} devices", 1e-6)
        assert memory.temp_size_in_bytes < 1.5 * whole.nbytes / devices + 2**16


def test_memory_of_a_device_falls():
    """Of the state by the plan and by jax, exactly; of the programs that have the tables, by jax."""
    population = tiny_population(num_items=20_001)
    table = 20_001 * 32 * 4
    share, working = {}, {}
    for devices in (1, 2, 4, 8):
        optimizer = fedadagrad(0.1)
        algorithm = fr.fedmf(
            dim=32,
            cohort=8,
            server_optimizer=optimizer,
            mesh=client_mesh(devices),
            table_shards=devices,
            server_rows="touched",
        )
        chunked: Any
        chunked, plan = choose_run(algorithm, population)
        state = put_state(chunked, algorithm.mesh, algorithm.init(KEY, population))
        held = [
            leaf.addressable_shards[0].data.nbytes
            for leaf in jax.tree.leaves((state.server, state.opt_state))
        ]
        share[devices] = sum(held)
        assert abs(plan.num_bytes["model"] / devices - share[devices]) <= 8

        # rounds read and write rows, evaluation scores them
        feed = CohortFeed(None, plan.cohort, algorithm.mesh)
        programs = TouchedRounds(chunked, feed)
        rows, _ = chunked.touched.split(state)
        ids = jnp.zeros(40, jnp.int32)
        read = jax.eval_shape(chunked.touched.read, rows, ids)
        prepared = score_stored_leaves(algorithm).prepare(algorithm.init(KEY, population))
        lowered = {
            "read": programs.read.lower(read, rows, ids),
            "write": programs.write.lower(rows, ids, read),
            "score": jax.jit(score_stored_leaves(algorithm).score).lower(prepared, jnp.arange(4)),
        }
        memory: dict[str, Any] = {name: each.compile().memory_analysis() for name, each in lowered.items()}
        assert memory["write"].alias_size_in_bytes >= 2 * table / devices  # in place
        working[devices] = {
            name: each.argument_size_in_bytes + each.temp_size_in_bytes for name, each in memory.items()
        }
    for devices in (2, 4, 8):
        assert share[devices] < 1.01 * share[1] / devices
        for name in ("read", "write", "score"):
            assert working[devices][name] < working[devices // 2][name]
        assert working[devices]["read"] < 2.1 * 2 * table / devices + 2**17


def test_what_clients_keep_is_split_with_them():
    """A device has its own clients of a chunk, going in and coming out."""
    algorithm = MAKES["fedmf"](mesh=client_mesh(4), table_shards=2)
    population = tiny_population()
    plan = choose_run(algorithm, population)[1]
    whole = choose_run(MAKES["fedmf"](mesh=client_mesh(4), server_rows="touched"), population)[1]
    assert plan.num_bytes["cohort"] * 2 == whole.num_bytes["cohort"]
    dealt = deal_clients({"vector": np.ones((12, 3), np.float32)}, algorithm.table_mesh)
    assert {shard.data.shape for shard in dealt["vector"].addressable_shards} == {(3, 3)}


def _stream(algorithm: Any) -> None:
    algorithm.streaming(tiny_population())


def test_refusals():
    """Each in one line that names the value and the way out."""
    for settings, told in (
        (
            {"table_shards": 3},
            r"table_shards=3 do not divide over 4 device\(s\); use a multiple of 3 devices",
        ),
        ({"table_shards": 0}, "table_shards=0 must be at least 1, for whole tables"),
        ({"table_shards": 2, "server_rows": "all"}, "table_shards=2 is of rounds on .* server_rows='all'"),
        ({"table_shards": 2, "aggregator": "heat"}, "table_shards=2 .* in how many histories an item is"),
        (
            {"table_shards": 2, "server_optimizer": optax.adam(0.1)},
            "table_shards=2 .* a server rule that moves",
        ),
    ):
        with pytest.raises(ParameterError, match=told) as caught:
            _stream(fr.fedmf(mesh=client_mesh(4), **settings))
        assert "\n" not in str(caught.value)
    with pytest.raises(ParameterError, match="table_shards=2 do not divide over 1"):
        fr.fedmf(table_shards=2)
    with pytest.raises(ParameterError, match="clients ask which items their rows are of"):
        fr.pfedrec(mesh=client_mesh(2), table_shards=2)
    algorithm = fr.fedmf(mesh=client_mesh(2), table_shards=2)
    with pytest.raises(ParameterError, match=r"table_shards=2 .* clients that train before they are ranked"):
        fr.evaluation.after_local_training(algorithm, tiny_population(), KEY)


def test_command_line(tmp_path, capsys, monkeypatch):
    """The flag, its record, what a plan on paper says, and what is refused."""
    monkeypatch.setattr(row_finder, "table_size", SIZE)
    run = ["run", "--rounds", "1", "--dim", "4", "--devices", "4", "--table-shards", "2", "--cohort", "64"]
    assert main([*run, "--out", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["table_shards"] == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["engine"]["table_shards"] == 2
    capsys.readouterr()
    assert main(["recommend", "--run", str(tmp_path / "run"), "--all-users", "-k", "2"]) == 0
    plan = ["plan", "--clients", "1e5", "--items", "3e6", "--dim", "64", "--stored", "--json"]
    plan += ["--device", "h200", "--count", "8"]
    model = {}
    for shards in (1, 2, 8):
        capsys.readouterr()
        assert main([*plan, "--table-shards", str(shards)]) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["table_shards"], found["server_rows"]) == (shards, "touched")
        model[shards] = found["memory_of_a_device"]["model"]
    assert model[8] == pytest.approx(model[2] / 4, rel=1e-3) == pytest.approx(model[1] / 8, rel=1e-3)
    for more, told in (
        (["--table-shards", "3"], "--table-shards=3 must divide --count=8 devices"),
        (["--table-shards", "2", "--server-rows", "all"], "--table-shards=2 is of rounds on rows"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*plan, *more])
        assert caught.value.code == 2
        assert told in capsys.readouterr().err
