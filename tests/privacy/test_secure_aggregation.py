"""Secure sums: masked == unmasked == integers of 64 bits, whoever drops out; thresholds, refusals, and costs."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from experiments.communication.secure_cost import bits_for, crossover, secure_cost, secure_or_sparse
from fedjax_rec.privacy.masks import mask_vectors, reduce_modulo, to_signed, unmask_sum
from fedjax_rec.privacy.secure_aggregation import clip_to_grid, secure_aggregation, secure_sum
from fedjax_rec.server.aggregators import gaussian
from fedjax_rec.server.soundness import bound_of, check_sound
from fedjax_rec.testing import KEY, assert_close, fixed, run, tiny_population
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import clip
from fedjax_rec.types import Server, Stack, Update

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "learning_rate": 0.3}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _step(population, rounds=1, ids=None, **settings):
    ids = np.arange(population.num_clients) if ids is None else ids
    return run(fr.fedmf(**SMALL, sampler=fixed(ids), **settings), population, rounds=rounds)


def _secure(norm=0.05, capacity=30, **settings):
    return secure_aggregation("mean", norm=norm, capacity=capacity, **settings).federation


@pytest.mark.parametrize("modulus", [16, 21, 32])
def test_masked_sums_are_those_of_an_oracle(modulus):
    """Extreme values, anyone dropping out: survivors' sum modulo 2^b, as uint64 arithmetic has it."""
    rng = np.random.default_rng(modulus)
    vectors = rng.integers(0, 2**modulus, (9, 40), dtype=np.uint64)
    vectors[0] = 2**modulus - 1
    vectors[1] = 0
    vectors[2] = 2 ** (modulus - 1)
    send = jax.jit(mask_vectors, static_argnums=2)
    opened = jax.jit(unmask_sum, static_argnums=3)
    sent = send(jax.random.key(1), jnp.asarray(vectors, jnp.uint32), modulus)
    kept = [rng.random(9) < share for share in (0.0, 0.3, 0.7)]
    for arrived in [*kept, np.ones(9, bool), np.arange(9) == 4]:
        expected = vectors[arrived].sum(0) % 2**modulus
        found = opened(jax.random.key(1), sent, jnp.asarray(arrived), modulus)
        np.testing.assert_array_equal(np.asarray(found, np.uint64), expected)
    assert (np.asarray(sent) != vectors).mean() > 0.99


def test_masks_hide():
    """What is sent for zeros and for anything else looks alike: uniform, and without correlation."""
    zeros = np.asarray(mask_vectors(jax.random.key(3), jnp.zeros((4, 4000), jnp.uint32), 16), np.float64)
    same = jnp.full((4, 4000), 77, jnp.uint32)
    other = np.asarray(mask_vectors(jax.random.key(4), same, 16), np.float64)
    for sent in (zeros, other):
        assert abs(sent.mean() / 2**16 - 0.5) < 5 / np.sqrt(12 * sent.size)
        assert np.abs(np.corrcoef(sent) - np.eye(4)).max() < 5 / np.sqrt(4000)


def test_centred_numbers_come_back():
    """Signed numbers survive the way through 2^b."""
    for modulus in (16, 32):
        whole = jnp.array([-(2 ** (modulus - 1)), -1, 0, 2 ** (modulus - 1) - 1], jnp.int32)
        np.testing.assert_array_equal(to_signed(reduce_modulo(whole, modulus), modulus), whole)


def test_a_stack_is_summed_as_integers():
    """Encoded, weighted, summed modulo 2^b and decoded: numpy's integers of 64 bits, bit for bit."""
    rng = np.random.default_rng(0)
    sent = np.array([True, False, True, True, False, True])
    rule = secure_sum(capacity=6, limit=4.0, modulus=22, masked=True)
    point = rule.fixed
    assert point is not None
    shared = rng.normal(size=(6, 7)).astype(np.float32)
    tables = rng.normal(size=(6, 5, 2)).astype(np.float32)
    shared[0] = 1e9
    tables[2] = -1e9
    tables[3] = 0.0
    stack = Stack(Server(shared, {"vector": tables}), jnp.asarray(sent), jnp.zeros((6, 5), bool), jnp.ones(6))
    found = rule.finish(jax.tree.map(jnp.asarray, stack))
    for got, values in ((found.shared, shared), (found.tables["vector"], tables)):
        whole = np.rint(np.clip(values[sent], -4.0, 4.0) * 2.0**point.bits).astype(np.int64)
        total = whole.astype(np.uint64).sum(0) % 2**22
        signed = np.where(total < 2**21, total.astype(np.int64), total.astype(np.int64) - 2**22)
        np.testing.assert_array_equal(np.asarray(got) * 2.0**point.bits, signed)
        assert np.abs(signed).max() > 2**18


