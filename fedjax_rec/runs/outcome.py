"""What a run gives: the model as soon as it is trained, and all that was found out."""

from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.price import Price
from fedjax_rec.evaluation.central.runner import BaselineResult
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.ranking import Ranks
from fedjax_rec.evaluation.summary import Metrics
from fedjax_rec.federation.traffic import Traffic
from fedjax_rec.privacy.spending import Spending
from fedjax_rec.runs.settings import Settings
from fedjax_rec.training.halving import Halving
from fedjax_rec.training.history import History
from fedjax_rec.types import Algorithm, PyTree, State


class Trained(NamedTuple):
    """The model that a run will test, as soon as it is there."""

    settings: Settings
    algorithm: Algorithm
    split: Split  # what it was trained on: with refit, train + validation
    users: Split  # all that it can be asked for: those of `split`, then held-out ones
    known: tuple[np.ndarray, np.ndarray]  # all that they have met, of `known_items`
    state: State
    scored_leaves: PyTree  # private leaves with which the users are scored
    history: History  # of the run that selected the round
    num_clients: int  # that train; the split may be of a sample of them
    asked: Settings | None = None  # before anything was chosen by itself


class Outcome(NamedTuple):
    """All that a run found out."""

    settings: Settings
    protocol: Protocol
    algorithm: Algorithm
    split: Split  # what the tested model was trained on: with refit, train + validation
    tested: Split  # holds the test items; another than `split` where the splitter holds out clients
    state: State  # the tested model
    users: Split  # all that the model can be asked for: those of `split`, then those of `tested` if it has others
    known: tuple[np.ndarray, np.ndarray]  # all that they have met, of `known_items`
    scored_leaves: PyTree  # private leaves with which they are scored
    history: History  # of the run that selected the round
    traffic: Traffic
    test: Ranks
    validation: Ranks | None  # of the selected state, before any refit
    popularity: Ranks
    metrics: dict[str, dict[str, Any]]  # {"test": {"full": {...}, "sampled99": {...}, ...}, ...}
    baselines: dict[str, dict[str, Metrics]]  # {"popularity": {...}, "best_reachable": {...}}
    centrals: dict[str, BaselineResult]  # the central baselines that the settings name
    price: Price | None  # of federation, where there are some
    spending: Spending | None  # what the rounds spent of the users' privacy, where noise was added
    seconds: float
    num_clients: int  # that train; `split` and `tested` may be of a sample of them
    tuning: Halving | None = None  # what was tried before, where settings were
    asked: Settings | None = None  # before anything was chosen by itself
