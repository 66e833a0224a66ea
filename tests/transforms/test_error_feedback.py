"""Error feedback: nothing is lost between rounds, in one transform and in the engine."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.transforms import compression, error_feedback
from fedjax_rec.transforms import sparsification as sparsifiers
from fedjax_rec.transforms.base import Bound
from tests.references.compressors import (
    EVERY,
    KEY,
    bound_after,
    decode,
    flatten,
    gaussian,
    memory_of,
    mixed_update,
    rows_of,
)


def _in_tables(server, one):
    """One client's update over the whole model, float64; repeated ids add up."""
    total = jax.tree.map(lambda x: np.zeros(x.shape), server.tables)
    own = np.asarray(one.ids) < 20
    for table, rows in zip(jax.tree.leaves(total), jax.tree.leaves(one.rows), strict=True):
        np.add.at(table, np.asarray(one.ids)[own], np.asarray(rows, np.float64)[own])
    return jax.tree.map(np.float64, one.shared), total


@pytest.mark.parametrize(("name", "repeated"), [*((name, False) for name in EVERY), ("top_k", True)])
def test_feedback_loses_nothing(name, repeated):
    """What was sent and what is remembered is what was to be sent, over rounds that touch different rows."""
    transform = error_feedback(EVERY[name])
    server = mixed_update()[1]
    memory, step = memory_of(transform, server)
    wanted = given = jax.tree.map(lambda x: np.zeros(x.shape), tuple(server))
    for number in range(6):
        before = memory
        (one, _) = mixed_update(number)
        ids = jnp.where(one.ids < 20, (one.ids + 3 * number) % 20, 20)
        one = one._replace(ids=ids.at[3].set(ids[2]) if repeated else ids)
        coded, memory = step(jax.random.key(number), one, memory, server)
        wanted = jax.tree.map(np.add, wanted, _in_tables(server, one))
        given = jax.tree.map(np.add, given, _in_tables(server, coded))
        untouched = np.setdiff1d(np.arange(20), one.ids)
        for old, new in zip(jax.tree.leaves(before.tables), jax.tree.leaves(memory.tables), strict=True):
            assert (old[untouched] == new[untouched]).all()
    assert any(np.any(x) for x in jax.tree.leaves(memory))
    assert_close(jax.tree.map(lambda a, b: a + np.float64(b), given, tuple(memory)), wanted, "the sum")


def test_feedback_mends_a_bias():
    """The mean of what top-k sends of the same update again and again tends to the update only with feedback."""
    (sent, server) = mixed_update()
    compressor = EVERY["top_k"]
    transform = error_feedback(compressor)
    rounds = 60
    (memory, step) = memory_of(transform, server)
    total = 0.0
    for _ in range(rounds):
        coded, memory = step(KEY, sent, memory, server)
        total += flatten(coded) / rounds
    plain = flatten(decode(compressor, KEY, sent, server))
    assert np.linalg.norm(total - flatten(sent)) < 0.1 * np.linalg.norm(plain - flatten(sent))


def test_feedback_grows_where_the_error_exceeds_the_update():
    """The memory of rand-k of a tenth explodes, as the module says; that of top-k of a tenth does not."""
    sizes = {}
    for kind in ("rand_k", "top_k"):
        transform = error_feedback(getattr(sparsifiers, kind)(0.1))
        (one, server) = rows_of(gaussian(640))
        memory, step = memory_of(transform, server)
        for number in range(20):
            memory = step(jax.random.key(number), one, memory, server)[1]
        sizes[kind] = float(jnp.linalg.norm(memory.tables) / jnp.linalg.norm(one.rows))
    assert sizes["top_k"] < 20
    assert sizes["rand_k"] > 1e4


def test_feedback_forgets_nothing_silently():
    """Its bound is gone, its cost is the compressor's, and without a memory it refuses."""
    transform = error_feedback(EVERY["sign"])
    (sent, server) = mixed_update()
    memory, step = memory_of(transform, server)
    assert bound_after(transform, Bound(1.0)) == Bound(after=("error_feedback(sign())",))
    with pytest.raises(ValueError, match="call `update_with_state`"):
        transform.update(KEY, sent, server)
    with pytest.raises(ValueError, match="has a memory already"):
        error_feedback(transform)
    with pytest.raises(ValueError, match="of the model's shapes"):
        step(KEY, sent._replace(rows={"factor": jnp.zeros((7, 2))}), memory, server)


def test_in_the_engine():
    """What reaches the server and what the clients remember is what they would have sent, whatever the lanes."""
    population = tiny_population()
    transform = error_feedback(compression.drive())

    def after(transform, lanes):
        settings: dict[str, Any] = {
            "dim": 3,
            "batch_size": 100,
            "aggregator": "sum",
            "sampler": fixed(np.arange(10)),
        }
        return run(fr.fedmf(**settings, transform=transform, lanes=lanes), population, rounds=1)

    plain = after(None, 4)
    one = after(transform, 1)
    more = after(transform, 4)
    assert_close(more, one, "4 lanes")
    assert (one.server.tables["vector"] != plain.server.tables["vector"]).any()
    total = jax.tree.map(lambda server, residual: server + residual.sum(0), one.server, one.transform_state)
    assert_close(total, plain.server, "sent and remembered")
