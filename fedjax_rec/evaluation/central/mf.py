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

from fedjax_rec.client.keys import key_of
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.central.scorers import DivergedError, Factors, Scorer, score_factors


class MFParams(NamedTuple):
    """The model."""

    intercept: jax.Array  # float32[], b
    users: jax.Array  # float32[N, D], p
    user_bias: jax.Array  # float32[N]
    items: jax.Array  # float32[I, D], q
    item_bias: jax.Array  # float32[I]

    @property
    def num_users(self) -> int:
        """N."""
        return len(self.users)


class TrainingPairs(NamedTuple):
    """The training events, and what tells a user's unseen items."""

    users: jax.Array  # int32[nnz]
    items: jax.Array  # int32[nnz]
    offsets: jax.Array  # int32[N + 1]
    num_unseen_below: jax.Array  # int32[nnz], unseen items below each of a user's items, in ascending order
    search_steps: (
        jax.Array
    )  # bool[L], whose length is the binary length of the longest history, a static number


def init_factors(key: jax.Array, num_users: int, num_items: int, dim: int) -> tuple[jax.Array, jax.Array]:
    """Draw the vectors that training starts from: normal(0, .1 / sqrt(D)).

    Args:
        key: consumed.
        num_users: N.
        num_items: I.
        dim: D.

    Returns:
        float32[N, D] and float32[I, D].

    Example:
        >>> [x.shape for x in init_factors(jax.random.key(0), 4, 6, 2)]
        [(4, 2), (6, 2)]
    """
    scale = 0.1 / dim**0.5
    for_users, for_items = jax.random.split(key)
    users = scale * jax.random.normal(for_users, (num_users, dim))
    return users, scale * jax.random.normal(for_items, (num_items, dim))


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
    key, key_start = jax.random.split(key_of(seed))
    params = _init_params(key_start, split, dim)
    pairs = make_training_pairs(split)
    for epoch in range(1, epochs + 1):
        rate = learning_rate * (1 - (epoch - 1) / epochs)
        key_epoch = jax.random.fold_in(key, epoch)
        params = _train_epoch(key_epoch, params, pairs, rate, regularisation, num_negatives, batch_size)
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


def _init_params(key: jax.Array, split: Split, dim: int) -> MFParams:
    users, items = init_factors(key, split.num_users, split.num_items, dim)
    return MFParams(jnp.float32(0), users, jnp.zeros(split.num_users), items, jnp.zeros(split.num_items))


def make_training_pairs(split: Split) -> TrainingPairs:
    """Lay out the training events on device.

    Args:
        split: the split.

    Returns:
        the pairs.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> make_training_pairs(tiny_split()).num_unseen_below.tolist()  # user 0 has 0 and 1, user 2 has 3, 4
        [0, 0, 1, 1, 3, 3, 4, 4]
    """
    counts = np.diff(split.offsets)
    users = np.repeat(np.arange(split.num_users), counts)
    ascending = np.sort(users * split.num_items + split.items) - users * split.num_items
    return TrainingPairs(
        users=jnp.asarray(users, jnp.int32),
        items=jnp.asarray(split.items, jnp.int32),
        offsets=jnp.asarray(split.offsets, jnp.int32),
        num_unseen_below=jnp.asarray(ascending - (np.arange(len(users)) - split.offsets[users]), jnp.int32),
        search_steps=jnp.zeros(int(counts.max(initial=0)).bit_length(), bool),
    )


