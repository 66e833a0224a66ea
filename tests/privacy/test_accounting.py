"""Privacy accounting: golden cases, the samplers' events, and what must only go up or down."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dp_accounting as dp
import jax
import numpy as np
import pytest
from scipy.stats import binom

from fedjax_rec.privacy.accounting import RoundEvent, epsilon_of, round_event
from fedjax_rec.privacy.calibration import capacity_for, noise_for, rounds_for
from fedjax_rec.samplers.data_independent import everyone, poisson, uniform

GOLDEN = Path(__file__).resolve().parents[3] / "shared" / "golden" / "dp_accountant.json"
GAUSSIAN = 3**0.5
RDP_ORDERS = [1 + x / 10 for x in range(1, 100)] + list(range(12, 64))


@pytest.fixture(scope="module")
def golden() -> list[dict[str, Any]]:
    """All golden cases."""
    if not GOLDEN.is_file():
        pytest.skip(f"golden cases are absent: {GOLDEN}")
    return json.loads(GOLDEN.read_text())


def _poisson(probability: float, multiplier: float, kind: str) -> RoundEvent:
    event = dp.PoissonSampledDpEvent(probability, dp.GaussianDpEvent(multiplier))
    return RoundEvent(event, "add-or-remove-one", kind)


def _cases(golden: list[dict[str, Any]], name: str) -> Iterator[dict[str, Any]]:
    return (case for case in golden if case["case"] == name)


def test_poisson_cases(golden):
    """Epsilon of subsampled Gaussians, by both accountants."""
    seen = 0
    for case in _cases(golden, "poisson_gaussian"):
        kinds = {"pld": "epsilon", "rdp": "epsilon"} if "epsilon" in case else {}
        kinds = {k: v for k, v in kinds.items() if k == case["accountant"]} or {
            "pld": "epsilon_pld",
            "rdp": "epsilon_rdp",
        }
        for kind, key in kinds.items():
            spent = _poisson(case["sampling_probability"], case["noise_multiplier"], kind)
            assert epsilon_of(spent, case["rounds"], case["delta"]) == pytest.approx(case[key], rel=1e-3)
            seen += 1
    assert seen >= 8


def test_gaussian_and_truncated_cases(golden):
    """The mechanism itself, and Poisson sampling cut off at a capacity."""
    (case,) = _cases(golden, "gaussian")
    spent = round_event(everyone(), case["noise_multiplier"], 100)
    assert epsilon_of(spent, case["rounds"], case["delta"]) == pytest.approx(case["epsilon"], rel=1e-3)
    (case,) = _cases(golden, "truncated_poisson")
    four, three = (round_event(poisson(0.5, 2), 1.0, n).event for n in (4, 3))
    accountant = dp.pld.PLDAccountant()
    accountant.compose(dp.SelfComposedDpEvent(four, 3)).compose(dp.SelfComposedDpEvent(three, 2))
    assert accountant.get_epsilon(case["delta"]) == pytest.approx(case["epsilon"], rel=1e-3)


def test_fixed_size_cohorts_halve_the_noise(golden):
    """Replacing one client moves a sum by 2 C: forgetting it would claim 3.4 where 18.7 is spent."""
    (case,) = _cases(golden, "fixed_size_without_replacement")
    spent = round_event(uniform(case["cohort"]), case["noise_multiplier"], case["population"])
    found = epsilon_of(spent, case["rounds"], case["delta"])
    assert found == pytest.approx(case["epsilon_if_halved"], rel=1e-3)
    assert found > 5 * case["epsilon_if_forgotten"]


@pytest.mark.parametrize(("capacity", "wanted"), [(120, 10.1), (140, 5.79), (160, 2.55), (180, 1.8530)])
def test_truncation_costs(capacity, wanted):
    """A capacity that is often too small spends more: surplus clients depend on who else was drawn."""
    spent = round_event(poisson(0.02, capacity), 1.0, 6040)
    half_digit = 0.5 * 10 ** -len(str(wanted).split(".")[1])
    assert epsilon_of(spent, 200, 1e-5) == pytest.approx(wanted, abs=half_digit)


def test_calibration_cases(golden):
    """The noise for an epsilon, and the rounds for one."""
    (case,) = _cases(golden, "calibrate_rounds")
    spent = _poisson(case["sampling_probability"], case["noise_multiplier"], "pld")
    assert rounds_for(spent, epsilon=case["epsilon"], delta=case["delta"]) == case["rounds"]
    multiplier = noise_for(everyone(), 100, 3, epsilon=1.0, delta=0.126936)
    assert multiplier == pytest.approx(GAUSSIAN, rel=2e-3)
    assert epsilon_of(round_event(everyone(), multiplier, 100), 3, 0.126936) <= 1.0


def test_table_of_mcmahan(golden):
    """42 published figures, by RDP with integer orders and the conversion of their time."""
    figures = 0
    for case in _cases(golden, "poisson_gaussian_table"):
        delta = case["population"] ** -1.1
        event = dp.PoissonSampledDpEvent(
            case["cohort"] / case["population"], dp.GaussianDpEvent(case["noise_multiplier"])
        )
        accountant = dp.rdp.RdpAccountant(list(range(2, 34)))
        once = np.asarray(accountant.compose(event)._rdp)
        for rounds, wanted in zip(case["rounds"], case["epsilon"], strict=True):
            found = np.min(rounds * once + np.log(1 / delta) / (np.arange(2, 34) - 1))
            assert round(float(found), 2) == pytest.approx(wanted, abs=0.0051)
            figures += 1
    assert figures == 42


def test_tree_aggregation_cases(golden):
    """DP-FTRL's published bounds hold with the orders that the golden file names."""
    for case in _cases(golden, "tree_aggregation"):
        event = dp.SingleEpochTreeAggregationDpEvent(case["noise_multiplier"], case["rounds"])
        accountant = dp.rdp.RdpAccountant(RDP_ORDERS, dp.NeighboringRelation.REPLACE_SPECIAL)
        found = accountant.compose(event).get_epsilon(case["delta"])
        assert found == pytest.approx(case["epsilon"], rel=1e-3)
        assert found < float(case["published"].lstrip("<"))


