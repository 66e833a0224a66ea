"""Compressors: closed forms of their error, their means, their bits, and what error feedback keeps."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec import compression, feedback, layout, sparsifiers, transforms
from fedjax_rec.testing import _compiled, assert_close, fixed, run, tiny_population
from fedjax_rec.types import Bound, Server, Update, Wire

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
UNBIASED = [name for name in EVERY if name not in {"sign", "top_k"}]


def _rows_of(values, width=WIDTH):
    """An update of rows only, and a global model that has them."""
    rows = jnp.asarray(values, jnp.float32).reshape(-1, width)
    return Update({}, jnp.arange(len(rows)), rows, jnp.float32(1)), Server({}, jnp.ones((len(rows), width)))


def _send(compressor, key, one, server):
    """What the server decodes of one client's update, compiled."""
    return _compiled(compressor.update)(key, one, server)


def _cost(compressor, before):
    """What is declared to be sent."""
    assert compressor.wire is not None
    return compressor.wire(before)


def _bits(compressor, before):
    return _cost(compressor, before).bits


def _bound(compressor, known):
    """What is declared of the norm."""
    assert compressor.bound is not None
    return compressor.bound(known)


def _memory(transform, server):
    """An empty memory, and a compiled round with it."""
    assert transform.init is not None
    assert transform.remember is not None
    return transform.init(server), _compiled(transform.remember)


def _gaussian(size=SIZE):
    return np.random.default_rng(1).normal(size=size).astype(np.float32)


def _nmse(compressor, values, draws):
    """Mean over draws of |Q(x) - x|^2 / |x|^2; one draw after another, as memory is short."""
    one, server = _rows_of(values)

    @_compiled
    def error(key, one):
        return jnp.square(compressor.update(key, one, server).rows - one.rows).sum()

    found = [float(error(key, one)) for key in jax.random.split(KEY, draws)]
    return np.mean(found) / float(np.sum(np.square(values, dtype=np.float64)))


def _mixed(seed=0):
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


def _flat(sent):
    """All that is sent of dense leaves and rows, float64[n]."""
    leaves = jax.tree.leaves((sent.shared, sent.rows))
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])


def _draws(compressor, sent, server, draws):
    """What the server decodes in so many draws, float64[draws, n]; low_rank's draw is the model's."""

    def one(key):
        drawn = jax.tree.map(lambda x: x + jax.random.uniform(key, x.shape), server)
        return compressor.update(key, sent, drawn if compressor.name.startswith("low_rank") else server)

    found = _compiled(jax.vmap(one))(jax.random.split(KEY, draws))
    leaves = jax.tree.leaves((found.shared, found.rows))
    return np.concatenate([np.asarray(x, np.float64).reshape(draws, -1) for x in leaves], axis=1)


def _largest_z(found, expected):
    """The largest |mean - expected| in standard errors; numbers that never vary must be met."""
    deviation = found.std(0, ddof=1) / math.sqrt(len(found))
    rounding = 1e-5 * np.abs(expected).max()
    return float((np.abs(found.mean(0) - expected) / (deviation + rounding)).max())


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
    values = _gaussian()
    np.testing.assert_allclose(_nmse(compressor, values, draws), expected(values), rtol=0.05)


@pytest.mark.parametrize(("bits", "golden"), [(1, 13.07), (4, 0.0418)])
def test_quantise_has_its_conditional_variance(bits, golden):
    """Between two steps a number errs as a coin does: unit^2 p (1 - p); the golden value is of another draw."""
    values = _gaussian().astype(np.float64)
    unit = (values.max() - values.min()) / (2**bits - 1)
    part = (values - values.min()) / unit % 1
    expected = (unit**2 * part * (1 - part)).sum() / (values**2).sum()
    np.testing.assert_allclose(_nmse(transforms.quantise(bits), values, 5), expected, rtol=0.05)
    np.testing.assert_allclose(expected, golden, rtol=0.35)  # by how far the extremes of a draw lie


