"""The engine in float32 against the numpy reference in float64 (law 12): tables, shared leaves, private store, loss.

Errors are measured on what training *moved*, leaf by leaf: max |engine - reference| / max |reference - start|.
"""

from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fedjax_rec import servers
from fedjax_rec.algorithms.fedmf import fedmf
from fedjax_rec.batches import positives_per_batch
from fedjax_rec.federate import name_clients, stream
from fedjax_rec.population import Population, build
from fedjax_rec.samplers import uniform
from fedjax_rec.types import Algorithm
from fedjax_rec.types import State as EngineState
from tests import reference_fedmf as ref

ROUNDS, ITEMS, DIM, COHORT, LANES = 3, 29, 4, 9, 3
HISTORIES = (15, 1, 7, 0, 3, 12, 2, 5, 9, 4, 1, 8)  # client 3 has no data
NEGATIVES, BATCH = 3, 8  # 2 positives in a batch; the longest history asks for 45 negatives of 29 items
RATE, REGULARISATION = 0.05, 0.02
KEY = 7
