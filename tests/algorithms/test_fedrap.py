"""FedRAP against its numpy reference, with every term of its loss, and the number that it is known for."""

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from tests.references import fedrap as ref
from tests.references.catalogue_rounds import double, play

SIZE = 8
SETTING = ref.Setting(
    epochs=4,
    head_rate=0.3,
    table_rate=2.0,
    independence=0.2,
    sparsity=0.3,
    regularisation=0.01,
    round_decay=0.9,
    step_decay=0.95,
    tolerance=0.1,
    curriculum=True,
)


def _make(setting: ref.Setting, **federation):
    """The library's side of a setting."""
    values = setting._asdict()
    values["local_epochs"] = values.pop("epochs")
    values["learning_rate"] = values.pop("head_rate")
    return fr.fedrap(dim=3, num_negatives=3, batch_size=SIZE, lanes=2, **values, **federation)


def _read(state) -> tuple[list[ref.Client], np.ndarray]:
    private = double(state.private)
    common = double(state.server.tables["vector"])
    leaves = zip(private["vector"], private["head"]["weights"], private["head"]["bias"], strict=True)
    return [ref.Client(*client) for client in leaves], common


@pytest.fixture(scope="module", params=[SETTING, SETTING._replace(tolerance=0.0, curriculum=False)])
def played(request):
    """A setting, and the library's rounds with it."""
    return request.param, play(_make(request.param), SIZE)


def _differences(setting, played) -> list[float]:
    """Largest difference of any leaf after each round, relative to how far training moved the tables."""
    states, infos, drawn = played
    clients, common = _read(states[0])
    moved = np.abs(_read(states[-1])[1] - common).max()
    found = []
    for round_, (state, info) in enumerate(zip(states[1:], infos, strict=True)):
        clients, common, loss, _ = ref.run_round(setting, round_, clients, common, drawn[round_])
        others, other = _read(state)
        apart = [np.abs(common - other).max(), abs(loss - float(info.loss))]
        for one, two in zip(clients, others, strict=True):
            pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
            apart += [np.abs(a - b).max() for a, b in pairs]
        found.append(max(apart) / moved)
    return found


def test_rounds_equal_the_reference(played):
    """All leaves and the loss, with mini-batches, rates that shrink, early stops and the curriculum."""
    setting, rounds = played
    assert max(_differences(setting, rounds)) < 1e-5


def test_clients_stop_early(played):
    """The examples that were visited are those of the reference, fewer where it stops before the last epoch."""
    setting, (states, infos, drawn) = played
    clients, common = _read(states[0])
    for round_, info in enumerate(infos):
        clients, common, _, visited = ref.run_round(setting, round_, clients, common, drawn[round_])
        assert float(info.examples) == visited
        most = setting.epochs * sum(len(batch) for batches in drawn[round_].values() for batch in batches)
        assert visited == most if setting.tolerance == 0 else visited < most


@pytest.mark.parametrize(
    "wrong", [{"independence": 0.0}, {"sparsity": 0.0}, {"regularisation": 0.0}, {"step_decay": 1.0}]
)
def test_a_wrong_reference_disagrees(played, wrong):
    """Each term counts."""
    setting, rounds = played
    assert max(_differences(setting._replace(**wrong), rounds)) > 1e-3


def test_the_server_counts_rounds(played):
    """The clients' rates know the round from it."""
    assert [float(state.server.shared["round"]) for state in played[1][0]] == [0, 1, 2, 3]
