"""Metrics as functions of ranks."""

import itertools
import math

import numpy as np
import pytest

from fedjax_rec.evaluation.metrics import KS, metrics_from_ranks, standard_errors, user_metrics
from fedjax_rec.evaluation.ranking import MidRanks


def test_hand_made_ranks():
    """Ranks 0, 1.5 and 9 at two cut-offs, and a user without a positive."""
    metrics = metrics_from_ranks(np.array([0, 1.5, np.nan, 9], np.float32), ks=[2, 10], rivals=9)
    assert metrics == pytest.approx(
        {
            "hr@2": 2 / 3,
            "ndcg@2": (1 + 1 / math.log2(3.5)) / 3,
            "mrr@2": (1 + 1 / 2.5) / 3,
            "hr@10": 1,
            "ndcg@10": (1 + 1 / math.log2(3.5) + 1 / math.log2(11)) / 3,
            "mrr@10": (1 + 1 / 2.5 + 1 / 10) / 3,
            "mrr": (1 + 1 / 2.5 + 1 / 10) / 3,
            "auc": (1 + (1 - 1.5 / 9) + 0) / 3,
        }
    )


def test_a_rank_equal_to_k_misses():
    """The k-th place has the 0-based rank k - 1; half a place below it still hits."""
    assert user_metrics(np.array([9, 9.5, 10]), [10])["hr@10"].tolist() == [1, 1, 0]


def test_metrics_are_bounded_and_grow_with_k():
    """All between 0 and 1, for half-integer ranks too, and k may exceed the catalogue."""
    ranks = np.random.default_rng(0).integers(0, 60, 500) / 2
    ks = (1, 5, 10, 1000)
    values = user_metrics(ranks, ks, rivals=30)
    assert all(((value >= 0) & (value <= 1)).all() for value in values.values())
    for name in ("hr", "ndcg", "mrr"):
        for small, large in itertools.pairwise(ks):
            assert (values[f"{name}@{small}"] <= values[f"{name}@{large}"]).all()
    assert (values["hr@1000"] == 1).all()
    np.testing.assert_array_equal(values["mrr@1000"], values["mrr"])


def test_auc_takes_rivals_of_each_user():
    """The rank over the user's own number of rivals."""
    assert user_metrics(np.array([1.0, 1.0]), rivals=np.array([2, 4]))["auc"].tolist() == [0.5, 0.75]
    assert "auc" not in user_metrics(np.array([1.0]))


def test_standard_errors_are_those_of_the_mean():
    """For hits, the root of p (1 - p) / (n - 1); users without a positive do not count."""
    ranks = np.concatenate([np.zeros(20), np.full(80, 50.0), np.full(7, np.nan)])
    assert standard_errors(ranks, [10])["hr@10"] == pytest.approx(np.sqrt(0.2 * 0.8 / 99))


def test_without_users_there_are_no_numbers():
    """NaN, and no warning; one user has no standard error."""
    assert np.isnan(list(metrics_from_ranks(np.full(3, np.nan), rivals=2).values())).all()
    assert np.isnan(list(standard_errors(np.array([1.0, np.nan]), rivals=2).values())).all()


def test_cut_offs_start_at_one():
    """A cut-off of 0 is an error."""
    with pytest.raises(ValueError, match="k=0 is out of range; cut-offs start at 1"):
        metrics_from_ranks(np.zeros(1), [0])


def make_mid_ranks(better, tied) -> MidRanks:
    """Mid-ranks from counts."""
    better = np.asarray(better, float)
    tied = np.asarray(tied)
    return MidRanks(better + tied / 2, tied)


def test_ties_are_expectations_over_their_order():
    """The mean over all ranks that the ties leave open, one after the other."""
    rng = np.random.default_rng(0)
    mid_ranks = make_mid_ranks(rng.integers(0, 25, 200), rng.integers(0, 12, 200))
    values = user_metrics(mid_ranks, [1, 10, 1000], rivals=40)
    for user, (mid, tied) in enumerate(zip(mid_ranks.mid, mid_ranks.tied, strict=True)):
        open_ranks = mid - tied / 2 + np.arange(tied + 1)
        plain = user_metrics(open_ranks, [1, 10, 1000], rivals=40)
        for name, value in plain.items():
            assert values[name][user] == pytest.approx(value.mean(), rel=1e-12, abs=1e-15)


def test_without_ties_nothing_changes():
    """Bit by bit the values of plain ranks, beside users that do tie."""
    ranks = np.array([0, 3, 9, 10, np.nan, 4])
    mid_ranks = make_mid_ranks(ranks, [0, 0, 0, 0, 0, 5])
    one = user_metrics(mid_ranks, rivals=50)
    other = user_metrics(ranks, rivals=50)
    for name in other:
        np.testing.assert_array_equal(one[name][:5], other[name][:5])


def test_ndcg_with_ties_agrees_with_scikit_learn():
    """`ndcg_score` averages over tied documents (McSherry and Najork 2008)."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 6, (100, 30)).astype(float)
    relevant = np.zeros((100, 30))
    relevant[:, 0] = 1
    mid_ranks = make_mid_ranks(
        (scores[:, 1:] > scores[:, :1]).sum(1), (scores[:, 1:] == scores[:, :1]).sum(1)
    )
    values = user_metrics(mid_ranks, rivals=29)
    for k in KS:
        assert values[f"ndcg@{k}"].mean() == pytest.approx(
            metrics.ndcg_score(relevant, scores, k=k), rel=1e-12
        )
    assert values["auc"] == pytest.approx(
        [metrics.roc_auc_score(relevant[user], scores[user]) for user in range(100)], rel=1e-12
    )


def test_mid_ranks_are_arrays():
    """For code that wants plain ranks."""
    mid_ranks = make_mid_ranks([0, 4], [1, 0])
    assert np.asarray(mid_ranks).tolist() == [0.5, 4.0]
    assert (len(mid_ranks), mid_ranks.shape) == (2, (2,))
    assert np.asarray(mid_ranks, np.float32).dtype == np.float32
