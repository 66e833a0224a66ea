"""A study of Optuna chooses, the sweep trains, and the study is told what was reached."""

from typing import Any

import jax
import pytest

import fedjax_rec as fr
from fedjax_rec.training import choice, log_uniform, search

optuna = pytest.importorskip("optuna")

SPACE = {"dim": 3, "learning_rate": log_uniform(0.01, 0.1), "aggregator": choice("sum", "mean")}
BRIEF: dict[str, Any] = {"rounds": 2, "eval_every": 2}


@pytest.fixture(autouse=True)
def _quiet():
    optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(60, 90))


def make_study(direction="maximize"):
    return optuna.create_study(direction=direction, sampler=optuna.samplers.TPESampler(seed=0))


def test_trials_are_those_of_the_sweep(split):
    """In batches that do not divide the number of trials; the best is the study's, and each is a sweep's trial."""
    study = make_study()
    found = search(study, fr.fedmf, split, SPACE, trials=3, batch=2, **BRIEF)
    assert [trial.value for trial in study.trials] == [trial.validation for trial in found.trials]
    assert [trial.params | {"dim": 3} for trial in study.trials] == [trial.settings for trial in found.trials]
    assert found.best.validation == study.best_value
    alone = fr.sweep(fr.fedmf, split, [found.best.settings], **BRIEF)
    assert alone.best.validation == pytest.approx(found.best.validation)


def test_diverged_trials_fail_in_the_study(split):
    """One of a batch, and a batch of nothing else; only where no trial is left is it an error."""
    space = {"dim": 3, "learning_rate": choice(0.05, 1e30)}
    study = make_study()
    for rate in (1e30, 1e30, 0.05):
        study.enqueue_trial({"learning_rate": rate})
    found = search(study, fr.fedmf, split, space, trials=3, batch=2, **BRIEF)
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", "FAIL", "COMPLETE"]
    assert found.best.settings["learning_rate"] == 0.05
    study = make_study()
    study.enqueue_trial({"learning_rate": 1e30})
    with pytest.raises(ValueError, match=r"none of 1 trials reached ndcg@10; lower the learning rates"):
        search(study, fr.fedmf, split, space, trials=1, **BRIEF)


def test_what_ends_early_leaves_no_trial_under_way(split):
    """A setting that the factory refuses, for one."""
    study = make_study()
    with pytest.raises(ValueError, match="dim"):
        search(study, fr.fedmf, split, {"dim": choice(0)}, trials=2, **BRIEF)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL"]


@pytest.mark.parametrize(
    ("direction", "given", "told"),
    [
        ("minimize", {"trials": 1}, "the study would minimize ndcg@10; make it with direction='maximize'"),
        ("maximize", {"trials": 1, "metric": "rmse"}, "make it with direction='minimize'"),
        ("maximize", {"trials": 0}, "trials must be at least 1, not 0"),
        ("maximize", {"trials": 1, "batch": 0}, "batch must be at least 1, not 0"),
    ],
)
def test_bad_numbers_are_refused(direction, given, told, split):
    """In one line, before the study is asked."""
    study = make_study(direction)
    with pytest.raises(ValueError, match=told):
        search(study, fr.fedmf, split, SPACE, **given)
    assert not study.trials


def test_a_choice_of_things_is_refused(split):
    """A study stores numbers and texts."""
    with pytest.raises(ValueError, match=r"server_optimizer=.* is nothing that a study can store"):
        search(make_study(), fr.fedmf, split, {"server_optimizer": choice(jax.nn.relu)}, trials=1)
