"""Fake users, which an attacker adds to a split: they train with the others, and no metric counts them.

They come last, so that the real users keep their codes, and hold out nothing: their ranks are NaN, and no mean of
ranking metrics counts them. A real client that an attacker took over is left out of the means by
`exclude_from_evaluation`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_rec.data.heldout import Events, HeldoutEvents, keep_users
from fedjax_rec.data.splits import Split


def with_fake_users(
    split: Split,
    count: int,
    *,
    items: Sequence[int] | np.ndarray = (),
    length: int | None = None,
    seed: int = 0,
) -> Split:
    """Add fake users behind the real ones, each with a history of its own.

    Args:
        split: of N users.
        count: F, how many to add, at least 0.
        items: int[n], distinct codes of items that every fake user holds.
        length: training events of each, n to I; by default the real users' mean, rounded, but at least n and 1.
        seed: of the other items, which are drawn uniformly without replacement; ratings are the real ones' mean.

    Returns:
        the split of N + F users; the fake ones are N to N + F - 1, without validation, test or candidates.

    Raises:
        ValueError: if a number is out of range, or an item is unknown or given twice.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> split = with_fake_users(tiny_split(), 2, items=[0], length=3)
        >>> split.num_users - tiny_split().num_users, split.test[-2:].tolist(), split.items[-3].item()
        (2, [-1, -1], 0)
    """
    common = np.asarray(items, np.int32)
    mean = round(len(split.items) / max(split.num_users, 1))
    length = min(max(mean, len(common), 1), split.num_items) if length is None else length
    _check(split, count, common, length)
    # F histories of `length` items: the common ones, and others of each user's own
    others = np.setdiff1d(np.arange(split.num_items, dtype=np.int32), common)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(others, length - len(common), replace=False) for _ in range(count)]
    histories = [np.concatenate([common, own]) for own in drawn]
    # the training events of N + F users
    ends = np.arange(1, count + 1) * length + split.offsets[-1]
    grown = split._replace(
        offsets=np.append(split.offsets, ends),
        items=np.concatenate([split.items, *histories]).astype(np.int32),
        ratings=_extend(split.ratings, count * length, _mean(split.ratings)),
        user_ids=np.append(split.user_ids, _new_ids(split.user_ids, count)),
        log=(*split.log, f"added {count} fake users of {length} events"),
    )
    # and what they hold out: nothing
    item_columns = ("validation", "test", "candidates_validation", "candidates_test")
    rating_columns = ("validation_ratings", "test_ratings")
    heldout: dict[str, Any] = {name: _extend(getattr(split, name), count, -1) for name in item_columns}
    heldout |= {name: _extend(getattr(split, name), count, np.nan) for name in rating_columns}
    if split.heldout is not None:
        heldout["heldout"] = HeldoutEvents(*(_with_nothing(events, count) for events in split.heldout))
    return grown._replace(**heldout)


def exclude_from_evaluation(split: Split, users: Sequence[int] | np.ndarray) -> Split:
    """Take users out of the evaluation: what they hold out is forgotten, what they train on stays.

    Args:
        split: of N users.
        users: int[n], codes 0 to N - 1.

    Returns:
        the split, those users without validation and test item; masked as seen they are no longer.

    Raises:
        ValueError: if there is no such user.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> exclude_from_evaluation(tiny_split(), [0]).test[0].item()
        -1
    """
    chosen = np.asarray(users, int)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < split.num_users):
        raise ValueError(f"users are 0..{split.num_users - 1}, not {chosen.min()}..{chosen.max()}")
    mask = np.isin(np.arange(split.num_users), chosen)
    return split._replace(
        validation=np.where(mask, -1, split.validation).astype(np.int32),
        test=np.where(mask, -1, split.test).astype(np.int32),
        heldout=split.heldout and HeldoutEvents(*(keep_users(events, ~mask) for events in split.heldout)),
    )


def _check(split: Split, count: int, items: np.ndarray, length: int) -> None:
    if count < 0:
        raise ValueError(f"count={count} fake users is out of range; choose 0 or more")
    if len(np.intersect1d(items, np.arange(split.num_items))) != len(items):
        raise ValueError(f"items={items.tolist()} must be distinct codes of 0..{split.num_items - 1}")
    if not max(len(items), 1) <= length <= split.num_items:
        raise ValueError(f"length={length} is out of range; choose {max(len(items), 1)} to {split.num_items}")


def _extend(column: np.ndarray | None, count: int, value: float) -> np.ndarray | None:
    """A column with so many further entries (rows) of one value."""
    if column is None:
        return None
    return np.concatenate([column, np.full((count, *column.shape[1:]), value, column.dtype)])


def _with_nothing(events: Events, count: int) -> Events:
    """Held-out events, with so many further users that hold out none."""
    return events._replace(offsets=np.append(events.offsets, np.full(count, events.offsets[-1])))


def _mean(ratings: np.ndarray | None) -> float:
    return 0.0 if ratings is None or not len(ratings) else float(ratings.mean())


def _new_ids(ids: np.ndarray, count: int) -> np.ndarray:
    """External ids that nobody has."""
    if np.issubdtype(ids.dtype, np.integer):
        return np.arange(count) + int(ids.max(initial=-1)) + 1
    names: list[str] = []
    taken = set(ids.tolist())
    number = 0
    while len(names) < count:
        name = f"fake-{number}"
        number += 1
        names += [name] * (name not in taken)
    return np.array(names, dtype=str)
