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

from fedjax_rec.client.membership import Membership, client_chunks, holds, make_membership
from fedjax_rec.data.defaults import Size
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.interactions import Interactions
from fedjax_rec.data.sorting import order_of_events
from fedjax_rec.data.splits import NEGATIVES, Split
from fedjax_rec.types import Algorithm, Client

MOST = 2**31 - 1  # clients, items, examples: as many as int32 positions name, and one for an empty slot


class Vocabulary:
    """External ids, and whether examples are in order; equal only if the same object, so that jax can hash it."""

    def __init__(self, user_ids: np.ndarray, item_ids: np.ndarray, *, in_order: bool = True) -> None:
        self.user_ids = user_ids
        self.item_ids = item_ids
        self.in_order = in_order  # whether each client's examples are known to be in order of time


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "offsets", "membership"],
    meta_fields=["num_items", "max_examples", "vocabulary", "stored"],
)
@dataclass(frozen=True, repr=False)
class Population:
    """All clients' private data, stacked for simulation.

    Example:
        >>> frame = {"user": ["a", "a", "b"], "item": [10, 20, 20]}
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
    stored: bool = False  # whether the examples wait in a store (`client.stored`), and are not here

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.offsets.shape[0] - 1

    @property
    def size(self) -> Size:
        """Numbers of clients, items and examples, all static: what settings follow from."""
        examples = next(iter(self.examples.values()), np.zeros(0))
        return Size(self.num_clients, self.num_items, examples.shape[0])

    def __repr__(self) -> str:
        users, items, events, _ = self.size
        return f"<Population: {users:,} clients, {items:,} items, {events:,} examples>"

    def without_ids(self) -> "Population":
        """The same clients without their vocabulary: what programs are compiled for.

        A vocabulary is equal to itself alone, so that with it jax would compile for each split anew and keep all.

        Returns:
            the population.

        Example:
            >>> Population.from_frame({"user": ["a"], "item": ["b"]}).without_ids().vocabulary
        """
        return dataclasses.replace(self, vocabulary=None)

    @classmethod
    def from_frame(cls, frame: Frame, **columns: Any) -> "Population":
        """Build a population from a frame (pandas, polars, pyarrow, a dict of columns), a row an event.

        Args:
            frame: with columns `user` and `item`, perhaps `rating` and `timestamp`, by which each client's events
                are sorted.
            **columns: other names of these columns, as `fedjax_rec.data.readers.from_frame` takes them.

        Returns:
            the population, clients in order of first appearance.

        Raises:
            ValueError: on unknown columns, duplicate pairs, or ratings that are not finite.

        Example:
            >>> frame = {"who": [1, 2], "what": [5, 5]}
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
        counts = _check_counts(counts)
        total = int(counts.sum())
        for name, leaf in examples.items():
            if len(leaf) != total:
                raise ValueError(f"examples[{name!r}] has {len(leaf)} rows, but the counts add up to {total}")
        offsets = np.concatenate([[0], np.cumsum(counts)])
        check_sizes(len(counts), total, num_items)
        arrays = {name: _to_device(name, leaf) for name, leaf in examples.items()}
        if "items" in examples:
            items = np.asarray(examples["items"])
            base = build(offsets, items, None, num_items or int(items.max(initial=-1)) + 1)
            return dataclasses.replace(base, examples=arrays)
        empty = Membership(jnp.zeros(0, jnp.uint32), jnp.zeros(0, jnp.int32))
        longest = int(np.max(counts, initial=0))
        return cls(arrays, jnp.asarray(offsets, jnp.int32), empty, num_items, longest)

    @classmethod
    def from_interactions(cls, interactions: Interactions) -> "Population":
        """Build a population from columnar interactions.

        Args:
            interactions: events in any order; each client's are sorted by time, where there are times.

        Returns:
            the population, client `n` being user code `n`.

        Example:
            >>> from fedjax_rec.data.synthetic import synthetic
            >>> Population.from_interactions(synthetic(num_users=50, num_items=60).interactions).num_clients
            50
        """
        check_sizes(interactions.num_users, len(interactions.items), interactions.num_items)
        timestamps = interactions.timestamps
        order = order_of_events(interactions.users, timestamps)
        counts = np.bincount(interactions.users, minlength=interactions.num_users)
        offsets = np.concatenate([[0], np.cumsum(counts)])
        ratings = None if interactions.ratings is None else interactions.ratings[order]
        ids = (interactions.user_ids, interactions.item_ids)
        vocabulary = Vocabulary(*ids, in_order=timestamps is not None)
        return build(offsets, interactions.items[order], ratings, interactions.num_items, vocabulary)


