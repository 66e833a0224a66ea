"""Other splitters than leave-one-out: by a common date, by a share of each history, and by client.

| splitter | trains | validates on | tests on |
|---|---|---|---|
| `global_time` | all events before t0 | a user's first event from t0 on, before t1 | its first event from t1 on |
| `ratio` | the first share of each history | the first event of the next share | that of the last share |
| `strong_generalisation` | some clients, all but the last event | their last event | the *other* clients' last |

A split holds one positive per user, so that of several held-out events the **first** counts: it is what the user
did next. The later ones are neither trained on nor positives. They are no candidates of the sampled ranking, but
rivals in the full one, where an unused validation event thus competes with the test item although it was met
before. The log counts them. Equal timestamps keep the order of the file, as in leave-one-out.

A global date is the only rule under which no model sees the future (Ji et al. 2023, arXiv:2010.11060); strong
generalisation (Marlin 2004; Liang et al. 2018, arXiv:1802.05814) asks what a federated model gives to a device
that was not there.
"""

from typing import NamedTuple

import numpy as np

from fedjax_rec.data.candidates import random_bits
from fedjax_rec.data.filters import filter_events, log_line, restrict
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.splits import Split, assemble, seen_codes, sort_events

SPLITTERS = ("leave-one-out", "global-time", "ratio", "strong")
_STREAM_CLIENT = 3  # beside those of `splits`


class ClientSplit(NamedTuple):
    """Clients that train, and clients that do not; one catalogue."""

    training: Split  # its validation items select the round; no test items
    heldout: Split  # training rows are the fold-in histories, test items the last events; no validation items


