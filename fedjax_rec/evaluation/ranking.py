"""Ranking on device, by counting: where does each user's held-out item stand among its rivals?

With s+ the positive's score, the 0-based rank is `#(s > s+) + #(s == s+) / 2` over the rivals, which costs
two comparisons per item and no top-k. It is the expected rank under random tie-breaking, and gives a
constant scorer the middle of the list; the number of tied rivals comes with it, from which `metrics` takes
expectations over their order. NaN counts as worst: a NaN positive ranks last, a NaN rival never counts.

Counts run over *all* items of a block, in a sweep that a compiler vectorises; the seen items are then read
once more and what they had counted for is taken back. So nothing is masked, and the result is exact.

In the *full* ranking the rivals are all items that the user has not met (seen are train + validation when
testing, train when validating), in the *sampled* one the candidates of the split. Sampled metrics can
reverse an order of models (Krichene and Rendle 2020, doi:10.1145/3394486.3403226): they serve comparison
with publications.

Axis legend: `N` users, `I` items, `U` users of a block, `R` runs of `W` seen items, `n` candidates.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.layout import Block, Plan, lay_out, masked_codes, positives_of

_CHUNK = 2**15 - 1  # items counted at once: two counts share one int32
_HIGH = 16  # bits between them


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Places:
    """Where the users' positives stand; as an array, `np.asarray(places)`, it is the 0-based rank `mid`."""

    mid: jax.Array  # float32[N], better rivals + half of the tied; NaN without a positive or without a rival
    tied: jax.Array  # int32[N], rivals with the positive's score

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `mid`."""
        return self.mid.shape

    def __len__(self) -> int:
        return len(self.mid)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mid, dtype) if copy else np.asarray(self.mid, dtype)


class Ranks(NamedTuple):
    """Where each user's held-out item stands."""

    full: Places  # among all unseen items
    sampled: Places  # among the candidates


class Rivals(NamedTuple):
    """How many items each user's positive competes with."""

    full: np.ndarray  # int64[N], unseen items
    sampled: np.ndarray  # int64[N], candidates


def make_ranker(
    split: Split,
    score_block: Callable[[Any, jax.Array], jax.Array],
    *,
    which: str = "test",
    block_size: int | None = None,
) -> Callable[[Any], Ranks]:
    """Build a compiled function from a model's parameters to the ranks of all users.

    Seen items and candidates are laid out once, in O(nnz) memory; the ranker compiles once per structure of the
    parameters and then runs on device from end to end, one block of users after the other.

    Args:
        split: the split.
        score_block: pure function of (parameters, int32[U] users) that gives scores [U, I].
        which: `test` or `validation`.
        block_size: U, users scored at once; by default 256, or fewer where I is large.

    Returns:
        The ranker, a function of the parameters, any pytree.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range, or scores have another shape.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> ranker = make_ranker(leave_one_out(Dataset("tiny", table)), lambda bias, users: bias[users])
        >>> ranker(jnp.array([[9.0, 9.0, 1.0, 2.0, 1.0]])).full.mid  # 2 competes with 3, which beats it, and 4
        Array([1.5], dtype=float32)
    """
    plan, num_items = lay_out(split, which, block_size), split.num_items

    def rank_block(params: Any, block: Block) -> Ranks:
        return _rank_block(check_scores(score_block(params, block.users), block, num_items), block)

    @jax.jit
    def rank(params: Any, plan: Plan) -> Ranks:
        ranks = jax.lax.map(lambda block: rank_block(params, block), plan.blocks)
        return jax.tree.map(lambda blocks: blocks.reshape(-1)[plan.places], ranks)

    return lambda params: rank(params, plan)


def rank_split(
    score_block: Callable[[jax.Array], jax.Array],
    split: Split,
    *,
    which: str = "test",
    block_size: int | None = None,
) -> Ranks:
    """Rank once; `make_ranker` serves models that change.

    Args:
        score_block: pure function of int32[U] users that gives scores [U, I]; it may close over arrays.
        split: the split.
        which: `test` or `validation`.
        block_size: U, users scored at once.

    Returns:
        The ranks of all users.

    Raises:
        ValueError: as `make_ranker`.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table))
        >>> rank_split(lambda users: jnp.zeros((len(users), 5)), split, which="validation").full.mid
        Array([1.5], dtype=float32)
    """
    return make_ranker(split, lambda _, users: score_block(users), which=which, block_size=block_size)(None)


