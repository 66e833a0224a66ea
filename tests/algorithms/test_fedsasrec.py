"""`fedsasrec` against the numpy reference of its forward pass, and its central twin; causality; order of time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.common.attention import encode, init_encoder
from fedjax_rec.algorithms.common.sequences import sequences
from fedjax_rec.algorithms.fedsasrec import fedsasrec
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population, build, check_order, contains, population_of
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.readers import from_frame
from fedjax_rec.data.splits import leave_one_out
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.federation.federate import client_update
from fedjax_rec.rows.tables import read_rows
from fedjax_rec.testing import assert_close, tiny_population
from tests.references import fedsasrec as ref

LENGTH = 6
DIM = 4
NEGATIVES = 2
RATE = 0.05
STRENGTH = 0.03
KEY = 5
SETTINGS: dict[str, Any] = {
    "dim": DIM,
    "max_length": LENGTH,
    "blocks": 2,
    "num_negatives": NEGATIVES,
    "learning_rate": RATE,
}
SETTINGS |= {"regularisation": STRENGTH, "init_scale": 1.0}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


@pytest.fixture(scope="module")
def encoder():
    """Of two blocks, with norms and biases that are not those of the start."""
    first = init_encoder(jax.random.key(0), DIM, LENGTH, 2, 0.5)
    leaves, structure = jax.tree.flatten(first)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [x + 0.3 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(structure, moved)


def in_float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def own_items(population, client):
    offsets = np.asarray(population.offsets)
    return np.asarray(population.examples["items"])[offsets[client] : offsets[client + 1]].tolist()


def client_of(population, number, round_=0):
    key = jax.random.fold_in(stream(jax.random.key(KEY), "client"), round_)
    return jax.tree.map(lambda x: x[0], name_clients(key, jnp.array([number]), population))


@pytest.mark.parametrize("length", [1, 3, LENGTH])
def test_the_encoder_equals_the_reference(encoder, length):
    """Of full sequences and of short ones, whose empty slots come first."""
    vectors = jax.random.normal(jax.random.key(2), (LENGTH, DIM))
    mask = (jnp.arange(LENGTH) >= LENGTH - length).astype(jnp.float32)
    got = np.asarray(jax.jit(encode)(encoder, vectors * mask[:, None], mask))[LENGTH - length :]
    wanted = ref.encode(in_float64(encoder), in_float64(vectors)[LENGTH - length :])
    np.testing.assert_allclose(got, np.array(wanted), rtol=1e-5, atol=1e-5)


def test_a_wrong_reference_disagrees(encoder):
    """The same with attention to later positions too."""
    vectors = jax.random.normal(jax.random.key(2), (LENGTH, DIM))
    got = np.asarray(jax.jit(encode)(encoder, vectors, jnp.ones(LENGTH)))
    wrong = ref.encode(in_float64(encoder), list(in_float64(vectors)), causal=False)
    assert np.abs(got - np.array(wrong)).max() > 1e-2


def test_no_position_sees_a_later_one(encoder):
    """Another item at position t changes what is said at t and after, and nothing before, to the bit."""
    run = jax.jit(encode)
    vectors = jax.random.normal(jax.random.key(3), (LENGTH, DIM))
    base = np.asarray(run(encoder, vectors, jnp.ones(LENGTH)))
    for t in range(LENGTH):
        other = np.asarray(run(encoder, vectors.at[t].set(vectors[t - 1] + 1.0), jnp.ones(LENGTH)))
        np.testing.assert_array_equal(other[:t], base[:t])
        assert (other[t:] != base[t:]).any(axis=1).all()


def test_empty_slots_are_not_attended_to(encoder):
    """What stands in an empty slot does not matter."""
    run = jax.jit(encode)
    mask = jnp.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    vectors = jax.random.normal(jax.random.key(3), (LENGTH, DIM))
    base = run(encoder, vectors, mask)
    other = run(encoder, vectors.at[:2].add(5.0), mask)
    np.testing.assert_array_equal(np.asarray(base)[2:], np.asarray(other)[2:])


def drawn(population, number):
    """A client's sequence and the negatives of each predicted item, by reading its batch slot by slot."""
    ids = (
        sequences(LENGTH, NEGATIVES)
        .batch(client_of(population, number), population, jnp.int32(0))
        .ids.tolist()
    )
    own = ids[: LENGTH + 1]
    others = ids[LENGTH + 1 :]
    empty = population.num_items
    negatives = {}
    for slot in range(1, LENGTH + 1):
        named = [others[k * LENGTH + slot - 1] for k in range(NEGATIVES)]
        if own[slot] < empty and own[slot - 1] < empty:
            negatives[own[slot]] = [j for j in named if j < empty]
    return [i for i in own if i < empty], negatives


def test_a_batch_is_the_latest_items_in_order_of_time(population):
    """Not shuffled; the longest histories lose their oldest items; negatives are distinct and nobody's own."""
    name = jax.jit(sequences(LENGTH, NEGATIVES).batch)
    for number in range(population.num_clients):
        client = client_of(population, number)
        batch = name(client, population, jnp.int32(0))
        ids = np.asarray(batch.ids)
        items = ids[ids < population.num_items]
        sequence = ids[: LENGTH + 1]
        own = own_items(population, number)
        assert sequence[sequence < population.num_items].tolist() == own[-(LENGTH + 1) :]
        assert (sequence[: max(0, LENGTH + 1 - len(own))] == population.num_items).all()
        assert len(np.unique(items)) == len(items)
        others = jnp.asarray(ids[LENGTH + 1 :])
        assert not bool(contains(population, client.id, others).any())
        np.testing.assert_array_equal(np.asarray(batch.data["mask"]), ids < population.num_items)


