"""PIECK: promote items without knowing anybody, by what the rows of popular items look like.

Rows that move most from round to round are of popular items; attackers mine them from the models that they are
sent, and then turn the targets towards them (IPE) or take them for users (UEA). Departures stand in `promotion`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.adversary import Attack, Poison, Sight
from fedjax_rec.layout import as_matrix, from_matrix
from fedjax_rec.population import Population
from fedjax_rec.tables import num_rows, read_rows
from fedjax_rec.targets import Targets, dislike, known_targets, poison_targets
from fedjax_rec.types import Key, Model, PyTree, Server


def pieck_ipe(
    targets: Targets, *, learning_rate: float = 1.0, popular: int = 10, rounds: int = 2, tau: float = 0.9
) -> Attack:
    """PIECK-IPE: turn the targets' rows towards those of popular items, by weighted cosines.

    loss = -tau * (mean over k with cos_k > 0 of w_k cos_k + mean over the others of w_k cos_k), cos_k between
    target and popular item k (most moved first), w_k = (s - k) / (1 + ... + s) for s popular items, k from 0.

    Args:
        targets: int[n], distinct codes of the items to promote.
        learning_rate: of the rows that are sent.
        popular: s, popular items to mine.
        rounds: changes of the model over which they are mined.
        tau: weight of the loss; the code has .9 where less than a tenth of the clients are malicious, else .5.

    Returns:
        an attack, of n rows.

    Raises:
        ValueError: as `explicit_boosting`; when a run starts, if there are not so many other items.

    Example:
        >>> pieck_ipe([3]).name
        'pieck_ipe'

    Source: Zhang et al. 2024, "Preventing the popular item embedding based attack in federated recommendations",
    and the code of PIECK (ApproxClient), whose test for ten items is where 10 comes from.
    """
    wanted = known_targets(targets, learning_rate=learning_rate, popular=popular, rounds=rounds, tau=tau)
    weight = np.arange(popular, 0, -1) / (popular * (popular + 1) / 2)

    def loss(rows: jax.Array, liked: jax.Array) -> jax.Array:
        close = jnp.asarray(weight, jnp.float32)[None] * (_unit(rows) @ _unit(liked).T)
        above = close > 0
        up = jnp.where(above, close, 0.0).sum(1) / jnp.maximum(above.sum(1), 1)
        down = jnp.where(above, 0.0, close).sum(1) / jnp.maximum((~above).sum(1), 1)
        return -tau * (up + down).sum()

    def pull(sight: Sight, rows: PyTree, liked: PyTree) -> PyTree:
        del sight
        laid = as_matrix(rows, len(wanted))
        return from_matrix(jax.grad(loss)(laid, as_matrix(liked, popular)), rows)

    return _mining("pieck_ipe", wanted, popular, rounds, learning_rate, pull)


def pieck_uea(targets: Targets, *, learning_rate: float = 1.0, popular: int = 150, rounds: int = 2) -> Attack:
    """PIECK-UEA: popular items' rows stand for users; targets descend -log sigmoid(v_k . v_t), mean over k and t.

    Args:
        targets: int[n], distinct codes of the items to promote.
        learning_rate: of the rows that are sent.
        popular: s, popular items to mine.
        rounds: changes of the model over which they are mined.

    Returns:
        an attack, of n rows.

    Raises:
        ValueError: as `pieck_ipe`; if a client's private leaves are not named and shaped as rows are.

    Example:
        >>> pieck_uea([3]).name
        'pieck_uea'

    Source: Zhang et al. 2024, "Preventing the popular item embedding based attack in federated recommendations",
    and the code of PIECK (PopClient).
    """
    wanted = known_targets(targets, learning_rate=learning_rate, popular=popular, rounds=rounds)

    def pull(sight: Sight, rows: PyTree, liked: PyTree) -> PyTree:
        users = _as_users(sight.model, liked)

        def loss(rows: PyTree) -> jax.Array:
            return jax.vmap(lambda user: dislike(sight, user, rows, 1.0))(users).mean()

        return jax.grad(loss)(rows)

    return _mining("pieck_uea", wanted, popular, rounds, learning_rate, pull)


def _mining(
    name: str,
    targets: np.ndarray,
    popular: int,
    rounds: int,
    learning_rate: float,
    pull: Callable[[Sight, PyTree, PyTree], PyTree],  # (sight, targets' rows, popular rows) -> gradient
) -> Attack:
    """An attack that sends nothing until it has seen which rows move most."""

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del key, model, ids
        if popular > population.num_items - len(targets):
            raise ValueError(
                f"popular={popular} exceeds the {population.num_items - len(targets)} other items"
            )
        return {"old": server.tables, "moved": jnp.zeros(population.num_items), "seen": jnp.int32(0)}

    def craft(sight: Sight) -> tuple[Poison, PyTree]:
        known, tables = sight.knowledge, sight.server.tables
        items, seen = num_rows(tables), known["seen"]
        change = as_matrix(jax.tree.map(jnp.subtract, tables, known["old"]), items)
        fresh = (seen >= 1) & (seen <= rounds)
        moved = known["moved"] + jnp.where(fresh, jnp.linalg.norm(change, axis=1), 0.0)
        _, liked = jax.lax.top_k(moved.at[jnp.asarray(targets)].set(-1.0), popular)
        rows = read_rows(tables, jnp.asarray(targets))
        rate = jnp.where(seen >= rounds, learning_rate, 0.0)
        sent = jax.tree.map(lambda g: -rate * g, pull(sight, rows, read_rows(tables, liked)))
        return poison_targets(targets, sight, sent), {"old": tables, "moved": moved, "seen": seen + 1}

    return Attack(name, init, craft)


def _as_users(model: Model, rows: PyTree) -> PyTree:
    """Rows as the private leaves of so many users."""
    shapes: Any = jax.eval_shape(model.init_private, jax.random.key(0))
    named = isinstance(shapes, dict) and isinstance(rows, dict) and set(shapes) <= set(rows)
    if not named or any(rows[name].shape[1:] != shapes[name].shape for name in shapes):
        raise ValueError("pieck_uea takes rows for users, and here they are not alike; choose pieck_ipe")
    return {name: rows[name] for name in shapes}


def _unit(rows: jax.Array) -> jax.Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
