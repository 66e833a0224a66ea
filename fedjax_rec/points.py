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

from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.aggregators import total
from fedjax_rec.clients import name_clients, stream
from fedjax_rec.engine import run_cohort
from fedjax_rec.evaluation.evaluator import LANES, Point, server_parameters
from fedjax_rec.initial import init_private
from fedjax_rec.local import local_training
from fedjax_rec.population import Population
from fedjax_rec.schedules import Uplink
from fedjax_rec.types import Algorithm, Client, ClientWork, Key, Model, Params, PyTree, Score, Stack, State

SIDE_BY_SIDE = 16  # clients whose own tables lie in memory at once, [16, I, ...]: few enough for a cache
_LANES = 4  # of a device, on which they train


class _Trainer(NamedTuple):
    """All that local training needs: an argument of the compiled evaluation, not a constant in it."""

    state: State
    population: Population
    words: jax.Array  # uint32[2], of the run's key


def after_local_training(algorithm: Algorithm, population: Population, key: Key) -> Point:
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
        ValueError: if the algorithm's model does not score items, or its clients train no table of their own.

    Example:
        >>> import fedjax_rec as fr
        >>> split = fr.leave_one_out(fr.synthetic(50, 100))
        >>> algorithm, population = fr.fedmf(dim=4), fr.population_of(split)
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> point = after_local_training(algorithm, population, jax.random.key(0))
        >>> fr.make_evaluator(algorithm, split, point=point)(state).full.shape
        (50,)
    """
    if algorithm.model.represent is not None or algorithm.work.send is not None:
        raise ValueError(
            "clients of this algorithm are not scored with the rows that they train: they represent themselves, "
            "or send something else; leave out the point"
        )
    server_parameters(algorithm)  # refuses a model that does not score
    score, words = cast("Score", algorithm.score), jax.random.key_data(key)

    def score_some(trainer: _Trainer, users: jax.Array, alive: jax.Array) -> jax.Array:
        stack, private = _train_apart(algorithm, trainer, users, alive)
        server = jax.vmap(partial(jax.tree.map, jnp.add, trainer.state.server))(stack.server)
        return jax.vmap(score)(private, server)

    def score_block(trainer: _Trainer, users: jax.Array) -> jax.Array:
        size = min(SIDE_BY_SIDE, len(users))
        padded = jnp.pad(users, (0, -len(users) % size))
        alive = jnp.arange(len(padded)) < len(users)
        some = padded.reshape(-1, size), alive.reshape(-1, size)
        scores = jax.lax.map(lambda block: score_some(trainer, *block), some)
        return scores.reshape(len(padded), -1)[: len(users)]

    return Point(lambda state: _Trainer(state, population, words), score_block)


def _train_apart(
    algorithm: Algorithm, trainer: _Trainer, users: jax.Array, alive: jax.Array
) -> tuple[Stack, PyTree]:
    """Each client's own update, side by side, and its new private leaves [U, ...]."""
    state, population, words = trainer
    keys = jax.random.fold_in(stream(jax.random.wrap_key_data(words), "client"), state.round)
    clients: Client = name_clients(keys, users, population)
    devices = 1 if algorithm.mesh is None else algorithm.mesh.size
    result = run_cohort(
        algorithm.work,
        Uplink(total()._replace(stacked=True)),
        population,
        state.server,
        state.private,
        clients,
        alive,
        lanes=devices * min(_LANES, -(-len(users) // devices)),
        mesh=algorithm.mesh,
    )
    return cast("Stack", result.totals), result.private


def after_fold_in(algorithm: Algorithm, population: Population, key: Key, *, epochs: int = 10) -> Point:
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
        >>> training, heldout = strong_generalisation(fr.synthetic(50, 100))
        >>> algorithm = fr.fedmf(dim=4)
        >>> state, _ = fr.simulate(algorithm, training, rounds=2, eval_every=1)
        >>> point = after_fold_in(algorithm, fr.population_of(heldout), jax.random.key(0), epochs=3)
        >>> fr.make_evaluator(algorithm, heldout, point=point)(state).full.shape
        (10,)
    """
    if epochs < 0:
        raise ValueError(f"epochs must be at least 0, not {epochs}")
    usual, model = server_parameters(algorithm, population), algorithm.model
    if algorithm.work.made_of is None and model.represent is not None:
        epochs, work = 0, algorithm.work
    else:
        work = _frozen(algorithm.work)
    fold_in = jax.jit(partial(_fold_in, model, work, Uplink(total()), epochs))
    words = jax.random.key_data(key)
    return usual._replace(
        prepare=lambda state: usual.prepare(state._replace(private=fold_in(words, state, population)))
    )


def _fold_in(
    model: Model,
    work: ClientWork,
    uplink: Uplink,
    epochs: int,
    words: jax.Array,
    state: State,
    population: Population,
) -> PyTree:
    """Private leaves [N, ...], all clients of the population as one cohort."""
    key = jax.random.wrap_key_data(words)
    ids = jnp.arange(population.num_clients)
    alive = jnp.ones(population.num_clients, bool)
    lanes = min(LANES, population.num_clients)

    def train(epoch: jax.Array, private: PyTree) -> PyTree:
        clients = name_clients(jax.random.fold_in(stream(key, "evaluation"), epoch), ids, population)
        return run_cohort(
            work, uplink, population, state.server, private, clients, alive, lanes=lanes
        ).private

    private = init_private(model, key, population.num_clients, state.server)
    return jax.lax.fori_loop(0, epochs, train, private)


def _frozen(work: ClientWork) -> ClientWork:
    """The same training for one epoch, of the private leaves alone."""
    if work.made_of is None:
        raise ValueError(
            "this algorithm's work cannot train private leaves while the rows stay as they are, so held-out "
            "clients cannot be folded in; choose another algorithm or splitter"
        )
    loss, optimizer = work.made_of

    def still(updates: Params, params: Params | None = None) -> Params:
        del params
        return updates._replace(
            shared=jax.tree.map(jnp.zeros_like, updates.shared),
            tables=jax.tree.map(jnp.zeros_like, updates.tables),
        )

    return local_training(loss, optax.chain(optimizer, optax.stateless(still)), work.batches)
