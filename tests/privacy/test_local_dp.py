"""Local privacy: the closed form, what carries noise, what is not covered."""

import math
from typing import Any

import dp_accounting as dp
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.privacy.local_dp import TOUCHED_ROWS, local_dp
from fedjax_rec.server.soundness import bound_of
from fedjax_rec.testing import run, tiny_population
from fedjax_rec.types import Server, Update

SETTING: dict[str, Any] = {"rounds": 20, "clip": 0.5, "delta": 1e-5}


@pytest.mark.parametrize("epsilon", [0.5, 3.0, 12.0])
def test_noise_is_that_of_the_closed_form(epsilon):
    """T Gaussian messages of sensitivity 2 C are one with deviation / sqrt(T): Balle & Wang's equation holds."""
    private = local_dp(**SETTING, target_epsilon=epsilon)
    deviation = bound_of(private.transform).deviation
    share = 2 * 0.5 * math.sqrt(20) / deviation  # sensitivity over the noise of one equal release

    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    delta = cdf(share / 2 - epsilon / share) - math.exp(epsilon) * cdf(-share / 2 - epsilon / share)
    assert delta == pytest.approx(1e-5, rel=1e-3)
    assert 0.999 * epsilon < private.epsilon(20) <= epsilon
    assert private.epsilon(5) == pytest.approx(dp.get_epsilon_gaussian(2 / share, 1e-5), rel=1e-4)


def test_noise_beats_the_textbook():
    """sqrt(2 log(1.25 / delta)) / epsilon asks for more noise at epsilon 1, and for too little at 30."""
    for epsilon, enough in ((1.0, True), (30.0, False)):
        textbook = 2 * math.sqrt(2 * math.log(1.25 / 1e-5)) / epsilon
        found = local_dp(rounds=1, clip=0.5, delta=1e-5, target_epsilon=epsilon).noise_multiplier
        assert (found < textbook) == enough


def test_replacing_a_client_counts_twice():
    """Any two updates differ by 2 C: the same z is worth half of what the server's noise is."""
    private = local_dp(**SETTING, noise_multiplier=30.0)
    assert private.epsilon(1) == pytest.approx(dp.get_epsilon_gaussian(15.0, 1e-5), rel=1e-4)
    assert private.rounds_within(private.epsilon(7)) == 7
    assert private.unit == "user"


@pytest.mark.parametrize("items", [None, 30])
def test_what_carries_noise(items):
    """All numbers of the rows that are sent, by z C; untouched rows only where all are sent."""
    private = local_dp(**SETTING, noise_multiplier=4.0, items=items)
    assert (private.not_covered[0] == TOUCHED_ROWS) == (items is None)
    rows = jnp.zeros((20, 50)).at[0].set(9.0)
    ids = jnp.where(jnp.arange(20) < 15, jnp.arange(20), 30)
    sent = Update({"w": jnp.zeros(5)}, ids, {"vector": rows}, jnp.float32(1))
    server = Server({"w": jnp.zeros(5)}, {"vector": jnp.zeros((30, 50))})
    out = private.transform.update(jax.random.key(0), sent, server)
    own = np.asarray(out.ids) < 30
    assert own.sum() == (15 if items is None else 30)
    values = np.asarray(out.rows["vector"])[own]
    assert values[1:].std() == pytest.approx(2.0, rel=0.1)
    assert values[0].mean() == pytest.approx(0.5 / math.sqrt(50), abs=5 * 2 / math.sqrt(50))  # clipped
    assert (np.asarray(out.shared["w"]) != 0).all()
    assert not np.asarray(out.rows["vector"])[~own].any()
    bound = bound_of(private.transform)
    assert (bound.norm, bound.noised_norm, bound.deviation) == (None, 0.5, 2.0)


def test_a_round_runs():
    """As a factory's settings, with an aggregator of any kind: the server's part is post-processing."""
    population = tiny_population()
    private = local_dp(**SETTING, noise_multiplier=1.0, items=population.num_items)
    algorithm = fr.fedmf(dim=2, cohort=9, aggregator=fr.server.median(), **private.federation)
    start, after = (run(algorithm, population, rounds=n).server.tables["vector"] for n in (0, 1))
    assert (np.asarray(start) != np.asarray(after)).all()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"noise_multiplier": 1.0, "target_epsilon": 1.0}, "exactly one"),
        ({"noise_multiplier": 0.0}, "hides nothing"),
        ({"target_epsilon": -1.0}, "epsilon above 0"),
        ({"target_epsilon": 1.0, "rounds": 0}, "rounds of at least 1"),
        ({"target_epsilon": 1.0, "delta": 0.0}, "delta between 0 and 1"),
        ({"noise_multiplier": 1.0, "clip": 0.0}, "clipping norm"),
    ],
)
def test_refusals(settings, words):
    """Each names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        local_dp(**SETTING | settings)
