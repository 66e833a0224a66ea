"""The engine: a cohort's clients on lanes, as one compiled program.

`cohort.run_cohort` sorts the cohort and deals it to the devices of a mesh; `lanes` and `waves` are the two
schedules that train it, made of the steps in `lane_steps`; `guard` runs it again without clients whose numbers are
not finite; `plan` chooses lanes and devices and counts memory before anything runs, and `chunks` what fits;
`table_shards` lets several devices share item tables. Knows one client's work and how updates are summed; of
rounds it reads only what they report. May import all wings below it, up to `samplers` and `server`.
"""

from fedjax_rec.engine.devices import client_mesh, use_cores
from fedjax_rec.hosts.processes import initialize_distributed

__all__ = ["client_mesh", "initialize_distributed", "use_cores"]
