"""The folder of a run: written whole or not at all, read back without unpickling.

========================  ==============================================================================
`config.json`             every setting
`protocol.json`           how it was evaluated, and the protocol's id
`result.json`             the numbers
`history.csv`             a row a round
`per_user.npz`            external user ids, rank, ties and rivals of each user's test item
`curves.png`              training loss and validation metrics
`model.npz`               parameters and vocabulary, plain arrays
`checkpoints/`            with `--checkpoint-every`: what `fedjax-rec resume` goes on from
========================  ==============================================================================
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_rec.central import arrays_of, details_of
from fedjax_rec.data.arrays import read_arrays
from fedjax_rec.evaluation.protocol import protocol_id
from fedjax_rec.experiment import Outcome
from fedjax_rec.folders import (
    CHECKPOINTS,
    RESUME,
    choose_place,
    dump_json,
    dump_protocol,
    fill_folder,
    plain,
    rank_arrays,
    user_arrays,
    write_folder,
)
from fedjax_rec.from_settings import make_algorithm
from fedjax_rec.privacy.central import UNIT
from fedjax_rec.settings import Settings
from fedjax_rec.simulate import frame
from fedjax_rec.types import Algorithm, PyTree, Server
from fedjax_rec.versions import versions

SEPARATOR = "/"


class Recommender(NamedTuple):
    """A trained model with its vocabulary, as `load` reads it from a run folder."""

    algorithm: Algorithm
    server: Server
    private: PyTree  # leaves [N, ...]
    user_ids: np.ndarray  # [N], external ids
    item_ids: np.ndarray  # [I]
    offsets: np.ndarray  # int64[N + 1], where each user's training items start
    items: np.ndarray  # int32[M], training items, not recommended again


def result_of(outcome: Outcome) -> dict[str, Any]:
    """The numbers of a run, as `result.json` holds them.

    Args:
        outcome: of `run_experiment`.

    Returns:
        a dict of plain values; what is not finite is None.

    Example:
        >>> from fedjax_rec.experiment import run_experiment
        >>> result_of(run_experiment(Settings(rounds=1, dim=2)))["num_compilations"]
        1
    """
    settings, history = outcome.settings, outcome.history
    return plain(
        {
            "dataset": settings.dataset,
            "algorithm": settings.algorithm,
            "protocol_id": protocol_id(outcome.protocol),
            "negatives": outcome.protocol.negatives,
            "seed": settings.seed,
            "rounds": len(history.rounds.loss),
            "selected_round": history.selected_round,
            "stopped": history.stopped,
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
            "engine": history.plan._asdict(),
            "bytes_up_per_client": outcome.traffic.up,
            "bytes_down_per_client": outcome.traffic.down,
            "users": outcome.split.num_users,
            "items": outcome.split.num_items,
            "filters": list(outcome.split.log),
            "metrics": outcome.metrics,
            "baselines": outcome.baselines,
            **_centrals(outcome),
            **_privacy(outcome),
            "versions": versions(),
        }
    )


def _staleness(outcome: Outcome) -> dict[str, Any]:
    """Of an asynchronous run, the server's steps while a client trained: mean over all updates that counted."""
    if outcome.settings.async_buffer is None:
        return {}
    rounds = outcome.history.rounds
    clients, staleness = np.asarray(rounds.clients, float), np.asarray(rounds.staleness, float)
    return {"mean_staleness": float(clients @ staleness) / max(clients.sum(), 1.0)}


def _centrals(outcome: Outcome) -> dict[str, Any]:
    """What the central baselines add to the result of a run that asked for them."""
    if not outcome.centrals:
        return {}
    return {"details": details_of(outcome.centrals), "price_of_federation": outcome.price}


def _privacy(outcome: Outcome) -> dict[str, Any]:
    """What a run with noise has spent, over all of its rounds, and how clear its sums were."""
    private, rounds = outcome.private, len(outcome.history.rounds.loss)
    if private is None:
        return {}
    spent = {
        "unit": UNIT,
        "epsilon": private.epsilon(rounds),
        "delta": private.delta,
        "noise_multiplier": private.noise_multiplier,
        "clip": private.clip,
        "sampling_probability": private.sampler.probability,
        "capacity": private.sampler.capacity,
        "neighbours": private.spent.neighbours,
        "accountant": private.spent.accountant,
        "signal_to_noise": float(np.median(outcome.history.rounds.signal)),
    }
    return {"privacy": spent}


def choose_folder(settings: Settings) -> Path:
    """Where a run goes: `settings.out`, or the first free runs/DATASET-ALGORITHM-N.

    Args:
        settings: of the run.

    Returns:
        the absolute path of a folder that does not exist yet, or is empty; nothing is created.

    Raises:
        ValueError: if nothing can be written there, or something would be overwritten.

    Example:
        >>> choose_folder(Settings(out="somewhere/new")).name
        'new'
    """
    return choose_place(settings.out, f"{Path(settings.dataset).stem}-{settings.algorithm}")


def save(outcome: Outcome, folder: str | Path, *, renumber: bool = False) -> Path:
    """Write a run folder, atomically: into a hidden neighbour first, which is then renamed.

    Args:
        outcome: of `run_experiment`.
        folder: where; it may not exist, or be empty.
        renumber: if the folder, NAME-NUMBER, is taken by now, use the next number that is free.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        >>> import tempfile
        >>> from fedjax_rec.experiment import run_experiment
        >>> with tempfile.TemporaryDirectory() as place:
        ...     folder = save(run_experiment(Settings(rounds=1, dim=2)), Path(place) / "run")
        ...     sorted(path.name for path in folder.iterdir())[:2]
        ['config.json', 'curves.png']
    """
    return write_folder(folder, lambda draft: _write(outcome, draft), renumber=renumber)


