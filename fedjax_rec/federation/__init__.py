"""The round: sample, send, train locally, send back, aggregate, store.

`federate` makes an algorithm of one client's work and the values beside it; `rounds` is the round as a pure
function, and `initial` the state before it; `cohorts` says who takes part, with `faults` of devices and
`asynchronous` arrivals; `streaming` and `host_memory` take a round in chunks of clients; `blocks` compiles many
rounds into one program; `traffic` counts what travels. May import `engine` and all below it.
"""

from fedjax_rec.federation.asynchronous import FedBuff
from fedjax_rec.federation.faults import Faults
from fedjax_rec.federation.federate import FederationSettings, RoundSettings, client_update, federate

__all__ = ["Faults", "FedBuff", "FederationSettings", "RoundSettings", "client_update", "federate"]
