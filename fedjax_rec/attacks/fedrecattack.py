"""FedRecAttack: promote items with the help of the interactions that users make public.

The attackers share an approximate vector of every user. In each round they

1. descend -log sigmoid(u . (v_i - v_j)) in the users' leaves by Adam, over the public interactions (u, i), each
   with an item j drawn outside of what u made public;
2. take the gradient, in all rows, of sum_u sum_t g(s_u10 - s_ut), g(x) = x for x >= 0 and e^x - 1 below, over
   targets t that u did not make public; s_u10 is the tenth best score of u among what is no target and not public
   (for further targets the ninth, the eighth, ...);
3. go through those that take part: each sends its rows of what is left of the gradient, with norms clipped, and a
   little noise. Its rows are the targets and others drawn in proportion to their gradient's norm, once for a run.

Departures from the authors' code (github.com/rdz98/FedRecAttack), besides those that `promotion` names:

* users descend in `steps` steps over all of them, where the code passes once over batches of 256 of them;
* j may be public on the second draw, in one case of (share of public items)^2; the code draws until it is not;
* public are ceil(xi M) interactions drawn from the run's key, where the code reads a file;
* attackers go in the order of their ids, where the code goes in that of the batch;
* what is sent is -learning_rate x gradient, as clients here send changes and no gradients.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fedjax_rec.attacks.adversary import AttackerView, CollusionAttack, PoisonedRows
from fedjax_rec.attacks.promotion import Targets, check_targets, draw_synthetic_users
from fedjax_rec.client.population import Population
from fedjax_rec.rows.tables import num_rows
from fedjax_rec.transforms.clipping import shrinkage
from fedjax_rec.transforms.flattening import as_matrix, from_matrix
from fedjax_rec.types import Key, Model, PyTree, Server

BLOCK_USERS = 256  # scored at once
LIST_LENGTH = 10


def fedrecattack(
    targets: Targets,
    *,
    public: float = 0.01,
    rows: int = 60,
    norm: float = 1.0,
    learning_rate: float = 0.01,
    user_rate: float = 0.01,
    steps: int = 4,
    deviation: float = 0.01,
    noise: float = 1e-7,
) -> CollusionAttack:
    """FedRecAttack on a model whose score is of a private vector and item rows.

    Args:
        targets: int[n], distinct codes of the items to promote, at most 10.
        public: xi, share of the interactions that the attackers know.
        rows: kappa, rows that each attacker sends, n to I.
        norm: C, the largest norm of a gradient's row.
        learning_rate: of the clients: what a gradient is sent times.
        user_rate: of Adam, for the approximate users.
        steps: of Adam in each round.
        deviation: the approximate users start as normal(0, deviation).
        noise: variance of what is added to every number that is sent.

    Returns:
        an attack.

    Raises:
        ValueError: if a setting is out of range; when a run starts, if there are not so many rows.

    Example:
        >>> fedrecattack([3]).name
        'fedrecattack'

    Source: Rong et al. 2022, "FedRecAttack: model poisoning attack to federated recommendation".
    """
    target_ids = check_targets(
        targets,
        rows=rows,
        norm=norm,
        learning_rate=learning_rate,
        user_rate=user_rate,
        steps=steps,
        noise=noise,
    )
    if not 0 < public <= 1:
        raise ValueError(f"the public share must be above 0 and at most 1, not {public}")
    if not len(target_ids) <= min(rows, LIST_LENGTH):
        raise ValueError(
            f"{len(target_ids)} targets exceed rows={rows} or the {LIST_LENGTH} places of a list"
        )
    optimizer = optax.adam(user_rate)

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del server
        if rows > population.num_items:
            raise ValueError(f"rows={rows} exceeds the {population.num_items} items; lower it")
        if population.num_clients * population.num_items >= 2**31:
            raise ValueError("fedrecattack tells pairs of user and item apart up to 2^31; take fewer clients")
        users_key = jax.random.fold_in(key, 0)
        users = draw_synthetic_users(users_key, model, population.num_clients, deviation)
        return {
            "users": users,
            "opt_state": optimizer.init(users),
            "public": draw_public(jax.random.fold_in(key, 1), population, public, ids),
            "rows": jnp.zeros((len(ids), rows), jnp.int32),  # of each attacker, once it has chosen them
            "has_rows": jnp.zeros(len(ids), bool),
            "is_honest": jnp.ones(population.num_clients, bool).at[ids].set(False),
        }

    def craft(view: AttackerView) -> tuple[PoisonedRows, PyTree]:
        state = view.attack_state

        # 1. Approximate users, from what is public.
        users, opt_state = fit_users(view, optimizer, steps)

        # 2. The gradient in all rows [I, W], and each attacker's rows [M, R]: for good once it has taken part.
        gradient = _target_gradient(view, users, target_ids)
        drawn = _draw_rows(view, gradient, target_ids, rows, noise)
        row_ids = jnp.where(state["has_rows"][:, None], state["rows"], drawn)

        # 3. What each sends of the gradient [M, R, W], in the leaves of the tables.
        sent = _send_in_turn(view, gradient, row_ids, norm, noise)
        flat = from_matrix((-learning_rate * sent).reshape(-1, sent.shape[2]), _flat_shapes(view, row_ids))
        changes = jax.tree.map(lambda x: x.reshape(*row_ids.shape, *x.shape[1:]), flat)
        return PoisonedRows(row_ids, changes), state | {
            "users": users,
            "opt_state": opt_state,
            "rows": row_ids,
            "has_rows": state["has_rows"] | view.present,
        }

    return CollusionAttack("fedrecattack", init, craft)


def draw_public(key: Key, population: Population, share: float, ids: np.ndarray) -> dict[str, jax.Array]:
    """Draw the interactions that are public: whose they are, of what, and whether they count.

    Args:
        key: consumed.
        population: with M interactions.
        share: xi, of all interactions.
        ids: int32[n], clients whose interactions do not count: the attackers'.

    Returns:
        `user` int32[P], `item` int32[P] and `counts` float32[P], with P = ceil(xi M).

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> draw_public(jax.random.key(0), tiny_population(), 0.1, np.array([0]))["user"].shape[0]
        25
    """
    items = population.examples["items"]
    events = jax.random.permutation(key, items.shape[0])[: math.ceil(share * items.shape[0])]
    users = (jnp.searchsorted(population.offsets, events, side="right") - 1).astype(jnp.int32)
    counts = ~jnp.isin(users, jnp.asarray(ids))
    return {"user": users, "item": items[events], "counts": counts.astype(jnp.float32)}


def fit_users(view: AttackerView, optimizer: optax.GradientTransformation, steps: int) -> tuple[PyTree, Any]:
    """Fit the approximate users to what is public.

    Args:
        view: what the attackers see.
        optimizer: of the users' leaves.
        steps: over all public interactions.

    Returns:
        leaves [N, ...], and the optimizer's state.
    """
    public = view.attack_state["public"]
    num_items = num_rows(view.server.tables)
    num_pairs = len(public["item"])
    round_key = jax.random.fold_in(view.keys[0], 0)  # the same for all attackers
    pairs = public["user"] * num_items + public["item"]

    def loss(users: PyTree, negatives: jax.Array) -> jax.Array:
        owners = jax.tree.map(lambda x: x[public["user"]], users)
        margins = jax.vmap(lambda u, i, j: score_margin(view, u, i, j))(owners, public["item"], negatives)
        return (public["counts"] * jax.nn.softplus(-margins)).sum()

    def step(number: jax.Array, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        users, opt_state = carry
        step_key = jax.random.fold_in(round_key, number)
        first, second = jax.random.randint(step_key, (2, num_pairs), 0, num_items)
        first_is_public = jnp.isin(public["user"] * num_items + first, pairs)
        negatives = jnp.where(first_is_public, second, first)
        updates, opt_state = optimizer.update(jax.grad(loss)(users, negatives), opt_state, users)
        return optax.apply_updates(users, updates), opt_state

    return jax.lax.fori_loop(0, steps, step, (view.attack_state["users"], view.attack_state["opt_state"]))


def score_margin(view: AttackerView, user: PyTree, item: jax.Array, other: jax.Array) -> jax.Array:
    """By how much one user's score of one item is above that of another.

    Args:
        view: for the model.
        user: private leaves.
        item: int32[].
        other: int32[].

    Returns:
        float32[].
    """
    assert view.model.score is not None  # noqa: S101 - users were made up; this tells the type checker
    rows = jax.tree.map(lambda t: t[jnp.stack([item, other])], view.server.tables)
    scores = view.model.score(user, Server(view.server.shared, rows))
    return scores[0] - scores[1]


def _target_gradient(view: AttackerView, users: PyTree, targets: np.ndarray) -> jax.Array:
    """The gradient of the targets' margins in all rows, float32[I, W], block of users by block."""
    state = view.attack_state
    public = state["public"]
    tables = view.server.tables
    num_users = state["is_honest"].shape[0]
    num_items = num_rows(tables)

    def add_block(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        # The users of the block, of whom only honest ones count.
        ids = start + jnp.arange(BLOCK_USERS)
        block = jax.tree.map(lambda x: x.at[ids].get(mode="clip"), users)
        is_honest = state["is_honest"].at[ids].get(mode="fill", fill_value=False)

        # bool[U, I], what they made public; a user outside of the block gets a row that is dropped.
        rows = jnp.where(public["counts"] > 0, public["user"] - start, BLOCK_USERS)
        rows = jnp.where(rows < 0, BLOCK_USERS, rows)  # a negative index would count from the end
        is_public = jnp.zeros((BLOCK_USERS, num_items), bool).at[rows, public["item"]].set(True, mode="drop")
        gradient = jax.grad(lambda tables: _target_loss(view, tables, block, is_public, is_honest, targets))
        return total + as_matrix(gradient(tables), num_items), None

    width = as_matrix(tables, num_items).shape[1]
    starts = jnp.arange(0, num_users, BLOCK_USERS)
    return jax.lax.scan(add_block, jnp.zeros((num_items, width)), starts)[0]


def _target_loss(
    view: AttackerView,
    tables: PyTree,
    users: PyTree,
    is_public: jax.Array,
    is_honest: jax.Array,
    targets: np.ndarray,
) -> jax.Array:
    """The attackers' loss over a block of users."""
    score = view.model.score
    assert score is not None  # noqa: S101 - users were made up; this tells the type checker
    target_ids = jnp.asarray(targets)
    scores = jax.vmap(lambda user: score(user, Server(view.server.shared, tables)))(users)

    # The best items that are neither a target nor public [U, 10].
    barred = is_public.at[:, target_ids].set(True)
    _, best = jax.lax.top_k(jnp.where(barred, -jnp.inf, jax.lax.stop_gradient(scores)), LIST_LENGTH)

    # Each target that a user did not make public against one of them: the k-th against the (10 - k)-th best.
    counts = ~is_public[:, target_ids] & is_honest[:, None]
    number = jnp.cumsum(counts, axis=1) - 1
    rival = jnp.take_along_axis(best, LIST_LENGTH - 1 - jnp.maximum(number, 0), axis=1)
    gap = jnp.take_along_axis(scores, rival, axis=1) - scores[:, target_ids]
    loss = jnp.where(gap >= 0, gap, jnp.expm1(jnp.minimum(gap, 0.0)))
    return jnp.where(counts, loss, 0.0).sum()


def _draw_rows(
    view: AttackerView, gradient: jax.Array, targets: np.ndarray, rows: int, noise: float
) -> jax.Array:
    """int32[M, R], the targets and others drawn without replacement, in proportion to their gradient's norm."""
    target_ids = jnp.asarray(targets)

    def draw(key: Key) -> jax.Array:
        """The other rows of one attacker, by Gumbel noise on the logarithms."""
        noise_key, gumbel_key = jax.random.split(jax.random.fold_in(key, 1))
        noisy = gradient + noise**0.5 * jax.random.normal(noise_key, gradient.shape)
        norms = jnp.linalg.norm(noisy, axis=1)
        perturbed = jnp.log(norms) + jax.random.gumbel(gumbel_key, norms.shape)
        _, drawn = jax.lax.top_k(perturbed.at[target_ids].set(-jnp.inf), rows - len(targets))
        return drawn.astype(jnp.int32)

    shared = jnp.broadcast_to(target_ids, (len(view.keys), len(targets)))
    return jnp.concatenate([shared, jax.vmap(draw)(view.keys)], 1)


def _send_in_turn(
    view: AttackerView, gradient: jax.Array, row_ids: jax.Array, norm: float, noise: float
) -> jax.Array:
    """float32[M, R, W]: each that takes part sends its rows of what the others have left of the gradient."""

    def send(remaining: jax.Array, attacker: tuple[jax.Array, jax.Array, Key]) -> tuple[jax.Array, jax.Array]:
        ids, present, key = attacker
        rows = remaining[ids]
        rows = rows * shrinkage(norm, jnp.square(rows).sum(1))[:, None]
        rows = rows + noise**0.5 * jax.random.normal(jax.random.fold_in(key, 2), rows.shape)
        return remaining.at[ids].add(jnp.where(present, -rows, 0.0)), rows

    return jax.lax.scan(send, gradient, (row_ids, view.present, view.keys))[1]


def _flat_shapes(view: AttackerView, row_ids: jax.Array) -> PyTree:
    """Leaves [M * R, ...] of the tables' rows."""
    return jax.tree.map(
        lambda t: jax.ShapeDtypeStruct((row_ids.size, *t.shape[1:]), t.dtype), view.server.tables
    )
