"""Metrics as functions of ranks."""

import itertools
import math

import numpy as np
import pytest

from fedjax_rec.evaluation.metrics import metrics_from_ranks, standard_errors, user_metrics


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
