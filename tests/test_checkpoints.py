"""Checkpoints: a run goes on bit for bit, damage is named, and what differs is refused by name."""

import json
import os
import pickle
import signal
import sys
import threading
import time
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from experiments.faults.kills import context
from experiments.faults.work import Stopped, Work, copy, reference, run, stop_at, work
from fedjax_rec.checkpoints import Checkpoints, Paused
from fedjax_rec.cli import main
from fedjax_rec.leaves import digest, from_arrays, leaves_of, to_arrays
from fedjax_rec.lock import LOCK, hold
from fedjax_rec.resume import stored_settings
from fedjax_rec.seal import SEAL, find_damage, list_files, seal
from fedjax_rec.steps import SCHEMA, find_step, migrate, step_paths, write_step
from fedjax_rec.stopping import noting_signals

pytestmark = pytest.mark.as_compiled


@pytest.fixture
def half(tmp_path):
    """Checkpoints of a toy run that ended after round 12 of 24."""
    return copy(real=False, place=tmp_path).rename(tmp_path / "run")


def names(folder):
    return [path.name for path in step_paths(folder)]


def test_a_run_goes_on_bit_for_bit(tmp_path):
    """State, losses, validations and the best round equal those of a run that never stopped, over two devices."""
    split = fr.leave_one_out(fr.synthetic(num_users=60, num_items=80, seed=1))
    algorithm = fr.fedmf(dim=4, cohort=32, learning_rate=0.2, mesh=fr.client_mesh(2))
    told: list[str] = []
    kept = Checkpoints(tmp_path / "run", every=4, tell=told.append)
    options: dict[str, Any] = {"rounds": 13, "eval_every": 2}
    straight, expected = fr.simulate(algorithm, split, **options)
    with pytest.raises(Stopped):
        fr.simulate(algorithm, split, **options, checkpoint=kept, on_block=stop_at(10))
    assert names(kept.folder) == ["round-00000008", "round-00000004", "round-00000000"]
    state, history = fr.simulate(algorithm, split, **options, checkpoint=kept, resume=True)
    again, _ = fr.simulate(algorithm, split, **options, checkpoint=kept)  # it has ended: nothing is trained
    for end in (state, again):
        assert digest(to_arrays(end)) == digest(to_arrays(straight))
    assert digest(to_arrays(history.rounds)) == digest(to_arrays(expected.rounds))
    assert history.evaluations == expected.evaluations
    facts = ("selected_round", "stopped", "first_round", "num_compilations", "plan")
    assert [getattr(history, name) for name in facts] == [getattr(expected, name) for name in facts]
    assert len(fr.frame(history)) == 13
    assert told == []
    assert names(kept.folder) == ["round-00000013", "round-00000012", "round-00000008"]


def test_every_kind_of_leaf(half):
    """Typed keys, words, half floats, booleans and empty leaves come back with their bits."""
    assert run(work(real=False), half) == reference(real=False)
    leaves = {leaf["name"]: leaf["dtype"] for leaf in find_step(half).meta["leaves"]}
    assert leaves["state/opt_state/key"] == "key<fry>"
    assert leaves["state/server/shared/half"] == "bfloat16"
    tree = {"empty": np.zeros((0, 3), np.int8), "key": jax.random.key(1, impl="rbg"), "one": np.uint32(7)}
    same = from_arrays(to_arrays(tree), tree)
    assert leaves_of(same) == leaves_of(tree)
    assert digest(to_arrays(same)) == digest(to_arrays(tree))


def test_more_rounds(half):
    """A run that has ended goes on to more rounds as if it had been asked for them at once; fewer are refused."""
    one = work(real=False)
    run(one, half)
    assert run(one, half, rounds=30) == run(one, None, rounds=30)
    with pytest.raises(ValueError, match="is of round 30 already; ask for more than rounds=24"):
        run(one, half)


def test_a_run_that_was_content_stays_so(tmp_path):
    """A run that patience ended is not trained on, though there are rounds left."""
    split = fr.leave_one_out(fr.synthetic(num_users=60, num_items=80, seed=1))
    still = Work(fr.fedmf(dim=4, cohort=12, lanes=4, learning_rate=0.0), split, 9)
    stop = fr.Stop(patience=2)
    first = run(still, tmp_path / "run", stop=stop)
    assert run(still, tmp_path / "run", stop=stop, rounds=20) == first
    assert find_step(tmp_path / "run").meta["round"] == 3


def test_a_signal_pauses(tmp_path):
    """SIGTERM ends the block, saves it, and exits with status 0; the run then goes on to the same end."""

    def send(progress):
        if progress.round == 5:
            signal.raise_signal(signal.SIGTERM)  # after the block was, or was not, saved

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Paused, match="SIGTERM: paused after round 5, which is saved") as stop:
        run(work(real=False), tmp_path / "run", on_block=send)
    assert stop.value.code == 0
    assert signal.getsignal(signal.SIGTERM) is before
    assert names(tmp_path / "run")[0] == "round-00000005"
    assert run(work(real=False), tmp_path / "run") == reference(real=False)


def _sleep(told):
    with noting_signals():
        told.send(True)
        threading.Event().wait(60)


def test_a_second_signal_ends_the_process():
    """Though its main thread is busy."""
    reading, writing = context().Pipe(duplex=False)
    process = context().Process(target=_sleep, args=(writing,), daemon=True)
    process.start()
    assert reading.recv()
    for _ in range(2):
        time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
    process.join(30)
    assert process.exitcode == 128 + signal.SIGTERM


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
    """The newest step is damaged: it is named with its file, and the one before it is used."""
    change, what = DAMAGE[case]
    change(list_files(half / "round-00000012"))
    found = find_step(half)
    assert found.path == half / "round-00000010"
    assert len(found.damaged) == 1
    assert found.damaged[0].startswith(f"round-00000012: {what}")


