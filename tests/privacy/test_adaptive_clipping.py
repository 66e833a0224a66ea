"""Adaptive clipping: it goes to the median norm from either side, and its noise is what the accountant is told."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.privacy.adaptive_clipping import _normalise, _scale_of_bit, adaptive_dp, clipping_norm
from fedjax_rec.server.soundness import bound_of
from fedjax_rec.testing import KEY, tiny_population
from fedjax_rec.types import Server, Update

SETTING: dict[str, Any] = {"cohort": 24, "rounds": 80, "delta": 1e-3}


def test_it_converges_to_the_median():
    """From far below and far above; about half of the clients are within it at the end."""
    population = tiny_population()
    plain = fr.fedmf(dim=3, batch_size=10, learning_rate=0.05)
    private = adaptive_dp(plain, 24, **SETTING, noise_multiplier=1e-3, count_noise=0.1, rate=0.3)
    key = jax.random.key(KEY)
    start = private.algorithm.init(key, population)
    block = jax.jit(partial(run_block, private.algorithm, 45))
    for first in (0.005, 5.0):
        shared = {"model": {}, "clip": jnp.log(jnp.float32(first))}
        state, _ = block(key, start._replace(server=start.server._replace(shared=shared)), population, 45)
        inner = state._replace(server=Server({}, state.server.tables))
        sent = [fr.client_update(plain, key, inner, population, i) for i in range(0, 24, 2)]
        low, high = np.quantile([float(one.squared_norm()) ** 0.5 for one in sent], [0.25, 0.75])
        assert low <= clipping_norm(state) <= high
        assert not low <= first <= high


def test_noise_is_split_as_the_theorem_says():
    """z^-2 = z_delta^-2 + (2 s_b)^-2, with the same noise on both sums, and a bound that holds."""
    scale = _scale_of_bit(1.2, 3.0)
    norm = math.hypot(1, scale / 2)
    of_updates = 1.2 * norm  # deviation on the sum of updates over C
    assert of_updates**-2 + 6.0**-2 == pytest.approx(1.2**-2)
    assert of_updates / scale == pytest.approx(3.0)
    element = _normalise(scale, norm)
    assert bound_of(element).norm == norm
    for size, limit in ((9.0, 0.5), (0.2, 0.5), (0.5, 0.5), (0.0, 0.5)):
        rows = jnp.array([[size, 0.0]])
        sent = Update({"model": {}, "clip": jnp.float32(0)}, jnp.array([0]), rows, jnp.float32(1))
        server = Server({"model": {}, "clip": jnp.log(jnp.float32(limit))}, jnp.zeros((1, 2)))
        out = element.update(jax.random.key(0), sent, server)
        assert float(out.squared_norm()) ** 0.5 <= norm * (1 + 1e-6)
        assert float(out.rows[0, 0]) == pytest.approx(min(size / limit, 1.0))
        assert abs(float(out.shared["clip"])) == pytest.approx(scale / 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "exactly one"),
        ({"noise_multiplier": 3.0}, "twice count_noise"),
        ({"noise_multiplier": 0.0}, "above 0"),
        ({"noise_multiplier": 1.0, "quantile": 1.0}, "quantile=1.0"),
        ({"noise_multiplier": 1.0, "cohort": 25}, "24 clients"),
    ],
)
def test_refusals(settings, words):
    """Each names the value."""
    with pytest.raises(ValueError, match=words):
        adaptive_dp(fr.fedmf(dim=2), 24, **SETTING | settings)
