"""fedjax_rec: a JAX-accelerated, vectorized simulator of federated recommender systems.

A federated algorithm is one client's work, written for one client; everything that makes it federated is a value
passed to `federate`. The quick start of the README shows the main path:

    load_dataset -> leave_one_out -> fedmf(...) -> simulate -> frame, make_evaluator
"""

from fedjax_rec import aggregators, batches, reducers, samplers, servers, transforms
from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.blocks import train, train_seeds
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
from fedjax_rec.federate import client_update, federate
from fedjax_rec.local import local_training, proximal
from fedjax_rec.population import Population, population_of
from fedjax_rec.report import progress_bar
from fedjax_rec.run_folder import load, top_k
from fedjax_rec.simulate import History, Stop, frame, simulate
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
    "Client",
    "ClientWork",
    "History",
    "LocalBatches",
    "Model",
    "Params",
    "Population",
    "Protocol",
    "Server",
    "State",
    "Stop",
    "Update",
    "aggregators",
    "batches",
    "client_mesh",
    "client_update",
    "federate",
    "fedmf",
    "frame",
    "from_frame",
    "leave_one_out",
    "load",
    "load_dataset",
    "local_training",
    "make_evaluator",
    "merge_validation",
    "metrics_from_ranks",
    "popularity_ranks",
    "population_of",
    "price_of_federation",
    "progress_bar",
    "protocol_id",
    "proximal",
    "read_table",
    "reducers",
    "run_baselines",
    "samplers",
    "servers",
    "simulate",
    "synthetic",
    "top_k",
    "train",
    "train_seeds",
    "transforms",
    "truth_ranks",
    "use_cores",
]
