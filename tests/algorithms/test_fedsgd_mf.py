"""Gradient-upload matrix factorisation against the numpy reference, and against its authors' logged numbers.

The logged loss is the **mean squared error of the 109 training ratings after the last round**, without the
regularisation; the logged RMSE is that of the 21 test ratings. Both are those of the user vectors after, and the
item vectors after, round 175.
"""

import csv
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.algorithms.fedsgd_mf import fedsgd_mf
from fedjax_rec.client.population import build
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.training.seeds import train
from tests.references import fedsgd_mf as ref

QUANTUM = 16.0**-5
LOSS = 0.7329103787105489
RMSE = 1.3965372  # result/FedMF-Full.txt of the authors' repository
ITEMS = 40


@pytest.fixture(scope="module")
def clients(shared_data):
    """The authors' extract: first 10 users x the 40 most rated films; a user's last 3 ratings by time test."""
    with (shared_data / "ml-latest-small" / "ratings.csv").open(encoding="utf-8") as file:
        rows = [(int(r["userId"]), r["movieId"], float(r["rating"]), int(r["timestamp"]))
                for r in csv.DictReader(file)]  # fmt: skip
    films = [film for film, _ in Counter(film for _, film, _, _ in rows).most_common(ITEMS)]
    histories = []
    for user in range(1, 11):
        own = sorted((r for r in rows if r[0] == user and r[1] in films), key=lambda r: r[3])
        if len(own) >= 5:
            histories.append([(films.index(film), rating) for _, film, rating, _ in own])
    training = [h[:-3] for h in histories]
    test = [h[-3:] for h in histories]
    assert (len(training), sum(map(len, training)), sum(map(len, test))) == (7, 109, 21)
    return training, test


def population_of(clients):
    """The library's side of the same ratings."""
    flat = [pair for ratings in clients for pair in ratings]
    offsets = np.cumsum([0, *map(len, clients)])
    return build(offsets, np.array([i for i, _ in flat]), np.array([r for _, r in flat]), ITEMS)


def run_library(clients, rounds, **settings: Any) -> Any:
    """User and item vectors after the rounds, all clients in each."""
    algorithm = fedsgd_mf(sampler=everyone(), **settings)
    state, _ = jax.jit(lambda key, data: train(key, algorithm, data, rounds))(
        jax.random.key(0), population_of(clients)
    )
    return np.asarray(state.private["vector"], np.float64), np.asarray(
        state.server.tables["vector"], np.float64
    )


def measure(vectors: Any, training, test):
    """The logged loss and RMSE."""
    users, items = vectors
    of = [ref.squared_errors(users, items, ratings).mean() for ratings in (training, test)]
    return of[0], np.sqrt(of[1])


@pytest.mark.parametrize(
    ("quantum", "loss", "rmse"), [(QUANTUM, LOSS, RMSE), (0.0, 0.7329112591888, 1.396541554397)]
)
def test_the_authors_numbers(clients, quantum, loss, rmse):
    """Loss and RMSE of the authors' log, and without their fixed point: 1.2e-6 apart, told apart by 5e-7."""
    training, test = clients
    start = np.full((len(training), 100), 0.01), np.full((ITEMS, 100), 0.01)
    reference = measure(ref.run(ref.Setting(quantum=quantum), *start, training, 175), training, test)
    np.testing.assert_allclose(reference, (loss, rmse), rtol=1e-7)  # the log's RMSE is a float32
    found = measure(run_library(training, 175, constant=0.01, quantum=quantum), training, test)
    np.testing.assert_allclose(found, (loss, rmse), rtol=5e-7)


@pytest.fixture(scope="module")
def drawn():
    """Five clients of 1 to 25 ratings, the order of the items at random."""
    rng = np.random.default_rng(3)
    lengths = (7, 1, 25, 0, 12)
    return [
        list(zip(rng.permutation(ITEMS)[:n].tolist(), rng.integers(1, 6, n).astype(float), strict=True))
        for n in lengths
    ]


def compare(drawn, setting):
    """Largest difference from the reference after 5 rounds from random vectors, relative to the largest number."""
    settings: dict[str, Any] = {"dim": 6, "batch_size": 4, "learning_rate": 0.02, "regularisation": 0.05}
    settings |= {"init_scale": 1.0}
    algorithm = fedsgd_mf(sampler=everyone(), **settings)
    first = algorithm.init(jax.random.key(0), population_of(drawn))
    start = (
        np.asarray(first.private["vector"], np.float64),
        np.asarray(first.server.tables["vector"], np.float64),
    )
    wanted = ref.run(setting, *start, drawn, 5)
    got = run_library(drawn, 5, **settings)
    return max(np.abs(g - w).max() / np.abs(w).max() for g, w in zip(got, wanted, strict=True))


def test_equals_the_reference(drawn):
    """Random vectors, ragged clients, several local batches: 1e-5 in float32."""
    assert compare(drawn, ref.Setting(0.02, 0.05)) < 1e-5


def test_a_wrong_reference_disagrees(drawn):
    """The same with the item gradient from the user vector before its step."""
    assert compare(drawn, ref.Setting(0.02, 0.05, updated_user=False)) > 1e-3


def test_the_order_of_the_data_counts(drawn):
    """The pass over the ratings is sequential: reversed, it ends elsewhere."""
    settings = {"dim": 6, "batch_size": 4, "learning_rate": 0.02, "init_scale": 1.0}
    backwards = run_library([ratings[::-1] for ratings in drawn], 5, **settings)
    assert np.abs(backwards[0] - run_library(drawn, 5, **settings)[0]).max() > 1e-4


def test_what_is_sent_is_a_multiple_of_the_quantum(drawn):
    """Every number of the item table stays on the grid."""
    items = run_library(drawn, 3, dim=6, quantum=2.0**-10)[1]
    assert jnp.array_equal(items * 2**10, np.round(items * 2**10))


@pytest.mark.parametrize(
    ("settings", "says"), [({"dim": 0}, "dim must be at least 1"), ({"quantum": -1.0}, "quantum")]
)
def test_bad_settings(settings, says):
    with pytest.raises(ValueError, match=says):
        fedsgd_mf(**settings)
