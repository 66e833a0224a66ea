"""Settings that follow from the size of the data: sane at every size, and the same on both sides."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.data.defaults import (
    Size,
    als_ridge_of_one,
    als_weights,
    default_eval_every,
    ease_penalty,
    fcf_weights,
    mf_settings,
    pair_penalty,
)
from fedjax_rec.evaluation.central.registry import method_settings
from fedjax_rec.runs.build import settings_by_events, with_eval_every, with_sized_defaults
from fedjax_rec.runs.settings import Settings, complete, without_size

ML_100K = Size(943, 1682, 98_114)
GOWALLA = Size(29_858, 40_979, 659_365)


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(60, 90, seed=2))


def test_a_penalty_does_not_grow_with_the_catalogue():
    """The ridge of a mean user is the same whatever the weight of the unobserved; sparse data have less."""
    for size, ridge in ((ML_100K, 8.0), (GOWALLA, 5.15), (Size(10, 10**6, 13_000), 8.0)):
        ridges = [
            weights.regularisation * als_ridge_of_one(size, weights.unobserved)
            for weights in (als_weights(size), als_weights(size, unobserved=1e-3))
        ]
        assert ridges == pytest.approx([ridge, ridge], rel=1e-3)


def test_sparse_data_weigh_the_unobserved_less():
    weights = [als_weights(size).unobserved for size in (ML_100K, GOWALLA, Size(10**6, 10**6, 10**7))]
    assert weights == sorted(weights, reverse=True)
    assert weights[2] == pytest.approx(30 * 10**7 / 10**12)  # so that all pairs weigh 30 times what events do


@pytest.mark.parametrize("size", [Size(0, 0, 0), Size(1, 1, 1), Size(3, 5, 15)])
def test_tiny_data_have_defaults(size):
    weights = [*als_weights(size), *fcf_weights(size)] if size.num_events else [ease_penalty(size) + 1]
    assert np.isfinite(weights).all()
    assert min(weights) > 0


def test_what_is_given_is_kept():
    assert als_weights(GOWALLA, 0.5, 0.25) == (0.5, 0.25)
    assert als_weights(GOWALLA, regularisation=0.5).unobserved == als_weights(GOWALLA).unobserved
    assert fcf_weights(ML_100K, alpha=2.0).regularisation == 6.0
    assert fcf_weights(GOWALLA, alpha=2.0).regularisation == pytest.approx(2.203, rel=1e-3)
    assert fcf_weights(GOWALLA, 2.0, 1.0) == (2.0, 1.0)


def test_both_sides_have_the_same_defaults(split):
    """What the server of `fedals` sends is what central iALS solves with, and what a run writes down."""
    population = fr.population_of(split)
    sent = fr.fedals(dim=2).init(jax.random.key(0), population).server.shared["weights"]
    central = method_settings("ials", split)
    written = with_sized_defaults(complete(Settings(algorithm="fedals")), split.size)
    for name, value in sent.items():
        assert float(value) == pytest.approx(central[name])
    assert written.regularisation == central["regularisation"]
    assert written.own_options() == {"unobserved": central["unobserved"]}
    sent = fr.fcf(dim=2, alpha=2.0).init(jax.random.key(0), population).server.shared["weights"]
    assert {name: float(value) for name, value in sent.items()} == {"alpha": 2.0, "regularisation": 6.0}


def test_settings_that_follow_from_others(split):
    """A weight that is given changes the penalty on both sides alike; a penalty that is given stays."""
    given = Settings(algorithm="fedals", options="unobserved=0.01,memory=0.5")
    found = with_sized_defaults(complete(given), split.size)
    central = method_settings("ials", split, {"unobserved": 0.01})
    assert found.regularisation == central["regularisation"]
    assert found.own_options() == {"unobserved": 0.01, "memory": 0.5}
    kept = with_sized_defaults(complete(Settings(algorithm="fedals", regularisation=0.7)), split.size)
    assert kept.regularisation == 0.7
    assert with_sized_defaults(kept, GOWALLA) == kept


def test_fedmf_steps_as_long_as_a_round_lets_it():
    """Where few clients of a cohort meet an item the rate is higher, whatever else; what is given stays."""
    rates = [mf_settings(size).learning_rate for size in (Size(6040, 3706, 988129), ML_100K, GOWALLA)]
    assert rates == [0.0068, 0.013, 0.05]
    assert mf_settings(ML_100K, num_negatives=16).learning_rate < 0.013
    assert mf_settings(ML_100K, 8, 2, 0.3) == (8, 2, 0.3)
    assert mf_settings(Size(0, 0, 0)) == (64, 1, 0.05)


def test_settings_of_fedmf_by_size():
    """In a run alone, with its usual rules and no noise: the factory's own numbers are of no data."""
    found = with_sized_defaults(complete(Settings(dim=8)), GOWALLA)
    assert (found.dim, found.num_negatives, found.learning_rate) == (8, 4, 0.05)
    assert with_sized_defaults(found, ML_100K) == found
    private = complete(Settings(clip=0.5, noise_multiplier=1.0))
    assert with_sized_defaults(private, GOWALLA) == private
    assert settings_by_events(private, Size(1000, 1200, 92387)) == ()
    for others in (Settings(loss="mse"), Settings(aggregator="mean"), Settings(server_optimizer="fedadam")):
        assert with_sized_defaults(complete(others), GOWALLA).learning_rate == 0.012
    assert without_size(complete(Settings())).learning_rate == 0.012


def test_the_penalty_of_fedncf_goes_with_histories():
    """Short ones are learnt by heart; in a run, whatever its aggregator."""
    assert [pair_penalty(size) for size in (ML_100K, GOWALLA, Size(0, 4, 0))] == [0.0047, 0.048, 0.05]
    base = Settings(algorithm="fedncf")
    for given in (base, replace(base, aggregator="mean"), replace(base, server_optimizer="fedadam")):
        assert with_sized_defaults(complete(given), GOWALLA).regularisation == 0.048
    kept = complete(Settings(algorithm="fedncf", regularisation=0.0))
    assert with_sized_defaults(kept, GOWALLA).regularisation == 0.0


def test_large_data_are_validated_less_often():
    """By what a validation costs, and still four times in the least number of rounds."""
    music, larger = Size(1835, 41488, 70427), Size(20_000, 25_000, 10**6)
    assert [default_eval_every(size, 20, 400) for size in (ML_100K, music, larger, GOWALLA)] == [
        20,
        20,
        40,
        100,
    ]
    assert [default_eval_every(GOWALLA, 20, rounds) for rounds in (10_000, 200, 60, 1)] == [100, 50, 20, 20]
    assert [default_eval_every(GOWALLA, own, 100) for own in (1, 5, 10, 90)] == [1, 25, 25, 90]
    base = complete(Settings())
    assert [with_eval_every(base, size).eval_every for size in (ML_100K, GOWALLA)] == [20, 100]
    assert without_size(base).eval_every == 20


@pytest.mark.parametrize(
    ("given", "often"),
    [
        ({"eval_every": 7}, 7),
        ({"rounds": 400}, 20),
        ({"patience": 40}, 20),
        ({"target": 0.2}, 20),
        ({"clip": 0.5, "noise_multiplier": 1.0}, 20),
        ({"checkpoint_every": 60}, 20),
        ({"checkpoint_every": 200}, 100),
    ],
)
def test_what_is_given_says_how_often(given, often):
    """Rounds, targets and checkpoints of somebody's choice do not change with the size of the data."""
    assert with_eval_every(complete(Settings(**given)), GOWALLA).eval_every == often