def build(
    offsets: np.ndarray,
    items: np.ndarray,
    ratings: np.ndarray | None,
    num_items: int,
    vocabulary: Vocabulary | None = None,
    *,
    bitmap: bool | None = None,
    extra_items: np.ndarray | None = None,
) -> Population:
    """Put CSR arrays on device, with what the membership test needs.

    Args:
        offsets: int[N + 1].
        items: int[M], distinct within a client.
        ratings: float[M] or None.
        num_items: I.
        vocabulary: external ids, if any.
        bitmap: whether to test membership by a bitmap of N x I bits; by default where it fits in 256 MiB.
        extra_items: int[N, k], items that the membership test finds too, though they are no examples; -1 for none.

    Returns:
        the population.

    Raises:
        ValueError: if a client holds an item twice, an item is out of range, or there are not offsets[N] items.

    Example:
        >>> build(np.array([0, 2]), np.array([3, 1]), None, 5).max_examples
        2
    """
    check_sizes(len(offsets) - 1, int(offsets[-1]), num_items)
    _check(offsets, items, num_items)
    membership = make_membership(offsets, items, num_items, extra_items=extra_items, bitmap=bitmap)
    examples = {"items": jnp.asarray(items, jnp.int32)}
    if ratings is not None:
        examples["ratings"] = _to_device("ratings", ratings).astype(jnp.float32)
    largest = int(np.diff(offsets).max(initial=0))
    return Population(examples, jnp.asarray(offsets, jnp.int32), membership, num_items, largest, vocabulary)


def _check_counts(counts: np.ndarray) -> np.ndarray:
    """The examples of each client, whole numbers from 0, as int64[N]."""
    given = np.asarray(counts)
    if given.ndim != 1 or (given.size and (given.dtype.kind not in "iu" or given.min() < 0)):
        raise ValueError(
            f"counts must be one whole number from 0 for each client, not {given.dtype}{list(given.shape)}"
        )
    return given.astype(np.int64)


def check_sizes(num_clients: int, num_examples: int, num_items: int) -> None:
    """Refuse a population that 32 bits cannot count, before anything is made of it.

    Positions on the devices are int32, as jax's integers are by default; past 2^31 - 1 they would wrap in silence.
    On the host, offsets are int64.

    Args:
        num_clients: N.
        num_examples: M, of all clients.
        num_items: I.

    Raises:
        ValueError: naming the number that is too large, and the way out.

    Example:
        >>> check_sizes(10_000_000, 2**32, 1_000_000)
        Traceback (most recent call last):
        ValueError: 4,294,967,296 examples are too many: positions are counted with 32 bits, below ...
    """
    from_store = "take fewer clients, or train from a store (fedjax_rec.open_population)"
    ways_out = {"examples": from_store, "items": "drop rare items", "clients": "take fewer clients"}
    for what, number in (("examples", num_examples), ("items", num_items), ("clients", num_clients)):
        if number >= MOST:
            raise ValueError(
                f"{number:,} {what} are too many: positions are counted with 32 bits, below {MOST:,}; "
                f"{ways_out[what]}"
            )


def _to_device(name: str, values: Any) -> jax.Array:
    """Put a column on the device, with as many bits as jax has; numbers that would become others are refused."""
    given = values if isinstance(values, jax.Array) else np.asarray(values)
    with np.errstate(over="ignore"):
        narrow = jnp.asarray(given)
    if given.dtype != narrow.dtype:
        back = np.asarray(narrow)
        same = np.isfinite(given) == np.isfinite(back) if given.dtype.kind == "f" else given == back
        if not np.all(same):
            bad = np.asarray(given)[~same].flat[0]
            raise ValueError(
                f"examples[{name!r}] has {bad}, which does not fit {narrow.dtype}; scale or recode it"
            )
    return narrow


