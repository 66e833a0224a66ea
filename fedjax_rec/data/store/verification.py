"""What is within a store's columns: every item is in the catalogue, and each client's events are in order."""

from typing import TYPE_CHECKING

import numpy as np

from fedjax_rec.data.errors import DataError

if TYPE_CHECKING:
    from fedjax_rec.data.store.format import Store

_BLOCK = 2**22  # values looked at together


def check_items(store: "Store") -> None:
    """Read all items, and refuse those that there are not.

    Args:
        store: any.

    Raises:
        DataError: naming the file and the range of its items.
    """
    for start in range(0, store.num_events, _BLOCK):
        items = store.read("items", start, min(start + _BLOCK, store.num_events))
        if items.min() < 0 or items.max() >= store.num_items:
            raise DataError(
                f"{store.path / 'items.bin'}: items {items.min()} to {items.max()}, and there are "
                f"{store.num_items:,}; make the store anew"
            )


def check_order(store: "Store", clients: np.ndarray | None = None) -> None:
    """Read times, and refuse clients whose events are not in their order, where the store says that they are.

    Args:
        store: any; without times there is nothing to read.
        clients: int[n], whose; None for all.

    Raises:
        DataError: naming the file and the first such client.
    """
    if store.order != "time" or "timestamps" not in store.columns:
        return
    if clients is None:
        spans = ((max(start - 1, 0), start + _BLOCK) for start in range(0, store.num_events, _BLOCK))
    else:
        bounds = zip(store.offsets[clients], store.offsets[clients + 1], strict=True)
        spans = ((int(start), int(stop)) for start, stop in bounds)
    for start, stop in spans:
        times = store.read("timestamps", start, min(stop, store.num_events))
        earlier = start + 1 + np.flatnonzero(np.diff(times) < 0)  # events that are before the one before them
        owners = np.searchsorted(store.offsets, earlier, side="right") - 1
        wrong = owners[store.offsets[owners] != earlier]  # the first event of a client follows nothing
        if len(wrong):
            raise DataError(
                f"{store.path / 'timestamps.bin'}: events of client {wrong[0]:,} are not in the order of their "
                "times; make the store anew"
            )