def count_rivals(split: Split, *, which: str = "test") -> Rivals:
    """Count the items that each user's positive competes with, as AUC and the rank of a NaN need.

    Args:
        split: the split.
        which: `test` or `validation`.

    Returns:
        The counts, in full and sampled ranking.

    Raises:
        ValueError: if `which` is unknown.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> count_rivals(leave_one_out(Dataset("tiny", table), num_candidates=1))
        Rivals(full=array([2]), sampled=array([1]))
    """
    _, candidates = positives_of(split, which)
    masked = masked_codes(split, which)
    full = split.num_items - np.bincount(masked // split.num_items, minlength=split.num_users)
    return Rivals(full, (candidates >= 0).sum(axis=1))


def check_scores(scores: jax.Array, block: Block, num_items: int) -> jax.Array:
    """Give a block's scores as they will be compared: float32[U, I], computed once.

    Args:
        scores: of the model.
        block: of U users.
        num_items: I.

    Returns:
        The scores.

    Raises:
        ValueError: if their shape is not [U, I].

    Example:
        >>> from types import SimpleNamespace
        >>> check_scores(jnp.zeros((2, 3)), SimpleNamespace(users=jnp.zeros(2)), 4)
        Traceback (most recent call last):
        ValueError: the model scored 2 users with shape (2, 3), not (2, 4): one score for each item
    """
    wanted = (len(block.users), num_items)
    if scores.shape != wanted:
        given = f"scored {wanted[0]} users with shape {scores.shape}"
        raise ValueError(f"the model {given}, not {wanted}: one score for each item")
    # Without the barrier a compiler may compute a score twice, once for either side, with other last bits.
    return jax.lax.optimization_barrier(scores.astype(jnp.float32))


def _rank_block(scores: jax.Array, block: Block) -> Ranks:
    size, num_items = scores.shape
    flat, rows = scores.reshape(-1), jnp.arange(size, dtype=jnp.int32) * num_items

    def read(cells: jax.Array) -> jax.Array:
        return flat.at[cells].get(mode="promise_in_bounds")

    def read_slots(items: jax.Array, rows: jax.Array) -> jax.Array:
        """Scores of items, NaN for -1."""
        return jnp.where(items >= 0, read(rows + jnp.maximum(items, 0)), jnp.nan)

    positive = read_slots(block.positives, rows)
    owner_rows = jnp.minimum(block.owners, size - 1) * num_items  # an empty run has no owner, and no rank
    bar = positive.at[block.owners].get(mode="fill", fill_value=jnp.nan)
    seen = jnp.stack(_count(read(owner_rows[:, None] + block.items), bar), axis=1)
    taken_back = jnp.zeros((size, 2), jnp.int32).at[block.owners].add(seen, mode="drop")
    above, level = _count(scores, positive)
    full = above - taken_back[:, 0], level - taken_back[:, 1] + block.fillers
    sampled = _count(read_slots(block.candidates, rows[:, None]), positive)
    return Ranks(
        _place(*full, positive, block.positives, block.rivals),
        _place(*sampled, positive, block.positives, jnp.sum(block.candidates >= 0, axis=1)),
    )


def _count(scores: jax.Array, positive: jax.Array) -> tuple[jax.Array, jax.Array]:
    """int32[U] each, how many of scores [U, K] are above and level with those of the positives [U]."""
    bar = positive[:, None]
    above = level = jnp.zeros(len(positive), jnp.int32)
    for start in range(0, scores.shape[1], _CHUNK):
        chunk = scores[:, start : start + _CHUNK]
        both = jnp.sum((chunk > bar) + ((chunk == bar).astype(jnp.int32) << _HIGH), axis=1)
        above, level = above + (both & (2**_HIGH - 1)), level + (both >> _HIGH)
    return above, level


def _place(
    above: jax.Array, level: jax.Array, positive: jax.Array, items: jax.Array, rivals: jax.Array
) -> Places:
    """Places by counts; a NaN positive is last, and without an item or a rival there is no place."""
    counted, present = ~jnp.isnan(positive), (items >= 0) & (rivals > 0)
    mid = jnp.where(counted, above.astype(jnp.float32) + 0.5 * level.astype(jnp.float32), rivals)
    return Places(jnp.where(present, mid, jnp.nan), jnp.where(counted & present, level, 0))
