"""Attacks on updates: golden vectors, who is changed and where, and what they do to sums and to robust rules."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks import byzantine as attacks
from fedjax_rec.attacks.byzantine import attacked, weighted_totals
from fedjax_rec.server import aggregators
from fedjax_rec.server import stacked as reducers
from fedjax_rec.testing import KEY, assert_close, fixed, tiny_population
from fedjax_rec.types import Server, Stack

NUMPY_STACK: Any = Stack  # of plain numpy arrays
GOLDEN = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
RANDOM = jax.random.key(5)
ATTACKS = {
    "sign flip": attacks.sign_flip(),
    "ipm": attacks.ipm(2.0),
    "alie": attacks.alie(1.5),
    "scaling": attacks.scaling(-3.0),
    "gaussian": attacks.gaussian(2.0),
    "nan": attacks.not_a_number(),
}


def quick(function: Any) -> Any:
    """Compile in a hurry: these programs are small."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def sparse_stack(share: float = 0.4, clients: int = 10, items: int = 30) -> Stack:
    """Honest clients agree up to noise; each has a share of the rows; the last did not take part."""
    rng = np.random.default_rng(0)
    touched = rng.random((clients, items)) < share
    touched[:, :2] = False
    rows = rng.normal(rng.normal(size=(items, 2)), 0.1, (clients, items, 2)) * touched[..., None]
    server = Server({"w": rng.normal(1.0, 0.1, (clients, 4))}, {"vector": rows})
    sent = np.arange(clients) < clients - 1
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32 if x.dtype == float else None),
        NUMPY_STACK(server, sent, touched, np.ones(clients)),
    )


@pytest.mark.parametrize(
    ("attack", "expected"),
    [
        (attacks.sign_flip(), [-4, -5, -6]),
        (attacks.ipm(2.0), [-8, -10, -12]),
        (attacks.alie(1.5), [8.5, 9.5, 10.5]),
        (attacks.scaling(-1.0), [-70, -70, -70]),
    ],
)
def test_golden_vectors(attack, expected):
    """Three honest clients as in byzfl's documentation, and two others, one malicious and one absent."""
    values = np.insert(GOLDEN, [1, 3], [[70.0], [90.0]], axis=0)
    sent = np.array([True, True, True, True, False])
    stack = NUMPY_STACK(Server(values, values[:, None]), sent, np.ones((5, 1), bool), np.ones(5))
    found = quick(attack)(stack, np.array([False, True, False, False, True]), RANDOM).deltas
    for leaf in (found.shared, found.tables[:, 0]):
        np.testing.assert_allclose(leaf[1], expected, rtol=1e-6)
        np.testing.assert_array_equal(np.delete(leaf, 1, axis=0), np.delete(values, 1, axis=0))


@pytest.mark.parametrize("name", ATTACKS)
def test_only_the_malicious_who_take_part_are_changed(name):
    """Honest and absent clients keep everything; the malicious send something else, in rows that they say."""
    stack = sparse_stack()
    malicious = jnp.isin(jnp.arange(10), jnp.array([0, 4, 9]))  # 9 is absent
    found = quick(ATTACKS[name])(stack, malicious, RANDOM)
    others = np.setdiff1d(np.arange(10), [0, 4])
    for new, old in zip(jax.tree.leaves(found), jax.tree.leaves(stack), strict=True):
        np.testing.assert_array_equal(new[others], old[others])
    for client in (0, 4):
        assert not np.allclose(found.deltas.shared["w"][client], stack.deltas.shared["w"][client])
        nonzero = np.asarray(found.deltas.tables["vector"][client] != 0).any(1)
        np.testing.assert_array_equal(nonzero, found.touched[client])
        known = np.asarray(stack.touched)[[1, 2, 3, 5, 6, 7, 8]].any(0)
        own = np.asarray(stack.touched[client])
        np.testing.assert_array_equal(nonzero, known if name in {"sign flip", "ipm", "alie"} else own)
    np.testing.assert_array_equal(found.sent, stack.sent)


def test_alie_and_ipm_on_sparse_rows():
    """Moments are of the honest that are present, 0 for the rows that they lack; one with NaN is not counted."""
    stack = sparse_stack()
    broken = stack.deltas.shared["w"].at[3, 0].set(jnp.nan)
    stack = stack._replace(deltas=stack.deltas._replace(shared={"w": broken}))
    malicious = jnp.arange(10) < 2
    honest = np.asarray(stack.deltas.tables["vector"], np.float64)[[2, 4, 5, 6, 7, 8]]
    for attack, expected in (
        (attacks.alie(-0.7), honest.mean(0) - 0.7 * honest.std(0, ddof=1)),
        (attacks.ipm(0.3), -0.3 * honest.mean(0)),
    ):
        found = quick(attack)(stack, malicious, RANDOM).deltas.tables["vector"]
        np.testing.assert_allclose(found[:2], np.stack([expected] * 2), atol=1e-6)


