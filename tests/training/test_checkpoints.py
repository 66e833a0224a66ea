"""Checkpoints: a run goes on bit for bit, damage is named, and what differs is refused by name."""

import json
import os
import pickle
import re
import shutil
import signal
import sys
import threading
import time
from importlib import import_module
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from experiments.faults.kills import context
from experiments.faults.workload import (
    Stopped,
    Workload,
    copy_half_done,
    reference,
    run,
    stop_at,
    workload,
)
from fedjax_rec.cli.main import main
from fedjax_rec.locks import LOCK_FILE, lock_folder
from fedjax_rec.runs.resume import stored_settings
from fedjax_rec.training.checkpoints.leaves import describe_leaves, digest, from_arrays, to_arrays
from fedjax_rec.training.checkpoints.manager import Checkpoints, Paused
from fedjax_rec.training.checkpoints.meta import check_run, read_meta
from fedjax_rec.training.checkpoints.seal import SEAL, find_damage, list_files, seal
from fedjax_rec.training.checkpoints.signals import ONE_REQUEST, catch_stop_signals
from fedjax_rec.training.checkpoints.store import SCHEMA, find_latest, list_checkpoints, write_checkpoint


@pytest.fixture
def half(tmp_path):
    """Checkpoints of a toy run that ended after round 12 of 24."""
    return copy_half_done(real=False, parent=tmp_path).rename(tmp_path / "run")


def names(folder):
    return [path.name for path in list_checkpoints(folder)]


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """State, losses, validations and the best round equal those of a run that never stopped, over two devices."""
    split = fr.leave_one_out(fr.data.synthetic(num_users=60, num_items=80, seed=1))
    algorithm = fr.fedmf(dim=4, cohort=32, learning_rate=0.2, mesh=fr.client_mesh(2))
    messages: list[str] = []
    checkpoint = Checkpoints(tmp_path / "run", every=4, on_message=messages.append)
    options: dict[str, Any] = {"rounds": 13, "eval_every": 2}
    straight, expected = fr.simulate(algorithm, split, **options)
    with pytest.raises(Stopped):
        fr.simulate(algorithm, split, **options, checkpoint=checkpoint, on_block=stop_at(10))
    assert names(checkpoint.folder) == ["round-00000008", "round-00000004", "round-00000000"]
    state, history = fr.simulate(algorithm, split, **options, checkpoint=checkpoint, resume=True)
    # it has ended: nothing is trained
    again, _ = fr.simulate(algorithm, split, **options, checkpoint=checkpoint)
    for end in (state, again):
        assert digest(to_arrays(end)) == digest(to_arrays(straight))
    assert digest(to_arrays(history.rounds)) == digest(to_arrays(expected.rounds))
    assert history.evaluations == expected.evaluations
    facts = ("selected_round", "stopped", "first_round", "num_compilations", "plan")
    assert [getattr(history, name) for name in facts] == [getattr(expected, name) for name in facts]
    assert len(fr.frame(history)) == 13
    assert messages == []
    assert names(checkpoint.folder) == ["round-00000013", "round-00000012", "round-00000008"]


def test_every_kind_of_leaf(half):
    """Typed keys, words, half floats, booleans and empty leaves come back with their bits."""
    assert run(workload(real=False), half) == reference(real=False)
    leaves = {leaf["name"]: leaf["dtype"] for leaf in find_latest(half).meta["leaves"]}
    assert leaves["state/opt_state/key"] == "key<fry>"
    assert leaves["state/server/shared/half"] == "bfloat16"
    tree = {"empty": np.zeros((0, 3), np.int8), "key": jax.random.key(1, impl="rbg"), "one": np.uint32(7)}
    same = from_arrays(to_arrays(tree), tree)
    assert describe_leaves(same) == describe_leaves(tree)
    assert digest(to_arrays(same)) == digest(to_arrays(tree))


def test_more_rounds(half):
    """A run that has ended goes on to more rounds as if it had been asked for them at once; fewer are refused."""
    task = workload(real=False)
    run(task, half)
    assert run(task, half, rounds=30) == run(task, None, rounds=30)
    with pytest.raises(ValueError, match="is of round 30 already; ask for more than rounds=24"):
        run(task, half)


