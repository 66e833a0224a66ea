"""Clients whose histories wait in a store: a cohort's are fetched for its round, and the device holds no others.

What is known of all clients is how many examples each has, 4 bytes a client: the *directory*, a `Population`
without examples. By it cohorts are drawn, as those of any population are. `StoredPopulation.fetch` then makes a
population of one cohort alone, whose arrays have the same sizes in every round, so that one program serves all.

Several processes open a population together: each reads the histories of its share of the clients, and tells the
others those that a cohort needs (`data.store.shares`).
"""

import copy
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.membership import WIDTH, Membership, choose_buckets, make_membership
from fedjax_rec.client.population import Population, build, check_sizes
from fedjax_rec.data.defaults import Size
from fedjax_rec.data.splits import Split
from fedjax_rec.data.store.format import Store, open_store
from fedjax_rec.data.store.sampling import HELD_OUT, sample_split
from fedjax_rec.data.store.shares import open_share
from fedjax_rec.errors import check_arguments, check_not_used_up
from fedjax_rec.hosts.mailbox import Mailbox
from fedjax_rec.hosts.processes import check_same, num_processes
from fedjax_rec.types import ClientStore, State

BITMAP_CELLS = 2**24  # clients times items of a cohort, up to which its membership is a bitmap
SIGMAS = 6  # of what a cohort needs beyond its mean: more is met once in 10^9 cohorts, and then made room for


class Rooms(NamedTuple):
    """How much a cohort's arrays hold, whoever is in it."""

    clients: int  # S
    events: int
    buckets: int  # of the membership; 0 for a bitmap


class StoredPopulation:
    """A population in a store, for `simulate`; `open_population` makes one.

    Args:
        store: the histories.
        num_held_out: so many events at the end of each client's history are held out, if it has more.
        sample: of clients to rank, and which they are; None for none.
    """

    def __init__(
        self, store: Store, *, num_held_out: int = 0, sample: tuple[np.ndarray, Split] | None = None
    ) -> None:
        check_sizes(store.num_clients, 0, store.num_items)
        self.store = store
        self.num_held_out = num_held_out
        self.sample_ids: np.ndarray | None = None if sample is None else sample[0]
        self.split: Split | None = None if sample is None else sample[1]
        lengths = np.diff(store.offsets)
        self.lengths = np.where(lengths > num_held_out, lengths - num_held_out, lengths)
        check_sizes(store.num_clients, int(self.lengths.max(initial=0)), store.num_items)
        self.directory = _directory(store, self.lengths)
        self._rooms: dict[int, Rooms] = {}  # by the number of clients of a cohort

    @property
    def num_clients(self) -> int:
        """Number of clients N."""
        return self.store.num_clients

    @property
    def num_items(self) -> int:
        """Number of items I."""
        return self.store.num_items

    @property
    def size(self) -> Size:
        """How much there is to train on."""
        return Size(self.num_clients, self.num_items, int(self.lengths.sum()))

    def apart(self) -> "StoredPopulation":
        """The same for another thread, which fetches beside this one; of several processes, all must make it."""
        store = self.store.apart()
        if store is self.store:
            return self
        other = copy.copy(self)
        other.store = store
        other._rooms = dict(self._rooms)  # noqa: SLF001 - its own
        return other

    def fetch(self, ids: np.ndarray, present: np.ndarray) -> Population:
        """The histories of a cohort, as a population of its own; of several processes, all must call it.

        Args:
            ids: int[S], whose.
            present: bool[S]; of the others nothing is fetched.

        Returns:
            a population of S clients, numpy leaves of equal sizes for all cohorts of S.

        Raises:
            DataError: if the store is no longer as it was.
        """
        found = self.store.gather(ids[present], lengths=self.lengths[ids[present]])
        counts = np.zeros(len(ids), np.int64)
        counts[present] = found.counts
        offsets = np.concatenate([[0], np.cumsum(counts)])
        num_buckets = None
        if len(ids) not in self._rooms:
            self._rooms[len(ids)] = rooms_for(self.directory, len(ids))
        rooms = self._rooms[len(ids)]
        if rooms.buckets:
            num_buckets = choose_buckets(offsets, found.items)
        need = Rooms(len(ids), len(found.items), 0 if num_buckets is None else int(num_buckets.sum()))
        if need.events > rooms.events or need.buckets > rooms.buckets:
            rooms = self._rooms[len(ids)] = _grow(rooms, need)
        membership = make_membership(
            offsets,
            found.items,
            self.num_items,
            bitmap=not rooms.buckets,
            num_buckets=num_buckets,
            on_device=False,
        )
        if rooms.buckets:
            membership = Membership(_pad(membership.cells, rooms.buckets), membership.starts)
        examples: dict[str, Any] = {"items": _pad(found.items, rooms.events)}
        if found.ratings is not None:
            examples["ratings"] = _pad(found.ratings, rooms.events)
        narrow: Any = offsets.astype(np.int32)
        return Population(examples, narrow, membership, self.num_items, self.directory.max_examples)

    def load(self) -> Population:
        """All histories in memory: the population that training from the store is equal to.

        Of several processes all must call it, and each hears all that it does not read.

        Returns:
            the population.

        Raises:
            ValueError: if there are more events than 32 bits can count.

        Example:
            >>> import tempfile
            >>> from fedjax_rec.data.store import synthesise
            >>> store = synthesise(Path(tempfile.mkdtemp()) / "some", clients=9, items=40, events_per_client=6)
            >>> open_population(store.path).load().num_clients
            9
        """
        check_sizes(self.num_clients, int(self.lengths.sum()), self.num_items)
        found = self.store.gather(np.arange(self.num_clients), lengths=self.lengths)
        offsets = np.concatenate([[0], np.cumsum(found.counts)])
        return build(offsets, found.items, found.ratings, self.num_items)

    def of_sample(self, state: State) -> State:
        """A state of the sampled clients alone, which `make_evaluator(algorithm, stored.split)` ranks.

        Args:
            state: of a run on this population.

        Returns:
            the same model, with what the sampled clients keep.

        Raises:
            ValueError: if no clients were sampled, or the state is used up.
        """
        if self.sample_ids is None:
            raise ValueError(
                "no clients were sampled to be ranked; open the population with evaluate_clients="
            )
        check_not_used_up(state)
        private = jax.tree.map(lambda leaf: leaf[self.sample_ids], state.private)
        return state.with_store(ClientStore(private))