def test_top_k_sends_the_largest():
    """The error of top-k is what is left out, of all leaves together, and at most 1 - k / d."""
    sent, server = _mixed()
    own = np.sort(_flat(sent)[_flat(sent) != 0] ** 2)
    kept = math.floor(0.25 * len(own) + 0.5)
    found = _flat(_send(sparsifiers.top_k(0.25), KEY, sent, server))
    assert np.count_nonzero(found) == kept
    np.testing.assert_allclose(((found - _flat(sent)) ** 2).sum(), own[:-kept].sum(), rtol=1e-5)
    assert own[:-kept].sum() / own.sum() <= 1 - kept / len(own)


@pytest.mark.parametrize("name", UNBIASED)
def test_the_mean_is_the_update(name):
    """Over many draws the mean is the update, number by number, within five standard errors."""
    if name == "drive":  # whose mean is the update's only with many numbers of like size
        sent, server = _rows_of(_gaussian(2048))
        draws = 1000
    else:
        (sent, server), draws = _mixed(), 4000
    assert _largest_z(_draws(EVERY[name], sent, server, draws), _flat(sent)) < 5


@pytest.mark.parametrize("name", ["sign", "top_k"])
def test_a_bias_is_seen(name):
    """The test of the mean fails with what is biased."""
    sent, server = _mixed()
    assert _largest_z(_draws(EVERY[name], sent, server, 500), _flat(sent)) > 5


def test_a_wrong_scale_is_seen(monkeypatch):
    """DRIVE with the scale of the least error, |Rx|_1 / m, is biased, and the test of the mean says so."""
    right = compression._send_signs

    def shrunk(values, own, signs):
        found = right(values, own, signs)
        return found * (2 / math.pi)  # its size with many numbers, relative to the unbiased scale

    monkeypatch.setattr(compression, "_send_signs", shrunk)
    sent, server = _rows_of(_gaussian(2048))
    assert _largest_z(_draws(compression.drive(), sent, server, 200), _flat(sent)) > 5


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


@pytest.mark.parametrize("alike", [False, True])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 37, 64])
def test_drive_by_hand(count, alike):
    """Numbers that lie apart are rotated together, as a matrix product would; zeros count as positive."""
    rng = np.random.default_rng(count)
    own = np.zeros(100, bool)
    own[rng.choice(100, count, replace=False)] = True
    x, signs = own * (np.ones(100) if alike else rng.normal(size=100)), rng.choice([-1.0, 1.0], 100)
    found = _compiled(compression._send_signs)(x.astype(np.float32), own, signs.astype(np.float32))
    np.testing.assert_allclose(found[own], _drive_by_hand(x[own], signs[own]), atol=1e-5)
    np.testing.assert_allclose((found * x).sum(), (x**2).sum(), rtol=1e-5)  # in every draw


def test_drive_raises_the_norm():
    """By sqrt(pi / 2), about 1.25, so that no bound outlives it."""
    values = _gaussian()
    one, server = _rows_of(values)
    found = np.linalg.norm(_send(compression.drive(), KEY, one, server).rows) / np.linalg.norm(values)
    np.testing.assert_allclose(found, math.sqrt(math.pi / 2), rtol=0.01)
    assert _bound(compression.drive(), Bound(1.0)) == Bound(None, 0.0, ("drive()",))


@every
def test_norms_that_are_said_to_stay_do(name):
    """A compressor that keeps a bound never raises the norm; all others do on some update, and say so."""
    known = _bound(EVERY[name], Bound(2.0, after=("clip(2.0)",)))
    assert known.after == ("clip(2.0)", EVERY[name].name)
    raised = []
    for seed in range(20):
        sent, server = _mixed(seed)
        found = _send(EVERY[name], jax.random.key(seed), sent, server)
        raised.append(np.linalg.norm(_flat(found)) > np.linalg.norm(_flat(sent)) * (1 + 1e-6))
    assert (known.norm == 2.0) == (not any(raised))


