"""Federated reconstruction against the numpy reference, and what being stateless means."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.algorithms.fedrecon import fedrecon
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import build
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.types import Context
from tests.references import fedrecon as ref

ITEMS = 40
ROUNDS = 3
SEED = 7
LENGTHS = (9, 1, 23, 0, 5, 14, 30)
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
SETTINGS: dict[str, Any] = {"dim": 4, "init_range": 0.5, "recon_learning_rate": 0.2, "learning_rate": 0.3}


@cache
def population():
    """Seven ragged clients; one has no data, and one no query set."""
    rng = np.random.default_rng(SEED)
    items = np.concatenate([rng.permutation(ITEMS)[:n] for n in LENGTHS])
    return build(np.cumsum([0, *LENGTHS]), items, rng.integers(1, 6, len(items)).astype(float), ITEMS)


def clients_of(algorithm, batch, positives, round_):
    """The clients of a round as the reference takes them."""
    data = population()
    keys = jax.random.fold_in(stream(jax.random.key(SEED), "client"), round_)
    names = jax.tree.map(np.asarray, name_clients(keys, jnp.arange(len(LENGTHS)), data))
    found = []
    for n, count in enumerate(LENGTHS):
        client = jax.tree.map(lambda leaf, n=n: leaf[n], names)
        batches = []
        weight = 0
        for t in range(int(algorithm.work.batches.num_batches(count))):
            one = jax.tree.map(np.asarray, batch(client, data, jnp.int32(t)))
            targets = one.data.get("rating", np.arange(len(one.ids)) < positives).astype(float)
            batches.append(
                [(i, y) for i, y in zip(one.ids.tolist(), targets.tolist(), strict=True) if i < ITEMS]
            )
            weight += (t % 2) * int((one.ids[:positives] < ITEMS).sum())
        key = jax.random.wrap_key_data(jnp.asarray(client.key))
        start = algorithm.work.start(key, None, None, Context(0, jnp.int32(0), jnp.int32(0))).vector
        found.append(ref.Client(np.asarray(start, np.float64), batches, weight))
    return found


def compare(setting, positives, **settings):
    """Largest difference of the item vectors, relative to the largest, over some rounds."""
    algorithm = fedrecon(sampler=everyone(), **SETTINGS, **settings)
    key = jax.random.key(SEED)
    state = algorithm.init(key, population())
    one_round = jax.jit(algorithm.round, compiler_options=QUICK)
    batch = jax.jit(algorithm.work.batches.batch, compiler_options=QUICK)
    wanted = np.asarray(state.server.tables["vector"], np.float64)
    worst = 0.0
    for round_ in range(ROUNDS):
        wanted = ref.run_round(setting, wanted, clients_of(algorithm, batch, positives, round_))
        state, _ = one_round(key, state, population())
        gap = np.abs(np.asarray(state.server.tables["vector"]) - wanted).max()
        worst = max(worst, float(gap / np.abs(wanted).max()))
    return worst


CASES: dict[str, tuple[ref.Setting, int, dict[str, Any]]] = {
    "ratings": (
        ref.Setting("mse", 3, 0.2, 50, 1, 0.3),
        4,
        {"batch_size": 4, "recon_epochs": 3},
    ),
    "ratings, few steps, two epochs, new halves": (
        ref.Setting("mse", 3, 0.2, 2, 2, 0.3),
        4,
        {"batch_size": 4, "recon_epochs": 3, "max_steps": 2, "local_epochs": 2, "shuffle": True},
    ),
    "positives and negatives": (
        ref.Setting("bce", 2, 0.2, 50, 1, 0.3),
        2,
        {"loss": "bce", "batch_size": 6, "num_negatives": 2, "recon_epochs": 2},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    """1e-5 in float32."""
    setting, positives, settings = CASES[case]
    assert compare(setting, positives, **settings) < 1e-5


def test_a_wrong_reference_disagrees():
    """The same without the two halves: every batch is support and query."""
    setting, positives, settings = CASES["ratings"]
    assert compare(setting._replace(joint=True), positives, **settings) > 1e-3


def test_clients_are_stateless():
    """What the private store holds is never read: with other private leaves, the same round."""
    algorithm = fedrecon(sampler=everyone(), **SETTINGS)
    key = jax.random.key(SEED)
    state = algorithm.init(key, population())
    one_round = jax.jit(algorithm.round, compiler_options=QUICK)
    other = state._replace(private=jax.tree.map(lambda p: p + 100.0, state.private))
    ours = one_round(key, state, population())[0]
    theirs = one_round(key, other, population())[0]
    assert jnp.array_equal(ours.server.tables["vector"], theirs.server.tables["vector"])


def test_clients_without_a_query_set_send_nothing():
    """The halves are batches 0, 2, ... and 1, 3, ...; weights are the examples in the latter."""
    aggregator_weight = fedrecon(batch_size=4).work.batches.num_batches(9)
    assert int(aggregator_weight) == 3
    from fedjax_rec.algorithms.fedrecon import _by_query

    assert _by_query(4, 50).weight(jnp.array([0, 4, 5, 8, 12, 14, 1000])).tolist() == [0, 0, 1, 4, 4, 6, 200]


def test_representation_uses_the_whole_history():
    """Before scoring, all batches are support, for `max_steps` steps: as the reference from the same start."""
    algorithm = fedrecon(batch_size=4, recon_epochs=3, max_steps=7, **SETTINGS)
    state = algorithm.init(jax.random.key(SEED), population())
    private, server = server_parameters(algorithm, population()).prepare(state)
    items = np.asarray(server.tables["vector"], np.float64)
    names = name_clients(stream(jax.random.key(0), "evaluation"), jnp.arange(len(LENGTHS)), population())
    setting = ref.Setting("mse", 3, 0.2, 7, 1, 0.3)
    for n in (0, 2, 6):
        own = slice(*np.asarray(population().offsets)[n : n + 2])
        pairs = list(
            zip(*(np.asarray(population().examples[k])[own] for k in ("items", "ratings")), strict=True)
        )
        batches = [pairs[i : i + 4] for i in range(0, len(pairs), 4)]
        start = algorithm.work.start(
            jax.random.wrap_key_data(names.key[n]),
            None,
            None,
            Context(len(items), names.num_examples[n], jnp.int32(len(batches))),
        ).vector
        wanted = ref.reconstruct(setting, np.asarray(start, np.float64), items, batches)
        np.testing.assert_allclose(private["vector"][n], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"loss": "bpr"}, "unknown loss 'bpr'"),
        ({"aggregator": "touchers"}, "rows of the support half"),
        ({"recon_epochs": 0}, "recon_epochs must be at least 1"),
    ],
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        fedrecon(**settings)
