"""A model that was trained in Python, as a folder that `load` reads: `run_folder` without an experiment."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_rec.algorithms.own import adopt
from fedjax_rec.client.population import population_of
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.splits import Split, known_items
from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.runs.build import make_algorithm
from fedjax_rec.runs.folders import dump_json, write_folder
from fedjax_rec.runs.recommender import model_arrays
from fedjax_rec.runs.settings import Settings, complete, without_size
from fedjax_rec.training.history import History, frame
from fedjax_rec.types import Algorithm, State


def save_model(
    folder: str | Path,
    algorithm: Algorithm | Callable[..., Algorithm] | str,
    state: State,
    split: Split,
    *,
    settings: Mapping[str, Any] | None = None,
    history: History | None = None,
) -> Path:
    """Write a trained model with its users, for `load`, `top_k` and the command line: `fr.save`.

    Whole runs, with results to compare, are written by `fr.runs.save`.

    Args:
        folder: where; it may not exist, or be empty.
        algorithm: that was trained; or its factory or name, and `settings`, so that `load` needs not be given it.
        state: as `simulate` returns it.
        split: that it was trained on.
        settings: what the factory was given: numbers, texts and truth values by name.
        history: of the training, to be kept beside the model.

    Returns:
        the folder.

    Raises:
        ValueError: if a setting is none of the factory's, or the state is of other users or items than the split.
        OSError: if the folder is not empty, or cannot be written.

    Example:
        >>> import tempfile, fedjax_rec as fr
        >>> from fedjax_rec.runs.recommender import load
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> state, history = fr.simulate(fr.fedmf(dim=2), split, rounds=1)
        >>> with tempfile.TemporaryDirectory() as parent:
        ...     folder = save_model(Path(parent) / "mine", fr.fedmf, state, split, settings={"dim": 2})
        ...     load(folder).user_ids.shape
        (30,)
    """
    check_arguments(save_model, locals())
    if isinstance(algorithm, Algorithm) and settings:
        raise ParameterError(
            "{settings} are those of a factory; give its name, or the factory, as {algorithm}"
        )
    used = _settings_of(adopt(algorithm), settings or {}, split)
    made = algorithm if isinstance(algorithm, Algorithm) else make_algorithm(used)
    scored_leaves = server_parameters(made, population_of(split)).scored_leaves
    arrays = model_arrays(
        split,
        known_items(_nothing(split), split),
        state,
        state.private if scored_leaves is None else scored_leaves(state),
    )

    def write(draft: Path) -> None:
        dump_json(draft / "config.json", dataclasses.asdict(used))
        if history is not None:
            frame(history).to_csv(draft / "history.csv", index=False)
        np.savez(draft / "model.npz", allow_pickle=False, **arrays)

    return write_folder(folder, write)


def _settings_of(name: str, given: Mapping[str, Any], split: Split) -> Settings:
    """A run's settings for what a factory was given: those without a flag become options."""
    fields = Settings.__dataclass_fields__
    own = {key: value for key, value in given.items() if key not in fields}
    options = ",".join(f"{key}={value}" for key, value in own.items()) or None
    named = {key: value for key, value in given.items() if key in fields}
    settings = Settings(algorithm=name, options=options, negatives=split.negatives, devices=1, **named)
    return without_size(complete(settings))


def _nothing(split: Split) -> Interactions:
    """No further events of a split's users."""
    codes = np.zeros(0, np.int32)
    return Interactions(codes, codes, None, None, split.user_ids, split.item_ids)
