"""Samplers that look at the clients draw as they say; and what does not build with them or with fairness."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks import promotion
from fedjax_rec.attacks.adversary import colluding
from fedjax_rec.privacy.accounting import round_event
from fedjax_rec.privacy.secure_aggregation import secure_sum
from fedjax_rec.samplers import data_independent as samplers
from fedjax_rec.samplers.data_dependent import (
    LossProportional,
    loss_proportional,
    power_of_choice,
    size_capped,
)
from fedjax_rec.samplers.tracking import draw_cohort
from fedjax_rec.server.aggregators import fixed_point, gaussian
from fedjax_rec.server.fairness import agnostic, q_fedavg
from fedjax_rec.testing import (
    fixed,
    run,
    tiny_population,
)
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import add_noise, clip
from fedjax_rec.types import Tracked
from tests.references import imbalance as ref

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _drawn(sampler, sizes, losses, times=20_000):
    """How often each client is in the cohort."""
    keys = jax.random.split(jax.random.key(1), times)
    sizes = jnp.asarray(sizes)
    losses = jnp.asarray(losses, jnp.float32)
    ids, alive = jax.jit(jax.vmap(lambda key: sampler.draw(key, sizes, losses)))(keys)
    ids = np.asarray(ids)
    alive = np.asarray(alive)
    assert all(len(set(row[there])) == there.sum() for row, there in zip(ids[:200], alive[:200], strict=True))
    return np.bincount(ids[alive], minlength=len(sizes)) / times


def _drawn_in_sequence(weights, cohort, times=20_000):
    random = np.random.default_rng(0)
    drawn = [ref.draw_by_turns(random, np.asarray(weights), cohort) for _ in range(times)]
    return np.bincount(np.ravel(drawn), minlength=len(weights)) / times


def test_sizes_count_up_to_the_cap():
    """Successive draws in proportion to min(n, cap); a cap of 1 is uniform; nobody without data."""
    sizes = [0, 1, 2, 5, 50, 5000]
    capped = np.minimum(sizes, 5)
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(size_capped(5, cohort=2), sizes, np.zeros(6))
    np.testing.assert_allclose(found, _drawn_in_sequence(capped, 2), atol=error)
    assert found[0] == 0
    np.testing.assert_allclose(_drawn(size_capped(1, cohort=2), sizes, np.zeros(6))[1:], 0.4, atol=error)


def test_losses_count():
    """In proportion to them; the unknown as the largest of the known; where none is known, all alike."""
    sizes = [3, 3, 3, 3, 0]
    losses = [0.5, 1.0, 2.0, np.inf, np.inf]
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(loss_proportional(cohort=2), sizes, losses)
    np.testing.assert_allclose(found, _drawn_in_sequence([0.5, 1.0, 2.0, 2.0, 0.0], 2), atol=error)
    equal = _drawn(loss_proportional(cohort=2), sizes, np.full(5, np.inf))
    np.testing.assert_allclose(equal, [0.5, 0.5, 0.5, 0.5, 0.0], atol=error)


def test_the_worst_served_candidates_are_kept():
    """The largest losses of d candidates; with as many candidates as places the draw is uniform."""
    sizes = [3, 3, 3, 3, 0]
    losses = [0.5, 1.0, 2.0, np.inf, np.inf]
    error = 5 * np.sqrt(0.5 / 20_000)
    found = _drawn(power_of_choice(3, cohort=2), sizes, losses)  # of any 3 of 4 the 2 largest
    np.testing.assert_allclose(found, [0, 0.5, 0.75, 0.75, 0], atol=error)
    np.testing.assert_allclose(
        _drawn(power_of_choice(2, cohort=2), sizes, losses), [0.5] * 4 + [0], atol=error
    )


def test_too_few_clients_leave_slots_empty():
    for sampler in (size_capped(5, cohort=3), loss_proportional(cohort=3), power_of_choice(3, cohort=3)):
        ids, alive = sampler.draw(jax.random.key(0), jnp.array([0, 4, 0]), jnp.full(3, jnp.inf))
        assert alive.sum() == 1
        assert ids[jnp.argmax(alive)] == 1


def test_a_plain_call_takes_clients_to_be_alike():
    """Distinct clients, all alive, and the population's own error where there are too few."""
    for sampler in (size_capped(5, cohort=3), loss_proportional(cohort=3), power_of_choice(4, cohort=3)):
        ids, alive = sampler(jax.random.key(0), 5)
        assert (len(set(ids.tolist())), bool(alive.all())) == (3, True)
        with pytest.raises(ValueError, match=r"exceeds the population of 2|too few for a cohort"):
            sampler(jax.random.key(0), 2)