def open_population(
    path: str | Path, *, evaluate_clients: int | None = None, seed: int = 0, num_candidates: int = 99
) -> StoredPopulation:
    """Open a store as a population for `simulate`, whose histories are read as cohorts need them.

    Where several processes have joined (`fr.initialize_distributed`), all of them open it, and each reads the
    histories of its share of the clients alone.

    Args:
        path: the folder of a store, as `fedjax-rec data convert` and `data synthesise` make it; several processes
            may have it in different places.
        evaluate_clients: how many clients are ranked, drawn by the seed from those with 3 events or more. The last
            two events of every client are then held out, for test and validation. None ranks nobody, and holds
            nothing out.
        seed: the protocol's: who is ranked, and against which candidates.
        num_candidates: of sampled ranking.

    Returns:
        the population; its `split` holds the sampled clients' events.

    Raises:
        DataError: if the store is not sound, naming the process where it is not, or there are fewer such clients.
        ValueError: if processes open other data, or rank other clients, naming one that does.
        ConnectionError: (an OSError) if another process is gone.

    Example:
        >>> import tempfile, fedjax_rec as fr
        >>> store = fr.data.store.synthesise(
        ...     Path(tempfile.mkdtemp()) / "some", clients=50, items=90, events_per_client=9
        ... )
        >>> population = open_population(store.path, evaluate_clients=20)
        >>> state, history = fr.simulate(fr.fedmf(dim=4, cohort=10), population, rounds=2, eval_every=1)
        >>> len(history.evaluations), population.split.num_users
        (2, 20)
    """
    check_arguments(open_population, locals())
    ranked = {"evaluate_clients": evaluate_clients, "seed": seed, "num_candidates": num_candidates}
    store = open_store(path) if num_processes() == 1 else _open_together(path, ranked)
    if evaluate_clients is None:
        return StoredPopulation(store)
    sample = sample_split(store, evaluate_clients, seed=seed, num_candidates=num_candidates)
    return StoredPopulation(store, num_held_out=HELD_OUT, sample=sample)


