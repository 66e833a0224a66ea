"""Figures of runs, for papers, notebooks, `curves.png` and the page of `fedjax-rec report`: one implementation.

Each function takes one run or several, which are overlaid: a run folder, what `fr.fit` or `run_experiment` gave,
or a `History`; and gives a figure of matplotlib, a paper's column wide, which a notebook shows and `savefig`
writes as pdf or svg. `sources` reads the runs, `canvas` has sizes and colours, `figures` the functions.
matplotlib is imported when one of them is called.
"""

from fedjax_rec.runs.plots.figures import (
    client_distribution,
    communication,
    groups,
    lane_occupancy,
    learning_curves,
    scores,
)
from fedjax_rec.runs.plots.sources import RunRecord, record_of

__all__ = [
    "RunRecord",
    "client_distribution",
    "communication",
    "groups",
    "lane_occupancy",
    "learning_curves",
    "record_of",
    "scores",
]
