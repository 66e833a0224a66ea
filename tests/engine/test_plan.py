"""The engine's automatic choices: lanes, devices, memory, compilations; and the benchmark that measures them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.client.membership import holds, make_membership
from fedjax_rec.engine import devices, plan, waves
from fedjax_rec.testing import fixed, tiny_population
from tests.processes import user_environment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def population():
    return tiny_population()


@pytest.mark.parametrize("cohort", [1, 7, 100, 1000, 6040, 10**6])
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("schedule", ["lanes", "waves"])
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_lanes_divide_over_devices(cohort, count, schedule, platform):
    """Every device gets equally many lanes, at least one, and memory stays bounded whatever the cohort."""
    lanes = plan.choose_lanes(cohort, devices=count, schedule=schedule, platform=platform)
    assert lanes % count == 0
    assert 1 <= lanes // count <= plan.ACCELERATOR_LANES


@pytest.mark.parametrize("count", [1, 4])
def test_large_batches_have_few_lanes(count):
    """On a CPU the batches of a core stay in its cache; an accelerator has none to speak of."""
    given = {"devices": count, "batch_bytes": plan.CORE_BYTES // 3}
    assert plan.choose_lanes(10**6, **given) == 3 * count
    assert plan.choose_lanes(10**6, **given, platform="gpu") == plan.ACCELERATOR_LANES * count
    assert plan.choose_lanes(10**6, devices=count, batch_bytes=10**12) == count


def test_devices_need_clients_and_lanes():
    """A device gets 16 clients at least, and lanes set by hand divide over the devices."""
    assert devices.choose_devices(31) == 1
    assert devices.choose_devices(10**6) == min(len(jax.devices()), devices.available_cores())
    assert devices.choose_devices(10**6, lanes=1) == 1


@pytest.mark.parametrize(("count", "words"), [(0, "choose 1 to"), (10**6, "choose 1 to")])
def test_impossible_meshes_are_refused(count, words):
    """There is no mesh of no devices, nor of more than there are."""
    with pytest.raises(ValueError, match=words):
        devices.client_mesh(count)


def test_use_cores_refuses_what_comes_too_late():
    """Once jax has started, its devices are what they are."""
    with pytest.raises(RuntimeError, match="before any computation"):
        devices.use_cores(len(jax.devices()) + 1)
    with pytest.raises(ValueError, match="at least 1"):
        devices.use_cores(0)


def test_use_cores_in_a_fresh_process():
    """A script gets its devices, and one program serves all blocks although the state lies on two of them."""
    code = (
        "import fedjax_rec as fr, pandas as pd\n"
        "assert fr.use_cores(2) == 2\n"
        "data = fr.leave_one_out(fr.load_dataset('synthetic'))\n"
        "algorithm = fr.fedmf(dim=4, cohort=64, mesh=fr.client_mesh())\n"
        "_, history = fr.simulate(algorithm, data, rounds=5, eval_every=2)\n"
        "print(history.num_compilations, history.plan.devices, history.plan.lanes)\n"
    )
    clean = user_environment()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=clean)  # noqa: S603
    assert done.stdout.split() == ["1", "2", "8"]


def test_one_compilation_on_a_mesh(population):
    """A state that comes from outside is put on the mesh first: still one program."""
    algorithm = fr.fedmf(dim=2, cohort=16, lanes=4, mesh=devices.client_mesh(2))
    state, history = fr.simulate(algorithm, population, rounds=4, eval_every=2, keep="last")
    assert history.num_compilations == 1
    again = jax.tree.map(np.asarray, state)
    _, history = fr.simulate(algorithm, population, rounds=6, eval_every=2, state=again, keep="last")
    assert history.num_compilations == 1


def test_planned_memory_is_what_the_arrays_hold(population):
    """The plan's bytes are those of the real arrays, and grow as the design says."""
    algorithm = fr.fedmf(dim=4, sampler=fixed(np.arange(20)), local_epochs=2, lanes=4)
    found = algorithm.plan(population)
    state = algorithm.init(jax.random.key(0), population)
    assert found.num_bytes["model"] == sum(x.nbytes for x in jax.tree.leaves(state.server))
    assert found.num_bytes["private"] == sum(x.nbytes for x in jax.tree.leaves(state.private))
    assert found.num_bytes["data"] == sum(x.nbytes for x in jax.tree.leaves(population))
    twice = fr.fedmf(dim=4, sampler=fixed(np.arange(20)), local_epochs=2, lanes=8).plan(population)
    assert twice.num_bytes["buffer"] == 2 * found.num_bytes["buffer"] > 0
    assert found.num_bytes["stack"] == 0
    stacked = fr.fedmf(dim=4, sampler=fixed(np.arange(20)), aggregator=fr.server.median())
    assert stacked.plan(population).num_bytes["stack"] >= 20 * found.num_bytes["model"]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("cohort", [6, 24])
