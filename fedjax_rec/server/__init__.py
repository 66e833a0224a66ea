"""The server's part of a round: from the clients' updates to the next global model.

`aggregators` are sums and means, with the normaliser in the name; `stacked` and `robust` look at all updates side
by side; `fairness` weighs by losses; `optimizers` are the server's rules, and `resting` says under which of them
untouched rows rest; `noise` is what central differential privacy adds, `soundness` says what an aggregator is made
of and refuses noise that would hide nothing; `step` puts them together. May import all wings below it but
`samplers`.
"""

from fedjax_rec.server.aggregators import (
    by_change,
    by_examples,
    by_heat,
    fixed_point,
    gaussian,
    mean,
    mean_of_touchers,
    rows_summed,
    total,
)
from fedjax_rec.server.fairness import agnostic, q_fedavg
from fedjax_rec.server.optimizers import (
    fedadagrad,
    fedadam,
    fedavg,
    fedavgm,
    fedyogi,
    scheduled_by_round,
)
from fedjax_rec.server.resting import rest_untouched
from fedjax_rec.server.robust import centred_clipping, geometric_median, norm_bound, row_norm_bound
from fedjax_rec.server.stacked import krum, median, multi_krum, trimmed_mean

__all__ = [
    "agnostic",
    "by_change",
    "by_examples",
    "by_heat",
    "centred_clipping",
    "fedadagrad",
    "fedadam",
    "fedavg",
    "fedavgm",
    "fedyogi",
    "fixed_point",
    "gaussian",
    "geometric_median",
    "krum",
    "mean",
    "mean_of_touchers",
    "median",
    "multi_krum",
    "norm_bound",
    "q_fedavg",
    "rest_untouched",
    "row_norm_bound",
    "rows_summed",
    "scheduled_by_round",
    "total",
    "trimmed_mean",
]
