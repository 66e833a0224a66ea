"""iALS: matrix factorisation of the whole table by alternating least squares.

Hu et al. 2008, "Collaborative filtering for implicit feedback datasets" (doi:10.1109/ICDM.2008.22), with the
scaled regularisation of Rendle et al. 2021, "Revisiting the performance of iALS on item recommendation
benchmarks" (arXiv:2110.14037), section 2, nu = 1. With S the training pairs and s_ui = p_u . q_i, the
objective is

    sum over S of (1 - s_ui)^2 + w0 sum over all pairs of s_ui^2
        + reg sum_u (n_u + w0 I) |p_u|^2 + reg sum_i (n_i + w0 N) |q_i|^2,

n_u and n_i being the numbers of training events. Vectors start as normal(0, .1 / sqrt(D)). An epoch solves for all
users, then for all items, each exactly: user u's vector is the solution of

    (sum over i in S_u of q_i q_i^T + w0 Q^T Q + reg (n_u + w0 I) 1) p_u = sum over i in S_u of q_i.

Histories are ragged, so rows are sorted by length and solved in blocks; a block reads as many pieces of 32
entries as its longest row has. One compiled program serves all blocks of a side and all epochs, without
padding histories.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import Factors, Scorer, score_factors

_BLOCK, _PIECE = 64, 32  # rows solved at once, entries of each that are read at once
_MANY_EVENTS = 300_000


class Side(NamedTuple):
    """The rows of one side, users or items, in blocks of rows of about equal length."""

    rows: jax.Array  # int32[B, R], R for padding
    starts: jax.Array  # int32[B, R], where a row's entries start
    counts: jax.Array  # int32[B, R], how many it has
    entries: jax.Array  # int32[nnz], the rows of the other side, row after row


def defaults(split: Split) -> tuple[int, float]:
    """Choose width and regularisation by the size of the data.

    64 and .01 below 300,000 training events, 192 and .007 from there on: what the validation items of
    MovieLens 100K and 1M prefer.

    Args:
        split: the split.

    Returns:
        D and reg.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> defaults(tiny_split())
        (64, 0.01)
    """
    return (64, 0.01) if len(split.items) < _MANY_EVENTS else (192, 0.007)


def fit_ials(
    split: Split,
    *,
    seed: int = 0,
    dim: int | None = None,
    epochs: int = 8,
    regularisation: float | None = None,
    unobserved: float = 0.3,
    on_epoch: Callable[[int, int], Any] | None = None,
) -> Scorer:
    """Alternate for some epochs.

    Args:
        split: its training events are S.
        seed: of the start.
        dim: D; by default that of `defaults`.
        epochs: 1 or more.
        regularisation: reg, more than 0; by default that of `defaults`.
        unobserved: w0, the weight of every pair; 0 or more.
        on_epoch: called after each epoch with its number, from 1, and the number of epochs.

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
    dim = defaults(split)[0] if dim is None else dim
    regularisation = defaults(split)[1] if regularisation is None else regularisation
    _check(dim, epochs, regularisation, unobserved)
    by_user, by_item = lay_out(split)
    users, items = start(jax.random.key(seed), split.num_users, split.num_items, dim)
    for epoch in range(1, epochs + 1):
        users = solve(items, by_user, split.num_users, regularisation, unobserved)
        items = jax.block_until_ready(solve(users, by_item, split.num_items, regularisation, unobserved))
        if on_epoch is not None:
            on_epoch(epoch, epochs)
    return Scorer(score_factors, Factors(users, items, jnp.zeros(split.num_items)))


def start(key: jax.Array, num_users: int, num_items: int, dim: int) -> tuple[jax.Array, jax.Array]:
    """Draw the vectors that the iteration starts from: normal(0, .1 / sqrt(D)).

    Args:
        key: consumed.
        num_users: N.
        num_items: I.
        dim: D.

    Returns:
        float32[N, D] and float32[I, D].

    Example:
        >>> [x.shape for x in start(jax.random.key(0), 4, 6, 2)]
        [(4, 2), (6, 2)]
    """
    scale = 0.1 / dim**0.5
    for_users, for_items = jax.random.split(key)
    users = scale * jax.random.normal(for_users, (num_users, dim))
    return users, scale * jax.random.normal(for_items, (num_items, dim))


