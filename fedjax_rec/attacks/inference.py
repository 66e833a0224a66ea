"""What a curious server learns of a client from what it is sent: which items it has interacted with.

Three attackers, each of whom names items, and one score for all:

* `guess_by_rows`: every row that came up is an item of the client; over several rounds, the rows that always came
  up, for negatives and pseudo-items that are drawn anew do not;
* `guess_by_signs`: a matrix factorisation's rows move along the user's vector, positives one way and negatives the
  other, so that the changes of a client's rows have rank one and their signs are its labels;
* `imia`: train users of one's own on guessed labels, and keep the guesses that make rows move as they did.

Scores are of one client against the items that it holds; means over clients are the caller's.
"""

from typing import NamedTuple

import numpy as np


class GuessScore(NamedTuple):
    """How well a guess of a set is."""

    precision: float  # share of the guessed that are right; 0 of none
    recall: float  # share of the right that are guessed
    f1: float


def score_guess(guess: np.ndarray, truth: np.ndarray) -> GuessScore:
    """Score a guessed set of items.

    Args:
        guess: int[g], distinct items.
        truth: int[n], the client's items, at least one.

    Returns:
        precision, recall and their harmonic mean, each 0 to 1.

    Raises:
        ValueError: if the client has no item.

    Example:
        >>> score_guess(np.array([1, 2, 3, 4]), np.array([2, 9]))
        GuessScore(precision=0.25, recall=0.5, f1=0.3333333333333333)
    """
    if not len(truth):
        raise ValueError("a client without items has none to be guessed; leave it out")
    hits = len(np.intersect1d(guess, truth))
    precision = hits / max(len(guess), 1)
    recall = hits / len(np.unique(truth))
    return GuessScore(precision, recall, 2 * precision * recall / max(precision + recall, 1e-12))


def guess_by_rows(
    rounds: list[tuple[np.ndarray, np.ndarray]], *, read_values: bool = False, share: float = 1.0
) -> np.ndarray:
    """The row-set attacker: items whose rows came up in enough rounds.

    Args:
        rounds: of each round in which the client took part, the ids int[R] that it sent and their rows [R, W]; ids
            beyond the catalogue must be left out (`drop_empty_slots`).
        read_values: whether rows of zeros count as not sent.
        share: of the rounds in which a row must have come up, above 0 and at most 1.

    Returns:
        int[g], ascending.

    Raises:
        ValueError: if there is no round, or the share is out of range.

    Example:
        >>> rounds = [(np.array([3, 5]), np.ones((2, 1))), (np.array([5, 8]), np.ones((2, 1)))]
        >>> guess_by_rows(rounds).tolist(), guess_by_rows(rounds, share=0.5).tolist()
        ([5], [3, 5, 8])

    Source: Minto et al. 2021, "Stronger privacy for federated collaborative filtering with implicit feedback", on
    what the touched rows of an update leak; reading several rounds together is ours.
    """
    if not rounds or not 0 < share <= 1:
        raise ValueError(
            f"rows are seen in at least one round, not {len(rounds)}, and a share={share} of 0 to 1"
        )
    seen = [ids[(rows != 0).any(axis=1)] if read_values else ids for ids, rows in rounds]
    items, counts = np.unique(np.concatenate([np.unique(ids) for ids in seen]), return_counts=True)
    return items[counts >= share * len(rounds) - 1e-9]


def guess_by_signs(ids: np.ndarray, rows: np.ndarray, *, fewer: bool = True) -> np.ndarray:
    """The gradient-row attacker: items whose rows moved to the rarer side of their common direction.

    c_i = delta_i . w, w the first right singular vector of the deltas; positives have one sign of c, negatives the
    other, and their numbers say which is which.

    Args:
        ids: int[R], items whose rows were sent, without empty slots.
        rows: float[R, D], the changes of their vectors.
        fewer: whether positives are fewer than negatives.

    Returns:
        int[g], in the order of the ids.

    Example:
        >>> user = np.array([1.0, -2.0])
        >>> guess_by_signs(np.array([4, 7, 9]), np.outer([0.5, -0.2, -0.4], user)).tolist()
        [4]

    Source: Chai et al. 2020, "Secure federated matrix factorization", who solve for ratings from the gradients of
    two rounds; the direction and its signs, of one round and of binary labels, are ours.
    """
    if not len(ids):
        return ids
    direction = np.linalg.svd(rows, full_matrices=False)[2][0]
    projection = rows @ direction
    positive = ids[projection > 0]
    negative = ids[projection < 0]
    return positive if (len(positive) <= len(negative)) == fewer else negative


