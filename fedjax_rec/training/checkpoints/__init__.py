"""Checkpoints: a run that was stopped, killed or damaged goes on as if nothing had happened, bit for bit.

`manager` decides when a run is saved and whether it may go on; `store` writes and finds checkpoints, each a folder
made beside the others, flushed, sealed (`seal`) and renamed; `leaves` are the arrays in it; a lock lets one
process write them; `signals` catches a request to stop. Imports nothing of the package but `types`, `data.files`
and its own.
"""

from fedjax_rec.training.checkpoints.manager import Checkpoints, Paused

__all__ = ["Checkpoints", "Paused"]
