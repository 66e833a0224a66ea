"""What a run is fed with, from its settings: the data, how it is divided, and the protocol that says so."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.data.attributes import find_user_attributes, read_user_attributes
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.registry import DATASETS, load_dataset
from fedjax_rec.data.splits import Split, leave_one_out
from fedjax_rec.data.splitters import ClientSplit, given, global_time, ratio, strong_generalisation
from fedjax_rec.data.store.format import is_store
from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.evaluation.summary import rivals_of
from fedjax_rec.runs.settings import FOLD_IN_EPOCHS, POINTS, Settings
from fedjax_rec.runs.stores import open_stored

SPLITS: dict[str, Callable[..., Split | ClientSplit]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "ratio": ratio,
    "given": given,
    "strong": strong_generalisation,
}
SEVERAL = ("global-time", "ratio", "given")  # splitters that hold out several events of a user
_OF_FILES = (
    "user",
    "item",
    "rating",
    "timestamp",
    "columns",
    "separator",
    "part",
)  # settings of how a file is read
_TOGETHER = "the data come divided, and all parts are taken together; the splitter 'given' keeps them apart"


class Inputs(NamedTuple):
    """The data of a run, divided."""

    dataset: Dataset
    split: Split  # of the clients that train
    heldout: (
        Split | None
    )  # of clients that do not, where the splitter holds out clients: they alone are tested
    stored: StoredPopulation | None = None  # all clients, where the split is of a sample of them


def load_inputs(settings: Settings, dataset: Dataset | None = None) -> Inputs:
    """Read the data and hold out what the protocol says.

    Args:
        settings: the experiment.
        dataset: instead of the one that the settings name.

    Returns:
        the data set and its split.

    Raises:
        ValueError: if the data is missing or malformed, a user has too few events, or nothing can be ranked.

    Example:
        >>> load_inputs(Settings()).split.name, load_inputs(Settings()).heldout
        ('synthetic', None)
    """
    s = settings
    if dataset is None and (opened := open_stored(settings)) is not None:
        dataset, stored = opened
        assert stored.split is not None  # noqa: S101 - `open_stored` sampled it; this tells the type checker
        rivals_of(stored.split)
        return Inputs(dataset, stored.split, None, stored)
    if dataset is None:
        columns = {name: getattr(s, name) for name in _OF_FILES}
        where = s.data_dir
        dataset = load_dataset(s.dataset, data_dir=where, duplicates=s.duplicates, progress=True, **columns)
    if dataset.parts is not None and s.splitter != "given":
        dataset = dataset._replace(notes=(*dataset.notes, _TOGETHER))
    filters = {"min_user_events": s.min_user_events, "min_rating": s.min_rating, "core": s.core}
    found = SPLITS[s.splitter](
        dataset,
        **shares_of(s),
        **({} if s.splitter == "global-time" else {"order": s.order}),
        **({"positives": positives_of(s)} if s.splitter in SEVERAL else {}),
        **({"heldout_share": s.heldout_share} if s.splitter == "strong" else {}),
        **({} if s.splitter == "given" else filters),
        num_candidates=s.num_candidates,
        seed=s.protocol_seed,
    )
    training, heldout = found if isinstance(found, ClientSplit) else (found, None)
    rivals_of(training if heldout is None else heldout)  # refuses what cannot be ranked
    return Inputs(dataset, training._replace(negatives=s.negatives), heldout)


def with_absolute_paths(settings: Settings) -> Settings:
    """The same settings wherever they are read: a run goes on from any folder.

    Args:
        settings: the experiment.

    Returns:
        the settings, whose paths of data and files are absolute; names of registered data sets stay.

    Example:
        >>> with_absolute_paths(Settings()).dataset
        'synthetic'
    """
    dataset = settings.dataset
    if dataset not in DATASETS and "\0" not in dataset:
        path = Path(dataset).expanduser().absolute()
        dataset = str(path) if path.exists() else dataset  # what is nowhere is told as it was given
    folders: dict[str, Any] = {
        name: str(Path(given).expanduser().absolute())
        for name in ("data_dir", "client_store")
        if (given := getattr(settings, name)) is not None
    }
    return dataclasses.replace(settings, dataset=dataset, **folders)


def load_split(settings: Settings) -> tuple[Dataset, Split]:
    """Read the data and divide it among the clients that train.

    Args:
        settings: the experiment.

    Returns:
        the data set and its split.

    Raises:
        ValueError: if the data is missing or malformed, or a user has too few events.

    Example:
        >>> load_split(Settings())[1].name
        'synthetic'
    """
    inputs = load_inputs(settings)
    if inputs.stored is not None:
        check_together({RunFeature.STORE: settings.dataset, RunFeature.CENTRAL_ONLY: True})
    return inputs.dataset, inputs.split


def shares_of(settings: Settings) -> dict[str, float]:
    """The shares that the splitter holds out.

    Args:
        settings: the experiment.

    Returns:
        by name; empty for leave-one-out.

    Example:
        >>> shares_of(Settings(splitter="ratio", test_share=0.2))
        {'validation_share': 0.1, 'test_share': 0.2}
    """
    if settings.splitter in ("leave-one-out", "given"):
        return {}
    given = {"validation_share": settings.validation_share, "test_share": settings.test_share}
    if settings.splitter == "strong":
        del given["validation_share"]
    return {name: 0.1 if share is None else share for name, share in given.items()}


def positives_of(settings: Settings) -> str:
    """Which of a user's held-out events count.

    Args:
        settings: the experiment.

    Returns:
        "all" or "first"; the first is the only one where a splitter holds out one.

    Example:
        >>> positives_of(Settings()), positives_of(Settings(splitter="ratio"))
        ('first', 'all')
    """
    if settings.splitter in SEVERAL:
        return settings.positives or "all"
    return "first" if settings.heldout_share is None else "all"


def load_attributes(settings: Settings, split: Split) -> dict[str, np.ndarray]:
    """Read what is known about the users, from the file that lies beside the data, if any.

    Args:
        settings: the experiment.
        split: names the users.

    Returns:
        str[N] by name, empty where unknown; an empty dict where there is no such file.

    Raises:
        ValueError: if the file is malformed.

    Example:
        >>> load_attributes(Settings(), load_split(Settings())[1])
        {}
    """
    file = find_user_attributes(settings.dataset, settings.data_dir)
    return {} if file is None else read_user_attributes(file, split.user_ids)


def protocol_of(settings: Settings, dataset: Dataset, split: Split) -> Protocol:
    """Write down how this experiment is evaluated.

    Args:
        settings: the experiment.
        dataset: its data.
        split: its split.

    Returns:
        the protocol.

    Raises:
        ValueError: if another number of candidates is asked for than the official lists hold.

    Example:
        >>> protocol_of(Settings(), *load_split(Settings())).candidates
        'sampled'
    """
    official = dataset.test is not None and dataset.test.candidates is not None
    held = split.candidates_test.shape[1]
    # what official test items leave to chance is the validation item alone, as the data says
    own_order = (
        dataset.test is not None and dataset.interactions.timestamps is None and split.order == "random"
    )
    clients = settings.splitter == "strong"
    if official and settings.num_candidates != held:
        raise ParameterError(
            "{name} has official lists of {held} candidates; leave out {num_candidates}",
            name=split.name,
            held=held,
        )
    return Protocol(
        data_hash=split.data_hash,
        splitter=settings.splitter,
        validation_share=shares_of(settings).get("validation_share"),
        test_share=shares_of(settings).get("test_share"),
        heldout_share=settings.heldout_share,
        positives=positives_of(settings),
        negatives=split.negatives,
        point="fold-in" if clients else POINTS[settings.evaluation_point],
        fold_in_epochs=fold_in_epochs_of(settings) if clients else 0,
        duplicates=settings.duplicates,
        order="time" if own_order else split.order,
        core=settings.core,
        min_user_events=settings.min_user_events,
        min_rating=settings.min_rating,
        candidates="official" if official else "sampled",
        num_candidates=settings.num_candidates,
        refit=settings.refit,
        seed=settings.protocol_seed,
        evaluate_clients=split.num_users if is_store(settings.dataset) else None,
    )


def fold_in_epochs_of(settings: Settings) -> int:
    """Passes over a held-out client's history before it is ranked.

    Args:
        settings: the experiment.

    Returns:
        k.

    Example:
        >>> fold_in_epochs_of(Settings(splitter="strong"))
        10
    """
    return FOLD_IN_EPOCHS if settings.fold_in_epochs is None else settings.fold_in_epochs
