"""From one client's work to a federated algorithm, whose rounds (`rounds`) are pure functions.

The classical methods are choices of its values:

============  ==============================  =====================================
method        local optimizer                 server optimizer
============  ==============================  =====================================
FedAvg        `sgd(lr)`                       `sgd(1.0)`
FedProx       `chain(proximal(mu), sgd(lr))`  `sgd(1.0)`
FedAvgM       `sgd(lr)`                       `sgd(a, momentum=0.9)`
FedAdam       `sgd(lr)`                       `adam(a)`
FedYogi       `sgd(lr)`                       `yogi(a)`
FedAdagrad    `sgd(lr)`                       `adagrad(a)`
============  ==============================  =====================================

Randomness: the run's key is split by purpose first; a client's key is `fold_in(fold_in(client stream, round),
client id)` and nothing else, so its place in the cohort, its lane and its device are invisible.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_rec.aggregators import named, total
from fedjax_rec.asynchronous import FedBuff, check_fedbuff
from fedjax_rec.clients import name_clients, stream
from fedjax_rec.engine import run_cohort
from fedjax_rec.faults import Faults, check_faults
from fedjax_rec.knowledge import hears_losses
from fedjax_rec.plan import row_update_of
from fedjax_rec.population import Population
from fedjax_rec.rounds import Exchange, Rules, init_state, one_round, plan_rounds
from fedjax_rec.row_updates import STRATEGIES
from fedjax_rec.samplers import uniform
from fedjax_rec.schedules import Uplink
from fedjax_rec.soundness import check_sound
from fedjax_rec.streaming import take_apart
from fedjax_rec.tables import read_rows
from fedjax_rec.types import (
    Adversary,
    Aggregator,
    Algorithm,
    ClientWork,
    Key,
    Model,
    Plan,
    RoundInfo,
    Sampler,
    State,
    Totals,
    Transform,
    Update,
)


class Cohorts(TypedDict, total=False):
    """What an algorithm with a server rule of its own hands on to `federate`, which says what each means."""

    sampler: Sampler | None
    cohort: int | None
    transform: Transform | None
    adversary: Adversary | None
    faults: Faults | None
    asynchronous: FedBuff | None
    lanes: int | None
    mesh: Mesh | None
    row_update: str | None
    stream_clients: int | None


class Federation(Cohorts, total=False):
    """What every other algorithm's factory hands on to `federate`."""

    server_optimizer: optax.GradientTransformation | None


def sample_usually(federation: Cohorts, sampler: Sampler) -> None:
    """Give an algorithm a sampler of its own, for whoever names no sampler, no cohort and no asynchronous rounds.

    Args:
        federation: as the factory was given it; changed in place.
        sampler: to use then.

    Example:
        >>> from fedjax_rec.samplers import everyone
        >>> given: Cohorts = {"cohort": 5}
        >>> sample_usually(given, everyone())
        >>> given
        {'cohort': 5}
    """
    if all(federation.get(name) is None for name in ("sampler", "cohort", "asynchronous")):
        federation["sampler"] = sampler


def federate(
    model: Model,
    work: ClientWork,
    *,
    sampler: Sampler | None = None,
    cohort: int | None = None,
    aggregator: Aggregator | str = "sum",
    server_optimizer: optax.GradientTransformation | None = None,
    transform: Transform | None = None,
    adversary: Adversary | None = None,
    faults: Faults | None = None,
    asynchronous: FedBuff | None = None,
    exchange: Exchange | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    row_update: str | None = None,
    stream_clients: int | None = None,
) -> Algorithm:
    """Make a federated algorithm of one client's work.

    M(t+1) = M(t) - server_optimizer(-aggregate(deltas)): optax descends, so it is given the negated aggregate.

    Args:
        model: how parameters start and score.
        work: one client's local training.
        sampler: who takes part in a round; by default `cohort` clients drawn uniformly.
        cohort: C; by default a tenth of all clients, between 200 and 1,000.
        aggregator: how updates are summed, or its name in `aggregators.NAMES`.
        server_optimizer: any optax transformation; `optax.sgd(1.0)` (FedAvg) by default.
        transform: what a client does to its whole update before it sends it (`fedjax_rec.transforms`).
        adversary: which clients are malicious, and what they do (`fedjax_rec.promotion`); None for nobody.
        faults: which clients fail, sleep or come late (`fedjax_rec.faults`); None for nobody.
        asynchronous: rounds that wait for no cohort (`fedjax_rec.asynchronous`), instead of a sampler; None for
            rounds in step.
        exchange: what the server sends back to each client of the cohort, besides the global model.
        lanes: L; by default by the rule of 8.
        mesh: devices to split each cohort over, of `fedjax_rec.devices.client_mesh`; None for one.
        row_update: how rows are added to a table, a name in `row_updates.STRATEGIES`; by default by back end.
        stream_clients: S: what clients keep between rounds waits in host memory, and `simulate` takes a cohort to
            the device S clients at a time (`fedjax_rec.streaming`); 0 for never; by default where that helps. In
            `train`, `train_seeds` and `sweep` rounds are in one piece.

    Returns:
        `init`, `round`, `score` and `plan` as pure functions, and `streaming`: `round` in parts.

    Raises:
        ValueError: if `lanes` is below 1, or `row_update` or `aggregator` unknown; in the first round, on keys
            that are not jax's default kind, if a stack of updates cannot fit, or if fixed-point sums could wrap;
            on noise that would not hide what it is to hide (`soundness.check_sound`); on colluding clients, whose
            losses are not known, beside a rule that goes by losses; and on what asynchronous rounds cannot be
            combined with; if `stream_clients` is negative, or given beside what needs a whole cohort.

    Example:
        see `fedjax_rec.algorithms.fedmf`.
    """
    aggregator = named(aggregator) if isinstance(aggregator, str) else aggregator
    if asynchronous is not None:
        given = {
            "sampler": sampler,
            "cohort": cohort,
            "faults": faults,
            "exchange": exchange,
            "send": work.send,
        }
        check_fedbuff(asynchronous, aggregator, **given, join=None if adversary is None else adversary.join)
        cohort = asynchronous.buffer
    sampler = uniform(cohort) if sampler is None else sampler
    strategy = _check_row_update(lanes, row_update, aggregator)
    check_sound(aggregator, transform, exchanges=exchange is not None, sampler=sampler)
    check_faults(faults or Faults(), private=aggregator.noise is not None)
    optimizer = optax.sgd(1.0) if server_optimizer is None else server_optimizer
    work = work if adversary is None else adversary.wrap(work)
    uplink = Uplink(aggregator, transform, strategy, heard=hears_losses(sampler, aggregator))
    _check_heard(uplink, adversary)
    rules = Rules(
        model, work, sampler, uplink, optimizer, faults, asynchronous, exchange, lanes=lanes, mesh=mesh
    )

    def init(key: Key, population: Population) -> State:
        return init_state(rules, key, population)

    def run_round(key: Key, state: State, population: Population) -> tuple[State, RoundInfo]:
        return one_round(rules, key, state, population)

    def plan(population: Population) -> Plan:
        return plan_rounds(rules, population)

    parts = take_apart(rules, stream_clients, colluding=adversary is not None and adversary.join is not None)
    algorithm = Algorithm(init, run_round, model.score, model, work, plan, mesh, parts)
    return algorithm if adversary is None or adversary.join is None else adversary.join(algorithm, sampler)


