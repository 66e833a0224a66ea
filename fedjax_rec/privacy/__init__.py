"""Privacy: what is spent, what spends it, and sums that hide what each client sends.

`dp_fedavg`, `local_dp` and `adaptive_clipping` give what `federate` needs for a guarantee; `accounting` computes
it, `calibration` chooses noise for a budget, `spending` reads off an algorithm what it spent, `banded` correlates
noise between rounds, and `ledger` refuses rounds that would overspend;
`secure_aggregation` and `masks` sum integers that nobody sees. May import `federation` and all below it.
"""

from fedjax_rec.privacy.adaptive_clipping import adaptive_dp
from fedjax_rec.privacy.dp_fedavg import dp_fedavg
from fedjax_rec.privacy.ledger import open_ledger
from fedjax_rec.privacy.local_dp import local_dp
from fedjax_rec.privacy.secure_aggregation import clip_to_grid, secure_aggregation, secure_sum
from fedjax_rec.privacy.spending import secret_key, spending_of

__all__ = [
    "adaptive_dp",
    "clip_to_grid",
    "dp_fedavg",
    "local_dp",
    "open_ledger",
    "secret_key",
    "secure_aggregation",
    "secure_sum",
    "spending_of",
]
