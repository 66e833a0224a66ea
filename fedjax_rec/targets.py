"""What attacks that promote items share: their targets, users that they make up, and what these think of rows."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.adversary import Poison, Sight
from fedjax_rec.tables import num_rows
from fedjax_rec.types import Key, Model, PyTree, Server

Targets = Sequence[int] | np.ndarray


def known_targets(targets: Targets, **positive: float) -> np.ndarray:
    """Check what an attack was told.

    Args:
        targets: int[n], distinct codes.
        **positive: numbers that must be above 0, by name.

    Returns:
        int32[n].

    Raises:
        ValueError: if there is no target, or one twice or below 0; if a number is not above 0.

    Example:
        >>> known_targets([5, 3], users=2).tolist()
        [5, 3]
    """
    wanted = np.asarray(targets, np.int32)
    if not len(wanted) or wanted.min() < 0 or len(np.unique(wanted)) != len(wanted):
        raise ValueError(f"targets must be distinct codes of items, at least one, not {wanted.tolist()}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    return wanted


def made_up_users(key: Key, model: Model, count: int, deviation: float) -> PyTree:
    """Users that nobody is: private leaves drawn at random.

    Args:
        key: consumed.
        model: for the leaves' shapes.
        count: how many.
        deviation: they are normal(0, deviation).

    Returns:
        leaves [count, ...].

    Raises:
        ValueError: if the model's private leaves depend on the global model.

    Example:
        >>> from fedjax_rec.algorithms.fedmf import matrix_factorisation
        >>> model = matrix_factorisation(4, 0.1, item_bias=True, ratings=False)
        >>> made_up_users(jax.random.key(0), model, 3, 1.0)["vector"].shape
        (3, 4)
    """
    if model.init_alike is not None or model.score is None:
        raise ValueError("this attack makes up users, and this algorithm's cannot be: choose another attack")
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init_private, key))
    drawn = [
        deviation * jax.random.normal(jax.random.fold_in(key, n), (count, *leaf.shape))
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def poison_targets(targets: np.ndarray, sight: Sight, rows: PyTree) -> Poison:
    """Every attacker sends rows of the targets.

    Args:
        targets: int32[n].
        sight: of M attackers.
        rows: leaves [M, n, ...], or [n, ...] for all alike.

    Returns:
        what they send.

    Example:
        >>> sight = Sight(jax.random.split(jax.random.key(0), 2), None, None, Server({}, jnp.zeros((9, 1))), ())
        >>> poison_targets(np.array([4]), sight, jnp.ones((1, 1))).rows.shape
        (2, 1, 1)
    """
    count, tables = len(sight.keys), sight.server.tables
    if targets.max() >= num_rows(tables):
        raise ValueError(f"there is no item {targets.max()} to promote; items are 0..{num_rows(tables) - 1}")
    ids = jnp.broadcast_to(jnp.asarray(targets), (count, len(targets)))
    spread = jax.tree.map(lambda x, t: jnp.broadcast_to(x, (count, len(targets), *t.shape[1:])), rows, tables)
    return Poison(ids, spread)


def dislike(sight: Sight, user: PyTree, rows: PyTree, label: float) -> jax.Array:
    """How little a user's scores agree with a label: mean over rows of -log sigmoid(label * score).

    Args:
        sight: for the model.
        user: private leaves.
        rows: leaves [n, ...].
        label: 1 or -1.

    Returns:
        float32[].

    Example:
        >>> model = Model(None, None, lambda user, server: user * server.tables)
        >>> sight = Sight(None, None, model, Server({}, None), ())
        >>> f"{float(dislike(sight, jnp.array(0.0), jnp.ones(3), 1.0)):.4f}"
        '0.6931'
    """
    score = sight.model.score
    assert score is not None  # noqa: S101 - users were made up; this tells the type checker
    return jax.nn.softplus(-label * score(user, Server(sight.server.shared, rows))).mean()
