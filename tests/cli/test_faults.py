"""Failing, sleeping and slow clients on the command line, and rounds that wait for nobody."""

import json
import signal

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.runs.availability import devices_of
from fedjax_rec.runs.settings import Settings
from tests.cli.refusals import check_refused_at_once

SMALL = ["--rounds", "8", "--eval-every", "2", "--dim", "2", "--num-candidates", "9", "--devices", "1"]
ASYNCHRONOUS = [
    "--async-buffer",
    "4",
    "--concurrency",
    "20",
    "--max-staleness",
    "3",
    "--device-spread",
    "0.7",
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.choice(50, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return str(path)


def _read(folder):
    return (json.loads((folder / name).read_text()) for name in ("result.json", "config.json"))


def test_faults_reach_the_rounds(events, tmp_path, capsys):
    """They stand in the configuration, and what they cost in the result, the history and the table."""
    faults = ["--drop-out", "0.5", "--keep-first", "12", "--minimum-cohort", "9", "--device-spread", "0.5"]
    assert (
        main(["run", "--dataset", events, *SMALL, *faults, "--cohort", "20", "--out", str(tmp_path / "run")])
        == 0
    )
    result, config = _read(tmp_path / "run")
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert (config["drop_out"], config["keep_first"], config["minimum_cohort"]) == (0.5, 12, 9)
    assert result["missing_clients"] == history["missing_clients"].sum() > 8 * 8
    assert result["skipped_rounds"] == history["skipped_rounds"].sum()
    assert (history["clients"] + history["missing_clients"] == 20).all()
    assert history["clients"].max() <= 12
    assert set(history["clients"]) & set(range(1, 9)) == set()
    assert "mean_staleness" not in result
    assert f"missing: {result['missing_clients']} of 160 clients" in capsys.readouterr().out
    fr.load(tmp_path / "run")


def test_asynchronous_runs_go_on(events, tmp_path, capsys, monkeypatch):
    """A signal and `resume` give the numbers of a run that never stopped."""
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run = ["run", "--dataset", events, *SMALL, *ASYNCHRONOUS]
    assert main([*run, "--out", str(straight)]) == 0

    def interrupt(progress):
        if progress.round == 4:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr("fedjax_rec.training.progress.progress_bar", lambda **_: interrupt)
        assert main([*run, "--checkpoint-every", "2", "--out", str(stopped)]) == 0
    assert f"go on with: fedjax-rec resume {stopped}" in capsys.readouterr().out
    assert main(["resume", str(stopped)]) == 0
    assert (stopped / "history.csv").read_bytes() == (straight / "history.csv").read_bytes()
    (result, config), (other, _) = _read(straight), _read(stopped)
    assert config["async_buffer"] == 4
    assert result["metrics"] == other["metrics"]
    assert result["missing_clients"] == other["missing_clients"] > 0
    assert 0 < result["mean_staleness"] == other["mean_staleness"] <= 3
    assert result["engine"]["memory"]["versions"] > 0


def test_settings_become_values():
    """Each setting is a field of `Faults` or `FedBuff`; nothing given is nothing."""
    assert devices_of(vars(Settings())) == (None, None)
    every = Settings(
        drop_out=0.1,
        awake=0.5,
        rounds_per_day=12,
        deadline=9.0,
        partial_work=True,
        keep_first=7,
        minimum_cohort=3,
        device_spread=0.2,
        device_jitter=0.3,
    )
    faults = fr.Faults(0.1, 0.5, 12, 0.2, 0.3, 9.0, partial=True, keep=7, minimum=3)
    assert devices_of(vars(every)) == (faults, None)
    fedbuff = fr.FedBuff(5, 50, 0, 0.0, 0.2, 0.3)
    given = Settings(
        async_buffer=5,
        concurrency=50,
        max_staleness=0,
        staleness_exponent=0.0,
        device_spread=0.2,
        device_jitter=0.3,
    )
    assert devices_of(vars(given)) == (None, fedbuff)
    assert devices_of(vars(Settings(async_buffer=3))).asynchronous == fr.FedBuff(3)
    assert devices_of(vars(Settings(partial_work=False))) == (None, None)


BAD = {
    "a chance": (["--drop-out", "1.5"], "--drop-out=1.5 is out of range; give a number from 0 to 1"),
    "not a number": (["--drop-out", "nan"], "--drop-out must be a finite number, not nan"),
    "a share": (["--awake", "-1"], "--awake=-1.0 is out of range"),
    "no day": (["--rounds-per-day", "12"], "--rounds-per-day=12 changes nothing without --awake"),
    "an empty day": (["--rounds-per-day", "0", "--awake", "0.5"], "--rounds-per-day=0 is out of range"),
    "a time": (["--deadline", "-3"], "--deadline=-3.0 is out of range"),
    "a spread": (["--device-spread", "99", "--deadline", "3"], "--device-spread=99.0 is out of range"),
    "an idle spread": (["--device-spread", "1"], "without --deadline or --keep-first or --async-buffer"),
    "never late": (["--partial-work"], "--partial-work=True changes nothing without --deadline"),
    "nobody counts": (["--keep-first", "0"], "--keep-first=0 is out of range"),
    "no minimum": (["--minimum-cohort", "0"], "--minimum-cohort=0 is out of range"),
    "a high minimum": (["--minimum-cohort", "9", "--keep-first", "8"], "is more than --keep-first=8"),
    "a small cohort": (["--minimum-cohort", "9", "--cohort", "8"], "is more than --cohort=8"),
    "told by others": (
        ["--minimum-cohort", "9", "--clip", "1", "--noise-multiplier", "1"],
        "--keep-first and --minimum-cohort make what others send depend on one client",
    ),
    "no arrivals": (["--async-buffer", "0"], "--async-buffer=0 is out of range; give at least 1 arrival"),
    "nobody under way": (["--async-buffer", "5", "--concurrency", "0"], "--concurrency=0 is out of range"),
    "fresher than fresh": (["--async-buffer", "5", "--max-staleness", "-1"], "--max-staleness=-1 is out"),
    "no buffer": (["--concurrency", "5"], "--concurrency=5 changes nothing without --async-buffer"),
    "no buffer to age in": (["--max-staleness", "5"], "changes nothing without --async-buffer"),
    "a sampler too": (
        ["--async-buffer", "5", "--sampler", "uniform"],
        "--sampler=uniform has no meaning for",
    ),
    "a cohort too": (["--async-buffer", "5", "--cohort", "5"], "--cohort has no meaning for asynchronous"),
    "faults too": (["--async-buffer", "5", "--drop-out", "0.1"], "--drop-out is of rounds that wait"),
    "private": (["--async-buffer", "5", "--clip", "1", "--target-epsilon", "4"], "no accountant"),
    "more than there are": (
        ["--async-buffer", "5", "--concurrency", "1000"],
        "--concurrency=1000 and --async-buffer=5 exceed the population of 1000 clients; lower one",
    ),
    "other algorithms": (["--async-buffer", "5", "--algorithm", "scaffold"], "something else than changes"),
    "too many models": (
        ["--async-buffer", "5", "--max-staleness", "2000000000"],
        "lower --max-staleness",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_values_end_in_one_line(case, capsys, tmp_path, monkeypatch):
    """It names the flag, the status is 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[case]
    check_refused_at_once(["run", *arguments], message, capsys, tmp_path)
