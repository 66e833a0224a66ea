"""What a run is fed with, from its settings: the data, how it is divided, and the protocol that says so."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fedjax_rec.data.attributes import find_user_attributes, read_user_attributes
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.registry import load_dataset
from fedjax_rec.data.splits import Split, leave_one_out
from fedjax_rec.data.splitters import ClientSplit, global_time, ratio, strong_generalisation
from fedjax_rec.evaluation.protocol import Protocol
from fedjax_rec.settings import FOLD_IN_EPOCHS, POINTS, Settings

SPLITS: dict[str, Callable[..., Split | ClientSplit]] = {
    "leave-one-out": leave_one_out,
    "global-time": global_time,
    "ratio": ratio,
    "strong": strong_generalisation,
}


class Inputs(NamedTuple):
    """The data of a run, divided."""

    dataset: Dataset
    split: Split  # of the clients that train
    heldout: (
        Split | None
    )  # of clients that do not, where the splitter holds out clients: they alone are tested


def load_inputs(settings: Settings) -> Inputs:
    """Read the data and hold out what the protocol says.

    Args:
        settings: the experiment.

    Returns:
        the data set and its split.

    Raises:
        ValueError: if the data is missing or malformed, or a user has too few events.

    Example:
        >>> load_inputs(Settings()).split.name, load_inputs(Settings()).heldout
        ('synthetic', None)
    """
    s = settings
    columns = {name: getattr(s, name) for name in ("user", "item", "rating", "timestamp")}
    dataset = load_dataset(s.dataset, data_dir=s.data_dir, duplicates=s.duplicates, progress=True, **columns)
    found = SPLITS[s.splitter](
        dataset,
        **shares_of(s),
        min_user_events=s.min_user_events,
        min_rating=s.min_rating,
        core=s.core,
        num_candidates=s.num_candidates,
        seed=s.protocol_seed,
    )
    training, heldout = found if isinstance(found, ClientSplit) else (found, None)
    return Inputs(dataset, training._replace(negatives=s.negatives), heldout)


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
    dataset, split, _ = load_inputs(settings)
    return dataset, split


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
    if settings.splitter == "leave-one-out":
        return {}
    given = {"validation_share": settings.validation_share, "test_share": settings.test_share}
    if settings.splitter == "strong":
        del given["validation_share"]
    return {name: 0.1 if share is None else share for name, share in given.items()}


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
    clients = settings.splitter == "strong"
    if official and settings.num_candidates != held:
        raise ValueError(f"{split.name} has official lists of {held} candidates; leave out --num-candidates")
    return Protocol(
        data_hash=split.data_hash,
        splitter=settings.splitter,
        validation_share=shares_of(settings).get("validation_share"),
        test_share=shares_of(settings).get("test_share"),
        negatives=split.negatives,
        point="fold-in" if clients else POINTS[settings.evaluation_point],
        fold_in_epochs=fold_in_epochs_of(settings) if clients else 0,
        core=settings.core,
        min_user_events=settings.min_user_events,
        min_rating=settings.min_rating,
        candidates="official" if official else "sampled",
        num_candidates=settings.num_candidates,
        refit=settings.refit,
        seed=settings.protocol_seed,
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
