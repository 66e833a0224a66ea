"""Cohorts drawn a round ahead by a thread of its own: histories are fetched from a store, and touched rows found.

Who takes part in a round is a pure function of the key and the round's number, unless the sampler goes by losses;
so the cohort of round t + 1 is drawn, its histories are read, indexed and put on the devices, and its batches are
named, while round t trains. Two cohorts are held at a time.

Of several processes each reads the histories that are in its share of the store, and hears the others' (`fetch`).
This thread has no part in what runs on the devices of all of them: it sends beside these.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.data.errors import DataError
from fedjax_rec.engine.devices import replicate
from fedjax_rec.federation.cohorts import DrawnCohort
from fedjax_rec.federation.row_finder import RowFinder
from fedjax_rec.types import Key, Server, State, Tracked

Draw = Callable[[Key, State, Population], DrawnCohort]


class FetchedCohort(NamedTuple):
    """A cohort with its histories, on the devices."""

    cohort: DrawnCohort  # in whole chunks
    populations: list[Population]  # one of the clients of each chunk
    row_ids: jax.Array | None = None  # int32[K], the rows that it touches, where only these are trained


class CohortFeed:
    """Draws and fetches cohorts, the next one while the last one trains.

    Args:
        stored: the clients; None where the population is in memory.
        size: S, clients of a chunk.
        mesh: the devices; None for one.
        finder: of the rows that a cohort touches; None for all rows.
    """

    def __init__(
        self,
        stored: StoredPopulation | None,
        size: int,
        mesh: Mesh | None,
        finder: RowFinder | None = None,
    ) -> None:
        self.stored = None if stored is None else stored.apart()
        self.finder = finder
        self.size = size
        self.mesh = mesh
        self._thread = ThreadPoolExecutor(1, "fedjax_rec-cohorts")
        self._ahead: tuple[int, Future[FetchedCohort]] | None = None

    def take(self, draw: Draw, key: Key, state: State, population: Population, round_: int) -> FetchedCohort:
        """The cohort of a round; that of the next one is then on its way.

        Args:
            draw: compiled, as of `ChunkedRound`.
            key: the run's, the same in every call.
            state: before the round.
            population: the clients, or the directory, on the devices.
            round_: rounds done.

        Returns:
            the cohort.

        Raises:
            DataError: if the store is no longer as it was.
        """
        fetch = partial(self._fetch, draw, key, population)
        coming = self._ahead[1] if self._ahead is not None and self._ahead[0] == round_ else None
        self._ahead = None
        if coming is None:
            coming = self._thread.submit(fetch, drawn_by(state.tracked, round_))
        try:
            fetched = coming.result()
        except DataError:
            self._wait_for_all()
            raise
        # Where losses are tracked, who comes next is not known before this round is over.
        if isinstance(state.tracked.losses, tuple):
            self._ahead = round_ + 1, self._thread.submit(fetch, drawn_by(Tracked(), round_ + 1))
        return fetched

    def _fetch(self, draw: Draw, key: Key, population: Population, state: State) -> FetchedCohort:
        cohort = draw(key, state, population)
        ids = np.asarray(cohort.clients.id).reshape(-1, self.size)
        alive = np.asarray(cohort.alive).reshape(-1, self.size)
        if self.stored is None:
            made = [population] * len(ids)
        else:
            made = [self._put(self.stored.fetch(*chunk)) for chunk in zip(ids, alive, strict=True)]
        if self.finder is None:
            return FetchedCohort(cohort, jax.block_until_ready(made))
        rows = self.finder.find(cohort, made)
        return FetchedCohort(cohort, *jax.block_until_ready((rows.populations, rows.ids)))

    def _wait_for_all(self) -> None:
        """Until every process is here, with the same error: whoever leaves before ends the others' last round."""
        if self.stored is not None:
            self.stored.store.wait_for_all()

    def _put(self, population: Population) -> Population:
        return jax.device_put(population) if self.mesh is None else replicate(population, self.mesh)


def drawn_by(tracked: Tracked, round_: Any) -> State:
    """All of a state that cohorts are drawn by.

    Args:
        tracked: what the server keeps about the clients.
        round_: int32[], rounds done.

    Returns:
        a state without a model.
    """
    return State(
        jnp.asarray(round_, jnp.int32), Server((), ()), (), (), tracked=Tracked(losses=tracked.losses)
    )
