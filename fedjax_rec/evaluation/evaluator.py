"""Evaluation of a federated algorithm: every client scores all items with its own and the server's leaves."""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population, check_same, population_of
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.chunks import chunk_size
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.devices import keep_replicated, map_in_shares, mesh_that_holds, replicate
from fedjax_rec.engine.lane_steps import Uplink, client_shapes
from fedjax_rec.engine.table_shards import join_rows, split_rows
from fedjax_rec.errors import check_arguments, check_not_used_up, suggest_names
from fedjax_rec.evaluation.pair_ranking import make_pair_blocks
from fedjax_rec.evaluation.ranking import Ranks, make_ranker
from fedjax_rec.evaluation.recommend import TopK, make_recommender
from fedjax_rec.evaluation.user_blocks import choose_block_size
from fedjax_rec.federation.checks import check_clients, check_items
from fedjax_rec.rows.tables import num_rows
from fedjax_rec.server.aggregators import total
from fedjax_rec.types import KEY_IMPL, Algorithm, ClientStore, ClientWork, Key, PyTree, Score, Server, State

LANES = 64  # on which all clients train for an evaluation
_MAX_TOGETHER = 256  # users scored at once
_MAX_BETWEEN = 2**20  # numbers between leaves and scores of users that are scored at once, 4 MiB
_MAX_BETWEEN_ON_ACCELERATOR = 2**26


class EvaluationPoint(NamedTuple):
    """With which parameters users are ranked; `evaluation_points` has others than the server's."""

    prepare: Callable[[State], PyTree]  # done once for each evaluation
    score: Callable[[PyTree, jax.Array], jax.Array]  # (prepared, int32[U] users) -> float32[U, I]
    population: Population | None = None  # whose clients it scores; None: those whose leaves the state holds
    # the private leaves [N, ...] from which `score_stored_leaves` gives the same scores; None: there are none
    scored_leaves: Callable[[State], PyTree] | None = None
    name: str = ""  # what a run compares when it goes on; empty: the program of `score`
    # devices that share the blocks of users, where `score` runs on one of them; None: they all score every block
    mesh: Mesh | None = None


def server_parameters(algorithm: Algorithm, population: Population | None = None) -> EvaluationPoint:
    """Rank with the server's parameters and each client's private leaves as they are: the default.

    Where the model says what a client does before it is scored (`Model.represent`), every client does that first.
    Private leaves may be numpy arrays, in host memory (`simulate` leaves them there where clients stream from it):
    where they are larger than all scores [N, I], these are computed first, chunk by chunk.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.
        population: the clients' training data; only needed where clients represent themselves by it.

    Returns:
        the evaluation point.

    Raises:
        ValueError: if the algorithm's model does not score items, or its clients represent themselves and there is
            no population; from `prepare`, if the state is of other clients or items than the population.

    Example:
        >>> import fedjax_rec as fr
        >>> server_parameters(fr.fedmf(dim=4)).score is not None
        True
    """
    work = algorithm.model.represent
    if work is None:
        return score_stored_leaves(algorithm)
    if population is None:
        raise ValueError(
            "clients of this algorithm represent themselves by their data to be scored; give population="
        )
    represent = _represent_program(work)
    mesh = _shared_mesh(algorithm)

    def scored_leaves(state: State) -> PyTree:
        check_clients(state, population.num_clients, "the population")
        check_items(state, population.num_items, "the population")
        return represent(state, population.without_ids(), mesh_that_holds(state, mesh))

    return EvaluationPoint(
        prepare=lambda state: (scored_leaves(state), state.server),
        score=_block_scorer(algorithm),
        population=population,
        scored_leaves=scored_leaves,
        name="server",
        mesh=mesh,
    )


