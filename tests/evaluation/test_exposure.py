"""Exposure of target items: against a loop over users, with users that do not count, and with fake users."""

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.data.fake_users import exclude_from_evaluation, with_fake_users
from fedjax_rec.evaluation.exposure import exposure_ratio, make_exposure_ratio
from fedjax_rec.evaluation.metrics import metrics_from_ranks


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(
        fr.data.synthetic(60, 50, seed=1, min_events=4, median_events=9), num_candidates=5
    )


def by_hand(scores, split, targets, k, exclude):
    """Each user's whole list sorted in Python, and the mean over users of the share of its unmet targets."""
    shares = []
    for user in range(split.num_users):
        train = set(split.items[split.offsets[user] : split.offsets[user + 1]].tolist())
        masked = train | {int(split.validation[user])} - {-1, int(split.test[user])}
        best = sorted(set(range(split.num_items)) - masked, key=lambda i: (-scores[user, i], i))[:k]
        unmet = [t for t in targets if t not in train | {int(split.validation[user]), int(split.test[user])}]
        if user not in exclude and unmet:
            shares.append(sum(t in best for t in unmet) / len(unmet))
    return np.mean(shares)


def test_equals_a_loop_over_users(split):
    """Of random factors, several targets, and users of an attacker that do not count."""
    algorithm = fr.fedmf(dim=3, init_scale=2.0)
    state = algorithm.init(jax.random.key(4), fr.population_of(split))
    assert algorithm.score is not None
    scores = np.asarray(jax.vmap(algorithm.score, in_axes=(0, None))(state.private, state.server))
    targets = [3, 17, 31]
    exclude = [0, 5, 59]
    found = make_exposure_ratio(algorithm, split, targets, ks=(2, 10), exclude=exclude)(state)
    for k in (2, 10):
        assert found[f"er@{k}"] == pytest.approx(by_hand(scores, split, targets, k, exclude), abs=1e-12)
    assert found["er@2"] < found["er@10"] < 1


def test_who_has_met_the_target_does_not_count(split):
    """In everybody's list, the target's exposure is 1; in nobody's 0; with all users excluded there is none."""
    target = int(split.items[0])
    everywhere = np.full((split.num_users, 1), target)
    assert exposure_ratio(everywhere, split, [target], ks=[1]) == {"er@1": 1.0}
    assert exposure_ratio(everywhere - 1, split, [target], ks=[1]) == {"er@1": 0.0}
    first = everywhere.copy()
    first[1:] = -1  # user 0 has met it: its list, however full of the target, is no exposure
    assert exposure_ratio(first, split, [target], ks=[1]) == {"er@1": 0.0}
    assert np.isnan(
        exposure_ratio(everywhere, split, [target], ks=[1], exclude=range(split.num_users))["er@1"]
    )


@pytest.mark.parametrize(
    ("targets", "ks"), [([], [1]), ([50], [1]), ([-1], [1]), ([2, 2], [1]), ([2], [0]), ([2], [3])]
)
def test_what_cannot_be_measured_is_refused(split, targets, ks):
    """Unknown and repeated targets, and cut-offs beyond the lists."""
    with pytest.raises(ValueError, match="must be"):
        exposure_ratio(np.zeros((split.num_users, 2), int), split, targets, ks=ks)


def test_fake_users_are_measured_by_nobody(split):
    """Fakes hold what they are told to, and neither HR nor the real users' ranks notice them."""
    both = with_fake_users(split, 7, items=[4, 9], length=6, seed=3)
    assert both.num_users == split.num_users + 7
    assert len(set(both.user_ids.tolist())) == both.num_users
    for user in range(split.num_users, both.num_users):
        history = both.items[both.offsets[user] : both.offsets[user + 1]]
        assert len(set(history.tolist())) == 6
        assert {4, 9} <= set(history.tolist())
    algorithm = fr.fedmf(dim=3, init_scale=2.0)
    state = algorithm.init(jax.random.key(4), fr.population_of(both))
    real = state._replace(private=jax.tree.map(lambda p: p[: split.num_users], state.private))
    ranks = fr.make_evaluator(algorithm, both)(state)
    alone = fr.make_evaluator(algorithm, split)(real)
    np.testing.assert_array_equal(np.asarray(ranks.full)[: split.num_users], np.asarray(alone.full))
    assert np.isnan(np.asarray(ranks.full)[split.num_users :]).all()
    assert metrics_from_ranks(ranks.full, [10]) == metrics_from_ranks(alone.full, [10])


def test_users_taken_over_are_measured_by_nobody(split):
    """What they hold out is forgotten; what they train on is not."""
    fewer = exclude_from_evaluation(split, [2, 8])
    assert set(np.flatnonzero(fewer.test != split.test)) == {2, 8}
    np.testing.assert_array_equal(fewer.items, split.items)
    with pytest.raises(ValueError, match="not 60"):
        exclude_from_evaluation(split, [60])
