"""A run's files say what was computed, and say the same."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import names
from fedjax_rec.cli.main import main
from fedjax_rec.runs.build import make_algorithm, private_of
from fedjax_rec.runs.resolved import resolve, rules_of
from fedjax_rec.runs.settings import Settings, complete
from fedjax_rec.types import Plan

PLAN = Plan(20, 1, 4, "lanes", "scatter", {})
SMALL = ["--rounds", "3", "--eval-every", "2", "--dim", "2", "--num-candidates", "9", "--devices", "1"]


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.choice(50, 8, replace=False)]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item"]).to_csv(path, index=False)
    return str(path)


@pytest.mark.parametrize("name", names())
def test_resolved_settings_make_the_same_algorithm(name):
    """They build, say the cohort, the aggregator and what the engine chose, and keep what was given."""
    given = Settings(algorithm=name, seed=3)
    found = resolve(given, PLAN, 40)
    make_algorithm(found)
    assert (found.cohort, found.lanes, found.devices, found.row_update, found.seed) == (
        20,
        4,
        1,
        "scatter",
        3,
    )
    assert resolve(found, PLAN, 40) == found
    before = dataclasses.asdict(complete(given))
    changed = {key for key, value in dataclasses.asdict(found).items() if before[key] not in (None, value)}
    assert changed == set()
    rules = rules_of(found, make_algorithm(found).mechanism)
    assert all(rules.values())
    assert found.aggregator in (None, rules["aggregator"])  # where no name is for it, words are
    assert found.server_optimizer is None or rules["server_optimizer"].startswith(found.server_optimizer)


def test_rules_of_noise_are_those_that_ran():
    """What no setting has a name for: Poisson cohorts, and a sum over the expected number."""
    settings = complete(Settings(clip=0.5, noise_multiplier=2.0, cohort=8, rounds=3))
    algorithm = make_algorithm(settings, private_of(settings, 40))
    assert algorithm.mechanism is not None
    rules = rules_of(resolve(settings, PLAN, 40), algorithm.mechanism)
    assert rules == {
        "sampler": repr(algorithm.mechanism.sampler),
        "aggregator": "(sum + normal(0, (2 x 0.5)^2)) / 8",
        "server_optimizer": "fedavg(1.0)",
    }
    assert rules["sampler"].startswith("Poisson(probability=0.2, capacity=")
    denoised = rules_of(Settings(algorithm="fedrec", options="denoise=True"), None)
    assert denoised["aggregator"] == "mean without virtual gradients"


def test_choices_that_depend_on_others():
    """Of rules with rates of their own, of faults, of asynchronous rounds, of held-out clients and shares."""

    def found(**given):
        return resolve(Settings(**given), PLAN, 40)

    assert (found().server_optimizer, found().server_learning_rate, found().sampler) == (
        "fedavg",
        1.0,
        "uniform",
    )
    assert (found().aggregator, found(loss="mse").aggregator) == ("sum", "touchers")
    assert found(server_optimizer="fedadam").server_learning_rate == 0.01
    assert found(algorithm="fcf").server_optimizer is None  # Adam with moments of its own
    assert found(awake=0.5).rounds_per_day == 24
    assert found(aggregator="q-fedavg").fairness == 1.0
    assert found(splitter="strong").fold_in_epochs == 10
    ratio = found(splitter="ratio", test_share=0.2)
    assert (ratio.validation_share, ratio.test_share) == (0.1, 0.2)
    buffered = found(async_buffer=5)
    assert (buffered.concurrency, buffered.max_staleness, buffered.cohort, buffered.sampler) == (
        100,
        20,
        None,
        None,
    )


def test_files_agree(events, tmp_path):
    """`config.json` names what ran; columns of `history.csv` have the names of `result.json`, and its sums."""
    run = ["run", "--dataset", events, *SMALL, "--drop-out", "0.3", "--out", str(tmp_path / "run")]
    assert main(run) == 0
    config, result = (
        json.loads((tmp_path / "run" / name).read_text()) for name in ("config.json", "result.json")
    )
    history = pd.read_csv(tmp_path / "run" / "history.csv")
    assert (config["rules"]["aggregator"], config["rules"]["server_optimizer"]) == ("sum", "fedavg(1.0)")
    assert fr.load(tmp_path / "run").split.num_users == 40  # which knows of words besides settings
    assert config["cohort"] == history["clients"].iloc[0] + history["missing_clients"].iloc[0]
    assert config["lanes"] == result["engine"]["lanes"]
    for name in ("unsound_clients", "skipped_rounds", "missing_clients"):
        assert history[name].sum() == result[name]
    assert not np.isinf(history.select_dtypes("number")).all().any()
    for ranking in ("full", "sampled9"):
        validated = history.set_index("round").loc[result["selected_round"], f"validation/{ranking}/hr@10"]
        assert validated == pytest.approx(result["metrics"]["validation"][ranking]["hr@10"])