def _open_together(path: str | Path, ranked: dict[str, Any]) -> Store:
    """A store of which this process reads its share, once all are known to have the same one."""
    store = open_share(path, Mailbox())
    check_same(lambda: {"data_hash": store.data_hash} | ranked)
    store.check_share()
    return store


def rooms_for(directory: Population, num_clients: int) -> Rooms:
    """Room for all but one in 10^9 cohorts drawn at random, and never more than for the largest of all.

    Args:
        directory: N clients.
        num_clients: S, of a cohort.

    Returns:
        the sizes of its arrays.
    """
    lengths = np.diff(np.asarray(directory.offsets)).astype(
        np.int64
    )  # wrapped offsets differ by what they should
    num_clients_present = min(num_clients, len(lengths))
    if num_clients * directory.num_items <= BITMAP_CELLS:
        return Rooms(num_clients, room_of(lengths, num_clients_present), 0)
    # twice as many buckets as a first attempt makes: most long clients need one more
    first = 2 ** np.ceil(np.log2(np.maximum(lengths * 2 // WIDTH, 1)))
    empty = num_clients - num_clients_present  # of which each has one bucket
    return Rooms(
        num_clients,
        room_of(lengths, num_clients_present),
        room_of(2 * first.astype(np.int64), num_clients_present) + empty,
    )


def paper_cohort(directory: Population, num_clients: int) -> Population:
    """The shapes of a cohort's population: what its programs are compiled for.

    Args:
        directory: N clients.
        num_clients: S, of a cohort.

    Returns:
        the population, its leaves shapes.
    """
    rooms = rooms_for(directory, num_clients)

    def shape(dtype: Any, *sizes: int) -> Any:
        return jax.ShapeDtypeStruct(sizes, dtype)

    if rooms.buckets:
        membership = Membership(shape(jnp.int32, rooms.buckets, WIDTH), shape(jnp.int32, num_clients + 1))
    else:
        words = -(-directory.num_items // 32)
        membership = Membership(shape(jnp.uint32, num_clients * words), shape(jnp.int32, 0))
    examples = {name: shape(leaf.dtype, rooms.events) for name, leaf in directory.examples.items()}
    offsets = shape(jnp.int32, num_clients + 1)
    return Population(examples, offsets, membership, directory.num_items, directory.max_examples)


def _directory(store: Store, lengths: np.ndarray) -> Population:
    """All clients without their examples, of whose columns there is one value, for its type.

    Past 2^31 events offsets wrap, and their differences are what they should be.
    """
    examples = {"items": jnp.zeros(1, jnp.int32)}
    if "ratings" in store.columns:
        examples["ratings"] = jnp.zeros(1, jnp.float32)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int32)
    membership = Membership(jnp.zeros(1, jnp.uint32), jnp.zeros(0, jnp.int32))
    return Population(
        examples,
        jnp.asarray(offsets),
        membership,
        store.num_items,
        int(lengths.max(initial=0)),
        stored=True,
    )


def room_of(sizes: np.ndarray, number: int) -> int:
    """Room for the sum of some sizes, for all but one in 10^9 draws, and never more than for the largest of all.

    Args:
        sizes: int[N].
        number: how many of them are drawn.

    Returns:
        at least 1.

    Example:
        >>> room_of(np.array([1, 2, 9]), 2)
        11
    """
    if not len(sizes):
        return 1
    largest = int(np.partition(sizes, len(sizes) - number)[len(sizes) - number :].sum()) if number else 0
    typical = number * sizes.mean() + SIGMAS * np.sqrt(number) * sizes.std() + sizes.max()
    return max(1, min(largest, int(typical)))


def _grow(rooms: Rooms, need: Rooms) -> Rooms:
    """Twice what is needed, where there was less room."""
    grown = [max(2 * each, room) if each > room else room for each, room in zip(need, rooms, strict=True)]
    return Rooms(*grown)


def _pad(values: Any, length: int) -> np.ndarray:
    """The values, and whatever behind them."""
    padded = np.empty((length, *values.shape[1:]), values.dtype)
    padded[: len(values)] = values
    padded[len(values) :] = 0
    return padded
