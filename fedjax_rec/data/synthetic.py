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

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.interactions import Dataset, Interactions, Truth
from fedjax_rec.errors import check_arguments

_BLOCK = 64  # users whose scores are held in memory at once
_ROWS = 32  # of them, sorted together
_AHEAD = 4  # blocks that wait for a core
_EVENTS = 2**20  # looked at together
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
        popularity: exponent of the power law of the items' odds; 0 makes all items equal.
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
    check_arguments(synthetic, locals())
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
    """int32[M], original numbers of the items of all users, user after user, in the order of the draws."""
    taken = np.empty(lengths.sum(), np.int32)
    ends = np.cumsum(lengths)
    user_factors = truth.user_factors.astype(np.float64)
    item_factors = truth.item_factors.astype(np.float64).T.copy()

    def fill(start: int, uniform: np.ndarray) -> None:
        users = slice(start, start + _BLOCK)
        values = _gumbel(uniform)
        # Not a matrix product: BLAS would wake its threads for each of many small ones.
        for of_users, of_items in zip(user_factors[users].T, item_factors, strict=True):
            values += of_users[:, None] * of_items
        values += truth.item_bias
        items = taken[ends[start] - lengths[start] : ends[users][-1]]
        items[:] = _largest(values, lengths[users])

    # Numbers are drawn in order, one block after the other; what is made of a block is its own, on a second core.
    under_way: deque[Future[None]] = deque()
    with ThreadPoolExecutor(2) as threads:
        for start in range(0, len(lengths), _BLOCK):
            uniform = rng.random((len(lengths[start : start + _BLOCK]), item_factors.shape[1]))
            under_way.append(threads.submit(fill, start, uniform))
            if len(under_way) > _AHEAD:
                under_way.popleft().result()
        for block in under_way:
            block.result()
    return taken


def _gumbel(values: np.ndarray) -> np.ndarray:
    """What `rng.gumbel` makes of the numbers of `rng.random`, in their place, a whole array at a time."""
    np.subtract(1.0, values, out=values)
    np.log(values, out=values)
    np.negative(values, out=values)
    with np.errstate(divide="ignore"):  # of a draw of 2^-53, whose item then comes first
        np.log(values, out=values)
    return np.negative(values, out=values)


def _largest(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The columns of each row's largest values, as many as `counts` [U] says, row after row, in falling order."""
    columns = np.empty(values.shape, np.int32)
    # Rows of about equal counts together, so that few values beyond them are sorted.
    by_count = np.argsort(counts)
    for rows in np.array_split(by_count, -(-len(counts) // _ROWS)):
        most = counts[rows].max()
        best = np.argpartition(values[rows], -most, axis=1)[:, -most:]
        order = np.argsort(-np.take_along_axis(values[rows], best, axis=1), axis=1)
        columns[rows, :most] = np.take_along_axis(best, order, axis=1)
    return columns[np.arange(values.shape[1]) < counts[:, None]]


def _times(rng: np.random.Generator, lengths: np.ndarray) -> np.ndarray:
    """Seconds since 1970: users arrive over 300 days and then act every one to 60 minutes."""
    arrivals = _START + rng.integers(0, 300 * _DAY, len(lengths))
    clock = rng.integers(60, 3600, lengths.sum())
    np.cumsum(clock, out=clock)
    first = np.cumsum(lengths) - lengths
    clock += np.repeat(arrivals - clock[first], lengths)
    return clock


def _label(truth: Truth, lengths: np.ndarray, items: np.ndarray, times: np.ndarray) -> Dataset:
    """Codes the items by first appearance; the external ids keep the original numbers."""
    num_items = len(truth.item_bias)
    first = np.full(num_items, len(items))  # event of each item; those that nobody took are behind
    for stop in range(len(items), 0, -_EVENTS):
        start = max(stop - _EVENTS, 0)
        first[items[start:stop][::-1]] = np.arange(start, stop)[::-1]  # the first of an item is written last
    order = np.argsort(first, kind="stable")
    codes = np.empty(num_items, np.int32)
    codes[order] = np.arange(num_items, dtype=np.int32)
    interactions = Interactions(
        users=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
        items=codes[items],
        ratings=None,
        timestamps=times,
        user_ids=np.array([f"user-{number:05d}" for number in range(len(lengths))]),
        item_ids=np.array([f"item-{number:05d}" for number in order]),
    )
    ordered = Truth(truth.user_factors, truth.item_factors[order], truth.item_bias[order])
    return Dataset("synthetic", interactions, truth=ordered)
