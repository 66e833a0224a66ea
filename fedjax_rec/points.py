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
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.aggregators import total
from fedjax_rec.clients import name_clients, stream
from fedjax_rec.engine import run_cohort
from fedjax_rec.evaluation.evaluator import LANES, Point, server_parameters
from fedjax_rec.federate import init_private
from fedjax_rec.local import local_training
from fedjax_rec.population import Population
from fedjax_rec.schedules import Uplink
from fedjax_rec.types import Algorithm, ClientWork, Key, Model, Params, PyTree, Score, State, Totals


def after_local_training(algorithm: Algorithm, population: Population, key: Key) -> Point:
    """Rank each client after its own local training, from the server's parameters, as in the coming round.

    A client sees its own update alone, unweighted and untransformed: M + delta_u, with its new private leaves.
    Clients without data are ranked as they are.

    Args:
        algorithm: as `federate` returns it.
        population: the clients' training data.
        key: the run's key; it draws the negatives.

    Returns:
        the evaluation point; clients train one after the other, so it costs a round of all clients at one lane.

    Raises:
        ValueError: if the algorithm's model does not score items.

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
            "clients of this algorithm hold no table of their own after training; leave out the point"
        )
    server_parameters(algorithm)  # refuses a model that does not score
    score, work, uplink = cast("Score", algorithm.score), algorithm.work, Uplink(total())
    words = jax.random.key_data(key)

    def score_user(prepared: Any, user: jax.Array) -> jax.Array:
        state, population, words = prepared
        keys = jax.random.fold_in(stream(jax.random.wrap_key_data(words), "client"), state.round)
        clients = name_clients(keys, user[None], population)
        alive = jnp.ones(1, bool)
        result = run_cohort(work, uplink, population, state.server, state.private, clients, alive, lanes=1)
        totals = cast("Totals", result.totals)
        server = jax.tree.map(jnp.add, state.server, totals.server)
        return score(jax.tree.map(lambda p: p[0], result.private), server)

    def score_block(prepared: Any, users: jax.Array) -> jax.Array:
        return jax.lax.map(partial(score_user, prepared), users)

    return Point(lambda state: (state, population, words), score_block)


def after_fold_in(algorithm: Algorithm, population: Population, key: Key, *, epochs: int = 10) -> Point:
    """Rank clients that never took part: their private leaves start afresh and train, the server's stay frozen.

    Args:
        algorithm: made by `local_training`, as `fedmf` is.
        population: the clients' fold-in histories, with the catalogue of the training clients.
        key: draws the private leaves and the negatives.
        epochs: k, passes over each history, with new negatives each; 0 ranks with fresh private leaves.

    Returns:
        the evaluation point; of the state it uses the server's parameters alone.

    Raises:
        ValueError: if the model does not score items, `epochs` is negative, or the work has no loss to descend.

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
    scorer, work, uplink = server_parameters(algorithm).score, _frozen(algorithm.work), Uplink(total())
    fold_in = jax.jit(partial(_fold_in, algorithm.model, work, uplink, epochs))
    words = jax.random.key_data(key)
    return Point(lambda state: (fold_in(words, state, population), state.server), scorer)


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

    private = init_private(model, key, population.num_clients)
    return jax.lax.fori_loop(0, epochs, train, private)


def _frozen(work: ClientWork) -> ClientWork:
    """The same training for one epoch, of the private leaves alone."""
    if work.made_of is None:
        raise ValueError("this algorithm's work descends no loss, so its private leaves cannot be folded in")
    loss, optimizer = work.made_of

    def still(updates: Params, params: Params | None = None) -> Params:
        del params
        return updates._replace(
            shared=jax.tree.map(jnp.zeros_like, updates.shared),
            tables=jax.tree.map(jnp.zeros_like, updates.tables),
        )

    return local_training(loss, optax.chain(optimizer, optax.stateless(still)), work.batches)
