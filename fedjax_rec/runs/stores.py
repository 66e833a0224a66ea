"""Runs on a store: all of its clients train, and a sample of them is ranked."""

import dataclasses

import numpy as np

from fedjax_rec.client.stored import StoredPopulation, open_population
from fedjax_rec.compatibility import RunFeature, check_together
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.store.format import Store, is_store
from fedjax_rec.data.store.sampling import HELD_OUT
from fedjax_rec.errors import ParameterError
from fedjax_rec.hosts.processes import check_same
from fedjax_rec.runs.settings import Settings

EVALUATED = 10_000  # clients that are ranked where nobody says how many, or all
_CHANGING = (  # settings of which events there are, and of how a file of them is read
    *("splitter", "positives", "order", "core", "min_user_events", "min_rating"),
    *("user", "item", "rating", "timestamp", "columns", "separator", "part", "duplicates"),
)
_BLOCK = 2**22  # events counted at once


def open_stored(settings: Settings) -> tuple[Dataset, StoredPopulation] | None:
    """Open the data set if it is a store.

    Args:
        settings: the experiment.

    Returns:
        the events of the clients that are ranked, and all clients; None if it is no store.

    Raises:
        ParameterError: if a setting does not go with a store, or only with one.
        DataError: if the store is not sound.

    Example:
        >>> open_stored(Settings()) is None
        True
    """
    found = is_store(settings.dataset)
    check_same(lambda: {"dataset": "a store" if found else "no store"})
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    changed = [name for name in _CHANGING if getattr(settings, name) != defaults[name]]
    check_together(
        {
            RunFeature.STORE: settings.dataset if found else None,
            RunFeature.NO_STORE: None if found else settings.dataset,
            RunFeature.RANKED_SAMPLE: settings.evaluate_clients,
            RunFeature.OTHER_EVENTS: ", ".join(changed) or None,
            RunFeature.NEGATIVES: None if settings.negatives == "train" else settings.negatives,
            RunFeature.EVALUATION_POINT: None
            if settings.evaluation_point == "server"
            else settings.evaluation_point,
            RunFeature.BASELINES: settings.baselines,
            RunFeature.REFIT: settings.refit,
            RunFeature.TUNE: settings.tune,
        }
    )
    if not found:
        return None
    number = settings.evaluate_clients
    stored = (
        open_population(
            settings.dataset,
            evaluate_clients=number,
            seed=settings.protocol_seed,
            num_candidates=settings.num_candidates,
        )
        if number is not None
        else _open_all(settings)
    )
    return Dataset(stored.store.name, _events_of_sample(stored)), stored


def count_items(stored: StoredPopulation) -> np.ndarray:
    """In how many training histories each item is; of several processes, all must call it.

    Args:
        stored: N clients.

    Returns:
        int64[I].
    """
    store = stored.store
    first, stop = store.own_clients

    def count() -> np.ndarray:
        counts = np.zeros(store.num_items, np.int64)
        end = int(store.offsets[stop])
        for start in range(int(store.offsets[first]), end, _BLOCK):
            items = store.read("items", start, min(start + _BLOCK, end))
            counts += np.bincount(items, minlength=store.num_items)
        # Less what was held out at the end of each history.
        own = store.offsets[first : stop + 1]
        ends = own[1:][np.diff(own) > stored.num_held_out]
        items = store.column("items")
        for back in range(1, stored.num_held_out + 1):
            np.subtract.at(counts, items[ends - back], 1)
        return counts

    return store.total(count)


def _open_all(settings: Settings) -> StoredPopulation:
    """With `EVALUATED` clients to rank, or all that can be."""
    store = open_population(settings.dataset).store
    able = int((np.diff(store.offsets) > HELD_OUT).sum())
    if not able:
        raise ParameterError(
            f"{settings.dataset}: no client has {HELD_OUT + 1} events, so nobody can be ranked"
        )
    return open_population(
        settings.dataset,
        evaluate_clients=min(EVALUATED, able),
        seed=settings.protocol_seed,
        num_candidates=settings.num_candidates,
    )


def _events_of_sample(stored: StoredPopulation) -> Interactions:
    """All events of the clients that are ranked."""
    store: Store = stored.store
    assert stored.split is not None  # noqa: S101 - opened so; this tells the type checker
    assert stored.sample_ids is not None  # noqa: S101
    found = store.gather(stored.sample_ids)
    users = np.repeat(np.arange(len(found.counts), dtype=np.int32), found.counts)
    return Interactions(
        users=users,
        items=found.items,
        ratings=found.ratings,
        timestamps=None,
        user_ids=stored.split.user_ids,
        item_ids=stored.split.item_ids,
    )
