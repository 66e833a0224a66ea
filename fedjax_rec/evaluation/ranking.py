"""Ranking on device, by counting: where does each user's held-out item stand among its rivals?

Splits that hold out several items a user are ranked pair by pair, in `pair_ranking`.

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

Axis legend: `N` users, `I` items, `U` users of a block, `R` segments of `W` seen items, `n` candidates.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.data.splits import Split
from fedjax_rec.engine.devices import map_in_shares, mesh_that_holds
from fedjax_rec.evaluation.counting import check_scores, count_better_and_tied, mid_rank
from fedjax_rec.evaluation.pair_ranking import PairRanks, make_pair_ranker
from fedjax_rec.evaluation.user_blocks import (
    UserBlock,
    UserBlocks,
    check_users,
    make_user_blocks,
    masked_pairs,
    positives_of,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class MidRanks:
    """The users' ranks with their ties; as an array, `np.asarray(ranks)`, it is the 0-based mid-rank `mid`."""

    mid: jax.Array  # float32[N], better rivals + half of the tied; NaN without a positive or without a rival
    tied: jax.Array  # int32[N], rivals with the positive's score

    def __repr__(self) -> str:
        """In a line."""
        return f"<MidRanks of {len(self):,} users>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of `mid`."""
        return self.mid.shape

    def __len__(self) -> int:
        return len(self.mid)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.mid, dtype) if copy else np.asarray(self.mid, dtype)


class Ranks(NamedTuple):
    """Where each user's held-out item ranks, or all of them: `PairRanks` where a split holds out several."""

    full: MidRanks | PairRanks  # among all unseen items
    sampled: MidRanks | PairRanks  # among the candidates

    def __repr__(self) -> str:
        """In a line."""
        return f"<Ranks: full {self.full!r}, sampled {self.sampled!r}>"


class RivalCounts(NamedTuple):
    """How many items each user's positive competes with, or each of several."""

    full: np.ndarray  # int64[N], unseen items
    sampled: np.ndarray  # int64[N], candidates


def make_ranker(
    split: Split,
    score_block: Callable[[Any, jax.Array], jax.Array],
    *,
    which: str = "test",
    block_size: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Any], Ranks]:
    """Build a compiled function from a model's parameters to the ranks of all users.

    Seen items and candidates are laid out once, in O(nnz) memory; the ranker compiles once per structure of the
    parameters and then runs on device from end to end, one block of users after the other.

    Args:
        split: the split.
        score_block: pure function of (parameters, int32[U] users) that gives scores [U, I]; parameters that say
            how many users they have, by an attribute `num_users`, are refused where the split has others.
        which: `test` or `validation`.
        block_size: U, users scored at once; by default 256, or fewer where I is large.
        mesh: devices that share the blocks where each of them holds all parameters; `score_block` runs on one.

    Returns:
        The ranker, a function of the parameters, any pytree. Where the split holds out several events a user, it
        ranks all of them, each among what is no positive of its user.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range, or scores have another shape.

    Example:
        >>> from fedjax_rec.data.interactions import Dataset, Interactions
        >>> from fedjax_rec.data.splits import leave_one_out
        >>> users, items = np.zeros(3, "i4"), np.arange(3, dtype="i4")
        >>> table = Interactions(users, items, None, None, np.arange(1), np.arange(5))
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> ranker = make_ranker(split, lambda bias, users: bias[users])
        >>> ranker(jnp.array([[9.0, 9.0, 1.0, 2.0, 1.0]])).full.mid  # 2 competes with 3, which beats it, and 4
        Array([1.5], dtype=float32)
    """
    if split.heldout is not None:
        rank_pairs = make_pair_ranker(split, score_block, which=which, block_size=block_size, mesh=mesh)
        return lambda params: Ranks(*rank_pairs(params))
    user_blocks = make_user_blocks(split, which, block_size)
    rank = _ranking_program(score_block, split.num_items)

    def rank_checked(params: Any) -> Ranks:
        check_users(getattr(params, "num_users", split.num_users), split, "parameters")
        return rank(params, user_blocks, mesh_that_holds(params, mesh))

    return rank_checked


@lru_cache(maxsize=8)  # rankers of the same scores share it: of validation and test, and of a later run
def _ranking_program(
    score_block: Callable[[Any, jax.Array], jax.Array], num_items: int
) -> Callable[[Any, UserBlocks, Mesh | None], Ranks]:
    def rank_block(params: Any, block: UserBlock) -> Ranks:
        return _rank_block(check_scores(score_block(params, block.users), block.users, num_items), block)

    @partial(jax.jit, static_argnums=2)
    def rank(params: Any, user_blocks: UserBlocks, mesh: Mesh | None) -> Ranks:
        ranks = map_in_shares(rank_block, params, user_blocks.blocks, mesh)
        return jax.tree.map(lambda blocks: blocks.reshape(-1)[user_blocks.positions], ranks)

    return rank


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
        >>> split = leave_one_out(Dataset("tiny", table), order="file")
        >>> rank_split(lambda users: jnp.zeros((len(users), 5)), split, which="validation").full.mid
        Array([1.5], dtype=float32)
    """
    return make_ranker(split, lambda _, users: score_block(users), which=which, block_size=block_size)(None)


def count_rivals(split: Split, *, which: str = "test") -> RivalCounts:
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
        >>> count_rivals(leave_one_out(Dataset("tiny", table), order="file", num_candidates=1))
        RivalCounts(full=array([2]), sampled=array([1]))
    """
    _, candidates = positives_of(split, which)
    masked = masked_pairs(split, which)
    full = split.num_items - np.bincount(masked // split.num_items, minlength=split.num_users)
    return RivalCounts(full, (candidates >= 0).sum(axis=1))


def _rank_block(scores: jax.Array, block: UserBlock) -> Ranks:
    size, num_items = scores.shape
    flat = scores.reshape(-1)
    row_starts = jnp.arange(size, dtype=jnp.int32) * num_items

    def read(cells: jax.Array) -> jax.Array:
        return flat.at[cells].get(mode="promise_in_bounds")

    def read_slots(items: jax.Array, starts: jax.Array) -> jax.Array:
        """Scores of items, NaN for -1."""
        return jnp.where(items >= 0, read(starts + jnp.maximum(items, 0)), jnp.nan)

    # Scores of the positives [U], and of each segment's owner's positive [R].
    positive = read_slots(block.positives, row_starts)
    owner_starts = (
        jnp.minimum(block.segment_owners, size - 1) * num_items
    )  # an empty segment counts for nobody
    owner_positive = positive.at[block.segment_owners].get(mode="fill", fill_value=jnp.nan)

    # How many of the masked items are better and tied: counted by segment, summed by owner [U, 2].
    masked_scores = read(owner_starts[:, None] + block.segment_items)
    by_segment = jnp.stack(count_better_and_tied(masked_scores, owner_positive), axis=1)
    masked = jnp.zeros((size, 2), jnp.int32).at[block.segment_owners].add(by_segment, mode="drop")

    # Full ranking: all items of the catalogue, less the masked ones; the fillers had been counted as tied.
    better, tied = count_better_and_tied(scores, positive)
    better = better - masked[:, 0]
    tied = tied - masked[:, 1] + block.num_fillers
    full = MidRanks(*mid_rank(better, tied, positive, block.positives, block.num_rivals))

    # Sampled ranking: the candidates alone.
    better, tied = count_better_and_tied(read_slots(block.candidates, row_starts[:, None]), positive)
    num_candidates = jnp.sum(block.candidates >= 0, axis=1)
    return Ranks(full, MidRanks(*mid_rank(better, tied, positive, block.positives, num_candidates)))
