"""PIECK: promote items without knowing anybody, by what the rows of popular items look like.

Rows that move most from round to round are of popular items; attackers mine them from the models that they are
sent, and then turn the targets towards them (IPE) or take them for users (UEA). Departures stand in `promotion`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.attacks.adversary import AttackerView, CollusionAttack, PoisonedRows
from fedjax_rec.attacks.promotion import Targets, check_targets, label_loss, poison_targets
from fedjax_rec.client.population import Population
from fedjax_rec.rows.tables import num_rows, read_rows
from fedjax_rec.transforms.flattening import as_matrix, from_matrix
from fedjax_rec.types import KEY_IMPL, Key, Model, PyTree, Server


def pieck_ipe(
    targets: Targets, *, learning_rate: float = 1.0, popular: int = 10, rounds: int = 2, tau: float = 0.9
) -> CollusionAttack:
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
    target_ids = check_targets(targets, learning_rate=learning_rate, popular=popular, rounds=rounds, tau=tau)
    weights = np.arange(popular, 0, -1) / (popular * (popular + 1) / 2)

    def loss(rows: jax.Array, popular_rows: jax.Array) -> jax.Array:
        cosines = _normalise(rows) @ _normalise(popular_rows).T
        weighted = jnp.asarray(weights, jnp.float32)[None] * cosines
        positive = weighted > 0
        mean_positive = jnp.where(positive, weighted, 0.0).sum(1) / jnp.maximum(positive.sum(1), 1)
        mean_other = jnp.where(positive, 0.0, weighted).sum(1) / jnp.maximum((~positive).sum(1), 1)
        return -tau * (mean_positive + mean_other).sum()

    def gradient(view: AttackerView, rows: PyTree, popular_rows: PyTree) -> PyTree:
        del view
        matrix = as_matrix(rows, len(target_ids))
        return from_matrix(jax.grad(loss)(matrix, as_matrix(popular_rows, popular)), rows)

    return _mine_popular("pieck_ipe", target_ids, popular, rounds, learning_rate, gradient)


def pieck_uea(
    targets: Targets, *, learning_rate: float = 1.0, popular: int = 150, rounds: int = 2
) -> CollusionAttack:
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
    target_ids = check_targets(targets, learning_rate=learning_rate, popular=popular, rounds=rounds)

    def gradient(view: AttackerView, rows: PyTree, popular_rows: PyTree) -> PyTree:
        users = _as_users(view.model, popular_rows)

        def loss(rows: PyTree) -> jax.Array:
            return jax.vmap(lambda user: label_loss(view, user, rows, 1.0))(users).mean()

        return jax.grad(loss)(rows)

    return _mine_popular("pieck_uea", target_ids, popular, rounds, learning_rate, gradient)


def _mine_popular(
    name: str,
    targets: np.ndarray,
    popular: int,
    rounds: int,
    learning_rate: float,
    gradient: Callable[[AttackerView, PyTree, PyTree], PyTree],  # (view, targets' rows, popular rows)
) -> CollusionAttack:
    """An attack that sends nothing until it has seen which rows move most."""

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del key, model, ids
        if popular > population.num_items - len(targets):
            raise ValueError(
                f"popular={popular} exceeds the {population.num_items - len(targets)} other items"
            )
        return {
            "tables": server.tables,
            "movement": jnp.zeros(population.num_items),
            "rounds_seen": jnp.int32(0),
        }

    def craft(view: AttackerView) -> tuple[PoisonedRows, PyTree]:
        state = view.attack_state
        tables = view.server.tables
        num_items = num_rows(tables)
        rounds_seen = state["rounds_seen"]

        # How far each row has moved so far [I], the first `rounds` changes of the model being counted.
        change = as_matrix(jax.tree.map(jnp.subtract, tables, state["tables"]), num_items)
        counts = (rounds_seen >= 1) & (rounds_seen <= rounds)
        movement = state["movement"] + jnp.where(counts, jnp.linalg.norm(change, axis=1), 0.0)

        # The most moved items but the targets, and what is sent once they are known.
        _, popular_ids = jax.lax.top_k(movement.at[jnp.asarray(targets)].set(-1.0), popular)
        rows = read_rows(tables, jnp.asarray(targets))
        rate = jnp.where(rounds_seen >= rounds, learning_rate, 0.0)
        changes = jax.tree.map(lambda g: -rate * g, gradient(view, rows, read_rows(tables, popular_ids)))
        new_state = {"tables": tables, "movement": movement, "rounds_seen": rounds_seen + 1}
        return poison_targets(targets, view, changes), new_state

    return CollusionAttack(name, init, craft)


def _as_users(model: Model, rows: PyTree) -> PyTree:
    """Rows as the private leaves of so many users."""
    shapes: Any = jax.eval_shape(model.init_private, jax.random.key(0, impl=KEY_IMPL))
    same_names = isinstance(shapes, dict) and isinstance(rows, dict) and set(shapes) <= set(rows)
    if not same_names or any(rows[name].shape[1:] != shapes[name].shape for name in shapes):
        raise ValueError("pieck_uea takes rows for users, and here they are not alike; choose pieck_ipe")
    return {name: rows[name] for name in shapes}


def _normalise(rows: jax.Array) -> jax.Array:
    return rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), 1e-8)