# --- Refusals ------------------------------------------------------------------------------------------------


def _federate(**given):
    return fr.fedmf(**SMALL, **given)


def _noisy(**given):
    rule = gaussian(noise_multiplier=1.0, norm=1.0, expected=8)
    return _federate(aggregator=rule, transform=clip(1.0), **given)


FAIR = q_fedavg(1.0, lipschitz=80.0)
REFUSED = {
    "q": (lambda: q_fedavg(-1.0, lipschitz=1.0), "q=-1.0 is out of range"),
    "lipschitz": (lambda: q_fedavg(1.0, lipschitz=0.0), "lipschitz=0.0 is out of range"),
    "rate": (lambda: agnostic(float("nan")), "rate=nan is out of range"),
    "no groups": (lambda: agnostic(groups=[]), "one whole number a client"),
    "other groups": (
        lambda: _federate(aggregator=agnostic(groups=[0, 1])).init(jax.random.key(0), tiny_population()),
        "2 groups do not fit 24 clients",
    ),
    "cap": (lambda: size_capped(0), "cap=0 must be at least 1"),
    "cohort": (lambda: loss_proportional(cohort=0), "cohort=0 must be at least 1"),
    "candidates": (lambda: power_of_choice(3, cohort=5), "3 candidates are too few"),
    "noise on weights by loss": (lambda: gaussian(FAIR, noise_multiplier=1, norm=1, expected=9), "by losses"),
    "noise on learnt weights": (
        lambda: gaussian(agnostic(), noise_multiplier=1, norm=1, expected=9),
        "by losses",
    ),
    "noise and sizes": (lambda: _noisy(sampler=size_capped(5)), "SizeCapped draws clients by their data"),
    "noise and losses": (lambda: _noisy(sampler=power_of_choice(9)), "PowerOfChoice draws clients by"),
    "local noise and losses": (
        lambda: _federate(aggregator=FAIR, transform=chain(clip(1.0), add_noise(1.0))),
        "tell more than noise on their updates hides",
    ),
    "integers": (lambda: fixed_point(FAIR, capacity=9), "sum depends on the order"),
    "secure": (lambda: secure_sum(agnostic(), capacity=9), "sum depends on the order"),
    "attackers": (
        lambda: _federate(aggregator=FAIR, adversary=colluding(promotion.explicit_boosting([7]), [0])),
        "would tell is not known",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_build(case):
    """Each refusal says why."""
    build, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("sampler", [size_capped(5), loss_proportional(), power_of_choice(9)])
def test_the_accountant_refuses_draws_by_data(sampler):
    with pytest.raises(ValueError, match="draws clients by their data"):
        round_event(sampler, 1.0, 100)


def test_nothing_is_told_unless_asked(population):
    """Plain algorithms carry nothing more; a sampler by size asks for no losses."""
    assert run(_federate(cohort=8), population, rounds=1).tracked == Tracked()
    assert not isinstance(samplers.uniform(3), LossProportional)
    assert size_capped(3).needs_losses is False
    sampler = size_capped(3, cohort=8)
    key = jax.random.key(2)
    one, two = (draw_cohort(sampler, key, population, Tracked(), 0)[0].tolist() for _ in range(2))
    assert one == two
    assert fixed([1])(key, 3)[0].tolist() == [1]


@pytest.mark.parametrize("outside", [-1, -2, -25, 24, 2**31 - 1])
def test_ids_that_are_not_there_are_not_drawn(population, outside):
    """A negative one counts from the end nowhere, whatever a sampler says of it."""

    def mine(key: Any, num_clients: int) -> tuple[jax.Array, jax.Array]:
        del key, num_clients
        return jnp.array([3, outside, 5]), jnp.ones(3, bool)

    ids, alive = draw_cohort(mine, jax.random.key(0), population, Tracked(), 0)
    assert alive.tolist() == [True, False, True]
    assert ((ids >= 0) & (ids < population.num_clients)).all()
