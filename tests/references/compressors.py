"""Every compressor, updates to send, and what is asked of both, for the tests of compression."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec import transforms
from fedjax_rec.testing import _compiled
from fedjax_rec.transforms import compression
from fedjax_rec.transforms import sparsification as sparsifiers
from fedjax_rec.types import Server, Update

SIZE = 2**14  # numbers of the update whose error is measured
WIDTH = 32
KEY = jax.random.key(5)
EVERY = {
    "quantise": transforms.quantise(4),
    "qsgd": compression.qsgd(3),
    "terngrad": compression.terngrad(),
    "sign": compression.sign(),
    "drive": compression.drive(),
    "top_k": sparsifiers.top_k(0.25),
    "rand_k": sparsifiers.rand_k(0.25),
    "low_rank": sparsifiers.low_rank(2),
}
every = pytest.mark.parametrize("name", EVERY)


def rows_of(values, width=WIDTH):
    """An update of rows only, and a global model that has them."""
    rows = jnp.asarray(values, jnp.float32).reshape(-1, width)
    return Update({}, jnp.arange(len(rows)), rows, jnp.float32(1)), Server({}, jnp.ones((len(rows), width)))


def decode(compressor, key, one, server):
    """What the server decodes of one client's update, compiled."""
    return _compiled(compressor.update)(key, one, server)


def cost_of(compressor, before):
    """What is declared to be sent."""
    assert compressor.wire is not None
    return compressor.wire(before)


def bits_of(compressor, before):
    return cost_of(compressor, before).bits


def bound_after(compressor, known):
    """What is declared of the norm."""
    assert compressor.bound is not None
    return compressor.bound(known)


def memory_of(transform, server):
    """An empty memory, and a compiled round with it."""
    assert transform.init is not None
    assert transform.update_with_state is not None
    return transform.init(server), _compiled(transform.update_with_state)


def gaussian(size=SIZE):
    return np.random.default_rng(1).normal(size=size).astype(np.float32)


def nmse(compressor, values, draws):
    """Mean over draws of |Q(x) - x|^2 / |x|^2; one draw after another, as memory is short."""
    one, server = rows_of(values)

    @_compiled
    def error(key, one):
        return jnp.square(compressor.update(key, one, server).rows - one.rows).sum()

    found = [float(error(key, one)) for key in jax.random.split(KEY, draws)]
    return np.mean(found) / float(np.sum(np.square(values, dtype=np.float64)))


def mixed_update(seed=0):
    """An update with dense leaves, vectors, biases and two empty slots in it, of a model of 20 items."""
    rng = np.random.default_rng(seed)
    ids = jnp.array([3, 20, 19, 0, 7, 11, 20])
    own = (ids < 20).astype(jnp.float32)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731 - a word for it
    rows = {
        "vector": draw(7, 5) * own[:, None],
        "bias": draw(7) * own,
        "pair": draw(7, 2, 2) * own[:, None, None],
    }
    shared = {"w": draw(3, 2), "b": draw()}
    tables = {"vector": draw(20, 5), "bias": draw(20), "pair": draw(20, 2, 2)}
    return Update(shared, ids, rows, jnp.float32(1)), Server({"w": draw(3, 2), "b": draw()}, tables)


def flatten(sent):
    """All that is sent of dense leaves and rows, float64[n]."""
    leaves = jax.tree.leaves((sent.shared, sent.rows))
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def decoded_draws(compressor, sent, server, draws):
    """What the server decodes in so many draws, float64[draws, n]; low_rank's draw is the model's."""

    def one(key):
        drawn = jax.tree.map(lambda x: x + jax.random.uniform(key, x.shape), server)
        return compressor.update(key, sent, drawn if compressor.name.startswith("low_rank") else server)

    found = _compiled(jax.vmap(one))(jax.random.split(KEY, draws))
    leaves = jax.tree.leaves((found.shared, found.rows))
    return np.concatenate([np.asarray(x, np.float64).reshape(draws, -1) for x in leaves], axis=1)


def largest_z(found, expected):
    """The largest |mean - expected| in standard errors; numbers that never vary must be met."""
    deviation = found.std(0, ddof=1) / math.sqrt(len(found))
    rounding = 1e-5 * np.abs(expected).max()
    return float((np.abs(found.mean(0) - expected) / (deviation + rounding)).max())
