"""The folder of a run, read back without unpickling.

It is filled in three steps, none of which can cost what the one before has written: the model as soon as it is
trained, the results, `result.json` last, and the pictures.

========================  ==============================================================================
`config.json`             every setting, what was chosen by default included, and the `rules` of a round in words
`protocol.json`           how it was evaluated, and the protocol's id
`result.json`             the numbers
`history.csv`             a row a round
`per_user.npz`            external user ids, rank, ties and rivals of each user's test items
`curves.png`              training loss and validation metrics
`tuning.json`             with `--tune`, all settings that were tried, rung by rung
`model.npz`               parameters and vocabulary, plain arrays
`checkpoints/`            what `fedjax-rec resume` goes on from: of runs that take minutes, or `--checkpoint-every`
========================  ==============================================================================
"""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rec.algorithms.own import label_of
from fedjax_rec.evaluation.protocol import protocol_id
from fedjax_rec.runs.baselines import baseline_arrays, baseline_details
from fedjax_rec.runs.configuration import SEARCHABLE, repeating
from fedjax_rec.runs.experiment import Outcome, Trained
from fedjax_rec.runs.folders import (
    dump_json,
    dump_protocol,
    fill_folder,
    rank_arrays,
    to_json_values,
    user_arrays,
    write_folder,
)
from fedjax_rec.runs.recommender import model_arrays
from fedjax_rec.runs.resolved import resolve, rules_of
from fedjax_rec.runs.settings import Settings
from fedjax_rec.runs.tuning import tuning_table
from fedjax_rec.training.checkpoints.versions import PACKAGE, commit_of, versions
from fedjax_rec.training.history import frame
from fedjax_rec.types import Plan


def result_of(outcome: Outcome) -> dict[str, Any]:
    """The numbers of a run, as `result.json` holds them.

    Args:
        outcome: of `run_experiment`.

    Returns:
        a dict of plain values; what is not finite is None.

    Example:
        >>> from fedjax_rec.runs.experiment import run_experiment
        >>> result_of(run_experiment(Settings(rounds=1, dim=2)))["num_compilations"]
        1
    """
    settings = outcome.settings
    history = outcome.history
    return to_json_values(
        {
            "dataset": settings.dataset,
            "algorithm": settings.algorithm,
            "protocol_id": protocol_id(outcome.protocol),
            "negatives": outcome.protocol.negatives,
            "seed": settings.seed,
            "rounds": len(history.rounds.loss),
            "selected_round": history.selected_round,
            "stopped": history.stopped,
            "still_improving": history.still_improving,
            "seconds": outcome.seconds,
            "train_seconds": history.train_seconds,
            "compile_seconds": history.compile_seconds,
            "clients_per_second": history.clients_per_second,
            "lane_efficiency": history.lane_efficiency,
            "num_compilations": history.num_compilations,
            "unsound_clients": int(history.rounds.unsound.sum()),
            "skipped_rounds": int(history.rounds.skipped.sum()),
            "missing_clients": int(history.rounds.missing.sum()),
            **_staleness(outcome),
            "engine": _engine(history.plan),
            "bytes_up_per_client": outcome.traffic.up,
            "bytes_down_per_client": outcome.traffic.down,
            "users": outcome.num_clients,
            "items": outcome.split.num_items,
            "filters": list(outcome.split.log),
            "metrics": outcome.metrics,
            "baselines": outcome.baselines,
            **_central_baselines(outcome),
            **({} if outcome.tuning is None else {"trials": outcome.tuning.num_settings}),
            **_privacy(outcome),
            "versions": versions(),
            "commit": commit_of(PACKAGE),
            "command": None if outcome.asked is None else repeating(outcome.asked),
        }
    )


def _engine(plan: Plan) -> dict[str, Any]:
    """The engine's choices; what they need in bytes is called memory here."""
    names = {"num_bytes": "memory"}
    return {names.get(name, name): value for name, value in plan._asdict().items()}


def _staleness(outcome: Outcome) -> dict[str, Any]:
    """Of an asynchronous run, the server's steps while a client trained: mean over all updates that counted."""
    if outcome.settings.async_buffer is None:
        return {}
    rounds = outcome.history.rounds
    clients = np.asarray(rounds.clients, float)
    staleness = np.asarray(rounds.staleness, float)
    return {"mean_staleness": float(clients @ staleness) / max(clients.sum(), 1.0)}


def _central_baselines(outcome: Outcome) -> dict[str, Any]:
    """What the central baselines add to the result of a run that asked for them."""
    if not outcome.centrals:
        return {}
    return {"details": baseline_details(outcome.centrals), "price_of_federation": outcome.price}


def _privacy(outcome: Outcome) -> dict[str, Any]:
    """What a run with noise has spent, over all of its rounds, and how clear its sums were."""
    if outcome.spending is None:
        return {}
    signal = float(np.median(outcome.history.rounds.signal))
    return {"privacy": outcome.spending._asdict() | {"signal_to_noise": signal}}


def name_of(settings: Settings) -> str:
    """What a run's folder is called where nobody says: DATASET-ALGORITHM, and a number.

    Args:
        settings: of the run.

    Returns:
        the name without the number.

    Example:
        >>> name_of(Settings(dataset="data/plays.csv"))
        'plays-fedmf'
    """
    return f"{Path(settings.dataset).stem}-{label_of(settings.algorithm)}"


