"""Exposure of items: how many lists an attacker has got a target item into.

    ER@K = mean over users of |top-K of the user, less what it has met, and T_u| / |T_u|

T_u are the targets that user u has not met in training, validation or test; users without any are left out, and so
are the attacker's own. With one target it is the share of those users in whose top K the target is. The lists are
those of `recommend`: exact, ties to the lower id, made block by block on device, so that nothing of N x I is held.

The codes of FedRecAttack, PoisonFedDLRS and PIECK also keep a user's test item out of its list; here it may be
recommended, as anything else that training has not seen.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluator import Point, make_lister
from fedjax_rec.evaluation.metrics import KS
from fedjax_rec.types import Algorithm, State


def exposure(
    lists: np.ndarray,
    split: Split,
    targets: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
    *,
    exclude: Sequence[int] | np.ndarray = (),
) -> dict[str, float]:
    """Measure the exposure of target items in given lists.

    Args:
        lists: int[N, K], recommended items, best first, -1 for an empty slot.
        split: says what each user has met.
        targets: int[n], distinct codes of the target items.
        ks: cut-offs, 1 to K.
        exclude: int[m], users that do not count: fake and compromised clients.

    Returns:
        `er@k` by name, 0 to 1; NaN if nobody is left to count.

    Raises:
        ValueError: if a cut-off exceeds the lists or is below 1, or a target is unknown or given twice.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> split, unmet = tiny_split(), 0
        >>> lists = np.zeros((split.num_users, 1), int)
        >>> exposure(lists, split, [unmet], ks=[1])
        {'er@1': 1.0}

    Source: Rong et al. 2022, "FedRecAttack: model poisoning attack to federated recommendation", whose
    code counts it so, as those of PoisonFedDLRS and PIECK do.
    """
    wanted, lists = _known(targets, split.num_items), np.asarray(lists)
    if not all(1 <= k <= lists.shape[1] for k in ks):
        raise ValueError(f"ks={list(ks)} must be 1 to {lists.shape[1]}, the length of the lists")
    open_ = ~_met(split, wanted)
    open_[np.asarray(exclude, int)] = False
    count = open_.sum(axis=1)
    hit = lists[:, :, None] == wanted[None, None, :]
    found = {}
    for k in ks:
        inside = (hit[:, :k].any(axis=1) & open_).sum(axis=1)
        users = count > 0
        found[f"er@{k}"] = float((inside[users] / count[users]).mean()) if users.any() else float("nan")
    return found


def make_exposure(
    algorithm: Algorithm,
    split: Split,
    targets: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
    *,
    exclude: Sequence[int] | np.ndarray = (),
    point: Point | None = None,
) -> Callable[[State], dict[str, float]]:
    """Build a function from a state to the exposure of target items.

    Args:
        algorithm: gives `score` for one client.
        split: the clients, fake ones included.
        targets: int[n], distinct codes of the target items.
        ks: cut-offs, 1 or more.
        exclude: int[m], users that do not count: fake and compromised clients.
        point: with which parameters; by default the server's.

    Returns:
        State -> `er@k` by name.

    Raises:
        ValueError: as `exposure`; if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr, jax
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> sorted(make_exposure(algorithm, split, [0], ks=[5, 10])(state))
        ['er@10', 'er@5']
    """
    _known(targets, split.num_items)
    listed = make_lister(algorithm, split, max(ks), point=point)
    return lambda state: exposure(np.asarray(listed(state).items), split, targets, ks, exclude=exclude)


def _known(targets: Sequence[int] | np.ndarray, num_items: int) -> np.ndarray:
    wanted = np.asarray(targets, int)
    known = len(np.intersect1d(wanted, np.arange(num_items)))
    if not 0 < len(wanted) == known:
        raise ValueError(
            f"targets={wanted.tolist()} must be one or more distinct codes of 0..{num_items - 1}"
        )
    return wanted


def _met(split: Split, targets: np.ndarray) -> np.ndarray:
    """bool[N, n], who has met which target in training, validation or test."""
    users = np.repeat(np.arange(split.num_users), np.diff(split.offsets))
    met = (split.validation[:, None] == targets[None]) | (split.test[:, None] == targets[None])
    for place, target in enumerate(targets):
        met[users[split.items == target], place] = True
    return met
