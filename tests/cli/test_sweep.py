"""`fedjax-rec sweep`: a small sweep, its folder, how it goes on, and what it refuses."""

import json
import tomllib
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.cli.main import main
from fedjax_rec.data.defaults import Size
from fedjax_rec.runs import sweeps
from fedjax_rec.runs.search_plan import TrialFactory, parse_grid
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.training.sweep import SweepInterrupted
from tests.cli.refusals import refusal

SMALL = ["--dim", "2", "--num-candidates", "9", "--batch-size", "8", "--cohort", "20", "--quiet"]
GRID = [
    "--set",
    "learning_rate=0.05,0.1,0.2",
    "--seeds",
    "2",
    "--budget",
    "6",
    "--eval-every",
    "1",
    "--halving",
]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """Forty users of two tastes."""
    rng = np.random.default_rng(0)
    rows = [(u, 25 * (u % 2) + item) for u in range(40) for item in rng.choice(25, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def folder(events):
    out = events.parent / "sweep"
    assert main(["sweep", "--dataset", str(events), *SMALL, *GRID, "--out", str(out)]) == 0
    return out


def read(folder):
    return json.loads((folder / "sweep.json").read_text())


def _found(folder):
    """All that was measured, without seconds."""
    trials = [trial for rung in read(folder)["rungs"] for trial in rung["trials"]]
    return [(trial["settings"], trial["by_seed"], trial["curve"]) for trial in trials]


def test_the_table_has_mean_and_spread_of_every_trial(folder):
    """Three settings for two rounds, the best of them for six; means and deviations are those of the seeds."""
    table = pd.read_csv(folder / "trials.csv")
    assert table["rounds"].tolist() == [2, 2, 2, 6]
    assert table["learning_rate"].tolist()[:3] == [0.05, 0.1, 0.2]
    seeds = table[["seed_0", "seed_1"]].to_numpy()
    np.testing.assert_allclose(table["mean"], seeds.mean(1), rtol=1e-6)
    np.testing.assert_allclose(table["spread"], seeds.std(1, ddof=1), rtol=1e-6)
    assert table["learning_rate"][3] == table["learning_rate"][table["mean"][:3].idxmax()]
    assert (folder / "sweep.png").stat().st_size > 5000


def test_the_best_settings_are_a_file_that_run_takes(folder, events, tmp_path):
    """The run has the validation that the sweep saw with its first seed."""
    best = tomllib.loads((folder / "best.toml").read_text())
    last = pd.read_csv(folder / "trials.csv").iloc[-1]
    assert best["learning_rate"] == last["learning_rate"]
    assert (best["dataset"], best["rounds"]) == (str(events), 6)
    out = tmp_path / "run"
    assert main(["run", "--config", str(folder / "best.toml"), "--quiet", "--out", str(out)]) == 0
    history = pd.read_csv(out / "history.csv")
    seen = read(folder)["rungs"][-1]["trials"][0]
    value = history.set_index("round")["validation/full/ndcg@10"][seen["round"]]
    assert value == pytest.approx(seen["by_seed"][0], abs=1e-3)


def test_an_interrupted_sweep_goes_on_where_it_was(folder, events, tmp_path, monkeypatch, capsys):
    """The same command tries only what is missing, and finds the same to the last digit."""
    tried: list[dict[str, Any]] = []
    sweep = sweeps.sweep

    def stopped(factory, split, settings, **given):
        if tried:
            raise SweepInterrupted(None, len(settings))
        tried.extend(settings)
        return sweep(factory, split, settings, **given)

    def counted(factory, split, settings, **given):
        tried.extend(settings)
        return sweep(factory, split, settings, **given)

    out = tmp_path / "again"
    command = ["sweep", "--dataset", str(events), *SMALL[:-1], *GRID, "--out", str(out)]
    monkeypatch.setattr(sweeps, "sweep", stopped)
    assert main(command) == 130
    assert f"is kept in {out}; go on with: fedjax-rec sweep" in capsys.readouterr().err
    assert len(read(out)["rungs"][0]["trials"]) == 3
    assert not (out / "best.toml").exists()
    tried.clear()
    monkeypatch.setattr(sweeps, "sweep", counted)
    assert main(command) == 0
    assert len(tried) == 1  # of the last rung; nothing again
    assert "3 of them kept from before" in capsys.readouterr().err
    assert _found(out) == _found(folder)


def test_a_finished_sweep_is_printed_again_and_another_one_refused(folder, events, capsys):
    command = ["sweep", "--dataset", str(events), *SMALL, *GRID, "--out", str(folder)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["trials"][0]["settings"] == found["best"]
    command[command.index("--seeds") + 1] = "3"
    assert "holds a sweep with another seeds" in refusal(command, capsys)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ([], "nothing to try; add --set"),
        (["--set", "dim="], "--set 'dim=' names no values"),
        (["--set", "lerning_rate=1"], "has no setting 'lerning_rate'; did you mean 'learning_rate'?"),
        (["--set", "learning_rate=-1"], "learning_rate must be at least 0, not -1.0"),
        (["--set", "dim=2,x"], "--set dim=x must be of type int"),
        (["--set", "dim=2,2"], "--set dim has 2 twice"),
        (["--set", "dim=2", "--set", "dim=3"], "--set dim is given twice"),
        (["--set", "dim=2", "--dim", "3"], "dim is set by --dim and tried by --set"),
        (["--set", "rounds=2"], "--set rounds: it is the same for all trials; give --rounds"),
        (["--set", "dim=1,2,3", "--budget", "1", "--halving"], "--budget=1 is less than the 2 rungs of 3"),
        (["--set", "dim=1", "--budget", "0"], "--budget must be at least 1"),
        (["--set", "dim=1", "--seeds", "0"], "--seeds must be at least 1"),
        (["--set", "dim=1", "--seeds", "99999999999"], "and at most 10,000"),
        (["--set", "dim=1", "--evaluation-point", "local"], "leave out --evaluation-point"),
    ],
)
def test_bad_input_is_one_line(given, text, capsys):
    told = refusal(["sweep", *given], capsys)
    assert text in told
    assert told.count("\n") == 1


def test_values_have_the_types_of_their_settings():
    grid = parse_grid(["item-bias=true,false", "layers=1,2", "loss=bce"], "fedncf")
    assert grid == {"item_bias": [True, False], "layers": [1, 2], "loss": ["bce"]}


def test_what_follows_from_a_tried_setting_follows_for_each_trial():
    """The penalty of fedals follows from what unobserved items weigh."""
    base = complete(Settings(algorithm="fedals", rounds=1))
    trials = [{"unobserved": 0.1}, {"unobserved": 0.4}]
    factory = TrialFactory(base, Size(943, 1682, 98114), 30, trials)
    found = factory.with_followers(trials)
    assert [each["unobserved"] for each in found] == [0.1, 0.4]
    assert found[0]["regularisation"] != found[1]["regularisation"]
    assert found[1]["regularisation"] == factory.settings_of(trials[1]).regularisation
