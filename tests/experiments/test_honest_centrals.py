"""Central methods of the honest benchmark are tuned and run as the federated ones are."""

import numpy as np
import pytest

import fedjax_rec as fr
from experiments.honest_benchmark import centrals, units
from experiments.honest_benchmark.plan import jobs
from experiments.honest_benchmark.store import Unit, write
from experiments.honest_benchmark.task import Budget, Task
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.evaluation.central import METHOD_NAMES, BaselineTrial
from fedjax_rec.evaluation.central.registry import method_settings
from fedjax_rec.runs.settings import Settings


@pytest.fixture(scope="module")
def task():
    source = synthetic(80, 90)
    split = fr.leave_one_out(source)
    return Task("tiny", source, split, fr.population_of(split), Settings(), "id", Budget(2, 4))


def large_task(task):
    """Other data, to which settings are carried over."""
    source = synthetic(160, 90)
    split = fr.leave_one_out(source)
    return task._replace(dataset="large", source=source, split=split, carry="tiny")


def test_central_settings_are_carried_over(task, tmp_path):
    """On larger data tuning begins with the best factors of the smaller, and is due again when these change."""

    def recipe():
        units_left = jobs([large_task(task)], (), (0,), tmp_path, centrals=("ease",))
        return next(job.recipe for job in units_left if job.unit.name == "central-ease")

    assert recipe()["carried"] is None
    factors = [{"regularisation": factor} for factor in (0.5, 1.0)]
    write(tmp_path, Unit("tiny", "central-ease", "tune"), {"trials": [{"settings": one} for one in factors]})
    assert recipe()["carried"] == factors[:1]  # half of two trials


@pytest.mark.parametrize("method", METHOD_NAMES)
def test_central_methods_are_tuned_alike(method, task, tmp_path, monkeypatch):
    """As many trials as the others, the defaults first, the best of them used; carried factors fit other data."""
    tried = []

    def validate(_split, _name, trials, **_):
        tried.extend(trials)
        values = [float("nan"), *range(len(trials) - 1)]
        return [BaselineTrial(dict(one), value) for one, value in zip(trials, values, strict=True)]

    monkeypatch.setattr(centrals, "try_baseline", validate)
    found = centrals.tune_central(task._replace(budget=Budget(4, 4)), method, None, lambda *_: None)
    if method not in centrals.FACTORS:
        assert tried == [{}]
        return
    assert len(tried) == len(found["trials"]) == 4
    known = method_settings(method, task.split)
    assert tried[0] == pytest.approx({name: known[name] for name in centrals.FACTORS[method]}, rel=1e-3)
    assert [trial["validation"] for trial in found["trials"][:3]] == [2, 1, 0]
    assert found["best"]["values"] == tried[3]
    method_settings(method, task.split, found["best"]["values"])  # whole numbers are whole
    for name, (low, high) in centrals.FACTORS[method].items():
        assert all(low <= trial["settings"][name] <= high for trial in found["trials"])
    tried.clear()
    large = large_task(task)._replace(budget=Budget(4, 4))
    write(tmp_path, Unit("tiny", f"central-{method}", "tune"), found)
    tune = next(
        job for job in jobs([large], (), (0,), tmp_path, centrals=(method,)) if job.unit.policy == "tune"
    )
    tune.work(lambda *_: None)
    assert len(tried) == 4
    for values, trial in zip(tried[:2], found["trials"][:2], strict=True):
        assert values == centrals.scaled(method, large, trial["settings"])
        assert method != "ease" or values != trial["values"]  # its penalty goes by the size of the data


def test_central_methods_are_run_with_what_was_chosen(task):
    """A run has the chosen settings, on train + validation, and its own seed."""
    tuned = {"best": {"values": {"epochs": 2, "learning_rate": 0.05}}}
    runs = [centrals.run_central(task, "mf", seed, tuned, lambda *_: None) for seed in (0, 0, 1)]
    assert runs[0]["settings"]["epochs"] == 2
    assert runs[0]["settings"]["learning_rate"] == 0.05
    assert runs[0]["metrics"] == runs[1]["metrics"] != runs[2]["metrics"]
    changed = {"mf": tuned["best"]["values"]}
    wanted = fr.evaluation.run_baselines(task.split, names=["mf"], refit=True, settings=changed)["mf"].metrics
    assert runs[0]["metrics"] == wanted


def test_central_biases():
    """The bias baseline is Koren's formula, item after item and user after user."""
    source = synthetic(30, 90)
    ratings = np.resize([1.0, 2.0, 5.0], len(source.interactions.items)).astype(np.float32)
    table = source.interactions._replace(ratings=ratings)
    split = fr.data.merge_validation(fr.leave_one_out(source._replace(interactions=table)))
    assert split.ratings is not None
    assert split.test_ratings is not None
    mean, errors = float(split.ratings.mean()), []
    item = {}
    for i in range(split.num_items):
        own = [float(r) - mean for j, r in zip(split.items, split.ratings, strict=True) if j == i]
        item[i] = sum(own) / (25 + len(own))
    for u in range(split.num_users):
        place = slice(split.offsets[u], split.offsets[u + 1])
        rest = [
            float(r) - mean - item[j] for j, r in zip(split.items[place], split.ratings[place], strict=True)
        ]
        guess = mean + sum(rest) / (10 + len(rest)) + item[split.test[u]]
        errors.append((guess - split.test_ratings[u]) ** 2)
    np.testing.assert_allclose(units.central_ratings(split)["biases"], np.mean(errors) ** 0.5, rtol=1e-6)
