"""Which clients of a store are ranked, and what is held out: the last event tests, the one before validates."""

import numpy as np

from fedjax_rec.data.candidates import draw_candidates, random_bits
from fedjax_rec.data.errors import DataError, DataParameterError
from fedjax_rec.data.sorting import sort_distinct
from fedjax_rec.data.splits import Split
from fedjax_rec.data.store.format import Store

HELD_OUT = 2  # events at the end of each history
_STREAM_VALIDATION = 0  # as in `splits`
_STREAM_TEST = 1
_STREAM_CLIENT = 5  # beside those of `splits`, `splitters` and `order`
_BLOCK = 2**20  # clients looked at together


def sample_split(
    store: Store, num_clients: int, *, seed: int = 0, num_candidates: int = 99
) -> tuple[np.ndarray, Split]:
    """Draw clients to rank, with their events divided by leave-one-out.

    A client is drawn by its own random number, a function of (seed, id): those with the smallest are the sample.

    Args:
        store: N clients, each one's events in order.
        num_clients: n.
        seed: the protocol's.
        num_candidates: of sampled ranking.

    Returns:
        int64[n], the clients in ascending order, and their split.

    Raises:
        DataError: if fewer clients have 3 events, or theirs are not in order.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fedjax_rec.data.store.drawn import synthesise
        >>> store = synthesise(Path(tempfile.mkdtemp()) / "drawn", clients=30, items=100, events_per_client=5)
        >>> ids, split = sample_split(store, 4)
        >>> len(ids), split.num_users
        (4, 4)
    """
    if num_clients < 1:
        raise DataParameterError(
            f"{{evaluate_clients={num_clients}}} must be at least 1; leave it out to rank nobody"
        )
    ids = _draw(store, num_clients, seed)
    store.check_order(ids)
    found = store.gather(ids)
    ends = np.cumsum(found.counts)
    is_train = np.ones(len(found.items), bool)
    is_train[ends - 1] = is_train[ends - 2] = False
    rows = np.repeat(np.arange(len(ids)), found.counts)
    seen = sort_distinct(rows * store.num_items + found.items)
    shape = (len(ids), num_candidates)

    def pick(column: np.ndarray | None, back: int) -> np.ndarray | None:
        return None if column is None else column[ends - back]

    offsets = np.concatenate([[0], np.cumsum(found.counts - HELD_OUT)])
    return ids, Split(
        offsets=offsets,
        items=found.items[is_train],
        ratings=None if found.ratings is None else found.ratings[is_train],
        validation=found.items[ends - 2],
        validation_ratings=pick(found.ratings, 2),
        test=found.items[ends - 1],
        test_ratings=pick(found.ratings, 1),
        candidates_validation=draw_candidates(seen, shape, store.num_items, seed, _STREAM_VALIDATION),
        candidates_test=draw_candidates(seen, shape, store.num_items, seed, _STREAM_TEST),
        user_ids=store.user_ids(ids),
        item_ids=store.ids("item_ids"),
        name=store.name,
        data_hash=store.data_hash,
        log=(
            f"{len(ids):,} of {store.num_clients:,} clients are ranked, drawn by the protocol's seed {seed}",
        ),
        order=store.order,
    )


def _draw(store: Store, num_clients: int, seed: int) -> np.ndarray:
    """int64[n], the clients with the smallest random numbers among those with events enough."""
    best, numbers, fitting = np.zeros(0, np.int64), np.zeros(0, np.uint64), 0
    for first in range(0, store.num_clients, _BLOCK):
        lengths = np.diff(store.offsets[first : first + _BLOCK + 1])
        able = first + np.flatnonzero(lengths > HELD_OUT)
        fitting += len(able)
        best = np.concatenate([best, able])
        numbers = np.concatenate([numbers, random_bits(seed, _STREAM_CLIENT, able)])
        keep = np.argsort(numbers, kind="stable")[:num_clients]
        best, numbers = best[keep], numbers[keep]
    if fitting < num_clients:
        raise DataError(
            f"{store.path}: {fitting:,} clients have {HELD_OUT + 1} events or more, and evaluate_clients="
            f"{num_clients:,} are to be ranked; lower it"
        )
    return np.sort(best)
