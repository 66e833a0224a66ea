"""Evaluation points: with which parameters a client is ranked.

| point | private leaves | server's leaves |
|---|---|---|
| `server_parameters` (the default of `make_evaluator`) | as they are | as they are |
| `after_local_training` | after the client's own local epochs | as that client alone has trained them |
| `after_fold_in` | fresh, then trained on the client's history | frozen |

Papers differ in the first two without saying so, and a model that is fit to each user anew before ranking is
another model. The third serves clients that never took part, such as the held-out ones of `strong_generalisation`:
what a device does that downloads the model for the first time (Singhal et al. 2021, "Federated reconstruction",
arXiv:2102.03448).
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.local_training import local_training
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, check_together
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.devices import mesh_that_holds
from fedjax_rec.engine.lane_steps import Uplink
from fedjax_rec.engine.table_shards import num_shards
from fedjax_rec.errors import check_arguments
from fedjax_rec.evaluation.evaluator import (
    EvaluationPoint,
    score_stored_leaves,
    server_parameters,
    train_everybody,
)
from fedjax_rec.federation.checks import check_clients, check_items
from fedjax_rec.federation.initial import init_private
from fedjax_rec.hosts.processes import spans_processes
from fedjax_rec.server.aggregators import total
from fedjax_rec.types import (
    KEY_IMPL,
    Algorithm,
    Client,
    ClientStore,
    ClientWork,
    Key,
    Model,
    Params,
    PyTree,
    Score,
    Stack,
    State,
)

TABLES_AT_ONCE = 16  # clients whose own tables lie in memory together, [16, I, ...]: few enough for a cache
_LANES = 4  # of a device, on which they train


class _TrainingInputs(NamedTuple):
    """All that local training needs: an argument of the compiled evaluation, not a constant in it."""

    state: State
    population: Population
    key_data: jax.Array  # uint32[2], of the run's key


def after_local_training(algorithm: Algorithm, population: Population, key: Key) -> EvaluationPoint:
    """Rank each client after its own local training, from the server's parameters, as in the coming round.

    A client sees its own update alone, unweighted and untransformed: M + delta_u, with its new private leaves.
    Clients without data are ranked as they are.

    Args:
        algorithm: as `federate` returns it.
        population: the clients' training data.
        key: the run's key; it draws the negatives.

    Returns:
        the evaluation point; it costs a round of all clients, and memory for the tables of 16 of them.

    Raises:
        ValueError: if the algorithm's model does not score items, or its clients train no table of their own; from
            `prepare`, if the state is of other clients or items than the population.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.data.synthetic(50, 100))
        >>> algorithm, population = fr.fedmf(dim=4), fr.population_of(split)
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> point = after_local_training(algorithm, population, jax.random.key(0))
        >>> fr.make_evaluator(algorithm, split, point=point)(state).full.shape
        (50,)
    """
    check_arguments(after_local_training, locals())
    check_together(
        {
            Feature.LOCAL_POINT: True,
            Feature.SELF_REPRESENTATION: algorithm.model.represent,
            Feature.OWN_UPLOAD: algorithm.work.upload,
            Feature.DISTRIBUTED: spans_processes(algorithm.mesh),
            Feature.TABLE_SHARDS: num_shards(algorithm.table_mesh),
        }
    )
    score_stored_leaves(algorithm)  # refuses a model that does not score
    score = cast("Score", algorithm.score)
    key_data = jax.random.key_data(key)

    def score_group(inputs: _TrainingInputs, users: jax.Array, alive: jax.Array) -> jax.Array:
        stack, private = _train_apart(algorithm, inputs, users, alive)
        server = jax.vmap(partial(jax.tree.map, jnp.add, inputs.state.server))(stack.deltas)
        return jax.vmap(score)(private, server)

    def score_block(inputs: _TrainingInputs, users: jax.Array) -> jax.Array:
        # the block [U] in groups [G, 16], the last one filled up with users who do not take part
        size = min(TABLES_AT_ONCE, len(users))
        padded = jnp.pad(users, (0, -len(users) % size))
        alive = jnp.arange(len(padded)) < len(users)
        groups = padded.reshape(-1, size), alive.reshape(-1, size)
        scores = jax.lax.map(lambda group: score_group(inputs, *group), groups)
        return scores.reshape(len(padded), -1)[: len(users)]

    def prepare(state: State) -> _TrainingInputs:
        check_clients(state, population.num_clients, "the population")
        check_items(state, population.num_items, "the population")
        return _TrainingInputs(state, population, key_data)

    return EvaluationPoint(prepare, score_block, population, name=f"local training, {_name_key(key)}")


def _train_apart(
    algorithm: Algorithm, inputs: _TrainingInputs, users: jax.Array, alive: jax.Array
) -> tuple[Stack, PyTree]:
    """Each client's own update, side by side, and its new private leaves [U, ...]."""
    state, population, key_data = inputs
    keys = jax.random.fold_in(
        stream(jax.random.wrap_key_data(key_data, impl=KEY_IMPL), "client"), state.round
    )
    clients: Client = name_clients(keys, users, population)
    devices = 1 if algorithm.mesh is None else algorithm.mesh.size
    result = run_cohort(
        algorithm.work,
        Uplink(total()._replace(stacked=True)),
        population,
        state.server,
        ClientStore(state.private),
        Cohort(clients, alive),
        lanes=devices * min(_LANES, -(-len(users) // devices)),
        mesh=algorithm.mesh,
    )
    return cast("Stack", result.totals), result.store.private


def after_fold_in(
    algorithm: Algorithm, population: Population, key: Key, *, epochs: int = 10
) -> EvaluationPoint:
    """Rank clients that never took part: their private leaves start afresh and train, the server's stay frozen.

    Where the model says what a client does before it is scored (`Model.represent`), they do that last, and where
    their work descends no loss, that alone.

    Args:
        algorithm: made by `local_training`, as `fedmf` is, or one whose clients represent themselves.
        population: the clients' fold-in histories, with the catalogue of the training clients.
        key: draws the private leaves and the negatives.
        epochs: k, passes over each history, with new negatives each; 0 ranks with fresh private leaves.

    Returns:
        the evaluation point; of the state it uses the server's parameters alone.

    Raises:
        ValueError: if the model does not score items, `epochs` is negative, or there is neither a loss to descend
            nor a representation.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.data.splitters import strong_generalisation
        >>> training, heldout = strong_generalisation(fr.data.synthetic(50, 100))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state, _ = fr.simulate(algorithm, training, rounds=2, eval_every=1)
        >>> point = after_fold_in(algorithm, fr.population_of(heldout), jax.random.key(0), epochs=3)
        >>> fr.make_evaluator(algorithm, heldout, point=point)(state).full.shape
        (10,)
    """
    check_arguments(after_fold_in, locals())
    if epochs < 0:
        raise ValueError(f"epochs must be at least 0, not {epochs}")
    server_point = server_parameters(algorithm, population)
    model = algorithm.model
    if algorithm.work.descent is None and model.represent is not None:
        epochs = 0
        work = algorithm.work
    else:
        work = _train_private_only(algorithm.work)
    fold_in = jax.jit(partial(_fold_in, model, work, epochs), static_argnums=3)
    key_data = jax.random.key_data(key)

    scored_leaves = cast("Callable[[State], PyTree]", server_point.scored_leaves)

    def start_anew(state: State) -> State:
        check_items(state, population.num_items, "the population")
        return state._replace(
            private=fold_in(key_data, state, population, mesh_that_holds(state, server_point.mesh))
        )

    return server_point._replace(
        prepare=lambda state: server_point.prepare(start_anew(state)),
        population=population,
        scored_leaves=lambda state: scored_leaves(start_anew(state)),
        name=f"{epochs} epochs of folding in, {_name_key(key)}",
    )


def _name_key(key: Key) -> str:
    return f"key {jax.random.key_data(key).tolist()}"


def _fold_in(
    model: Model,
    work: ClientWork,
    epochs: int,
    key_data: jax.Array,
    state: State,
    population: Population,
    mesh: Mesh | None,
) -> PyTree:
    """Private leaves [N, ...], all clients of the population as one cohort."""
    key = jax.random.wrap_key_data(key_data, impl=KEY_IMPL)

    def train(epoch: jax.Array, private: PyTree) -> PyTree:
        of_epoch = jax.random.fold_in(stream(key, "evaluation"), epoch)
        return train_everybody(work, of_epoch, state.server, private, population, mesh)

    private = init_private(model, key, population.num_clients, state.server)
    return jax.lax.fori_loop(0, epochs, train, private)


def _train_private_only(work: ClientWork) -> ClientWork:
    """The same training for one epoch, of the private leaves alone."""
    if work.descent is None:
        raise ValueError(
            "this algorithm's work cannot train private leaves while the rows stay as they are, so held-out "
            "clients cannot be folded in; choose another algorithm or splitter"
        )
    loss, optimizer = work.descent

    def zero_server_updates(updates: Params, params: Params | None = None) -> Params:
        del params
        return updates._replace(
            shared=jax.tree.map(jnp.zeros_like, updates.shared),
            tables=jax.tree.map(jnp.zeros_like, updates.tables),
        )

    return local_training(loss, optax.chain(optimizer, optax.stateless(zero_server_updates)), work.batches)
