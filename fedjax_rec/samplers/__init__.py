"""Samplers: who takes part in a round.

`data_independent` draws by a key and the number of clients alone, `data_dependent` also by what the clients hold
or by their last losses, and `tracking` carries what the server keeps about its clients from round to round. May
import `types`, `rows` and `client`.
"""

from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.samplers.data_dependent import loss_proportional, power_of_choice, size_capped
from fedjax_rec.samplers.data_independent import (
    at_most,
    cyclic_poisson,
    everyone,
    poisson,
    uniform,
)

__all__ = [
    "at_most",
    "cyclic_poisson",
    "default_cohort",
    "everyone",
    "loss_proportional",
    "poisson",
    "power_of_choice",
    "size_capped",
    "uniform",
]
