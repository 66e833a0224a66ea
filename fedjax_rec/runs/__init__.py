"""Runs: from settings to an outcome, and to a run folder.

`settings` is every knob of a run as one value, `availability` those of clients that fail or come late; `inputs`
reads the data, `build` makes the algorithm, `experiment` trains and measures it, `baselines` the central methods;
`run_folder` writes results, by the tools of `folders`, `recommender` reads the model of one, `saving` writes one
that was trained by hand, `resume` goes on with them, `compare` and `comparison_formats` compare them, `report`
is what a person sees, `plots` has the figures, and `page` writes both as one page of HTML, by the tools of
`markup`; `fitting` is the short way from a frame to a model. May import all wings but `cli`.
"""

from fedjax_rec.runs import plots
from fedjax_rec.runs.baselines import run_baseline_experiment, save_baseline_run
from fedjax_rec.runs.compare import compare_runs
from fedjax_rec.runs.experiment import Outcome, run_experiment
from fedjax_rec.runs.fitting import FitInterrupted, Fitted, evaluate, fit, recommend
from fedjax_rec.runs.recommender import load, top_k
from fedjax_rec.runs.run_folder import save
from fedjax_rec.runs.saving import save_model
from fedjax_rec.runs.settings import Settings

__all__ = [
    "FitInterrupted",
    "Fitted",
    "Outcome",
    "Settings",
    "compare_runs",
    "evaluate",
    "fit",
    "load",
    "plots",
    "recommend",
    "run_baseline_experiment",
    "run_experiment",
    "save",
    "save_baseline_run",
    "save_model",
    "top_k",
]
