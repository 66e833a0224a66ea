"""Banded noise: its matrix, its covariance, who may take part, what it spends, and that it stops when it must."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec import transforms
from fedjax_rec.privacy.accounting import epsilon_of, round_event
from fedjax_rec.privacy.banded import noise_coefficients, strategy_coefficients
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.privacy.ledger import open_ledger
from fedjax_rec.samplers.data_independent import bind_round, cyclic_poisson, poisson
from fedjax_rec.server import aggregators
from fedjax_rec.server.noise import bands_of, draw_noise, invert
from fedjax_rec.testing import tiny_population
from fedjax_rec.types import Server

ROUNDS = 24
BANDS = 4


def triangle(column: tuple[float, ...], size: int) -> np.ndarray:
    """The lower triangular Toeplitz matrix of a first column."""
    rows, columns = np.indices((size, size))
    padded = np.zeros(size)
    padded[: len(column)] = column[:size]
    return np.where(rows >= columns, padded[np.abs(rows - columns)], 0.0)


@pytest.fixture(scope="module")
def strategy():
    pytest.importorskip("jax_privacy", reason="banded noise is an extra")
    return strategy_coefficients(ROUNDS, BANDS)


def test_the_noise_is_that_of_the_inverse(strategy):
    """C^-1 is the inverse of C, whose columns have a norm of 1 at most: what the accountant relies on."""
    matrix = triangle(strategy, ROUNDS)
    inverse = triangle(noise_coefficients(ROUNDS, BANDS), ROUNDS)
    np.testing.assert_allclose(matrix @ inverse, np.eye(ROUNDS), atol=1e-12)
    norms = np.linalg.norm(matrix, axis=0)
    assert norms.max() <= 1 + 1e-12
    assert norms[0] == pytest.approx(1)
    assert np.flatnonzero(matrix[:, 0]).max() == BANDS - 1


def test_sums_over_rounds_are_nearer(strategy):
    """At the same noise multiplier the root mean square error of the prefix sums is less than with own noise."""
    sums = np.tril(np.ones((ROUNDS, ROUNDS)))
    inverse = triangle(invert(strategy, ROUNDS), ROUNDS)
    own, mixed = (np.sqrt(np.mean(np.sum((sums @ m) ** 2, axis=1))) for m in (np.eye(ROUNDS), inverse))
    assert mixed < 0.7 * own


def test_the_engine_draws_what_the_matrix_says():
    """The noise of each round is the mix of the rounds' own draws, and after the last one there is none."""
    mixing = invert((0.8, 0.6), 3)
    setting: dict[str, Any] = {"noise_multiplier": 2.0, "norm": 0.5, "expected": 4.0}
    rules = [aggregators.gaussian(**setting, mixing=m) for m in ((), mixing)]
    own, mixed = (partial(draw_noise, rule.noise) for rule in rules if rule.noise is not None)
    key = jax.random.key(0)
    shape = Server({}, {"vector": jnp.zeros((7, 3))})
    draws = [np.asarray(own(key, jnp.int32(t), shape).tables["vector"]) for t in range(3)]
    for turn in range(3):
        wanted = sum(mixing[turn - k] * draws[k] for k in range(turn + 1))
        got = jax.jit(mixed)(key, jnp.int32(turn), shape).tables["vector"]
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
    assert np.isnan(mixed(key, jnp.int32(3), shape).tables["vector"]).all()
    assert np.std(draws) == pytest.approx(0.25, rel=0.3)


def test_nobody_takes_part_twice_in_so_many_rounds():
    """Each round draws from its own group, all groups have their turn, and about the right number comes."""
    sampler = cyclic_poisson(0.7, 9, groups=3)
    counts = []
    seen: dict[int, int] = {}
    for turn in range(60):
        ids, alive = bind_round(sampler, jnp.int32(turn))(jax.random.key(turn), 23)
        drawn = np.asarray(ids)[np.asarray(alive)].tolist()
        assert len(drawn) == len(set(drawn))
        assert all(client < 23 and client % 3 == turn % 3 for client in drawn)
        assert all(turn - seen[client] >= 3 for client in drawn if client in seen)
        seen |= dict.fromkeys(drawn, turn)
        counts.append(len(drawn))
    assert set(seen) == set(range(23))
    assert np.mean(counts) == pytest.approx(0.7 * 23 / 3, abs=0.5)
    plain = poisson(0.5, 9)
    assert bind_round(plain, jnp.int32(5)) is plain