def test_a_run_that_was_content_stays_so(tmp_path):
    """A run that patience ended is not trained on, though there are rounds left."""
    split = fr.leave_one_out(fr.data.synthetic(num_users=60, num_items=80, seed=1))
    still = Workload(fr.fedmf(dim=4, cohort=12, lanes=4, learning_rate=0.0), split, 9)
    stop = fr.Stop(patience=2)
    first = run(still, tmp_path / "run", stop=stop)
    assert run(still, tmp_path / "run", stop=stop, rounds=20) == first
    assert find_latest(tmp_path / "run").meta["round"] == 3


def test_a_signal_pauses(tmp_path):
    """SIGTERM ends the block, saves it, and exits with status 0; the run then goes on to the same end."""

    def send(progress):
        if progress.round == 5:
            signal.raise_signal(signal.SIGTERM)  # after the block was, or was not, saved

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Paused, match="SIGTERM: paused after round 5, which is saved") as stop:
        run(workload(real=False), tmp_path / "run", on_block=send)
    assert stop.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path / "run")[0] == "round-00000005"
    assert run(workload(real=False), tmp_path / "run") == reference(real=False)


def test_a_signal_within_a_block(tmp_path, monkeypatch):
    """Rounds that are slow are saved between two validations, and go on to those of a run that never stopped."""

    def send(progress):
        if progress.round == 2:
            signal.raise_signal(signal.SIGTERM)

    split = fr.leave_one_out(fr.data.synthetic(num_users=60, num_items=80, seed=1))
    algorithm = fr.fedmf(dim=4, cohort=32, stream_clients=16)
    options: dict[str, Any] = {"rounds": 6, "eval_every": 4, "keep": "last"}
    straight, expected = fr.simulate(algorithm, split, **options)
    checkpoint = Checkpoints(tmp_path / "run", every=4, on_message=str)
    with monkeypatch.context() as patched:
        patched.setattr("fedjax_rec.federation.blocks.PIECE", 0.0)
        patched.setattr(import_module("fedjax_rec.training.simulate"), "TOLD", 0.0)
        with pytest.raises(Paused, match="paused after round 2, which is saved"):
            fr.simulate(algorithm, split, **options, checkpoint=checkpoint, on_block=send)
    state, history = fr.simulate(algorithm, split, **options, checkpoint=checkpoint, resume=True)
    assert digest(to_arrays(state)) == digest(to_arrays(straight))
    assert digest(to_arrays(history.rounds)) == digest(to_arrays(expected.rounds))
    assert history.evaluations == expected.evaluations


def _sleep(pipe):
    with catch_stop_signals():
        pipe.send(True)
        threading.Event().wait(60)


def _compute(pipe):
    """One compiled program, during which Python runs no handler."""

    @jax.jit
    def endless(x):
        return jax.lax.while_loop(lambda y: y >= 0, lambda y: jnp.abs(jnp.sin(y)), x)

    with catch_stop_signals():
        program = endless.lower(jnp.float32(1)).compile()
        pipe.send(True)
        jax.block_until_ready(program(jnp.float32(1)))


@pytest.mark.parametrize("work", [_sleep, _compute])
def test_a_second_signal_ends_the_process(work):
    """Though its main thread is busy."""
    receiver, sender = context().Pipe(duplex=False)
    process = context().Process(target=work, args=(sender,), daemon=True)
    process.start()
    assert receiver.recv()
    for _ in range(2):
        time.sleep(ONE_REQUEST + 0.1)
        os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM


def _stop_in_order(pipe):
    with catch_stop_signals() as request:
        pipe.send(True)
        while not request.signal:
            time.sleep(0.01)
        time.sleep(0.3)  # the second one arrives


def test_a_signal_that_comes_twice_at_once_is_one():
    """As SLURM sends it to all processes of a step, of which one passes its own on to the other."""
    receiver, sender = context().Pipe(duplex=False)
    process = context().Process(target=_stop_in_order, args=(sender,), daemon=True)
    process.start()
    assert receiver.recv()
    for _ in range(2):
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 0


