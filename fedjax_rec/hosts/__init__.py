"""Several processes, one a host: how they find one another, agree, and tell one another what each alone knows.

`processes` joins them, compares what they were given, and hands arrays over on their devices; `mailbox` sends
bytes beside the devices, so that another thread than that of the rounds can. Imports jax, numpy, errors and types.
"""

from fedjax_rec.hosts.mailbox import Mailbox
from fedjax_rec.hosts.processes import initialize_distributed

__all__ = ["Mailbox", "initialize_distributed"]
