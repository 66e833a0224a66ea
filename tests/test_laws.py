"""The laws of the architecture, over every registered algorithm and its main settings."""

from functools import lru_cache
from pathlib import Path
from typing import Any

import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import accepted, factory_of, names
from fedjax_rec.engine import cohort as engine
from fedjax_rec.testing import LAWS, assert_close, run, tiny_population
from tests.laws import BRIEF

SMALL: dict[str, Any] = {"dim": 3, "batch_size": 10, "cohort": 12}
CASES: dict[str, dict[str, Any]] = {  # "factory, variant": its settings
    "fedmf": SMALL,
    "fedmf, 3 epochs, bpr": {"loss": "bpr", "local_epochs": 3, **SMALL},
    "fedmf, ratings (a shared leaf)": {"loss": "mse", "local_epochs": 2, **SMALL},
    "fedmf, momentum": {"local_optimizer": optax.sgd(0.01, momentum=0.9), "local_epochs": 2, **SMALL},
    "fedmf, FedProx": {"prox": 0.5, "learning_rate": 0.1, "local_epochs": 2, **SMALL},
    "fcf": SMALL,  # weights by the size of the data
    "fedals": SMALL,
    "fedals, memory": {"memory": 0.5, "regularisation": 0.02, "unobserved": 0.3, **SMALL},
    "fedease": {"cohort": 12},
    "fedease, memory": {"memory": 0.5, "cohort": 12},
    "fedrec, hybrid": {"averaging_rounds": 0, "local_steps": 2, "learning_rate": 0.1, **SMALL},
    "fedrec, denoised": {"denoise": True, "local_steps": 0, **SMALL},
    "fedrecon": {**SMALL, "batch_size": 3},
    "fedrecon, implicit": {"loss": "bce", "recon_epochs": 2, **SMALL},
    "fedsgd_mf": SMALL,
    "fedncf": {"layers": 1, **SMALL},
    "fedncf, gmf, 2 epochs": {"architecture": "gmf", "local_epochs": 2, "aggregator": "mean", **SMALL},
    "fedper": {"base_layers": 1, **SMALL},
    "fednova": {"local_epochs": 2, **SMALL},
    "fednova, by the letter": {"per_row": False, "momentum": 0.5, **SMALL},
    "colr": {"rank": 2, **SMALL},
    "scaffold": {"local_epochs": 2, **SMALL},
    "fedgnn": {"learning_rate": 0.02, "local_epochs": 2, **SMALL},
    "fedtwotower": {"hidden": 4, "spreadout": 0.01, **SMALL},
    "fedsasrec": {"dim": 4, "max_length": 6, "cohort": 12},
    "fedsasrec, Adam, 2 blocks": {
        "local_optimizer": optax.adam(0.01),
        "local_epochs": 2,
        "blocks": 2,
        "num_negatives": 3,
        "dim": 4,
        "max_length": 6,
        "cohort": 12,
    },
    "pfedrec": {"item_factor": 2.0, **SMALL},
    "pfedrec, 2 epochs": {"item_factor": 2.0, "local_epochs": 2, **SMALL},
    "fedrap": {"table_rate": 10.0, "learning_rate": 0.1, "local_epochs": 3, **SMALL},
    "gpfedrec": {**SMALL, "item_factor": 2.0, "dim": 16},
}
CASES |= {  # whoever is registered stands under law, in small
    name: {setting: value for setting, value in SMALL.items() if setting in accepted(name)}
    for name in names()
    if not any(case.split(",")[0] == name for case in CASES)
}
SOME = {  # cases that share most of their code with the first: the laws that their own part could break
    "fedmf, ratings (a shared leaf)": {"lanes", "mesh", "padding", "dense", "absent", "private", "sum"},
    "fedmf, 3 epochs, bpr": {"lanes", "dense", "sum", "resume"},
    "fedmf, momentum": {"lanes", "dense"},
    "fedmf, FedProx": {"lanes", "dense"},
    "fedals, memory": {"lanes", "resume", "seeds"},
    "fedease, memory": {"lanes", "resume", "seeds"},
    "fedrec, denoised": {"lanes", "mesh", "sum", "private"},
    "fedrecon, implicit": {"lanes", "sum", "resume"},
    "fedncf, gmf, 2 epochs": {"lanes", "dense", "sum"},
    "fednova, by the letter": {"lanes", "mesh", "seeds"},
    "scaffold": set(LAWS) - {"dense", "padding"},  # its server divides by N: one client more is seen by all
    "fedsasrec, Adam, 2 blocks": {"lanes", "dense", "resume"},
    "pfedrec, 2 epochs": {"lanes", "sum", "resume"},
}
NOT_SPARSE: dict[str, str] = {  # factory: why law 5, of a loss that is descended, has no meaning
    "fcf": "every client has a gradient for every item",
    "fedrec": "its step is one of full-batch descent and its upload a gradient",
    "fedrecon": "trains user and items in turn, on two halves",
    "fedsgd_mf": "passes the ratings one by one: its numpy reference holds every row",
    "fedals": "descends no loss: both sides are solved exactly",
    "fedease": "descends no loss: the server inverts a sum",
    "fednova": "its aggregator is the method, and its local training that of fedmf",
    "colr": "what it sends has a shape of its own: at full rank it equals fedmf",
    "scaffold": "its corrections move every row: its numpy reference holds them all",
    "fedgnn": "gradients of all batches meet in the pooled history: its twin differentiates a whole client",
    "fedtwotower": "as fedgnn",
    "pfedrec": "head and rows descend one after the other, each its own loss; its reference trains densely",
    "fedrap": "trains the whole catalogue: all rows decay",
    "gpfedrec": "trains the whole catalogue: all rows are pulled",
}

