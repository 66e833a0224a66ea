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
from functools import lru_cache, partial
from typing import Any, TypedDict, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from fedjax_rec.client.hidden import hide_data
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population
from fedjax_rec.compatibility import Feature, Features, check_together, goes_with
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.devices import check_surroundings
from fedjax_rec.engine.lane_steps import Uplink
from fedjax_rec.engine.plan import row_update_of
from fedjax_rec.engine.table_shards import table_mesh
from fedjax_rec.errors import check_arguments
from fedjax_rec.federation.asynchronous import FedBuff, check_fedbuff
from fedjax_rec.federation.checks import check_clients, check_items
from fedjax_rec.federation.faults import Faults, check_faults
from fedjax_rec.federation.rounds import Exchange, Rules, ServerMemory, init_state, plan_rounds, run_round
from fedjax_rec.federation.streaming import split_round
from fedjax_rec.federation.touched import SERVER_ROWS
from fedjax_rec.hosts.processes import spans_processes
from fedjax_rec.rows.scatter import STRATEGIES
from fedjax_rec.rows.tables import read_rows
from fedjax_rec.samplers.data_independent import uniform
from fedjax_rec.samplers.tracking import needs_losses
from fedjax_rec.server.aggregators import named, total
from fedjax_rec.server.soundness import bound_of, check_sound, features_of
from fedjax_rec.transforms.base import Transform
from fedjax_rec.types import (
    Adversary,
    Aggregator,
    Algorithm,
    ClientStore,
    ClientWork,
    DataDependentSampler,
    Key,
    Mechanism,
    Model,
    Plan,
    RoundInfo,
    RowTreatment,
    Sampler,
    Server,
    State,
    Totals,
    Update,
)

FEDAVG = optax.sgd(1.0)  # one object, of which it is tried only once what it does to rows


class RoundSettings(TypedDict, total=False):
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
    server_rows: str | None
    table_shards: int | None


class FederationSettings(RoundSettings, total=False):
    """What every other algorithm's factory hands on to `federate`."""

    server_optimizer: optax.GradientTransformation | None


