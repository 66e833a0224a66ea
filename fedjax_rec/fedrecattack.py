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

from fedjax_rec.adversary import Attack, Poison, Sight
from fedjax_rec.layout import as_matrix, from_matrix
from fedjax_rec.population import Population
from fedjax_rec.tables import num_rows
from fedjax_rec.targets import Targets, known_targets, made_up_users
from fedjax_rec.transforms import shrinkage
from fedjax_rec.types import Key, Model, PyTree, Server

BLOCK = 256  # users scored at once
RIVALS = 10  # places of a list


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
) -> Attack:
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
    wanted = known_targets(
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
    if not len(wanted) <= min(rows, RIVALS):
        raise ValueError(f"{len(wanted)} targets exceed rows={rows} or the {RIVALS} places of a list")
    optimizer = optax.adam(user_rate)

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del server
        if rows > population.num_items:
            raise ValueError(f"rows={rows} exceeds the {population.num_items} items; lower it")
        if population.num_clients * population.num_items >= 2**31:
            raise ValueError("fedrecattack tells pairs of user and item apart up to 2^31; take fewer clients")
        users = made_up_users(jax.random.fold_in(key, 0), model, population.num_clients, deviation)
        known = make_public(jax.random.fold_in(key, 1), population, public, ids)
        chosen = jnp.zeros((len(ids), rows), jnp.int32)
        return {
            "users": users, "adam": optimizer.init(users), "public": known, "chosen": chosen,
            "ready": jnp.zeros(len(ids), bool), "real": jnp.ones(population.num_clients, bool).at[ids].set(False),
        }  # fmt: skip

    def craft(sight: Sight) -> tuple[Poison, PyTree]:
        known = sight.knowledge
        users, adam = approximate(sight, optimizer, steps)
        gradient = _gradient(sight, users, wanted)
        drawn = _draw_rows(sight, gradient, wanted, rows, noise)
        chosen = jnp.where(known["ready"][:, None], known["chosen"], drawn)
        sent = _send_in_turn(sight, gradient, chosen, norm, noise)
        kept = {"users": users, "adam": adam, "chosen": chosen, "ready": known["ready"] | sight.present}
        poison = from_matrix((-learning_rate * sent).reshape(-1, sent.shape[2]), _flat_like(sight, chosen))
        spread = jax.tree.map(lambda x: x.reshape(*chosen.shape, *x.shape[1:]), poison)
        return Poison(chosen, spread), known | kept

    return Attack("fedrecattack", init, craft)


def make_public(key: Key, population: Population, share: float, ids: np.ndarray) -> dict[str, jax.Array]:
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
        >>> make_public(jax.random.key(0), tiny_population(), 0.1, np.array([0]))["user"].shape[0]
        25
    """
    items = population.examples["items"]
    events = jax.random.permutation(key, items.shape[0])[: math.ceil(share * items.shape[0])]
    users = (jnp.searchsorted(population.offsets, events, side="right") - 1).astype(jnp.int32)
    counts = ~jnp.isin(users, jnp.asarray(ids))
    return {"user": users, "item": items[events], "counts": counts.astype(jnp.float32)}


def approximate(sight: Sight, optimizer: optax.GradientTransformation, steps: int) -> tuple[PyTree, Any]:
    """Fit the approximate users to what is public.

    Args:
        sight: what the attackers see.
        optimizer: of the users' leaves.
        steps: over all public interactions.

    Returns:
        leaves [N, ...], and the optimizer's state.

    Example:
        see `fedrecattack`, which calls it in every round.
    """
    known, items = sight.knowledge["public"], num_rows(sight.server.tables)
    count = len(known["item"])
    own = jax.random.fold_in(sight.keys[0], 0)  # of the round, and known to all of them
    code = known["user"] * items + known["item"]

    def step(number: jax.Array, carry: tuple[PyTree, Any]) -> tuple[PyTree, Any]:
        users, memory = carry
        first, second = jax.random.randint(jax.random.fold_in(own, number), (2, count), 0, items)
        other = jnp.where(jnp.isin(known["user"] * items + first, code), second, first)
        updates, memory = optimizer.update(jax.grad(loss)(users, other), memory, users)
        return optax.apply_updates(users, updates), memory

    def loss(users: PyTree, other: jax.Array) -> jax.Array:
        mine = jax.tree.map(lambda x: x[known["user"]], users)
        above = jax.vmap(lambda u, i, j: score_pair(sight, u, i, j))(mine, known["item"], other)
        return (known["counts"] * jax.nn.softplus(-above)).sum()

    return jax.lax.fori_loop(0, steps, step, (sight.knowledge["users"], sight.knowledge["adam"]))


def score_pair(sight: Sight, user: PyTree, item: jax.Array, other: jax.Array) -> jax.Array:
    """By how much one user's score of one item is above that of another.

    Args:
        sight: for the model.
        user: private leaves.
        item: int32[].
        other: int32[].

    Returns:
        float32[].

    Example:
        see `approximate`, which calls it.
    """
    assert sight.model.score is not None  # noqa: S101 - users were made up; this tells the type checker
    rows = jax.tree.map(lambda t: t[jnp.stack([item, other])], sight.server.tables)
    both = sight.model.score(user, Server(sight.server.shared, rows))
    return both[0] - both[1]


def _gradient(sight: Sight, users: PyTree, targets: np.ndarray) -> jax.Array:
    """The gradient of the margins in all rows, float32[I, W], block of users by block."""
    known, count = sight.knowledge, sight.knowledge["real"].shape[0]
    items = num_rows(sight.server.tables)

    def block(total: jax.Array, start: jax.Array) -> tuple[jax.Array, None]:
        place = start + jnp.arange(BLOCK)
        mine = jax.tree.map(lambda x: x.at[place].get(mode="clip"), users)
        real = known["real"].at[place].get(mode="fill", fill_value=False)
        at = jnp.where(known["public"]["counts"] > 0, known["public"]["user"] - start, BLOCK)
        at = jnp.where(at < 0, BLOCK, at)  # a negative place would count from the end
        met = jnp.zeros((BLOCK, items), bool).at[at, known["public"]["item"]].set(True, mode="drop")
        down = jax.grad(lambda tables: _margins(sight, tables, mine, met, real, targets))(sight.server.tables)
        return total + as_matrix(down, items), None

    width = as_matrix(sight.server.tables, items).shape[1]
    starts = jnp.arange(0, count, BLOCK)
    return jax.lax.scan(block, jnp.zeros((items, width)), starts)[0]


def _margins(
    sight: Sight, tables: PyTree, users: PyTree, met: jax.Array, real: jax.Array, targets: np.ndarray
) -> jax.Array:
    """The attackers' loss over a block of users."""
    score, goals = sight.model.score, jnp.asarray(targets)
    assert score is not None  # noqa: S101 - users were made up; this tells the type checker
    scores = jax.vmap(lambda u: score(u, Server(sight.server.shared, tables)))(users)
    barred = met.at[:, goals].set(True)
    _, best = jax.lax.top_k(jnp.where(barred, -jnp.inf, jax.lax.stop_gradient(scores)), RIVALS)
    wanted = ~met[:, goals] & real[:, None]
    turn = jnp.cumsum(wanted, axis=1) - 1  # a user's k-th target competes with its (10 - k)-th best item
    rival = jnp.take_along_axis(best, RIVALS - 1 - jnp.maximum(turn, 0), axis=1)
    gap = jnp.take_along_axis(scores, rival, axis=1) - scores[:, goals]
    return jnp.where(wanted, jnp.where(gap >= 0, gap, jnp.expm1(jnp.minimum(gap, 0.0))), 0.0).sum()


def _draw_rows(sight: Sight, gradient: jax.Array, targets: np.ndarray, rows: int, noise: float) -> jax.Array:
    """int32[M, R], the targets and others drawn without replacement, in proportion to their gradient's norm."""
    goals = jnp.asarray(targets)

    def one(key: Key) -> jax.Array:
        first, second = jax.random.split(jax.random.fold_in(key, 1))
        size = jnp.linalg.norm(gradient + noise**0.5 * jax.random.normal(first, gradient.shape), axis=1)
        luck = jnp.log(size) + jax.random.gumbel(second, size.shape)
        return jax.lax.top_k(luck.at[goals].set(-jnp.inf), rows - len(targets))[1].astype(jnp.int32)

    return jnp.concatenate(
        [jnp.broadcast_to(goals, (len(sight.keys), len(targets))), jax.vmap(one)(sight.keys)], 1
    )


def _send_in_turn(
    sight: Sight, gradient: jax.Array, chosen: jax.Array, norm: float, noise: float
) -> jax.Array:
    """float32[M, R, W]: each that takes part sends its rows of what the others have left of the gradient."""

    def turn(left: jax.Array, one: tuple[jax.Array, jax.Array, Key]) -> tuple[jax.Array, jax.Array]:
        ids, present, key = one
        mine = left[ids]
        mine = mine * shrinkage(norm, jnp.square(mine).sum(1))[:, None]
        mine = mine + noise**0.5 * jax.random.normal(jax.random.fold_in(key, 2), mine.shape)
        return left.at[ids].add(jnp.where(present, -mine, 0.0)), mine

    return jax.lax.scan(turn, gradient, (chosen, sight.present, sight.keys))[1]


def _flat_like(sight: Sight, chosen: jax.Array) -> PyTree:
    return jax.tree.map(
        lambda t: jax.ShapeDtypeStruct((chosen.size, *t.shape[1:]), t.dtype), sight.server.tables
    )