def score_stored_leaves(algorithm: Algorithm) -> EvaluationPoint:
    """Rank with the server's parameters and the private leaves of the state, whatever clients do to be scored.

    For states whose leaves are those with which clients are scored, as run folders keep them
    (`EvaluationPoint.scored_leaves`). Leaves that wait in host memory are scored chunk by chunk and beforehand.
    With split item tables (`engine.table_shards`) every device scores its own items, of clients whose leaves are
    split, too; what is gathered are the scores of a block of users.

    Args:
        algorithm: gives `score` for one client.

    Returns:
        the evaluation point.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> score_stored_leaves(fr.fedals(dim=4)).population is None
        True
    """
    score_block = _block_scorer(algorithm)
    score_chunk = jax.jit(partial(_score_chunk, cast("Score", algorithm.score)))
    table_mesh = algorithm.table_mesh

    def prepare(state: State) -> PyTree:
        check_not_used_up(state)
        on_host = [leaf for leaf in _read_leaves(algorithm, state) if isinstance(leaf, np.ndarray)]
        num_clients = len(on_host[0]) if on_host else 0
        num_items = num_rows(state.server.tables)
        server = state.server
        if table_mesh is not None:
            server = Server(replicate(server.shared, table_mesh), split_rows(server.tables, table_mesh))
        if sum(leaf.size for leaf in on_host) <= num_clients * num_items:  # all scores would take more
            return state.private if table_mesh is None else split_rows(state.private, table_mesh), server

        scores = np.empty((num_clients, num_items), np.float32)
        size = min(chunk_size(on_host), num_clients)
        for first in range(0, num_clients, size):
            users = np.arange(first, first + size).clip(max=num_clients - 1)  # all chunks are of one size
            private = jax.tree.map(lambda leaf, users=users: leaf[users], state.private)
            scores[users] = score_chunk(private, server)
        return scores

    return EvaluationPoint(
        prepare,
        score_block,
        scored_leaves=lambda state: state.private,
        name="server",
        mesh=_shared_mesh(algorithm),
    )


def _shared_mesh(algorithm: Algorithm) -> Mesh | None:
    """The devices of which each can score any user: with split tables all of them score one block together."""
    return algorithm.mesh if algorithm.table_mesh is None else None


def _read_leaves(algorithm: Algorithm, state: State) -> list[jax.Array | np.ndarray]:
    """The private leaves that scores depend on: others, such as control variates, need not leave the host."""
    score = cast("Score", algorithm.score)
    program = _score_program(score, client_shapes(state.private), state.server)
    read = {id(variable) for step in program.eqns for variable in step.invars}
    read |= {id(variable) for variable in program.outvars}
    leaves = jax.tree.leaves(state.private)
    return [leaf for leaf, variable in zip(leaves, program.invars, strict=False) if id(variable) in read]


def _score_program(score: Score, own: PyTree, server: Server) -> Any:
    """The steps of one client's scores; leaves of another algorithm's names are told."""
    try:
        return jax.make_jaxpr(score)(own, server).jaxpr
    except (KeyError, AttributeError) as problem:
        raise ValueError(
            f"the state is not that of this algorithm ({type(problem).__name__}: {problem}); give the state that "
            "it made"
        ) from problem


@lru_cache(maxsize=8)  # one program for one work: of every evaluator that is made for an algorithm
def _represent_program(work: ClientWork) -> Callable[[State, Population, Mesh | None], PyTree]:
    return jax.jit(partial(_represent, work), static_argnums=2)


def _represent(work: ClientWork, state: State, population: Population, mesh: Mesh | None) -> PyTree:
    """The private leaves with which clients are scored, [N, ...]."""
    key = stream(jax.random.key(0, impl=KEY_IMPL), "evaluation")
    return train_everybody(work, key, state.server, state.private, population, mesh)


