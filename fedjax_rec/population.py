"""The federated data set on device: every client's examples in one flat array, never padded.

Real histories are power laws (on MovieLens-1M padding to the longest client would leave 7 % of the slots used),
so examples lie back to back, `offsets[n] : offsets[n + 1]` being client `n`'s (CSR).
"""

import dataclasses
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.splits import NEGATIVES, Split
from fedjax_rec.membership import Membership, holds, make_membership


class Vocabulary:
    """External ids of users and items; two are equal only if they are the same object, so jax can hash it."""

    def __init__(self, user_ids: np.ndarray, item_ids: np.ndarray) -> None:
        self.user_ids = user_ids
        self.item_ids = item_ids


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "offsets", "membership"],
    meta_fields=["num_items", "max_examples", "vocabulary"],
)
@dataclass(frozen=True)
class Population:
    """All clients' private data, stacked for simulation.

    Example:
        >>> frame = pd.DataFrame({"user": ["a", "a", "b"], "item": [10, 20, 20]})
        >>> population = Population.from_frame(frame)
        >>> population.num_clients, population.num_items, population.offsets.tolist()
        (2, 2, [0, 2, 3])
    """

    examples: dict[str, jax.Array]  # leaves [M, ...]; "items" int32[M], perhaps "ratings" float32[M]
    offsets: jax.Array  # int32[N + 1]
    membership: Membership  # which items are a client's own
    num_items: int
    max_examples: int
    vocabulary: Vocabulary | None = field(default=None)

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.offsets.shape[0] - 1

    @classmethod
    def from_frame(cls, frame: pd.DataFrame, **columns: Any) -> "Population":
        """Build a population from a data frame, a row an event.

        Args:
            frame: with columns `user` and `item`, perhaps `rating` and `timestamp`.
            **columns: other names of these columns, as `fedjax_rec.data.readers.from_frame` takes them.

        Returns:
            the population, clients in order of first appearance.

        Raises:
            ValueError: on unknown columns, duplicate pairs, or ratings that are not finite.

        Example:
            >>> frame = pd.DataFrame({"who": [1, 2], "what": [5, 5]})
            >>> Population.from_frame(frame, user="who", item="what").num_clients
            2
        """
        from fedjax_rec.data.readers import from_frame

        return cls.from_interactions(from_frame(frame, **columns))

    @classmethod
    def from_arrays(cls, examples: dict[str, Any], counts: np.ndarray, *, num_items: int = 0) -> "Population":
        """Build a population of any examples: features and targets, sequences, images.

        Args:
            examples: leaves [M, ...], client after client. With the key "items" (int [M]) negatives can be drawn.
            counts: int[N], examples of each client, adding up to M.
            num_items: I; by default the largest item + 1, or 0 without items.

        Returns:
            the population.

        Raises:
            ValueError: if the leaves do not all have M = sum(counts) examples.

        Example:
            >>> Population.from_arrays({"x": np.ones((3, 2))}, np.array([2, 1])).num_clients
            2
        """
        total = int(np.sum(counts))
        for name, leaf in examples.items():
            if len(leaf) != total:
                raise ValueError(f"examples[{name!r}] has {len(leaf)} rows, but the counts add up to {total}")
        offsets = np.concatenate([[0], np.cumsum(counts)])
        arrays = {name: jnp.asarray(leaf) for name, leaf in examples.items()}
        if "items" in examples:
            items = np.asarray(examples["items"])
            base = build(offsets, items, None, num_items or int(items.max(initial=-1)) + 1)
            return dataclasses.replace(base, examples=arrays)
        nobody = Membership(jnp.zeros(0, jnp.uint32), jnp.zeros(0, jnp.int32))
        longest = int(np.max(counts, initial=0))
        return cls(arrays, jnp.asarray(offsets, jnp.int32), nobody, num_items, longest)

    @classmethod
    def from_interactions(cls, interactions: Interactions) -> "Population":
        """Build a population from columnar interactions.

        Args:
            interactions: events in any order; each client's keep theirs.

        Returns:
            the population, client `n` being user code `n`.

        Example:
            >>> from fedjax_rec.data.synthetic import synthetic
            >>> Population.from_interactions(synthetic(num_users=50, num_items=60).interactions).num_clients
            50
        """
        order = np.argsort(interactions.users, kind="stable")
        counts = np.bincount(interactions.users, minlength=interactions.num_users)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        ratings = None if interactions.ratings is None else interactions.ratings[order]
        vocabulary = Vocabulary(interactions.user_ids, interactions.item_ids)
        return build(offsets, interactions.items[order], ratings, interactions.num_items, vocabulary)


