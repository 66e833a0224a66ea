"""`--tune` and `--tune-baselines`: one small run, its folder and its price."""

import contextlib
import io
import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.cli.main import main
from fedjax_rec.cli.parser import in_flags
from fedjax_rec.data.defaults import Size
from fedjax_rec.evaluation.central.example import tiny_split
from fedjax_rec.evaluation.central.registry import METHOD_NAMES, METHODS, drawn_settings, method_settings
from fedjax_rec.runs.configuration import read_configuration
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.page import report_page
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.runs.setup import set_up
from fedjax_rec.runs.tuning import _factory_of
from fedjax_rec.training.sweep import Trial

SMALL = ["--dim", "2", "--num-candidates", "9", "--batch-size", "8", "--rounds", "2", "--eval-every", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """fedals and EASE, both tuned alike, on a small file of events."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.choice(50, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    out = path.parent / "run"
    given = ["--algorithm", "fedals", "--tune", "4", "--baselines", "ease", "--tune-baselines", "--refit"]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert main(["run", "--dataset", str(path), *given, *SMALL, "--out", str(out)]) == 0
    (path.parent / "printed.txt").write_text(printed.getvalue())
    return out


def test_what_won_is_said(folder):
    """In a line at the end, with what the defaults reached; a report has it, and the settings of the model."""
    tuning = read(folder, "tuning.json")
    lines = (folder.parent / "printed.txt").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("tuned, ")]
    default = tuning["rungs"][0]["trials"][0]
    best = max(tuning["rungs"][-1]["trials"], key=lambda trial: trial["validation"])
    assert (
        f"of 4 settings: {', '.join(f'{name}={value}' for name, value in best['settings'].items())}" in line
    )
    assert f"validation ndcg@10 {best['validation']:.4f}" in line
    if best["settings"] != default["settings"]:
        assert f"against {default['validation']:.4f} of the defaults" in line
    page = report_page([folder])
    for name, value in best["settings"].items():
        assert f"{name} (won on validation)</td><td>{value}<" in page
    config = read(folder, "config.json")
    for name in ("batch_size", "cohort", "aggregator"):
        assert f"<td>{name}</td><td>{config[name]}</td>" in page


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_the_best_of_all_trials_is_run(folder):
    """tuning.json holds all of them, config.json the best, and the protocol's file says how many."""
    tuning = read(folder, "tuning.json")
    trials = tuning["rungs"][-1]["trials"]
    best = max(trials, key=lambda trial: trial["validation"])
    assert len(trials) == tuning["settings_tried"] == 4
    assert tuning["best"] == best["settings"]
    config = read(folder, "config.json")
    assert (config["tune"], config["tune_baselines"]) == (4, True)
    assert config["regularisation"] == best["settings"]["regularisation"]
    assert f"unobserved={best['settings']['unobserved']}" in config["options"]
    assert read(folder, "protocol.json")["tuned"] == 4


def test_the_price_says_that_both_sides_were_tuned_alike(folder):
    result = read(folder, "result.json")
    assert result["trials"] == 4
    assert len(result["details"]["ease"]["trials"]) == 4
    price = result["price_of_federation"]["full"]["ndcg@10"]
    assert price["settings_tried"] == {"federated": 4, "central": 4}
    assert price["tuned_alike"] is True


def test_the_settings_that_won_make_the_same_run(folder, tmp_path):
    """Without a search, and with what it found: the same numbers to the last digit."""
    config = read(folder, "config.json")
    given = ["--algorithm", "fedals", "--refit", "--options", config["options"]]
    given += ["--regularisation", str(config["regularisation"]), "--init-scale", str(config["init_scale"])]
    out = tmp_path / "again"
    assert main(["run", "--dataset", config["dataset"], *given, *SMALL, "--out", str(out)]) == 0
    assert read(out, "result.json")["metrics"] == read(folder, "result.json")["metrics"]
    assert "tuned" not in read(out, "protocol.json")


def test_a_tuned_folder_is_repeated_by_its_search(folder):
    """As it was asked for, not around what it found."""
    values = read_configuration(folder)
    assert values["tune"] == 4
    assert not {"regularisation", "init_scale", "options"} & values.keys()
    assert "--tune 4" in read(folder, "result.json")["command"]


@pytest.fixture(scope="module")
def saved(folder, tmp_path_factory):
    """The same run with a checkpoint after each round, and no baseline."""
    out = tmp_path_factory.mktemp("saved") / "run"
    given = ["--dataset", read(folder, "config.json")["dataset"], "--algorithm", "fedals", "--tune", "4"]
    assert main(["run", *given, *SMALL, "--checkpoint-every", "1", "--out", str(out)]) == 0
    return out


def test_a_run_that_goes_on_has_the_settings_that_were_found(folder, saved, monkeypatch):
    """From its checkpoint: nothing is searched again."""

    def halve(*_, **__):
        raise AssertionError("a second search")

    monkeypatch.setattr("fedjax_rec.runs.tuning.halve", halve)
    before = read(saved, "tuning.json")
    assert main(["resume", str(saved), "--rounds", "3"]) == 0
    assert read(saved, "tuning.json") == before == read(folder, "tuning.json") | {"rungs": before["rungs"]}
    config = read(saved, "config.json")
    assert (config["tune"], config["rounds"]) == (4, 3)
    assert config["regularisation"] == before["best"]["regularisation"]
    assert read(saved, "result.json")["trials"] == 4


def test_a_damaged_search_is_told(saved, monkeypatch, capsys):
    monkeypatch.setattr("fedjax_rec.runs.tuning._halving_of", lambda table: table["rungz"])
    with pytest.raises(SystemExit, match="2"):
        main(["resume", str(saved), "--rounds", "4"])
    assert "holds no search that this version knows: 'rungz'" in capsys.readouterr().err


def test_clients_of_one_optimizer_have_the_rate_of_the_trial(folder):
    """An algorithm whose local optimizer is a setting is made with each rate that is tried."""
    settings = complete(Settings(dataset=read(folder, "config.json")["dataset"], num_candidates=9, rounds=1))
    assert settings.local_optimizer == "sgd"
    factory = _factory_of(settings, set_up(settings, str))
    assert factory(learning_rate=0.5).work.epochs == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, ValueError])
