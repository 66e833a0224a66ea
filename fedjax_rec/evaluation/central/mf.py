"""MF: logistic matrix factorisation with biases, by stochastic gradient descent on sampled negatives.

Rendle et al. 2020, "Neural collaborative filtering vs. matrix factorization revisited"
(doi:10.1145/3383313.3412488), section 2: the score is s_ui = b + b_u + b_i + p_u . q_i, and each pair (u, i)
with label y, 1 for a training pair and 0 for a sampled negative, adds

    -y log sigmoid(s_ui) - (1 - y) log sigmoid(-s_ui) + reg / 2 (|p_u|^2 + |q_i|^2 + b_u^2 + b_i^2)

to the loss (the intercept b is free). Negatives are drawn uniformly and anew in every epoch from the items
that the user does not have *in training*: held-out items are not spared, which would leak them.

Departures: a step takes a batch of positives with their negatives instead of one pair (gradients are summed,
so that a pair moves its rows as far as alone, and the intercept follows the mean); vectors start as normal(0,
.1 / sqrt(D)); the learning rate falls linearly to 0, so that 20 epochs do the work of some hundred at a
constant one.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.ials import start
from fedjax_rec.evaluation.central.scorers import DivergedError, Factors, Scorer, score_factors


class Params(NamedTuple):
    """The model."""

    intercept: jax.Array  # float32[], b
    users: jax.Array  # float32[N, D], p
    user_bias: jax.Array  # float32[N]
    items: jax.Array  # float32[I, D], q
    item_bias: jax.Array  # float32[I]


class Pairs(NamedTuple):
    """The training events, and what tells a user's unseen items."""

    users: jax.Array  # int32[nnz]
    items: jax.Array  # int32[nnz]
    offsets: jax.Array  # int32[N + 1]
    before: jax.Array  # int32[nnz], unseen items below each of a user's items, in ascending order
    longest: jax.Array  # bool[L], as many entries as the binary length of the longest history


def fit_mf(
    split: Split,
    *,
    seed: int = 0,
    dim: int = 64,
    epochs: int = 20,
    num_negatives: int = 4,
    learning_rate: float = 0.1,
    regularisation: float = 0.01,
    batch_size: int = 1024,
    on_epoch: Callable[[int, int], Any] | None = None,
) -> Scorer:
    """Train for some epochs. The defaults were chosen on the validation items of MovieLens 100K and 1M.

    Args:
        split: its training events are the positives.
        seed: of start, order and negatives.
        dim: D.
        epochs: 1 or more.
        num_negatives: negatives drawn for each positive.
        learning_rate: of the first epoch.
        regularisation: reg, 0 or more.
        batch_size: positives in a step.
        on_epoch: called after each epoch with its number, from 1, and the number of epochs.

    Returns:
        the scorer.

    Raises:
        ValueError: if a setting is out of range; `DivergedError`, which is one, if training diverged.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> fit_mf(tiny_split(), dim=2, epochs=2).params.items.shape
        (6, 2)
    """
    sizes = {"dim": dim, "epochs": epochs, "num_negatives": num_negatives, "batch_size": batch_size}
    _check(sizes, learning_rate=learning_rate, regularisation=regularisation)
    key, key_start = jax.random.split(jax.random.key(seed))
    params, pairs = _start(key_start, split, dim), lay_out(split)
    for epoch in range(1, epochs + 1):
        rate = learning_rate * (1 - (epoch - 1) / epochs)
        key_epoch = jax.random.fold_in(key, epoch)
        params = _epoch(key_epoch, params, pairs, rate, regularisation, num_negatives, batch_size)
        if not all(bool(jnp.isfinite(leaf).all()) for leaf in params):
            raise DivergedError(
                f"mf: training diverged in epoch {epoch}; lower learning_rate={learning_rate}"
            )
        if on_epoch is not None:
            on_epoch(epoch, epochs)
    return Scorer(score_factors, Factors(params.users, params.items, params.item_bias))


def _check(sizes: dict[str, int], **rates: float) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"mf: {name} must be at least 1, not {value}")
    for name, rate in rates.items():
        if not 0 <= rate < np.inf:
            raise ValueError(f"mf: {name} must be a finite number, at least 0, not {rate}")


def _start(key: jax.Array, split: Split, dim: int) -> Params:
    users, items = start(key, split.num_users, split.num_items, dim)
    return Params(jnp.float32(0), users, jnp.zeros(split.num_users), items, jnp.zeros(split.num_items))


def lay_out(split: Split) -> Pairs:
    """Lay out the training events on device.

    Args:
        split: the split.

    Returns:
        the pairs.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> lay_out(tiny_split()).before.tolist()  # the first user has 0 and 1, the third 3 and 4
        [0, 0, 1, 1, 3, 3, 4, 4]
    """
    counts = np.diff(split.offsets)
    users = np.repeat(np.arange(split.num_users), counts)
    ascending = split.items[np.lexsort((split.items, users))]
    before = ascending - (np.arange(len(users)) - split.offsets[users])
    bits = int(counts.max(initial=0)).bit_length()
    codes = partial(jnp.asarray, dtype=jnp.int32)
    return Pairs(codes(users), codes(split.items), codes(split.offsets), codes(before), jnp.zeros(bits, bool))


