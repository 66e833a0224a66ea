"""Rating errors, beyond-accuracy metrics, distributions and groups."""

import numpy as np
import pytest

from fedjax_rec.evaluation.catalogue import beyond_accuracy, exposure_counts, gini
from fedjax_rec.evaluation.groups import activity_quantiles, distribution, group_means, head_items
from fedjax_rec.evaluation.metrics import rating_errors, user_rating_errors

NAN = np.nan


def test_rating_errors_by_hand():
    """Errors 1, 3 and 2 of two users; a rating that was not held out does not count."""
    predictions = np.array([2.0, 4, 3, 1])
    ratings = np.array([3.0, 1, 5, NAN])
    users = np.array([0, 0, 2, 1])
    errors = rating_errors(predictions, ratings, users)
    assert errors == pytest.approx(
        {"rmse": np.sqrt(14 / 3), "mae": 2, "user_rmse": (np.sqrt(5) + 2) / 2, "user_mae": 2}
    )
    own = user_rating_errors(predictions, ratings, users, 3)
    np.testing.assert_allclose(own["mae"], [2, NAN, 2])


def test_rating_errors_agree_with_scikit_learn():
    """Over all ratings."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    predictions, ratings = rng.normal(size=(2, 200))
    errors = rating_errors(predictions, ratings)
    assert errors["rmse"] == pytest.approx(metrics.root_mean_squared_error(ratings, predictions))
    assert errors["mae"] == pytest.approx(metrics.mean_absolute_error(ratings, predictions))


def test_a_nan_prediction_is_not_hidden():
    """A failed model has no error, and no ratings give none either, without a warning."""
    assert np.isnan(rating_errors(np.array([NAN, 1]), np.array([1.0, 1]))["rmse"])
    nothing = rating_errors(np.array([1.0]), np.array([NAN]), np.array([0]))
    assert np.isnan(list(nothing.values())).all()
    assert list(nothing) == ["rmse", "mae", "user_rmse", "user_mae"]


def test_gini_is_the_mean_difference():
    """Half of the mean absolute difference over the mean; scale-free; bounded by 1 - 1/I."""
    amounts = np.random.default_rng(0).integers(0, 20, 30)
    difference = np.abs(amounts[:, None] - amounts[None, :]).mean() / (2 * amounts.mean())
    assert gini(amounts) == pytest.approx(difference)
    assert gini(7 * amounts) == pytest.approx(difference)
    assert gini(np.array([0, 0, 5])) == pytest.approx(2 / 3)
    assert gini(np.ones(9)) == 0
    assert np.isnan(gini(np.zeros(3)))
    with pytest.raises(ValueError, match="the amount -1 is negative"):
        gini(np.array([-1, 2]))


def test_beyond_accuracy_by_hand():
    """Three lists, one of them empty and one short; item 3 has no events."""
    lists = np.array([[0, 3], [1, -1], [-1, -1]])
    found = beyond_accuracy(lists, np.array([4, 2, 8, 0]), 8)
    assert exposure_counts(lists, 4).tolist() == [1, 1, 0, 1]
    assert found["coverage"] == 0.75
    assert found["exposure_gini"] == pytest.approx(0.25)
    assert found["average_popularity"] == pytest.approx(((4 + 0) / 2 + 2) / 2)
    assert found["novelty"] == pytest.approx(((1 + 3) / 2 + 2) / 2)


def test_without_lists_there_is_nothing_to_measure():
    """Coverage is 0 and the rest NaN, without a warning."""
    found = beyond_accuracy(np.full((2, 3), -1), np.ones(4), 2)
    assert found.pop("coverage") == 0
    assert np.isnan(list(found.values())).all()


def test_distribution_over_clients():
    """The worst decile is a mean over ceil(N / 10) users; NaN users do not count."""
    values = np.concatenate([np.random.default_rng(0).permutation(25.0 + np.arange(25)), [NAN] * 3])
    assert distribution(values) == pytest.approx({"p10": 27.4, "median": 37, "worst_decile": 26})
    assert np.isnan(list(distribution(np.full(2, NAN)).values())).all()


def test_activity_quantiles():
    """About equally many users without ties; equal activity is never divided."""
    events = np.random.default_rng(0).permutation(100)
    labels, counts = np.unique(activity_quantiles(events), return_counts=True)
    assert (labels.tolist(), counts.tolist()) == (["q1", "q2", "q3", "q4"], [25] * 4)
    assert (activity_quantiles(events)[events < 25] == "q1").all()
    assert set(activity_quantiles(np.full(9, 3))) == {"q1"}
    assert set(activity_quantiles(np.arange(10), 1)) == {"q1"}
    with pytest.raises(ValueError, match="num_quantiles=0 is out of range"):
        activity_quantiles(events, 0)


def test_head_is_the_fewest_items_with_half_of_the_events():
    """No smaller set of items holds half."""
    popularity = np.random.default_rng(0).integers(0, 50, 80)
    head = head_items(popularity)
    assert popularity[head].sum() >= popularity.sum() / 2
    assert popularity[head].sum() - popularity[head].min() < popularity.sum() / 2
    assert popularity[head].min() >= popularity[~head].max()
    assert not head_items(np.zeros(3)).any()


def test_group_means():
    """Groups in sorted order; users without a value or a label are in none."""
    values = {"a": np.array([1.0, 3, NAN, 5, 7]), "b": np.array([0.0, 1, NAN, 1, 1])}
    labels = np.array(["y", "x", "x", "y", ""])
    assert group_means(values, labels) == {
        "x": {"users": 1, "a": 3.0, "b": 1.0},
        "y": {"users": 2, "a": 3.0, "b": 0.5},
    }
    only = group_means(values, labels, include=np.array([True, False, True, False, True]))
    assert only["y"] == {"users": 1, "a": 1.0, "b": 0.0}
    assert only["x"]["users"] == 0
    assert np.isnan(only["x"]["a"])
