"""Rounds on the rows that a cohort touches are the rounds over all rows, wherever the clients' histories are."""

from functools import lru_cache, partial
from typing import Any

import jax
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.engine.devices import client_mesh
from fedjax_rec.samplers.data_dependent import power_of_choice
from fedjax_rec.server.optimizers import fedadagrad
from fedjax_rec.server.resting import rest_untouched
from fedjax_rec.testing import assert_close, tiny_population
from tests.crosses import crossed

pytestmark = pytest.mark.as_compiled

KEY = jax.random.key(3)
SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "num_negatives": 1}
MAKES: dict[str, Any] = {
    "plain": partial(fr.fedmf, cohort=5, **SMALL),
    "epochs": partial(fr.fedmf, cohort=5, local_epochs=3, aggregator="touchers", **SMALL),
    "local adam": partial(fr.fedmf, cohort=5, local_optimizer=optax.adam(0.01), aggregator="mean", **SMALL),
    "adagrad": partial(fr.fedmf, cohort=5, server_optimizer=fedadagrad(0.1), **SMALL),
    "lazy adam": partial(fr.fedmf, cohort=5, server_optimizer=rest_untouched(optax.adam(0.1)), **SMALL),
    "clip": partial(fr.fedmf, cohort=5, transform=fr.transforms.clip(0.05), **SMALL),
    "losses": partial(fr.fedmf, sampler=power_of_choice(9, cohort=5), **SMALL),
    "faults": partial(
        fr.fedmf, cohort=6, faults=fr.Faults(drop_out=0.2, spread=0.5, deadline=8.0, partial=True), **SMALL
    ),
    "ratings": partial(fr.fedmf, loss="mse", cohort=5, dim=3, batch_size=10),
    "change": partial(fr.fedmf, cohort=5, aggregator="change", **SMALL),
    "fedncf": partial(fr.fedncf, dim=4, layers=1, cohort=5, aggregator="rows", num_negatives=1),
    "fedper": partial(fr.fedper, dim=3, cohort=5, aggregator="rows", num_negatives=1),
}
ROUNDED = (
    "fedncf",
    "fedper",
)  # whose dense leaves are summed in another program, in other vector instructions


@pytest.fixture(autouse=True)
def _one_size(monkeypatch):
    """One size of compact tables, and so one program for all rounds: many would be those of a large catalogue."""
    monkeypatch.setattr("fedjax_rec.federation.row_finder.table_size", lambda _: 40)


def train(algorithm, data=None, rounds=4, **options):
    data = tiny_population() if data is None else data
    return fr.simulate(algorithm, data, rounds=rounds, seed=KEY, eval_every=2, **options)


def assert_same(found, expected):
    """Bit for bit."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@lru_cache(maxsize=1)  # cells of a name follow one another
def over_all_rows(name):
    state, history = train(MAKES[name](server_rows="all"))
    return state, history.rounds


@pytest.mark.parametrize(("name", "parts"), crossed(list(MAKES), [(24, 1), (2, 1), (4, 2)]))
def test_touched_rows_are_all_rows(name, parts):
    """Bit for bit in one chunk; to rounding where chunks and devices add up in another order."""
    size, devices = parts
    expected, infos = over_all_rows(name)
    algorithm = MAKES[name](server_rows="touched", stream_clients=size, mesh=client_mesh(devices))
    found, history = train(algorithm)
    assert history.plan.touched_rows is not None
    assert history.num_compilations == 1
    same = infos._replace(lane_steps=history.rounds.lane_steps)  # how lanes were filled is another matter
    if size < 24 or name in ROUNDED:
        assert_close(found, expected, name, 2e-5)
        assert_close(history.rounds, same, f"reports of {name}", 2e-5)
        return
    assert_same(found, expected)
    assert_close(history.rounds, same, f"reports of {name}", 1e-6)
