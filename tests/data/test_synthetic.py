"""The synthetic population: the same everywhere, shaped like MovieLens, and drawn from the law it claims."""

import hashlib
from typing import Any

import numpy as np
import pytest

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.registry import load_dataset
from fedjax_rec.data.synthetic import synthetic


def last_items(events):
    """Each user's last item, and 1.0 where a user has met an item before that."""
    last = np.cumsum(np.bincount(events.users)) - 1
    seen = np.zeros((events.num_users, events.num_items))
    seen[events.users, events.items] = 1
    seen[np.arange(events.num_users), events.items[last]] = 0
    return events.items[last], seen


def hit_rate(scores, positives, seen):
    """HR@10 among all items not met before."""
    scores = np.where(seen > 0, -np.inf, scores)
    own = np.take_along_axis(scores, positives[:, None], 1)
    return ((scores > own).sum(1) + ((scores == own).sum(1) - 1) / 2 < 10).mean()


def test_default_is_the_same_everywhere():
    """A digest of all the codes and times: nothing depends on the platform."""
    events: Any = load_dataset().interactions
    digest = hashlib.sha256()
    for array in (events.users, events.items, events.timestamps):
        digest.update(array.astype("<i8").tobytes())
    digest.update("".join(events.item_ids).encode())
    assert digest.hexdigest()[:16] == "b318a38796309de4"


def test_seed_decides():
    """The same seed twice, and another one."""
    populations: Any = [synthetic(40, 150, seed=seed) for seed in (3, 3, 4)]
    one, two, other = populations
    for a, b in zip(one.interactions[:2] + one.truth, two.interactions[:2] + two.truth, strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(one.truth.user_factors, other.truth.user_factors)


def test_shape_is_like_movielens():
    """Lengths, long tail, ids, codes by first appearance, times that increase."""
    data: Any = synthetic()
    events = data.interactions
    lengths = np.bincount(events.users)
    assert (events.num_users, events.num_items) == (1000, 1200)
    assert lengths.min() >= 20
    assert 55 < np.median(lengths) < 75
    assert 300 < lengths.max() <= 400
    counts = np.sort(np.bincount(events.items, minlength=1200))[::-1]
    assert 0.4 < counts[:120].sum() / counts.sum() < 0.5
    pairs = events.users.astype(np.int64) * 1200 + events.items
    assert len(np.unique(pairs)) == len(pairs)
    seen, first = np.unique(events.items, return_index=True)
    assert (np.diff(first[np.argsort(seen)]) > 0).all()
    assert seen.max() == len(seen) - 1
    assert len(set(events.item_ids)) == 1200
    assert events.item_ids[0].startswith("item-")
    assert (np.diff(events.timestamps)[np.diff(events.users) == 0] > 0).all()
    assert events.ratings is None
    assert [array.dtype for array in (*events[:2], events.timestamps, *data.truth)] == ["i4"] * 2 + ["i8"] + [
        "f4"
    ] * 3
    assert data.truth.scores(np.array([5, 7])).shape == (2, 1200)


def test_truth_is_the_best_ranking():
    """The logits rank far better than popularity, and as well as their own probabilities say."""
    data: Any = synthetic()
    positives, seen = last_items(data.interactions)
    logits = data.truth.scores(np.arange(1000)).astype(np.float64)
    best = hit_rate(logits, positives, seen)
    popular = hit_rate(np.tile(seen.sum(0), (1000, 1)), positives, seen)
    assert best == pytest.approx(0.333, abs=0.002)
    assert popular == pytest.approx(0.089, abs=0.002)
    odds = np.exp(np.where(seen > 0, -np.inf, logits - logits.max(1, keepdims=True)))
    top = np.sort(odds / odds.sum(1, keepdims=True), 1)[:, -10:].sum(1)
    error = np.sqrt((top * (1 - top)).sum()) / 1000
    assert abs(best - top.mean()) < 3 * error


def test_draws_follow_the_law():
    """Successive draws are softmax over the rest: the surprise of first and last draws is as expected."""
    data: Any = synthetic(4000, 30, taste=1.0, min_events=3, median_events=4, max_events=6)
    events = data.interactions
    first = np.concatenate([[0], np.cumsum(np.bincount(events.users))[:-1]])
    logits = data.truth.scores(np.arange(4000)).astype(np.float64)
    for draw in range(3):
        odds = np.exp(logits)
        for earlier in range(draw):
            odds[np.arange(4000), events.items[first + earlier]] = 0
        law = odds / odds.sum(1, keepdims=True)
        observed = np.bincount(events.items[first + draw], minlength=30)
        error = np.sqrt((law * (1 - law)).sum(0))
        assert (np.abs(observed - law.sum(0)) < 4.5 * error).all()


@pytest.mark.parametrize("num_users", [1, 65, 200])
def test_draws_are_a_sort_of_all_noisy_logits(num_users):
    """The shortened sort takes what sorting every item by logit plus Gumbel noise takes, bit for bit."""
    data: Any = synthetic(num_users, 90, seed=7, min_events=1, median_events=9, max_events=89)
    rng = np.random.Generator(np.random.PCG64(7))
    users, items = rng.standard_normal((num_users, 4)), rng.standard_normal((90, 4)) * 1.5
    bias = -2 * np.log(rng.permutation(90) + 10.0)
    lengths = np.minimum(1 + (8 * np.exp(1.1 * rng.standard_normal(num_users))).astype(int), 89)
    users, items, bias = (x.astype("f4").astype("f8") for x in (users, items, bias - bias.mean()))
    order = np.argsort(-(users @ items.T + bias + rng.gumbel(size=(num_users, 90))), axis=1)
    taken = [
        f"item-{number:05d}" for row, length in zip(order, lengths, strict=True) for number in row[:length]
    ]
    assert data.interactions.item_ids[data.interactions.items].tolist() == taken


def test_settings_that_cannot_be():
    """Sizes and lengths are checked, and the message says how they must be."""
    with pytest.raises(DataError, match="max_events=10 < num_items=30"):
        synthetic(10, 30)
    with pytest.raises(DataError, match="num_users=0"):
        synthetic(0)
    with pytest.raises(DataError, match="median_events=5"):
        synthetic(10, 100, median_events=5)
    assert synthetic(3, 12, min_events=1, median_events=2).interactions.num_items == 12


def test_without_taste_popularity_is_the_truth():
    """With no taste all users rank alike."""
    data: Any = synthetic(5, 100, taste=0.0)
    scores = data.truth.scores(np.arange(5))
    np.testing.assert_array_equal(scores, np.tile(scores[0], (5, 1)))
