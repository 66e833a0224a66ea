"""Three ways to add rows to a table, equal in result and unequal in speed; `fedjax-rec doctor` times them.

| strategy | does | pays off |
|---|---|---|
| `scatter` (`tables.add_rows`) | one atomic addition for each number of each row | nearly everywhere |
| `sorted` | sorts the ids, sums each run of equal ids, then writes every table row at most once | slow atomics |
| `matmul` | table += one_hot(ids)^T rows, in chunks of rows | few items on a matrix unit |

All take `(table [I, ...], ids int32[n], rows [n, ...])`, rows in the table's dtype, and keep the padding rule of
`tables`: an id equal to `I` is an empty slot and is dropped, like every id beyond it; an id below 0 counts from
the end, as everywhere in jax, and is dropped below `-I`. They differ in the order of summation, so floats agree
to rounding.
"""

import math
import re
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.tables import add_rows, expand

CAS_LOOP = ((0, 10, 2), (0, 11, 0))  # the first and the last such jaxlib: see `choose`
PATTERNS = ("popular", "distinct")  # of the ids that are timed
_CELLS = 1 << 22  # of a one-hot chunk: 16 MiB of float32
_TURNS = 4  # updates in a timed loop

RowUpdate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sort_and_sum(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Sum the rows of equal ids first, then add every sum to its own table row: no two writes meet.

    With the ids sorted, r_j the place of row j within its run and s = 1, 2, 4, ... < n, doubling makes inclusive
    sums within runs:  rows[j] += rows[j - s] if r_j >= s.  The last row of a run then holds the run's sum.

    (A sorted scatter-add is no substitute: on GPUs XLA accumulates runs only if n > I, and otherwise emits the
    same atomics as for unsorted ids. Indices declared unique need none.)

    Args:
        table: [I, ...].
        ids: int32[n], row ids, `I` for an empty slot.
        rows: [n, ...], what to add.

    Returns:
        [I, ...], the new table.

    Example:
        >>> sort_and_sum(jnp.zeros(2), jnp.array([1, 1, 2]), jnp.array([1.0, 2.0, 4.0])).tolist()
        [0.0, 3.0]

    Source: the doubling is Hillis and Steele's ("Data parallel algorithms", CACM 29(12), 1986), the runs are
    Blelloch's segments ("Prefix sums and their applications", CMU-CS-90-190, 1990); what XLA emits stands in
    openxla/xla, xla/backends/gpu/codegen/emitters/scatter.cc.
    """
    size, count = table.shape[0], ids.shape[0]
    place = jnp.arange(count, dtype=jnp.int32)
    ids, order = jax.lax.sort_key_val(_slots(ids, size), place)

    def double(turn: jax.Array, sums: jax.Array) -> jax.Array:
        shift = 1 << turn
        back = jnp.maximum(place - shift, 0)
        same = (place >= shift) & (ids[back] == ids)  # the ids are sorted: all between are of the run, too
        return sums + jnp.where(expand(same, sums), sums[back], 0)

    sums = jax.lax.fori_loop(0, max(count - 1, 0).bit_length(), double, rows[order])
    last = jnp.append(ids[1:] != ids[:-1], True)[:count]
    # What is dropped gets ids of its own beyond the table: even there the promise of unique ids is kept.
    return table.at[jnp.where(last & (ids < size), ids, size + place)].add(
        sums, mode="drop", unique_indices=True
    )


def matmul(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Add rows by a product of matrices: table += one_hot(ids)^T rows, at I multiply-adds a number.

    Args:
        table: [I, ...].
        ids: int32[n], row ids, `I` for an empty slot.
        rows: [n, ...], what to add, all finite: 0 times infinity would spread to rows that nobody asked for.

    Returns:
        [I, ...], the new table.

    Example:
        >>> matmul(jnp.zeros(2), jnp.array([1, 1, 2]), jnp.array([1.0, 2.0, 4.0])).tolist()
        [0.0, 3.0]
    """
    size, count = table.shape[0], ids.shape[0]
    chunk = max(1, min(count, _CELLS // max(size, 1)))
    spare = -count % chunk
    ids = jnp.pad(_slots(ids, size), (0, spare), constant_values=size).reshape(-1, chunk)
    flat = jnp.pad(rows.reshape(count, math.prod(rows.shape[1:])), ((0, spare), (0, 0)))

    def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        hot = jax.nn.one_hot(part[0], size, axis=0, dtype=total.dtype)  # an empty slot has no 1 anywhere
        return total + jnp.dot(hot, part[1], precision=jax.lax.Precision.HIGHEST), None

    start = table.reshape(size, flat.shape[1])
    total, _ = jax.lax.scan(add, start, (ids, flat.reshape(-1, chunk, flat.shape[1])))
    return total.reshape(table.shape)


def _slots(ids: jax.Array, size: int) -> jax.Array:
    """Ids 0 ... size, by the rule that `scatter` follows of itself."""
    ids = jnp.where(ids < 0, ids + size, ids)
    return jnp.where((ids >= 0) & (ids < size), ids, size)


STRATEGIES: dict[str, RowUpdate] = {"scatter": add_rows, "sorted": sort_and_sum, "matmul": matmul}


def choose(platform: str, jaxlib_version: str) -> str:
    """The strategy to start with, by a rule that measures nothing.

    A CPU adds in turn, so `scatter` costs least there. NVIDIA GPUs have fast atomic additions, but jaxlib 0.10.2
    to 0.11.0 compiles those of float32 to a compare-and-swap loop: there `sorted`. All else: `scatter`.

    Args:
        platform: "cpu", "cuda", "rocm" or "tpu"; "gpu", which jax says of both makes, is taken for NVIDIA.
        jaxlib_version: such as "0.11.1".

    Returns:
        a name in `STRATEGIES`.

    Raises:
        ValueError: the version does not begin with three numbers.

    Example:
        >>> choose("cuda", "0.11.0"), choose("cuda", "0.11.1"), choose("cpu", "0.11.0")
        ('sorted', 'scatter', 'scatter')

    Source: https://github.com/jax-ml/jax/issues/38806, https://github.com/openxla/xla/issues/46225.
    """
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", jaxlib_version)
    if found is None:
        raise ValueError(f"jaxlib_version={jaxlib_version!r} is no version; give one like '0.11.1'")
    first, last = CAS_LOOP
    slow = platform in {"cuda", "gpu"} and first <= tuple(map(int, found.groups())) <= last
    return "sorted" if slow else "scatter"


class Measurement(NamedTuple):
    """Time of one strategy on one kind of ids, in ns per row."""

    strategy: str
    num_items: int  # rows of the table, I
    pattern: str  # of the ids: "popular" or "distinct"
    median_ns: float
    min_ns: float
    max_ns: float


def measure(
    strategy: str, num_items: int, pattern: str, num_rows: int, *, dim: int, seconds: float
) -> Measurement:
    """Time a strategy on the default device as the engine uses it: in a compiled loop, the table in place.

    Args:
        strategy: a name in `STRATEGIES`.
        num_items: I.
        pattern: "popular": Zipf's law, P(i) proportional to 1 / i; "distinct": no id twice, so n <= I.
        num_rows: n, rows of an update.
        dim: numbers in a row, float32.
        seconds: to spend; five timings are taken all the same, and at most 25.

    Returns:
        the median over the timings, and their least and most.

    Example:
        >>> measure("scatter", 8, "popular", 4, dim=2, seconds=0.0).median_ns > 0
        True
    """
    ids = jnp.asarray(_draw_ids(pattern, num_items, num_rows))
    rows = jnp.full((num_rows, dim), 1e-3, jnp.float32)
    table = jnp.zeros((num_items, dim), jnp.float32)
    spent: list[float] = []
    while len(spent) < 1 + 5 or (sum(spent[1:]) < seconds and len(spent) < 1 + 25):
        start = time.perf_counter()
        table = _repeat(table, ids, rows, STRATEGIES[strategy]).block_until_ready()
        spent.append(time.perf_counter() - start)
    per_row = np.array(spent[1:]) * 1e9 / ids.size  # the first call compiled
    numbers = (float(reduce(per_row)) for reduce in (np.median, np.min, np.max))
    return Measurement(strategy, num_items, pattern, *numbers)


def _draw_ids(pattern: str, num_items: int, num_rows: int) -> np.ndarray:
    """Row ids int32[turns, n], the same in every call; popular items stand anywhere in the table."""
    rng = np.random.default_rng(0)
    if pattern == "distinct":
        return np.stack([rng.permutation(num_items)[:num_rows] for _ in range(_TURNS)]).astype(np.int32)
    weights = 1 / np.arange(1, num_items + 1)
    ranks = rng.choice(num_items, size=(_TURNS, num_rows), p=weights / weights.sum())
    return rng.permutation(num_items)[ranks].astype(np.int32)


@partial(jax.jit, static_argnames="update", donate_argnames="table")
def _repeat(table: jax.Array, ids: jax.Array, rows: jax.Array, update: RowUpdate) -> jax.Array:
    # Every turn has ids of its own, else the compiler would hoist the sort or the product out of the loop.
    return jax.lax.fori_loop(0, ids.shape[0], lambda turn, table: update(table, ids[turn], rows), table)
