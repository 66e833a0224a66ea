"""SCAFFOLD: rounds against a numpy reference, and the paper's identity of the control variates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.samplers.data_independent import everyone
from fedjax_rec.testing import fixed, tiny_population
from tests.references import rounds as ref
from tests.references import scaffold as controlled

KEY = jax.random.key(4)
ROUNDS = 3
RATE = 0.05
GLOBAL = 1.5
BATCH = 9
PRESENT = 23  # of 24 clients, client 3 has no data
COHORTS = {"partial": (0, 5, 3, 7, 11, 2), "full": tuple(range(24))}
SETTING = ref.Setting(ref.factorisation, RATE, epochs=2, regularisation=0.02)


def _make(sampler, **changes):
    return fr.scaffold(
        dim=4, num_negatives=2, batch_size=BATCH, local_epochs=2, learning_rate=RATE, global_rate=GLOBAL,
        regularisation=0.02, init_scale=1.0, sampler=sampler, lanes=3, **changes,
    )  # fmt: skip


def _draw(algorithm, population, round_, ids):
    """Mini-batches as the library cuts them: by each example's place in a random order."""
    names = name_clients(jax.random.fold_in(stream(KEY, "client"), round_), jnp.asarray(ids), population)
    cut = jax.jit(jax.vmap(lambda client: algorithm.work.batches.batch(client, population, jnp.int32(0))))
    data = jax.tree.map(np.asarray, cut(names).data)
    clients = []
    for slot, i in enumerate(ids):
        label, mask, order = (data[name][slot] for name in ("label", "mask", "order"))
        count = int(mask.sum())
        sequence = np.argsort(order, kind="stable")[:count]
        batches = [sequence[at : at + BATCH] for at in range(0, count, BATCH)]
        if count:
            clients.append(ref.Client(i, int(label.sum()), [(b, label[b]) for b in batches]))
    return clients


def _read(state):
    _, tables, private = ref.read(state)
    users = [{name: leaf for name, leaf in own.items() if name != "control"} for own in private]
    control = tables["control"]
    x = {name: table for name, table in tables.items() if name != "control"}
    return controlled.State(x, control, users, [own["control"] for own in private])


def _worst(cohort, setting=SETTING, rate=GLOBAL, clients=PRESENT):
    population = tiny_population()
    ids = COHORTS[cohort]
    algorithm = _make(fixed(ids))
    first, *states = ref.run_engine(algorithm, population, KEY, ROUNDS)
    start = values = _read(first)
    apart = []
    for round_, state in enumerate(states):
        drawn = _draw(algorithm, population, round_, ids)
        values = controlled.run_round(setting, values, drawn, rate, clients)
        apart.append(ref.deviation(_read(state), values, start))
    return max(apart)


@pytest.mark.parametrize("cohort", COHORTS)
def test_rounds_equal_the_reference(cohort):
    """Items, private vectors, and both kinds of control variates, after every round."""
    assert _worst(cohort) <= 1


@pytest.mark.parametrize(
    "slip", [{"setting": SETTING._replace(epochs=1)}, {"rate": 1.0}, {"clients": len(COHORTS["partial"])}]
)
def test_a_wrong_reference_disagrees(slip):
    """An epoch too few, another global rate, and control variates averaged over the cohort."""
    assert _worst("partial", **slip) > 10


def test_under_full_participation_the_servers_control_is_the_clients_mean():
    """Section 4 of the paper: c = 1 / N sum_i c_i holds from round to round."""
    population = tiny_population()
    state = _read(ref.run_engine(_make(everyone()), population, KEY, 3)[-1])
    average = controlled.combine(lambda *c: sum(c) / PRESENT, *state.controls)
    assert ref.deviation(state.control, average, ref.combine(np.zeros_like, average)) <= 1


def test_under_partial_participation_too():
    """c keeps counting those who were not drawn: the identity needs no full cohort, as all start at 0."""
    state = _read(ref.run_engine(_make(None, cohort=5), tiny_population(), KEY, 4)[-1])
    average = controlled.combine(lambda *c: sum(c) / PRESENT, *state.controls)
    assert ref.deviation(state.control, average, ref.combine(np.zeros_like, average)) <= 1


def test_a_control_is_zero_where_a_client_has_no_data():
    """c_i+ is the client's own mean gradient: exactly 0 in rows that it did not visit in its last round."""
    population = tiny_population()
    algorithm = _make(fixed(COHORTS["partial"]))
    state = _read(ref.run_engine(algorithm, population, KEY, 2)[-1])
    (client,) = _draw(algorithm, population, 1, (5,))
    seen = np.unique(np.concatenate([items for items, _ in client.batches]))
    rest = np.setdiff1d(np.arange(population.num_items), seen)
    assert len(rest)
    assert not state.controls[5]["vector"][rest].any()
    assert state.controls[5]["vector"][seen].any()


def test_what_would_part_the_variates_is_refused():
    """The server's c is the clients' mean because it adds what they keep."""
    with pytest.raises(ValueError, match="a transform would part them"):
        fr.scaffold(transform=fr.transforms.clip(0.1))
    with pytest.raises(ValueError, match="learning_rate must be above 0, not 0"):
        fr.scaffold(learning_rate=0)
