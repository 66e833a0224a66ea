"""Exposure ratio: into how many lists an attacker has got a target item.

    ER@K = mean over users of |top-K of the user, less what it has met, and T_u| / |T_u|

T_u are the targets that user u has not met in training, validation or test; users without any are left out, and so
are the attacker's own. With one target it is the share of those users in whose top K the target is. The lists are
those of `recommend`: exact, ties to the lower id, made block by block on device, so that nothing of N x I is held.

The codes of FedRecAttack, PoisonFedDLRS and PIECK also keep a user's test item out of its list; here it may be
recommended, as anything else that training has not seen.
"""

from collections.abc import Callable, Sequence

import numpy as np

from fedjax_rec.data.heldout import PARTS, heldout_events
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluator import EvaluationPoint, make_top_k
from fedjax_rec.evaluation.metrics import KS
from fedjax_rec.evaluation.user_blocks import check_users
from fedjax_rec.types import Algorithm, State


def exposure_ratio(
    lists: np.ndarray,
    split: Split,
    targets: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
    *,
    exclude: Sequence[int] | np.ndarray = (),
) -> dict[str, float]:
    """Measure the exposure ratio of target items in given lists.

    Args:
        lists: int[N, K], recommended items, best first, -1 for an empty slot.
        split: says what each user has met.
        targets: int[n], distinct codes of the target items.
        ks: cut-offs, 1 to K.
        exclude: int[m], users that do not count: fake and compromised clients.

    Returns:
        `er@k` by name, 0 to 1; NaN if nobody is left to count.

    Raises:
        ValueError: if a cut-off exceeds the lists or is below 1, a target is unknown or given twice, or there are
            not as many lists as users.

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> split, unmet = tiny_split(), 0
        >>> lists = np.zeros((split.num_users, 1), int)
        >>> exposure_ratio(lists, split, [unmet], ks=[1])
        {'er@1': 1.0}

    Source: Rong et al. 2022, "FedRecAttack: model poisoning attack to federated recommendation", whose
    code counts it so, as those of PoisonFedDLRS and PIECK do.
    """
    target_ids = _check_targets(targets, split.num_items)
    lists = np.asarray(lists)
    check_users(len(lists), split, "lists")
    others = np.asarray(exclude, int)
    if len(others) and not 0 <= others.min() <= others.max() < split.num_users:
        raise ValueError(f"exclude names users outside of 0..{split.num_users - 1}: {others.tolist()}")
    if not all(1 <= k <= lists.shape[1] for k in ks):
        raise ValueError(f"ks={list(ks)} must be 1 to {lists.shape[1]}, the length of the lists")

    # bool[N, n], which targets count for which users, and bool[N, K, n], in which slots they are.
    eligible = ~_has_met(split, target_ids)
    eligible[others] = False
    counts = eligible.sum(axis=1)
    hits = lists[:, :, None] == target_ids[None, None, :]

    users = counts > 0
    ratios = {}
    for k in ks:
        exposed = (hits[:, :k].any(axis=1) & eligible).sum(axis=1)
        mean = float((exposed[users] / counts[users]).mean()) if users.any() else float("nan")
        ratios[f"er@{k}"] = mean
    return ratios


def make_exposure_ratio(
    algorithm: Algorithm,
    split: Split,
    targets: Sequence[int] | np.ndarray,
    ks: Sequence[int] = KS,
    *,
    exclude: Sequence[int] | np.ndarray = (),
    point: EvaluationPoint | None = None,
) -> Callable[[State], dict[str, float]]:
    """Build a function from a state to the exposure ratio of target items.

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
        ValueError: as `exposure_ratio`; if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr, jax
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> sorted(make_exposure_ratio(algorithm, split, [0], ks=[5, 10])(state))
        ['er@10', 'er@5']
    """
    _check_targets(targets, split.num_items)
    recommend = make_top_k(algorithm, split, max(ks), point=point)
    return lambda state: exposure_ratio(
        np.asarray(recommend(state).items), split, targets, ks, exclude=exclude
    )


def _check_targets(targets: Sequence[int] | np.ndarray, num_items: int) -> np.ndarray:
    target_ids = np.asarray(targets, int)
    num_valid = len(np.intersect1d(target_ids, np.arange(num_items)))
    if not 0 < len(target_ids) == num_valid:
        raise ValueError(
            f"targets={target_ids.tolist()} must be one or more distinct codes of 0..{num_items - 1}"
        )
    return target_ids


def _has_met(split: Split, targets: np.ndarray) -> np.ndarray:
    """bool[N, n], who has met which target in training, validation or test."""
    held = [heldout_events(split, which) for which in PARTS]
    train = np.repeat(np.arange(split.num_users), np.diff(split.offsets))
    users = np.concatenate([train, *(events.owners for events in held)])
    items = np.concatenate([split.items, *(events.items for events in held)])
    met = np.zeros((split.num_users, len(targets)), bool)
    for column, target in enumerate(targets):
        met[users[items == target], column] = True
    return met
