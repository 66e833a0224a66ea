"""iALS: matrix factorisation of the whole table by alternating least squares.

Hu et al. 2008, "Collaborative filtering for implicit feedback datasets" (doi:10.1109/ICDM.2008.22), with the
scaled regularisation of Rendle et al. 2021, "Revisiting the performance of iALS on item recommendation
benchmarks" (arXiv:2110.14037), section 2, nu = 1. With S the training pairs and s_ui = p_u . q_i, the
objective is

    sum over S of (1 - s_ui)^2 + w0 sum over all pairs of s_ui^2
        + reg sum_u (n_u + w0 I) |p_u|^2 + reg sum_i (n_i + w0 N) |q_i|^2,

n_u and n_i being the numbers of training events. Items start as normal(0, .1 / sqrt(D)), at the numbers where
`fedals` starts with the same seed, and all users are solved for them. An epoch solves for all items, then for all
users, each exactly, so that every user fits the items that it ranks; user u's vector is the solution of

    (sum over i in S_u of q_i q_i^T + w0 Q^T Q + reg (n_u + w0 I) 1) p_u = sum over i in S_u of q_i.

Histories are ragged, so rows are sorted by length and solved in blocks; a block reads as many chunks of 32
entries as its longest row has. One compiled program serves all blocks of a side and all epochs, without
padding histories.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.keys import key_of, stream
from fedjax_rec.data.defaults import als_dim, als_weights
from fedjax_rec.data.sorting import stable_order
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Factors, Scorer, score_factors

_BLOCK_ROWS = 64  # rows solved at once
_CHUNK_ENTRIES = 32  # of each row, read at once


class RowBlocks(NamedTuple):
    """The rows of one side, users or items, in blocks of about equally long ones."""

    rows: jax.Array  # int32[B, R], R for padding
    starts: jax.Array  # int32[B, R], where a row's entries start
    counts: jax.Array  # int32[B, R], how many it has
    entries: jax.Array  # int32[nnz], the rows of the other side, row after row


def default_settings(split: Split, *, unobserved: float | None = None) -> dict[str, Any]:
    """Choose width and weights by the size of the data, as `fedals` does (`fedjax_rec.data.defaults`).

    Args:
        split: the split.
        unobserved: w0, where it is given.

    Returns:
        D, reg and w0, by the names that `fit_ials` has for them.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> default_settings(tiny_split())["dim"]
        64
    """
    size = split.size
    return {"dim": als_dim(size), **als_weights(size, unobserved=unobserved)._asdict()}


def fit_ials(
    split: Split,
    *,
    seed: int = 0,
    dim: int | None = None,
    epochs: int = 8,
    regularisation: float | None = None,
    unobserved: float | None = None,
    on_epoch: Callable[[int, int], Any] | None = None,
    goes_on: Callable[[int, Scorer], bool] | None = None,
) -> Scorer:
    """Alternate for some epochs.

    Args:
        split: its training events are S.
        seed: of the start.
        dim: D; by default that of `default_settings`.
        epochs: 1 or more.
        regularisation: reg, more than 0; by default that of `default_settings`, for this w0.
        unobserved: w0, the weight of every pair; 0 or more; by default that of `default_settings`.
        on_epoch: called after each epoch with its number, from 1, and the number of epochs.
        goes_on: called after each epoch with its number and the model so far; where it is false the fit ends.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> scorer = fit_ials(tiny_split(), dim=2, epochs=2)
        >>> scorer.params.users.shape, scorer.params.items.shape
        ((4, 2), (6, 2))
    """
    size = split.size
    dim = als_dim(size) if dim is None else dim
    regularisation, unobserved = als_weights(size, regularisation, unobserved)
    _check(dim, epochs, regularisation, unobserved)
    by_user, by_item = block_rows(split)
    items = init_items(key_of(seed), split.num_items, dim)
    users = solve_factors(items, by_user, split.num_users, regularisation, unobserved)
    for epoch in range(1, epochs + 1):
        items = solve_factors(users, by_item, split.num_items, regularisation, unobserved)
        users = jax.block_until_ready(
            solve_factors(items, by_user, split.num_users, regularisation, unobserved)
        )
        scorer = Scorer(score_factors, Factors(users, items, jnp.zeros(split.num_items)))
        if on_epoch is not None:
            on_epoch(epoch, epochs)
        if goes_on is not None and not goes_on(epoch, scorer):
            break
    return scorer


def init_items(key: jax.Array, num_items: int, dim: int) -> jax.Array:
    """Draw the items' vectors that the iteration starts from, normal(0, .1 / sqrt(D)), as `fedals` draws them.

    Args:
        key: the run's.
        num_items: I.
        dim: D.

    Returns:
        float32[I, D].

    Example:
        >>> init_items(jax.random.key(0), 6, 2).shape
        (6, 2)
    """
    return 0.1 / dim**0.5 * jax.random.normal(stream(key, "init"), (num_items, dim))


def _check(dim: int, epochs: int, regularisation: float, unobserved: float) -> None:
    for name, value in {"dim": dim, "epochs": epochs}.items():
        if value < 1:
            raise ValueError(f"ials: {name} must be at least 1, not {value}")
    if not 0 < regularisation < np.inf:
        raise ValueError(f"ials: regularisation must be a finite number above 0, not {regularisation}")
    if not 0 <= unobserved < np.inf:
        raise ValueError(f"ials: unobserved must be a finite number, at least 0, not {unobserved}")


def block_rows(split: Split) -> tuple[RowBlocks, RowBlocks]:
    """Lay out the training events by user and by item, in blocks of rows.

    Args:
        split: the split.

    Returns:
        the users' side, whose entries are items, and the items', whose entries are users.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> block_rows(tiny_split())[1].entries.tolist()  # who has item 0, item 1, ...
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    counts = np.diff(split.offsets)
    users = np.repeat(np.arange(split.num_users), counts)
    by_item = stable_order(split.items)
    item_counts = np.bincount(split.items, minlength=split.num_items)
    return _make_blocks(counts, split.items), _make_blocks(item_counts, users[by_item])


