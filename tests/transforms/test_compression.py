"""Compressors: closed forms of their error, their means, and what they do with odd updates."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec import transforms
from fedjax_rec.testing import _compiled, assert_close
from fedjax_rec.transforms import compression
from fedjax_rec.transforms import flattening as layout
from fedjax_rec.transforms import sparsification as sparsifiers
from fedjax_rec.transforms.base import Bound
from fedjax_rec.types import Update
from tests.references.compressors import (
    EVERY,
    KEY,
    WIDTH,
    bound_after,
    decode,
    decoded_draws,
    every,
    flatten,
    gaussian,
    largest_z,
    mixed_update,
    nmse,
    rows_of,
)

UNBIASED = [name for name in EVERY if name not in {"sign", "top_k"}]


def _shares(values):
    size = np.abs(values.astype(np.float64))
    return size.sum(), math.sqrt((size**2).sum()), size.max()


@pytest.mark.parametrize(
    ("compressor", "draws", "expected"),
    [
        (compression.drive(), 5, lambda _: math.pi / 2 - 1),
        (sparsifiers.rand_k(0.01), 40, lambda x: len(x) / round(0.01 * len(x)) - 1),
        (compression.qsgd(1), 60, lambda x: _shares(x)[0] / _shares(x)[1] - 1),
        (compression.terngrad(), 5, lambda x: _shares(x)[2] * _shares(x)[0] / _shares(x)[1] ** 2 - 1),
        (compression.sign(), 1, lambda _: 1 - 2 / math.pi),
        (compression.sign(), 1, lambda x: 1 - _shares(x)[0] ** 2 / len(x) / _shares(x)[1] ** 2),
        (sparsifiers.low_rank(8), 1, lambda _: WIDTH / 8 - 1),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_error_has_its_closed_form(compressor, draws, expected):
    """On 2^14 Gaussian numbers the error is the formula's, within 5 %."""
    values = gaussian()
    np.testing.assert_allclose(nmse(compressor, values, draws), expected(values), rtol=0.05)


@pytest.mark.parametrize(("bits", "golden"), [(1, 13.07), (4, 0.0418)])
def test_quantise_has_its_conditional_variance(bits, golden):
    """Between two steps a number errs as a coin does: unit^2 p (1 - p); the golden value is of another draw."""
    values = gaussian().astype(np.float64)
    unit = (values.max() - values.min()) / (2**bits - 1)
    fraction = (values - values.min()) / unit % 1
    expected = (unit**2 * fraction * (1 - fraction)).sum() / (values**2).sum()
    np.testing.assert_allclose(nmse(transforms.quantise(bits), values, 5), expected, rtol=0.05)
    np.testing.assert_allclose(expected, golden, rtol=0.35)  # by how far the extremes of a draw lie


def test_top_k_sends_the_largest():
    """The error of top-k is what is left out, of all leaves together, and at most 1 - k / d."""
    sent, server = mixed_update()
    own = np.sort(flatten(sent)[flatten(sent) != 0] ** 2)
    count = math.floor(0.25 * len(own) + 0.5)
    found = flatten(decode(sparsifiers.top_k(0.25), KEY, sent, server))
    assert np.count_nonzero(found) == count
    np.testing.assert_allclose(((found - flatten(sent)) ** 2).sum(), own[:-count].sum(), rtol=1e-5)
    assert own[:-count].sum() / own.sum() <= 1 - count / len(own)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_is_the_update(name):
    """Over many draws the mean is the update, number by number, within five standard errors."""
    if name == "drive":  # whose mean is the update's only with many numbers of like size
        sent, server = rows_of(gaussian(2048))
        draws = 1000
    else:
        (sent, server) = mixed_update()
        draws = 4000
    assert largest_z(decoded_draws(EVERY[name], sent, server, draws), flatten(sent)) < 5


@pytest.mark.parametrize("name", ["sign", "top_k"])
def test_a_bias_is_seen(name):
    """The test of the mean fails with what is biased."""
    sent, server = mixed_update()
    assert largest_z(decoded_draws(EVERY[name], sent, server, 500), flatten(sent)) > 5