def test_planned_memory_is_what_a_round_takes(population, count, cohort):
    """Where clients keep whole tables: the compiled round's arguments and temporaries are those of the plan."""
    mesh = devices.client_mesh(count)
    algorithm = fr.fedrap(dim=64, cohort=cohort, lanes=count, mesh=mesh)
    placed = devices.replicate(population, mesh)
    state = jax.jit(algorithm.init)(jax.random.key(0), placed)
    compiled = jax.jit(algorithm.round, donate_argnums=1).lower(jax.random.key(0), state, placed).compile()
    found = compiled.memory_analysis()
    assert found is not None
    plan_ = algorithm.plan(population)
    real = count * (found.argument_size_in_bytes + found.temp_size_in_bytes)
    assert sum(plan_.num_bytes.values()) == pytest.approx(real, rel=0.2)
    assert plan_.num_bytes["cohort"] == 2 * cohort * plan_.num_bytes["private"] // population.num_clients


@pytest.mark.parametrize("most", [1, 2, 3, 178, 1000])
def test_room_sizes(most):
    """Every number of steps finds a size at most twice as large."""
    sizes = waves.buffer_sizes(most)
    assert sizes == sorted(set(sizes))
    for steps in range(1, most + 1):
        assert steps <= min(s for s in sizes if s >= steps) <= max(1, 2 * steps)


@pytest.mark.parametrize("num_items", [40, 5000, 2**31 - 1])
def test_buckets_know_every_item(num_items):
    """Buckets answer as a set does, for clients with none, few and many items, whatever the catalogue."""
    rng = np.random.default_rng(0)
    owned = [np.unique(rng.integers(0, num_items, n)) for n in (0, 1, 9, 300, 20)]
    offsets = np.concatenate([[0], np.cumsum([len(o) for o in owned])])
    found = make_membership(offsets, np.concatenate(owned), num_items, bitmap=False)
    for client, own in enumerate(owned):
        asked = np.unique(np.concatenate([own, rng.integers(0, num_items, 200), [num_items]])).astype(
            np.int32
        )
        answer = np.asarray(holds(found, jax.numpy.int32(client), jax.numpy.asarray(asked), num_items))
        np.testing.assert_array_equal(answer, np.isin(asked, own))
    assert found.cells.nbytes < 40 * offsets[-1] + 32 * len(owned) * 2


def test_train_seeds_splits_seeds_over_devices(population):
    """Three seeds on two or more devices: each run is the one that it would be alone."""
    algorithm, keys = fr.fedmf(dim=2, cohort=8), jax.random.split(jax.random.key(1), 3)
    states, infos = fr.train_seeds(keys, algorithm, population, 2)
    assert infos.loss.shape == (3, 2)
    alone = fr.training.train(keys[1], algorithm, population, 2)[0]
    np.testing.assert_allclose(
        states.server.tables["vector"][1], alone.server.tables["vector"], rtol=1e-5, atol=1e-7
    )
    with pytest.raises(ValueError, match="without a mesh"):
        fr.train_seeds(keys, fr.fedmf(mesh=devices.client_mesh(2)), population, 2)


def test_no_rounds():
    """A run of no rounds is its start."""
    frame = pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]})
    population, algorithm = fr.Population.from_frame(frame), fr.fedmf(dim=2, cohort=2)
    state, infos = fr.training.train(jax.random.key(0), algorithm, population, 0)
    assert int(state.round) == 0
    assert infos.loss.shape == (0,)


