"""FedNova: identities, and rounds against a numpy reference."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.fednova import accumulation_norm
from fedjax_rec.client.population import build
from fedjax_rec.testing import fixed, tiny_population
from tests.references import fednova as nova
from tests.references import rounds as ref

KEY = jax.random.key(5)
ROUNDS = 2
COHORT = (0, 5, 3, 7, 11, 2)  # client 3 has no data
SMALL: dict[str, Any] = {
    "dim": 4,
    "num_negatives": 2,
    "batch_size": 9,
    "local_epochs": 2,
    "init_scale": 1.0,
    "lanes": 3,
}
SETTING = ref.Setting(ref.factorisation, rate=0.05, epochs=2, regularisation=0.02)
SOLVERS: dict[str, dict[str, Any]] = {"sgd": {}, "momentum": {"momentum": 0.7}, "proximal": {"prox": 0.5}}


def _worst(solver, rows, setting, aggregate):
    population = tiny_population()
    changes = SOLVERS[solver]
    algorithm = fr.fednova(
        learning_rate=0.05, regularisation=0.02, per_row=rows, sampler=fixed(COHORT), **SMALL, **changes
    )
    first, *states = ref.run_engine(algorithm, population, KEY, ROUNDS)
    start = values = ref.read(first)
    apart = []
    for round_, state in enumerate(states):
        cohort = ref.draw(algorithm, population, KEY, round_, COHORT, positives=3)
        values = ref.run_round(setting, *values, cohort, partial(aggregate, setting))
        apart.append(ref.deviation(ref.read(state), values, start))
    return max(apart)


@pytest.mark.parametrize(
    ("solver", "rows"),
    [("sgd", True), ("momentum", True), ("momentum", False), ("proximal", True), ("proximal", False)],
)
def test_rounds_equal_the_reference(solver, rows):
    """Each local solver, rows by the letter and over their touchers."""
    setting = SETTING._replace(**SOLVERS[solver])
    assert _worst(solver, rows, setting, nova.per_row if rows else nova.by_letter) <= 1


def test_a_wrong_reference_disagrees():
    """Momentum that does not count in a_i."""

    def forgetful(setting, sent):
        return nova.by_letter(setting._replace(momentum=0.0), sent)

    assert _worst("momentum", False, SETTING._replace(momentum=0.7), forgetful) > 10


@pytest.mark.parametrize("solver", SOLVERS)
def test_closed_forms_equal_the_sums(solver):
    """|a|_1 against the sum over the steps' shares."""
    setting = SETTING._replace(**SOLVERS[solver])
    reach = accumulation_norm(setting.rate, setting.momentum, setting.prox)
    for steps in (1, 2, 7, 40):
        wanted = np.abs(nova.accumulation(setting, steps)).sum()
        assert float(reach(jnp.float32(steps))) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("prox", [1e-9, 1e-6, 1e-2, 15.0])
def test_any_pull_has_its_reach(prox):
    """From a pull that is as good as none to one that all but undoes a step."""
    setting = SETTING._replace(prox=prox)
    wanted = np.abs(nova.accumulation(setting, 10)).sum()
    assert float(accumulation_norm(setting.rate, 0.0, prox)(jnp.float32(10))) == pytest.approx(
        wanted, rel=1e-5
    )


def _equal_and_ragged():
    random = np.random.default_rng(0)
    counts = {"equal": [6] * 8, "ragged": [1, 2, 9, 6, 12, 3, 6, 9]}
    for name, numbers in counts.items():
        items = np.concatenate([random.choice(30, n, replace=False) for n in numbers])
        yield name, build(np.concatenate([[0], np.cumsum(numbers)]), items, None, 30)


def test_equal_steps_give_federated_averaging():
    """Where all tau_i are equal, the rule is FedAvg weighted by examples; where they differ, it is not."""
    sampler = fixed(range(8))
    nova_like = fr.fednova(learning_rate=0.05, per_row=False, sampler=sampler, **SMALL)
    plain = fr.fedmf(learning_rate=0.05, aggregator="examples", sampler=sampler, **SMALL)
    apart = {}
    for name, population in _equal_and_ragged():
        got = ref.read(ref.run_engine(nova_like, population, KEY, 2)[-1])
        first, *_, last = ref.run_engine(plain, population, KEY, 2)
        apart[name] = ref.deviation(got, ref.read(last), ref.read(first))
    assert apart["equal"] <= 1
    assert apart["ragged"] > 100


@pytest.mark.parametrize("settings", [{"momentum": 1.0}, {"momentum": 0.5, "prox": 0.1}])
def test_solvers_without_a_closed_form_are_refused(settings):
    with pytest.raises(ValueError, match="momentum="):
        fr.fednova(**settings)


def test_a_pull_that_overshoots_is_refused():
    with pytest.raises(ValueError, match="must be below 1, or the pull overshoots; lower prox=20"):
        fr.fednova(prox=20.0, learning_rate=0.1)


@pytest.mark.parametrize("rate", [0.0, -1.0])
def test_rates_of_nothing_are_refused(rate):
    with pytest.raises(ValueError, match="learning_rate must be above 0"):
        fr.fednova(learning_rate=rate)