def test_a_wrong_scale_is_seen(monkeypatch):
    """DRIVE with the scale of the least error, |Rx|_1 / m, is biased, and the test of the mean says so."""
    right = compression._send_signs

    def shrunk(values, own, signs):
        found = right(values, own, signs)
        return found * (2 / math.pi)  # its size with many numbers, relative to the unbiased scale

    monkeypatch.setattr(compression, "_send_signs", shrunk)
    sent, server = rows_of(gaussian(2048))
    assert largest_z(decoded_draws(compression.drive(), sent, server, 200), flatten(sent)) > 5


def _drive_by_hand(x, signs):
    """DRIVE in plain numpy: Sylvester's Hadamard matrix, float64."""
    size = 2 ** math.ceil(math.log2(len(x)))
    hadamard: np.ndarray = np.ones((1, 1))
    while len(hadamard) < size:
        hadamard = np.kron([[1, 1], [1, -1]], hadamard)
    flipped = hadamard * np.append(signs, np.ones(size - len(x)))[None, :]
    rotated = flipped @ np.append(x, np.zeros(size - len(x))) / math.sqrt(size)  # zeros stay exact
    scale = (x**2).sum() / np.abs(rotated).sum()
    return (flipped.T @ np.where(rotated >= 0, scale, -scale) / math.sqrt(size))[: len(x)]


@pytest.mark.parametrize("equal", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 37, 64])
def test_drive_by_hand(count, equal):
    """Numbers that lie apart are rotated together, as a matrix product would; zeros count as positive."""
    rng = np.random.default_rng(count)
    own = np.zeros(100, bool)
    own[rng.choice(100, count, replace=False)] = True
    x = own * (np.ones(100) if equal else rng.normal(size=100))
    signs = rng.choice([-1.0, 1.0], 100)
    found = _compiled(compression._send_signs)(x.astype(np.float32), own, signs.astype(np.float32))
    np.testing.assert_allclose(found[own], _drive_by_hand(x[own], signs[own]), atol=1e-5)
    np.testing.assert_allclose((found * x).sum(), (x**2).sum(), rtol=1e-5)  # in every draw


def test_drive_raises_the_norm():
    """By sqrt(pi / 2), about 1.25, so that no bound outlives it."""
    values = gaussian()
    one, server = rows_of(values)
    found = np.linalg.norm(decode(compression.drive(), KEY, one, server).rows) / np.linalg.norm(values)
    np.testing.assert_allclose(found, math.sqrt(math.pi / 2), rtol=0.01)
    assert bound_after(compression.drive(), Bound(1.0)) == Bound(after=("drive()",), coded_by="drive()")


@every
def test_norms_that_are_said_to_stay_do(name):
    """A compressor that keeps a bound never raises the norm; all others do on some update, and say so."""
    known = bound_after(EVERY[name], Bound(2.0, after=("clip(2.0)",)))
    assert known.after == ("clip(2.0)", EVERY[name].name)
    raised = []
    for seed in range(20):
        sent, server = mixed_update(seed)
        found = decode(EVERY[name], jax.random.key(seed), sent, server)
        raised.append(np.linalg.norm(flatten(found)) > np.linalg.norm(flatten(sent)) * (1 + 1e-6))
    assert (known.norm == 2.0) == (not any(raised))


@every
def test_nothing_stays_nothing(name):
    """A client whose update is all zeros sends zeros, never NaN; so does one without any row, or any number."""
    sent, server = mixed_update()
    zeros = jax.tree.map(jnp.zeros_like, (sent.shared, sent.rows))
    nothing = sent._replace(shared=zeros[0], rows=zeros[1])
    for one in (nothing, nothing._replace(ids=jnp.full(7, 20))):
        found = decode(EVERY[name], KEY, one, server)
        assert not flatten(found).any()
    bare = Update({}, jnp.full(3, 20), {}, jnp.float32(1))
    assert decode(EVERY[name], KEY, bare, server).rows == {}