@pytest.mark.as_compiled
def test_order_devices_and_masks_leave_no_trace(population):
    """Rounds in which clients fail after the masks were made: the same state, bit for bit, masked or not."""
    ids = np.arange(population.num_clients)
    faults = fr.Faults(drop_out=0.4)
    places: list[dict[str, Any]] = [{"lanes": 2}, {"lanes": 8, "mesh": fr.client_mesh(4), "ids": ids[::-1]}]
    found = [
        _step(population, 3, faults=faults, **place, **_secure(modulus=24, masked=masked))
        for masked, place in ((False, places[0]), (False, places[1]), (True, places[1]))
    ]
    for number, state in enumerate(found[1:]):
        assert_close(state, found[0], f"way {number + 1}", 0)


def test_too_few_survivors_are_refused(population):
    """Below the threshold nothing moves, and the round is counted; at the threshold it is taken."""
    alive = np.arange(6) < 4  # client 3 has no data: three arrive

    def after(threshold):
        algorithm = fr.fedmf(**SMALL, sampler=fixed(np.arange(6), alive), **_secure(threshold=threshold))
        state = algorithm.init(jax.random.key(KEY), population)
        return state, *jax.jit(algorithm.round)(jax.random.key(KEY), state, population)

    start, state, info = after(4)
    assert_close(state._replace(round=jnp.int32(0)), start, "refused", 0)
    assert (int(info.skipped), int(info.clients), int(info.missing)) == (1, 0, 3)
    _, state, info = after(3)
    assert int(info.skipped) == 0
    assert float(info.update_norm) > 0


def test_rounding_is_unbiased_and_small():
    """The mean of many draws is the value (z-test), each is less than a unit off, and multiples of it stay."""
    values = jnp.array([[0.1, -0.26, 0.5], [0.0, 1e-9, -0.124]])
    sent = Update({}, jnp.arange(2), values, jnp.float32(1))
    rounding = jax.vmap(
        lambda k: clip_to_grid(9.0, 2).update(k, sent, Server({}, jnp.zeros((2, 3)))).rows,
    )
    found = np.asarray(rounding(jax.random.split(jax.random.key(0), 4000)))
    assert np.abs(found - values[None]).max() < 0.25
    assert (found * 4 == np.rint(found * 4)).all()
    assert (found[:, 0, 2] == 0.5).all()
    assert (found[:, 1, 0] == 0).all()
    share = np.asarray(values) * 4 - np.floor(np.asarray(values) * 4)
    error = np.sqrt(share * (1 - share) / 4000) / 4
    np.testing.assert_array_less(np.abs(found.mean(0) - values), 5 * error + 1e-6)


def test_norms_after_rounding_are_bounded():
    """C + unit sqrt(m) holds for the worst case, and only a known m gives an accountant its bound."""
    rows = jnp.full((1, 400), 0.01)
    one = Update({}, jnp.array([0]), rows, jnp.float32(1))
    element = clip_to_grid(0.1, 4, numbers=400)
    sent = element.update(jax.random.key(0), one, Server({}, jnp.zeros((1, 400)))).rows
    known = bound_of(element).norm
    assert known is not None
    assert known == pytest.approx(0.1 + 400**0.5 / 16)
    assert 0.1 < float(jnp.linalg.norm(sent)) < known
    assert bound_of(clip_to_grid(0.1, 4)).norm is None
    noisy = gaussian(secure_sum(capacity=30), noise_multiplier=1.0, norm=known, expected=9)
    check_sound(noisy, element)
    with pytest.raises(ValueError, match="without a bound"):
        check_sound(noisy, clip_to_grid(0.1, 4))


