"""Evaluation of a federated algorithm: every client scores all items with its own and the server's leaves."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.aggregators import total
from fedjax_rec.clients import name_clients, stream
from fedjax_rec.data.splits import Split
from fedjax_rec.engine import run_cohort
from fedjax_rec.evaluation.ranking import Ranks, make_ranker
from fedjax_rec.evaluation.recommend import TopK, make_recommender
from fedjax_rec.parts import part_size
from fedjax_rec.population import Population, population_of
from fedjax_rec.schedules import Uplink, one_of
from fedjax_rec.tables import num_rows
from fedjax_rec.types import Algorithm, ClientWork, PyTree, Score, Server, State

LANES = 64  # on which all clients train for an evaluation
_BATCH = 256  # users scored at once for their ratings


class Point(NamedTuple):
    """With which parameters users are ranked; `fedjax_rec.points` has others than the server's."""

    prepare: Callable[[State], PyTree]  # done once for each evaluation
    score: Callable[[PyTree, jax.Array], jax.Array]  # (prepared, int32[U] users) -> float32[U, I]


def server_parameters(algorithm: Algorithm, population: Population | None = None) -> Point:
    """Rank with the server's parameters and each client's private leaves as they are: the default.

    Where the model says what a client does before it is scored (`Model.represent`), every client does that first.
    Private leaves may be numpy arrays, in host memory (`simulate` leaves them there where clients stream from it):
    where they are larger than all scores [N, I], these are computed first, part by part.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.
        population: the clients' training data; only needed where clients represent themselves by it.

    Returns:
        the evaluation point.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> server_parameters(fr.fedmf(dim=4)).score is not None
        True
    """
    work = algorithm.model.represent
    if work is None or population is None:
        return _usual_point(algorithm)
    represent = jax.jit(partial(_represent, work))
    return Point(lambda state: (represent(state, population), state.server), _block_scorer(algorithm))


def _usual_point(algorithm: Algorithm) -> Point:
    """Scores of the leaves as they are; of those that wait in host memory, part by part and beforehand."""
    score_block = _block_scorer(algorithm)
    score_part = jax.jit(jax.vmap(cast("Score", algorithm.score), in_axes=(0, None)))

    def prepare(state: State) -> PyTree:
        read = [leaf for leaf in _read_leaves(algorithm, state) if isinstance(leaf, np.ndarray)]
        clients, items = len(read[0]) if read else 0, num_rows(state.server.tables)
        if sum(leaf.size for leaf in read) <= clients * items:
            return state.private, state.server  # all scores would take more

        def score_some(users: np.ndarray) -> jax.Array:
            return score_part(jax.tree.map(lambda leaf: leaf[users], state.private), state.server)

        scores, size = np.empty((clients, items), np.float32), min(part_size(read), clients)
        for first in range(0, clients, size):
            users = np.arange(first, first + size).clip(max=clients - 1)  # all parts are of one size
            scores[users] = score_some(users)
        return scores

    def score(prepared: PyTree, users: jax.Array) -> jax.Array:
        return score_block(prepared, users) if isinstance(prepared, tuple) else prepared[users]

    return Point(prepare, score)


def _read_leaves(algorithm: Algorithm, state: State) -> list[jax.Array | np.ndarray]:
    """The private leaves that scores depend on: others, such as control variates, need not leave the host."""
    score, shapes = cast("Score", algorithm.score), one_of(state.private)
    program = jax.make_jaxpr(score)(shapes, state.server).jaxpr
    read = {id(name) for step in program.eqns for name in step.invars} | {
        id(name) for name in program.outvars
    }
    leaves = jax.tree.leaves(state.private)
    return [leaf for leaf, name in zip(leaves, program.invars, strict=False) if id(name) in read]


def _represent(work: ClientWork, state: State, population: Population) -> PyTree:
    """The private leaves with which clients are scored, [N, ...]."""
    ids = jnp.arange(population.num_clients)
    clients = name_clients(stream(jax.random.key(0), "evaluation"), ids, population)
    result = run_cohort(
        work,
        Uplink(total()),
        population,
        state.server,
        state.private,
        clients,
        jnp.ones(population.num_clients, bool),
        lanes=min(LANES, population.num_clients),
    )
    return result.private


def _default_point(algorithm: Algorithm, split: Split) -> Point:
    population = population_of(split) if algorithm.model.represent is not None else None
    return server_parameters(algorithm, population)


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
    point = _default_point(algorithm, split) if point is None else point
    rank = make_ranker(split, point.score, which=which)
    return lambda state: rank(point.prepare(state))


def make_lister(
    algorithm: Algorithm, split: Split, k: int = 10, *, which: str = "test", point: Point | None = None
) -> Callable[[State], TopK]:
    """Build a compiled function from a state to each user's best k unseen items.

    Args:
        algorithm: gives `score` for one client.
        split: names the seen items.
        k: length of the lists.
        which: "test": train and validation items are seen; "validation": train items are.
        point: with which parameters; by default the server's.

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
    point = _default_point(algorithm, split) if point is None else point
    recommend = make_recommender(split, point.score, k, which=which)
    return lambda state: recommend(point.prepare(state))


def make_rater(
    algorithm: Algorithm, split: Split, *, point: Point | None = None
) -> Callable[[State], jax.Array]:
    """Build a compiled function from a state to each user's score of the test item: its predicted rating.

    Args:
        algorithm: gives `score` for one client; its loss fits ratings.
        split: names the test items.
        point: with which parameters; by default the server's.

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
    point = _default_point(algorithm, split) if point is None else point
    items = jnp.asarray(split.test)

    @jax.jit
    def rate(prepared: PyTree) -> jax.Array:
        def rate_user(user: jax.Array) -> jax.Array:
            return point.score(prepared, user[None])[0, items[user]]

        scores = jax.lax.map(rate_user, jnp.arange(len(items)), batch_size=_BATCH)
        return jnp.where(items >= 0, scores, jnp.nan)

    return lambda state: rate(point.prepare(state))


def _block_scorer(algorithm: Algorithm) -> Callable[[tuple[PyTree, Server], jax.Array], jax.Array]:
    score = algorithm.score
    if score is None:
        raise ValueError("this algorithm's model has no `score`, so it cannot rank items")

    def score_block(params: tuple[PyTree, Server], users: jax.Array) -> jax.Array:
        private, server = params
        block = jax.tree.map(lambda p: p[users], private)
        return jax.vmap(score, in_axes=(0, None))(block, server)

    return score_block
