"""Beyond accuracy: what the lists do with the catalogue.

With x_i the number of lists that show item i, p_i its training events, N users and I items:

    coverage           = share of items with x_i > 0 [1]
    exposure_gini      = sum_i (2 i - I - 1) x_(i) / (I sum x) over x_(1) <= ... <= x_(I) [2]
    average_popularity = mean over users of the mean p_i of their lists [3]
    novelty            = the same mean of the self-information log2(N / p_i), in bits [4]

[1] Ge et al. 2010, doi:10.1145/1864708.1864761. [2] Fleder and Hosanagar 2009, doi:10.1287/mnsc.1080.0974.
[3] Yin et al. 2012, arXiv:1205.6700. [4] Zhou et al. 2010, doi:10.1073/pnas.1000488107.

The Gini index is 0 where all items are shown equally often and 1 - 1/I where one item takes every slot. An
item that nobody trained on counts as met once in novelty, log2(N), since its information is infinite. Empty
slots (-1) are nothing; users with an empty list are left out of means; without any list all but coverage, 0,
are NaN.
"""

import numpy as np


def beyond_accuracy(lists: np.ndarray, popularity: np.ndarray, num_users: int) -> dict[str, float]:
    """Measure lists against the catalogue.

    Args:
        lists: int[N, K], recommended items, -1 for an empty slot.
        popularity: float[I], training events of each item.
        num_users: N, of the training data.

    Returns:
        `coverage`, `exposure_gini`, `average_popularity` (events) and `novelty` (bits).

    Example:
        >>> beyond_accuracy(np.array([[0, 1], [0, 1]]), np.array([2.0, 1.0, 0.0, 0.0]), 2)["coverage"]
        0.5
    """
    lists = np.asarray(lists)
    popularity = np.asarray(popularity, np.float64)
    counts = exposure_counts(lists, len(popularity))
    information = np.log2(num_users / np.maximum(popularity, 1))
    return {
        "coverage": float(np.mean(counts > 0)),
        "exposure_gini": gini(counts),
        "average_popularity": _list_mean(lists, popularity),
        "novelty": _list_mean(lists, information),
    }


def exposure_counts(lists: np.ndarray, num_items: int) -> np.ndarray:
    """Count how many lists show each item.

    Args:
        lists: int[N, K], -1 for an empty slot.
        num_items: I.

    Returns:
        int64[I], the counts.

    Example:
        >>> exposure_counts(np.array([[0, 2], [2, -1]]), 4)
        array([1, 0, 2, 0])
    """
    lists = np.asarray(lists)
    return np.bincount(lists[lists >= 0], minlength=num_items)


def gini(amounts: np.ndarray) -> float:
    """The Gini index of amounts that are not negative.

    Args:
        amounts: float[I].

    Returns:
        From 0, all alike, to 1 - 1/I, one has all; NaN if there is nothing to share.

    Raises:
        ValueError: if an amount is negative.

    Example:
        >>> gini(np.array([0, 0, 0, 8])), gini(np.array([2, 2]))
        (0.75, 0.0)
    """
    amounts = np.sort(np.asarray(amounts, np.float64))
    if len(amounts) and amounts[0] < 0:
        raise ValueError(f"the amount {amounts[0]:g} is negative; a Gini index needs 0 or more")
    total = amounts.sum()
    size = len(amounts)
    if not total:
        return float("nan")
    return float((2 * np.arange(1, size + 1) - size - 1) @ amounts / (size * total))


def _list_mean(lists: np.ndarray, values: np.ndarray) -> float:
    """Mean over users of the mean value of the items in their lists."""
    filled = lists >= 0
    counts = filled.sum(axis=1)
    sums = np.where(filled, values[np.maximum(lists, 0)], 0.0).sum(axis=1)
    return float(np.mean(sums[counts > 0] / counts[counts > 0])) if counts.any() else float("nan")