def global_time(
    dataset: Dataset,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Cut all users at the same two dates.

    With M events in order of time, t0 is the date of event floor(M (1 - v - s)) and t1 that of event
    floor(M (1 - s)), counted from 0; v and s are the shares. Users without an event before t0 did not exist when
    training took place and are dropped, with the items that nobody else met; users without an event in a window
    have no positive there, -1. Users who come and go, as in MovieLens, leave few positives: the log says how many.

    Args:
        dataset: the data, with timestamps and without official test items.
        validation_share: v, of all events.
        test_share: s, of all events.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split; its log holds the dates and what they left.

    Raises:
        ValueError: if timestamps are absent, test items are official, shares are out of range, or a part would
            have no event or no positive.

    Example:
        >>> users, items = np.array([0] * 6 + [1] * 4, "i4"), np.arange(10, dtype="i4")
        >>> times = np.array([1, 2, 3, 7, 8, 9, 1, 2, 3, 4])
        >>> table = Interactions(users, items, None, times, np.arange(2), np.arange(10))
        >>> split = global_time(Dataset("tiny", table))
        >>> split.validation, split.test
        (array([ 4, -1], dtype=int32), array([ 5, -1], dtype=int32))
    """
    _require(dataset, "global-time", validation_share, test_share)
    if dataset.interactions.timestamps is None:
        raise ValueError(f"global-time needs timestamps, and {dataset.name!r} has none; use ratio")
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    starts = _dates(_times(table), validation_share, test_share)
    before = table
    early = np.bincount(table.users[_times(table) < starts[0]], minlength=table.num_users) > 0
    table, _ = restrict(table, None, early[table.users], early)
    table = sort_events(table)
    parts = np.searchsorted(starts, _times(table), side="right")
    split = _divide(dataset, table, parts, num_candidates, seed)
    rule = f"global-time: train before {starts[0]:.15g}, test from {starts[1]:.15g}"
    absent = log_line("global-time: users without an event to train on", before, table)
    if not ((split.validation >= 0).any() and (split.test >= 0).any()):
        found = f"{rule}; {_count(split, parts)}"
        raise ValueError(f"nobody to validate or to test ({found}); change the shares or use ratio")
    return split._replace(log=(*log, absent, f"{rule}; {_count(split, parts)}"))


def ratio(
    dataset: Dataset,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Hold out the last share of each user's history.

    Of n events in order of time, the first max(1, floor(n (1 - v - s))) train; validation begins with the next
    one, and the test with event max(that + 1, floor(n (1 - s))), counted from 0: each part has an event at least.

    Args:
        dataset: the data, without official test items; without timestamps the order of the file is that of time.
        validation_share: v, of each user's events.
        test_share: s, of each user's events.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split.

    Raises:
        ValueError: if test items are official, shares are out of range, or a user has fewer than 3 events.

    Example:
        >>> users, items = np.zeros(10, "i4"), np.arange(10, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(10))
        >>> split = ratio(Dataset("tiny", table), validation_share=0.2, test_share=0.3)
        >>> split.items, split.validation, split.test
        (array([0, 1, 2, 3, 4], dtype=int32), array([5], dtype=int32), array([7], dtype=int32))
    """
    _require(dataset, "ratio", validation_share, test_share)
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    _require_events(table, "ratio", 3)
    table = sort_events(table)
    counts = np.bincount(table.users, minlength=table.num_users)
    first = np.maximum(1, _floor(counts * (1 - validation_share - test_share)))
    first = np.minimum(first, counts - 2)
    second = np.minimum(np.maximum(first + 1, _floor(counts * (1 - test_share))), counts - 1)
    place = np.arange(len(table.users)) - np.repeat(np.cumsum(counts) - counts, counts)
    parts = (place >= first[table.users]).astype(np.int64) + (place >= second[table.users])
    split = _divide(dataset, table, parts, num_candidates, seed)
    return split._replace(log=(*log, f"ratio: {_count(split, parts)}"))


def strong_generalisation(
    dataset: Dataset,
    *,
    test_share: float = 0.2,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    num_candidates: int = 99,
    seed: int = 0,
) -> ClientSplit:
    """Hold out clients: they bring a history to fold in and one item to find, and never train the server.

    Args:
        dataset: the data, without official test items.
        test_share: share of the clients that are held out, drawn by the seed; at least 1, and not all.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        Both groups; every item stays in the catalogue, also one that held-out clients alone have met.

    Raises:
        ValueError: if test items are official, the share is out of range, or a user has fewer than 2 events.

    Example:
        >>> from fedjax_rec.data.synthetic import synthetic
        >>> split = strong_generalisation(synthetic(50, 100), test_share=0.1)
        >>> split.training.num_users, split.heldout.num_users, split.heldout.num_items
        (45, 5, 100)
    """
    _require(dataset, "strong", None, test_share)
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    _require_events(table, "strong", 2)
    if table.num_users < 2:
        raise ValueError(f"strong needs 2 users or more, and {dataset.name!r} has 1 left")
    number = min(max(1, round(table.num_users * test_share)), table.num_users - 1)
    order = np.argsort(random_bits(seed, _STREAM_CLIENT, np.arange(table.num_users)), kind="stable")
    heldout = np.zeros(table.num_users, bool)
    heldout[order[:number]] = True
    rule = f"strong: {table.num_users - number} clients train, {number} are held out"
    everything = np.ones(table.num_items, bool)

    def group(users: np.ndarray, which: str) -> Split:
        part, _ = restrict(table, None, users[table.users], users, everything)
        part = sort_events(part)
        last = np.cumsum(np.bincount(part.users, minlength=part.num_users)) - 1
        train = np.ones(len(part.users), bool)
        train[last] = False
        nothing = np.full(part.num_users, -1)
        at = (last, nothing) if which == "validation" else (nothing, last)
        seen = seen_codes(part)
        split = assemble(dataset, part, train, *at, seen=seen, num_candidates=num_candidates, seed=seed)
        return split._replace(log=(*log, rule))

    return ClientSplit(group(~heldout, "validation"), group(heldout, "test"))


def _divide(
    dataset: Dataset, table: Interactions, parts: np.ndarray, num_candidates: int, seed: int
) -> Split:
    """Train on part 0; the first event of part 1 validates, that of part 2 tests."""
    at = []
    for part in (1, 2):
        places = np.flatnonzero(parts == part)
        users, first = np.unique(table.users[places], return_index=True)
        place = np.full(table.num_users, -1)
        place[users] = places[first]
        at.append(place)
    seen = seen_codes(table)
    return assemble(dataset, table, parts == 0, *at, seen=seen, num_candidates=num_candidates, seed=seed)


def _count(split: Split, parts: np.ndarray) -> str:
    validate, test = (int((held >= 0).sum()) for held in (split.validation, split.test))
    later = [int((parts == part).sum()) - used for part, used in ((1, validate), (2, test))]
    counts = f"{len(split.items)} events train, {validate} users validate, {test} test"
    return f"{counts}; {later[0]} + {later[1]} later events not used"


def _require(dataset: Dataset, name: str, validation_share: float | None, test_share: float) -> None:
    if dataset.test is not None:
        raise ValueError(
            f"{dataset.name!r} has official test items; {name} would ignore them, use leave-one-out"
        )
    shares = [share for share in (validation_share, test_share) if share is not None]
    if not all(share > 0 for share in shares) or not sum(shares) < 1:
        given = (
            f"validation_share={validation_share}, " * (validation_share is not None)
            + f"test_share={test_share}"
        )
        raise ValueError(f"{name}: {given} must be above 0, and below 1 together")


def _require_events(table: Interactions, name: str, least: int) -> None:
    counts = np.bincount(table.users, minlength=table.num_users)
    if len(short := np.flatnonzero(counts < least)):
        raise ValueError(
            f"{name} needs {least} events of each user; {len(short)} of {table.num_users} users have fewer, the "
            f"first of them {str(table.user_ids[short[0]])!r} with {counts[short[0]]}; min_user_events={least} "
            "drops them"
        )


def _dates(times: np.ndarray, validation_share: float, test_share: float) -> np.ndarray:
    """[2], the dates t0 and t1."""
    ordered = np.sort(times)
    shares = np.array([1 - validation_share - test_share, 1 - test_share])
    starts = ordered[_floor(len(ordered) * shares)]
    if not ordered[0] < starts[0] < starts[1]:
        raise ValueError(
            f"global-time: train, validation and test need different dates, but they begin at {ordered[0]:.15g}, "
            f"{starts[0]:.15g} and {starts[1]:.15g}; change the shares"
        )
    return starts


def _times(table: Interactions) -> np.ndarray:
    assert table.timestamps is not None  # noqa: S101 - checked before
    return table.timestamps


def _floor(values: np.ndarray) -> np.ndarray:
    """Round down, but 6.9999999 is 7."""
    return np.floor(values + 1e-9).astype(np.int64)
