"""Other splitters than leave-one-out: by a common date, by a share of each history, and by client.

| splitter | trains | validates on | tests on |
|---|---|---|---|
| `global_time` | all events before t0 | a user's events from t0 on, before t1 | its events from t1 on |
| `ratio` | the first share of each history | the next share | the last share |
| `given` | the events that the data say train | those that they say validate | those that they say test |
| `strong_generalisation` | some clients, all but the last event | their last event | the *other* clients' last, |
| | | | or the last share of their histories |

All held-out events count (`Split.heldout`). With `positives="first"` the first of each user does alone: it is what
the user did next, or, without timestamps, any of them. The later ones are then neither trained on nor positives,
no candidates of the sampled ranking, but rivals in the full one, where an unused validation event thus competes
with the test item although it was met before. The log counts them. Equal timestamps keep the order of lines.

A global date is the only rule under which no model sees the future (Ji et al. 2023, arXiv:2010.11060); strong
generalisation (Marlin 2004; Liang et al. 2018, arXiv:1802.05814) asks what a federated model gives to a device
that was not there.
"""

from typing import NamedTuple

import numpy as np

from fedjax_rec.data.candidates import random_bits
from fedjax_rec.data.filters import filter_events, log_line, restrict, take
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.heldout import POSITIVES, hold_out_all, select_events
from fedjax_rec.data.inputs import TAKEN, as_dataset
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.order import choose_order, sort_events, tell_drawn
from fedjax_rec.data.splits import Split, assemble, data_hash, leave_one_out, require_least, seen_codes
from fedjax_rec.errors import ParameterError, check_arguments

SPLITTERS = ("leave-one-out", "global-time", "ratio", "given", "strong")
_STREAM_CLIENT = 3  # beside those of `splits`


class ClientSplit(NamedTuple):
    """Clients that train, and clients that do not; one catalogue."""

    training: Split  # its validation items select the round; no test items
    heldout: (
        Split  # training rows are the fold-in histories, test items the later events; no validation items
    )