def test_what_it_spends():
    """T rounds are T / b events with the b-fold probability: 8.22 where plain Poisson cohorts have 1.85."""
    people = 6040
    rounds = 200
    bands = 16
    banded = round_event(cyclic_poisson(0.02 * bands, people // bands + 1, bands), 1.0, people)
    plain = round_event(poisson(0.02, people), 1.0, people)
    assert banded.rounds_per_event == bands
    assert epsilon_of(banded, rounds, 1e-5) == pytest.approx(8.22, abs=0.02)
    assert epsilon_of(plain, rounds, 1e-5) == pytest.approx(1.85, abs=0.01)
    same = banded._replace(rounds_per_event=1)
    assert epsilon_of(banded, rounds, 1e-5) == epsilon_of(same, -(-rounds // bands), 1e-5)


@pytest.mark.usefixtures("strategy")
def test_a_run_keeps_its_budget_and_ends():
    """Calibrated, it spends what is asked for; rounds that were not planned are not taken."""
    population = tiny_population()
    private = dp_fedavg(24, cohort=4, rounds=8, clip=0.3, delta=1e-2, target_epsilon=6.0, bands=4)
    assert 5.9 < private.epsilon(8) <= 6.0
    assert private.epsilon(5) == private.epsilon(8) > private.epsilon(4)
    assert open_ledger(private, epsilon=6.0).allowed() == private.rounds_within(600.0) == 8
    assert private.epsilon(9) == float("inf")
    algorithm = fr.fedmf(dim=2, **private.federation)
    with pytest.warns(fr.training.DivergedWarning, match="by round 12"):
        state, history = fr.simulate(algorithm, population, rounds=12, keep="last")
    assert history.rounds.skipped.tolist() == [0] * 8 + [1] * (len(history.rounds.skipped) - 8)
    assert np.isfinite(np.asarray(state.server.tables["vector"])).all()


def test_unsound_or_impossible_settings_are_refused():
    """Mixed noise without the sampler that it needs does not build; errors name the way out."""
    rule = aggregators.gaussian(noise_multiplier=1.0, norm=0.5, expected=4, mixing=invert((0.8, 0.6), 5))
    assert rule.noise is not None
    assert bands_of(rule.noise.mixing) == 2
    for little in ((1.0, -0.5), (1e-9,) * 5):
        with pytest.raises(ValueError, match="is too little; take the mixing of privacy"):
            aggregators.gaussian(noise_multiplier=1.0, norm=0.5, expected=4, mixing=little)
    setting: dict[str, Any] = {"dim": 2, "aggregator": rule, "transform": transforms.clip(0.5)}
    for sampler in (poisson(0.5, 9), cyclic_poisson(0.5, 9, groups=1)):
        with pytest.raises(ValueError, match="draw cohorts with samplers"):
            fr.fedmf(**setting, sampler=sampler)
    fr.fedmf(**setting, sampler=cyclic_poisson(0.5, 9, groups=3))
    with pytest.raises(ValueError, match="bands=0 must be between 1 and the 8 rounds"):
        dp_fedavg(24, cohort=4, rounds=8, clip=0.3, delta=1e-2, noise_multiplier=1.0, bands=0)
    with pytest.raises(ValueError, match="lower the cohort or the bands"):
        dp_fedavg(24, cohort=9, rounds=8, clip=0.3, delta=1e-2, noise_multiplier=1.0, bands=4)
    with pytest.raises(ValueError, match="groups must be at least 1"):
        cyclic_poisson(0.5, 9, groups=0)
