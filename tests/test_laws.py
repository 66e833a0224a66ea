"""The laws of the architecture, over every registered algorithm and its main settings."""

from functools import partial
from typing import Any

import optax
import pytest

import fedjax_rec as fr
from fedjax_rec import engine
from fedjax_rec.experiment import FACTORIES
from fedjax_rec.settings import ALGORITHMS
from fedjax_rec.testing import LAWS, assert_close, run, tiny_population

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "cohort": 12}
CASES = {
    "fedmf": partial(fr.fedmf, **SMALL),
    "fedmf, 3 epochs, bpr": partial(fr.fedmf, loss="bpr", local_epochs=3, **SMALL),
    "fedmf, ratings (a shared leaf)": partial(fr.fedmf, loss="mse", local_epochs=2, **SMALL),
    "fedmf, momentum": partial(
        fr.fedmf, local_optimizer=optax.sgd(0.01, momentum=0.9), local_epochs=2, **SMALL
    ),
    "fedmf, FedProx": partial(fr.fedmf, prox=0.5, learning_rate=0.1, local_epochs=2, **SMALL),
}
SOME = {  # cases that share most of their code with the first: the laws that their own part could break
    "fedmf, 3 epochs, bpr": {"lanes", "dense", "sum", "resume"},
    "fedmf, momentum": {"lanes", "dense"},
    "fedmf, FedProx": {"lanes", "dense"},
}


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _pairs():
    return [(c, law) for c in CASES for law in LAWS if law in SOME.get(c, LAWS)]


@pytest.mark.parametrize(("case", "law"), _pairs())
def test_law(case, law, population):
    """A law holds for an algorithm."""

    def make(**federation):
        kept = {k: v for k, v in CASES[case].keywords.items() if k not in federation}
        return fr.fedmf(**kept, **federation)

    LAWS[law](make, population)


def test_schedules_agree(population, monkeypatch):
    """Lanes and waves are two orders of the same work: one local epoch gives the same state on both."""

    def make():
        return fr.fedmf(local_optimizer=optax.sgd(0.05, momentum=0.9), lanes=4, **SMALL)

    on_lanes = run(make(), population)
    monkeypatch.setattr(engine, "run_lanes", engine.run_waves)
    assert_close(run(make(), population), on_lanes, "waves against lanes")


def test_every_registered_algorithm_is_under_law():
    """An algorithm cannot be registered without standing in CASES."""
    assert set(FACTORIES) == set(ALGORITHMS) == {name.split(",")[0] for name in CASES}
