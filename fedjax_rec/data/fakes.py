"""Fake clients: users that an attacker adds to a split, to train with the others and to be measured by nobody.

They come last, so that the real users keep their codes, and hold out nothing: their ranks are NaN, and no mean of
ranking metrics counts them. A real client that an attacker took over is left out of the means by `unmeasured`.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedjax_rec.data.splits import Split


def with_fakes(
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
        >>> split = with_fakes(tiny_split(), 2, items=[0], length=3)
        >>> split.num_users - tiny_split().num_users, split.test[-2:].tolist(), split.items[-3].item()
        (2, [-1, -1], 0)
    """
    wanted = np.asarray(items, np.int32)
    mean = round(len(split.items) / max(split.num_users, 1))
    length = min(max(mean, len(wanted), 1), split.num_items) if length is None else length
    _check(split, count, wanted, length)
    others = np.setdiff1d(np.arange(split.num_items, dtype=np.int32), wanted)
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(others, length - len(wanted), replace=False) for _ in range(count)]
    histories = [np.concatenate([wanted, rest]) for rest in drawn]
    more = np.arange(1, count + 1) * length + split.offsets[-1]
    grown = split._replace(
        offsets=np.append(split.offsets, more),
        items=np.concatenate([split.items, *histories]).astype(np.int32),
        ratings=_more(split.ratings, count * length, _mean(split.ratings)),
        user_ids=np.append(split.user_ids, _fresh_ids(split.user_ids, count)),
        log=(*split.log, f"added {count} fake users of {length} events"),
    )
    columns = ("validation", "test", "candidates_validation", "candidates_test")
    rated = ("validation_ratings", "test_ratings")
    held: dict[str, Any] = {name: _more(getattr(split, name), count, -1) for name in columns}
    held |= {name: _more(getattr(split, name), count, np.nan) for name in rated}
    return grown._replace(**held)


def unmeasured(split: Split, users: Sequence[int] | np.ndarray) -> Split:
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
        >>> unmeasured(tiny_split(), [0]).test[0].item()
        -1
    """
    chosen = np.asarray(users, int)
    if len(chosen) and not (chosen.min() >= 0 and chosen.max() < split.num_users):
        raise ValueError(f"users are 0..{split.num_users - 1}, not {chosen.min()}..{chosen.max()}")
    mask = np.isin(np.arange(split.num_users), chosen)
    return split._replace(
        validation=np.where(mask, -1, split.validation).astype(np.int32),
        test=np.where(mask, -1, split.test).astype(np.int32),
    )


def _check(split: Split, count: int, items: np.ndarray, length: int) -> None:
    if count < 0:
        raise ValueError(f"count={count} fake users is out of range; choose 0 or more")
    if len(np.intersect1d(items, np.arange(split.num_items))) != len(items):
        raise ValueError(f"items={items.tolist()} must be distinct codes of 0..{split.num_items - 1}")
    if not max(len(items), 1) <= length <= split.num_items:
        raise ValueError(f"length={length} is out of range; choose {max(len(items), 1)} to {split.num_items}")


def _more(column: np.ndarray | None, count: int, value: float) -> np.ndarray | None:
    """So many further entries (rows) of one value."""
    if column is None:
        return None
    return np.concatenate([column, np.full((count, *column.shape[1:]), value, column.dtype)])


def _mean(ratings: np.ndarray | None) -> float:
    return 0.0 if ratings is None or not len(ratings) else float(ratings.mean())


def _fresh_ids(ids: np.ndarray, count: int) -> np.ndarray:
    """External ids that nobody has."""
    if np.issubdtype(ids.dtype, np.integer):
        return np.arange(count) + int(ids.max(initial=-1)) + 1
    names: list[str] = []
    taken, number = set(ids.tolist()), 0
    while len(names) < count:
        name, number = f"fake-{number}", number + 1
        names += [name] * (name not in taken)
    return np.array(names, dtype=str)
