"""One client: its data, its keys, its local batches, and its local training.

`population` holds all clients' data as flat arrays (`membership` says what a client has), `stored` fetches those
of a cohort from a store, `keys` names who a client is in a round, `batches` cuts its history, `local_training`
makes `ClientWork` of a loss and an optimizer, `flax_training` of a flax module as well, and `exactness` says which
optimizers may train only the rows of a batch. What trains is written for one client, without a client axis. May
import `errors`, `types`, `data`, `rows`.
"""

from fedjax_rec.client.batches import (
    catalogue,
    examples,
    in_order,
    rated,
    rated_with_negatives,
    with_negatives,
)
from fedjax_rec.client.flax_training import flax_training
from fedjax_rec.client.local_training import Loss, local_training, proximal
from fedjax_rec.client.population import Population, population_of
from fedjax_rec.client.stored import StoredPopulation, open_population

__all__ = [
    "Loss",
    "Population",
    "StoredPopulation",
    "catalogue",
    "examples",
    "flax_training",
    "in_order",
    "local_training",
    "open_population",
    "population_of",
    "proximal",
    "rated",
    "rated_with_negatives",
    "with_negatives",
]