def test_damage_is_told(half):
    """The run says what is damaged and where it goes on from, and has the same end."""
    told: list[str] = []
    (half / "round-00000012" / SEAL).unlink()
    assert run(work(real=False), half, tell=told.append) == reference(real=False)
    assert ["round-00000012: seal.json is missing" in text for text in told] == [True]
    assert "going on from round-00000010" in told[0]


def test_a_step_under_another_name(half):
    """A copy of an old step is no newer one."""
    (half / "round-00000010").rename(half / "round-00000020")
    assert find_step(half).damaged == ("round-00000020: it is of round 10",)


def test_damage_warns_by_default(half):
    """Without `tell` it is a warning."""
    (half / "round-00000012" / SEAL).unlink()
    one = work(real=False)
    with pytest.warns(UserWarning, match="damaged checkpoint"):
        fr.simulate(one.algorithm, one.data, rounds=24, eval_every=1, checkpoint=Checkpoints(half, every=2))


def test_every_step_damaged(half):
    """Refused, naming all of them; nothing is written."""
    for step in step_paths(half):
        (step / SEAL).unlink()
    before = list_files(half)
    with pytest.raises(
        ValueError, match=r"every checkpoint .* \(round-00000012: seal.*round-00000010.*-00000008"
    ):
        run(work(real=False), half)
    assert list_files(half) == before


def test_what_a_killed_process_left_is_removed(half):
    """Half-written and half-removed steps are no steps, and go."""
    (half / ".draft-round-00000014").mkdir()
    (half / ".old-round-00000002").mkdir()
    assert names(half)[0] == "round-00000012"
    run(work(real=False), half)
    assert sorted(path.name for path in half.iterdir()) == [LOCK, *reversed(names(half))]


def test_one_writer(half):
    """A folder that is held is refused, with the process's number; a lock file alone does not block."""
    with hold(half), pytest.raises(OSError, match=f"is being written by process {os.getpid()} on"):
        run(work(real=False), half)
    (half / LOCK).write_text("1 on another machine")
    assert run(work(real=False), half) == reference(real=False)


def test_schemas(half):
    """A schema without a way to today's is refused; the way from the first one is complete."""
    with pytest.raises(ValueError, match="schema is None in the checkpoint"):
        migrate({}, "step")
    found = find_step(half)
    assert found.path is not None
    meta = json.loads((found.path / "meta.json").read_text())
    del meta["run"]["stopped"], meta["run"]["seconds"]
    (found.path / "meta.json").write_text(json.dumps(meta | {"schema": 0}))
    seal(found.path)
    assert find_damage(found.path) == []
    assert find_step(half).meta["schema"] == SCHEMA
    assert run(work(real=False), half) == reference(real=False)


def test_the_named_setting_comes_first(half):
    """Of several differences the most telling is first, and the way out last."""
    with pytest.raises(
        ValueError, match=r"dim is None in .* and 8 now; seed is 0 .*; or name another folder"
    ):
        run(work(real=False), half, facts={"dim": 8}, seed=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"checkpoint": {"every": 3}},
            "every 3 rounds do not fit blocks of eval_every=2; choose .* such as 2",
        ),
        ({"checkpoint": {"every": 0}}, "every 0 rounds do not fit"),
        ({"checkpoint": {"every": 2, "keep": 0}}, "keep must be at least 1, not 0"),
        ({"checkpoint": {"every": 2}, "resume": True}, "holds no checkpoint to resume"),
    ],
)
def test_bad_settings(tmp_path, options, message):
    """Refused before anything is written."""
    one = work(real=False)
    options |= {"checkpoint": Checkpoints(tmp_path / "run", **options["checkpoint"])}
    with pytest.raises(ValueError, match=message):
        fr.simulate(one.algorithm, one.data, rounds=4, eval_every=2, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_new_run_spares_an_old_one(half):
    """`resume=False` refuses a folder with checkpoints."""
    with pytest.raises(ValueError, match="holds checkpoints up to round 12; resume, or name another folder"):
        run(work(real=False), half, resume=False)


def test_without_orbax(tmp_path, monkeypatch, capsys):
    """One line that says how to install it."""
    monkeypatch.setitem(sys.modules, "orbax.checkpoint", None)
    with pytest.raises(ImportError, match=r"pip install 'fedjax_rec\[checkpoints\]'"):
        run(work(real=False), tmp_path / "run")
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
    one = work(real=False)
    fr.simulate(one.algorithm, one.data, rounds=12, eval_every=1, checkpoint=Checkpoints(half, every=2))


def test_a_step_without_arrays(tmp_path):
    """Orbax writes no empty tree; a step may be one."""
    write_step(tmp_path, {"round": 1}, [], [])
    assert find_step(tmp_path).meta["round"] == 1


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
    return {name: value for name, value in result.items() if "second" not in name}


def test_the_command_line_goes_on(tmp_path, events, capsys, monkeypatch):
    """A signal, status 0, `resume`: `result.json` is that of a run that never stopped, but for seconds."""
    monkeypatch.chdir(tmp_path)
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    assert main(_small(events, straight)) == 0

    def interrupt(progress):
        if progress.round == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("fedjax_rec.report.progress_bar", lambda **_: interrupt)
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
