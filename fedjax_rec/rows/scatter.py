"""Two ways to add rows to a table, equal in result and unequal in speed; `fedjax-rec doctor` times them.

| strategy | does | pays off |
|---|---|---|
| `scatter` (`tables.add_rows`) | one atomic addition for each number of each row | nearly everywhere |
| `sorted` | sorts the ids, sums each segment of equal ids, then writes a table row at most once | slow atomics |

Both take `(table [I, ...], ids int32[n], rows [n, ...])`, rows in the table's dtype, and keep the padding rule of
`tables`: an id equal to `I` is an empty slot and is dropped, like every id beyond it; an id below 0 counts from
the end, as everywhere in jax, and is dropped below `-I`. They differ in the order of summation, so floats agree
to rounding.
"""

import re
import time
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.rows.tables import add_rows, expand

CAS_LOOP = (
    (0, 10, 2),
    (0, 11, 0),
)  # the first and the last jaxlib with a compare-and-swap loop: see `choose`
PATTERNS = ("popular", "distinct")  # of the ids that are timed
_NUM_UPDATES = 4  # in a timed loop

RowUpdate = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def sort_and_sum(table: jax.Array, ids: jax.Array, rows: jax.Array) -> jax.Array:
    """Sum the rows of equal ids first, then add every sum to its own table row: no two writes meet.

    The ids sorted, those that are equal make a segment. With s = 1, 2, 4, ... < n, doubling makes inclusive sums
    within segments:  rows[j] += rows[j - s] if j - s is of j's segment.  A segment's last row then holds its sum.

    (A sorted scatter-add is no substitute: on GPUs XLA accumulates segments only if n > I, and otherwise emits the
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
    num_items = table.shape[0]
    num_rows = ids.shape[0]
    # Equal ids stand side by side, and what is dropped at the end; `order` [n] is where each row stood.
    position = jnp.arange(num_rows, dtype=jnp.int32)
    ids, order = jax.lax.sort_key_val(_canonical_ids(ids, num_items), position)

    def double(step: jax.Array, sums: jax.Array) -> jax.Array:
        shift = 1 << step
        earlier = jnp.maximum(position - shift, 0)
        # The ids are sorted: if the earlier one is equal, so are all between.
        same_segment = (position >= shift) & (ids[earlier] == ids)
        return sums + jnp.where(expand(same_segment, sums), sums[earlier], 0)

    # sums [n, ...]: each row plus all earlier ones of its segment.
    num_steps = max(num_rows - 1, 0).bit_length()
    sums = jax.lax.fori_loop(0, num_steps, double, rows[order])
    # A segment's sum is written by its last row alone. All other rows get ids of their own beyond the table, where
    # they are dropped: even there the promise of unique ids is kept.
    is_last = jnp.append(ids[1:] != ids[:-1], True)[:num_rows]
    unique_ids = jnp.where(is_last & (ids < num_items), ids, num_items + position)
    return table.at[unique_ids].add(sums, mode="drop", unique_indices=True)


def _canonical_ids(ids: jax.Array, num_items: int) -> jax.Array:
    """Ids 0 ... I, where I is an empty slot, by the rule that `scatter` follows of itself."""
    return jnp.where((ids >= 0) & (ids < num_items), ids, num_items)


STRATEGIES: dict[str, RowUpdate] = {"scatter": add_rows, "sorted": sort_and_sum}


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
    version = re.match(r"(\d+)\.(\d+)\.(\d+)", jaxlib_version)
    if version is None:
        raise ValueError(f"jaxlib_version={jaxlib_version!r} is no version; give one like '0.11.1'")
    first, last = CAS_LOOP
    slow = platform in {"cuda", "gpu"} and first <= tuple(map(int, version.groups())) <= last
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
    durations: list[float] = []  # in seconds; the first call compiles
    while len(durations) < 1 + 5 or (sum(durations[1:]) < seconds and len(durations) < 1 + 25):
        start = time.perf_counter()
        table = _repeat(table, ids, rows, STRATEGIES[strategy]).block_until_ready()
        durations.append(time.perf_counter() - start)
    ns_per_row = np.array(durations[1:]) * 1e9 / ids.size
    return Measurement(
        strategy,
        num_items,
        pattern,
        median_ns=float(np.median(ns_per_row)),
        min_ns=float(np.min(ns_per_row)),
        max_ns=float(np.max(ns_per_row)),
    )


def _draw_ids(pattern: str, num_items: int, num_rows: int) -> np.ndarray:
    """Row ids int32[updates, n], the same in every call; popular items stand anywhere in the table."""
    rng = np.random.default_rng(0)
    if pattern == "distinct":
        return np.stack([rng.permutation(num_items)[:num_rows] for _ in range(_NUM_UPDATES)]).astype(np.int32)
    weights = 1 / np.arange(1, num_items + 1)
    ranks = rng.choice(num_items, size=(_NUM_UPDATES, num_rows), p=weights / weights.sum())
    return rng.permutation(num_items)[ranks].astype(np.int32)


@partial(jax.jit, static_argnames="update", donate_argnames="table")
def _repeat(table: jax.Array, ids: jax.Array, rows: jax.Array, update: RowUpdate) -> jax.Array:
    # Every update has ids of its own, else the compiler would hoist the sort out of the loop.
    return jax.lax.fori_loop(0, ids.shape[0], lambda step, table: update(table, ids[step], rows), table)