def _check(offsets: np.ndarray, items: np.ndarray, num_items: int) -> None:
    if len(items) != offsets[-1]:
        raise ValueError(f"there are {len(items)} items, but the offsets end at {offsets[-1]}")
    if items.dtype.kind not in "iu":
        raise ValueError(f"items must be whole numbers, codes of 0..{num_items - 1}, not {items.dtype}")
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        bad = items.min() if items.min() < 0 else items.max()
        raise ValueError(f"item code {bad} is out of range: there are {num_items} items, 0..{num_items - 1}")
    for first, stop in client_chunks(offsets):
        pairs = np.repeat(np.arange(stop - first) * num_items, np.diff(offsets[first : stop + 1]))
        pairs += items[offsets[first] : offsets[stop]]
        pairs.sort()
        if (pairs[1:] == pairs[:-1]).any():
            raise ValueError("a client holds the same item twice; keep one event per (user, item) pair")


def contains(population: Population, client: Client | jax.Array, ids: jax.Array) -> jax.Array:
    """Whether items are among one client's own examples.

    Args:
        population: with N clients.
        client: one of them, or its number int32[].
        ids: int32[n], item ids (`I` is never contained).

    Returns:
        bool[n].

    Example:
        >>> population = build(np.array([0, 2]), np.array([3, 1]), None, 5)
        >>> contains(population, jnp.int32(0), jnp.arange(5)).tolist()
        [False, True, False, True, False]
    """
    if isinstance(client, Client):
        client = client.id if client.place is None else client.place
    return holds(population.membership, client, ids, population.num_items)


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
    leak = _heldout_items(split) if split.negatives == "paper-leaky" else None
    vocabulary = Vocabulary(split.user_ids, split.item_ids, in_order=split.order != "random")
    return build(split.offsets, split.items, split.ratings, split.num_items, vocabulary, extra_items=leak)


def _heldout_items(split: Split) -> np.ndarray:
    """int32[N, n], each user's held-out items, -1 behind them."""
    if split.heldout is None:
        return np.stack([split.validation, split.test], axis=1)
    columns = []
    for events in split.heldout:
        padded = np.full((split.num_users, int(np.diff(events.offsets).max(initial=0))), -1, np.int32)
        padded[events.owners, np.arange(len(events.items)) - events.offsets[events.owners]] = events.items
        columns.append(padded)
    return np.concatenate(columns, axis=1)


def check_same(population: Population, split: Split) -> None:
    """Refuse a population that is not of a split's users and items.

    Args:
        population: N clients; its vocabulary is compared where it has one.
        split: whose users they should be.

    Raises:
        ValueError: naming what differs.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> check_same(population_of(fr.leave_one_out(fr.data.synthetic(40, 90))), split)
        Traceback (most recent call last):
        ValueError: the population is not that of synthetic: 40 clients against 30; ...
    """
    hint = "give population_of(split) of the same split"
    counts = {
        "clients": (population.num_clients, split.num_users),
        "items": (population.num_items, split.num_items),
    }
    for kind, (own, others) in counts.items():
        if own != others:
            raise ValueError(
                f"the population is not that of {split.name}: {own:,} {kind} against {others:,}; {hint}"
            )
    if population.vocabulary is None:
        return
    for name in ("user_ids", "item_ids"):
        own_ids = getattr(population.vocabulary, name)
        ids = getattr(split, name)
        if own_ids is not ids and not np.array_equal(own_ids, ids):
            raise ValueError(f"the population is not that of {split.name}: other {name}; {hint}")


def check_order(algorithm: Algorithm, population: Population) -> None:
    """Refuse an algorithm of the order of events on clients whose events are in none.

    Args:
        algorithm: whose local batches say whether it needs the order.
        population: the clients; those of arrays are taken to be in order.

    Raises:
        ValueError: if the order is needed and not there.

    Example:
        >>> import fedjax_rec as fr
        >>> frame = {"user": [1, 1], "item": [5, 6]}
        >>> check_order(fr.fedsasrec(dim=2), Population.from_frame(frame))
        Traceback (most recent call last):
        ValueError: the algorithm learns from the order of events, and these have no times; ...
    """
    vocabulary = population.vocabulary
    needs_order = (
        algorithm.work is not None and algorithm.work.batches.needs_order
    )  # rounds by hand may have none
    if needs_order and vocabulary is not None and not vocabulary.in_order:
        raise ValueError(
            "the algorithm learns from the order of events, and these have no times; give data with timestamps, "
            "or a split with order='file' where the lines are in order"
        )
