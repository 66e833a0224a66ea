"""Item promotion: attacks that push target items into the lists of as many users as they can.

An attack is crafted for whole rows (an item's leaves laid end to end), and told `learning_rate`: what the server's
clients multiply gradients by, so that `-learning_rate * gradient` is what is sent. Give it to `colluding`:

    split = with_fakes(split, 50, items=targets)
    attack = colluding(pieck_uea(targets), range(split.num_users - 50, split.num_users))
    algorithm = fedmf(..., adversary=attack)

==========================  ==================================================================================
attack                      what the attackers know
==========================  ==================================================================================
`explicit_boosting`         the model; each has a user of its own, which it trains (EB of PipAttack)
`a_ra`, `a_hum`             the model; they make up users, at random or such as hate the targets
`pieck_ipe`, `pieck_uea`    the model in some rounds: rows that move much are of popular items
`fedrecattack`              the model, and a share of the users' interactions
`label_flip`                nothing (`fedjax_rec.flipping`)
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

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.adversary import Attack, Poison, Sight, colluding
from fedjax_rec.fedrecattack import fedrecattack
from fedjax_rec.flipping import label_flip
from fedjax_rec.pieck import pieck_ipe, pieck_uea
from fedjax_rec.population import Population
from fedjax_rec.tables import expand, read_rows
from fedjax_rec.targets import Targets, dislike, known_targets, made_up_users, poison_targets
from fedjax_rec.types import Key, Model, PyTree, Server

__all__ = [
    "a_hum",
    "a_ra",
    "colluding",
    "explicit_boosting",
    "fedrecattack",
    "label_flip",
    "pieck_ipe",
    "pieck_uea",
]


def explicit_boosting(targets: Targets, *, learning_rate: float = 1.0, deviation: float = 1.0) -> Attack:
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
    wanted = known_targets(targets, learning_rate=learning_rate, deviation=deviation)

    def init(key: Key, model: Model, server: Server, population: Population, ids: np.ndarray) -> PyTree:
        del server, population
        return made_up_users(key, model, len(ids), deviation)

    def one(own: PyTree, sight: Sight) -> tuple[PyTree, PyTree]:
        rows = read_rows(sight.server.tables, jnp.asarray(wanted))
        down = jax.grad(lambda user, rows: dislike(sight, user, rows, 1.0), argnums=(0, 1))(own, rows)
        user = jax.tree.map(lambda u, g: u - learning_rate * g, own, down[0])
        return jax.tree.map(lambda g: -learning_rate * g, down[1]), user

    def craft(sight: Sight) -> tuple[Poison, PyTree]:
        rows, new = jax.vmap(lambda own: one(own, sight))(sight.knowledge)
        present = sight.present
        kept = jax.tree.map(lambda a, b: jnp.where(expand(present, a), a, b), new, sight.knowledge)
        return poison_targets(wanted, sight, rows), kept

    return Attack("explicit_boosting", init, craft)


def a_ra(targets: Targets, *, learning_rate: float = 1.0, users: int = 10, deviation: float = 0.01) -> Attack:
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
) -> Attack:
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
) -> Attack:
    wanted = known_targets(targets, learning_rate=learning_rate, users=users, deviation=deviation)

    def one(key: Key, sight: Sight) -> PyTree:
        rows = read_rows(sight.server.tables, jnp.asarray(wanted))

        def hate(user: PyTree) -> PyTree:
            down = jax.grad(lambda u: dislike(sight, u, rows, -1.0))
            step = lambda _, u: jax.tree.map(lambda x, g: x - learning_rate * g, u, down(u))  # noqa: E731
            return jax.lax.fori_loop(0, steps, step, user)

        made = jax.vmap(hate)(made_up_users(key, sight.model, users, deviation))
        total = jax.grad(lambda rows: jax.vmap(lambda u: dislike(sight, u, rows, 1.0))(made).mean())
        return jax.tree.map(lambda g: -learning_rate * g, total(rows))

    def craft(sight: Sight) -> tuple[Poison, PyTree]:
        rows = jax.vmap(lambda key: one(key, sight))(sight.keys)
        return poison_targets(wanted, sight, rows), sight.knowledge

    return Attack(name, lambda *_: (), craft)
