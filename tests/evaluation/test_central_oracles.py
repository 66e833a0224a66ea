"""Central methods against slow plain numpy: each by another way than the library's."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation.central import (
    ease,
    fit_ease,
    fit_ials,
    fit_itemknn,
    fit_mf,
    fit_popularity,
    fit_random,
    ials,
    itemknn,
    mf,
)
from fedjax_rec.evaluation.central.example import tiny_split
from fedjax_rec.evaluation.central.scorers import Scorer, gram_matrix
from tests.crosses import sampled

USERS = np.array([88, 0, 13, 13])


@pytest.fixture(scope="module")
def split():
    """Ninety users of ragged histories, more than one block and one piece of them."""
    return fr.leave_one_out(fr.data.synthetic(90, 120, seed=1))


@pytest.fixture(scope="module")
def table(split):
    """float64[N, I], the binary training table."""
    return table_of(split)


def table_of(split):
    table = np.zeros((split.num_users, split.num_items))
    for user in range(split.num_users):
        table[user, split.items[split.offsets[user] : split.offsets[user + 1]]] = 1
    return table


def scores_of(scorer, users=USERS):
    return np.asarray(scorer.score_block(scorer.params, jnp.asarray(users)))


def test_pairs_are_counted(split, table):
    np.testing.assert_array_equal(gram_matrix(split), table.T @ table)


@pytest.mark.parametrize("regularisation", sampled([0.5, 30.0], [30.0], "the strength is a number"))
def test_ease_solves_the_constrained_ridge(split, table, regularisation, monkeypatch):
    """Column by column, the ridge with b_jj = 0 by a Lagrange multiplier; solved by users and by items."""
    size = split.num_items
    weights = np.zeros((size, size))
    for item in range(size):
        chosen = np.eye(size)[item][:, None]
        ridge = 2 * (table.T @ table + regularisation * np.eye(size))
        system = np.block([[ridge, chosen], [chosen.T, np.zeros((1, 1))]])
        weights[:, item] = np.linalg.solve(system, np.append(2 * table.T @ table[:, item], 0))[:size]
    expected = (table @ weights)[USERS]
    assert ease.by_users(split)
    monkeypatch.setattr(ease, "_BLOCK", 32)  # rows and triangles in pieces
    by_users = scores_of(fit_ease(split, regularisation=regularisation))
    np.testing.assert_allclose(by_users, expected, rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(ease, "by_users", lambda _: False)
    scorer = fit_ease(split, regularisation=regularisation)
    np.testing.assert_allclose(scores_of(scorer), expected, rtol=1e-4, atol=1e-5)
    assert not np.asarray(scorer.params.weights).diagonal().any()


@pytest.mark.parametrize(("neighbours", "shrink"), [(1, 0.0), (7, 10.0), (10_000, 100.0)])
def test_itemknn_is_a_dense_cosine(split, table, neighbours, shrink, monkeypatch):
    """Loops over items; of equally similar items the lower code is kept. All at once and block by block."""
    size = split.num_items
    expected = np.zeros((split.num_users, size))
    for item in range(size):
        similar = np.zeros(size)
        for other in range(size):
            bound = np.linalg.norm(table[:, item]) * np.linalg.norm(table[:, other]) + shrink
            if other != item and bound > 0:
                similar[other] = np.float32(table[:, item] @ table[:, other] / bound)
        nearest = sorted(range(size), key=lambda other: (-similar[other], other))[:neighbours]
        expected[:, item] = table[:, nearest] @ similar[nearest]
    scores = scores_of(fit_itemknn(split, neighbours=neighbours, shrink=shrink))
    np.testing.assert_allclose(scores, expected[USERS], rtol=1e-5, atol=1e-6)
    monkeypatch.setattr(itemknn, "_DENSE", 0)  # a catalogue too large for a table of all pairs
    monkeypatch.setattr(itemknn, "_BLOCK", 50)
    scores = scores_of(fit_itemknn(split, neighbours=neighbours, shrink=shrink))
    np.testing.assert_allclose(scores, expected[USERS], rtol=1e-5, atol=1e-6)


REG = 0.02
W0 = 0.3


def objective(table, users, items):
    """The stated objective of iALS, pair by pair."""
    (num_users, num_items) = table.shape
    scores = users @ items.T
    fit = (table * (1 - scores) ** 2).sum() + W0 * (scores**2).sum()
    of_users = ((table.sum(1) + W0 * num_items) * (users**2).sum(1)).sum()
    of_items = ((table.sum(0) + W0 * num_users) * (items**2).sum(1)).sum()
    return fit + REG * (of_users + of_items)


def test_ials_half_steps_are_exact(split, table):
    """The gradient of the objective vanishes for the side just solved, and no other point is lower."""
    by_user, by_item = ials.block_rows(split)
    users, items = mf.init_factors(jax.random.key(0), split.num_users, split.num_items, 5)
    values = [objective(table, *(np.asarray(x, np.float64) for x in (users, items)))]
    for _ in range(4):
        users = ials.solve_factors(items, by_user, table.shape[0], REG, W0)
        values.append(check_half_step(table, users, items, side=0))
        items = ials.solve_factors(users, by_item, table.shape[1], REG, W0)
        values.append(check_half_step(table, users, items, side=1))
    assert (np.diff(values) <= 1e-6 * np.abs(values[:-1])).all()
    assert values[-1] < 0.9 * values[1]


def check_half_step(table, users, items, side):
    p, q = (np.asarray(x, np.float64) for x in (users, items))
    if side:
        table, p, q = table.T, q, p
    scores = p @ q.T
    ridge = REG * (table.sum(1) + W0 * table.shape[1])[:, None] * p
    gradient = 2 * ((-table * (1 - scores) + W0 * scores) @ q + ridge)
    assert np.abs(gradient).max() < 1e-4 * max(1, np.abs(table @ q).max())
    return objective(table.T, q, p) if side else objective(table, p, q)


def test_ials_starts_and_ends_as_stated(split, table):
    """The start's deviation is .1 / sqrt(D); users fit the items that they rank; nobody's item is zero."""
    items = ials.init_items(jax.random.key(3), 3000, 16)
    assert float(items.std()) == pytest.approx(0.025, rel=0.02)
    scorer = fit_ials(split, seed=2, dim=5, epochs=1, regularisation=REG, unobserved=W0)
    by_user, by_item = ials.block_rows(split)
    items = ials.init_items(jax.random.key(2), split.num_items, 5)
    users = ials.solve_factors(items, by_user, table.shape[0], REG, W0)
    items = ials.solve_factors(users, by_item, table.shape[1], REG, W0)
    users = ials.solve_factors(items, by_user, table.shape[0], REG, W0)
    np.testing.assert_array_equal(scorer.params.users, users)
    np.testing.assert_array_equal(scorer.params.items, items)
    assert not np.asarray(items)[table.sum(0) == 0].any()


def test_mf_draws_all_unseen_items_alike(split, table):
    """Uniform over what the user does not have in training; held-out items are not spared."""
    users = np.array([0, 5, 89])
    drawn = np.asarray(
        mf.draw_negatives(
            jax.random.key(0), mf.make_training_pairs(split), jnp.asarray(users), split.num_items, 20_000
        )
    )
    for user, items in zip(users, drawn, strict=True):
        unseen = np.flatnonzero(table[user] == 0)
        counts = np.bincount(items, minlength=split.num_items)
        assert counts[table[user] == 1].sum() == 0
        assert counts[[split.validation[user], split.test[user]]].min() > 0
        expected = 20_000 / len(unseen)
        assert ((counts[unseen] - expected) ** 2 / expected).sum() < 1.5 * len(unseen)  # chi squared


def test_mf_has_no_negative_for_a_user_of_all_items():
    tiny = tiny_split()
    everything = tiny._replace(
        offsets=np.array([0, 6, 6, 7, 8]), items=np.array([0, 1, 2, 3, 4, 5, 0, 1], "i4")
    )
    drawn = mf.draw_negatives(jax.random.key(0), mf.make_training_pairs(everything), jnp.arange(4), 6, 30)
    assert (np.asarray(drawn[0]) == 6).all()
    assert set(np.asarray(drawn[1]).tolist()) == set(range(6))
    assert 0 not in np.asarray(drawn[2])
    assert np.isfinite(scores_of(fit_mf(everything, dim=2, epochs=2), np.arange(4))).all()


def test_mf_takes_the_stated_gradient_step():
    """One batch against central differences of the stated loss, repeated rows adding up."""
    rng = np.random.default_rng(0)
    users = rng.integers(0, 4, 6)
    items = rng.integers(0, 5, (6, 3))
    mask = np.ones((6, 3))
    mask[5] = 0
    mask[2, 1] = 0
    rate = 0.5
    strength = 0.1
    params = mf.MFParams(
        *(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((), (4, 2), (4,), (5, 2), (5,)))
    )

    def loss(flat):
        b, p, bu, q, bi = unflatten(flat)
        total = 0.0
        for n in range(6):
            for m in range(3):
                u = users[n]
                i = items[n, m]
                score = b + bu[u] + bi[i] + p[u] @ q[i]
                label_loss = np.log1p(np.exp(-score if m == 0 else score))
                norm = p[u] @ p[u] + q[i] @ q[i] + bu[u] ** 2 + bi[i] ** 2
                total += mask[n, m] * (label_loss + strength / 2 * norm)
        return total

    def unflatten(flat):
        parts = np.split(flat, np.cumsum([1, 8, 4, 10]))
        return parts[0][0], parts[1].reshape(4, 2), parts[2], parts[3].reshape(5, 2), parts[4]

    flat = np.concatenate([np.asarray(x, np.float64).reshape(-1) for x in params])
    steps = 1e-5 * np.eye(len(flat))
    slope = np.array([(loss(flat + step) - loss(flat - step)) / 2e-5 for step in steps])
    slope[0] /= items.size  # the intercept follows the mean
    gradient = mf._gradient(params, jnp.asarray(users), jnp.asarray(items), jnp.asarray(mask), strength)
    moved = mf._apply_gradient(params, gradient, jnp.asarray(users), jnp.asarray(items), rate)
    after = np.concatenate([np.asarray(x).reshape(-1) for x in moved])
    np.testing.assert_allclose(after, flat - rate * slope, rtol=1e-4, atol=1e-5)


def test_random_is_uniform_and_of_its_seed(split):
    """A user's scores are the same in every block; another seed has others."""
    scorer = fit_random(split, seed=4)
    one = scores_of(scorer, [13])
    many = scores_of(scorer, np.arange(90))
    np.testing.assert_array_equal(one[0], many[13])
    assert len(np.unique(many)) > 0.99 * many.size
    assert many.mean() == pytest.approx(0.5, abs=0.01)
    assert not np.array_equal(many, scores_of(fit_random(split, seed=5), np.arange(90)))