VARIANTS = (
    "fedmf, ratings (a shared leaf)",
    "fedals, memory",
    "fedsasrec, Adam, 2 blocks",
)  # of each kind one


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def _is_sparse(case):
    """Whether law 5 applies: the work descends one loss, and nobody says why it would have no meaning."""
    name = case.split(",")[0]
    return name not in NOT_SPARSE and factory_of(name)(**CASES[case]).work.descent is not None


def _pairs():
    laws = {case: set(LAWS) - (set() if _is_sparse(case) else {"dense"}) for case in CASES}
    pairs = [(case, law) for case in CASES for law in LAWS if law in SOME.get(case, laws[case])]
    first = {case.split(",")[0]: case for case in reversed(CASES)}.values()
    spared = [case not in {*first, *VARIANTS} for case, _ in pairs]
    why = pytest.mark.thorough("the laws hold for its algorithm with other settings")
    return [
        pytest.param(*pair, marks=why if spare else ()) for pair, spare in zip(pairs, spared, strict=True)
    ]


@lru_cache(maxsize=1)  # the laws of a case share their programs
def _maker(case):
    def make(**federation):
        kept = {name: value for name, value in CASES[case].items() if name not in federation}
        return factory_of(case.split(",")[0])(**kept, **federation)

    return make


@pytest.mark.parametrize(("case", "law"), _pairs())
def test_law(case, law, population):
    """A law holds for an algorithm."""

    (LAWS if case == "fedmf" else LAWS | BRIEF)[law](_maker(case), population)


def test_schedules_agree(population, monkeypatch):
    """Lanes and waves are two orders of the same work: one local epoch gives the same state on both."""

    def make():
        return fr.fedmf(local_optimizer=optax.sgd(0.05, momentum=0.9), lanes=4, **SMALL)

    on_lanes = run(make(), population)
    monkeypatch.setattr(engine, "run_lanes", engine.run_waves)
    assert_close(run(make(), population), on_lanes, "waves against lanes")


def test_every_registered_algorithm_is_under_law():
    """An algorithm cannot be registered without standing in CASES."""
    assert set(names()) == {name.split(",")[0] for name in CASES}


def test_every_registered_algorithm_has_a_reference():
    """The test of its name holds it against slow plain numpy, of the same name or shared with others."""
    tests = Path(__file__).parent
    for name in names():
        own = (tests / "references" / f"{name}.py").is_file()
        text = (tests / "algorithms" / f"test_{name}.py").read_text(encoding="utf-8")
        assert own or "tests.references" in text, name
