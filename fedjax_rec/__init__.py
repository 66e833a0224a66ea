"""fedjax_rec: a JAX-accelerated, vectorized simulator of federated recommender systems.

A federated algorithm is one client's work, written for one client; everything that makes it federated is a value
passed to `federate`. The quick start of the README shows the main path:

    load_dataset -> leave_one_out -> fedmf(...) -> simulate -> frame, make_evaluator
"""

from fedjax_rec import (
    aggregators,
    attacks,
    batches,
    compression,
    fairness,
    feedback,
    inference,
    informed,
    promotion,
    reducers,
    row_hiding,
    samplers,
    secure,
    servers,
    sparsifiers,
    transforms,
)
from fedjax_rec.algorithms.colr import colr
from fedjax_rec.algorithms.fcf import fcf
from fedjax_rec.algorithms.fedals import fedals
from fedjax_rec.algorithms.fedease import fedease
from fedjax_rec.algorithms.fedgnn import fedgnn
from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.algorithms.fedncf import fedncf
from fedjax_rec.algorithms.fednova import fednova
from fedjax_rec.algorithms.fedper import fedper
from fedjax_rec.algorithms.fedrap import fedrap
from fedjax_rec.algorithms.fedrec import fedrec
from fedjax_rec.algorithms.fedrecon import fedrecon
from fedjax_rec.algorithms.fedsasrec import fedsasrec
from fedjax_rec.algorithms.fedsgd_mf import fedsgd_mf
from fedjax_rec.algorithms.fedtwotower import fedtwotower
from fedjax_rec.algorithms.gpfedrec import gpfedrec
from fedjax_rec.algorithms.pfedrec import pfedrec
from fedjax_rec.algorithms.scaffold import scaffold
from fedjax_rec.asynchronous import FedBuff
from fedjax_rec.blocks import train, train_seeds
from fedjax_rec.checkpoints import Checkpoints
from fedjax_rec.data.readers import from_frame, read_table
from fedjax_rec.data.registry import load_dataset
from fedjax_rec.data.splits import leave_one_out, merge_validation
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.devices import client_mesh, use_cores
from fedjax_rec.evaluation.baselines import popularity_ranks, truth_ranks
from fedjax_rec.evaluation.central import price_of_federation, run_baselines
from fedjax_rec.evaluation.evaluator import make_evaluator
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.faults import Faults
from fedjax_rec.federate import client_update, federate
from fedjax_rec.local import local_training, proximal
from fedjax_rec.population import Population, population_of
from fedjax_rec.report import progress_bar
from fedjax_rec.run_folder import load, top_k
from fedjax_rec.simulate import History, Stop, frame, simulate
from fedjax_rec.spaces import choice, draws, grid, log_uniform
from fedjax_rec.sweep import Sweep, sweep
from fedjax_rec.types import (
    Algorithm,
    Batch,
    Client,
    ClientWork,
    LocalBatches,
    Model,
    Params,
    Server,
    State,
    Update,
)

__version__ = "0.1.0"

__all__ = [
    "Algorithm",
    "Batch",
    "Checkpoints",
    "Client",
    "ClientWork",
    "Faults",
    "FedBuff",
    "History",
    "LocalBatches",
    "Model",
    "Params",
    "Population",
    "Protocol",
    "Server",
    "State",
    "Stop",
    "Sweep",
    "Update",
    "aggregators",
    "attacks",
    "batches",
    "choice",
    "client_mesh",
    "client_update",
    "colr",
    "compression",
    "draws",
    "fairness",
    "fcf",
    "fedals",
    "fedease",
    "federate",
    "fedgnn",
    "fedmf",
    "fedncf",
    "fednova",
    "fedper",
    "fedrap",
    "fedrec",
    "fedrecon",
    "fedsasrec",
    "fedsgd_mf",
    "fedtwotower",
    "feedback",
    "frame",
    "from_frame",
    "gpfedrec",
    "grid",
    "inference",
    "informed",
    "leave_one_out",
    "load",
    "load_dataset",
    "local_training",
    "log_uniform",
    "make_evaluator",
    "merge_validation",
    "metrics_from_ranks",
    "pfedrec",
    "popularity_ranks",
    "population_of",
    "price_of_federation",
    "progress_bar",
    "promotion",
    "protocol_id",
    "proximal",
    "read_table",
    "reducers",
    "row_hiding",
    "run_baselines",
    "samplers",
    "scaffold",
    "secure",
    "servers",
    "simulate",
    "sparsifiers",
    "sweep",
    "synthetic",
    "top_k",
    "train",
    "train_seeds",
    "transforms",
    "truth_ranks",
    "use_cores",
]
