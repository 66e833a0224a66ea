"""What `result.json` says beside the means: spread, groups, the catalogue, intervals."""

import json

import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main
from fedjax_rec.evaluation.evaluator import make_evaluator, make_rating_predictor, make_top_k
from fedjax_rec.evaluation.metrics import user_metrics
from fedjax_rec.evaluation.ranking import count_rivals
from fedjax_rec.evaluation.reference_ranks import popularity_ranks
from fedjax_rec.evaluation.statistics import bootstrap_interval
from fedjax_rec.evaluation.summary import rivals_of, summarise, tell_rivals
from tests.data.test_splits import make_dataset


@pytest.fixture(scope="module")
def split():
    """A synthetic population."""
    return fr.leave_one_out(fr.data.synthetic(120, 200))


def make_split(users, items, num_items=None):
    """Leave-one-out in the order of the events."""
    return fr.leave_one_out(make_dataset(users, items, num_items=num_items), order="file")


@pytest.fixture(scope="module")
def parts(split):
    """The untrained model's ranks and lists."""
    import jax

    algorithm = fr.fedmf(dim=4)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    return make_evaluator(algorithm, split)(state), np.asarray(make_top_k(algorithm, split)(state).items)


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
    for name, mid_ranks in (("full", ranks.full), ("sampled7", ranks.sampled)):
        interval = bootstrap_interval(user_metrics(mid_ranks, [10])["hr@10"])
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
    names = {
        "full",
        "sampled99",
        "rivals",
        "distribution",
        "groups",
        "beyond_accuracy@10",
        "intervals",
        "rating",
    }
    assert set(test) == names
    assert set(test["groups"]) == {"activity", "item_popularity", "gender", "occupation"}
    assert 0.8 < test["rating"]["mae"] < test["rating"]["rmse"] < 1.5


def test_predicted_ratings_are_the_scores(split):
    """Of the test items; NaN where there is none."""
    import jax

    algorithm = fr.fedmf(dim=4)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    some = split._replace(test=np.where(np.arange(120) % 5, split.test, -1))
    rated = np.asarray(make_rating_predictor(algorithm, some)(state))
    assert algorithm.score is not None
    scores = jax.vmap(algorithm.score, in_axes=(0, None))(state.private, state.server)
    expected = np.where(some.test >= 0, np.asarray(scores)[np.arange(120), some.test], np.nan)
    np.testing.assert_allclose(rated, expected, rtol=1e-5, atol=1e-7)


def test_a_result_says_how_many_rivals_there_were(split, parts):
    """As the rankers count them; a table says so where they are fewer than its name says."""
    ranks, lists = parts
    said = summarise(ranks, split, lists)["rivals"]
    counts = count_rivals(split)
    assert said == {
        "full": [counts.full.min(), counts.full.max()],
        "sampled99": [counts.sampled.min(), counts.sampled.max()],
        "users_ranked": 120,
        "users_without_rivals": 0,
    }
    users, items = np.divmod(np.arange(24), 6)
    few = make_split(users, items, num_items=8)
    assert tell_rivals(few) == [
        "sampled99: the test items compete with 2 items, not 99: users have not met more"
    ]
    assert tell_rivals(make_split(users, items, num_items=150)) == []
    users, items = np.append(users, np.repeat(4, 8)), np.append(items, np.arange(8))
    some = make_split(users, items, num_items=8)
    assert rivals_of(some)[2:] == (4, 1)
    assert tell_rivals(some)[1] == "1 of 5 users have met all other items, and are not ranked"
    np.testing.assert_array_equal(np.isnan(popularity_ranks(some).full.mid), [False] * 4 + [True])


def test_nothing_to_rank_is_refused():
    """Before anything is trained, and with a reason: not a table of NaN."""
    users, items = np.divmod(np.arange(24), 6)
    full = make_split(users, items)
    with pytest.raises(
        ValueError, match="has nothing to rank: everybody has met all other items; use other data"
    ):
        rivals_of(full)
    with pytest.raises(ValueError, match="nobody has a test item"):
        rivals_of(full._replace(test=np.full(4, -1, np.int32)))
