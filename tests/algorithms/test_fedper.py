"""FedPer against a numpy reference of its rounds."""

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.testing import fixed, tiny_population
from tests.references import rounds as ref
from tests.references.networks import personalised

KEY = jax.random.key(3)
ROUNDS = 3
RATE = 0.05
COHORT = (0, 5, 3, 7, 11, 2)  # client 3 has no data
SETTING = ref.Setting(personalised, RATE, epochs=2, regularisation=0.02, scale=(0.8, 0.5))


def _worst(setting=SETTING, aggregate=ref.touchers, base=2, head=2, share=False):
    population = tiny_population()
    algorithm = fr.fedper(
        dim=5, base_layers=base, head_layers=head, num_negatives=2, batch_size=9, local_epochs=2,
        learning_rate=RATE, base_scale=0.5, head_scale=0.8, regularisation=0.02, sampler=fixed(COHORT), lanes=3,
    )  # fmt: skip
    first, *states = ref.run_engine(algorithm, population, KEY, ROUNDS)
    start = values = ref.read(first)
    apart = []
    for round_, state in enumerate(states):
        cohort = ref.draw(algorithm, population, KEY, round_, COHORT, positives=3)
        shared, tables, heads = ref.run_round(setting, *values, cohort, aggregate)
        if share:  # the slip: personalisation layers are averaged too
            average = ref.combine(lambda *x: sum(x) / len(x), *(heads[c.id] for c in cohort))
            heads = [average for _ in heads]
        values = shared, tables, heads
        apart.append(ref.deviation(ref.read(state), values, start))
    return max(apart)


@pytest.mark.parametrize(("base", "head"), [(2, 2), (0, 1)])
def test_rounds_equal_the_reference(base, head):
    """Base averaged, heads kept; also with the item table alone as the base, and a linear head."""
    assert _worst(base=base, head=head) <= 1


@pytest.mark.parametrize(
    "slip", [{"aggregate": ref.mean}, {"share": True}, {"setting": SETTING._replace(rate=1.01 * RATE)}]
)
def test_a_wrong_reference_disagrees(slip):
    """Rows averaged over everybody, heads that are shared, a rate that is a little off."""
    assert _worst(**slip) > 10


def test_heads_differ_and_never_leave():
    """Every client starts with a head of its own, and sends the base alone."""
    population = tiny_population()
    algorithm = fr.fedper(dim=4, head_layers=2, cohort=5)
    (state,) = ref.run_engine(algorithm, population, KEY, 0)
    last = np.asarray(state.private["head"][-1]["weights"])
    assert len(np.unique(last[:, 0, 0])) == population.num_clients
    update = fr.client_update(algorithm, KEY, state, population, 0)
    assert set(update.shared) == {"base"}
    assert set(update.rows) == {"vector"}
