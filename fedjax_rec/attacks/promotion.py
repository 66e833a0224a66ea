"""Item promotion: attacks that push target items into the lists of as many users as they can.

An attack is crafted for whole rows (an item's leaves laid end to end). Its `learning_rate` is what the server's
clients multiply gradients by, so that `-learning_rate * gradient` is what is sent. Give it to `colluding`:

    split = with_fake_users(split, 50, items=targets)
    attack = colluding(pieck_uea(targets), range(split.num_users - 50, split.num_users))
    algorithm = fedmf(..., adversary=attack)

==========================  ==================================================================================
attack                      what the attackers know
==========================  ==================================================================================
`explicit_boosting`         the model; each has a user of its own, which it trains (EB of PipAttack)
`a_ra`, `a_hum`             the model; they make up users, at random or such as hate the targets
`pieck_ipe`, `pieck_uea`    the model in some rounds: rows that move much are of popular items (`pieck`)
`fedrecattack`              the model, and a share of the users' interactions (`fedrecattack`)
`label_flip`                nothing (`adversary`)
==========================  ==================================================================================

Departures from the papers and their codes, all in one place:

* attackers see the model in every round, as the server sends it; in the codes, when one of them takes part;
* only item rows are poisoned; of deep models the codes of A-ra and A-hum poison the dense layers too;
* where clients train several batches or epochs, an attacker still sends one gradient step; nothing is divided by
  how often it would have trained;
* an item's bias is part of its row; the papers' models have none. `pieck_uea` has no user bias to take from a row;
* EB: PipAttack also aligns targets with popular items by a classifier of popularity, which PIECK's comparison and
  ours leave out; the users are normal(0, 1), torch's default there, and need not resemble ours;
* PIECK: popular items are those whose rows moved most (the norms summed) over the first `rounds` changes of the
  model, not over one epoch; before that the attackers send zeros, where the code takes any items. Their five
  batches of equally many popular items are one. `pieck_ipe` sums over targets, where the code has one.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.attacks.adversary import AttackerView, CollusionAttack, PoisonedRows
from fedjax_rec.client.population import Population
from fedjax_rec.rows.tables import expand, num_rows, read_rows
from fedjax_rec.types import Key, Model, PyTree, Server

Targets = Sequence[int] | np.ndarray


def explicit_boosting(
    targets: Targets, *, learning_rate: float = 1.0, deviation: float = 1.0
) -> CollusionAttack:
    """EB: each attacker likes the targets, as a user of its own would: -log sigmoid(u . v_t), mean over targets.

    Both u and the targets' rows descend; u stays with the attacker, and moves in the rounds that it takes part in.

    Args:
        targets: int[n], distinct codes of the items to promote.
        learning_rate: of the rows that are sent, and of u.
        deviation: u starts as normal(0, deviation).

    Returns:
        an attack, of n rows.

    Raises:
        ValueError: if there is no target, or one twice or below 0; if a number is not above 0.

    Example:
        >>> explicit_boosting([3, 5]).name
        'explicit_boosting'

    Source: Zhang et al. 2022, "PipAttack: poisoning federated recommender systems for manipulating item
    promotion"; constants of the code of PIECK (Zhang et al. 2024), PipAttackEB.
    """
    target_ids = check_targets(targets, learning_rate=learning_rate, deviation=deviation)

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del server, population
        return draw_synthetic_users(key, model, len(ids), deviation)

    def train(user: PyTree, view: AttackerView) -> tuple[PyTree, PyTree]:
        """The changes of the targets' rows that one attacker sends, and its user afterwards."""
        rows = read_rows(view.server.tables, jnp.asarray(target_ids))
        loss = lambda user, rows: label_loss(view, user, rows, 1.0)  # noqa: E731
        user_gradient, row_gradient = jax.grad(loss, argnums=(0, 1))(user, rows)
        changes = jax.tree.map(lambda g: -learning_rate * g, row_gradient)
        return changes, jax.tree.map(lambda u, g: u - learning_rate * g, user, user_gradient)

    def craft(view: AttackerView) -> tuple[PoisonedRows, PyTree]:
        rows, trained = jax.vmap(lambda user: train(user, view))(view.attack_state)
        present = view.present
        users = jax.tree.map(
            lambda new, old: jnp.where(expand(present, new), new, old), trained, view.attack_state
        )
        return poison_targets(target_ids, view, rows), users

    return CollusionAttack("explicit_boosting", init, craft)


def a_ra(
    targets: Targets, *, learning_rate: float = 1.0, users: int = 10, deviation: float = 0.01
) -> CollusionAttack:
    """A-ra: rows descend -log sigmoid(u . v_t), mean over targets and made-up users u ~ normal(0, deviation).

    Args:
        targets: int[n], distinct codes of the items to promote.
        learning_rate: of the rows that are sent.
        users: how many each attacker makes up, anew in each round.
        deviation: of their leaves.

    Returns:
        an attack, of n rows.

    Raises:
        ValueError: as `explicit_boosting`.

    Example:
        >>> a_ra([3]).name
        'a_ra'

    Source: Rong et al. 2022, "Poisoning deep learning based recommender model in federated learning scenarios",
    A-ra, with the constants of their code.
    """
    return _synthetic("a_ra", targets, learning_rate, users, deviation, steps=0)


