"""Intervals and tests: known values, scipy as the oracle, and coverage on synthetic data."""

import itertools

import numpy as np
import pytest
from scipy import stats

from fedjax_rec.evaluation.statistics import (
    bootstrap_interval,
    bootstrap_intervals,
    holm,
    paired_interval,
    permutation_test,
    seed_interval,
    wilcoxon_test,
)

NAN = np.nan


def test_bootstrap_agrees_with_scipy():
    """The percentile interval of a skewed sample, up to the noise of the draws."""
    values = np.random.default_rng(0).exponential(size=300)
    low, mean, high = bootstrap_interval(values, resamples=20_000)
    expected = stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert mean == pytest.approx(values.mean())
    assert (low, high) == pytest.approx(tuple(expected), abs=0.005)


def test_bootstrap_covers_the_mean():
    """About 95 of 100 intervals hold the true mean of a hit rate of .3 over 200 users."""
    rng = np.random.default_rng(0)
    samples = (rng.random((400, 200)) < 0.3).astype(float)
    inside = [low <= 0.3 <= high for low, _, high in bootstrap_intervals(samples.T, resamples=500, seed=1)]
    assert abs(np.mean(inside) - 0.95) < 0.03
    narrow = bootstrap_interval(samples[0], level=0.5)
    wide = bootstrap_interval(samples[0], level=0.99)
    assert wide.low < narrow.low < narrow.high < wide.high


def test_bootstrap_depends_on_the_seed_alone():
    """The same seed gives the same limits, also beside other metrics; NaN users do not count."""
    values = np.random.default_rng(0).random(50)
    one = bootstrap_interval(values, seed=3)
    assert one == bootstrap_interval(values, seed=3)
    assert one != bootstrap_interval(values, seed=4)
    assert one == bootstrap_intervals(np.stack([values**2, values], axis=1), seed=3)[1]
    assert one == bootstrap_interval(np.insert(values, 7, NAN), seed=3)
    assert np.isnan(bootstrap_interval(np.full(3, NAN))).all()


def test_pairing_makes_intervals_narrow():
    """A small gain for every user is certain, though users differ much."""
    users = np.random.default_rng(0).normal(size=500)
    low, mean, high = paired_interval(users + 0.1, users)
    assert (low, mean, high) == pytest.approx((0.1, 0.1, 0.1))
    assert bootstrap_interval(users).high - bootstrap_interval(users).low > 0.1


def test_permutation_test_is_exact_for_few_users():
    """All sign patterns, one after the other; users without a difference do not matter."""
    rng = np.random.default_rng(0)
    for number in range(1, 10):
        first, second = rng.integers(0, 5, (2, number)).astype(float)
        differences = first - second
        sums = [abs(np.dot(signs, differences)) for signs in itertools.product([1, -1], repeat=number)]
        expected = np.mean(np.array(sums) >= abs(differences.sum()) - 1e-9)
        assert permutation_test(first, second) == pytest.approx(expected)
    assert permutation_test(np.array([1.0, 2, 3, 5, NAN]), np.array([0.0, 0, 0, 5, 1])) == 0.25
    assert permutation_test(np.ones(4), np.ones(4)) == 1


def test_permutation_test_agrees_with_scipy():
    """The random patterns of many users, up to their noise; symmetric in the models; never 0."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=60)
    second = first - rng.normal(0.2, 1, 60)
    expected = stats.permutation_test(
        (first, second), lambda a, b: np.mean(a - b), permutation_type="samples", n_resamples=20_000, rng=rng
    ).pvalue
    assert permutation_test(first, second, flips=20_000) == pytest.approx(expected, abs=0.015)
    assert permutation_test(first, second) == permutation_test(second, first)
    assert permutation_test(first + 9, first) == 1 / 10_001


def test_permutation_test_keeps_its_promise():
    """Without a difference p is below .05 in about 5 of 100 cases."""
    rng = np.random.default_rng(0)
    hits = rng.random((600, 2, 100)) < 0.3
    rejected = [permutation_test(*pair.astype(float), flips=500) <= 0.05 for pair in hits]
    assert np.mean(rejected) < 0.08


def test_wilcoxon_agrees_with_scipy():
    """Ties and zeros too."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 6, (2, 80)).astype(float)
    assert wilcoxon_test(first, second) == stats.wilcoxon(first, second).pvalue
    assert wilcoxon_test(first, first) == 1
    assert wilcoxon_test(np.append(first, NAN), np.append(second, 1)) == wilcoxon_test(first, second)


def test_holm_by_hand():
    """The example of four tests; order, ties and NaN stay; never above 1, never below p."""
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(np.array([0.5, NAN, 0.9])) == pytest.approx([1, NAN, 1], nan_ok=True)
    assert holm(np.array([0.02])).tolist() == [0.02]
    assert holm(np.zeros(0)).tolist() == []
    p_values = np.random.default_rng(0).random(20)
    assert (holm(p_values) >= p_values).all()
    assert (np.argsort(holm(p_values), kind="stable") == np.argsort(p_values)).sum() > 0


def test_seeds_agree_with_scipy():
    """The t interval; one seed has no limits."""
    means = np.random.default_rng(0).normal(0.5, 0.01, 5)
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.9)
    low, mean, high = seed_interval(means, level=0.9)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    assert mean == means.mean()
    assert seed_interval(means[:1]).estimate == means[0]
    assert np.isnan(seed_interval(means[:1]).low)


def test_bad_arguments_are_one_line_errors():
    """Lengths, numbers of draws and levels."""
    with pytest.raises(ValueError, match="3 values do not pair with 2; compare the same users"):
        paired_interval(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match="0 resamples are too few"):
        bootstrap_interval(np.zeros(3), resamples=0)
    with pytest.raises(ValueError, match=r"level=95 is out of range; choose a value between 0 and 1"):
        seed_interval(np.zeros(3), level=95)