def save(
    outcome: Outcome,
    folder: str | Path,
    *,
    renumber: bool = False,
    on_message: Callable[[str], Any] = warnings.warn,
) -> Path:
    """Write a run folder, atomically: into a hidden neighbour first, which is then renamed.

    Args:
        outcome: of `run_experiment`.
        folder: where; it may not exist, or be empty.
        renumber: if the folder, NAME-NUMBER, is taken by now, use the next number that is free.
        on_message: called with a line about a picture that could not be drawn.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from fedjax_rec.runs.experiment import run_experiment
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = save(run_experiment(Settings(rounds=1, dim=2)), Path(parent) / "run")
        ...     sorted(path.name for path in folder.iterdir())[:2]
        ['config.json', 'curves.png']
    """

    def write(draft: Path) -> None:
        _write_trained(_trained(outcome), draft)
        _write_results(outcome, draft)

    folder = write_folder(folder, write, renumber=renumber)
    _draw(outcome, folder, on_message)
    return folder


def save_trained(trained: Trained, folder: str | Path) -> None:
    """Write the model into a folder that is reserved for the run; results come later.

    Args:
        trained: as `run_experiment` gives it.
        folder: of the run; older results in it go, as they are another model's.

    Raises:
        OSError: if it cannot be written.
    """
    folder = Path(folder)
    (folder / "result.json").unlink(missing_ok=True)
    fill_folder(folder, lambda draft: _write_trained(trained, draft), "config.json")


def save_results(
    outcome: Outcome, folder: str | Path, *, on_message: Callable[[str], Any] = warnings.warn
) -> Path:
    """Write the results beside the model, then the pictures.

    Args:
        outcome: of `run_experiment`.
        folder: of the run; `result.json` is missing until all of them are there.
        on_message: called with a line about a picture that could not be drawn.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.
    """
    folder = fill_folder(Path(folder), lambda draft: _write_results(outcome, draft), "result.json")
    _draw(outcome, folder, on_message)
    return folder


def _trained(outcome: Outcome) -> Trained:
    return Trained(*(getattr(outcome, name) for name in Trained._fields))


def _write_trained(trained: Trained, folder: Path) -> None:
    plan = trained.history.plan
    settings = resolve(trained.settings, plan, trained.num_clients)
    rules = rules_of(settings, trained.algorithm.mechanism)
    config = dataclasses.asdict(settings) | {"rules": rules}
    if trained.asked is not None and settings.tune is not None:
        asked = dataclasses.asdict(trained.asked)
        config["before_tuning"] = {name: asked[name] for name in SEARCHABLE if asked[name] != config[name]}
    dump_json(folder / "config.json", config)
    frame(trained.history).to_csv(folder / "history.csv", index=False)
    np.savez(folder / "model.npz", allow_pickle=False, **_model_arrays(trained))


def _write_results(outcome: Outcome, folder: Path) -> None:
    tuning = outcome.tuning
    tuned = None if tuning is None else tuning.num_settings
    dump_protocol(folder / "protocol.json", outcome.protocol, tuned=tuned)
    if tuning is not None:
        dump_json(folder / "tuning.json", to_json_values(tuning_table(tuning)))
    np.savez_compressed(folder / "per_user.npz", allow_pickle=False, **per_user_arrays(outcome))
    dump_json(folder / "result.json", result_of(outcome))


def _draw(outcome: Outcome, folder: Path, on_message: Callable[[str], Any]) -> None:
    """The pictures, which are worth no run: whatever is wrong with one is told."""
    from fedjax_rec.runs.report import draw_curves

    title = f"{outcome.settings.algorithm} on {outcome.split.name}"
    try:
        draw_curves(outcome, folder / "curves.png", title=title)
    except Exception as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        on_message(f"{folder / 'curves.png'} could not be drawn, all else is there: {reason}")


def per_user_arrays(outcome: Outcome) -> dict[str, np.ndarray]:
    """What `per_user.npz` holds: enough to compute every metric of every user anew.

    Args:
        outcome: of `run_experiment`.

    Returns:
        by name, [N] each: `user_ids`, `test_item_ids` (external, as text), `train_events`, and for both rankings
        `rank_*` (mid-ranks, NaN without a positive), `tied_*` (rivals with the positive's score), `rivals_*`;
        ranks and ties of the popularity baseline as `popularity_rank_*`, `popularity_tied_*`, and alike of other
        central baselines that the run had.

    Example:
        >>> from fedjax_rec.runs.experiment import run_experiment
        >>> sorted(per_user_arrays(run_experiment(Settings(rounds=1, dim=2))))[-4:]
        ['tied_full', 'tied_sampled', 'train_events', 'user_ids']
    """
    ranks = rank_arrays(outcome.test) | rank_arrays(outcome.popularity, "popularity_")
    return user_arrays(outcome.tested) | ranks | baseline_arrays(outcome.centrals)


def _model_arrays(trained: Trained) -> dict[str, np.ndarray]:
    return model_arrays(trained.users, trained.known, trained.state, trained.scored_leaves)