def imia(
    before: np.ndarray,
    ids: np.ndarray,
    rows: np.ndarray,
    *,
    share: float,
    learning_rate: float,
    trials: int = 30,
    steps: int = 20,
    seed: int = 0,
) -> np.ndarray:
    """The interaction-level membership attacker: shadow training on guessed labels, for matrix factorisation.

    In each trial labels are guessed, a share of them positive: at first at random, later those of the items that
    agreed best so far. A shadow user descends the binary cross-entropy of the guess from 0, on the rows as they
    were before. As a positive, an item's row would move along that user: its agreement is the cosine between that
    direction and the change that was sent.

    Args:
        before: float[I, D], the item vectors before the round.
        ids: int[R], items whose rows were sent, without empty slots.
        rows: float[R, D], their changes.
        share: of the items that are guessed positive, above 0 and below 1: 1 / (1 + negatives) is public.
        learning_rate: of the shadow user.
        trials: how often labels are guessed.
        steps: of each shadow user.
        seed: of the guesses.

    Returns:
        int[g], the items of the last guess.

    Raises:
        ValueError: if the share is out of range.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> items, labels = rng.normal(size=(40, 3)), np.arange(40) < 10
        >>> user = items[:10].mean(0)
        >>> sent = np.outer(labels - 1 / (1 + np.exp(-items @ user)), user)
        >>> found = imia(items, np.arange(40), sent, share=0.25, learning_rate=0.1)
        >>> score_guess(found, np.arange(10)).f1 > 0.5
        True

    Source: Yuan et al. 2023, "Interaction-level membership inference attack against federated recommender
    systems". Departures: cosines in place of distances, as a shadow's step has no scale; a shadow's item rows
    rest; later guesses are drawn by the agreement so far, where theirs fixes the nearest items.
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} of positives is out of range; choose above 0 and below 1")
    rng = np.random.default_rng(seed)
    num_positives = max(1, round(share * len(ids)))
    items = before[ids]
    agreement = np.zeros(len(ids))
    for trial in range(trials):
        # Labels by the agreement so far, with noise that falls from trial to trial.
        noise = rng.gumbel(size=len(ids)) * (1 - trial / trials)
        scaled = agreement / max(np.abs(agreement).max(), 1e-12) * 3
        positives = np.argsort(-(scaled + noise))[:num_positives]
        labels = np.isin(np.arange(len(ids)), positives)

        # A shadow user that is trained on them, and how its direction agrees with the changes that were sent.
        user = np.zeros(before.shape[1])
        for _ in range(steps):
            user += learning_rate * (labels - _sigmoid(items @ user)) @ items / len(ids)
        agreement += _cosine(rows, user)
    return ids[np.sort(np.argsort(-agreement, kind="stable")[:num_positives])]


def drop_empty_slots(ids: np.ndarray, rows: np.ndarray, num_items: int) -> tuple[np.ndarray, np.ndarray]:
    """A client's update as its server sees it: without empty slots.

    Args:
        ids: int[R], I for an empty slot.
        rows: float[R, W].
        num_items: I.

    Returns:
        ids and rows that were sent.

    Example:
        >>> drop_empty_slots(np.array([3, 9]), np.ones((2, 1)), 9)[0].tolist()
        [3]
    """
    filled = np.asarray(ids) < num_items
    return np.asarray(ids)[filled], np.asarray(rows)[filled]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(x / 2))


def _cosine(rows: np.ndarray, direction: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1) * np.linalg.norm(direction)
    return rows @ direction / np.maximum(norms, 1e-12)