def test_one_honest_client_has_no_deviation_and_nobody_no_mean():
    """Neither gives NaN."""
    stack = Stack(Server(jnp.asarray(GOLDEN), {}), jnp.ones(3, bool), jnp.zeros((3, 0), bool), jnp.ones(3))
    attack = quick(attacks.alie(1.5))
    np.testing.assert_array_equal(
        attack(stack, jnp.arange(3) > 0, RANDOM).deltas.shared, np.stack([GOLDEN[0]] * 3)
    )
    assert not attack(stack, jnp.arange(3) >= 0, RANDOM).deltas.shared.any()


def test_gaussian_noise_is_new_with_the_key_and_with_the_rows():
    """Moments of normal(0, 2); the same for the same key and rows, and else another."""
    stack = Stack(Server({}, jnp.ones((3, 50, 40))), jnp.ones(3, bool), jnp.ones((3, 50), bool), jnp.ones(3))
    first = attacked(reducers.krum(0), attacks.gaussian(2.0), [0, 1, 2], RANDOM)

    draw = quick(first.finish)

    def noise(stack):
        return np.asarray(draw(stack).tables)

    drawn = noise(stack)
    assert abs(drawn.mean()) < 5 * 2 / np.sqrt(2000)
    assert abs(drawn.std() - 2) < 5 * 2 / np.sqrt(2 * 2000)
    np.testing.assert_array_equal(noise(stack), drawn)
    other = attacked(reducers.krum(0), attacks.gaussian(2.0), [0, 1, 2], jax.random.key(6))
    assert not np.array_equal(other.finish(stack).tables, drawn)
    fewer = stack._replace(touched=stack.touched.at[1, 7].set(False))
    assert np.mean(noise(fewer) == drawn) < 0.1
    swapped = [stack._replace(touched=stack.touched.at[n, 7].set(False)) for n in (0, 2)]
    assert np.mean(noise(swapped[0]) == noise(swapped[1])) < 0.1


ROBUST = {
    "median": reducers.median(),
    "touchers' median": reducers.median(over="touchers"),
    "trimmed": reducers.trimmed_mean(0.34),
    "multi-krum": reducers.multi_krum(3),
    "geometric median": reducers.geometric_median(),
    "centred clipping": reducers.centred_clipping(2.5),
}


def cosine(one: Server, other: Server) -> float:
    """Of the angle between two updates."""
    flat = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(t)]) for t in (one, other)]
    return float(flat[0] @ flat[1] / np.linalg.norm(flat[0]) / np.linalg.norm(flat[1]))


def without_liars(stack: Stack, liars: int = 3) -> Stack:
    """The clients 0, 1, ... did not take part."""
    return stack._replace(sent=stack.sent & (jnp.arange(10) >= liars))


@pytest.mark.parametrize("name", ROBUST)
def test_a_mean_is_moved_and_a_robust_rule_is_not(name):
    """Three of nine manipulate the inner product of dense updates: means turn round, robust rules keep course."""
    stack = sparse_stack(share=1.1)
    attack = attacks.ipm(20.0)
    mean = aggregators.mean()
    honest = mean.finish(weighted_totals(mean, without_liars(stack)))
    assert cosine(attacked(mean, attack, [0, 1, 2]).finish(stack), honest) < -0.99
    assert cosine(quick(attacked(ROBUST[name], attack, [0, 1, 2]).finish)(stack), honest) > 0.95


def test_medians_of_rows_fall_where_liars_outnumber_touchers():
    """Liars touch every row: over touchers they have the cold ones, over the cohort these learn nothing.

    `min_touchers` does not help, because liars are touchers too.
    """
    stack = sparse_stack()
    liars = [0, 1, 2]
    attack = attacks.ipm(20.0)
    mean = aggregators.mean()
    heard = np.asarray(stack.touched[3:9]).sum(0)
    honest = mean.finish(weighted_totals(mean, without_liars(stack))).tables["vector"]
    cold = (heard > 0) & (heard < 3)
    warm = heard > 3
    assert cold.any()
    assert warm.any()
    found, few = (
        attacked(reducers.median(over="touchers", min_touchers=m), attack, liars).finish(stack)
        for m in (1, 3)
    )
    for rows, sign in ((cold, -1), (warm, 1)):
        assert (sign * (found.tables["vector"] * honest).sum(1)[rows] > 0).all()
    assert_close(few, found, "few touchers", 0)
    over_cohort = reducers.median().finish(without_liars(stack)).tables["vector"]
    assert not np.asarray(over_cohort)[cold].any()


