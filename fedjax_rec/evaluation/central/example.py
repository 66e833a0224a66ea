"""A population small enough to read, for the examples of the docstrings and for tests."""

import numpy as np

from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.splits import Split, leave_one_out


def tiny_split(*, num_candidates: int = 2) -> Split:
    """Four users and six items: two users like the items 0 to 2, two the items 3 to 5.

    Args:
        num_candidates: of the sampled ranking.

    Returns:
        the split, leave-one-out.

    Example:
        >>> split = tiny_split()
        >>> split.num_users, split.num_items, split.items.tolist()
        (4, 6, [0, 1, 1, 2, 3, 4, 4, 5])
    """
    items = np.array([[0, 1, 2, 3], [1, 2, 0, 5], [3, 4, 5, 0], [4, 5, 3, 2]], np.int32)
    users = np.repeat(np.arange(4, dtype=np.int32), 4)
    table = Interactions(users, items.reshape(-1), None, None, np.arange(4), np.arange(6))
    return leave_one_out(Dataset("tiny", table), order="file", num_candidates=num_candidates)
