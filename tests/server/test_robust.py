"""Robust aggregators: golden vectors, plain numpy on sparse stacks, absent and hostile clients, and learning."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import fedjax_rec as fr
from fedjax_rec.engine.devices import AXIS
from fedjax_rec.server import stacked as reducers
from fedjax_rec.testing import KEY, assert_close, fixed, tiny_population
from fedjax_rec.types import Server, Stack

NUMPY_STACK: Any = Stack  # of plain numpy arrays
GOLDEN = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.float32)
WIDTH = 4  # of a row: 2,400 numbers, more than a block of distances has
CLIENTS = 11
ITEMS = 600  # two whole blocks of rows and a part
SHARE = 0.26
RADIUS = 6.0
FAULTY = 2


def random_stack(seed: int = 0) -> Any:
    """Eleven clients, each with its own rows of 600 in two tables, and a dense leaf."""
    rng = np.random.default_rng(seed)
    touched = rng.random((CLIENTS, ITEMS)) < rng.random(ITEMS)
    values = rng.normal(rng.normal(size=(ITEMS, WIDTH)), 0.7, (CLIENTS, ITEMS, WIDTH)) * touched[..., None]
    tables = {"vector": values, "bias": rng.normal(size=(CLIENTS, ITEMS)) * touched}
    shared = {"w": rng.normal(1.0, 1.0, (CLIENTS, 3))}
    server = jax.tree.map(lambda x: x.astype(np.float32), Server(shared, tables))
    return NUMPY_STACK(server, np.ones(CLIENTS, bool), touched, np.ones(CLIENTS, np.float32))


def spoil(stack: Any, clients: Any, value: float) -> Any:
    """The clients send a value in all of their rows and dense numbers."""
    stack = jax.tree.map(np.array, stack)
    for leaf in jax.tree.leaves(stack.deltas.shared):
        leaf[clients] = value
    for leaf in jax.tree.leaves(stack.deltas.tables):
        for client in np.atleast_1d(clients):
            leaf[client, stack.touched[client]] = value
    return stack


# --- the same rules in plain numpy, of those clients only that are present ------------------------------------


def _flat(server: Server) -> np.ndarray:
    return np.concatenate([x.reshape(len(x), -1) for x in jax.tree.leaves(server)], axis=1)


def _weighted(server: Server, weight: np.ndarray) -> Server:
    return jax.tree.map(lambda x: np.tensordot(weight, x, 1), server)


def rank_rule(server, touched, of, over, min_touchers):
    """`of` values [n, ...] in one row, row by row."""
    shared = jax.tree.map(of, server.shared)
    tables = jax.tree.map(lambda x: np.zeros(x.shape[1:]), server.tables)
    for row in range(touched.shape[1]):
        who = touched[:, row] if over == "touchers" else np.ones(len(touched), bool)
        if touched[:, row].sum() >= min_touchers:
            for out, leaf in zip(jax.tree.leaves(tables), jax.tree.leaves(server.tables), strict=True):
                out[row] = of(leaf[who, row]) * who.sum() / len(touched)
    return Server(shared, tables)


def trimmed(values):
    cut = int(SHARE * len(values))
    return np.sort(values, axis=0)[cut : len(values) - cut].mean(0)


def krum_rule(server, touched, kept, less):
    del touched
    flat = _flat(server)
    distance = ((flat[:, None] - flat[None]) ** 2).sum(-1)
    near = min(max(len(flat) - FAULTY - less, 1), len(flat) - 1)
    score = np.sort(distance, axis=1)[:, 1 : 1 + near].sum(1)
    best = score.argsort()[: max(len(flat) - FAULTY, 1) if kept is None else kept]
    return jax.tree.map(lambda x: x[best].mean(0), server)


def weiszfeld(server, touched, iterations=4, smoothing=0.1):
    del touched
    flat = _flat(server)
    centre = 0.0
    for _ in range(iterations):
        weight = 1 / np.maximum(smoothing, np.linalg.norm(flat - centre, axis=1))
        centre = weight @ flat / weight.sum()
    return _weighted(server, weight / weight.sum())


def centred(server, touched, iterations=2):
    """The centre is affine in the updates: v = sum_i a_i x_i, so that its coefficients say all."""
    del touched
    flat = _flat(server)
    own = np.zeros(len(jax.tree.leaves(server)[0]))
    for _ in range(iterations):
        factor = np.minimum(1, RADIUS / np.linalg.norm(flat - own @ flat, axis=1)) / len(flat)
        own = own * (1 - factor.sum()) + factor
    return _weighted(server, own)


def bounded(server, touched):
    del touched
    return _weighted(server, np.minimum(1, RADIUS / np.linalg.norm(_flat(server), axis=1)))


def rows_bounded(server, touched):
    del touched
    size = np.sqrt((server.tables["vector"] ** 2).sum(-1) + server.tables["bias"] ** 2)
    factor = np.minimum(1, 1.0 / np.maximum(size, 1e-12))
    tables = {
        "vector": (factor[..., None] * server.tables["vector"]).sum(0),
        "bias": (factor * server.tables["bias"]).sum(0),
    }
    dense = np.minimum(1, 1.0 / np.linalg.norm(server.shared["w"], axis=1))
    return Server({"w": dense @ server.shared["w"]}, tables)


def _median(x):
    return np.median(x, axis=0)


# name -> (aggregator, the same in numpy)
RULES: dict[str, Any] = {
    "median": (reducers.median(), lambda s, t: rank_rule(s, t, _median, "cohort", 1)),
    "median of 4": (reducers.median(min_touchers=4), lambda s, t: rank_rule(s, t, _median, "cohort", 4)),
    "touchers' median": (
        reducers.median(over="touchers"),
        lambda s, t: rank_rule(s, t, _median, "touchers", 1),
    ),
    "touchers' median of 4": (
        reducers.median(over="touchers", min_touchers=4),
        lambda s, t: rank_rule(s, t, _median, "touchers", 4),
    ),
    "trimmed": (reducers.trimmed_mean(SHARE), lambda s, t: rank_rule(s, t, trimmed, "cohort", 1)),
    "touchers' trimmed": (
        reducers.trimmed_mean(SHARE, over="touchers", min_touchers=2),
        lambda s, t: rank_rule(s, t, trimmed, "touchers", 2),
    ),
    "krum": (reducers.krum(FAULTY), lambda s, t: krum_rule(s, t, 1, 2)),
    "multi-krum": (reducers.multi_krum(FAULTY), lambda s, t: krum_rule(s, t, None, 2)),
    "multi-krum of 3, wide": (
        reducers.multi_krum(FAULTY, 3, neighbours="wide"),
        lambda s, t: krum_rule(s, t, 3, 1),
    ),
    "geometric median": (reducers.geometric_median(4, 0.1), weiszfeld),
    "centred clipping": (reducers.centred_clipping(RADIUS, 2), centred),
    "norm bound": (reducers.norm_bound(RADIUS), bounded),
    "row norm bound": (reducers.row_norm_bound(1.0), rows_bounded),
}


def quick(function: Any) -> Any:
    """Compile in a hurry: these programs are small."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