def build(
    offsets: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray | None,
    num_items: int,
    vocabulary: Vocabulary | None = None,
    *,
    bitmap: bool | None = None,
    also: np.ndarray | None = None,
) -> Population:
    """Put CSR arrays on device, with what the membership test needs.

    Args:
        offsets: int[N + 1].
        items: int[M], distinct within a client.
        ratings: float[M] or None.
        num_items: I.
        vocabulary: external ids, if any.
        bitmap: whether to test membership by a bitmap of N x I bits; by default where it fits in 256 MiB.
        also: int[N, k], items that the membership test finds too, though they are no examples; -1 for none.

    Returns:
        the population.

    Raises:
        ValueError: if a client holds an item twice or an item is out of range.

    Example:
        >>> build(np.array([0, 2]), np.array([3, 1]), None, 5).max_examples
        2
    """
    counts = np.diff(offsets)
    clients = np.repeat(np.arange(len(counts)), counts)
    _check(items, clients, num_items)
    holders, held = (clients, items) if also is None else _mark_also(clients, items, also)
    membership = make_membership(holders, held, len(counts), num_items, bitmap=bitmap)
    examples = {"items": jnp.asarray(items, jnp.int32)}
    if ratings is not None:
        examples["ratings"] = jnp.asarray(ratings, jnp.float32)
    largest = int(counts.max(initial=0))
    return Population(examples, jnp.asarray(offsets, jnp.int32), membership, num_items, largest, vocabulary)


def _mark_also(clients: np.ndarray, items: np.ndarray, also: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    held = also >= 0
    return np.concatenate([clients, np.nonzero(held)[0]]), np.concatenate([items, also[held]])


def _check(items: np.ndarray, clients: np.ndarray, num_items: int) -> None:
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        bad = items.min() if items.min() < 0 else items.max()
        raise ValueError(f"item code {bad} is out of range: there are {num_items} items, 0..{num_items - 1}")
    pairs = clients.astype(np.int64) * num_items + items
    if len(np.unique(pairs)) != len(pairs):
        raise ValueError("a client holds the same item twice; keep one event per (user, item) pair")


def contains(population: Population, client_id: jax.Array, ids: jax.Array) -> jax.Array:
    """Whether items are among one client's own examples.

    Args:
        population: with N clients.
        client_id: int32[].
        ids: int32[n], item ids (`I` is never contained).

    Returns:
        bool[n].

    Example:
        >>> population = build(np.array([0, 2]), np.array([3, 1]), None, 5)
        >>> contains(population, jnp.int32(0), jnp.arange(5)).tolist()
        [False, True, False, True, False]
    """
    return holds(population.membership, client_id, ids, population.num_items)


def population_of(split: Split) -> Population:
    """Put a split's training data on device.

    Args:
        split: the split; held-out items are not looked at, except where `split.negatives` is "paper-leaky": a
            client's own are then never drawn as training negatives, the leak behind some published numbers.

    Returns:
        the population, client n being the split's user n.

    Raises:
        ValueError: if the split's negatives are of an unknown kind.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> population_of(split).num_clients == split.num_users
        True
    """
    if split.negatives not in NEGATIVES:
        known = ", ".join(map(repr, NEGATIVES))
        raise ValueError(f"negatives={split.negatives!r} is unknown; choose one of {known}")
    leak = np.stack([split.validation, split.test], axis=1) if split.negatives == "paper-leaky" else None
    vocabulary = Vocabulary(split.user_ids, split.item_ids)
    return build(split.offsets, split.items, split.ratings, split.num_items, vocabulary, also=leak)