def draw_negatives(key: jax.Array, pairs: Pairs, users: jax.Array, num_items: int, number: int) -> jax.Array:
    """Draw unseen items, uniformly and with replacement.

    A user's k-th item s_k, in ascending order from 0, has s_k - k unseen ones below it, so that the unseen item
    of rank r is r plus the number of k with s_k - k <= r, which a binary search finds.

    Args:
        key: consumed.
        pairs: the training events.
        users: int32[n].
        num_items: I.
        number: m, of each user.

    Returns:
        int32[n, m], items; I for a user who has them all.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> drawn = draw_negatives(jax.random.key(0), lay_out(tiny_split()), jnp.array([0, 2]), 6, 50)
        >>> sorted(set(drawn[0].tolist())), sorted(set(drawn[1].tolist()))
        ([2, 3, 4, 5], [0, 1, 2, 5])
    """
    begin, end = pairs.offsets[users][:, None], pairs.offsets[users + 1][:, None]
    unseen = num_items - (end - begin)
    ranks = jnp.minimum(jax.random.uniform(key, (len(users), number)) * unseen, unseen - 1).astype(jnp.int32)
    below = jnp.broadcast_to(begin - 1, ranks.shape)  # the last place with s_k - k <= r
    for power in reversed(range(len(pairs.longest))):
        probe = below + (1 << power)
        found = (probe < end) & (pairs.before.at[probe].get(mode="clip") <= ranks)
        below = jnp.where(found, probe, below)
    return jnp.where(unseen > 0, ranks + below + 1 - begin, num_items)


@partial(jax.jit, static_argnames=("num_negatives", "batch_size"))
def _epoch(
    key: jax.Array,
    params: Params,
    pairs: Pairs,
    learning_rate: float,
    regularisation: float,
    num_negatives: int,
    batch_size: int,
) -> Params:
    """One pass over the training pairs, in a new order, with new negatives."""
    key_order, key_negatives = jax.random.split(key)
    num_pairs, num_items = len(pairs.users), len(params.items)
    steps = -(-num_pairs // batch_size)
    order = jax.random.permutation(key_order, num_pairs)
    order = jnp.pad(order, (0, steps * batch_size - num_pairs), constant_values=num_pairs)

    def step(t: jax.Array, params: Params) -> Params:
        chosen = jax.lax.dynamic_slice_in_dim(order, t * batch_size, batch_size)
        users, positives = (column.at[chosen].get(mode="clip") for column in (pairs.users, pairs.items))
        negatives = draw_negatives(
            jax.random.fold_in(key_negatives, t), pairs, users, num_items, num_negatives
        )
        items = jnp.concatenate([positives[:, None], negatives], axis=1)
        mask = (items < num_items) & (chosen < num_pairs)[:, None]
        gradient = _gradient(params, users, items, mask.astype(jnp.float32), regularisation)
        return _descend(params, gradient, users, items, learning_rate)

    return jax.lax.fori_loop(0, steps, step, params)


def _gradient(
    params: Params, users: jax.Array, items: jax.Array, mask: jax.Array, regularisation: float
) -> Params:
    """Gradients of the rows at hand, users' [n, ...] and items' [n, 1 + m, ...]; the first item is positive."""
    rows = Params(
        params.intercept,
        params.users[users],
        params.user_bias[users],
        params.items.at[items].get(mode="clip"),
        params.item_bias.at[items].get(mode="clip"),
    )

    def loss(rows: Params) -> jax.Array:
        score = rows.intercept + rows.user_bias[:, None] + rows.item_bias
        score = score + jnp.einsum("nd,nmd->nm", rows.users, rows.items)
        signed = jnp.where(jnp.arange(items.shape[1])[None, :] == 0, -score, score)
        own = (rows.users**2).sum(1) + rows.user_bias**2
        norms = own[:, None] + (rows.items**2).sum(2) + rows.item_bias**2
        return (mask * (jax.nn.softplus(signed) + 0.5 * regularisation * norms)).sum()

    return jax.grad(loss)(rows)


def _descend(
    params: Params, gradient: Params, users: jax.Array, items: jax.Array, learning_rate: float
) -> Params:
    """Subtract the gradients; rows that stand in a batch several times add up."""
    move = jax.tree.map(lambda g: -learning_rate * g, gradient)
    return Params(
        params.intercept + move.intercept / items.size,
        params.users.at[users].add(move.users),
        params.user_bias.at[users].add(move.user_bias),
        params.items.at[items].add(move.items, mode="drop"),
        params.item_bias.at[items].add(move.item_bias, mode="drop"),
    )