DAMAGE = {
    "short": (lambda files: files["meta.json"].write_text("{}"), "meta.json has 2 bytes, not"),
    "missing": (lambda files: files["meta.json"].unlink(), "meta.json is missing"),
    "extra": (lambda files: files["meta.json"].with_name("more").write_text("1"), "more is not of it"),
    "other seal": (lambda files: files[SEAL].write_text("{}"), f"{SEAL} is missing or damaged"),
    "no seal": (lambda files: files[SEAL].unlink(), f"{SEAL} is missing or damaged"),
    "no text": (lambda files: files[SEAL].write_bytes(b"\xff" * 9), f"{SEAL} is missing or damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damage_is_named_and_passed_over(half, case):
    """The newest checkpoint is damaged: it is named with its file, and the one before it is used."""
    change, text = DAMAGE[case]
    change(list_files(half / "round-00000012"))
    latest = find_latest(half)
    assert latest.path == half / "round-00000010"
    assert len(latest.damaged) == 1
    assert latest.damaged[0].startswith(f"round-00000012: {text}")


def test_damage_is_reported(half):
    """The run says what is damaged and where it goes on from, and has the same end."""
    messages: list[str] = []
    (half / "round-00000012" / SEAL).unlink()
    assert run(workload(real=False), half, on_message=messages.append) == reference(real=False)
    assert ["round-00000012: seal.json is missing" in text for text in messages] == [True]
    assert "going on from round-00000010" in messages[0]


def test_a_checkpoint_under_another_name(half):
    """A copy of an old checkpoint is no newer one."""
    (half / "round-00000010").rename(half / "round-00000020")
    assert find_latest(half).damaged == ("round-00000020: it is of round 10",)


def test_damage_warns_by_default(half):
    """Without `on_message` it is a warning."""
    (half / "round-00000012" / SEAL).unlink()
    task = workload(real=False)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        fr.simulate(task.algorithm, task.data, rounds=24, eval_every=1, checkpoint=Checkpoints(half, every=2))


def test_every_checkpoint_damaged(half):
    """Refused, naming all of them; nothing is written."""
    for path in list_checkpoints(half):
        (path / SEAL).unlink()
    before = list_files(half)
    with pytest.raises(
        ValueError, match=r"every checkpoint .* \(round-00000012: seal.*round-00000010.*-00000008"
    ):
        run(workload(real=False), half)
    assert list_files(half) == before


def test_what_a_killed_process_left_is_removed(half):
    """Half-written and half-removed checkpoints are none, and go."""
    (half / ".draft-round-00000014").mkdir()
    (half / ".old-round-00000002").mkdir()
    assert names(half)[0] == "round-00000012"
    run(workload(real=False), half)
    assert sorted(path.name for path in half.iterdir()) == [LOCK_FILE, *reversed(names(half))]


def test_one_writer(half):
    """A folder that is locked is refused, with the process's number; a lock file alone does not block."""
    with lock_folder(half), pytest.raises(OSError, match=f"is being written by process {os.getpid()} on"):
        run(workload(real=False), half)
    (half / LOCK_FILE).write_text("1 on another machine")
    assert run(workload(real=False), half) == reference(real=False)


@pytest.mark.parametrize("schema", [None, SCHEMA - 1, SCHEMA + 1])
def test_schemas(half, schema):
    """Another schema than today's is refused, though the checkpoint is sound, and before it others are."""
    path = find_latest(half).path
    assert path is not None
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"schema": schema}))
    seal(path)
    assert find_damage(path) == []
    with pytest.raises(ValueError, match=rf"round-00000012: schema is {schema} in the checkpoint") as caught:
        run(workload(real=False), half)
    assert "\n" not in str(caught.value)