def draw_negatives(
    key: jax.Array, pairs: TrainingPairs, users: jax.Array, num_items: int, number: int
) -> jax.Array:
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
        >>> drawn = draw_negatives(jax.random.key(0), make_training_pairs(tiny_split()), jnp.array([0, 2]), 6, 50)
        >>> sorted(set(drawn[0].tolist())), sorted(set(drawn[1].tolist()))
        ([2, 3, 4, 5], [0, 1, 2, 5])
    """
    start = pairs.offsets[users][:, None]
    end = pairs.offsets[users + 1][:, None]
    num_unseen = num_items - (end - start)
    uniform = jax.random.uniform(key, (len(users), number))
    ranks = jnp.minimum(uniform * num_unseen, num_unseen - 1).astype(jnp.int32)

    # Binary search for the last position of a user's items with s_k - k <= r; start - 1 if there is none.
    last = jnp.broadcast_to(start - 1, ranks.shape)
    for power in reversed(range(len(pairs.search_steps))):
        probe = last + (1 << power)
        below = pairs.num_unseen_below.at[probe].get(mode="clip") <= ranks
        last = jnp.where((probe < end) & below, probe, last)
    return jnp.where(num_unseen > 0, ranks + last + 1 - start, num_items)


@partial(jax.jit, static_argnames=("num_negatives", "batch_size"))
def _train_epoch(
    key: jax.Array,
    params: MFParams,
    pairs: TrainingPairs,
    learning_rate: float,
    regularisation: float,
    num_negatives: int,
    batch_size: int,
) -> MFParams:
    """One pass over the training pairs, in a new order, with new negatives."""
    key_order, key_negatives = jax.random.split(key)
    num_pairs = len(pairs.users)
    num_items = len(params.items)
    steps = -(-num_pairs // batch_size)
    order = jax.random.permutation(key_order, num_pairs)
    order = jnp.pad(order, (0, steps * batch_size - num_pairs), constant_values=num_pairs)

    def step(t: jax.Array, params: MFParams) -> MFParams:
        # A batch of positives [n] with their negatives, items [n, 1 + m].
        chosen = jax.lax.dynamic_slice_in_dim(order, t * batch_size, batch_size)
        users = pairs.users.at[chosen].get(mode="clip")
        positives = pairs.items.at[chosen].get(mode="clip")
        key_step = jax.random.fold_in(key_negatives, t)
        negatives = draw_negatives(key_step, pairs, users, num_items, num_negatives)
        items = jnp.concatenate([positives[:, None], negatives], axis=1)

        # What fills up the last batch, and users who have all items, count for nothing.
        mask = (items < num_items) & (chosen < num_pairs)[:, None]
        gradient = _gradient(params, users, items, mask.astype(jnp.float32), regularisation)
        return _apply_gradient(params, gradient, users, items, learning_rate)

    return jax.lax.fori_loop(0, steps, step, params)


def _gradient(
    params: MFParams, users: jax.Array, items: jax.Array, mask: jax.Array, regularisation: float
) -> MFParams:
    """Gradients of the rows at hand, users' [n, ...] and items' [n, 1 + m, ...]; the first item is positive."""
    rows = MFParams(
        params.intercept,
        params.users[users],
        params.user_bias[users],
        params.items.at[items].get(mode="clip"),
        params.item_bias.at[items].get(mode="clip"),
    )

    def loss(rows: MFParams) -> jax.Array:
        score = rows.intercept + rows.user_bias[:, None] + rows.item_bias
        score = score + jnp.einsum("nd,nmd->nm", rows.users, rows.items)
        signed = jnp.where(jnp.arange(items.shape[1])[None, :] == 0, -score, score)
        user_norms = (rows.users**2).sum(1) + rows.user_bias**2
        norms = user_norms[:, None] + (rows.items**2).sum(2) + rows.item_bias**2
        return (mask * (jax.nn.softplus(signed) + 0.5 * regularisation * norms)).sum()

    return jax.grad(loss)(rows)


def _apply_gradient(
    params: MFParams, gradient: MFParams, users: jax.Array, items: jax.Array, learning_rate: float
) -> MFParams:
    """Subtract the gradients; rows that stand in a batch several times add up."""
    change = jax.tree.map(lambda g: -learning_rate * g, gradient)
    return MFParams(
        params.intercept + change.intercept / items.size,
        params.users.at[users].add(change.users),
        params.user_bias.at[users].add(change.user_bias),
        params.items.at[items].add(change.items, mode="drop"),
        params.item_bias.at[items].add(change.item_bias, mode="drop"),
    )