def set_default_sampler(federation: RoundSettings, sampler: Sampler) -> None:
    """Give an algorithm a sampler of its own, for whoever names no sampler, no cohort and no asynchronous rounds.

    Args:
        federation: as the factory was given it; changed in place.
        sampler: to use then.

    Example:
        >>> from fedjax_rec.samplers.data_independent import everyone
        >>> given: RoundSettings = {"cohort": 5}
        >>> set_default_sampler(given, everyone())
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
    server_memory: ServerMemory | None = None,
    lanes: int | None = None,
    mesh: Mesh | None = None,
    row_update: str | None = None,
    stream_clients: int | None = None,
    server_rows: str | None = None,
    table_shards: int | None = None,
) -> Algorithm:
    """Make a federated algorithm of one client's work.

    M(t+1) = M(t) - server_optimizer(-aggregate(deltas)): optax descends, so it is given the negated aggregate.

    Args:
        model: how parameters start and score.
        work: one client's local training.
        sampler: who takes part in a round; by default `cohort` clients drawn uniformly.
        cohort: C; by default a tenth of all clients, between 200 and 1,000. A sampler has its own, and takes none.
        aggregator: how updates are summed, or its name in `aggregators.NAMES`.
        server_optimizer: any optax transformation; `optax.sgd(1.0)` (FedAvg) by default.
        transform: what a client does to its whole update before it sends it (`fedjax_rec.transforms`).
        adversary: which clients are malicious, and what they do (`fedjax_rec.attacks.promotion`); None for nobody.
        faults: which clients fail, sleep or come late (`fedjax_rec.federation.faults`); None for nobody.
        asynchronous: rounds that wait for no cohort (`fedjax_rec.federation.asynchronous`), instead of a sampler;
            None for rounds in step.
        exchange: what the server sends back to each client of the cohort, besides the global model.
        server_memory: what a server's rule takes that holds more, or less, than a sum, its sum over devices and a
            step as large: (plan, population) -> the plan with it; None for any other rule.
        lanes: L; by default as `engine.plan.choose_lanes` says.
        mesh: devices to split each cohort over, of `fedjax_rec.engine.devices.client_mesh`; None for one.
        row_update: how rows are added to a table, a name in `rows.scatter.STRATEGIES`; by default by back end.
        stream_clients: S: what clients keep between rounds waits in host memory, and `simulate` takes a cohort to
            the device S clients at a time (`fedjax_rec.federation.streaming`); 0 for never; by default where that
            helps. In `train`, `train_seeds` and `sweep` rounds are in one piece.
        server_rows: "touched" for `simulate` to sum and step the item rows alone that a cohort touches
            (`fedjax_rec.federation.touched`), "all" for all; by default touched ones in large catalogues, where
            the server rule lets the others rest.
        table_shards: S: for `simulate` to split item tables, and what the server keeps of their rows, over S of
            the mesh's devices, as often as it has that many (`fedjax_rec.engine.table_shards`): rounds are then on
            touched rows; 1 for whole tables on every device, the default.

    Returns:
        `init`, `round`, `score` and `plan` as pure functions, and `streaming`: `round` in chunks.

    Raises:
        ValueError: on features that do not go together (`compatibility.table`); if `lanes` is below 1,
            `stream_clients` below 0, or `row_update`, `server_rows` or `aggregator` unknown; if the devices are no
            multiple of `table_shards`; on noise that is too little for what it is to hide
            (`soundness.check_sound`); in the first round, on keys that are not jax's default kind, if a stack of
            updates cannot fit, or if fixed-point sums could wrap.
    """
    check_arguments(federate, locals())
    check_surroundings()
    aggregator = named(aggregator) if isinstance(aggregator, str) else aggregator

    bound = bound_of(transform)

    # What was asked for goes together, or nothing is made of it.
    features: Features = {
        **features_of(aggregator),
        **_features_of_sampler(sampler),
        **_features_of_faults(faults),
        Feature.ASYNCHRONOUS: asynchronous,
        Feature.COHORT: cohort,
        Feature.EXCHANGE: exchange,
        Feature.DISTRIBUTED: spans_processes(mesh),
        Feature.OWN_UPLOAD: work.upload,
        Feature.SELF_REPRESENTATION: model.represent,
        Feature.STARTS_FROM_DATA: model.starts_from or None,
        Feature.CLIENT_NOISE: bound.deviation > 0,
        Feature.COLLUDING: adversary.name if adversary is not None and adversary.wrap_algorithm else None,
        Feature.ADVERSARY: None if adversary is None else adversary.name,
        Feature.WHOLE_UPDATES: transform is not None and transform.scale is None,
        Feature.READS_IDS: work.reads_ids,
        Feature.ONE_PIECE: stream_clients == 0,
    }
    tables_on = table_mesh(mesh, table_shards)
    wanted: Features = {
        Feature.STREAMED: stream_clients or None,
        Feature.TABLE_SHARDS: table_shards if tables_on is not None else None,
        Feature.TOUCHED: server_rows == "touched",
        Feature.ALL_ROWS: server_rows == "all",
    }
    check_together({**features, **wanted})
    if stream_clients is None and not goes_with(Feature.STREAMED, features):
        stream_clients = 0  # nobody asked for chunks, and something is in their way
    server_rows = _choose_rows(server_rows, features, tables_are_split=tables_on is not None)

    # Numbers are in their ranges, and what was not given is chosen.
    if asynchronous is not None:
        check_fedbuff(asynchronous)
        cohort = asynchronous.buffer
    if faults is not None:
        check_faults(faults)
    sampler = uniform(cohort) if sampler is None else sampler
    strategy = _choose_row_update(lanes, row_update)
    check_sound(aggregator, transform, sampler=sampler)

    # Noise hides what clients send; where everything starts must need no hiding.
    if aggregator.noise is not None or bound.deviation > 0:
        model = model._replace(init_server=partial(_init_unseen, model.init_server))

    # The rules of a round, and the pure functions that are made of them.
    optimizer = FEDAVG if server_optimizer is None else server_optimizer
    work = work if adversary is None else adversary.wrap_work(work)
    batch = jax.jit(work.batches.batch, inline=True)  # traced once, for the programs and plans of a run
    work = work._replace(batches=work.batches._replace(batch=batch))
    uplink = Uplink(aggregator, transform, strategy, records_losses=needs_losses(sampler, aggregator))
    rules = Rules(
        model,
        work,
        sampler,
        uplink,
        optimizer,
        faults,
        asynchronous,
        exchange,
        lanes=lanes,
        mesh=mesh,
        server_rows=server_rows,
        table_mesh=tables_on,
        server_memory=server_memory,
    )

    def init(key: Key, population: Population) -> State:
        return init_state(rules, key, population)

    def round_(key: Key, state: State, population: Population) -> tuple[State, RoundInfo]:
        return run_round(rules, key, state, population)

    def plain_round(key: Key, state: State, population: Population) -> tuple[State, RoundInfo]:
        plain = rules._replace(uplink=uplink._replace(row_update="scatter"), lanes=1, mesh=None)
        return run_round(plain, key, state, population, checks_memory=False)

    def plan(population: Population) -> Plan:
        return plan_rounds(rules, population)

    wrap_algorithm = None if adversary is None else adversary.wrap_algorithm
    streaming = split_round(
        rules, stream_clients, partial(check_together, {**features, Feature.STORED: True})
    )
    algorithm = Algorithm(
        init=init,
        round=round_,
        score=model.score,
        model=model,
        work=work,
        plan=plan,
        mesh=mesh,
        table_mesh=tables_on,
        streaming=streaming,
        mechanism=Mechanism(
            sampler=sampler if asynchronous is None else None,
            noise=aggregator.noise,
            client_noise=bound.deviation / bound.noised_norm if bound.noised_norm else 0.0,
            made_for=(init, round_, streaming),
        ),
        plain_round=plain_round,
    )
    return algorithm if wrap_algorithm is None else wrap_algorithm(algorithm, sampler)


def _init_unseen(init_server: Callable[[Key, Any], Server], key: Key, population: Population) -> Server:
    """The global model at the start, made of anything but the clients' data."""
    return init_server(key, hide_data(population))


