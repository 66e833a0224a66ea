"""What compressors declare to send, in bits, and what they refuse."""

import math

import jax
import jax.numpy as jnp
import pytest

from fedjax_rec import transforms
from fedjax_rec.testing import _compiled
from fedjax_rec.transforms import compression, error_feedback
from fedjax_rec.transforms import sparsification as sparsifiers
from fedjax_rec.transforms.base import Bound, Wire
from tests.references.compressors import (
    EVERY,
    KEY,
    bits_of,
    bound_after,
    cost_of,
    gaussian,
    mixed_update,
    rows_of,
)

# ML-1M: 3706 items in 12 bits, rows of 32 numbers, 695 of them
CLIENT = Wire(rows=695, row_values=32, dense_values=0, id_bits=12)


@pytest.mark.parametrize(
    ("compressor", "bits"),
    [
        (transforms.quantise(8), 695 * (12 + 8 * 32) + 64),
        (compression.qsgd(1), 695 * (12 + math.log2(3) * 32) + 32),
        (compression.qsgd(7), 695 * (12 + math.log2(15) * 32) + 32),
        (compression.terngrad(), 695 * (12 + math.log2(3) * 32) + 32),
        (compression.sign(), 695 * (12 + 32) + 32),
        (compression.drive(), 695 * 12 + 32768 + 64),  # 22240 numbers, filled to 2^15
        (sparsifiers.top_k(0.01), 222 * (12 + 5 + 32)),
        (sparsifiers.rand_k(0.01), 222 * (12 + 5 + 32)),
        (sparsifiers.low_rank(4), 695 * (12 + 4 * 32)),
        (error_feedback(sparsifiers.top_k(0.01)), 222 * (12 + 5 + 32)),
        (transforms.chain(sparsifiers.top_k(0.01), compression.qsgd(7)), 222 * (17 + math.log2(15)) + 32),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_bits_by_hand(compressor, bits):
    """The declared cost of a client of ML-1M, computed by hand."""
    assert bits_of(compressor, CLIENT) == pytest.approx(bits, rel=1e-12)


def test_bits_with_dense_leaves_and_without_ids():
    """Dense numbers are coded too and have addresses; where all rows travel in order there are no ids."""
    both = Wire(rows=4, row_values=8, dense_values=10, id_bits=5)
    assert bits_of(compression.sign(), both) == 4 * (5 + 8) + 10 + 32
    assert bits_of(compression.drive(), both) == 4 * 5 + 64 + 64
    assert bits_of(sparsifiers.top_k(0.5), both) == 21 * (9 + 32)  # 32 x 8 + 10 addresses
    cost = Wire(rows=100, row_values=5, dense_values=12)
    assert bits_of(sparsifiers.top_k(0.5), cost) == 256 * (9 + 32)  # 512 addresses
    assert bits_of(sparsifiers.low_rank(2), cost) == 32 * (200 + 12)
    nothing = Wire(rows=0, row_values=0, dense_values=0)
    assert bits_of(sparsifiers.top_k(0.5), nothing) == 0
    assert bits_of(compression.drive(), nothing) == 64


@pytest.mark.parametrize("power", [1, 64, 512])
def test_drive_costs_the_formula_at_powers_of_two(power):
    """R (id bits + d) + 64 where nothing is filled."""
    assert bits_of(compression.drive(), CLIENT._replace(rows=power)) == power * (12 + 32) + 64


@pytest.mark.parametrize("kind", [sparsifiers.top_k, sparsifiers.rand_k])
@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_as_many_numbers_are_sent_as_declared(kind, share):
    """For every number of rows."""
    compressor = kind(share)
    (one, server) = rows_of(gaussian(200) + 10, 5)

    def count(rows):
        own = jnp.arange(40) < rows
        some = one._replace(ids=jnp.where(own, one.ids, 40), rows=jnp.where(own[:, None], one.rows, 0))
        return (compressor.update(KEY, some, server).rows != 0).sum()

    found = _compiled(jax.vmap(count))(jnp.arange(41))
    assert found.tolist() == [cost_of(compressor, Wire(rows, 5, 0)).rows for rows in range(41)]


@pytest.mark.parametrize("name", ["quantise", "sign", "drive", "low_rank"])
def test_orders_that_would_cost_more_than_declared(name):
    """What fills zeros does not follow a sparsifier, and nothing follows what is coded already."""
    with pytest.raises(ValueError, match="would fill what error_feedback"):
        bound_after(EVERY[name], bound_after(error_feedback(EVERY["top_k"]), Bound()))
    for last in (compression.drive(), sparsifiers.low_rank(2), error_feedback(sparsifiers.low_rank(2))):
        with pytest.raises(ValueError, match="coded already"):
            bound_after(EVERY[name], bound_after(last, Bound()))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: compression.qsgd(0), "levels must be 1 to 65535, not 0"),
        (lambda: sparsifiers.top_k(0.0), "top_k sends must be above 0 and at most 1, not 0.0"),
        (lambda: sparsifiers.rand_k(1.5), "rand_k sends must be above 0 and at most 1, not 1.5"),
        (lambda: sparsifiers.low_rank(0), "rank must be at least 1, not 0"),
        (lambda: bits_of(sparsifiers.low_rank(33), CLIENT), "rank=33 exceeds the 32 numbers of a row"),
        (
            lambda: sparsifiers.low_rank(11).update(KEY, *mixed_update()),
            "rank=11 exceeds the 10 numbers of a row",
        ),
    ],
)
def test_bad_values_are_refused(build, words):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        build()
