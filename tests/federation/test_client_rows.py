"""What clients keep in files: a run is that of host memory, bit for bit; only rows that were written take room."""

import json
import resource
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.data.store import synthesise
from fedjax_rec.engine.plan import check_fits
from fedjax_rec.federation.client_rows import ClientRows, open_rows
from fedjax_rec.testing import tiny_population
from fedjax_rec.training.checkpoints.leaves import Leaf, digest, pack, to_arrays, unpack
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.seal import list_files
from fedjax_rec.transforms.error_feedback import error_feedback
from fedjax_rec.transforms.sparsification import top_k

pytestmark = pytest.mark.as_compiled

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}
MAKES: dict[str, Any] = {  # vectors, tables that start alike, control variates, memories of transforms
    "vectors": partial(fr.fedmf, cohort=10, stream_clients=5, **SMALL),
    "tables": partial(fr.fedrap, dim=3, batch_size=8, stream_clients=7),
    "variates": partial(fr.scaffold, dim=3, cohort=10, stream_clients=4),
    "memories": partial(fr.fedmf, cohort=10, transform=error_feedback(top_k(0.2)), stream_clients=5, **SMALL),
}


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(num_users=50, num_items=80, seed=1))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """300 clients of 60 items."""
    return synthesise(tmp_path_factory.mktemp("stores") / "drawn", clients=300, items=60, events_per_client=9)


@pytest.mark.parametrize("name", MAKES)
def test_a_run_with_files_is_a_run_in_memory(name, tmp_path):
    """State and reports; nothing that has a name is left in the folder."""
    found: dict[str | None, Any] = {}
    for folder in (None, str(tmp_path)):
        state, history = fr.simulate(
            MAKES[name](), tiny_population(), rounds=4, seed=3, eval_every=2, client_store=folder
        )
        found[folder] = digest(to_arrays((state, history.rounds)))
        assert bool(history.plan.disk_bytes) == bool(folder)
        assert ("host" in history.plan.num_bytes) == (folder is None)
        assert history.num_compilations == 1
        assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.store))
    assert len(set(found.values())) == 1
    assert list(tmp_path.iterdir()) == []


def test_clients_in_a_store_and_in_files(store, tmp_path):
    """Only who trained has rows; the sample is ranked as in memory, the best state is the same."""
    algorithm = fr.fedmf(dim=4, cohort=20)
    train = partial(fr.simulate, algorithm, rounds=4, seed=1, eval_every=2)
    expected, infos = train(fr.open_population(store.path, evaluate_clients=40))
    population = fr.open_population(store.path, evaluate_clients=40)
    state, history = train(population, client_store=tmp_path / "new" / "folder")
    assert history.evaluations == infos.evaluations
    rows = state.private["vector"]
    assert isinstance(rows, ClientRows)
    assert len(rows) == store.num_clients
    assert 20 <= len(rows.written) <= 20 * history.selected_round
    assert digest(to_arrays(state)) == digest(to_arrays(expected))
    ids = np.array([5, 299, 0, 5])
    np.testing.assert_array_equal(rows[ids], expected.private["vector"][ids])
    ranked, wanted = (population.of_sample(each).private for each in (state, expected))
    np.testing.assert_array_equal(ranked["vector"], wanted["vector"])
    onward, _ = train(population, state=state, client_store=tmp_path)
    again, _ = train(population, state=expected)
    assert digest(to_arrays(onward)) == digest(to_arrays(again))


@lru_cache(maxsize=1)
def straight():
    """Seven rounds of some clients that keep vectors."""
    split = fr.leave_one_out(fr.data.synthetic(num_users=50, num_items=80, seed=1))
    algorithm = fr.pfedrec(dim=3, cohort=9, stream_clients=4)
    return fr.simulate(algorithm, split, rounds=7, seed=3, eval_every=1)


@pytest.mark.parametrize("before", [True, False], ids=["from files", "from memory"])
@pytest.mark.parametrize("after", [True, False], ids=["in files", "in memory"])
def test_a_run_goes_on_wherever_its_clients_waited(before, after, split, tmp_path):
    """Bit for bit, from a checkpoint that holds the rows of those who trained, and the best state's."""
    kept = Checkpoints(tmp_path / "run", every=1)
    algorithm = fr.pfedrec(dim=3, cohort=9, stream_clients=4)
    train = partial(fr.simulate, algorithm, split, seed=3, eval_every=1, checkpoint=kept)
    train(rounds=3, client_store=tmp_path if before else None)
    meta = json.loads((tmp_path / "run/round-00000003/meta.json").read_text())
    saved_rows = {"rows" in leaf for leaf in meta["leaves"] if leaf["name"].startswith("state/private")}
    assert saved_rows == {before}
    state, history = train(rounds=7, client_store=tmp_path if after else None, resume=True)
    expected, wanted = straight()
    assert history.evaluations == wanted.evaluations
    assert digest(to_arrays(state)) == digest(to_arrays(expected))


