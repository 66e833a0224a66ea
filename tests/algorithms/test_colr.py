"""CoLR: rounds against a numpy reference, full rank against `fedmf`, and what a client uploads."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.federation.traffic import count_traffic, upload_of
from fedjax_rec.testing import fixed, tiny_population
from fedjax_rec.types import RoundInfo
from tests.references import colr as low
from tests.references import rounds as ref

KEY = jax.random.key(2)
ROUNDS = 3
RATE = 0.1
COHORT = (0, 5, 3, 7, 11, 2)  # client 3 has no data
SMALL: dict[str, Any] = {
    "dim": 6, "num_negatives": 2, "batch_size": 9, "local_epochs": 2, "init_scale": 1.0, "lanes": 3,
    "learning_rate": RATE, "regularisation": 0.02, "sampler": fixed(COHORT),
}  # fmt: skip
SETTING = ref.Setting(ref.factorisation, RATE, epochs=2, regularisation=0.02)


def _worst(setting, basis_of=lambda bases, round_: bases[round_]):
    population = tiny_population()
    algorithm = fr.colr(rank=2, **SMALL)
    first, *states = ref.run_engine(algorithm, population, KEY, ROUNDS)
    shared, tables, users = ref.read(first)
    bases = [shared["basis"]]
    start = (tables["vector"], users)
    values = start
    apart = []
    for round_, state in enumerate(states):
        cohort = ref.draw(algorithm, population, KEY, round_, COHORT, positives=3)
        values = low.run_round(setting, *values, basis_of(bases, round_), cohort)
        shared, tables, users = ref.read(state)
        bases.append(shared["basis"])
        apart.append(ref.deviation((tables["vector"], users), values, start))
    return max(apart)


def test_rounds_equal_the_reference():
    """Three rounds, each in a subspace of its own."""
    assert _worst(SETTING) <= 1


def test_a_wrong_reference_disagrees():
    """A basis that is never drawn again, and a rate that is a little off."""
    assert _worst(SETTING, lambda bases, _: bases[0]) > 10
    assert _worst(SETTING._replace(rate=1.01 * RATE)) > 10


def test_full_rank_is_federated_averaging():
    """With r = D, B is orthonormal and sqrt(D / r) = 1: A B spans all changes, so a round is one of `fedmf`."""
    population = tiny_population()
    low_rank = fr.colr(rank=6, **SMALL)
    plain = fr.fedmf(item_bias=False, aggregator="touchers", **SMALL)
    first, last = ref.run_engine(low_rank, population, KEY, 1)
    (state,) = ref.run_engine(plain, population, KEY, 0)
    assert ref.deviation(state.private, first.private, first.private) <= 1
    state = state._replace(server=state.server._replace(tables=first.server.tables))
    state, _ = jax.jit(plain.round)(KEY, state, population)
    got, wanted, start = ((s.server.tables, s.private) for s in (last, state, first))
    assert ref.deviation(*(jax.tree.map(np.asarray, x) for x in (got, wanted, start))) <= 2


def test_bases_are_orthonormal_and_new_each_round():
    """B B^T = D / r, after every round; another run draws others."""
    population = tiny_population()
    algorithm = fr.colr(rank=2, **SMALL)
    states = ref.run_engine(algorithm, population, KEY, 2)
    states += ref.run_engine(algorithm, population, jax.random.key(1), 0)
    bases = [np.asarray(state.server.shared["basis"]) for state in states]
    for n, basis in enumerate(bases):
        np.testing.assert_allclose(basis @ basis.T, 3 * np.eye(2), atol=1e-5)
        assert all(np.abs(basis - other).max() > 0.1 for other in bases[:n])


def test_a_row_costs_r_floats_on_the_way_up():
    """And D on the way down, with the basis and the words of its key."""
    population = tiny_population()
    algorithm = fr.colr(rank=2, **SMALL)
    (state,) = ref.run_engine(algorithm, population, KEY, 0)
    info = RoundInfo(*[jnp.zeros(1)] * 12)._replace(rows=jnp.array([30.0]), clients=jnp.array([3]))
    traffic = count_traffic(state.server, info, upload_of(algorithm, population, state))
    assert traffic.up == (10 * 2 * 32 + 10 * 6) / 8  # 40 items: 6 bits an id
    assert traffic.down == (10 * 6 + 2 * 6 + 2) * 4


def test_a_rank_above_the_width_is_refused():
    with pytest.raises(ValueError, match=r"rank=9 exceeds dim=6; lower the rank"):
        fr.colr(dim=6, rank=9)
