"""A population of any size, drawn: a client is a pure function of (seed, id), and a store of them a stream.

Histories are lognormal in length. The catalogue is dealt to genres, each sorted by popularity. Half of a client's
events are of its favourite genre, a quarter of its second, the rest of all others; within each, popularity is a
power law: the most popular tenth takes 46 % of the events. These shares are known (`Preferences`), and where
histories are short beside their genres, no recommender can rank better in expectation than by them.

A client's `n` events in a genre of `R` items are one in each of `n` equal slices of the unit interval,

    rank(j) = floor(R u(j)^3),    u(j) = (j + v(j)) / n,    v uniform in [0, 1),

so that ranks rise with `j`; where two would be equal, the later ones move on (a running maximum of rank(j) - j),
and items are distinct without a table of what was taken. A keyed affine map then puts all events of the client in
an order of time that has nothing to do with their popularity. Nothing but counters is hashed, in whole arrays.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store.format import Store, bytes_of, open_store
from fedjax_rec.data.store.progress import progress_of
from fedjax_rec.data.store.writer import check_room, write_store
from fedjax_rec.errors import check_arguments

SHARES = (0.5, 0.25, 0.25)  # of a client's events: its favourite genre, its second, all others
SHORTEST = 5  # events: one each is held out for test and validation
_SPREAD = 1.0  # of the logarithm of the lengths
_MOST_GENRES = 16
_POWER = 3  # of popularity
_EVENTS = 2**15  # made together, so that they stay in a cache
_TASK = 2**20  # events that a thread makes before it hands them over
_CLIENTS = 2**18  # whose lengths are made together
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR2 = np.uint64(0x94D049BB133111EB)
_LENGTH, _TASTE, _ORDER, _EVENT, _FIRST, _SECOND = (
    np.uint64(number) for number in range(6)
)  # streams of one client
_SEGMENT = 33  # bits between the segments of a running maximum


class Preferences(NamedTuple):
    """What the clients of a drawn population really prefer."""

    seed: int
    num_items: int  # I
    mean_events: float  # of a client

    @property
    def num_genres(self) -> int:
        """How many there are."""
        return max(3, min(_MOST_GENRES, self.num_items // 64))

    @property
    def longest(self) -> int:
        """Events that a client has at most: half of them are never more than half of a genre."""
        return int(min(self.num_items // self.num_genres, max(20 * self.mean_events, SHORTEST)))

    def lengths(self, clients: np.ndarray) -> np.ndarray:
        """How many events clients have.

        Args:
            clients: int[S], their ids.

        Returns:
            int64[S].

        Example:
            >>> Preferences(0, 1000, 20.0).lengths(np.array([7, 8])).tolist() == [
            ...     int(Preferences(0, 1000, 20.0).lengths(np.array([n]))[0]) for n in (7, 8)
            ... ]
            True
        """
        bits = self._bits(clients, _LENGTH)
        normal = np.sqrt(-2.0 * np.log1p(-_uniform(bits))) * np.cos(
            2 * np.pi * _uniform(_mix(bits + _GOLDEN))
        )
        lengths = self.mean_events * np.exp(_SPREAD * normal - _SPREAD**2 / 2)
        return np.clip(np.rint(lengths).astype(np.int64), min(SHORTEST, self.longest), self.longest)

    def genres(self, clients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The favourite genre of clients, and their second.

        Args:
            clients: int[S], their ids.

        Returns:
            int64[S] each.
        """
        bits = self._bits(clients, _TASTE)
        number = np.uint64(self.num_genres)
        first = ((bits >> np.uint64(32)) % number).astype(np.int64)
        step = ((bits & np.uint64(0xFFFFFFFF)) % (number - np.uint64(1))).astype(np.int64)
        return first, (first + 1 + step) % self.num_genres

    def histories(self, clients: np.ndarray) -> np.ndarray:
        """The items of clients, each client's in its order of time.

        Args:
            clients: int[S], their ids.

        Returns:
            int32[sum of their lengths], distinct within a client.

        Example:
            >>> one = Preferences(0, 1000, 20.0).histories(np.array([7]))
            >>> both = Preferences(0, 1000, 20.0).histories(np.array([3, 7]))
            >>> np.array_equal(both[-len(one) :], one)
            True
        """
        lengths = self.lengths(clients)
        bounds = _bounds(np.concatenate([[0], np.cumsum(lengths)]), _EVENTS)
        parts = [self._some(clients[i:j], lengths[i:j]) for i, j in pairwise(bounds)]
        return np.concatenate([np.zeros(0, np.int32), *parts])

    def scores(self, clients: np.ndarray) -> np.ndarray:
        """The logarithm of the probability that an event of a client is of an item.

        Args:
            clients: int[S], their ids.

        Returns:
            float32[S, I].

        Example:
            >>> scores = Preferences(0, 100, 20.0).scores(np.array([3]))
            >>> float(np.exp(scores).sum().round(3))
            1.0
        """
        genres, rows = self.num_genres, self.num_items // self.num_genres
        place = np.arange(self.num_items)
        row, genre = place // genres, place % genres
        room = (self.num_items - genre + genres - 1) // genres  # items of the genre
        inside = _density(row, room)
        # Of all other genres, ranks go row by row, as many at a time as there are other genres.
        others = genres - 2
        scores = np.empty((len(clients), self.num_items), np.float32)
        for line, first, second in zip(scores, *self.genres(clients), strict=True):
            column = genre - (genre > first) - (genre > second)
            outside = np.where(
                row < rows, _density(row * others + column, np.full_like(row, rows * others)), 0.0
            )
            probability = np.where(genre == first, SHARES[0] * inside, SHARES[2] * outside)
            probability = np.where(genre == second, SHARES[1] * inside, probability)
            with np.errstate(divide="ignore"):
                line[self._code(place)] = np.log(probability)
        return scores

    def _some(self, clients: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """The histories of clients whose events stay in a cache."""
        taken = self._take(clients, lengths)
        # Event t of a client is what it took at (a t + c) mod n, with a prime `a` beyond any n.
        bits = self._bits(clients, _ORDER)
        primes = _primes_above(max(self.longest, 2))
        stride = primes[(bits & np.uint64(63)).astype(np.int64)] % lengths
        shift = ((bits >> np.uint64(32)) % lengths.astype(np.uint64)).astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        time = np.arange(len(taken)) - np.repeat(starts, lengths)
        time *= np.repeat(stride, lengths)
        time += np.repeat(shift, lengths)
        time = _remainder(time, np.repeat(lengths, lengths), np.repeat(1.0 / lengths, lengths))
        time += np.repeat(starts, lengths)
        return taken[time]

    def _take(self, clients: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """int32[M], what clients take: of their favourite genre, of their second, of others, by popularity."""
        genres, rows = self.num_genres, self.num_items // self.num_genres
        favourite, second = self.genres(clients)
        low, high = np.minimum(favourite, second), np.maximum(favourite, second)
        none = np.full_like(low, genres)  # beyond all genres: nothing is left out
        room_of = (self.num_items - np.arange(genres) + genres - 1) // genres
        # Three segments for each client [S, 3]: how many events, of how many items, `width` of them in a row.
        most = (lengths * SHARES[0] + _uniform(self._bits(clients, _FIRST))).astype(np.int64)
        some = (lengths * SHARES[1] + _uniform(self._bits(clients, _SECOND))).astype(np.int64)
        counts = _segments(most, some, lengths - most - some)
        rooms = _segments(room_of[favourite], room_of[second], np.full_like(low, rows * (genres - 2)))
        width = _segments(np.ones_like(low), np.ones_like(low), np.full_like(low, genres - 2))
        genre = _segments(favourite, second, np.zeros_like(low))
        skipped = _segments(none, none, low), _segments(none, none, high)
        keys = _mix(
            np.repeat(self._bits(clients, _EVENT), 3) + np.tile(np.arange(3, dtype=np.uint64), len(clients))
        )
        # Of each event [M]: its number in the segment, and the slice of the unit interval that it is drawn from.
        starts = np.cumsum(counts) - counts
        number = np.arange(int(counts.sum())) - np.repeat(starts, counts)
        draw = _uniform(_scramble(np.repeat(keys, counts) + number.astype(np.uint64) * _GOLDEN))
        draw += number
        draw *= np.repeat(1.0 / np.maximum(counts, 1), counts)
        room = np.repeat(rooms, counts)
        rank = (draw * draw * draw * room).astype(np.int64)
        # Equal ranks move on, and none beyond the last.
        base = np.repeat(np.arange(len(counts)) << _SEGMENT, counts)
        rank += base - number
        np.maximum.accumulate(rank, out=rank)
        rank += number - base
        room += number - np.repeat(counts, counts)
        np.minimum(rank, room, out=rank)
        # Where in the catalogue that is.
        row = ((rank + 0.5) * np.repeat(1.0 / width, counts)).astype(np.int64)  # exact below 2^31
        column = rank - row * np.repeat(width, counts)
        column += np.repeat(genre, counts)
        for skip in skipped:
            column += column >= np.repeat(skip, counts)
        return self._code(row * genres + column)

    def _code(self, place: np.ndarray) -> np.ndarray:
        """int32[...], item codes of places in the catalogue: a bijection, so that codes do not tell popularity."""
        factor = int(self.num_items * 0.6180339887) | 1
        while math.gcd(factor, self.num_items) > 1:
            factor += 2
        return _remainder(place * factor + 7, self.num_items, 1.0 / self.num_items).astype(np.int32)

    def _bits(self, clients: np.ndarray, stream: np.uint64) -> np.ndarray:
        """uint64[S], a client's own random bits."""
        key = _mix(np.array([self.seed], np.uint64) * np.uint64(8) + stream)
        return _mix(_mix(np.asarray(clients).astype(np.uint64) + _GOLDEN) ^ key)


def synthesise(
    path: str | Path,
    *,
    clients: int,
    items: int,
    events_per_client: float = 100.0,
    seed: int = 0,
    progress: bool = False,
) -> Store:
    """Draw a population as a store, some clients at a time.

    Args:
        path: the store's folder, which there may not be.
        clients: N.
        items: I, at least 30.
        events_per_client: their mean number, about; the longest have 20 times as many, if there are items enough.
        seed: 0 or more; a client is a pure function of it, the number of items, that of events, and its id.
        progress: show a progress bar, where `tqdm` is installed.

    Returns:
        the store, opened; its clients' events are in order of time.

    Raises:
        DataError: if a size is out of range, or the disk cannot hold it.

    Example:
        >>> import tempfile
        >>> store = synthesise(Path(tempfile.mkdtemp()) / "some", clients=50, items=200, events_per_client=10)
        >>> store.num_clients, store.order
        (50, 'time')
    """
    check_arguments(synthesise, locals())
    preferences = preferences_of(clients=clients, items=items, events_per_client=events_per_client, seed=seed)
    lengths = np.concatenate([preferences.lengths(ids) for ids in _ids(clients, _CLIENTS)])
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    num_events = int(offsets[-1])
    check_room(Path(path), bytes_of("<i4", num_events) + bytes_of("<i8", clients + 1))
    with write_store(path) as writer, progress_of(num_events, "event", "drawing", shown=progress) as advance:
        writer.append("offsets", offsets)
        writer.append("items", np.zeros(0, np.int32))
        for drawn in _in_threads(preferences, offsets):
            writer.append("items", drawn)
            advance(len(drawn))
        writer.describe(
            name="drawn",
            num_items=items,
            order="time",
            origin=f"{clients} clients, {items} items, {events_per_client:g} events a client, seed {seed}",
        )
    return open_store(path)


def preferences_of(
    *, clients: int, items: int, events_per_client: float = 100.0, seed: int = 0
) -> Preferences:
    """The preferences of a drawn population.

    Args:
        clients: N; so are the others as of `synthesise`.
        items: I.
        events_per_client: their mean number.
        seed: 0 or more.

    Returns:
        the preferences.

    Raises:
        DataError: if a size is out of range.

    Example:
        >>> preferences_of(clients=5, items=10)
        Traceback (most recent call last):
        fedjax_rec.data.errors.DataError: items=10 must be 30 to 2,147,483,646; with fewer there are no genres
    """
    if not 30 <= items < 2**31 - 1:
        raise DataError(f"items={items} must be 30 to {2**31 - 2:,}; with fewer there are no genres")
    if not 1 <= clients < 2**31 - 1:
        raise DataError(f"clients={clients:,} must be 1 to {2**31 - 2:,}, as many as 32 bits name")
    if not (math.isfinite(events_per_client) and events_per_client >= SHORTEST):
        raise DataError(f"events_per_client={events_per_client:g} must be at least {SHORTEST}")
    if not 0 <= seed < 2**60:
        raise DataError(f"seed={seed} must be at least 0 and below 2^60")
    preferences = Preferences(seed, items, float(events_per_client))
    if preferences.longest < events_per_client:
        raise DataError(
            f"events_per_client={events_per_client:g} is more than {items:,} items allow, which is "
            f"{preferences.longest:,}; take more items"
        )
    return preferences


def _in_threads(preferences: Preferences, offsets: np.ndarray) -> Iterator[np.ndarray]:
    """The histories of all clients, in order; numpy lets other threads run meanwhile."""
    chunks = (np.arange(first, stop) for first, stop in pairwise(_bounds(offsets, _TASK)))
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[np.ndarray]] = [
            pool.submit(preferences.histories, ids) for ids in islice(chunks, 2 * threads)
        ]
        while waiting:
            drawn = waiting.pop(0).result()
            waiting += [pool.submit(preferences.histories, ids) for ids in islice(chunks, 1)]
            yield drawn


def _bounds(offsets: np.ndarray, events: int) -> list[int]:
    """Clients at which to part them, so that there are about so many events between two."""
    bounds = [0]
    while bounds[-1] < len(offsets) - 1:
        stop = int(np.searchsorted(offsets, offsets[bounds[-1]] + events, side="right")) - 1
        bounds.append(min(max(stop, bounds[-1] + 1), len(offsets) - 1))
    return bounds


def _ids(number: int, together: int) -> Iterator[np.ndarray]:
    return (np.arange(first, min(first + together, number)) for first in range(0, number, together))


def _segments(first: np.ndarray, second: np.ndarray, third: np.ndarray) -> np.ndarray:
    """int64[3 S], of each client one after the other."""
    return np.stack([first, second, third], axis=1).reshape(-1)


def _density(rank: np.ndarray, room: np.ndarray) -> np.ndarray:
    """The probability of ranks of 0 to `room` - 1."""
    power = 1.0 / _POWER
    return ((rank + 1) / room) ** power - (rank / room) ** power


def _mix(bits: np.ndarray) -> np.ndarray:
    """A bijection of 64 bits (the finaliser of splitmix64)."""
    bits = (bits ^ (bits >> np.uint64(30))) * _FACTOR
    bits = (bits ^ (bits >> np.uint64(27))) * _FACTOR2
    return bits ^ (bits >> np.uint64(31))


def _scramble(bits: np.ndarray) -> np.ndarray:
    """A cheaper one, in place, of keys that are well mixed."""
    bits ^= bits >> np.uint64(32)
    bits *= _FACTOR2
    return bits


def _uniform(bits: np.ndarray) -> np.ndarray:
    """float64[...] in [0, 1), of the upper 32 bits."""
    return (bits >> np.uint64(32)).astype(np.float64) * 2.0**-32


def _remainder(values: np.ndarray, moduli: np.ndarray | int, inverses: np.ndarray | float) -> np.ndarray:
    """`values % moduli`, in place, of int64 below 2^62, moduli below 2^31: faster than a division."""
    values -= (values * inverses).astype(np.int64) * moduli  # off by one at most
    values += (values < 0) * moduli
    values -= (values >= moduli) * moduli
    return values


def _primes_above(bound: int) -> np.ndarray:
    """int64[64], the first primes above a bound."""
    top = bound + 64 * max(64, 2 * bound.bit_length() * 8)
    divisors = np.arange(2, math.isqrt(top) + 1)
    numbers = np.arange(bound + 1, top)
    sieve = np.ones(len(numbers), bool)
    for divisor in divisors.tolist():
        first = max(-(-numbers[0] // divisor), 2) * divisor - numbers[0]
        sieve[first::divisor] = False
    return numbers[sieve][:64]