def _features_of_sampler(sampler: Sampler | None) -> Features:
    if not isinstance(sampler, DataDependentSampler):
        return {Feature.SAMPLER: sampler}
    return {
        Feature.SAMPLER: sampler,
        Feature.SAMPLER_BY_DATA: type(sampler).__name__,
        Feature.SAMPLER_BY_LOSSES: sampler.needs_losses,
    }


def _features_of_faults(faults: Faults | None) -> Features:
    if faults is None:
        return {}
    return {
        Feature.FAULTS: faults,
        Feature.OVER_SELECTION: faults.keep,
        Feature.MINIMUM_COHORT: faults.minimum > 1,
    }


def _choose_rows(server_rows: str | None, features: Features, *, tables_are_split: bool) -> str | None:
    """Which rows the server sums and steps; None where the size of the catalogue decides."""
    if server_rows not in (None, *SERVER_ROWS):
        raise ValueError(f"unknown server rows {server_rows!r}; choose one of {', '.join(SERVER_ROWS)}")
    if tables_are_split:
        return "touched"
    if server_rows is None and not goes_with(Feature.TOUCHED, features):
        return "all"
    return server_rows


def _choose_row_update(lanes: int | None, row_update: str | None) -> str:
    """The strategy of the row update, by default that of the back end."""
    if lanes is not None and lanes < 1:
        raise ValueError(f"lanes must be at least 1, not {lanes}")
    strategy = row_update_of(jax.default_backend()) if row_update is None else row_update
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown row update {strategy!r}; choose one of {', '.join(STRATEGIES)}")
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
        ValueError: if there is no such client, or the state is of other clients or items than the population.

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
    check_clients(state, population.num_clients, "the population")
    check_items(state, population.num_items, "the population")
    ids = np.array([client])
    store_index = ids
    store = ClientStore(state.private)
    if any(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.private)):
        store = jax.tree.map(lambda leaf: leaf[ids], store)  # all others stay on the host
        store_index = np.array([0])
    state = state.with_store(store)
    totals = _one_client(algorithm.work)(key, state, population.without_ids(), ids, store_index)
    touched = jnp.asarray(np.flatnonzero(np.asarray(totals.row_weight)))
    return Update(totals.deltas.shared, touched, read_rows(totals.deltas.tables, touched), totals.weight)


@lru_cache(maxsize=32)
def _one_client(work: ClientWork) -> Callable[[Key, State, Population, np.ndarray, np.ndarray], Totals]:
    """A round of one client, compiled once for all clients."""
    uplink = Uplink(total()._replace(rows=RowTreatment(weights=True)))

    @jax.jit
    def run(key: Key, state: State, population: Population, ids: jax.Array, store_index: jax.Array) -> Totals:
        clients = name_clients(jax.random.fold_in(stream(key, "client"), state.round), ids, population)
        cohort = Cohort(clients, alive=jnp.ones(1, bool), store_index=store_index)
        result = run_cohort(work, uplink, population, state.server, state.store, cohort, lanes=1)
        return cast("Totals", result.totals)

    return run
