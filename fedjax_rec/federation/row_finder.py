"""The rows that a cohort touches, found on the host from its named batches; and buffers that serve again."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.membership import Membership
from fedjax_rec.client.population import Population
from fedjax_rec.engine.devices import replicate
from fedjax_rec.federation.cohorts import DrawnCohort
from fedjax_rec.federation.touched import BLOCK, TouchedRows
from fedjax_rec.types import Batch, PyTree


class FoundRows(NamedTuple):
    """The rows of a cohort, and its batches in positions among these; on the devices."""

    ids: jax.Array  # int32[K], ascending, I behind them
    populations: list[
        Population
    ]  # of each chunk: `examples` are its batches, `offsets` where each client's begin


def table_size(rows: int) -> int:
    """K of a compact table with room for some rows: one of few sizes, so that few programs are compiled.

    Args:
        rows: that are touched.

    Returns:
        K, of four sizes in a doubling.

    Example:
        >>> [table_size(rows) for rows in (5, 1000, 450_000, 460_000)]
        [16, 1024, 458752, 524288]
    """
    unit = 1 << max(2, rows.bit_length() - 3)
    return max(16, -(-rows // unit) * unit)


class Spare:
    """Buffers that nobody needs any more, for programs to write over: new memory costs more than a pass."""

    def __init__(self, mesh: Mesh | None) -> None:
        self.mesh = mesh
        self.buffers: dict[Any, list[jax.Array]] = {}

    def take(self, shapes: Sequence[Any]) -> list[jax.Array]:
        """Buffers of some shapes, whatever is in them; new ones where none are left."""
        taken = []
        for like in shapes:
            left = self.buffers.get((like.shape, like.dtype), [])
            taken.append(left.pop() if left else replicate(jnp.zeros(like.shape, like.dtype), self.mesh))
        return taken

    def give(self, tree: PyTree) -> None:
        """Buffers that nobody reads again."""
        for leaf in jax.tree.leaves(tree):
            self.buffers.setdefault((leaf.shape, leaf.dtype), []).append(leaf)


class RowFinder:
    """Names the batches of cohorts, and finds the rows that they touch.

    Args:
        touched: the round.
        size: S, clients of a chunk.
        mesh: the devices; None for one.
    """

    def __init__(self, touched: TouchedRows, size: int, mesh: Mesh | None) -> None:
        self.num_items = touched.num_items
        self.room = touched.room
        self.size = size
        self.mesh = mesh
        self._name = jax.jit(touched.name_batches, static_argnums=0)

    def find(self, cohort: DrawnCohort, populations: Sequence[Population]) -> FoundRows:
        """The rows that a cohort touches.

        Args:
            cohort: in whole chunks.
            populations: in which each chunk's clients are.

        Returns:
            the rows, and the batches in positions among them.
        """
        chunks = [self._name_chunk(cohort, each, number) for number, each in enumerate(populations)]
        ids, positions = find_rows([np.asarray(batches.ids) for batches, _ in chunks], self.num_items)
        named = [
            name_population(batches._replace(ids=jnp.asarray(where)), starts, len(ids), each)
            for (batches, starts), where, each in zip(chunks, positions, populations, strict=True)
        ]
        found = FoundRows(jnp.asarray(ids), named)
        return replicate(found, self.mesh)

    def _name_chunk(
        self, cohort: DrawnCohort, population: Population, number: int
    ) -> tuple[Batch, jax.Array]:
        """A chunk's batches, in room for them."""
        batches, starts = self._name(self.room, population, cohort, np.int32(number * self.size))
        if int(starts[-1]) <= self.room:
            return batches, starts
        self.room = -(-2 * int(starts[-1]) // BLOCK) * BLOCK
        return self._name_chunk(cohort, population, number)


def find_rows(ids: Sequence[np.ndarray], num_items: int) -> tuple[np.ndarray, list[np.ndarray]]:
    """Distinct rows, and the position of each id among them.

    Args:
        ids: int32 arrays of any shapes, `num_items` in empty slots.
        num_items: I.

    Returns:
        int32[K] the rows, ascending, I behind them; arrays of the ids' shapes, K in empty slots.

    Example:
        >>> rows, positions = find_rows([np.array([[7, 3], [9, 7]], np.int32)], 9)
        >>> rows[:3].tolist(), len(rows), positions[0].tolist()
        ([3, 7, 9], 16, [[1, 0], [16, 1]])
    """
    flat = np.concatenate([each.reshape(-1) for each in ids])
    # One sort of (id, place) as one number: a sort of ids that tells where each stood takes three times as long.
    packed = flat.astype(np.uint64) << np.uint64(32)
    packed |= np.arange(len(flat), dtype=np.uint64)
    packed.sort()
    ascending = (packed >> np.uint64(32)).astype(np.int32)
    place = (packed & np.uint64(2**32 - 1)).astype(np.int64)
    is_first = np.ones(len(flat), bool)
    np.not_equal(ascending[1:], ascending[:-1], out=is_first[1:])
    distinct = ascending[is_first]
    distinct = distinct[distinct < num_items]
    size = table_size(len(distinct))
    rank = np.cumsum(is_first, dtype=np.int32) - 1
    rank[ascending >= num_items] = size
    positions = np.empty(len(flat), np.int32)
    positions[place] = rank
    rows = np.full(size, num_items, np.int32)
    rows[: len(distinct)] = distinct
    ends = np.cumsum([each.size for each in ids])[:-1]
    return rows, [part.reshape(each.shape) for part, each in zip(np.split(positions, ends), ids, strict=True)]


def name_population(batches: Batch, starts: Any, num_items: int, population: Population) -> Population:
    """Named batches as the population that `of_named_batches` reads.

    Args:
        batches: of a chunk, leaves [M, ...].
        starts: int32[S + 1], where each client's begin.
        num_items: K.
        population: the clients.

    Returns:
        a population of S clients.
    """
    examples: Any = {"batches": batches}
    nothing: Any = Membership(np.zeros(0, np.uint32), np.zeros(0, np.int32))
    return Population(examples, starts, nothing, num_items, population.max_examples)


def paper_rows(
    touched: TouchedRows, population: Population, cohort: DrawnCohort, num_rows: int
) -> tuple[Any, Population]:
    """Shapes of a cohort's rows and named batches: what its programs are compiled for.

    Args:
        touched: the round.
        population: in which a chunk's clients are, or its shapes.
        cohort: shapes.
        num_rows: that are expected.

    Returns:
        the ids, and the population of named batches.
    """
    batches, starts = jax.eval_shape(
        partial(touched.name_batches, touched.room), population, cohort, jax.ShapeDtypeStruct((), jnp.int32)
    )
    size = table_size(num_rows)
    return jax.ShapeDtypeStruct((size,), jnp.int32), name_population(batches, starts, size, population)