def a_hum(
    targets: Targets, *, learning_rate: float = 1.0, users: int = 10, deviation: float = 0.01, steps: int = 30
) -> CollusionAttack:
    """A-hum: as `a_ra`, with users who hate the targets: they descend -log sigmoid(-u . v_t) before they count.

    Args:
        targets: int[n], distinct codes of the items to promote.
        learning_rate: of the rows that are sent, and of the users' descent.
        users: how many each attacker makes up, anew in each round.
        deviation: of their leaves at first.
        steps: of their descent, at least 0.

    Returns:
        an attack, of n rows.

    Raises:
        ValueError: as `explicit_boosting`.

    Example:
        >>> a_hum([3]).name
        'a_hum'

    Source: Rong et al. 2022, "Poisoning deep learning based recommender model in federated learning scenarios",
    A-hum, with the constants of their code; its learning rate of .001 is that of a deep model.
    """
    return _synthetic("a_hum", targets, learning_rate, users, deviation, steps=steps)


def _synthetic(
    name: str, targets: Targets, learning_rate: float, users: int, deviation: float, steps: int
) -> CollusionAttack:
    target_ids = check_targets(targets, learning_rate=learning_rate, users=users, deviation=deviation)

    def craft_rows(key: Key, view: AttackerView) -> PyTree:
        """The changes of the targets' rows that one attacker sends."""
        rows = read_rows(view.server.tables, jnp.asarray(target_ids))
        hate_gradient = jax.grad(lambda user: label_loss(view, user, rows, -1.0))

        def train_hater(user: PyTree) -> PyTree:
            def step(_: jax.Array, user: PyTree) -> PyTree:
                return jax.tree.map(lambda u, g: u - learning_rate * g, user, hate_gradient(user))

            return jax.lax.fori_loop(0, steps, step, user)

        # Users who hate the targets, after some steps; then the rows descend what they think of them.
        synthetic = jax.vmap(train_hater)(draw_synthetic_users(key, view.model, users, deviation))

        def mean_loss(rows: PyTree) -> jax.Array:
            return jax.vmap(lambda user: label_loss(view, user, rows, 1.0))(synthetic).mean()

        return jax.tree.map(lambda g: -learning_rate * g, jax.grad(mean_loss)(rows))

    def craft(view: AttackerView) -> tuple[PoisonedRows, PyTree]:
        rows = jax.vmap(lambda key: craft_rows(key, view))(view.keys)
        return poison_targets(target_ids, view, rows), view.attack_state

    return CollusionAttack(name, lambda *_: (), craft)


# --- What attacks that promote items share ---------------------------------------------------------------------


def check_targets(targets: Targets, **positive: float) -> np.ndarray:
    """Check the targets and settings of an attack.

    Args:
        targets: int[n], distinct codes.
        **positive: numbers that must be above 0, by name.

    Returns:
        int32[n].

    Raises:
        ValueError: if there is no target, or one twice or below 0; if a number is not above 0.

    Example:
        >>> check_targets([5, 3], users=2).tolist()
        [5, 3]
    """
    ids = np.asarray(targets, np.int32)
    if not len(ids) or ids.min() < 0 or len(np.unique(ids)) != len(ids):
        raise ValueError(f"targets must be distinct codes of items, at least one, not {ids.tolist()}")
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
    return ids


def draw_synthetic_users(key: Key, model: Model, count: int, deviation: float) -> PyTree:
    """Draw users that nobody is: private leaves at random.

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
        >>> draw_synthetic_users(jax.random.key(0), model, 3, 1.0)["vector"].shape
        (3, 4)
    """
    if model.init_common is not None or model.score is None:
        raise ValueError("this attack makes up users, and this algorithm's cannot be: choose another attack")
    leaves, structure = jax.tree.flatten(jax.eval_shape(model.init_private, key))
    drawn = [
        deviation * jax.random.normal(jax.random.fold_in(key, n), (count, *leaf.shape))
        for n, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, drawn)


def poison_targets(targets: np.ndarray, view: AttackerView, rows: PyTree) -> PoisonedRows:
    """Every attacker sends rows of the targets.

    Args:
        targets: int32[n].
        view: of M attackers.
        rows: leaves [M, n, ...], or [n, ...] for all alike.

    Returns:
        what they send.

    Example:
        >>> keys, server = jax.random.split(jax.random.key(0), 2), Server({}, jnp.zeros((9, 1)))
        >>> view = AttackerView(keys, None, None, server, ())
        >>> poison_targets(np.array([4]), view, jnp.ones((1, 1))).rows.shape
        (2, 1, 1)
    """
    count = len(view.keys)
    tables = view.server.tables
    if targets.max() >= num_rows(tables):
        raise ValueError(f"there is no item {targets.max()} to promote; items are 0..{num_rows(tables) - 1}")
    ids = jnp.broadcast_to(jnp.asarray(targets), (count, len(targets)))
    spread = jax.tree.map(lambda x, t: jnp.broadcast_to(x, (count, len(targets), *t.shape[1:])), rows, tables)
    return PoisonedRows(ids, spread)


def label_loss(view: AttackerView, user: PyTree, rows: PyTree, label: float) -> jax.Array:
    """How little a user's scores agree with a label: mean over rows of -log sigmoid(label * score).

    Args:
        view: for the model.
        user: private leaves.
        rows: leaves [n, ...].
        label: 1 or -1.

    Returns:
        float32[].

    Example:
        >>> model = Model(None, None, lambda user, server: user * server.tables)
        >>> view = AttackerView(None, None, model, Server({}, None), ())
        >>> f"{float(label_loss(view, jnp.array(0.0), jnp.ones(3), 1.0)):.4f}"
        '0.6931'
    """
    score = view.model.score
    assert score is not None  # noqa: S101 - users were made up; this tells the type checker
    return jax.nn.softplus(-label * score(user, Server(view.server.shared, rows))).mean()