def test_a_search_that_ends_early_says_what_it_keeps(folder, tmp_path, monkeypatch, capsys, stop):
    """The best of its trials until then, whatever ended it."""

    def halve(*_, on_trial, **__):
        on_trial(Trial({"regularisation": 0.25}, 0.5, 1, 1.0, ()))
        raise stop("enough")

    monkeypatch.setattr("fedjax_rec.runs.tuning.halve", halve)
    given = ["--dataset", read(folder, "config.json")["dataset"], "--algorithm", "fedals", "--tune", "4"]
    status: Any = 0
    try:
        status = main(["run", *given, *SMALL, "--quiet", "--out", str(tmp_path / "stopped")])
    except SystemExit as end:
        status = end.code
    assert status == (130 if stop is KeyboardInterrupt else 2)
    told = capsys.readouterr().err
    assert "tuning ended early and keeps no file; the best of its trials" in told
    assert "validation ndcg@10 0.5000: regularisation=0.25" in told
    assert not (tmp_path / "stopped").exists()


@pytest.mark.parametrize(
    ("given", "length"),
    [
        ({}, (400, 10_000, 480.0, 20)),
        ({"refit": True, "max_seconds": 30.0}, (400, 10_000, 30.0, 20)),
        ({"rounds": 60, "eval_every": 15}, (60, 0, math.inf, 15)),
        ({"eval_every": 100}, (400, 10_000, 480.0, 20)),  # as a run of large data writes down what it chose
        ({"algorithm": "fedease"}, (1, 0, 480.0, 1)),  # all of its rounds are the same
    ],
)
def test_a_search_knows_how_long_the_run_may_be(folder, monkeypatch, given, length):
    """Without --rounds what wins has to win at the length of a run that trains until it has converged.

    Its rungs are short, so that it is validated as on small data whatever the size.
    """

    def halve(*_, rounds, max_rounds, max_seconds, eval_every, **__):
        assert (rounds, max_rounds, max_seconds, eval_every) == length
        raise InterruptedError

    monkeypatch.setattr("fedjax_rec.runs.tuning.halve", halve)
    monkeypatch.setattr("fedjax_rec.data.defaults._MANY_PAIRS", 1)
    data = read(folder, "config.json")["dataset"]
    with pytest.raises(InterruptedError):
        run_experiment(Settings(dataset=data, num_candidates=9, tune=3, **given))


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_central_methods_are_drawn_around_their_defaults(name):
    settings = method_settings(name, tiny_split())
    drawn = drawn_settings(name, settings, Size(4, 6, 8), 5)
    assert len(drawn) == (5 if METHODS[name].space else 1)
    changed = {key for one in drawn for key in one if one[key] != drawn[0][key]}
    assert changed <= {*METHODS[name].space, "regularisation"}
    assert all(type(one[key]) is type(drawn[0][key]) for one in drawn for key in one)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tune": 0}, "tune must be at least 1, not 0"),
        ({"tune_baselines": True}, "--tune-baselines tries as many settings as --tune says; add --tune"),
        ({"tune": 2, "tune_baselines": True}, "--tune-baselines changes nothing without --baselines"),
        ({"tune": 2, "clip": 0.5, "noise_multiplier": 1.0}, "tune=2 would train on the same users again"),
        ({"tune": 2, "evaluation_point": "local"}, "tune=2 ranks with the server's item table"),
    ],
)
def test_what_cannot_be_tuned_is_refused(settings, message):
    with pytest.raises(ValueError, match="tune") as caught:
        Settings(**settings)
    assert in_flags(caught.value).startswith(message)
