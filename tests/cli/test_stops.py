"""What a signal, a mistake or another process does to a run, stage by stage: nothing that was trained is lost."""

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.runs import experiment, report, run_folder, setup
from fedjax_rec.runs.reserve import reserve_folder
from fedjax_rec.training.checkpoints.signals import StopSignal
from fedjax_rec.training.trials import Course, TrialBatch

FILES = [
    "config.json",
    "curves.png",
    "history.csv",
    "model.npz",
    "per_user.npz",
    "protocol.json",
    "result.json",
]
TRAINED = ["config.json", "history.csv", "model.npz"]
SMALL = ["--rounds", "6", "--eval-every", "2", "--dim", "2", "--num-candidates", "9", "--devices", "1"]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events, whose name holds what formulas, shells and terminals stumble over."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.choice(50, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / os.fsdecode(
        "a$_$b \N{SNOWMAN} {x} caf\xe9".encode() + b"\xe9.csv"
    )
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return path


@pytest.fixture
def run(events, tmp_path, monkeypatch):
    """Runs the command line in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return lambda *more: main(["run", "--dataset", str(events), *SMALL, *more])


def _names(folder):
    return sorted(path.name for path in Path(folder).iterdir())


def _interrupt(monkeypatch, owner, name, number, *, swallow=False, inner=False):
    """Send a signal when a function is called, or, with `inner`, when what it returns is."""
    function = getattr(owner, name)

    def send(call, *given, **options):
        try:
            signal.raise_signal(number)
        except StopSignal:
            if not swallow:
                raise
        return call(*given, **options)

    def patched(*given, **options):
        if not inner:
            return send(function, *given, **options)
        found = function(*given, **options)
        return lambda *args: send(found, *args)

    monkeypatch.setattr(owner, name, patched)


def test_before_anything_is_saved(run, monkeypatch, capsys):
    """While data is read there is nothing to go on from: no folder stays or is named; the status says why."""
    for number in (signal.SIGINT, signal.SIGTERM):
        with monkeypatch.context() as patched:
            _interrupt(patched, setup, "load_inputs", number)
            assert run("--out", "a/b/run") == 128 + number
        out, err = capsys.readouterr()
        assert "go on with" not in out + err.splitlines()[-1]
        assert err.splitlines()[-1] == f"fedjax-rec: interrupted by {signal.Signals(number).name}"
        assert _names(".") == []


def test_during_a_search(run, monkeypatch, capsys):
    """It keeps no file, says what it had found, and the status is that of the signal."""

    def stop(_, own, *__):
        signal.raise_signal(signal.SIGTERM)
        return [Course([(1, (0.5,))], np.full(40, 0.5)) for _ in own]

    monkeypatch.setattr(TrialBatch, "run", stop)
    assert run("--tune", "3", "--out", "sought", "--quiet") == 128 + signal.SIGTERM
    best, end = capsys.readouterr().err.splitlines()
    assert "tuning ended early and keeps no file; the best of its trials until then" in best
    assert end == "fedjax-rec: interrupted by SIGTERM"
    assert _names(".") == []


def test_during_compilation_and_training(run, monkeypatch, capsys):
    """The run is saved, though it was too short for the clock, and ends with the status that was asked for."""
    assert run("--out", "straight") == 0
    calls = [  # stage, how the run begins or goes on, status
        ("_compile", lambda: run("--out", "stopped", "--pause-exit-code", "75"), 75),
        ("_train_block", lambda: main(["resume", "stopped"]), 75),
        ("_validate", lambda: main(["resume", "stopped", "--pause-exit-code", "0"]), 0),
    ]
    for stage, call, status in calls:
        with monkeypatch.context() as patched:
            _interrupt(patched, sys.modules["fedjax_rec.training.simulate"]._Run, stage, signal.SIGINT)
            assert call() == status
        assert f"go on with: fedjax-rec resume {Path('stopped').absolute()}" in capsys.readouterr().out
        assert _names("stopped") == ["checkpoints"]
    assert main(["resume", "stopped"]) == 0
    assert Path("stopped", "history.csv").read_bytes() == Path("straight", "history.csv").read_bytes()
    assert _names("stopped") == ["checkpoints", *FILES]


def test_during_evaluation(run, monkeypatch, capsys):
    """The model is kept; with a checkpoint the run goes on, also if the exception was swallowed on its way."""
    with monkeypatch.context() as patched:
        _interrupt(patched, experiment, "make_evaluator", signal.SIGTERM, inner=True)
        assert run("--out", "kept") == 128 + signal.SIGTERM
        assert f"it is kept in {Path('kept').absolute()}" in capsys.readouterr().err
        assert _names("kept") == TRAINED
        assert len(fr.top_k(fr.load("kept"), 3)) == 10
    with monkeypatch.context() as patched:
        _interrupt(patched, experiment, "make_evaluator", signal.SIGINT, inner=True, swallow=True)
        assert run("--out", "saved", "--checkpoint-every", "2", "--pause-exit-code", "75") == 75
    assert "SIGINT: stopped; go on with: fedjax-rec resume" in capsys.readouterr().out
    assert main(["resume", "saved"]) == 0
    assert _names("saved") == ["checkpoints", *FILES]


def test_during_imports(tmp_path):
    """One line, no traceback, whichever library was being read."""
    (tmp_path / "sitecustomize.py").write_text(
        "import signal, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'optax':\n"
        "            try: signal.raise_signal(signal.SIGINT)\n"
        "            except KeyboardInterrupt: pass  # as careless libraries do\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(fr.__file__).parents[1])])
    }
    command = [sys.executable, "-m", "fedjax_rec", "data", "ls"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    assert (done.returncode, done.stderr) == (130, "fedjax-rec: interrupted, nothing was written\n")


def test_what_fails_after_training(run, monkeypatch, capsys):
    """A picture that cannot be drawn is told and costs nothing; numbers that cannot be written leave the model."""

    def fail(*_, **__):
        raise ValueError("no such colour")

    with monkeypatch.context() as patched:
        patched.setattr(report, "draw_curves", fail)
        assert run("--out", "plain") == 0
    assert "curves.png could not be drawn, all else is there: no such colour" in capsys.readouterr().err
    assert _names("plain") == [name for name in FILES if name != "curves.png"]
    with monkeypatch.context() as patched:
        patched.setattr(run_folder, "per_user_arrays", fail)
        with pytest.raises(SystemExit):
            run("--out", "model")
    assert "the model is trained and kept in" in capsys.readouterr().err
    assert _names("model") == TRAINED


def test_without_standard_error(run, events, monkeypatch):
    """Neither a missing stream nor one that takes no more words ends a run, whatever the data are called."""

    class Full:
        def write(self, *_):
            raise OSError(28, "No space left on device")

        flush = write

    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", Full())
        assert run("--out", "full") == 0
    assert _names("full") == FILES
    assert json.loads(Path("full", "config.json").read_text())["dataset"] == str(events)
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", None)
        baselines = [
            "baselines",
            "--dataset",
            str(events),
            "--num-candidates",
            "9",
            "--baselines",
            "popularity",
        ]
        assert main([*baselines, "--out", "missing"]) == 0
        sys.stderr.close()
    assert _names("missing") == ["config.json", "per_user.npz", "protocol.json", "result.json"]


def test_a_folder_is_reserved_first(tmp_path, monkeypatch, capsys):
    """Of two runs into one folder the later is refused before it trains; or it takes the next number."""
    monkeypatch.chdir(tmp_path)
    with reserve_folder("same", "any") as folder:
        with pytest.raises(SystemExit):
            main(["run", *SMALL, "--out", "same"])
        assert f"is being written by process {os.getpid()}" in capsys.readouterr().err
        with reserve_folder(None, "any") as first, reserve_folder(None, "any") as second:
            assert [first.name, second.name] == ["any-1", "any-2"]
            (second / "result.json").write_text("{}")
        (folder / "result.json").write_text("{}")
    assert (_names("."), _names("runs"), _names("same")) == (["runs", "same"], ["any-2"], ["result.json"])
    with pytest.raises(ValueError, match="is not empty"), reserve_folder("same", "any"):
        pass
    # A process that was killed leaves its reservation: it does not block.
    (tmp_path / "left" / "checkpoints").mkdir(parents=True)
    with reserve_folder("left", "any") as folder:
        assert folder == tmp_path / "left"


def test_one_of_many_gets_the_folder(tmp_path):
    """However close they are."""
    start = threading.Barrier(8)
    won = []

    def reserve():
        start.wait()
        try:
            with reserve_folder(str(tmp_path / "run"), "any") as folder:
                won.append(threading.get_ident())
                (folder / "result.json").write_text("{}")
        except (ValueError, OSError):
            pass

    threads = [threading.Thread(target=reserve) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert _names(tmp_path / "run") == ["result.json"]


def test_interrupting_in_python():
    """The first interrupt ends the run after its block and gives what was done; the handler is as it was."""
    split = fr.leave_one_out(fr.load_dataset("synthetic"))

    def interrupt(progress):
        if progress.round == 2:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    algorithm = fr.fedmf(dim=2, cohort=20)
    with pytest.raises(fr.training.Interrupted, match="after round 2, and what was done is kept") as stop:
        fr.simulate(algorithm, split, rounds=6, eval_every=2, on_block=interrupt)
    state, history = stop.value.result
    assert (history.stopped, history.selected_round, len(history.rounds.loss)) == ("interrupted", 2, 2)
    expected, _ = fr.simulate(algorithm, split, rounds=2, eval_every=2)
    jax.tree.map(np.testing.assert_array_equal, state.server, expected.server)
    assert isinstance(stop.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before


def test_saved_by_the_clock(tmp_path, monkeypatch):
    """A short run leaves nothing, a long one its end, and it goes on; a full disk is told and costs nothing."""
    split = fr.leave_one_out(fr.load_dataset("synthetic"))
    algorithm = fr.fedmf(dim=2, cohort=20)
    told: list[str] = []

    def save(minutes, rounds):
        kept = fr.Checkpoints(tmp_path / str(minutes), minutes=minutes, max_to_keep=1, on_message=told.append)
        return fr.simulate(algorithm, split, rounds=rounds, eval_every=2, checkpoint=kept)

    save(60, 2)
    assert _names(tmp_path / "60") == [".lock"]
    save(0, 2)
    assert _names(tmp_path / "0") == [".lock", "round-00000002"]
    _, history = save(0, 4)
    assert len(history.rounds.loss) == 4
    assert told == []

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("fedjax_rec.training.checkpoints.manager.write_checkpoint", fail)
    _, history = save(0, 6)
    # after the first round of the process, which is a piece of its block alone, and after the block
    assert (len(history.rounds.loss), told) == (6, ["the disk is full; going on without it"] * 2)