def global_time(
    dataset: Dataset | Interactions | Frame,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    positives: str = "all",
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
        dataset: the data or a frame of them, with timestamps and without official test items.
        validation_share: v, of all events.
        test_share: s, of all events.
        positives: "all" held-out events count, or the "first" of each user and window.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split; its log holds the dates and what they left.

    Raises:
        ValueError: if `positives` is unknown, timestamps are absent, test items are official, shares are out of
            range, or a segment would have no event or no positive.

    Example:
        >>> users, items = np.array([0] * 6 + [1] * 4, "i4"), np.arange(10, dtype="i4")
        >>> times = np.array([1, 2, 3, 7, 8, 9, 1, 2, 3, 4])
        >>> table = Interactions(users, items, None, times, np.arange(2), np.arange(10))
        >>> split = global_time(Dataset("tiny", table), positives="first")
        >>> split.validation, split.test
        (array([ 4, -1], dtype=int32), array([ 5, -1], dtype=int32))
    """
    check_arguments(global_time, locals())
    dataset = as_dataset(dataset, "global_time")
    _check_positives(positives)
    _require(dataset, "global-time", validation_share, test_share)
    if dataset.interactions.timestamps is None:
        raise ValueError(f"global-time needs timestamps, and {dataset.name!r} has none; use ratio")
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    starts = _dates(_times(table), validation_share, test_share)
    before = table
    early = np.bincount(table.users[_times(table) < starts[0]], minlength=table.num_users) > 0
    table, _ = restrict(table, None, early[table.users], early)
    table = sort_events(table, "time")
    segments = np.searchsorted(starts, _times(table), side="right")
    split = _divide(dataset, table, segments, positives, num_candidates, seed)
    rule = f"global-time: train before {starts[0]:.15g}, test from {starts[1]:.15g}"
    absent = log_line("global-time: users without an event to train on", before, table)
    if not ((split.validation >= 0).any() and (split.test >= 0).any()):
        counts = f"{rule}; {_count(split, segments)}"
        raise ValueError(f"nobody to validate or to test ({counts}); change the shares or use ratio")
    return split._replace(log=(*log, absent, f"{rule}; {_count(split, segments)}"))


def ratio(
    dataset: Dataset | Interactions | Frame,
    *,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    positives: str = "all",
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    order: str | None = None,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Hold out the last share of each user's history.

    Of n events in order of time, the first max(1, floor(n (1 - v - s))) train; validation begins with the next
    one, and the test with event max(that + 1, floor(n (1 - s))), counted from 0: each has an event at least.

    Args:
        dataset: the data or a frame of them, without official test items.
        validation_share: v, of each user's events.
        test_share: s, of each user's events.
        positives: "all" held-out events count, or the "first" of each user and share.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        order: of a user's events, as in `leave_one_out`: without timestamps they are in no order by default.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split.

    Raises:
        ValueError: if test items are official, shares are out of range, a user has fewer than 3 events,
            or the order or `positives` is none.

    Example:
        >>> users, items = np.zeros(10, "i4"), np.arange(10, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(10))
        >>> split = ratio(Dataset("tiny", table), validation_share=0.2, test_share=0.3, order="file")
        >>> split.items, split.heldout.validation.items, split.heldout.test.items
        (array([0, 1, 2, 3, 4], dtype=int32), array([5, 6], dtype=int32), array([7, 8, 9], dtype=int32))
    """
    check_arguments(ratio, locals())
    dataset = as_dataset(dataset, "ratio")
    _check_positives(positives)
    _require(dataset, "ratio", validation_share, test_share)
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    _require_events(table, "ratio", 3)
    chosen = choose_order(dataset, order)
    table = sort_events(table, chosen, seed)
    # where validation and test begin in each history, int64[N]
    counts = np.bincount(table.users, minlength=table.num_users)
    first = np.maximum(1, _floor(counts * (1 - validation_share - test_share)))
    first = np.minimum(first, counts - 2)
    second = np.minimum(np.maximum(first + 1, _floor(counts * (1 - test_share))), counts - 1)
    # each event's index in its user's history, and by it the segment that it is in, int64[M]
    index = np.arange(len(table.users)) - np.repeat(np.cumsum(counts) - counts, counts)
    segments = (index >= first[table.users]).astype(np.int64) + (index >= second[table.users])
    split = _divide(dataset, table, segments, positives, num_candidates, seed)
    log = (*log, *tell_drawn(chosen, order), f"ratio: {_count(split, segments)}")
    return split._replace(log=log, order=chosen)


def given(
    dataset: Dataset,
    *,
    positives: str = "all",
    order: str | None = None,
    num_candidates: int = 99,
    seed: int = 0,
) -> Split:
    """Divide as somebody else did: by the parts that come with the data.

    Where no part validates, one training event of each user with two or more does: its last, or, without
    timestamps, any. Users without a training event are dropped, with the items that nobody else met.

    Args:
        dataset: with `parts`, as folders of splits (`data.given_splits`) and `frame_of_parts` give it.
        positives: "all" held-out events count, or the "first" of each user and part.
        order: of a user's events, as in `leave_one_out`: without timestamps they are in no order by default.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        The split.

    Raises:
        ValueError: if the data have no parts, nobody is tested, or the order or `positives` is none.

    Example:
        >>> from fedjax_rec.data.given_splits import frame_of_parts
        >>> frame = {"user": [1] * 4, "item": [5, 6, 7, 8], "part": ["train", "train", "test", "test"]}
        >>> split = given(frame_of_parts(frame, "part"), order="file")
        >>> split.items, split.heldout.validation.items, split.heldout.test.items
        (array([0], dtype=int32), array([1], dtype=int32), array([2, 3], dtype=int32))
    """
    check_arguments(given, locals())
    _check_positives(positives)
    table = dataset.interactions
    parts = dataset.parts
    if parts is None:
        raise ParameterError(
            "{name!r} has no parts that train and test; give a folder of them, or with {part} a column that says "
            "so, or use another splitter",
            name=dataset.name,
        )
    before = table
    trained = np.bincount(table.users[parts == 0], minlength=table.num_users) > 0
    kept = trained[table.users]
    table, _ = restrict(table, None, kept, trained)
    chosen = choose_order(dataset, order)
    # events in order, with the row of the table that each had, int64[M]
    ordered = sort_events(table._replace(ratings=np.arange(len(table.users))), chosen, seed)
    rows = np.asarray(ordered.ratings)
    table = ordered._replace(ratings=take(table.ratings, rows))
    segments = parts[kept][rows].astype(np.int64)
    log = [*dataset.notes]
    if before.num_users != table.num_users:
        log.append(log_line("given: users without a training event", before, table))
    if not (segments == 1).any():
        last_event = np.full(table.num_users, -1)
        training = np.flatnonzero(segments == 0)
        last_event[table.users[training]] = training  # the last of a user is written last
        segments[last_event[np.bincount(table.users[training], minlength=table.num_users) > 1]] = 1
        log.append("given: without a part that validates, a training event of each user does")
    split = _divide(dataset, table, segments, positives, num_candidates, seed)
    if not (split.test >= 0).any():
        raise ValueError(f"given: nobody of {dataset.name!r} who trains is tested")
    log += [f"given: {_count(split, segments)}"]
    digest = data_hash(dataset.interactions, parts=parts)
    return split._replace(log=tuple(log), order=chosen, data_hash=digest)


def strong_generalisation(
    dataset: Dataset | Interactions | Frame,
    *,
    test_share: float = 0.2,
    heldout_share: float | None = None,
    min_user_events: int = 0,
    min_rating: float | None = None,
    core: int = 0,
    order: str | None = None,
    num_candidates: int = 99,
    seed: int = 0,
) -> ClientSplit:
    """Hold out clients: they bring a history to fold in and items to find, and never train the server.

    Of n events of a held-out client, with a share s of them to find, those from max(1, floor(n (1 - s))) on test,
    counted from 0, and at least the last.

    Args:
        dataset: the data or a frame of them, without official test items.
        test_share: share of the clients that are held out, drawn by the seed; at least 1, and not all.
        heldout_share: s, of each held-out client's events, all of which count; None for its last event alone.
        min_user_events: users with fewer events are dropped; 0 drops none.
        min_rating: events rated lower are dropped first.
        core: k, users and items are dropped until all have k events or more; 0 drops none.
        order: of a user's events, as in `leave_one_out`: without timestamps they are in no order by default.
        num_candidates: n.
        seed: the protocol's seed.

    Returns:
        Both groups; every item stays in the catalogue, also one that held-out clients alone have met.

    Raises:
        ValueError: if test items are official, a share is out of range, a user has fewer than 2 events,
            or the order is none.

    Example:
        >>> from fedjax_rec.data.synthetic import synthetic
        >>> split = strong_generalisation(synthetic(50, 100), test_share=0.1)
        >>> split.training.num_users, split.heldout.num_users, split.heldout.num_items
        (45, 5, 100)
    """
    check_arguments(strong_generalisation, locals())
    dataset = as_dataset(dataset, "strong_generalisation")
    _require(dataset, "strong", None, test_share)
    if heldout_share is not None and not 0 < heldout_share < 1:
        raise ParameterError("{heldout_share}={value} must be above 0 and below 1", value=heldout_share)
    table, _, log = filter_events(dataset, min_rating=min_rating, min_user_events=min_user_events, core=core)
    _require_events(table, "strong", 2)
    if table.num_users < 2:
        raise ValueError(f"strong needs 2 users or more, and {dataset.name!r} has 1 left")
    number = min(max(1, round(table.num_users * test_share)), table.num_users - 1)
    shuffled = np.argsort(random_bits(seed, _STREAM_CLIENT, np.arange(table.num_users)), kind="stable")
    heldout = np.zeros(table.num_users, bool)
    heldout[shuffled[:number]] = True
    chosen = choose_order(dataset, order)
    rule = f"strong: {table.num_users - number} clients train, {number} are held out"
    everything = np.ones(table.num_items, bool)

    def group(users: np.ndarray, last_event: str) -> Split:
        # these users' events, and where the last of each stands, int64[users]
        events, _ = restrict(table, None, users[table.users], users, everything)
        events = sort_events(events, chosen, seed)
        last = np.cumsum(np.bincount(events.users, minlength=events.num_users)) - 1
        # all others train
        train = np.ones(len(events.users), bool)
        train[last] = False
        nothing = np.full(events.num_users, -1)
        at = (last, nothing) if last_event == "validation" else (nothing, last)
        if last_event == "test" and heldout_share is not None:
            counts = np.bincount(events.users, minlength=events.num_users)
            number = np.minimum(np.maximum(1, _floor(counts * (1 - heldout_share))), counts - 1)
            first = last - counts + 1 + number
            train = np.arange(len(events.users)) < first[events.users]
            at = (nothing, first)
        seen = seen_codes(events)
        split = assemble(dataset, events, train, *at, seen=seen, num_candidates=num_candidates, seed=seed)
        if last_event == "test" and heldout_share is not None:
            split = hold_out_all(split, *(select_events(events, part) for part in (train & ~train, ~train)))
        return split._replace(log=(*log, *tell_drawn(chosen, order), rule), order=chosen)

    return ClientSplit(group(~heldout, "validation"), group(heldout, "test"))


def as_split(data: Split | Dataset | Interactions | Frame, function: str, *, name: str = "split") -> Split:
    """Leaves a split as it is, and holds out one event of whatever else holds events.

    Args:
        data: a split, a data set, a table of events, or a frame; what is no split is divided by `leave_one_out`,
            by its defaults.
        function: that was called, for messages,
        name: and the name of its argument.

    Returns:
        the split.

    Raises:
        ArgumentError: if it is nothing of that kind.
        ValueError: if the frame is malformed, or its events cannot be divided.

    Example:
        >>> as_split({"user": [1, 1, 1], "item": [4, 5, 6], "timestamp": [3, 2, 1]}, "simulate").items
        array([2], dtype=int32)
    """
    if isinstance(data, Split):
        return data
    dataset = as_dataset(data, function, name=name, taken=f"a Split, {TAKEN}")
    try:
        return leave_one_out(dataset)
    except ValueError as error:
        raise ValueError(f"{error}; {function} takes what leave_one_out(data, ...) returns") from error


def _divide(
    dataset: Dataset,
    table: Interactions,
    segments: np.ndarray,
    positives: str,
    num_candidates: int,
    seed: int,
) -> Split:
    """Train on segment 0, validate on segment 1, test on segment 2: on all of a user's events, or on the first."""
    at = []
    for segment in (1, 2):
        events = np.flatnonzero(segments == segment)
        first_event = np.full(table.num_users, -1)
        first_event[table.users[events[::-1]]] = events[::-1]  # the first of a user is written last
        at.append(first_event)
    seen = seen_codes(table)
    train = segments == 0
    split = assemble(dataset, table, train, *at, seen=seen, num_candidates=num_candidates, seed=seed)
    if positives == "first":
        return split
    return hold_out_all(split, *(select_events(table, segments == segment) for segment in (1, 2)))


def _count(split: Split, segments: np.ndarray) -> str:
    """How many events and users train, validate and test, for the log."""
    validate, test = (int((items >= 0).sum()) for items in (split.validation, split.test))
    train = f"{len(split.items)} events train"
    if split.heldout is not None:
        validation, tests = (len(events.items) for events in split.heldout)
        return f"{train}, {validation} of {validate} users validate, {tests} of {test} test"
    unused = [int((segments == segment).sum()) - used for segment, used in ((1, validate), (2, test))]
    return f"{train}, {validate} users validate, {test} test; {unused[0]} + {unused[1]} later events not used"


def _check_positives(positives: str) -> None:
    if positives not in POSITIVES:
        known = ", ".join(map(repr, POSITIVES))
        raise ValueError(f"positives={positives!r} is unknown; choose one of {known}")


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


def _require_events(table: Interactions, name: str, min_events: int) -> None:
    require_least(name, min_events, np.bincount(table.users, minlength=table.num_users), table.user_ids)


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
