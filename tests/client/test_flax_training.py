"""A flax module trains as the same layers written by hand do, and what no round can carry is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_rec as fr
from fedjax_rec.client import examples
from fedjax_rec.errors import ParameterError
from fedjax_rec.testing import tiny_population
from fedjax_rec.types import Client

COUNTS = np.array([5, 0, 3, 8])


@pytest.fixture(scope="module")
def population():
    """Four clients, one without data."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(COUNTS.sum(), 3)).astype(np.float32)
    return fr.Population.from_arrays({"x": features, "y": features @ np.array([1.0, -2.0, 0.5])}, COUNTS)


def squares(network, params, batch):
    """The sum of squares, which uses nothing private."""
    del params
    error = network(batch.data["x"])[:, 0] - batch.data["y"]
    return (batch.data["mask"] * error**2).sum(), batch.data["mask"].sum()


def by_hand(params, batch):
    """The same of an affine map."""
    output = batch.data["x"] @ params.shared["kernel"] + params.shared["bias"][None, :]
    error = output[:, 0] - batch.data["y"]
    return (batch.data["mask"] * error**2).sum(), batch.data["mask"].sum()


def after(model, work, population, rounds=5):
    """The server's leaves after some rounds of all clients."""
    algorithm = fr.federate(model, work, cohort=4, aggregator="examples")
    state, history = fr.simulate(algorithm, population, rounds=rounds, seed=0, eval_every=rounds)
    return state.server, history


def test_equals_layers_by_hand(population):
    """Two epochs of SGD on batches of two: the same weights to 1e-6, and a loss that falls."""
    model, work = fr.flax_training(
        nn.Dense(1), squares, optax.sgd(0.05), examples(2), inputs=jnp.zeros((1, 3)), epochs=2
    )
    ours, history = after(model, work, population)
    hand, _ = after(model, fr.local_training(by_hand, optax.sgd(0.05), examples(2), epochs=2), population)
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), ours, hand)
    assert history.rounds.loss[-1] < 0.3 * history.rounds.loss[0]


def test_every_example_once(population):
    """The batches of a client hold each of its examples once, and nobody else's."""
    last = Client(jnp.int32(3), jnp.int32(8), jnp.int32(8), jnp.zeros(2, jnp.uint32))
    cut = examples(3)
    batches = [cut.batch(last, population, jnp.int32(t)) for t in range(int(cut.num_batches(8)))]
    seen = np.concatenate([batch.data["y"][np.asarray(batch.data["mask"]) > 0] for batch in batches])
    assert sorted(seen) == sorted(np.asarray(population.examples["y"])[8:])
    assert [float(batch.data["mask"].sum()) for batch in batches] == [3, 3, 2]


def test_a_recommender_on_a_module():
    """Private vectors and rows go through a module with dropout: it is scored, and a key makes it differ."""

    class Pairs(nn.Module):
        """A pair's logit."""

        @nn.compact
        def __call__(self, x, *, train=False):
            return nn.Dense(1)(nn.Dropout(0.5, deterministic=not train)(x))[:, 0]

    def pairs(user, vectors):
        return jnp.concatenate([vectors * user[None, :], vectors], axis=1)

    def loss(network, params, batch, key):
        inputs = pairs(params.private["user"], params.tables["vector"])
        logits = network(inputs, train=True, rngs={"dropout": key})
        fit = optax.sigmoid_binary_cross_entropy(logits, batch.data["label"])
        return (batch.data["mask"] * fit).sum(), batch.data["mask"].sum()

    model, work = fr.flax_training(
        Pairs(),
        loss,
        optax.sgd(0.1),
        fr.client.with_negatives(10, 1, labels=True),
        inputs=jnp.zeros((1, 4)),
        init_private=lambda key: {"user": jax.random.normal(key, (2,))},
        init_tables=lambda key, population: {"vector": jax.random.normal(key, (population.num_items, 2))},
        score=lambda network, private, tables: network(pairs(private["user"], tables["vector"])),
    )
    algorithm = fr.federate(model, work, cohort=8)
    population = tiny_population()
    state = algorithm.init(jax.random.key(0), population)
    first, _ = algorithm.round(jax.random.key(0), state, population)
    assert algorithm.score is not None
    assert algorithm.score({"user": first.private["user"][0]}, first.server).shape == (40,)
    other, _ = algorithm.round(jax.random.key(1), state, population)
    assert not np.allclose(first.server.shared["Dense_0"]["kernel"], other.server.shared["Dense_0"]["kernel"])


def test_refused():
    """Running statistics, what is no module of linen, and a loss that fails name the way out."""
    with pytest.raises(ParameterError, match=r"module holds batch_stats besides parameters.*GroupNorm"):
        fr.flax_training(
            nn.BatchNorm(use_running_average=True),
            squares,
            optax.sgd(0.1),
            examples(),
            inputs=jnp.zeros((1, 3)),
        )
    with pytest.raises(ParameterError, match=r"must be a module of flax\.linen.*nnx\.split"):
        fr.flax_training(lambda x: x, squares, optax.sgd(0.1), examples(), inputs=jnp.zeros((1, 3)))
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        examples(0)


def test_a_wrong_input_is_told_with_the_loss(population):
    """The line of the user's loss stands in the error, not that of a wrapper."""
    model, work = fr.flax_training(
        nn.Dense(1), squares, optax.sgd(0.1), examples(2), inputs=jnp.zeros((1, 7))
    )
    with pytest.raises(ParameterError, match=r"the loss squares \(test_flax_training.py, line \d+\) fails"):
        after(model, work, population, rounds=1)
