"""What `result.json` says beside the means: spread, groups, the catalogue, intervals."""

import json

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.cli import main
from fedjax_rec.evaluation.evaluator import make_evaluator, make_lister, make_rater
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.statistics import bootstrap_interval
from fedjax_rec.evaluation.summary import summarise


@pytest.fixture(scope="module")
def split():
    """A synthetic population."""
    return fr.leave_one_out(fr.synthetic(120, 200))


@pytest.fixture(scope="module")
def parts(split):
    """The untrained model's ranks and lists."""
    import jax

    algorithm = fr.fedmf(dim=4)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    return make_evaluator(algorithm, split)(state), np.asarray(make_lister(algorithm, split)(state).items)


def test_groups_are_parts_of_the_mean(split, parts):
    """Each grouping counts every user once; weighted by their users, the means give the overall mean."""
    ranks, lists = parts
    attributes = {
        "gender": np.array(["F", "M", "M"] * 40),
        "zip": np.arange(120).astype(str),
        "constant": np.full(120, "x"),
    }
    groups = summarise(ranks, split, lists, attributes=attributes)["groups"]
    assert set(groups) == {"activity", "item_popularity", "gender"}  # too many values, and too few
    overall = user_metrics(ranks.full, [10])["ndcg@10"].mean()
    for grouping in groups.values():
        assert sum(group["users"] for group in grouping.values()) == 120
        assert sum(group["users"] * group["ndcg@10"] for group in grouping.values()) / 120 == pytest.approx(
            overall
        )
    most = [group["most_events"] for group in groups["activity"].values()]
    assert most == sorted(most)
    assert most[-1] == np.diff(split.offsets).max()


def test_intervals_and_distribution(split, parts):
    """Those of the statistics, in both rankings."""
    ranks, lists = parts
    summary = summarise(ranks, split, lists, sampled="sampled7")
    for name, places in (("full", ranks.full), ("sampled7", ranks.sampled)):
        interval = bootstrap_interval(user_metrics(places, [10])["hr@10"])
        assert summary["intervals"][name]["hr@10"] == [interval.low, interval.high]
    assert set(summary["distribution"]) == {"p10", "median", "worst_decile"}
    assert 0 < summary["beyond_accuracy@10"]["coverage"] <= 1


def test_lists_agree_with_ranks(split, parts):
    """The held-out item is in the list exactly where its rank is below 10."""
    ranks, lists = parts
    np.testing.assert_array_equal((lists == split.test[:, None]).any(axis=1), np.asarray(ranks.full) < 10)


def test_a_run_reports_them(tmp_path, shared_data):
    """`result.json` has them under `metrics.test`, with the attributes that lie beside the data."""
    where = ["--dataset", "ml-100k", "--data-dir", str(shared_data)]
    fit = ["--loss", "mse", "--learning-rate", "0.02", "--rounds", "2", "--dim", "4", "--eval-every", "2"]
    assert main(["run", *where, *fit, "--out", str(tmp_path / "run")]) == 0
    test = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]["test"]
    names = {"full", "sampled99", "distribution", "groups", "beyond_accuracy@10", "intervals", "rating"}
    assert set(test) == names
    assert set(test["groups"]) == {"activity", "item_popularity", "gender", "occupation"}
    assert 0.8 < test["rating"]["mae"] < test["rating"]["rmse"] < 1.5


def test_predicted_ratings_are_the_scores(split):
    """Of the test items; NaN where there is none."""
    import jax

    algorithm = fr.fedmf(dim=4)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    some = split._replace(test=np.where(np.arange(120) % 5, split.test, -1))
    rated = np.asarray(make_rater(algorithm, some)(state))
    assert algorithm.score is not None
    scores = jax.vmap(algorithm.score, in_axes=(0, None))(state.private, state.server)
    expected = np.where(some.test >= 0, np.asarray(scores)[np.arange(120), some.test], np.nan)
    np.testing.assert_allclose(rated, expected, rtol=1e-5, atol=1e-7)