@pytest.mark.parametrize("name", ROBUST)
def test_nan_poisons_a_mean_and_no_robust_rule(name):
    """Who sends NaN counts as absent."""
    stack = sparse_stack()
    liars = [0, 1, 2]
    poisoned = attacked(aggregators.mean(), attacks.not_a_number(), liars).finish(stack)
    assert np.isnan(poisoned.shared["w"]).all()
    found = quick(attacked(ROBUST[name], attacks.not_a_number(), liars).finish)(stack)
    assert_close(found, quick(ROBUST[name].finish)(without_liars(stack)), name, 1e-6)


def test_sums_of_a_stack():
    """Weighted sums over those who took part, of rows and of their touchers, as in the formulas."""
    stack = sparse_stack()._replace(weight=jnp.arange(1.0, 11.0))
    weight = np.arange(1.0, 11.0) * np.asarray(stack.sent)
    rows, touched = (np.asarray(x, np.float64) for x in (stack.deltas.tables["vector"], stack.touched))
    plain = weighted_totals(aggregators.by_examples(), stack)
    np.testing.assert_allclose(
        plain.deltas.tables["vector"], np.tensordot(weight, rows, 1), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(
        plain.deltas.shared["w"], weight @ np.asarray(stack.deltas.shared["w"]), rtol=1e-5
    )
    assert float(plain.weight) == weight.sum()
    assert plain.row_weight is None
    touchers: Any = weighted_totals(aggregators.mean_of_touchers(), stack)
    np.testing.assert_allclose(touchers.row_weight, weight @ touched)
    change: Any = weighted_totals(aggregators.by_change(), stack)
    size = weight[:, None] * np.abs(rows).sum(2)
    np.testing.assert_allclose(change.row_weight, size.sum(0), rtol=1e-5)
    np.testing.assert_allclose(
        change.deltas.tables["vector"], (size[..., None] * rows).sum(0), rtol=1e-4, atol=1e-5
    )


def rounds(count: int, **settings: Any) -> tuple[Server, list[float]]:
    """The model and the clients' loss after some rounds of everyone; client 3 has no data."""
    algorithm = fr.fedmf(dim=3, learning_rate=0.3, sampler=fixed(np.arange(24)), **settings)
    population = tiny_population()
    key = jax.random.key(KEY)
    state = algorithm.init(key, population)
    found = []
    one = quick(algorithm.round)
    for _ in range(count):
        state, info = one(key, state, population)
        found.append(float(info.loss))
    return state.server, found


def test_attacked_by_nobody():
    """An aggregator of sums gives the same from a stack, whatever it weighs by."""
    plain = aggregators.by_change()
    one, other = (rounds(2, aggregator=a)[0] for a in (plain, attacked(plain, attacks.ipm(5.0), [])))
    assert_close(other, one, "by change")


def test_attack_in_a_run():
    """With four of 24 clients malicious a mean unlearns, and the geometric median goes on to learn."""
    losses = [
        rounds(12, aggregator=attacked(a, attacks.ipm(20.0), range(4)), server_optimizer=optax.sgd(5.0))[1]
        for a in (aggregators.mean(), reducers.geometric_median())
    ]
    assert losses[0][-1] > 1.1 * losses[0][0]
    assert losses[1][-1] < 0.9 * losses[1][0]


def _heated():
    return attacked(aggregators.by_heat(), attacks.ipm(1.0), [0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: attacks.ipm(0.0), "epsilon must be above 0, not 0.0"),
        (lambda: attacks.gaussian(-1.0), "deviation must be above 0, not -1.0"),
        (lambda: attacked(aggregators.mean(), attacks.ipm(1.0), [3, -1]), "at least 0, not -1"),
        (_heated, "`heat` cannot be attacked"),
        (
            lambda: attacked(aggregators.fixed_point(aggregators.mean(), capacity=9), attacks.ipm(1.0), [0]),
            "`fixed` cannot be attacked",
        ),
        (
            lambda: attacked(aggregators.mean()._replace(client_stats=lambda n: n), attacks.ipm(1.0), [0]),
            "`client_stats` cannot be attacked",
        ),
        (
            lambda: attacked(aggregators.mean(), attacks.ipm(1.0), [10]).finish(sparse_stack()),
            "place 10 is malicious in a cohort of 10; places are 0..9",
        ),
    ],
)
def test_bad_values_are_refused(build, words):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        build()
