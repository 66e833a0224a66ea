"""The runner of the central baselines, the choice of settings, and the price of federation."""

import json
from typing import Any

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.data.defaults import (
    ALS_ROUNDS,
    Size,
    als_ridge_of_one,
    als_weights,
)
from fedjax_rec.evaluation.central import (
    METHOD_NAMES,
    BaselineTrial,
    fit_ease,
    parse_method_names,
    parse_method_settings,
    price_of_federation,
    run_baselines,
    runner,
    scorers,
    try_baseline,
)
from fedjax_rec.evaluation.central.example import tiny_split
from fedjax_rec.evaluation.central.registry import METHODS, method_settings, trial_settings
from fedjax_rec.evaluation.convergence import CEILING, PATIENCE_SHARE
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.ranking import make_ranker

SMALL = {"mf": {"dim": 4, "epochs": 3}}


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(200, 150, seed=3))


@pytest.fixture(scope="module")
def found(split):
    """The random methods and a closed form, refit on train + validation."""
    return run_baselines(split, names=["random", "ease", "ials", "mf"], refit=True, settings=SMALL)


def test_results_are_complete(found, split):
    """Names in order, settings in full, trials at a small width, ranks of all users."""
    assert list(found) == ["random", "ease", "ials", "mf"]
    weights = als_weights(split.size)
    assert found["ials"].trials[0].settings == {"dim": 32, "epochs": 8, **weights._asdict()}
    assert found["ials"].settings.keys() == found["ials"].trials[0].settings.keys()
    assert found["ials"].settings["dim"] == 64
    assert all(trial.settings["dim"] == 32 for trial in found["ials"].trials)
    assert found["mf"].settings["epochs"] == 3
    assert found["mf"].settings["num_negatives"] == 4
    assert found["random"].trials == found["mf"].trials == ()
    for one in found.values():
        assert sorted(one.metrics) == ["full", "sampled99"]
        assert np.isfinite(np.asarray(one.ranks.full)).all()
        assert one.seconds > 0


def test_the_same_seed_gives_the_same(found, split):
    """Every random method is a function of its seed."""
    for seed, same in ((0, True), (1, False)):
        again = run_baselines(split, names=["random", "mf"], refit=True, seed=seed, settings=SMALL)
        for name, one in again.items():
            assert np.array_equal(one.ranks.full, found[name].ranks.full) is same


def test_refit_trains_on_validation_too(split):
    """Without a refit the model is that of the training events; with it, that of the merged ones."""
    settings = {"ease": {"regularisation": 50.0}}
    for refit, trained in ((False, split), (True, fr.data.merge_validation(split))):
        found = run_baselines(split, names=["ease"], refit=refit, settings=settings)["ease"]
        scorer = fit_ease(trained, regularisation=50.0)
        ranks = make_ranker(trained, scorer.score_block)(scorer.params)
        np.testing.assert_allclose(found.ranks.full, ranks.full)
        assert found.trials == ()


def test_settings_are_chosen_on_validation_only(split):
    """Other test items change no choice."""
    blind = split._replace(test=np.roll(split.test, 1))
    ours, theirs = (run_baselines(one, names=["itemknn", "ease"]) for one in (split, blind))
    for name, one in ours.items():
        assert one.settings == theirs[name].settings
        assert one.trials == theirs[name].trials
        assert len(one.trials) == len(METHODS[name].trials) + 1


def test_a_neighbour_must_win_by_two_standard_errors(split, monkeypatch):
    """Validation metrics of the trials are made up: only a clear gain replaces the default."""
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(3, split.num_users))
    for gains, factor in (((0, 0.1, 0.01), 1), ((0, 0.1, 1.0), 3), ((0, 2.0, 1.0), 1 / 3)):
        values = iter(noise + np.array(gains)[:, None])
        monkeypatch.setattr(runner, "_validation_metric", lambda *_, values=values: next(values))
        chosen = run_baselines(split, names=["ease"])["ease"]
        default = method_settings("ease", split)["regularisation"]
        assert chosen.settings["regularisation"] == pytest.approx(default * factor)


def test_without_validation_the_defaults_are_used(split):
    """A merged split has nothing to choose on."""
    found = run_baselines(fr.data.merge_validation(split), names=["ease"])["ease"]
    assert found.trials == ()
    assert found.settings == method_settings("ease", fr.data.merge_validation(split))