@every
def test_nothing_stays_nothing(name):
    """A client whose update is all zeros sends zeros, never NaN; so does one without any row, or any number."""
    sent, server = _mixed()
    zeros = jax.tree.map(jnp.zeros_like, (sent.shared, sent.rows))
    nothing = sent._replace(shared=zeros[0], rows=zeros[1])
    for one in (nothing, nothing._replace(ids=jnp.full(7, 20))):
        found = _send(EVERY[name], KEY, one, server)
        assert not _flat(found).any()
    bare = Update({}, jnp.full(3, 20), {}, jnp.float32(1))
    assert _send(EVERY[name], KEY, bare, server).rows == {}


@every
@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_size_does_not_matter(name, size):
    """Squares of tiny and huge numbers would vanish or overflow; twice the update gives twice what is sent."""
    sent, server = _mixed()
    scaled = jax.tree.map(lambda x: x * size, (sent.shared, sent.rows))
    found = _flat(_send(EVERY[name], KEY, sent._replace(shared=scaled[0], rows=scaled[1]), server))
    expected = _flat(_send(EVERY[name], KEY, sent, server))
    np.testing.assert_allclose(found / size, expected, atol=1e-4)


@every
def test_empty_slots(name):
    """Empty slots stay empty, and more of them at the end change nothing for the others."""
    sent, server = _mixed()
    found = _send(EVERY[name], KEY, sent, server)
    assert (np.asarray(found.ids)[[1, 6]] == 20).all()
    assert not any(np.asarray(x)[[1, 6]].any() for x in jax.tree.leaves(found.rows))
    assert set(np.asarray(found.ids)) <= set(np.asarray(sent.ids))
    more = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((30, *x.shape[1:]))]), sent.rows)
    longer = _send(
        EVERY[name], KEY, sent._replace(ids=jnp.append(sent.ids, jnp.full(30, 20)), rows=more), server
    )
    assert (longer.ids[:7] == found.ids).all()
    assert_close(longer.shared, found.shared, "dense leaves")
    assert_close(jax.tree.map(lambda x: x[:7], longer.rows), found.rows, "rows")


def test_rows_of_which_nothing_is_sent_are_not_heard_of():
    """The slot of a row that top-k leaves out is empty; the others keep their ids."""
    one, server = _rows_of([[1.0, 0.1], [0.2, 0.3], [0.0, -2.0]], 2)
    assert _send(sparsifiers.top_k(0.33), KEY, one, server).ids.tolist() == [0, 3, 2]


def test_top_k_does_not_hide_what_is_no_number():
    """A client whose update has a NaN must be seen to have it."""
    one, server = _rows_of([[1.0, 5.0], [np.nan, 0.3]], 2)
    assert np.isnan(_send(sparsifiers.top_k(0.25), KEY, one, server).rows[1, 0])


def test_ties_go_to_the_first():
    """Of equal sizes the first are sent, so that what is sent is never more than declared."""
    one, server = _rows_of([2.0, -2.0, 2.0], 1)
    assert _send(sparsifiers.top_k(0.67), KEY, one, server).rows[:, 0].tolist() == [2, -2, 0]


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
        (feedback.error_feedback(sparsifiers.top_k(0.01)), 222 * (12 + 5 + 32)),
        (transforms.chain(sparsifiers.top_k(0.01), compression.qsgd(7)), 222 * (17 + math.log2(15)) + 32),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_bits_by_hand(compressor, bits):
    """The declared cost of a client of ML-1M, computed by hand."""
    assert _bits(compressor, CLIENT) == pytest.approx(bits, rel=1e-12)


