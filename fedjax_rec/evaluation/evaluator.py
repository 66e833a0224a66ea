"""Evaluation of a federated algorithm: every client scores all items with its own and the server's leaves."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.ranking import Ranks, make_ranker
from fedjax_rec.evaluation.recommend import TopK, make_recommender
from fedjax_rec.types import Algorithm, PyTree, Server, State

_BATCH = 256  # users scored at once for their ratings


class Point(NamedTuple):
    """With which parameters users are ranked; `fedjax_rec.points` has others than the server's."""

    prepare: Callable[[State], PyTree]  # done once for each evaluation
    score: Callable[[PyTree, jax.Array], jax.Array]  # (prepared, int32[U] users) -> float32[U, I]


def server_parameters(algorithm: Algorithm) -> Point:
    """Rank with the server's parameters and each client's private leaves as they are: the default.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.

    Returns:
        the evaluation point.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> server_parameters(fr.fedmf(dim=4)).score is not None
        True
    """
    return Point(lambda state: (state.private, state.server), _block_scorer(algorithm))


def make_evaluator(
    algorithm: Algorithm, split: Split, *, which: str = "test", point: Point | None = None
) -> Callable[[State], Ranks]:
    """Build a compiled function from a state to the rank of each user's held-out item.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.
        split: names the held-out items, the seen items to mask and the candidates.
        which: "test" or "validation".
        point: with which parameters; by default the server's, `server_parameters(algorithm)`.

    Returns:
        State -> Ranks of N users each.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_evaluator(algorithm, split)(state).full.shape == (split.num_users,)
        True
    """
    point = server_parameters(algorithm) if point is None else point
    rank = make_ranker(split, point.score, which=which)
    return lambda state: rank(point.prepare(state))


def make_lister(
    algorithm: Algorithm, split: Split, k: int = 10, *, which: str = "test"
) -> Callable[[State], TopK]:
    """Build a compiled function from a state to each user's best k unseen items.

    Args:
        algorithm: gives `score` for one client.
        split: names the seen items.
        k: length of the lists.
        which: "test": train and validation items are seen; "validation": train items are.

    Returns:
        State -> TopK [N, k].

    Raises:
        ValueError: if the algorithm's model does not score items, or `k` is less than 1.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_lister(algorithm, split, 5)(state).items.shape == (split.num_users, 5)
        True
    """
    recommend = make_recommender(split, _block_scorer(algorithm), k, which=which)
    return lambda state: recommend((state.private, state.server))


def make_rater(algorithm: Algorithm, split: Split) -> Callable[[State], jax.Array]:
    """Build a compiled function from a state to each user's score of the test item: its predicted rating.

    Args:
        algorithm: gives `score` for one client; its loss fits ratings.
        split: names the test items.

    Returns:
        State -> float32[N], NaN for a user without a test item.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_rater(algorithm, split)(state).shape == (split.num_users,)
        True
    """
    score_block, items = _block_scorer(algorithm), jnp.asarray(split.test)

    @jax.jit
    def rate(state: State) -> jax.Array:
        def rate_user(user: jax.Array) -> jax.Array:
            return score_block((state.private, state.server), user[None])[0, items[user]]

        scores = jax.lax.map(rate_user, jnp.arange(len(items)), batch_size=_BATCH)
        return jnp.where(items >= 0, scores, jnp.nan)

    return rate


def _block_scorer(algorithm: Algorithm) -> Callable[[tuple[PyTree, Server], jax.Array], jax.Array]:
    score = algorithm.score
    if score is None:
        raise ValueError("this algorithm's model has no `score`, so it cannot rank items")

    def score_block(params: tuple[PyTree, Server], users: jax.Array) -> jax.Array:
        private, server = params
        block = jax.tree.map(lambda p: p[users], private)
        return jax.vmap(score, in_axes=(0, None))(block, server)

    return score_block