def train_everybody(
    work: ClientWork, key: Key, server: Server, private: PyTree, population: Population, mesh: Mesh | None
) -> PyTree:
    """Inside a compiled function: all clients do their work for an evaluation, and nothing is sent.

    Args:
        work: of a client.
        key: of this pass over the clients.
        server: whose parameters they start from.
        private: leaves [N, ...], whose clients start from them.
        population: N clients.
        mesh: devices that share them; None for one.

    Returns:
        private leaves [N, ...] afterwards, replicated.
    """
    clients = name_clients(key, jnp.arange(population.num_clients), population)
    devices = 1 if mesh is None else mesh.size
    result = run_cohort(
        work,
        Uplink(total()),
        population,
        server,
        ClientStore(private),
        Cohort(clients, alive=jnp.ones(population.num_clients, bool)),
        lanes=devices * max(1, min(LANES, population.num_clients) // devices),
        mesh=mesh,
    )
    return keep_replicated(result.store.private, mesh)


def point_of_split(
    algorithm: Algorithm, split: Split, point: EvaluationPoint | None = None
) -> EvaluationPoint:
    """The one way from a state to scores of a split's users: the point, which refuses whatever is not theirs.

    Args:
        algorithm: gives `score` for one client.
        split: names users and items.
        point: with which parameters; by default the server's.

    Returns:
        the point; its `prepare` refuses the state of other clients or items.

    Raises:
        ValueError: if the point scores other clients or items than the split's.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(30, 90))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> other = fr.leave_one_out(fr.data.synthetic(40, 90))
        >>> point_of_split(algorithm, other).prepare(state)
        Traceback (most recent call last):
        ValueError: the state holds leaves of 30 clients, but synthetic has 40; ...
    """
    if point is None:
        needs_data = algorithm.model.represent is not None
        point = server_parameters(algorithm, population_of(split) if needs_data else None)
    chosen = point
    if chosen.population is not None:
        check_same(chosen.population, split)

    def prepare(state: State) -> PyTree:
        if chosen.population is None:
            check_clients(state, split.num_users, split.name)
        check_items(state, split.num_items, split.name)
        return chosen.prepare(state)

    return chosen._replace(prepare=prepare)


@suggest_names
def make_evaluator(
    algorithm: Algorithm, split: Split, *, which: str = "test", point: EvaluationPoint | None = None
) -> Callable[[State], Ranks]:
    """Build a compiled function from a state to the rank of each user's held-out item.

    Args:
        algorithm: gives `score` for one client; it is vmapped over blocks of clients.
        split: names the held-out items, the seen items to mask and the candidates.
        which: "test" or "validation".
        point: with which parameters; by default the server's, `server_parameters(algorithm)`.

    Returns:
        State -> Ranks of N users each; of all held-out events where the split holds out several a user.

    Raises:
        ValueError: if the algorithm's model does not score items, or the point or the state is of other clients.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_evaluator(algorithm, split)(state).full.shape == (split.num_users,)
        True
    """
    check_arguments(make_evaluator, locals())
    point = point_of_split(algorithm, split, point)
    rank = make_ranker(split, point.score, which=which, mesh=point.mesh)
    return lambda state: rank(point.prepare(state))


def make_top_k(
    algorithm: Algorithm,
    split: Split,
    k: int = 10,
    *,
    which: str = "test",
    point: EvaluationPoint | None = None,
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
        >>> make_top_k(algorithm, split, 5)(state).items.shape == (split.num_users, 5)
        True
    """
    check_arguments(make_top_k, locals())
    point = point_of_split(algorithm, split, point)
    recommend = make_recommender(split, point.score, k, which=which, mesh=point.mesh)
    return lambda state: recommend(point.prepare(state))


def make_rating_predictor(
    algorithm: Algorithm, split: Split, *, point: EvaluationPoint | None = None
) -> Callable[[State], jax.Array]:
    """Build a compiled function from a state to each user's score of the test items: their predicted ratings.

    Args:
        algorithm: gives `score` for one client; its loss fits ratings.
        split: names the test items.
        point: with which parameters; by default the server's.

    Returns:
        State -> float32[N], NaN for a user without a test item; float32[P], of all held-out events, where the
        split holds out several.

    Raises:
        ValueError: if the algorithm's model does not score items.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.load_dataset("synthetic"))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state = algorithm.init(jax.random.key(0), fr.population_of(split))
        >>> make_rating_predictor(algorithm, split)(state).shape == (split.num_users,)
        True
    """
    check_arguments(make_rating_predictor, locals())
    point = point_of_split(algorithm, split, point)
    rate: Callable[[PyTree, Mesh | None], jax.Array]
    if split.heldout is not None:
        rate = _pair_program(split, point.score)
    else:
        rate = partial(
            _rating_program(point.score, choose_block_size(split.num_items)), jnp.asarray(split.test)
        )

    def predict(state: State) -> jax.Array:
        params = point.prepare(state)
        return rate(params, mesh_that_holds(params, point.mesh))

    return predict


@lru_cache(maxsize=8)
def _rating_program(
    score_block: Callable[[PyTree, jax.Array], jax.Array], block_size: int
) -> Callable[[jax.Array, PyTree, Mesh | None], jax.Array]:
    def rate_block(params: PyTree, pairs: tuple[jax.Array, jax.Array]) -> jax.Array:
        users, items = pairs
        return jnp.take_along_axis(score_block(params, users), items[:, None], axis=1)[:, 0]

    @partial(jax.jit, static_argnums=2)
    def rate(items: jax.Array, params: PyTree, mesh: Mesh | None) -> jax.Array:
        filled = jnp.pad(jnp.stack([jnp.arange(len(items)), items]), ((0, 0), (0, -len(items) % block_size)))
        users, asked = filled.reshape(2, -1, block_size)
        scores = map_in_shares(rate_block, params, (users, asked), mesh).reshape(-1)[: len(items)]
        return jnp.where(items >= 0, scores, jnp.nan)

    return rate


def _pair_program(
    split: Split, score_block: Callable[[PyTree, jax.Array], jax.Array]
) -> Callable[[PyTree, Mesh | None], jax.Array]:
    """Parameters -> float32[P], the score of each held-out event."""
    pair_blocks, _ = make_pair_blocks(split, "test", None, chunk=1)
    blocks = pair_blocks.blocks.users, pair_blocks.owners, pair_blocks.items

    def rate_block(params: PyTree, block: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
        users, owners, items = block
        return score_block(params, users)[owners, items]  # -1, of no pair, is read and forgotten

    @partial(jax.jit, static_argnums=1)
    def rate(params: PyTree, mesh: Mesh | None) -> jax.Array:
        return map_in_shares(rate_block, params, blocks, mesh).reshape(-1)[pair_blocks.positions]

    return rate


def _block_scorer(algorithm: Algorithm) -> Callable[[PyTree, jax.Array], jax.Array]:
    if algorithm.score is None:
        raise ValueError("this algorithm's model has no `score`, so it cannot rank items")
    return _score_blocks(algorithm.score)


def _score_chunk(score: Score, private: PyTree, server: Server) -> jax.Array:
    return jax.vmap(score, in_axes=(0, None))(private, join_rows(server))


@lru_cache(maxsize=8)  # one function for one score, so that what it is compiled into is found again
def _score_blocks(score: Score) -> Callable[[PyTree, jax.Array], jax.Array]:
    def score_group(private: PyTree, server: Server, users: jax.Array) -> jax.Array:
        own = jax.tree.map(lambda p: p[users], private)
        return jax.vmap(score, in_axes=(0, None))(own, server)

    def score_block(params: PyTree, users: jax.Array) -> jax.Array:
        if not isinstance(params, tuple):
            return params[users]  # all scores [N, I], computed beforehand
        private, server = join_rows(params)
        together = min(_users_together(score, private, server), len(users))
        if together == len(users):
            return score_group(private, server, users)

        # A network makes many numbers of one score: the block [U] in groups [G, u], the last one filled up.
        groups = jnp.pad(users, (0, -len(users) % together)).reshape(-1, together)
        scores = jax.lax.map(lambda group: score_group(private, server, group), groups)
        return scores.reshape(groups.size, -1)[: len(users)]

    return score_block


def _users_together(score: Score, private: PyTree, server: Server) -> int:
    """How many users are scored at once, so that what lies between leaves and scores stays in a CPU's cache."""
    own = client_shapes(private)
    program = _score_program(score, own, server)
    sizes = [math.prod(variable.aval.shape) for step in program.eqns for variable in step.outvars]
    largest = max([*sizes, *(math.prod(leaf.shape) for leaf in jax.tree.leaves(own))], default=0)
    if largest <= num_rows(server.tables):
        return _MAX_TOGETHER  # no more numbers than scores
    most = _MAX_BETWEEN if jax.default_backend() == "cpu" else _MAX_BETWEEN_ON_ACCELERATOR
    return max(1, min(_MAX_TOGETHER, most // largest))