@every
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_size_does_not_matter(name, size):
    """Squares of tiny and huge numbers would vanish or overflow; twice the update gives twice what is sent."""
    sent, server = mixed_update()
    scaled = jax.tree.map(lambda x: x * size, (sent.shared, sent.rows))
    found = flatten(decode(EVERY[name], KEY, sent._replace(shared=scaled[0], rows=scaled[1]), server))
    expected = flatten(decode(EVERY[name], KEY, sent, server))
    np.testing.assert_allclose(found / size, expected, atol=1e-4)


@every
def test_empty_slots(name):
    """Empty slots stay empty, and more of them at the end change nothing for the others."""
    sent, server = mixed_update()
    found = decode(EVERY[name], KEY, sent, server)
    assert (np.asarray(found.ids)[[1, 6]] == 20).all()
    assert not any(np.asarray(x)[[1, 6]].any() for x in jax.tree.leaves(found.rows))
    assert set(np.asarray(found.ids)) <= set(np.asarray(sent.ids))
    more = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((30, *x.shape[1:]))]), sent.rows)
    longer = decode(
        EVERY[name], KEY, sent._replace(ids=jnp.append(sent.ids, jnp.full(30, 20)), rows=more), server
    )
    assert (longer.ids[:7] == found.ids).all()
    assert_close(longer.shared, found.shared, "dense leaves")
    assert_close(jax.tree.map(lambda x: x[:7], longer.rows), found.rows, "rows")


def test_rows_of_which_nothing_is_sent_are_not_heard_of():
    """The slot of a row that top-k leaves out is empty; the others keep their ids."""
    one, server = rows_of([[1.0, 0.1], [0.2, 0.3], [0.0, -2.0]], 2)
    assert decode(sparsifiers.top_k(0.33), KEY, one, server).ids.tolist() == [0, 3, 2]


def test_top_k_does_not_hide_what_is_no_number():
    """A client whose update has a NaN must be seen to have it."""
    one, server = rows_of([[1.0, 5.0], [np.nan, 0.3]], 2)
    assert np.isnan(decode(sparsifiers.top_k(0.25), KEY, one, server).rows[1, 0])


def test_ties_go_to_the_first():
    """Of equal sizes the first are sent, so that what is sent is never more than declared."""
    one, server = rows_of([2.0, -2.0, 2.0], 1)
    assert decode(sparsifiers.top_k(0.67), KEY, one, server).rows[:, 0].tolist() == [2, -2, 0]


def test_low_rank_is_one_linear_map_for_all():
    """Whatever their keys, clients of a round project alike, and sums of projections are projections of sums."""
    compressor = EVERY["low_rank"]
    (one, server) = mixed_update(1)
    (other, _) = mixed_update(2)
    both = one._replace(rows=jax.tree.map(jnp.add, one.rows, other.rows))
    found = [
        decode(compressor, jax.random.key(n), sent, server).rows for n, sent in enumerate((one, other, both))
    ]
    assert_close(jax.tree.map(jnp.add, *found[:2]), found[2], "the sum")
    decoded = np.asarray(layout.as_matrix(found[0], 7))
    assert np.linalg.matrix_rank(decoded, tol=1e-4) == 2
    next_round = decode(compressor, KEY, one, jax.tree.map(lambda x: x + 0.5, server)).rows
    assert np.abs(next_round["vector"] - found[0]["vector"]).max() > 0.1  # another round, another B
    assert_close(decode(compressor, KEY, one, server).shared, one.shared, "dense leaves", 0)


@every
def test_beside_others(name):
    """What a client sends does not depend on who stands beside it, as the engine maps it over clients."""
    updates = [mixed_update(seed)[0] for seed in (1, 2)]
    server = mixed_update()[1]
    keys = jax.random.split(KEY, 2)
    together = _compiled(jax.vmap(EVERY[name].update, in_axes=(0, 0, None)))
    found = together(keys, jax.tree.map(lambda *x: jnp.stack(x), *updates), server)
    for number, one in enumerate(updates):
        alone = decode(EVERY[name], keys[number], one, server)
        assert_close(jax.tree.map(lambda x, n=number: x[n], found), alone, name)
