"""The embedded default: a synthetic population whose true preferences, and so the best score, are known.

User `u` with factors `p_u` takes its items one after the other, without repetition. The next item is `i` with

    P(i) = softmax over the items not yet taken of  p_u . q_i + b_i

which is the Plackett-Luce law. Sorting `logit + Gumbel noise` draws from it exactly: the order of the sorted
values is the order of the successive draws (Yellott 1977; "Gumbel-top-k", Kool et al. 2019,
https://arxiv.org/abs/1903.06059). Hence the last item in time, which leave-one-out holds out, is a draw from
the softmax over the items that its user has not seen, and no recommender can rank better in expectation than
by the logits themselves. They come with the data as `Dataset.truth`.

The shape follows MovieLens 100K: every user has at least 20 items, the median has 65, few have several
hundred; the most popular tenth of the items takes almost half of the events.

With the default settings and seed 0 (the last item held out, items seen before it left out of the ranking):

| ranking by | HR@10 among all unseen items | HR@10 among 99 unseen items |
|---|---|---|
| the true logits: the best possible in expectation | .333 | .829 |
| EASE with a penalty of 300, a central model | .275 | .770 |
| popularity | .089 | .454 |
| chance | .009 | .100 |
"""

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Dataset, Interactions, Truth

_BLOCK = 256  # users whose scores are held in memory at once
_START = 1_577_836_800  # 2020-01-01 00:00 UTC, seconds
_DAY = 86_400


def synthetic(
    num_users: int = 1000,
    num_items: int = 1200,
    *,
    seed: int = 0,
    num_factors: int = 4,
    taste: float = 3.0,
    popularity: float = 2.0,
    min_events: int = 20,
    median_events: int = 65,
    max_events: int | None = None,
) -> Dataset:
    """Draws a long-tail population with known preferences.

    Args:
        num_users: number of users N.
        num_items: number of items I.
        seed: of `numpy.random.PCG64`; the same seed gives the same data everywhere.
        num_factors: length d of the factors; fewer are easier to learn.
        taste: standard deviation of `p_u . q_i`; 0 leaves popularity alone.
        popularity: exponent of the power law of the items' odds; 0 makes all items alike.
        min_events: shortest history.
        median_events: median length of the histories, which are lognormal above the minimum.
        max_events: longest history; a third of the items if None.

    Returns:
        The data set `synthetic`: implicit events (no ratings), in the order of users and then of time
        (seconds), with `truth`. Items are coded by first appearance, those that nobody took come last.

    Raises:
        DataError: if a size is not positive or the lengths are not min <= median <= max < num_items.

    Example:
        >>> data = synthetic(30, 200)
        >>> data.interactions.num_users, data.interactions.user_ids[0], data.truth.scores(np.arange(2)).shape
        (30, np.str_('user-00000'), (2, 200))
    """
    longest = num_items // 3 if max_events is None else max_events
    median = min(median_events, longest) if max_events is None else median_events
    if num_users < 1 or num_factors < 1:
        raise DataError(f"synthetic: num_users={num_users}, num_factors={num_factors} must be at least 1")
    if not 1 <= min_events <= median <= longest < num_items:
        raise DataError(
            f"synthetic: needs 1 <= min_events={min_events} <= median_events={median} "
            f"<= max_events={longest} < num_items={num_items}; max_events is a third of the items by default"
        )
    rng = np.random.Generator(np.random.PCG64(seed))
    truth = _preferences(rng, (num_users, num_items, num_factors), taste, popularity)
    lengths = _lengths(rng, num_users, min_events, median, longest)
    items = _draws(rng, truth, lengths)
    times = _times(rng, lengths)
    return _label(truth, lengths, items, times)


def _preferences(
    rng: np.random.Generator, sizes: tuple[int, int, int], taste: float, popularity: float
) -> Truth:
    users, items, factors = sizes
    user_factors = rng.standard_normal((users, factors))
    item_factors = rng.standard_normal((items, factors)) * (taste / np.sqrt(factors))
    # The odds fall like (rank + offset)^-popularity; the offset keeps the first items from winning always.
    bias = -popularity * np.log(rng.permutation(items) + 10.0)
    arrays = user_factors, item_factors, bias - bias.mean()
    return Truth(*(array.astype(np.float32) for array in arrays))


def _lengths(rng: np.random.Generator, users: int, shortest: int, median: int, longest: int) -> np.ndarray:
    spread = 1.1  # of the logarithm, as in MovieLens 100K
    extra = (median - shortest) * np.exp(spread * rng.standard_normal(users))
    return np.minimum(shortest + extra.astype(np.int64), longest)


def _draws(rng: np.random.Generator, truth: Truth, lengths: np.ndarray) -> np.ndarray:
    """Original numbers of the items of all users, one user after the other, in the order of the draws."""
    taken = []
    for start in range(0, len(lengths), _BLOCK):
        counts = lengths[start : start + _BLOCK]
        logits = (
            truth.user_factors[start : start + _BLOCK].astype(np.float64) @ truth.item_factors.T
            + truth.item_bias
        )
        order = np.argsort(-(logits + rng.gumbel(size=logits.shape)), axis=1, kind="stable")
        taken.append(order[np.arange(order.shape[1]) < counts[:, None]])
    return np.concatenate(taken)


def _times(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Seconds since 1970: users arrive over 300 days and then act every one to 60 minutes."""
    arrivals = _START + rng.integers(0, 300 * _DAY, len(lengths))
    clock = np.cumsum(rng.integers(60, 3600, lengths.sum()))
    first = np.cumsum(lengths) - lengths
    return clock + np.repeat(arrivals - clock[first], lengths)


def _label(truth: Truth, lengths: np.ndarray, items: np.ndarray, times: np.ndarray) -> Dataset:
    """Codes the items by first appearance; the external ids keep the original numbers."""
    seen, first = np.unique(items, return_index=True)
    unseen = np.setdiff1d(np.arange(len(truth.item_bias)), seen)
    order = np.concatenate([seen[np.argsort(first)], unseen])
    codes = np.empty(len(order), np.int32)
    codes[order] = np.arange(len(order), dtype=np.int32)
    interactions = Interactions(
        users=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        items=codes[items],
        ratings=None,
        timestamps=times.astype(np.int64),
        user_ids=np.array([f"user-{number:05d}" for number in range(len(lengths))]),
        item_ids=np.array([f"item-{number:05d}" for number in order]),
    )
    ordered = Truth(truth.user_factors, truth.item_factors[order], truth.item_bias[order])
    return Dataset("synthetic", interactions, truth=ordered)