def test_bits_with_dense_leaves_and_without_ids():
    """Dense numbers are coded too and have addresses; where all rows travel in order there are no ids."""
    both = Wire(rows=4, row_values=8, dense_values=10, id_bits=5)
    assert _bits(compression.sign(), both) == 4 * (5 + 8) + 10 + 32
    assert _bits(compression.drive(), both) == 4 * 5 + 64 + 64
    assert _bits(sparsifiers.top_k(0.5), both) == 21 * (9 + 32)  # 32 x 8 + 10 places
    whole = Wire(rows=100, row_values=5, dense_values=12)
    assert _bits(sparsifiers.top_k(0.5), whole) == 256 * (9 + 32)  # 512 places
    assert _bits(sparsifiers.low_rank(2), whole) == 32 * (200 + 12)
    nothing = Wire(rows=0, row_values=0, dense_values=0)
    assert _bits(sparsifiers.top_k(0.5), nothing) == 0
    assert _bits(compression.drive(), nothing) == 64


@pytest.mark.parametrize("power", [1, 64, 512])
def test_drive_costs_the_formula_at_powers_of_two(power):
    """R (id bits + d) + 64 where nothing is filled."""
    assert _bits(compression.drive(), CLIENT._replace(rows=power)) == power * (12 + 32) + 64


@pytest.mark.parametrize("kind", [sparsifiers.top_k, sparsifiers.rand_k])
@pytest.mark.parametrize("share", [0.01, 0.1, 1.0])
def test_as_many_numbers_are_sent_as_declared(kind, share):
    """For every number of rows."""
    compressor, (one, server) = kind(share), _rows_of(_gaussian(200) + 10, 5)

    def count(rows):
        own = jnp.arange(40) < rows
        some = one._replace(ids=jnp.where(own, one.ids, 40), rows=jnp.where(own[:, None], one.rows, 0))
        return (compressor.update(KEY, some, server).rows != 0).sum()

    found = _compiled(jax.vmap(count))(jnp.arange(41))
    assert found.tolist() == [_cost(compressor, Wire(rows, 5, 0)).rows for rows in range(41)]


@pytest.mark.parametrize("name", ["quantise", "sign", "drive", "low_rank"])
def test_orders_that_would_cost_more_than_declared(name):
    """What fills zeros does not follow a sparsifier, and nothing follows what is coded already."""
    with pytest.raises(ValueError, match="would fill what error_feedback"):
        _bound(EVERY[name], Bound(after=(feedback.error_feedback(EVERY["top_k"]).name,)))
    for last in ("drive()", "low_rank(2)"):
        with pytest.raises(ValueError, match="coded already"):
            _bound(EVERY[name], Bound(after=(last,)))


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
    transform, server = feedback.error_feedback(EVERY[name]), _mixed()[1]
    memory, step = _memory(transform, server)
    wanted = given = jax.tree.map(lambda x: np.zeros(x.shape), tuple(server))
    for number in range(6):
        before, (one, _) = memory, _mixed(number)
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
    (sent, server), compressor = _mixed(), EVERY["top_k"]
    transform, rounds = feedback.error_feedback(compressor), 60
    (memory, step), total = _memory(transform, server), 0.0
    for _ in range(rounds):
        coded, memory = step(KEY, sent, memory, server)
        total += _flat(coded) / rounds
    plain = _flat(_send(compressor, KEY, sent, server))
    assert np.linalg.norm(total - _flat(sent)) < 0.1 * np.linalg.norm(plain - _flat(sent))


def test_feedback_grows_where_the_error_exceeds_the_update():
    """The memory of rand-k of a tenth explodes, as the module says; that of top-k of a tenth does not."""
    sizes = {}
    for kind in ("rand_k", "top_k"):
        transform, (one, server) = (
            feedback.error_feedback(getattr(sparsifiers, kind)(0.1)),
            _rows_of(_gaussian(640)),
        )
        memory, step = _memory(transform, server)
        for number in range(20):
            memory = step(jax.random.key(number), one, memory, server)[1]
        sizes[kind] = float(jnp.linalg.norm(memory.tables) / jnp.linalg.norm(one.rows))
    assert sizes["top_k"] < 20
    assert sizes["rand_k"] > 1e4