def test_nothing_is_cut_off_and_odd_updates_are_summed(population):
    """Clipped to the limit, no number exceeds it, on the grid or not; huge steps and absent clients included."""
    secure = _secure(norm=0.07, modulus=20)
    algorithm = fr.fedmf(**SMALL | {"learning_rate": 1e4}, sampler=fixed([0, 1, 3]), **secure)
    state = algorithm.init(jax.random.key(KEY), population)
    _, info = jax.jit(algorithm.round)(jax.random.key(KEY), state, population)
    assert int(info.saturated) == 0
    rule = secure_sum("mean", capacity=3, limit=1.0, masked=True)
    sent = jnp.array([True, False, True])
    values = Server(jnp.array([[1.0], [jnp.nan], [-0.25]]), {})
    found = rule.finish(Stack(values, sent, jnp.zeros((3, 0), bool), jnp.ones(3)))
    assert float(found.shared[0]) == 0.375


REFUSED = {
    "a sum that could wrap": (
        lambda: secure_sum(capacity=2000, modulus=16), "lower the capacity or the limit, or raise the modulus"
    ),
    "a modulus beyond the words": (lambda: secure_sum(capacity=9, modulus=33), "modulus=33"),
    "no threshold": (lambda: secure_sum(capacity=9, threshold=0), "threshold=0"),
    "a threshold above all": (lambda: secure_sum(capacity=9, threshold=10), "threshold=10"),
    "a grid too fine for floats": (lambda: secure_sum(capacity=9, limit=0.01), "lower the modulus"),
    "touchers": (lambda: secure_sum("touchers", capacity=9), "neither who touched"),
    "a median": (lambda: secure_sum(fr.server.median(), capacity=9), "that sum"),
    "no norm": (lambda: clip_to_grid(0.0, 3), "clipping norm"),
    "negative bits": (lambda: clip_to_grid(1.0, -1), "bits=-1"),
    "a threshold under noise": (
        lambda: fr.fedmf(
            aggregator=gaussian(
                secure_sum(capacity=9, threshold=2), noise_multiplier=1.0, norm=1.0, expected=9
            ),
            transform=clip(1.0),
        ),
        "tells by failing",
    ),
    "too many neighbours": (lambda: secure_cost(9, 10, neighbours=9), "n - 1 neighbours"),
    "no clients": (lambda: bits_for(0, 16), "at least 1"),
    "more rows than items": (lambda: secure_or_sparse([9], items=8, width=1, clients=2), "the 8 items"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case):
    """Each is early, names the value and says what to do."""
    build, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        build()


def test_more_clients_than_the_sum_was_made_for(population):
    """A cohort beyond the capacity is refused in the first round, masked or not."""
    for masked in (False, True):
        with pytest.raises(ValueError, match="raise their capacity"):
            _step(population, **_secure(capacity=9, modulus=24, masked=masked))


def test_a_clip_before_the_grid_is_sound():
    """The grid clips itself; a chain that clips before says the same."""
    assert chain(clip(0.5), clip_to_grid(0.1, 9, numbers=4)).name == "clip(0.5) > clip_to_grid(0.1, 9)"


@pytest.mark.parametrize(("clients", "numbers", "times"), [(2**10, 2**20, 1.73), (2**14, 2**24, 1.98)])
def test_cost_is_that_of_the_paper(clients, numbers, times):
    """The abstract's factors over 16-bit vectors in the clear, and its closed form."""
    modulus = bits_for(clients, 16)
    cost = secure_cost(clients, numbers, modulus)
    both = cost.up + cost.down
    assert round(both / (numbers * 2), 2) == times
    assert both * 8 == 2 * clients * 256 + (5 * clients - 4) * 256 + numbers * modulus


def test_the_trade_crosses_over():
    """Below the crossing rows in the clear are cheaper, above the secure sum; few neighbours move it down."""
    setting: dict[str, Any] = {"items": 3706, "width": 32, "clients": 100, "modulus": 24}
    crossing = crossover(**setting)
    assert crossing is not None
    below, above = secure_or_sparse([crossing - 1, crossing], **setting)
    assert below.sparse < below.secure
    assert above.sparse >= above.secure
    assert (below.times > 1) > (above.times > 1)
    few = crossover(**setting, neighbours=12)
    assert few is not None
    assert few < crossing
    assert crossover(**setting, value_bits=4) is None