def _make_blocks(counts: np.ndarray, entries: np.ndarray) -> RowBlocks:
    """Blocks of rows, the longest first, so that rows of one block are about equally long."""
    order = np.argsort(-counts, kind="stable")
    shape = (-(-len(counts) // _BLOCK_ROWS), _BLOCK_ROWS)
    missing = shape[0] * shape[1] - len(counts)

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        padded = np.pad(values[order], (0, missing), constant_values=empty)
        return jnp.asarray(padded.reshape(shape), jnp.int32)

    return RowBlocks(
        rows=stack(np.arange(len(counts)), len(counts)),
        starts=stack(np.cumsum(counts) - counts, 0),
        counts=stack(counts, 0),
        entries=jnp.asarray(entries, jnp.int32),
    )


@partial(jax.jit, static_argnames="num_rows")
def solve_factors(
    other_factors: jax.Array, blocks: RowBlocks, num_rows: int, regularisation: float, unobserved: float
) -> jax.Array:
    """Solve for the vectors of one side, those of the other being fixed: half an epoch.

    Args:
        other_factors: float32[M, D], the vectors of the other side.
        blocks: of the side to solve for, as `block_rows` gives them.
        num_rows: n, how many vectors to solve for.
        regularisation: reg.
        unobserved: w0.

    Returns:
        float32[n, D], which minimise the objective.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> by_user, _ = block_rows(tiny_split())
        >>> vectors = solve_factors(jnp.ones((6, 1)), by_user, 4, 0.5, 0.0)
        >>> bool(jnp.allclose(vectors, 2 / 3))  # n / (n + reg n), for n = 2
        True
    """
    num_others, dim = other_factors.shape
    # What all pairs add to the equations of every row, [D, D].
    gram = unobserved * (other_factors.T @ other_factors)

    def solve_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        starts, counts = block

        def add_chunk(chunk: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            """Add some entries of every row to its matrix [R, D, D] and its right-hand side [R, D]."""
            matrix, target = sums
            positions = chunk * _CHUNK_ENTRIES + jnp.arange(_CHUNK_ENTRIES)[None, :]
            entries = blocks.entries.at[starts[:, None] + positions].get(mode="clip")
            vectors = other_factors[entries] * (positions < counts[:, None])[:, :, None]
            return matrix + jnp.einsum("rkd,rke->rde", vectors, vectors), target + vectors.sum(1)

        # The regularisation of each row, [R, D, D], to which as many chunks are added as the longest row has.
        strength = regularisation * (counts + unobserved * num_others)
        ridge = gram[None] + strength[:, None, None] * jnp.eye(dim)[None]
        num_chunks = (counts.max() + _CHUNK_ENTRIES - 1) // _CHUNK_ENTRIES
        sums = (ridge, jnp.zeros((len(counts), dim)))
        matrix, target = jax.lax.fori_loop(0, num_chunks, add_chunk, sums)

        # The matrices are positive definite.
        factor = jnp.linalg.cholesky(matrix)
        return jax.scipy.linalg.cho_solve((factor, True), target[:, :, None])[:, :, 0]

    solved = jax.lax.map(solve_block, (blocks.starts, blocks.counts)).reshape(-1, dim)
    return jnp.zeros((num_rows, dim)).at[blocks.rows.reshape(-1)].set(solved, mode="drop")