def test_a_checkpoint_holds_what_was_written(store, tmp_path):
    """Of a store's clients no others; after a change by hand it is refused in a line."""
    kept = Checkpoints(tmp_path / "run", every=1)
    train = partial(
        fr.simulate, fr.fedmf(dim=4, cohort=20), fr.open_population(store.path), seed=1, eval_every=1
    )
    state, _ = train(rounds=2, keep="last", checkpoint=kept, client_store=tmp_path)
    meta = json.loads((tmp_path / "run/round-00000002/meta.json").read_text())
    leaf = next(Leaf(**leaf) for leaf in meta["leaves"] if leaf["name"] == "state/private/vector")
    assert leaf.rows == len(state.private["vector"].written)
    assert list(leaf.shape) == [300, 4]
    packed = pack(state.private["vector"])
    saved = unpack(packed, leaf)
    np.testing.assert_array_equal(saved.ids, state.private["vector"].written)
    np.testing.assert_array_equal(saved.rows, np.asarray(state.private["vector"])[saved.ids])
    packed[0, :8] = 255
    with pytest.raises(ValueError, match="state/private/vector: rows of clients that there are not"):
        unpack(packed, leaf)


def test_rows_of_every_kind(tmp_path):
    """Scalars, tables and bfloat16; runs of neighbours and single clients; what was never written is drawn."""
    shapes = {
        "scalar": jax.ShapeDtypeStruct((50,), jnp.int32),
        "table": jax.ShapeDtypeStruct((50, 3, 2), jnp.float32),
        "short": jax.ShapeDtypeStruct((50, 5), jnp.bfloat16),
    }

    def draw(ids: Any, scale: Any) -> Any:
        def of(leaf: Any) -> Any:
            column = scale * ids.reshape(-1, *[1] * (len(leaf.shape) - 1))
            return jnp.broadcast_to(column, (len(ids), *leaf.shape[1:])).astype(leaf.dtype)

        return {name: of(leaf) for name, leaf in shapes.items()}

    expected = {name: np.array(leaf) for name, leaf in draw(jnp.arange(50), 2).items()}
    files = open_rows(tmp_path, shapes, draw, 2)
    rng = np.random.default_rng(0)
    for ids in ([3], [7, 8, 9], [40, 2, 41, 9], range(20, 30)):
        for name, rows in files.items():
            new = rng.normal(size=(len(ids), *rows.shape[1:])).astype(rows.dtype)
            rows[np.asarray(ids)] = new
            expected[name][np.asarray(ids)] = new
    order = rng.permutation(50)
    for name, rows in files.items():
        np.testing.assert_array_equal(rows[order], expected[name][order])
        other = rows.copy()
        np.testing.assert_array_equal(np.asarray(other), expected[name])
        other[np.array([0])] = expected[name][:1] + 1
        np.testing.assert_array_equal(np.asarray(rows), expected[name])  # which stays
        np.testing.assert_array_equal(rows.map_all(), expected[name])
        assert len(rows.written) == 50
        assert (rows.nbytes, rows.ndim, rows.size) == (
            expected[name].nbytes,
            expected[name].ndim,
            expected[name].size,
        )


def test_who_did_not_train_takes_no_room(tmp_path):
    """A file of a terabyte, of which two rows were written."""
    rows = ClientRows(tmp_path, (2**28, 2**10), np.float32, lambda ids: np.zeros((len(ids), 2**10)))
    rows[np.array([2**28 - 1, 5])] = 1.0
    assert rows[np.array([5, 6])].sum() == 2**10
    assert rows.disk_bytes < 2**20 < 2**40 == rows.nbytes


def test_where_memory_would_not_hold_it(store, tmp_path, monkeypatch):
    """Files are chosen, beside the checkpoints, which is told; without these the way out is."""
    algorithm = fr.fedmf(dim=4, cohort=20)
    population = fr.open_population(store.path)
    told: list[str] = []
    kept = Checkpoints(tmp_path / "run", every=2, on_message=told.append)
    train = partial(fr.simulate, algorithm, population, rounds=2, seed=1, eval_every=2)
    expected, history = train()
    need = sum(history.plan.num_bytes.values())
    monkeypatch.setattr("fedjax_rec.engine.plan.device_bytes", lambda _: need - 1)
    with pytest.raises(ValueError, match="GiB, and there are"):
        train()
    with pytest.raises(ValueError, match=r"in host memory takes .* or let it wait in files \(client_store\)"):
        check_fits(history.plan._replace(num_bytes={"host": need, "model": 9}))
    state, history = train(checkpoint=kept)
    assert history.plan.disk_bytes == 4 * 4 * store.num_clients
    (line,) = told
    assert line.startswith("memory would not hold what all clients keep, 0.0 GiB at most: it waits in files")
    assert digest(to_arrays(state)) == digest(to_arrays(expected))


