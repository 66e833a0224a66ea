"""Fairness and data-dependent samplers by the command line, in every algorithm, and in the experiment."""

import json

import jax
import numpy as np
import pytest

from experiments.imbalance import __main__ as experiment
from experiments.imbalance.runs import WAYS, make
from experiments.keeping import file_name
from fedjax_rec.algorithms.registry import accepted, factory_of, names
from fedjax_rec.cli.main import main
from fedjax_rec.runs.build import make_algorithm
from fedjax_rec.runs.settings import Settings
from fedjax_rec.samplers.data_dependent import (
    power_of_choice,
)
from fedjax_rec.testing import (
    tiny_population,
)


def test_the_command_line_is_fair(tmp_path):
    """`--aggregator q-fedavg` takes L from the learning rate, and cohorts are drawn as asked for."""
    drawn = ["--sampler", "size-capped", "--size-cap", "30", "--cohort", "40"]
    fair = ["--aggregator", "q-fedavg", "--fairness", "2", "--server-learning-rate", "100"]
    short = ["--rounds", "2", "--eval-every", "2", "--dim", "4", "--devices", "1"]
    main(["run", *drawn, *fair, *short, "--out", str(tmp_path / "run")])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["fairness"] == 2.0
    made = make_algorithm(Settings(aggregator="q-fedavg", learning_rate=0.5, sampler="loss-proportional"))
    assert made.init(jax.random.key(0), tiny_population()).tracked.losses.shape == (24,)


def test_every_algorithm_takes_a_sampler():
    assert [name for name in names() if "sampler" not in accepted(name)] == []


def test_smoke(tmp_path, monkeypatch, capsys):
    """A way, its file, table and figure; what is there is not run again, and smoke does not mix with it."""
    monkeypatch.setattr(experiment, "SMOKE", ("AFL, quarters",))
    experiment.main(["--smoke", "--results", str(tmp_path)])
    (path,) = tmp_path.rglob("*.json")
    found = json.loads(path.read_text())
    assert len(found["seeds"]) == 2
    assert all(0 <= seed["ndcg@10"] <= seed["hr@10"] <= 1 for seed in found["seeds"])
    assert all(seed["auc worst_decile"] <= seed["auc median"] for seed in found["seeds"])
    assert (path.parent / "stability.png").stat().st_size > 1000
    found["seeds"][0]["hr@10"] = found["seeds"][1]["hr@10"] = 0.125
    path.write_text(json.dumps(found))
    capsys.readouterr()
    experiment.main(["--smoke", "--results", str(tmp_path)])
    assert "| 0.1250 ±0.0000 |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        experiment.main(["--smoke"])


def test_every_way_builds():
    """All ways make an algorithm, under names that files can have."""
    setting = experiment.setting_of(None, smoke=True)
    for name in WAYS:
        assert make(setting, name, 1.0).score is not None, name
    assert len({file_name(name) for name in WAYS}) == len(WAYS)


def test_rounds_are_counted_to_the_target():
    curves = [{"curve": [0.1, 0.3, 0.2]}, {"curve": [0.1, 0.1, 0.3]}, {"curve": [0.3, 0.0, 0.0]}]
    assert experiment.rounds_to(0.3, curves, 10) == "20"
    assert experiment.rounds_to(0.3, [*curves, {"curve": [0.0]}, {"curve": [0.0]}], 10) == "30"
    assert experiment.rounds_to(0.9, curves, 10) == "-"


@pytest.mark.parametrize("name", ["fedmf", "fedals", "fedtwotower", "fedgnn", "fedrecon", "fcf"])
def test_every_algorithm_tells_a_loss(name):
    """Also one whose first pass counts no example: a loss of 0 would silence it."""
    data = tiny_population()
    algorithm = factory_of(name)(dim=2, sampler=power_of_choice(12, cohort=6))
    state, _ = jax.jit(algorithm.round)(jax.random.key(0), algorithm.init(jax.random.key(0), data), data)
    told = np.asarray(state.tracked.losses)
    assert np.isfinite(told).sum() >= 5
    assert np.median(told[np.isfinite(told)]) > 0  # who has one example may have none to count
