"""Every way to a user's list gives the list that the evaluation ranks by."""

from itertools import pairwise

import jax
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluator import (
    make_evaluator,
    make_top_k,
    score_stored_leaves,
    server_parameters,
)
from fedjax_rec.runs.recommender import Recommender, top_k
from fedjax_rec.types import Algorithm, State

K = 10  # length of lists


def compare_lists(algorithm: Algorithm, state: State, population: Population) -> None:
    """Compare the ranks of the evaluation with the lists of `make_top_k`, and with those of a stored model.

    Args:
        algorithm: whose model scores items.
        state: of a run.
        population: its clients.

    Raises:
        AssertionError: naming the users whose item is in a list against its rank, or is not.
    """
    split = split_of(population)
    point = server_parameters(algorithm, population)
    ranks = make_evaluator(algorithm, split, point=point)(state).full
    mid = np.asarray(ranks.mid)
    tied = np.asarray(ranks.tied)
    lists = make_top_k(algorithm, split, K, point=point)(state).items
    _check_hits(np.asarray(lists), split, mid, tied, "lists of `make_top_k`")

    # and so does whoever has nothing but the leaves that a run folder keeps
    leaves = state.private if point.scored_leaves is None else point.scored_leaves(state)
    stored = state._replace(private=jax.tree.map(np.asarray, leaves))
    known = split.offsets, split.items
    model = Recommender(algorithm, stored, split, known, score_stored_leaves(algorithm))
    own = [[item for item, _ in top_k(model, user, K, which="test")] for user in split.user_ids]
    padded = np.array([items + [-1] * (K - len(items)) for items in own])
    _check_hits(padded, split, mid, tied, "lists of `top_k`")


def _check_hits(lists: np.ndarray, split: Split, mid: np.ndarray, tied: np.ndarray, what: str) -> None:
    """Of tied items some are in the list, and it is not said which."""
    hits = (lists == split.test[:, None]).any(axis=1)
    must = mid + tied / 2 < K
    may = mid - tied / 2 < K
    wrong = np.flatnonzero((hits < must) | (hits > may))
    assert not len(wrong), f"{what}: users {wrong.tolist()} at ranks {mid[wrong].tolist()}"  # noqa: S101


def split_of(population: Population) -> Split:
    """A population as training data, with a test item for each client that it does not have.

    Args:
        population: with ratings.

    Returns:
        the split, without validation items and candidates.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> split_of(tiny_population()).num_users
        24
    """
    offsets = np.asarray(population.offsets).astype(np.int64)
    items = np.asarray(population.examples["items"])
    num_users = population.num_clients
    own = [items[start:end] for start, end in pairwise(offsets.tolist())]
    everything = np.arange(population.num_items)
    rng = np.random.default_rng(0)
    test = np.array([rng.choice(np.setdiff1d(everything, mine)) for mine in own], np.int32)
    nothing = np.full((num_users, 0), -1, np.int32)
    return Split(
        offsets=offsets,
        items=items,
        ratings=np.asarray(population.examples["ratings"]),
        validation=np.full(num_users, -1, np.int32),
        validation_ratings=None,
        test=test,
        test_ratings=None,
        candidates_validation=nothing,
        candidates_test=nothing,
        user_ids=np.arange(num_users),
        item_ids=everything,
        name="a test item each",
        data_hash="",
        log=(),
    )