FITS = {
    "random": fit_random,
    "popularity": fit_popularity,
    "itemknn": fit_itemknn,
    "ease": fit_ease,
    "ials": lambda split: fit_ials(split, dim=4, epochs=2),
    "mf": lambda split: fit_mf(split, dim=4, epochs=2),
}


@pytest.mark.parametrize("name", FITS)
def test_fits_see_training_events_only(name, split):
    """Other held-out items and candidates change nothing: the leak detector."""
    blind = split._replace(
        test=np.roll(split.test, 1),
        validation=np.full_like(split.validation, -1),
        candidates_test=split.candidates_validation,
    )
    np.testing.assert_array_equal(*(scores_of(FITS[name](one), np.arange(90)) for one in (split, blind)))


@pytest.mark.parametrize("name", FITS)
def test_a_user_without_history_has_finite_scores(name, split):
    """Cold users and cold items are no error and give no NaN."""
    keep = split.offsets[1]
    cold = split._replace(offsets=np.maximum(split.offsets - keep, 0), items=split.items[keep:])
    assert np.isfinite(scores_of(FITS[name](cold), np.arange(90))).all()


BAD: dict[str, tuple[Callable[..., Scorer], dict[str, Any], str]] = {
    "ease": (fit_ease, {"regularisation": 0.0}, "regularisation must be a finite number above 0, not 0.0"),
    "ease nan": (fit_ease, {"regularisation": float("nan")}, "not nan"),
    "itemknn": (fit_itemknn, {"neighbours": 0}, "neighbours must be at least 1, not 0"),
    "itemknn shrink": (fit_itemknn, {"shrink": -1.0}, "shrink must be a finite number, at least 0, not -1"),
    "ials": (fit_ials, {"dim": 0}, "dim must be at least 1, not 0"),
    "ials reg": (fit_ials, {"regularisation": 0.0}, "regularisation must be a finite number above 0"),
    "ials w0": (fit_ials, {"unobserved": -0.1}, "unobserved must be a finite number, at least 0"),
    "mf": (fit_mf, {"epochs": 0}, "epochs must be at least 1, not 0"),
    "mf rate": (fit_mf, {"learning_rate": float("inf")}, "learning_rate must be a finite number"),
    "mf diverges": (fit_mf, {"learning_rate": 1e30, "dim": 2}, "diverged in epoch .; lower learning_rate"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_settings(case):
    fit, settings, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        fit(tiny_split(), **settings)


@pytest.mark.parametrize(("size", "block"), [(1, 4), (7, 3), (12, 4), (50, 7), (40, 100)])
def test_an_inverse_by_products_is_the_inverse(size, block):
    """In its own memory, whatever blocks its size makes; numpy's LU is the oracle."""
    factor = np.random.default_rng(size).normal(size=(size, size))
    matrix = factor @ factor.T + np.eye(size)
    expected = np.linalg.inv(matrix)
    found = ease.invert_spd(matrix, block)
    assert found is matrix
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(found, found.T)


def test_what_is_not_positive_definite_is_not_inverted():
    with pytest.raises(ValueError, match="raise the regularisation"):
        ease.invert_spd(np.array([[1.0, 2.0], [2.0, 1.0]]), 1)