def _check(dim: int, epochs: int, regularisation: float, unobserved: float) -> None:
    for name, value in {"dim": dim, "epochs": epochs}.items():
        if value < 1:
            raise ValueError(f"ials: {name} must be at least 1, not {value}")
    if not 0 < regularisation < np.inf:
        raise ValueError(f"ials: regularisation must be a finite number above 0, not {regularisation}")
    if not 0 <= unobserved < np.inf:
        raise ValueError(f"ials: unobserved must be a finite number, at least 0, not {unobserved}")


def lay_out(split: Split) -> tuple[Side, Side]:
    """Lay out the training events by user and by item.

    Args:
        split: the split.

    Returns:
        the users' side, whose entries are items, and the items', whose entries are users.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> lay_out(tiny_split())[1].entries.tolist()  # who has item 0, item 1, ...
        [0, 0, 1, 1, 2, 2, 3, 3]
    """
    counts = np.diff(split.offsets)
    users = np.repeat(np.arange(split.num_users), counts)
    by_item = np.argsort(split.items, kind="stable")
    item_counts = np.bincount(split.items, minlength=split.num_items)
    return _blocks(counts, split.items), _blocks(item_counts, users[by_item])


def _blocks(counts: np.ndarray, entries: np.ndarray) -> Side:
    """Blocks of rows, the longest first, so that rows of one block are about equally long."""
    order = np.argsort(-counts, kind="stable")
    shape = (-(-len(counts) // _BLOCK), _BLOCK)
    missing = shape[0] * shape[1] - len(counts)

    def stack(values: np.ndarray, empty: int) -> jax.Array:
        padded = np.pad(values[order], (0, missing), constant_values=empty)
        return jnp.asarray(padded.reshape(shape), jnp.int32)

    rows, starts = np.arange(len(counts)), np.cumsum(counts) - counts
    return Side(stack(rows, len(counts)), stack(starts, 0), stack(counts, 0), jnp.asarray(entries, jnp.int32))


@partial(jax.jit, static_argnames="num_rows")
def solve(
    others: jax.Array, side: Side, num_rows: int, regularisation: float, unobserved: float
) -> jax.Array:
    """Solve for the vectors of one side, those of the other being fixed: half an epoch.

    Args:
        others: float32[M, D], the vectors of the other side.
        side: of `lay_out`.
        num_rows: n, how many vectors to solve for.
        regularisation: reg.
        unobserved: w0.

    Returns:
        float32[n, D], which minimise the objective.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> by_user, _ = lay_out(tiny_split())
        >>> vectors = solve(jnp.ones((6, 1)), by_user, 4, 0.5, 0.0)
        >>> bool(jnp.allclose(vectors, 2 / 3))  # n / (n + reg n), for n = 2
        True
    """
    num_others, dim = others.shape
    everywhere = unobserved * (others.T @ others)

    def solve_block(block: tuple[jax.Array, jax.Array]) -> jax.Array:
        starts, counts = block

        def read(piece: jax.Array, sums: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
            places = piece * _PIECE + jnp.arange(_PIECE)[None, :]
            entries = side.entries.at[starts[:, None] + places].get(mode="clip")
            vectors = others[entries] * (places < counts[:, None])[:, :, None]
            return sums[0] + jnp.einsum("rkd,rke->rde", vectors, vectors), sums[1] + vectors.sum(1)

        strength = regularisation * (counts + unobserved * num_others)
        ridge = everywhere[None] + strength[:, None, None] * jnp.eye(dim)[None]
        pieces = (counts.max() + _PIECE - 1) // _PIECE
        matrix, target = jax.lax.fori_loop(0, pieces, read, (ridge, jnp.zeros((len(counts), dim))))
        factor = jnp.linalg.cholesky(matrix)
        return jax.scipy.linalg.cho_solve((factor, True), target[:, :, None])[:, :, 0]

    solved = jax.lax.map(solve_block, (side.starts, side.counts)).reshape(-1, dim)
    return jnp.zeros((num_rows, dim)).at[side.rows.reshape(-1)].set(solved, mode="drop")