def test_a_search_of_ones_own(split):
    """Every trial is validated as `run_baselines` does it, without the test items; a diverged one has no score."""
    blind = split._replace(test=np.roll(split.test, 1))
    wanted = run_baselines(split, names=["ease"])["ease"].trials
    told = []
    changes = [{}, *(trial.settings for trial in wanted[1:])]
    found = try_baseline(blind, "ease", changes, on_trial=lambda *given: told.append(given))
    assert found == wanted
    assert told == [(1, 3), (2, 3), (3, 3)]
    wild = [{"dim": 2, "epochs": 2, "learning_rate": rate} for rate in (1e30, 0.1)]
    scores = [trial.validation for trial in try_baseline(split, "mf", wild)]
    assert np.isnan(scores[0])
    assert scores[1] > 0
    with pytest.raises(ValueError, match="ease has no setting 'depth'"):
        try_baseline(split, "ease", [{}, {"depth": 1}])
    with pytest.raises(ValueError, match="unknown baseline 'easy'"):
        try_baseline(split, "easy", [{}])
    with pytest.raises(ValueError, match="no user has a validation item"):
        try_baseline(fr.data.merge_validation(split), "ease", [{}])


def test_trials_change_the_penalty_or_the_weight_of_the_unobserved():
    """The weight goes over orders of magnitude, and what it adds to the penalty of a mean user is taken back."""
    size = Size(1000, 2000, 50_000)
    settings = {"dim": 16, "epochs": 8, "regularisation": 0.03, "unobserved": 0.3}
    tried = trial_settings("ials", settings, size)
    assert tried[0] == settings  # narrower than 32 already
    strict = [one["regularisation"] * als_ridge_of_one(size, one["unobserved"]) for one in tried]
    assert strict == pytest.approx([strict[0] * factor for factor in (1, 1 / 3, 3, 1, 1, 1, 1, 1)])
    weights = [one["unobserved"] for one in tried[3:]]
    assert max(weights) / min(weights) == pytest.approx(300)


def test_stages_are_told(split):
    lines: list[str] = []
    run_baselines(split, names=["popularity", "ease"], on_stage=lines.append)
    assert lines[0] == "popularity: fitting"
    assert sum("on validation (" in line for line in lines) == 3
    assert lines[-1] == "ease: ranking every test item"


@pytest.fixture(scope="module")
def federated(split):
    """`fedals` with its round selected as a run selects it, and what it would have without a refit."""
    stop = fr.Stop(patience_share=PATIENCE_SHARE, min_rounds=ALS_ROUNDS)
    algorithm = fr.fedals()
    state, history = fr.simulate(algorithm, split, rounds=CEILING * ALS_ROUNDS, eval_every=1, stop=stop)
    return history, metrics_from_ranks(fr.make_evaluator(algorithm, split)(state).full)


def test_ials_has_the_epoch_and_the_numbers_of_fedals(split, federated, monkeypatch):
    """The same start, the same rule for sweeps and rounds, the same ranks: no price of federation by luck."""
    monkeypatch.setitem(METHODS, "ials", METHODS["ials"]._replace(trials=()))
    found = run_baselines(split, names=["ials"])["ials"]
    history, metrics = federated
    assert found.settings["epochs"] == history.selected_round
    assert found.metrics["full"]["ndcg@10"] == pytest.approx(metrics["ndcg@10"], rel=1e-3)
    fixed = run_baselines(split, names=["ials"], settings={"ials": {"epochs": 2}})["ials"]
    assert fixed.settings["epochs"] == 2