@pytest.mark.parametrize(
    "sampler", [everyone(), uniform(50), poisson(0.05, 90)], ids=lambda s: type(s).__name__
)
def test_more_rounds_less_noise_and_smaller_delta_spend_more(sampler):
    """For every sampler that has an event."""
    usual = round_event(sampler, 2.0, 1000)
    hidden = round_event(sampler, 3.0, 1000)
    epsilon = epsilon_of(usual, 20, 1e-5)
    assert epsilon_of(hidden, 20, 1e-5) < epsilon < epsilon_of(usual, 40, 1e-5)
    assert epsilon < epsilon_of(usual, 20, 1e-7)
    assert epsilon_of(usual, 0, 1e-5) == 0


def test_capacity_is_the_smallest_that_almost_never_overflows():
    """T P[Bin(N, q) > B] <= delta / 100, and not with one place less."""
    room = capacity_for(6040, 0.02, 200, 1e-5)
    tail = [200 * binom.sf(b, 6040, 0.02) for b in (room - 1, room)]
    assert tail[0] > 1e-7 >= tail[1]
    assert capacity_for(10, 1.0, 5, 1e-5) == 10


def test_poisson_cohorts_are_what_the_accountant_thinks():
    """Sizes are binomial, all clients are equally likely, and a surplus is dropped without regard to who it is."""
    keys = jax.random.split(jax.random.key(0), 4000)
    ids, alive = jax.vmap(lambda key: poisson(0.3, 20)(key, 20))(keys)
    sizes = np.asarray(alive.sum(1))
    assert sizes.mean() == pytest.approx(6, abs=4 * np.sqrt(20 * 0.3 * 0.7 / 4000))
    assert sizes.var() == pytest.approx(4.2, rel=0.1)
    for capacity in (20, 4):
        ids, alive = jax.vmap(lambda key, b=capacity: poisson(0.3, b)(key, 20))(keys)
        drawn = np.bincount(np.asarray(ids)[np.asarray(alive)], minlength=20)
        assert (np.abs(drawn - drawn.mean()) < 4.5 * np.sqrt(drawn.mean())).all()
        assert np.asarray(alive).sum(1).max() == min(capacity, sizes.max())
        assert all(len(set(row)) == len(row) for row in np.asarray(ids)[:50].tolist())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: round_event(lambda key, n: (key, n), 1.0, 9), "draw cohorts with samplers.poisson"),
        (lambda: epsilon_of(round_event(everyone(), 1.0, 9), 3, 0.0), "between 0 and 1"),
        (lambda: noise_for(everyone(), 9, 0, epsilon=1.0, delta=1e-5), "rounds of at least 1"),
        (lambda: capacity_for(9, 0.0, 1, 1e-5), "must be between 0 and 1"),
        (lambda: poisson(0.0, 3), "above 0 and at most 1"),
        (lambda: poisson(0.1, 0), "at least 1, not 0"),
    ],
)
def test_bad_numbers(call, message):
    with pytest.raises(ValueError, match=message):
        call()