@pytest.fixture
def limited():
    """No file may grow beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit(size: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_the_run(tmp_path, limited, capsys):
    """In one line, with status 2; the newest checkpoint is as it was, and the run goes on when there is room."""
    store = synthesise(tmp_path / "drawn", clients=20_000, items=60, events_per_client=5)
    kept = Checkpoints(tmp_path / "run", every=1)
    folder = tmp_path / "files"
    train = partial(
        fr.simulate, fr.fedmf(dim=64, cohort=20), fr.open_population(store.path), seed=1, eval_every=1
    )
    train(rounds=1, checkpoint=kept, client_store=folder)
    before = {name: path.read_bytes() for name, path in list_files(tmp_path / "run").items()}
    limited(2 * 10**6)  # of 5 MB that all clients could write; what else is written is smaller
    with pytest.raises(
        OSError, match=rf"{folder}: what clients keep cannot be written there \(File too large\)"
    ):
        train(rounds=3, checkpoint=kept, client_store=folder)
    arguments = [
        "run",
        "--dataset",
        str(store.path),
        "--cohort",
        "20",
        "--rounds",
        "2",
        "--evaluate-clients",
        "50",
    ]
    arguments += ["--dim", "64", "--checkpoint-minutes", "0", "--client-store", str(folder)]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--out", str(tmp_path / "out")])
    limited(resource.RLIM_INFINITY)
    assert stop.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {folder}: what clients keep cannot be written there" in line
    assert {name: path.read_bytes() for name, path in list_files(tmp_path / "run").items()} == before
    state, _ = train(rounds=3, checkpoint=kept, client_store=folder)
    expected, _ = train(rounds=3)
    assert digest(to_arrays(state)) == digest(to_arrays(expected))


def test_a_folder_that_cannot_be_written(store, tmp_path, capsys):
    """A file of that name, by the command line; and rounds in one piece, of which nothing waits."""
    (tmp_path / "taken").write_text("")
    for arguments, told in (
        (["--dataset", str(store.path), "--client-store", str(tmp_path / "taken")], "File exists"),
        (["--client-store", str(tmp_path)], "--client-store='"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["run", "--rounds", "1", "--out", str(tmp_path / "out"), *arguments])
        assert stop.value.code == 2
        assert told in capsys.readouterr().err.strip().splitlines()[-1]


def test_command_line(store, tmp_path, capsys):
    """The flag, its record, the plan of it, and the same metrics."""
    common = [
        "run",
        "--dataset",
        str(store.path),
        "--cohort",
        "20",
        "--rounds",
        "2",
        "--dim",
        "4",
        "--seed",
        "1",
    ]
    assert main([*common, "--out", str(tmp_path / "memory")]) == 0
    files = ["--client-store", str(tmp_path / "files")]
    assert main([*common, *files, "--dry-run"]) == 0
    assert "disk" in capsys.readouterr().out
    assert main([*common, *files, "--out", str(tmp_path / "run")]) == 0
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("memory", "run")]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert [result["engine"]["disk_bytes"] for result in results] == [0, 2 * 4 * 4 * store.num_clients]
    assert json.loads((tmp_path / "run/config.json").read_text())["client_store"] == files[1]
    capsys.readouterr()
    sizes = ["plan", "--clients", "10e6", "--items", "1e6", "--dim", "64", "--stored"]
    assert main([*sizes, *files]) == 0
    assert "GiB in files, at most" in capsys.readouterr().out


def test_a_run_that_was_stopped_before_its_first_round_goes_on(split, tmp_path):
    """Its checkpoint holds no row of a client: nothing was written yet."""
    algorithm = fr.fedmf(dim=2, stream_clients=5, cohort=8)
    wanted, _ = fr.simulate(algorithm, split, rounds=2, eval_every=1)
    saved = fr.Checkpoints(tmp_path / "saved", every=1)
    settings: dict[str, Any] = {"checkpoint": saved, "client_store": tmp_path / "clients", "eval_every": 1}
    fr.simulate(algorithm, split, rounds=0, **settings)
    state, _ = fr.simulate(algorithm, split, rounds=2, resume=True, **settings)
    assert np.array_equal(np.asarray(state.private["vector"]), np.asarray(wanted.private["vector"]))
    assert np.array_equal(state.server.tables["vector"], wanted.server.tables["vector"])
