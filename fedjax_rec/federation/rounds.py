"""A round of the rules that `federate` puts together: sample, send, train locally, send back, aggregate, store."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_rec.client.keys import stream
from fedjax_rec.client.population import Population
from fedjax_rec.engine.cohort import Cohort, run_cohort
from fedjax_rec.engine.devices import keep_replicated
from fedjax_rec.engine.guard import run_sound
from fedjax_rec.engine.lane_steps import CohortResult, Uplink, mean_losses
from fedjax_rec.engine.plan import check_fits, make_plan
from fedjax_rec.federation.asynchronous import Dispatcher, FedBuff, launch, store_model
from fedjax_rec.federation.checks import check_clients, check_items
from fedjax_rec.federation.cohorts import DrawnCohort, await_cohort, sample_cohort, transform_keys
from fedjax_rec.federation.faults import Faults
from fedjax_rec.federation.initial import init_private, init_transform_state
from fedjax_rec.federation.structure import check_server, check_work
from fedjax_rec.rows.tables import num_rows, set_rows
from fedjax_rec.samplers.tracking import cohort_size, init_tracked, mixture_weights, update_tracked
from fedjax_rec.server.aggregators import add_heat
from fedjax_rec.server.step import ServerStep, decode_sums, step_server
from fedjax_rec.types import (
    Client,
    ClientStore,
    ClientWork,
    Key,
    Model,
    Plan,
    PyTree,
    RoundInfo,
    Sampler,
    Server,
    State,
    Totals,
)

# (totals or stack in cohort order, the model before the round, private leaves [C, ...]) -> private leaves [C, ...]
Exchange = Callable[[Any, Server, PyTree], PyTree]
ServerMemory = Callable[[Plan, Population], Plan]  # the plan with what the server's rule takes


class Rules(NamedTuple):
    """What `federate` was given, with its defaults filled in; lives as long as the algorithm."""

    model: Model
    work: ClientWork  # with what malicious clients do instead
    sampler: Sampler
    uplink: Uplink
    optimizer: optax.GradientTransformation  # the server's
    faults: Faults | None
    asynchronous: FedBuff | None
    exchange: Exchange | None
    lanes: int | None
    mesh: Mesh | None
    server_rows: str | None = "all"  # "touched" ones or "all"; None for either
    table_mesh: Mesh | None = None  # over which item tables are split; None for whole tables on every device
    server_memory: ServerMemory | None = None


def init_state(rules: Rules, key: Key, population: Population) -> State:
    """The state before the first round.

    Args:
        rules: of the rounds.
        key: the run's key.
        population: the clients.

    Returns:
        the state, on every device of the mesh; where tables are split, that is for the caller to see to.
    """
    server = check_server(rules.model, rules.model.init_server(stream(key, "init"), population))
    private = init_private(rules.model, key, population.num_clients, server)
    check_work(rules.work, population, server, private)
    transform_state = init_transform_state(rules.uplink.transform, population.num_clients, server)
    tracked = init_tracked(rules.sampler, rules.uplink.aggregator, population)
    in_flight: Any = ()
    if rules.asynchronous is not None:
        in_flight = launch(_dispatcher(rules, key, population), server)
    state = State(
        round=jnp.int32(0),
        server=server,
        opt_state=rules.optimizer.init(server),
        private=private,
        transform_state=transform_state,
        tracked=tracked,
        in_flight=in_flight,
    )
    return state if rules.table_mesh is not None else keep_replicated(state, rules.mesh)


def plan_rounds(
    rules: Rules, population: Population, stream_clients: int | None = None, touched_rows: int | None = None
) -> Plan:
    """What the engine will do, and the memory that it needs.

    Args:
        rules: of the rounds.
        population: the clients.
        stream_clients: S, clients of a chunk, for rounds in chunks; None for rounds in one piece.
        touched_rows: that a round in chunks is to touch, and works on alone; None for all rows.

    Returns:
        the plan.
    """
    plan = make_plan(
        rules.work,
        rules.uplink,
        cohort_size(rules.sampler, population),
        rules.lanes,
        rules.mesh,
        partial(init_state, rules),
        population,
        stream_clients,
        touched_rows,
    )
    return plan if rules.server_memory is None else rules.server_memory(plan, population)


def run_round(
    rules: Rules, key: Key, state: State, population: Population, *, checks_memory: bool = True
) -> tuple[State, RoundInfo]:
    """One round.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.
        checks_memory: whether a round that does not fit is refused; one that is only looked at need not fit.

    Returns:
        the state after it, and what happened in it.

    Raises:
        ValueError: if the state is of other clients or items than the population, or does not fit.
    """
    # Reads beyond a leaf's end would give the last client's, in silence.
    check_clients(state, population.num_clients, "the population")
    check_items(state, population.num_items, "the population")

    # Sample.
    cohort = draw_clients(rules, key, state, population)
    plan = plan_rounds(rules, population)
    if checks_memory:
        check_fits(plan, rules.uplink.aggregator.fixed)

    # Send the model, train locally, send updates back.
    train = cohort_trainer(rules, plan, key, state, population, cohort)
    result, sound = run_sound(train, cohort.alive)

    # Aggregate; the clients whose round counts store what they learnt.
    def write_store(totals: Any, skipped: jax.Array) -> ClientStore:
        new = result.store
        if rules.exchange is not None:
            new = new._replace(private=rules.exchange(totals, state.server, new.private))
        return _write_store(state.store, cohort.clients.id, sound & ~skipped, new)

    return finish_round(rules, key, state, population, cohort, result, sound, write_store)[:2]


def finish_round(
    rules: Rules,
    key: Key,
    state: State,
    population: Population,
    cohort: DrawnCohort,
    result: CohortResult,
    sound: jax.Array,
    write_store: Callable[[Any, jax.Array], ClientStore],
) -> tuple[State, RoundInfo, ServerStep]:
    """The round after its local training: aggregate, step, store, report.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.
        cohort: who was drawn.
        result: what came of its training.
        sound: bool[C], who took part with numbers that count.
        write_store: (totals; bool[], whether the server's step was not taken) -> what all clients keep after the
            round, leaves [N, ...].

    Returns:
        the state after it, what happened in it, and the server's step.
    """
    aggregator = rules.uplink.aggregator
    clients = cohort.clients

    # What the aggregator needs of the population, besides the cohort's sums.
    totals = decode_sums(aggregator, result.totals)
    if aggregator.rows.heat:
        totals = add_heat(cast("Totals", totals), population)

    # Of a round that has too few clients, nobody's update counts.
    trained = sound & (clients.num_examples > 0)
    enough = trained.sum() >= aggregator.min_clients
    noise_key = stream(key, "server noise")
    trained = trained & enough

    # The server steps, and the clients store.
    step = step_server(aggregator, rules.optimizer, state, totals, noise_key, enough)
    store = write_store(totals, step.skipped)
    losses: Any = mean_losses(result.loss_sums) if rules.uplink.records_losses else ()
    tracked = update_tracked(aggregator, state.tracked, clients.id, trained & ~step.skipped, losses)
    next_round = state.round + 1
    in_flight = store_model(cohort.in_flight, step.server, next_round)

    info = _report(result, cohort, trained, sound, step, state.round)
    state = State(
        round=next_round,
        server=step.server,
        opt_state=step.opt_state,
        private=store.private,
        transform_state=store.transform_state,
        tracked=tracked,
        in_flight=in_flight,
        adversary=state.adversary,
    )
    return keep_replicated(state, rules.mesh), info, step


def draw_clients(rules: Rules, key: Key, state: State, population: Population) -> DrawnCohort:
    """Who takes part in a round.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.

    Returns:
        the cohort.
    """
    if rules.asynchronous is None:
        return sample_cohort(rules.sampler, rules.faults, rules.work, key, state, population)
    return await_cohort(_dispatcher(rules, key, population), key, state, population)


def _dispatcher(rules: Rules, key: Key, population: Population) -> Dispatcher:
    """Who starts, and when it arrives: only of asynchronous rounds."""
    fedbuff = cast("FedBuff", rules.asynchronous)
    return Dispatcher(fedbuff, rules.work, stream(key, "cohort"), stream(key, "faults"), population)


def cohort_trainer(
    rules: Rules,
    plan: Plan,
    key: Key,
    state: State,
    population: Population,
    drawn: DrawnCohort,
    store_index: jax.Array | None = None,
    located: Client | None = None,
) -> Callable[[jax.Array, jax.Array], CohortResult]:
    """The cohort's local training, for whoever of it takes part: it may be run again without the unsound.

    Args:
        rules: of the rounds.
        plan: the engine's choices.
        key: the run's key.
        state: before the round.
        population: the clients.
        drawn: the cohort.
        store_index: int32[C], where in the state's store each client's leaves are; None for its id.
        located: the same clients with their places in a population of the cohort alone; None for one of all.

    Returns:
        the function that `guard.run_sound` takes.
    """
    keys = None if rules.uplink.transform is None else transform_keys(drawn, key, state.round)

    def train(alive: jax.Array, check_rows: jax.Array) -> CohortResult:
        present = alive & (drawn.clients.num_examples > 0)
        cohort = Cohort(
            clients=drawn.clients if located is None else located,
            alive=alive,
            transform_keys=keys,
            batch_limit=drawn.batch_limit,
            weight_factor=mixture_weights(rules.uplink.aggregator, state.tracked, drawn.clients.id, present),
            versions=drawn.versions,
            store_index=store_index,
        )
        return run_cohort(
            rules.work,
            rules.uplink,
            population,
            state.server,
            state.store,
            cohort,
            lanes=plan.lanes,
            mesh=rules.mesh,
            check_rows=check_rows,
        )

    return train


def _write_store(store: ClientStore, ids: jax.Array, storing: jax.Array, new: ClientStore) -> ClientStore:
    """The store [N, ...] with the leaves [C, ...] of those of the cohort that are `storing` bool[C]."""
    index = jnp.where(storing, ids, num_rows(store))  # an empty slot of the cohort stores nothing
    return set_rows(store, index, new)


def _report(
    result: CohortResult,
    cohort: DrawnCohort,
    trained: jax.Array,
    sound: jax.Array,
    step: ServerStep,
    round_: jax.Array,
) -> RoundInfo:
    report = result.report
    count = trained.sum(dtype=jnp.int32)
    staleness = jnp.float32(0)
    if cohort.start_rounds is not None:
        steps = jnp.where(trained, round_ - cohort.start_rounds, 0).sum(dtype=jnp.float32)
        staleness = steps / jnp.maximum(count, 1)
    unsound = cohort.alive & ~sound
    missing = cohort.drawn & ~trained & ~unsound & (cohort.clients.num_examples > 0)
    return RoundInfo(
        loss=report.loss / jnp.maximum(report.examples, 1.0),
        clients=count,
        examples=report.examples,
        batches=report.batches,
        lane_steps=report.lane_steps,
        rows=report.rows,
        update_norm=step.norm,
        saturated=report.saturated,
        signal=step.signal,
        unsound=unsound.sum(dtype=jnp.int32),
        skipped=step.skipped.astype(jnp.int32),
        missing=missing.sum(dtype=jnp.int32) + cohort.num_expired,
        staleness=staleness,
    )
