"""fedjax_rec: a JAX-accelerated, vectorized simulator of federated recommender systems.

A federated algorithm is one client's work, written for one client; everything that makes it federated is a value
passed to `federate`. The quick start of the README shows the main path:

    load_dataset -> leave_one_out -> fedmf(...) -> simulate -> frame, make_evaluator

Here are the algorithms and what most scripts need; everything else is in the wings: `fr.data`, `fr.client`,
`fr.samplers`, `fr.transforms`, `fr.server`, `fr.federation`, `fr.attacks`, `fr.privacy`, `fr.evaluation`,
`fr.training`, and `fr.runs` for whole experiments and their folders. Each is imported when it is asked for first.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedjax_rec.startup import guard_imports

guard_imports()  # first: what follows takes seconds

if TYPE_CHECKING:
    from fedjax_rec import (
        algorithms,
        attacks,
        client,
        data,
        engine,
        evaluation,
        federation,
        privacy,
        rows,
        runs,
        samplers,
        server,
        training,
        transforms,
        types,
    )
    from fedjax_rec.algorithms import *
    from fedjax_rec.client import Population, flax_training, local_training, open_population, population_of
    from fedjax_rec.data import Dataset, Interactions, from_frame, leave_one_out, load_dataset, read_table
    from fedjax_rec.engine import client_mesh, initialize_distributed, use_cores
    from fedjax_rec.evaluation import make_evaluator
    from fedjax_rec.evaluation import run_baselines as baselines
    from fedjax_rec.federation import Faults, FedBuff, client_update, federate
    from fedjax_rec.runs import evaluate, fit, load, plots, recommend, top_k
    from fedjax_rec.runs import save_model as save
    from fedjax_rec.training import Stop, frame, progress_bar, simulate, sweep, train_seeds
    from fedjax_rec.training.checkpoints import Checkpoints
    from fedjax_rec.types import Batch, ClientWork, Model, Params, Server, Update

__version__ = "0.1.0"

_WINGS = (
    "algorithms",
    "attacks",
    "client",
    "data",
    "engine",
    "evaluation",
    "federation",
    "privacy",
    "rows",
    "runs",
    "samplers",
    "server",
    "training",
    "transforms",
    "types",
)
_NAMES = {  # wing or module: what stands here besides, under its own name or NAME=THEIRS
    "client": ("Population", "flax_training", "local_training", "open_population", "population_of"),
    "data": ("Dataset", "Interactions", "from_frame", "leave_one_out", "load_dataset", "read_table"),
    "engine": ("client_mesh", "initialize_distributed", "use_cores"),
    "evaluation": ("make_evaluator", "baselines=run_baselines"),
    "federation": ("Faults", "FedBuff", "client_update", "federate"),
    "runs": ("evaluate", "fit", "load", "plots", "recommend", "save=save_model", "top_k"),
    "training": ("Stop", "frame", "progress_bar", "simulate", "sweep", "train_seeds"),
    "training.checkpoints": ("Checkpoints",),
    "types": ("Batch", "ClientWork", "Model", "Params", "Server", "Update"),
}
_PLACES = {
    name.partition("=")[0]: (module, name.rpartition("=")[2])
    for module, names in _NAMES.items()
    for name in names
}


def __getattr__(name: str) -> Any:
    """Import a wing, or what stands here of it, when it is asked for: `fedjax-rec --help` needs none of them."""
    if name == "__all__":
        return __dir__()
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _WINGS:
        found = import_module(f"{__name__}.{name}")
    elif name in _PLACES:
        module, theirs = _PLACES[name]
        found = getattr(import_module(f"{__name__}.{module}"), theirs)
    elif name in (algorithms := import_module(f"{__name__}.algorithms")).__all__:
        found = getattr(algorithms, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*_WINGS, *_PLACES, *import_module(f"{__name__}.algorithms").__all__})