def test_benchmark_reports_what_it_promises(tmp_path):
    """The benchmark's report has the promised keys, equal checksums, and names what it skipped."""
    code = (
        "import sys\n"
        "from experiments.benchmarks import engine, task\n"
        "from fedjax_rec.engine.devices import use_cores\n"
        "engine.CASES, engine.ROUNDS = ((1, 12), (5, 12)), 2\n"
        "use_cores(2)\n"
        "import json\n"
        "report = engine.run(task.draw(60, 200), None, ['floor', 'torch', 'fedjax'], quick=True)\n"
        "engine.show(report)\n"
        "json.dump(report, open(sys.argv[1], 'w'))\n"
    )
    nowhere = {"FEDJAX_REC_TORCH": "/nowhere", "FEDJAX_REC_FEDJAX": "/nowhere"}
    clean = user_environment() | nowhere | {"PYTHONPATH": str(ROOT)}
    target = tmp_path / "report.json"
    subprocess.run([sys.executable, "-c", code, str(target)], check=True, env=clean, cwd=ROOT)  # noqa: S603
    report = json.loads(target.read_text(encoding="utf-8"))
    assert set(report["skipped"]) >= {"torch", "fedjax"}
    for case in ("e1_c12", "e5_c12"):
        side = report["results"]["engine"][case]
        assert side["compilations"] == 1
        assert side["clients_per_second"] > 0
        if "floor" not in report["skipped"]:
            floor = report["results"]["floor"][case]
            assert side["checksum"]["norm"] == pytest.approx(floor["checksum"]["norm"], rel=1e-5)
            assert f"floor_{case}" in report["ratios"]


def test_unknown_peer_is_refused():
    """A peer that there is not ends the benchmark with status 2."""
    command = [sys.executable, "-m", "experiments.benchmarks.engine", "--peers", "flor"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)  # noqa: S603
    assert done.returncode == 2
    assert "unknown peer 'flor'" in done.stderr


def test_memory_is_what_is_free(monkeypatch):
    """What the kernel says is available, or what a container has left, and what this process's arrays hold."""
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    5000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }
    monkeypatch.setattr(devices, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(jax, "live_arrays", lambda: [np.zeros(1000, np.uint8)])
    assert devices.host_bytes() == 9 * (5000 * 1024 + 1000) // 10
    files |= {"/sys/fs/cgroup/memory.max": "3000000\n", "/sys/fs/cgroup/memory.current": "2900000\n"}
    assert devices.host_bytes() == 9 * (100_000 + 1000) // 10
    files["/sys/fs/cgroup/memory.stat"] = "anon 5\ninactive_file 400000\n"
    assert devices.host_bytes() == 9 * (500_000 + 1000) // 10
    files["/proc/meminfo"] = ""  # another system: all that there is, as far as it says
    files["/sys/fs/cgroup/memory.max"] = ""
    assert devices.host_bytes() > 10**8


def test_fedease_plans_its_inversion_and_advises_what_it_has(population, monkeypatch):
    """The weights and the sum that becomes the next ones, and blocks of columns; and no word of a width."""
    algorithm = fr.fedease()
    parts = algorithm.plan(population).num_bytes
    table = 4 * population.num_items**2
    assert parts["model"] == table + 4  # and a count of clients
    assert parts["sums"] == table
    assert parts["inversion"] == plan.INVERSION * table  # of so few items, a block is all of them
    assert fr.fedease(memory=0.5).plan(population).num_bytes["sums"] > 2 * table
    monkeypatch.setattr(plan, "device_bytes", lambda _: sum(parts.values()) - 1)
    with pytest.raises(ValueError, match=r"inverting a table .* drop rare items") as found:
        fr.simulate(algorithm, population, rounds=1)
    assert "dim" not in str(found.value)
    monkeypatch.setattr(plan, "device_bytes", lambda _: 1)
    for name in parts:
        with pytest.raises(ValueError, match="GiB") as found:
            plan.check_fits(plan.Plan(1, 1, 1, "waves", "scatter", {"inversion": 0, name: 2**30}))
        assert "dim" not in str(found.value), name