def test_populations_keep_the_order_of_time():
    """From events in any order: a split sorts by time, as does a population of a frame."""
    import pandas as pd

    times = np.random.default_rng(0).permutation(30)
    frame = pd.DataFrame({"user": times % 2, "item": times, "timestamp": times * 10})
    split = leave_one_out(Dataset("shuffled", from_frame(frame)), num_candidates=2)
    data = population_of(split)
    for number in (0, 1):
        items = np.asarray(split.item_ids)[own_items(data, number)]
        assert items.tolist() == sorted(items.tolist())
        assert len(items) == 13
    direct = Population.from_frame(frame)
    for number in (0, 1):
        items = own_items(direct, number)
        assert frame["item"].unique()[items].tolist() == list(range(frame["user"].iloc[0] ^ number, 30, 2))


def test_without_times_it_is_refused():
    """In Python as on the command line: events in no order are not taken for a sequence, whoever runs it."""
    import pandas as pd

    frame = pd.DataFrame({"user": [1] * 4 + [2] * 4, "item": [*range(4)] * 2})
    dataset = Dataset("plain", from_frame(frame))
    algorithm = fedsasrec(**SETTINGS, cohort=1)
    population = Population.from_frame(frame)
    split = leave_one_out(dataset, num_candidates=1)
    for run in (
        lambda: fr.simulate(algorithm, population, rounds=1),
        lambda: fr.simulate(algorithm, split, rounds=1),
        lambda: fr.train_seeds(jax.random.split(jax.random.key(0), 2), algorithm, population, 1),
        lambda: fr.sweep(fedsasrec, split, [SETTINGS], rounds=1, eval_every=1),
    ):
        with pytest.raises(ValueError, match="learns from the order of events, and these have no times"):
            run()
    check_order(algorithm, population_of(leave_one_out(dataset, num_candidates=1, order="file")))
    check_order(algorithm, Population.from_frame(frame.assign(timestamp=range(8))))
    check_order(fr.fedmf(), population)


def plain_loss(params, table, sequence, negatives):
    """The loss of one sequence as one would write it without any client: no padding, no batch, no slots."""
    items = jnp.asarray(sequence)
    short = {**params, "position": params["position"][LENGTH - len(sequence) + 1 :]}
    encoded = encode(short, table[items[:-1]], jnp.ones(len(sequence) - 1))
    value = jax.nn.softplus(-(encoded * table[items[1:]]).sum(1)).sum()
    pairs = [(t, j) for t, item in enumerate(sequence[1:]) for j in negatives[item]]
    at, others = jnp.array(pairs).T
    return value + jax.nn.softplus((encoded[at] * table[others]).sum(1)).sum()


def test_equals_the_central_twin(population):
    """A client's update is a gradient step on its sequence's plain loss, which is the numpy reference's."""
    algorithm = fedsasrec(**SETTINGS, cohort=1)
    key = jax.random.key(KEY)
    state = algorithm.init(key, population)
    lengths = np.diff(np.asarray(population.offsets))
    short = int(np.flatnonzero((lengths > 2) & (lengths <= LENGTH))[0])
    for number in (short, int(lengths.argmax())):
        sequence, negatives = drawn(population, number)
        table = state.server.tables["vector"]
        value, grads = jax.value_and_grad(plain_loss, argnums=(0, 1))(
            state.server.shared, table, sequence, negatives
        )
        wanted = ref.loss(in_float64(state.server.shared), in_float64(table), sequence, negatives)
        np.testing.assert_allclose(float(value), wanted, rtol=1e-5)
        update = client_update(algorithm, key, state, population, number)
        assert_close(update.shared, jax.tree.map(lambda g: -RATE * g, grads[0]), "dense leaves", 5e-5)
        pull = grads[1] + STRENGTH * table
        assert_close(update.rows["vector"], read_rows(-RATE * pull, update.ids), "rows", 5e-5)


def test_a_client_is_scored_by_its_latest_items(population):
    """Scores are the catalogue's products with what the encoder says at the end of the sequence."""
    algorithm = fedsasrec(**SETTINGS)
    state = algorithm.init(jax.random.key(KEY), population)
    point = server_parameters(algorithm, population)
    scores = np.asarray(point.score(point.prepare(state), jnp.arange(population.num_clients)), float)
    table = in_float64(state.server.tables["vector"])
    shared = in_float64(state.server.shared)
    for number in range(8):
        own = own_items(population, number)[-LENGTH:]
        wanted = table @ ref.encode(shared, [table[i] for i in own])[-1] if own else np.zeros(len(table))
        np.testing.assert_allclose(scores[number], wanted, rtol=2e-5, atol=1e-5)


def test_a_history_of_one_item_teaches_nothing():
    """Nothing comes next: the update is 0, and no number is not finite."""
    population = build(np.array([0, 1, 3]), np.array([2, 0, 1]), None, 5)
    algorithm = fedsasrec(**(SETTINGS | {"regularisation": 0.0}))
    state = algorithm.init(jax.random.key(KEY), population)
    update = client_update(algorithm, jax.random.key(KEY), state, population, 0)
    assert all(not np.asarray(x).any() for x in jax.tree.leaves((update.shared, update.rows)))


@pytest.mark.parametrize("changes", [{"max_length": 0}, {"num_negatives": 0}, {"blocks": 0}])
def test_bad_settings(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} must be at least 1"):
        fedsasrec(**changes)