def test_the_named_setting_comes_first(half):
    """Of several differences the most telling is first, and the way out last."""
    with pytest.raises(
        ValueError, match=r"dim is None in .* and 8 now; seed is 0 .*; or name another folder"
    ):
        run(workload(real=False), half, must_match={"dim": 8}, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"checkpoint": {"every": 3}},
            "every 3 rounds do not fit blocks of eval_every=2; choose .* such as 2",
        ),
        ({"checkpoint": {"every": 0}}, "every 0 rounds do not fit"),
        ({"checkpoint": {"every": 2, "max_to_keep": 0}}, "max_to_keep must be at least 1, not 0"),
        ({"checkpoint": {"every": 2}, "resume": True}, "holds no checkpoint to resume"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    """Refused before anything is written."""
    task = workload(real=False)
    options |= {"checkpoint": Checkpoints(tmp_path / "run", **options["checkpoint"])}
    with pytest.raises(ValueError, match=message):
        fr.simulate(task.algorithm, task.data, rounds=4, eval_every=2, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_spares_an_old_one(half):
    """`resume=False` refuses a folder with checkpoints."""
    with pytest.raises(ValueError, match="holds checkpoints up to round 12; resume, or name another folder"):
        run(workload(real=False), half, resume=False)


def test_without_orbax(tmp_path, monkeypatch, capsys):
    """One line that says how to install it."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_rec\[checkpoints\]'"):
        run(workload(real=False), tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["run", "--checkpoint-every", "10", "--eval-every", "10", "--out", str(tmp_path / "run")])
    assert "pip install 'fedjax_rec[checkpoints]'" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_unpickled(half, monkeypatch):
    """Reading a checkpoint never touches pickle."""

    def refuse(*_, **__):
        raise AssertionError("something was unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    task = workload(real=False)
    fr.simulate(task.algorithm, task.data, rounds=12, eval_every=1, checkpoint=Checkpoints(half, every=2))


def _set(values, path, value):
    """Put a value into a nest, at a path such as run.best.round."""
    *parents, last = path.split(".")
    for name in parents:
        values = values[name]
    values[last] = value


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("run.stopped", None, "run.stopped is no str"),
        ("run.first_round", 99, "run.first_round is 99"),
        ("run.best.round", True, "run.best.round is no int"),
        ("run.best", {}, "run.best.value is missing"),
        ("run.seconds.train", -1, "run.seconds are not"),
        ("run.evaluations", [[2, {}], [1, {}]], "not in the order of rounds"),
        ("run.evaluations", [[1, {"a": "b"}]], "run.evaluations are no numbers"),
        ("must_match", [], "must_match is no dict"),
        ("program", 5, "program is no str"),
        ("values", None, "values is no str"),
    ],
)
def test_a_forged_run_is_refused(half, path, value, message):
    """`meta.json` with anything else than a run, under a seal that fits it."""
    newest = list_checkpoints(half)[0]
    meta = json.loads((newest / "meta.json").read_bytes())
    _set(meta, path, value)
    (newest / "meta.json").write_text(json.dumps(meta))
    seal(newest)
    with pytest.raises(ValueError, match=f"cannot go on from .*{newest.name}: in its meta.json .*{message}"):
        run(workload(real=False), half)


def test_whatever_a_checkpoint_lacks_is_refused(half):
    """All that is written is asked for by name before it is read."""
    meta = read_meta(list_checkpoints(half)[0] / "meta.json")
    needed = [
        name for name in meta if name not in ("round", "digest", "leaves", "schema")
    ]  # looked at before
    assert {"values", "plan", "run"} < set(needed)
    for lacking in needed:
        with pytest.raises(ValueError, match=f"{lacking} is missing"):
            check_run({name: value for name, value in meta.items() if name != lacking})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "it holds no names and values"),
        ("{", "Expecting"),
        ('{"a":' * 100_000, "nested too deeply"),
        ('{"round": null}', "round is no int"),
        (
            '{"round": 1, "digest": "", "leaves": [{"name": "a", "shape": [-1], "dtype": "x"}]}',
            "has no shape",
        ),
        ('{"round": 1, "digest": "", "leaves": [5]}', "leaves.0. holds no names"),
    ],
)
def test_a_forged_description_is_damage(half, text, message):
    """The checkpoint before it is used, and what is wrong is named."""
    newest, before, *_ = list_checkpoints(half)
    (newest / "meta.json").write_text(text)
    seal(newest)
    latest = find_latest(half)
    assert latest.path == before
    assert re.search(f"{newest.name}: meta.json is none that a run wrote: .*{message}", latest.damaged[0])


def test_a_checkpoint_without_arrays(tmp_path):
    """Orbax writes no empty tree; a checkpoint may be one."""
    write_checkpoint(tmp_path, {"round": 1}, [], [])
    assert find_latest(tmp_path).meta["round"] == 1


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.choice(50, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return path


def _small(events, out):
    rates = [
        "--rounds",
        "12",
        "--eval-every",
        "2",
        "--dim",
        "4",
        "--learning-rate",
        "0.1",
        "--num-candidates",
        "9",
    ]
    return ["run", "--dataset", str(events), "--refit", "--devices", "1", *rates, "--out", str(out)]


def _numbers(folder):
    result = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in result.items() if "second" not in name and name != "command"}


def test_the_command_line_goes_on(tmp_path, events, capsys, monkeypatch):
    """A signal, status 0, `resume`: `result.json` is that of a run that never stopped, but for seconds."""
    monkeypatch.chdir(tmp_path)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(_small(events, straight)) == 0

    def interrupt(progress):
        if progress.round == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("fedjax_rec.training.progress.progress_bar", lambda **_: interrupt)
        assert main([*_small(events, stopped), "--checkpoint-every", "2"]) == 0
    assert f"go on with: fedjax-rec resume {stopped}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"config\.json is missing; go on with: fedjax-rec resume"):
        fr.load(stopped)
    with pytest.raises(SystemExit):
        main(_small(events, stopped))
    assert "name a new folder, or go on with: fedjax-rec resume" in capsys.readouterr().err
    assert stored_settings(stopped).dim == 4
    assert main(["resume", str(stopped)]) == 0
    assert _numbers(stopped) == _numbers(straight)
    assert (stopped / "history.csv").read_bytes() == (straight / "history.csv").read_bytes()
    found = sorted(path.name for path in stopped.iterdir() if not path.name.startswith("."))
    assert found == sorted(["checkpoints", *(path.name for path in straight.iterdir())])


def test_the_data_may_move(tmp_path, events, capsys, monkeypatch):
    """Absolute paths are stored; data that moved is named by a flag, and told by its hash from other data."""
    there = tmp_path / "there"
    there.mkdir()
    monkeypatch.chdir(there)
    shutil.copy(events, "events.csv")
    run_of = ["run", "--dataset", "events.csv", "--devices", "1", "--num-candidates", "9", "--dim", "2"]
    rounds = ["--rounds", "2", "--eval-every", "1", "--checkpoint-every", "1"]
    assert main([*run_of, *rounds, "--out", "run"]) == 0
    assert json.loads((there / "run" / "config.json").read_text())["dataset"] == str(there / "events.csv")
    monkeypatch.chdir(tmp_path)
    assert main(["resume", "there/run"]) == 0  # from another folder

    (there / "events.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(SystemExit):
        main(["resume", "there/run"])
    assert "there/events.csv; say where it lies now: --dataset" in capsys.readouterr().err
    text = (tmp_path / "moved.csv").read_text()
    (tmp_path / "other.csv").write_text(text.replace("39,", "40,"))
    with pytest.raises(SystemExit):
        main(["resume", "there/run", "--dataset", "other.csv", "--rounds", "3"])
    assert "data_hash is" in capsys.readouterr().err
    assert main(["resume", "there/run", "--dataset", "moved.csv", "--rounds", "3"]) == 0
    assert json.loads((there / "run" / "result.json").read_text())["rounds"] == 3


def test_resuming_what_is_no_run(tmp_path, capsys):
    """One line; nothing is written."""
    with pytest.raises(SystemExit) as stop:
        main(["resume", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert "holds no checkpoints; a run saves them with --checkpoint-every" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_at_once_leaves_nothing(tmp_path, capsys):
    """A mistake in the settings does not take the folder."""
    with pytest.raises(SystemExit):
        main(["run", "--cohort", "5000", "--checkpoint-every", "20", "--out", str(tmp_path / "run")])
    assert "cohort=5000" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
