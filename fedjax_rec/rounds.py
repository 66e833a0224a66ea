"""A round of the rules that `federate` puts together: sample, send, train locally, send back, aggregate, store."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from fedjax_rec.aggregators import add_heat
from fedjax_rec.asynchronous import Crew, FedBuff, keep_model, take_off
from fedjax_rec.clients import stream
from fedjax_rec.cohorts import Cohort, await_cohort, gather_cohort, transform_keys
from fedjax_rec.devices import keep_replicated
from fedjax_rec.engine import Result, run_cohort
from fedjax_rec.faults import Faults
from fedjax_rec.guard import run_sound
from fedjax_rec.initial import init_memory, init_private
from fedjax_rec.knowledge import init_known, learn, share_of
from fedjax_rec.plan import check_fits, make_plan
from fedjax_rec.population import Population
from fedjax_rec.schedules import Uplink
from fedjax_rec.stepping import Stepped, step_server
from fedjax_rec.tables import num_rows
from fedjax_rec.types import (
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


class Rules(NamedTuple):
    """What `federate` was given, with its defaults filled in."""

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


def init_state(rules: Rules, key: Key, population: Population) -> State:
    """The state before the first round.

    Args:
        rules: of the rounds.
        key: the run's key.
        population: the clients.

    Returns:
        the state, on every device of the mesh.

    Example:
        see `fedjax_rec.federate.federate`, whose `init` this is.
    """
    model, transform, aggregator = rules.model, rules.uplink.transform, rules.uplink.aggregator
    server = model.init_server(stream(key, "init"), population)
    private = init_private(model, key, population.num_clients, server)
    memory = init_memory(transform, population.num_clients, server)
    known = init_known(rules.sampler, aggregator, population)
    flight = () if rules.asynchronous is None else take_off(_crew(rules, key, population), server)
    state = State(jnp.int32(0), server, rules.optimizer.init(server), private, memory, known, flight)
    return keep_replicated(state, rules.mesh)


def plan_rounds(rules: Rules, population: Population, stream_clients: int | None = None) -> Plan:
    """What the engine will do, and the memory that it needs.

    Args:
        rules: of the rounds.
        population: the clients.
        stream_clients: S, clients of a part, for rounds in parts; None for rounds in one piece.

    Returns:
        the plan.

    Example:
        see `fedjax_rec.federate.federate`, whose `plan` this is.
    """
    start = partial(init_state, rules)
    choices = (rules.lanes, rules.mesh, start, population, stream_clients)
    return make_plan(rules.work, rules.uplink, rules.sampler, *choices)


def one_round(rules: Rules, key: Key, state: State, population: Population) -> tuple[State, RoundInfo]:
    """One round.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.

    Returns:
        the state after it, and what happened in it.

    Example:
        see `fedjax_rec.federate.federate`, whose `round` this is.
    """
    present, chosen = gather_clients(rules, key, state, population), plan_rounds(rules, population)
    check_fits(chosen, rules.uplink.aggregator.fixed)
    result, sound = run_sound(attempts(rules, chosen, key, state, population, present), present.alive)

    def store(totals: Any, skipped: jax.Array) -> PyTree:
        exchange = rules.exchange
        sent = result.private if exchange is None else exchange(totals, state.server, result.private)
        return _store(state, present.clients.id, sound & ~skipped, (sent, result.memory))

    return end_round(rules, key, state, population, present, result, sound, store)


def end_round(
    rules: Rules,
    key: Key,
    state: State,
    population: Population,
    present: Cohort,
    result: Result,
    sound: jax.Array,
    store: Callable[[Any, jax.Array], PyTree],
) -> tuple[State, RoundInfo]:
    """The round after its local training: aggregate, step, store, report.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.
        present: the cohort.
        result: what came of its training.
        sound: bool[C], who took part with numbers that count.
        store: (totals; bool[], whether the server's step was not taken) -> all clients' private leaves and
            memories after the round, [N, ...].

    Returns:
        the state after it, and what happened in it.

    Example:
        see `one_round`, which calls it.
    """
    aggregator, clients, now = rules.uplink.aggregator, present.clients, state.round
    totals = add_heat(cast("Totals", result.totals), population) if aggregator.heated else result.totals
    trained = sound & (clients.num_examples > 0)
    enough, secret = trained.sum() >= aggregator.least, stream(key, "privacy")
    trained = trained & enough  # of a round that has too few, nobody's update counts
    stepped = step_server(aggregator, rules.optimizer, state, totals, secret, enough)
    private, memory = store(totals, stepped.skipped)
    known = learn(aggregator, state.known, clients.id, trained & ~stepped.skipped, result.losses)
    done = now + 1
    flight = keep_model(present.flight, stepped.server, done)
    info = _report(result, present, trained, sound, stepped, now)
    state = State(done, stepped.server, stepped.opt_state, private, memory, known, flight)
    return keep_replicated(state, rules.mesh), info


def _crew(rules: Rules, key: Key, population: Population) -> Crew:
    """Who flies: only of asynchronous rounds."""
    fedbuff = cast("FedBuff", rules.asynchronous)
    return Crew(fedbuff, rules.work, stream(key, "cohort"), stream(key, "faults"), population)


def gather_clients(rules: Rules, key: Key, state: State, population: Population) -> Cohort:
    """Who takes part in a round.

    Args:
        rules: of the rounds.
        key: the run's key.
        state: before it.
        population: the clients.

    Returns:
        the cohort.

    Example:
        see `one_round`, which calls it.
    """
    if rules.asynchronous is None:
        return gather_cohort(rules.sampler, rules.faults, rules.work, key, state, population)
    return await_cohort(_crew(rules, key, population), key, state, population)


def attempts(
    rules: Rules,
    chosen: Plan,
    key: Key,
    state: State,
    population: Population,
    present: Cohort,
    place: jax.Array | None = None,
) -> Callable[[jax.Array, jax.Array], Result]:
    """The cohort's local training, for whoever of it takes part: it may be tried again without the unsound.

    Args:
        rules: of the rounds.
        chosen: the engine's choices.
        key: the run's key.
        state: before the round.
        population: the clients.
        present: the cohort.
        place: int32[C], where in the state's private leaves and memories each client's are; None for its id.

    Returns:
        the function that `guard.run_sound` takes.

    Example:
        see `one_round`, which calls it.
    """
    clients, aggregator, transform = present.clients, rules.uplink.aggregator, rules.uplink.transform
    noise = None if transform is None else transform_keys(present, key, state.round)

    def attempt(alive: jax.Array, watched: jax.Array) -> Result:
        start = (state.server, state.private, clients, alive)
        places: Any = {"lanes": chosen.lanes, "mesh": rules.mesh, "noise": noise, "memory": state.memory}
        share = share_of(aggregator, state.known, clients.id, alive & (clients.num_examples > 0))
        places |= {"watched": watched, "limit": present.limit, "share": share}
        places |= {"versions": present.versions, "place": place}
        return run_cohort(rules.work, rules.uplink, population, *start, **places)

    return attempt


def _store(state: State, ids: jax.Array, storing: jax.Array, new: PyTree) -> PyTree:
    """Private leaves and memories [N, ...] with those of the cohort's clients that are `storing` bool[C]."""
    kept = (state.private, state.memory)
    place = jnp.where(storing, ids, num_rows(kept))  # an empty slot of the cohort stores nothing
    return jax.tree.map(lambda p, x: p.at[place].set(x, mode="drop"), kept, new)


def _report(
    result: Result, present: Cohort, trained: jax.Array, sound: jax.Array, stepped: Stepped, now: jax.Array
) -> RoundInfo:
    report, count = result.report, trained.sum(dtype=jnp.int32)
    staleness = jnp.float32(0)
    if present.births is not None:
        steps = jnp.where(trained, now - present.births, 0).sum(dtype=jnp.float32)
        staleness = steps / jnp.maximum(count, 1)
    unsound = present.alive & ~sound
    missing = present.drawn & ~trained & ~unsound & (present.clients.num_examples > 0)
    return RoundInfo(
        loss=report.loss / jnp.maximum(report.examples, 1.0),
        clients=count,
        examples=report.examples,
        batches=result.batches,
        lane_steps=result.lane_steps,
        rows=report.rows,
        update_norm=stepped.norm,
        saturated=report.saturated,
        signal=stepped.signal,
        unsound=unsound.sum(dtype=jnp.int32),
        skipped=stepped.skipped.astype(jnp.int32),
        missing=missing.sum(dtype=jnp.int32) + present.thrown,
        staleness=staleness,
    )
