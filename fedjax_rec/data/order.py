"""The order of a user's events: by time, by the lines of the file where that is asked for, or drawn at random.

Time is never guessed: a file without times may be sorted by anything, such as how often something was played, and
the last line of each user would then be a strange thing to hold out.

| order | a user's events stand |
|---|---|
| `time` | by timestamp; equal ones as in the file |
| `file` | as in the file |
| `random` | in a random order, drawn by the protocol's seed: what is held out of them is any of them |
"""

import numpy as np

from fedjax_rec.data.candidates import random_bits
from fedjax_rec.data.filters import take
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.sorting import order_of_events, stable_order
from fedjax_rec.errors import ParameterError

ORDERS = ("time", "file", "random")
_DRAWN = (
    "no times: held-out events are drawn at random; order='file' (--order file) takes the lines of the file for "
    "their order"
)
_STREAM = 4  # beside those of `splits` and `splitters`


def choose_order(dataset: Dataset, order: str | None) -> str:
    """Settle the order of events.

    Args:
        dataset: the data.
        order: one of `ORDERS`; None for time where there are timestamps, else at random.

    Returns:
        one of `ORDERS`.

    Raises:
        ValueError: if there is no such order, or it is that of time and there are no timestamps.

    Example:
        >>> table = Interactions(np.zeros(1, "i4"), np.zeros(1, "i4"), None, None, np.arange(1), np.arange(1))
        >>> choose_order(Dataset("tiny", table), None)
        'random'
    """
    timed = dataset.interactions.timestamps is not None
    if order is None:
        return "time" if timed else "random"
    if order not in ORDERS:
        raise ParameterError(
            "{order} {value!r} is unknown; choose one of {known}",
            value=order,
            known=", ".join(map(repr, ORDERS)),
        )
    if order == "time" and not timed:
        raise ParameterError(
            "{order=time} needs timestamps, and {name!r} has none; use file or random, or name their column "
            "with {timestamp}",
            name=dataset.name,
        )
    return order


def tell_drawn(order: str, asked: str | None) -> tuple[str, ...]:
    """What a log says of an order that nobody asked for.

    Args:
        order: as `choose_order` settled it.
        asked: what it was asked for.

    Returns:
        a line if it is random, and none otherwise.

    Example:
        >>> len(tell_drawn("random", None)), tell_drawn("random", "random"), tell_drawn("time", None)
        (1, (), ())
    """
    return (_DRAWN,) if order == "random" and asked is None else ()


def sort_events(table: Interactions, order: str, seed: int = 0) -> Interactions:
    """Put events user after user, and each user's in order.

    Args:
        table: M events.
        order: one of `ORDERS`.
        seed: the protocol's, of a random order.

    Returns:
        the same events.

    Example:
        >>> times = np.array([2, 1])
        >>> table = Interactions(np.zeros(2, "i4"), np.arange(2), None, times, np.arange(1), np.arange(2))
        >>> sort_events(table, "time").items, sort_events(table, "file").items
        (array([1, 0]), array([0, 1]))
    """
    if order == "random":
        by_chance = np.argsort(random_bits(seed, _STREAM, table.users, table.items), kind="stable")
        rows = by_chance[stable_order(table.users[by_chance])]
    else:
        rows = order_of_events(table.users, table.timestamps if order == "time" else None)
    return table._replace(
        users=table.users[rows],
        items=table.items[rows],
        ratings=take(table.ratings, rows),
        timestamps=take(table.timestamps, rows),
    )
