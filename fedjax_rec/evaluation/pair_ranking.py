"""Ranking of several held-out items a user: each pair of a user and an item among what is no positive of the user.

The rivals of every positive of a user are the same: in the *full* ranking all items that the user has not met and
that are no positives of it, in the *sampled* one its candidates. Where its positives stand among each other
need not be counted on device: with b rivals better and t tied, positives come in the order of (b, t), those that
share both tie with the same rivals, and the place of a positive in the whole list is b plus the positives before
it. `pair_metrics` does that. With one positive a user all of it is what `ranking` counts.

A block of users is scored once, what they have met becomes NaN, which never counts, and each pair reads the row of
its user. NaN counts as worst: a NaN positive ranks behind all rivals.

Axis legend: `N` users, `I` items, `P` pairs, `B` blocks of `U` users, `C` chunks of `W` pairs, `n` candidates.
"""

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.data.heldout import heldout_events
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.devices import map_in_shares, mesh_that_holds
from fedjax_rec.evaluation.counting import check_scores, count_better_and_tied, mid_rank
from fedjax_rec.evaluation.user_blocks import UserBlock, check_users, make_user_blocks

_CHUNK_ON_ACCELERATOR = 256  # pairs whose rows are read at once; a CPU is fastest with one after the other


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class PairRanks:
    """The ranks of all held-out items, user after user; its length is the number of users."""

    mid: jax.Array  # float32[P], better rivals + half of the tied; NaN without a rival
    tied: jax.Array  # int32[P], rivals with the positive's score
    owners: jax.Array  # int32[P], whose positive it is, ascending
    num_users: int = dataclasses.field(metadata={"static": True})  # N

    def __repr__(self) -> str:
        """In a line."""
        return f"<PairRanks of {self.mid.size:,} items of {self.num_users:,} users>"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what is made of them: a value for each user."""
        return (self.num_users,)

    def __len__(self) -> int:
        return self.num_users

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        raise ValueError(
            "ranks of several items a user are no array by user; measure them, or read mid and owners"
        )

    def select(self, pairs: np.ndarray) -> "PairRanks":
        """The ranks of some pairs, as if the other positives were in no list.

        Args:
            pairs: bool[P].

        Returns:
            the ranks, of the same users.
        """
        mid, tied, owners = (jnp.asarray(np.asarray(x)[pairs]) for x in (self.mid, self.tied, self.owners))
        return PairRanks(mid, tied, owners, self.num_users)


class PairBlocks(NamedTuple):
    """All blocks of users with their pairs, and the way back to the pairs."""

    blocks: UserBlock  # stacked [B, ...]
    owners: jax.Array  # int32[B, C, W], index in the block of each pair's user
    items: jax.Array  # int32[B, C, W], -1 for no pair
    positions: jax.Array  # int32[P], where pair p stands in the flattened chunks


def make_pair_ranker(
    split: Split,
    score_block: Callable[[Any, jax.Array], jax.Array],
    *,
    which: str = "test",
    block_size: int | None = None,
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Callable[[Any], tuple[PairRanks, PairRanks]]:
    """Build a compiled function from a model's parameters to the ranks of all held-out items; see `make_ranker`.

    Args:
        split: the split; one held-out item a user will do.
        score_block: pure function of (parameters, int32[U] users) that gives scores [U, I].
        which: `test` or `validation`.
        block_size: U, users scored at once; by default 256, or fewer where I is large.
        chunk: W, pairs counted at once; by default 1 on a CPU.
        mesh: devices that share the blocks, as in `make_ranker`.

    Returns:
        a function of the parameters, any pytree, that gives full and sampled ranks.

    Raises:
        ValueError: if `which` or `block_size` is unknown or out of range, or scores have another shape.

    Example:
        >>> from fedjax_rec.data.splitters import ratio
        >>> split = ratio({"user": [1] * 4, "item": [1, 2, 3, 4], "timestamp": [1, 2, 3, 4]}, test_share=0.5)
        >>> full, _ = make_pair_ranker(split, lambda bias, users: bias[users])(jnp.arange(4.0)[None])
        >>> full.mid, full.owners  # of items 3 and 4; everything else was met
        (Array([nan, nan], dtype=float32), Array([0, 0], dtype=int32))
    """
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else _CHUNK_ON_ACCELERATOR
    pair_blocks, owners = make_pair_blocks(split, which, block_size, chunk)
    rank = _pair_program(score_block, split.num_items)

    def rank_checked(params: Any) -> tuple[PairRanks, PairRanks]:
        check_users(getattr(params, "num_users", split.num_users), split, "parameters")
        full, sampled = rank(params, pair_blocks, mesh_that_holds(params, mesh))
        return PairRanks(*full, owners, split.num_users), PairRanks(*sampled, owners, split.num_users)

    return rank_checked


def make_pair_blocks(
    split: Split, which: str, block_size: int | None, chunk: int
) -> tuple[PairBlocks, jax.Array]:
    """Lay out users and pairs on the host.

    Args:
        split: the split.
        which: `test` or `validation`.
        block_size: U at most; by default 256, or fewer where I is large.
        chunk: W.

    Returns:
        the blocks, and int32[P] the users of the pairs.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> make_pair_blocks(tiny_split(), "test", None, 1)[0].items.shape
        (1, 4, 1)
    """
    user_blocks = make_user_blocks(split, which, block_size)
    num_blocks, size = user_blocks.blocks.users.shape
    held = heldout_events(split, which)

    # Each pair goes to the block of its user, behind the pairs that are there: block and slot, int64[P].
    owners = held.owners
    block, index = np.divmod(np.asarray(user_blocks.positions)[owners], size)
    order = np.argsort(block, kind="stable")
    counts = np.bincount(block, minlength=num_blocks)
    slot = np.empty(len(owners), np.int64)
    slot[order] = np.arange(len(owners)) - (np.cumsum(counts) - counts)[block[order]]

    # Chunks [B, C, W], filled up with what is no pair.
    num_chunks = -(-int(counts.max(initial=1)) // chunk)
    positions = block * num_chunks * chunk + slot

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        stacked = np.full(num_blocks * num_chunks * chunk, empty, np.int32)
        stacked[positions] = values
        return jnp.asarray(stacked.reshape(num_blocks, num_chunks, chunk))

    blocks = PairBlocks(
        blocks=user_blocks.blocks,
        owners=stack(index, 0),
        items=stack(held.items, -1),
        positions=jnp.asarray(positions, jnp.int32),
    )
    return blocks, jnp.asarray(owners, jnp.int32)


_Counts = tuple[jax.Array, jax.Array]  # mid-ranks and ties


@lru_cache(maxsize=8)  # rankers of the same scores share it: of validation and test, and of a later run
def _pair_program(
    score_block: Callable[[Any, jax.Array], jax.Array], num_items: int
) -> Callable[[Any, PairBlocks, Mesh | None], tuple[_Counts, _Counts]]:
    def rank_block(params: Any, pairs: tuple[UserBlock, jax.Array, jax.Array]) -> Any:
        block, owners, items = pairs
        scores = check_scores(score_block(params, block.users), block.users, num_items)
        return _rank_pairs(scores, block, owners, items)

    @partial(jax.jit, static_argnums=2)
    def rank(params: Any, pair_blocks: PairBlocks, mesh: Mesh | None) -> tuple[_Counts, _Counts]:
        ranks = map_in_shares(rank_block, params, pair_blocks[:3], mesh)
        return jax.tree.map(lambda chunks: chunks.reshape(-1)[pair_blocks.positions], ranks)

    return rank


def _rank_pairs(
    scores: jax.Array, block: UserBlock, owners: jax.Array, items: jax.Array
) -> tuple[_Counts, _Counts]:
    """Full and sampled ranks of the pairs [C, W] of a block."""
    # Scores of the candidates [U, n]; and of the rivals [U, I], all else being NaN.
    rows = jnp.arange(len(scores))[:, None]
    candidates = jnp.where(block.candidates >= 0, scores[rows, jnp.maximum(block.candidates, 0)], jnp.nan)
    num_candidates = jnp.sum(block.candidates >= 0, axis=1)
    met = (block.segment_owners[:, None], block.segment_items)  # an empty segment is nobody's
    rivals = scores.at[met].set(jnp.nan, mode="drop")

    def rank_chunk(chunk: tuple[jax.Array, jax.Array]) -> tuple[_Counts, _Counts]:
        owner, item = chunk
        positive = jnp.where(item >= 0, scores[owner, jnp.maximum(item, 0)], jnp.nan)

        def rank_among(scores: jax.Array, num_rivals: jax.Array) -> _Counts:
            better, tied = count_better_and_tied(scores[owner], positive)
            return mid_rank(better, tied, positive, item, num_rivals[owner])

        return rank_among(rivals, block.num_rivals), rank_among(candidates, num_candidates)

    return jax.lax.map(rank_chunk, (owners, items))
