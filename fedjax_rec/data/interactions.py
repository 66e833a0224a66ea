"""Columnar interactions: the one form that every reader produces and every split consumes.

Axis legend: `N` users (clients), `I` items, `M` interactions. Users and items are coded densely, 0..N-1 and
0..I-1, in the order of their first appearance in the file; the external ids survive in `user_ids` and
`item_ids`. Nothing is ever allocated by the largest external id, and there is no hidden padding row.
"""

from typing import NamedTuple

import numpy as np

SPLIT_PARTS = ("train", "validation", "test")


class Interactions(NamedTuple):
    """A table of events in *file order*, with the vocabulary that maps codes back to external ids."""

    users: np.ndarray  # int32[M], codes of the users
    items: np.ndarray  # int32[M], codes of the items
    ratings: np.ndarray | None  # float32[M], or None for implicit feedback
    timestamps: np.ndarray | None  # int64[M] or float64[M], seconds, or None
    user_ids: np.ndarray  # [N], external ids (int64 or str)
    item_ids: np.ndarray  # [I], external ids (int64 or str)

    @property
    def num_users(self) -> int:
        """Number of users N."""
        return len(self.user_ids)

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return len(self.item_ids)

    def __repr__(self) -> str:
        return f"<Interactions: {len(self.users):,} of {self.num_users:,} users, {self.num_items:,} items>"


class Heldout(NamedTuple):
    """An official test set that comes with a pre-split data set."""

    items: np.ndarray  # int32[N], each user's test item, -1 where there is none
    candidates: np.ndarray | None  # int32[N, n], official negatives, -1 is an empty slot; None: no lists


class Truth(NamedTuple):
    """What a synthetic population really prefers: probability of the next item is softmax of these logits."""

    user_factors: np.ndarray  # float32[N, d]
    item_factors: np.ndarray  # float32[I, d]
    item_bias: np.ndarray  # float32[I]

    def scores(self, users: np.ndarray) -> np.ndarray:
        """True preference logits of some users for every item.

        Args:
            users: int[U], codes of users.

        Returns:
            float32[U, I], the logits.

        Example:
            >>> truth = Truth(np.eye(2, dtype="f4"), np.eye(2, dtype="f4"), np.zeros(2, dtype="f4"))
            >>> truth.scores(np.array([1]))
            array([[0., 1.]], dtype=float32)
        """
        return self.user_factors[users] @ self.item_factors.T + self.item_bias


class Dataset(NamedTuple):
    """A named data set, as `load_dataset` returns it."""

    name: str
    interactions: Interactions  # all events; for a pre-split data set the training events only
    test: Heldout | None = None  # the official test set, where the data set comes split
    truth: Truth | None = None  # the true preferences, where the data set is synthetic
    citation: str = ""
    notes: tuple[str, ...] = ()  # how its file was understood, where that is not plain
    parts: np.ndarray | None = (
        None  # int8[M], which of `SPLIT_PARTS` each event is in, where somebody split them
    )
    reading: str | None = None  # the flags that read it so; None where it comes from no file of events

    def __repr__(self) -> str:
        table = self.interactions
        size = f"{len(table.users):,} events of {table.num_users:,} users, {table.num_items:,} items"
        return f"<Dataset {self.name}: {size}>"