def save_beside(outcome: Outcome, folder: str | Path) -> Path:
    """Write the files of a run into its folder, beside its checkpoints.

    Args:
        outcome: of `run_experiment`.
        folder: of the run, which the caller holds; `config.json` is missing until all files are there.

    Returns:
        the folder.

    Raises:
        OSError: if it cannot be written.

    Example:
        see `fedjax_rec.resume`.
    """
    return fill_folder(Path(folder), lambda draft: _write(outcome, draft), "config.json")


def _write(outcome: Outcome, folder: Path) -> None:
    from fedjax_rec.report import draw_curves

    dump_json(folder / "config.json", dataclasses.asdict(outcome.settings))
    dump_protocol(folder / "protocol.json", outcome.protocol)
    dump_json(folder / "result.json", result_of(outcome))
    frame(outcome.history).to_csv(folder / "history.csv", index=False)
    np.savez_compressed(folder / "per_user.npz", allow_pickle=False, **per_user_arrays(outcome))
    np.savez(folder / "model.npz", allow_pickle=False, **_model_arrays(outcome))
    draw_curves(
        outcome.history, folder / "curves.png", title=f"{outcome.settings.algorithm} on {outcome.split.name}"
    )


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
        >>> from fedjax_rec.experiment import run_experiment
        >>> sorted(per_user_arrays(run_experiment(Settings(rounds=1, dim=2))))[-4:]
        ['tied_full', 'tied_sampled', 'train_events', 'user_ids']
    """
    ranks = rank_arrays(outcome.test) | rank_arrays(outcome.popularity, "popularity_")
    return user_arrays(outcome.tested) | ranks | arrays_of(outcome.centrals)


def _model_arrays(outcome: Outcome) -> dict[str, np.ndarray]:
    split, state = outcome.split, outcome.state
    vocabulary = {"user_ids": split.user_ids, "item_ids": split.item_ids}
    seen = {"offsets": split.offsets, "items": split.items}
    parts = {"server": state.server, "private": state.private}
    return vocabulary | seen | {_name(path): np.asarray(x) for path, x in jax.tree.leaves_with_path(parts)}


def _name(path: tuple) -> str:
    return "params/" + jax.tree_util.keystr(path, simple=True, separator=SEPARATOR)


def load(folder: str | Path) -> Recommender:
    """Read a trained model from a run folder; nothing is unpickled.

    Args:
        folder: of a run.

    Returns:
        the model with its vocabulary.

    Raises:
        ValueError: if the folder is not that of a run, or its files do not fit together.

    Example:
        >>> load("no/such/run")
        Traceback (most recent call last):
        ValueError: no/such/run is not a run folder: config.json is missing
    """
    folder = Path(folder)
    for name in ("config.json", "model.npz"):
        if not (folder / name).is_file():
            hint = f"; go on with: {RESUME} {folder}" * (folder / CHECKPOINTS).is_dir()
            raise ValueError(f"{folder} is not a run folder: {name} is missing{hint}")
    try:
        return _read(folder)
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as problem:
        raise ValueError(f"{folder} is not a sound run folder: {problem}") from problem


def _read(folder: Path) -> Recommender:
    settings = Settings(**json.loads((folder / "config.json").read_text(encoding="utf-8")))
    algorithm = make_algorithm(dataclasses.replace(settings, devices=1))
    stored = read_arrays(folder / "model.npz")
    nested = _nest({name: stored[name] for name in stored if name.startswith("params/")})
    server = nested["server"]
    return Recommender(
        algorithm,
        Server(server.get("shared", {}), server.get("tables", {})),
        nested.get("private", {}),
        *(stored[name] for name in ("user_ids", "item_ids", "offsets", "items")),
    )


def _nest(flat: dict[str, np.ndarray]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        *parents, leaf = name.split(SEPARATOR)[1:]
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[leaf] = value
    return nested


def top_k(model: Recommender, user: Any, k: int = 10) -> list[tuple[Any, float]]:
    """Recommend unseen items to one user, by external id.

    Args:
        model: as `load` returns it.
        user: external id of the user.
        k: how many items, at most.

    Returns:
        (external item id, score), best first; ties in the order of the vocabulary.

    Raises:
        ValueError: if the user is unknown or k is below 1.

    Example:
        see the README.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    found = np.flatnonzero(model.user_ids.astype(str) == str(user))
    if not len(found):
        raise ValueError(
            f"unknown user {user!r}; known are {len(model.user_ids):,}, such as {model.user_ids[0]}"
        )
    row = int(found[0])
    score = model.algorithm.score
    if score is None:
        raise ValueError("this run's model has no `score`, so it cannot recommend")
    scores = np.array(score(jax.tree.map(lambda p: p[row], model.private), model.server))
    scores[model.items[model.offsets[row] : model.offsets[row + 1]]] = -np.inf
    best = np.argsort(-scores, kind="stable")[:k]
    return [(model.item_ids[i].item(), float(scores[i])) for i in best if np.isfinite(scores[i])]