def test_ease_refuses_what_is_too_large(split, monkeypatch):
    """Before anything is fit, with a way out."""
    monkeypatch.setattr(scorers, "host_bytes", lambda: 10**6)
    lines: list[str] = []
    with pytest.raises(
        ValueError,
        match=r"ease needs .* for 200 users and 150 items of synthetic, and there are 0\.001: leave it out",
    ):
        run_baselines(split, on_stage=lines.append)
    assert lines == []
    assert list(run_baselines(split, names=["popularity"])) == ["popularity"]


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown method": ({"names": ["eaze"]}, "unknown baseline 'eaze'; known: random"),
    "unknown setting": (
        {"settings": {"ease": {"reg": 1.0}}},
        "ease has no setting 'reg'; its settings: regul",
    ),
    "no settings": ({"settings": {"random": {"dim": 1}}}, "random has no setting 'dim'; it has none"),
    "no whole number": (
        {"settings": {"ease": {}, "mf": {"dim": 8.5}}},
        "mf: dim must be a whole number, not 8.5",
    ),
    "no metric": ({"selection": "rmse"}, "selection='rmse' is unknown"),
    "left out": ({"names": ["random"], "settings": {"ease": {}}}, "'ease', which is not among"),
    "bad value": ({"settings": {"ease": {"regularisation": -1.0}}}, "regularisation must be a finite number"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arguments(case):
    arguments, message = BAD[case]
    given: dict[str, Any] = {"names": ["random", "ease", "mf"]} | arguments
    with pytest.raises(ValueError, match=message):
        run_baselines(tiny_split(), **given)


def test_names_and_settings_are_read():
    assert parse_method_names("all") == METHOD_NAMES
    assert parse_method_names("mf, ease ,mf") == ("ease", "mf")
    with pytest.raises(ValueError, match="unknown baseline 'eas'; did you mean 'ease'"):
        parse_method_names("eas")
    assert parse_method_settings(["mf.dim=8", "mf.learning_rate=1e-2"]) == {
        "mf": {"dim": 8, "learning_rate": 0.01}
    }
    for text in ("mf.dim", "dim=3", "mf.dim=many", "ease.a.b=3"):
        with pytest.raises(ValueError, match=r"METHOD\.SETTING=NUMBER"):
            parse_method_settings([text])


def result(**parts):
    return {"protocol_id": "p"} | parts


FEDERATED = result(metrics={"test": {"full": {"hr@10": 0.2, "mrr": 0.1}, "groups": {}}, "validation": {}})


def test_price_is_of_the_best_central_method_of_each_metric():
    """Metric by metric; the ceiling is no method; parts and values that are missing have no ratio."""
    centrals = result(
        baselines={
            "ease": {"full": {"hr@10": 0.16, "mrr": None}},
            "mf": {"full": {"hr@10": 0.1, "mrr": 0.4}},
            "best_reachable": {"full": {"hr@10": 0.9, "mrr": 0.9}},
        }
    )
    price = price_of_federation(FEDERATED, centrals)
    assert price == {
        "full": {"hr@10": {"ratio": 1.25, "best": "ease"}, "mrr": {"ratio": 0.25, "best": "mf"}},
    }
    assert json.loads(json.dumps(price)) == price
    nothing = result(baselines={"ease": {"full": {"hr@10": 0.0, "mrr": float("nan")}}})
    assert price_of_federation(FEDERATED, nothing)["full"] == {
        "hr@10": {"ratio": None, "best": "ease"},
        "mrr": {"ratio": None, "best": None},
    }


def test_price_says_how_much_was_tuned():
    """An untuned federated result over a tuned central one says so, metric by metric, for the best central one."""
    values = {"ease": {"full": {"hr@10": 0.16, "mrr": 0.1}}, "mf": {"full": {"hr@10": 0.1, "mrr": 0.4}}}
    centrals = result(baselines=values, details={"ease": {"trials": [{}, {}, {}]}, "mf": {"trials": []}})
    price = price_of_federation(FEDERATED, centrals)["full"]
    assert price["hr@10"]["settings_tried"] == {"federated": 1, "central": 3}
    assert price["mrr"]["settings_tried"] == {"federated": 1, "central": 1}
    tuned = price_of_federation(FEDERATED | {"trials": 30}, centrals)["full"]
    assert tuned["hr@10"]["settings_tried"] == {"federated": 30, "central": 3}
    assert (price["hr@10"]["tuned_alike"], price["mrr"]["tuned_alike"]) == (False, True)


def test_price_refuses_other_protocols():
    """The id covers data, filters, candidates and refit; no id is no protocol."""
    centrals = {"baselines": {"ease": {"full": {"hr@10": 0.1}}}}
    for ours, theirs in (("p", "q"), ("p", None), (None, None)):
        with pytest.raises(ValueError, match="needs one protocol"):
            price_of_federation(FEDERATED | {"protocol_id": ours}, centrals | {"protocol_id": theirs})
    with pytest.raises(ValueError, match="no central result"):
        price_of_federation(FEDERATED, result(baselines={"best_reachable": {}}))


def test_trials_are_recorded(found):
    first = found["ease"].trials[0]
    assert isinstance(first, BaselineTrial)
    assert 0 < first.validation < 1


@pytest.mark.parametrize("selection", ["auc", "mrr", "hr@1"])
def test_any_metric_may_select(split, selection):
    found = run_baselines(split, names=["ease"], selection=selection)["ease"]
    assert all(0 < trial.validation < 1 for trial in found.trials)


def test_ease_refuses_what_is_lost_in_rounding(split):
    """A penalty below the rounding of the counts would invert a singular matrix."""
    with pytest.raises(ValueError, match="lost in rounding; give 2e-12 or more"):
        fit_ease(split, regularisation=1e-13)
