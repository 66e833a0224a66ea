"""Training: runs of many rounds, over one seed, several, or a grid of settings.

`simulate` runs blocks of rounds with validation, stopping and history; `seeds` and `sweep` run batches of seeds
and of settings (`trials`) as one program, and `search_spaces` says which settings, `spaces` which of
an algorithm are worth it, `halving` spends less on the worse ones, and `studies` lets Optuna choose; `progress`
shows a run, and `callbacks` tell trackers of it.
`checkpoints` saves a run, so that it goes on bit for bit. May import `evaluation` and all below it.
"""

from fedjax_rec.training.callbacks import (
    call_all,
    log_to_mlflow,
    log_to_tensorboard,
    log_to_wandb,
    write_json_lines,
)
from fedjax_rec.training.halving import Halving, halve
from fedjax_rec.training.history import DivergedWarning, History, Interrupted, Progress, Stop, frame
from fedjax_rec.training.progress import progress_bar
from fedjax_rec.training.search_spaces import choice, grid, log_uniform, sample_settings
from fedjax_rec.training.seeds import train, train_seeds
from fedjax_rec.training.simulate import simulate
from fedjax_rec.training.spaces import space_of, trials_of
from fedjax_rec.training.studies import search
from fedjax_rec.training.sweep import Sweep, SweepInterrupted, sweep

__all__ = [
    "DivergedWarning",
    "Halving",
    "History",
    "Interrupted",
    "Progress",
    "Stop",
    "Sweep",
    "SweepInterrupted",
    "call_all",
    "choice",
    "frame",
    "grid",
    "halve",
    "log_to_mlflow",
    "log_to_tensorboard",
    "log_to_wandb",
    "log_uniform",
    "progress_bar",
    "sample_settings",
    "search",
    "simulate",
    "space_of",
    "sweep",
    "train",
    "train_seeds",
    "trials_of",
    "write_json_lines",
]