def _check_heard(uplink: Uplink, adversary: Adversary | None) -> None:
    if uplink.heard and adversary is not None and adversary.join is not None:
        raise ValueError(
            f"what losses clients of {adversary.name} would tell is not known; leave the rule by losses out"
        )


def _check_row_update(lanes: int | None, row_update: str | None, aggregator: Aggregator) -> str:
    """The strategy of the row update, by default that of the back end."""
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes must be at least 1, not {lanes}")
    strategy = row_update_of(jax.default_backend()) if row_update is None else row_update
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown row update {strategy!r}; choose one of {', '.join(STRATEGIES)}")
    if aggregator.fixed and strategy == "matmul":
        raise ValueError("row update 'matmul' sums floats; with fixed-point sums use 'scatter' or 'sorted'")
    return strategy


def client_update(
    algorithm: Algorithm, key: Key, state: State, population: Population, client: int
) -> Update:
    """What one client would send in the coming round: its update, unweighted.

    Runs the round's engine on a cohort of that client alone, so it is what the server would receive; a `transform`
    acts after that and is not applied here.

    Args:
        algorithm: as `federate` returns it.
        key: the run's key.
        state: the coming round starts from it.
        population: the clients.
        client: which one, 0..N-1.

    Returns:
        dense deltas, the ids of the R touched rows (ascending) and their deltas [R, ...]; weight 1.

    Raises:
        ValueError: if there is no such client.

    Example:
        >>> import pandas as pd, fedjax_rec as fr
        >>> population = Population.from_frame(pd.DataFrame({"user": [0, 0, 1], "item": [0, 1, 1]}))
        >>> algorithm = fr.fedmf(dim=2, num_negatives=1)
        >>> state = algorithm.init(jax.random.key(0), population)
        >>> client_update(algorithm, jax.random.key(0), state, population, 0).ids.tolist()
        [0, 1]
    """
    if not 0 <= client < population.num_clients:
        raise ValueError(f"there is no client {client}; clients are 0..{population.num_clients - 1}")
    ids = place = np.array([client])
    if any(
        isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.private)
    ):  # all others stay on the host
        state, place = (
            state._replace(private=jax.tree.map(lambda leaf: leaf[ids], state.private)),
            np.array([0]),
        )
    totals = _one_client(algorithm.work)(key, state._replace(memory=()), population, ids, place)
    touched = jnp.asarray(np.flatnonzero(np.asarray(totals.row_weight)))
    return Update(totals.server.shared, touched, read_rows(totals.server.tables, touched), totals.weight)


@lru_cache(maxsize=32)
def _one_client(work: ClientWork) -> Callable[[Key, State, Population, np.ndarray, np.ndarray], Totals]:
    """A round of one client, compiled once for all clients."""
    uplink = Uplink(total()._replace(per_row=True))

    @jax.jit
    def run(key: Key, state: State, population: Population, ids: jax.Array, place: jax.Array) -> Totals:
        clients = name_clients(jax.random.fold_in(stream(key, "client"), state.round), ids, population)
        alive = jnp.ones(1, bool)
        server, private = state.server, state.private
        result = run_cohort(work, uplink, population, server, private, clients, alive, lanes=1, place=place)
        return cast("Totals", result.totals)

    return run