def test_feedback_forgets_nothing_silently():
    """Its bound is gone, its cost is the compressor's, and without a memory it refuses."""
    transform, (sent, server) = feedback.error_feedback(EVERY["sign"]), _mixed()
    memory, step = _memory(transform, server)
    assert _bound(transform, Bound(1.0)) == Bound(None, 0.0, ("error_feedback(sign())",))
    with pytest.raises(ValueError, match="call `remember`"):
        transform.update(KEY, sent, server)
    with pytest.raises(ValueError, match="has a memory already"):
        feedback.error_feedback(transform)
    with pytest.raises(ValueError, match="of the model's shapes"):
        step(KEY, sent._replace(rows={"factor": jnp.zeros((7, 2))}), memory, server)


def test_low_rank_is_one_linear_map_for_all():
    """Whatever their keys, clients of a round project alike, and sums of projections are projections of sums."""
    compressor, (one, server), (other, _) = EVERY["low_rank"], _mixed(1), _mixed(2)
    both = one._replace(rows=jax.tree.map(jnp.add, one.rows, other.rows))
    found = [
        _send(compressor, jax.random.key(n), sent, server).rows for n, sent in enumerate((one, other, both))
    ]
    assert_close(jax.tree.map(jnp.add, *found[:2]), found[2], "the sum")
    decoded = np.asarray(layout.as_matrix(found[0], 7))
    assert np.linalg.matrix_rank(decoded, tol=1e-4) == 2
    later = _send(compressor, KEY, one, jax.tree.map(lambda x: x + 0.5, server)).rows
    assert np.abs(later["vector"] - found[0]["vector"]).max() > 0.1  # another round, another B
    assert_close(_send(compressor, KEY, one, server).shared, one.shared, "dense leaves", 0)


@every
def test_beside_others(name):
    """What a client sends does not depend on who stands beside it, as the engine maps it over clients."""
    updates, server = [_mixed(seed)[0] for seed in (1, 2)], _mixed()[1]
    keys = jax.random.split(KEY, 2)
    together = _compiled(jax.vmap(EVERY[name].update, in_axes=(0, 0, None)))
    found = together(keys, jax.tree.map(lambda *x: jnp.stack(x), *updates), server)
    for number, one in enumerate(updates):
        alone = _send(EVERY[name], keys[number], one, server)
        assert_close(jax.tree.map(lambda x, n=number: x[n], found), alone, name)


def test_in_the_engine():
    """What reaches the server and what the clients remember is what they would have sent, whatever the lanes."""
    population, transform = tiny_population(), feedback.error_feedback(compression.drive())

    def after(transform, lanes):
        settings: dict[str, Any] = {
            "dim": 3,
            "batch_size": 100,
            "aggregator": "sum",
            "sampler": fixed(np.arange(10)),
        }
        return run(fr.fedmf(**settings, transform=transform, lanes=lanes), population, rounds=1)

    plain, one, more = after(None, 4), after(transform, 1), after(transform, 4)
    assert_close(more, one, "4 lanes")
    assert (one.server.tables["vector"] != plain.server.tables["vector"]).any()
    kept = jax.tree.map(lambda server, memory: server + memory.sum(0), one.server, one.memory)
    assert_close(kept, plain.server, "sent and remembered")


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: compression.qsgd(0), "levels must be 1 to 65535, not 0"),
        (lambda: sparsifiers.top_k(0.0), "top_k sends must be above 0 and at most 1, not 0.0"),
        (lambda: sparsifiers.rand_k(1.5), "rand_k sends must be above 0 and at most 1, not 1.5"),
        (lambda: sparsifiers.low_rank(0), "rank must be at least 1, not 0"),
        (lambda: _bits(sparsifiers.low_rank(33), CLIENT), "rank=33 exceeds the 32 numbers of a row"),
        (lambda: sparsifiers.low_rank(11).update(KEY, *_mixed()), "rank=11 exceeds the 10 numbers of a row"),
    ],
)
def test_bad_values_are_refused(build, words):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        build()