@cache
def compiled(name: str) -> Any:
    return quick(RULES[name][0].finish)


CASES = {
    "all": ([], []),
    "absent": ([0, 4], []),
    "not finite": ([], [2, 10]),
    "both": ([0, 4], [2, 10]),
    "one": ([0, 1, 2, 3, 4, 6, 7], [5, 9, 10]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", RULES)
def test_rules_are_those_of_plain_numpy(name, case):
    """Absent clients, whatever lies in their places, and clients with one number that is none count for 0."""
    absent, mad = CASES[case]
    stack = spoil(random_stack(), absent, 7.0)
    stack.sent[absent] = False
    stack.deltas.tables["bias"][mad, 3] = np.resize([np.nan, np.inf, -np.inf], len(mad))
    present = np.setdiff1d(np.arange(CLIENTS), absent + mad)
    left = jax.tree.map(lambda x: x[present].astype(np.float64), stack.deltas)
    expected = RULES[name][1](left, stack.touched[present])
    assert max(np.abs(x).max() for x in jax.tree.leaves(expected)) > 0.3
    assert_close(compiled(name)(stack), expected, f"{name}, {case}", 3e-6)


@pytest.mark.parametrize("name", RULES)
def test_nobody_means_no_update(name):
    """Neither an empty cohort nor one of clients without sound numbers gives anything but 0."""
    stack = random_stack()
    empty = stack._replace(sent=np.zeros(CLIENTS, bool))
    for sent in (empty, spoil(stack, np.arange(CLIENTS), np.nan)):
        assert not any(np.asarray(x).any() for x in jax.tree.leaves(compiled(name)(sent)))


@pytest.mark.parametrize("name", RULES)
def test_order_of_the_cohort_does_not_matter(name):
    """Clients may stand anywhere in the cohort."""
    stack = random_stack()
    order = np.random.default_rng(1).permutation(CLIENTS)
    shuffled = jax.tree.map(lambda x: x[order], stack)
    assert_close(compiled(name)(shuffled), compiled(name)(stack), name, 1e-6)


@pytest.mark.parametrize("size", [1e4, 1e19, 1e30, 3.4e38, np.inf, np.nan])
@pytest.mark.parametrize("name", [n for n in RULES if "bound" not in n])
def test_two_liars_move_nothing_far(name, size):
    """However far two of eleven updates lie, the result stays where the others are."""
    stack = random_stack()
    stack.touched[:] = True
    honest = jax.tree.map(lambda x: x[2:], stack.deltas)
    low = jax.tree.map(lambda x: x.min(0), honest)
    high = jax.tree.map(lambda x: x.max(0), honest)
    found = compiled(name)(spoil(stack, [0, 1], size))
    slack = 0.2 if name in {"geometric median", "centred clipping"} else 1e-5
    for leaf, least, most in zip(*map(jax.tree.leaves, (found, low, high)), strict=True):
        assert (np.asarray(leaf) >= np.minimum(least, 0) - slack).all()
        assert (np.asarray(leaf) <= np.maximum(most, 0) + slack).all()


@pytest.mark.parametrize("size", [1e4, 1e30, np.nan])
@pytest.mark.parametrize(("name", "bound"), [("norm bound", RADIUS), ("row norm bound", 1.0)])
def test_a_bound_is_all_that_one_client_can_do(name, bound, size):
    """Sums differ by no more than the bound from those without the client."""
    stack = random_stack()
    without = stack._replace(sent=np.arange(CLIENTS) != 1)
    gap = jax.tree.map(jnp.subtract, compiled(name)(spoil(stack, 1, size)), compiled(name)(without))
    if name == "norm bound":
        norms = np.sqrt(sum((np.asarray(x) ** 2).sum() for x in jax.tree.leaves(gap)))
    else:
        norms = np.sqrt((gap.tables["vector"] ** 2).sum(-1) + gap.tables["bias"] ** 2)
    assert norms.max() <= bound * 1.00001
    assert (norms.max() > 0.9 * bound) == (size == 1e4)  # beyond float32's squares it counts for nothing


@pytest.mark.parametrize(
    ("aggregator", "expected"),
    [
        (reducers.median(), [4, 5, 6]),
        (reducers.median(over="touchers"), [4, 5, 6]),
        (reducers.trimmed_mean(1 / 3), [4, 5, 6]),
        (reducers.trimmed_mean(1 / 3, over="touchers"), [4, 5, 6]),
        (reducers.krum(1), [1, 2, 3]),
        (reducers.multi_krum(1, neighbours="wide"), [2.5, 3.5, 4.5]),
        (reducers.multi_krum(1), [2.5, 3.5, 4.5]),
        (reducers.geometric_median(3, 0.1), [3.78788764, 4.78788764, 5.78788764]),
        (reducers.geometric_median(40), [4, 5, 6]),
        (reducers.centred_clipping(100.0), [4, 5, 6]),
    ],
)
def test_golden_vectors(aggregator, expected):
    """The examples in byzfl's documentation, both as a dense leaf and as a row that all touch."""
    server = Server(GOLDEN, GOLDEN[:, None])
    found = quick(aggregator.finish)(NUMPY_STACK(server, np.ones(3, bool), np.ones((3, 1), bool), np.ones(3)))
    np.testing.assert_allclose(found.shared, expected, rtol=1e-6)
    np.testing.assert_allclose(found.tables[0], expected, rtol=1e-6)


def test_golden_clipping():
    """byzfl's Clipping(2) of the first of the three vectors."""
    stack = Stack(Server(jnp.asarray(GOLDEN), {}), jnp.arange(3) == 0, jnp.zeros((3, 0), bool), jnp.ones(3))
    found = reducers.norm_bound(2.0).finish(stack).shared
    np.testing.assert_allclose(found, [0.53452248, 1.06904497, 1.60356745], rtol=1e-6)


def test_touchers_are_the_cohort_where_all_touch_all():
    """On a dense stack both semantics are one, to the bit; on a sparse one they are not."""
    cohort = "median"
    touchers = "touchers' median"
    sparse = random_stack()
    dense = sparse._replace(touched=np.ones_like(sparse.touched))
    assert_close(compiled(touchers)(dense), compiled(cohort)(dense), "all touch all", 0)
    tail = np.asarray(sparse.touched.sum(0) < CLIENTS / 2)
    assert tail.any()
    assert not np.asarray(compiled(cohort)(sparse).tables["vector"])[tail].any()
    assert np.asarray(compiled(touchers)(sparse).tables["vector"])[tail].any()


def test_clients_that_send_nothing_hold_the_geometric_median_at_zero():
    """The centre leaves zero by a factor of 1 / s - 1 in each step, as the documentation says."""
    values = np.random.default_rng(0).normal(5.0, 0.3, (10, 4)).astype(np.float32)
    values[:3] = 0
    stack = Stack(Server(jnp.asarray(values), {}), jnp.ones(10, bool), jnp.zeros((10, 0), bool), jnp.ones(10))
    size = [float(jnp.linalg.norm(reducers.geometric_median(n).finish(stack).shared)) for n in (3, 4, 40)]
    assert 2.1 < size[1] / size[0] < 1 / 0.3 - 1 + 0.01
    assert size[0] < 1e-3
    assert size[2] == pytest.approx(10, rel=0.1)  # nearly all the way to the seven others


# name -> (aggregator, server rate): the bounds sum over 23 clients, and a median overshoots with the majority
NEW = {
    "touchers' median": (reducers.median(over="touchers"), 1.0),
    "touchers' trimmed": (reducers.trimmed_mean(0.2, over="touchers", min_touchers=2), 5.0),
    "multi-krum": (reducers.multi_krum(3), 5.0),
    "geometric median": (reducers.geometric_median(), 5.0),
    "centred clipping": (reducers.centred_clipping(1.0), 5.0),
    "norm bound": (reducers.norm_bound(1.0), 0.25),
    "row norm bound": (reducers.row_norm_bound(0.5), 0.25),
}


@pytest.mark.parametrize("name", NEW)
def test_learns(name):
    """Every new rule compiles inside a round, and the clients' loss falls."""
    aggregator, rate = NEW[name]
    population = tiny_population()
    algorithm = fr.fedmf(
        dim=3,
        learning_rate=0.3,
        sampler=fixed(np.arange(24)),
        aggregator=aggregator,
        server_optimizer=optax.sgd(rate),
    )
    key = jax.random.key(KEY)
    state = algorithm.init(key, population)
    losses = []
    one = quick(algorithm.round)
    for _ in range(12):
        state, info = one(key, state, population)
        losses.append(float(info.loss))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ["touchers' median", "geometric median"])
def test_on_a_mesh(name):
    """A stack whose clients lie on four devices gives what it gives on one."""
    stack = jax.tree.map(lambda x: x[:8], random_stack())
    mesh: Any = fr.client_mesh(4)
    split = NamedSharding(mesh, PartitionSpec(AXIS))
    assert_close(compiled(name)(jax.device_put(stack, split)), compiled(name)(stack), "a mesh of 4", 1e-6)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: reducers.median(over="rows"), "unknown over='rows'; choose one of cohort, touchers"),
        (lambda: reducers.trimmed_mean(0.1, min_touchers=0), "min_touchers must be at least 1"),
        (lambda: reducers.multi_krum(-1), "faulty must be at least 0, not -1"),
        (lambda: reducers.multi_krum(1, 0), "kept must be at least 1, not 0"),
        (
            lambda: reducers.krum(1, neighbours="byzfl"),
            "unknown neighbours 'byzfl'; choose one of narrow, wide",
        ),
        (lambda: reducers.geometric_median(0), "iterations must be at least 1, not 0"),
        (lambda: reducers.geometric_median(3, 0.0), "smoothing must be at least 1e-12, not 0.0"),
        (lambda: reducers.centred_clipping(0.0), "clipping radius must be above 0, not 0.0"),
        (lambda: reducers.centred_clipping(1.0, 0), "iterations must be at least 1, not 0"),
        (lambda: reducers.norm_bound(float("nan")), "norm must be above 0, not nan"),
        (lambda: reducers.row_norm_bound(-1.0), "norm must be above 0, not -1.0"),
    ],
)
def test_bad_values_are_refused(build, words):
    """Each error names the value and the way out."""
    with pytest.raises(ValueError, match=words):
        build()
