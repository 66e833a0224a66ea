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
    Transform,
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


def plan_rounds(rules: Rules, population: Population) -> Plan:
    """What the engine will do, and the memory that it needs.

    Args:
        rules: of the rounds.
        population: the clients.

    Returns:
        the plan.

    Example:
        see `fedjax_rec.federate.federate`, whose `plan` this is.
    """
    start = partial(init_state, rules)
    return make_plan(rules.work, rules.uplink, rules.sampler, rules.lanes, rules.mesh, start, population)


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
    present, chosen = _gather(rules, key, state, population), plan_rounds(rules, population)
    aggregator, clients, now = rules.uplink.aggregator, present.clients, state.round
    check_fits(chosen, aggregator.fixed)
    result, sound = run_sound(_attempts(rules, chosen, key, state, population, present), present.alive)
    totals = add_heat(cast("Totals", result.totals), population) if aggregator.heated else result.totals
    trained = sound & (clients.num_examples > 0)
    enough, secret = trained.sum() >= aggregator.least, stream(key, "privacy")
    trained = trained & enough  # of a round that has too few, nobody's update counts
    stepped = step_server(aggregator, rules.optimizer, state, totals, secret, enough)
    exchange = rules.exchange
    sent = result.private if exchange is None else exchange(totals, state.server, result.private)
    private, memory = _store(state, clients.id, sound & ~stepped.skipped, (sent, result.memory))
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


def _gather(rules: Rules, key: Key, state: State, population: Population) -> Cohort:
    if rules.asynchronous is None:
        return gather_cohort(rules.sampler, rules.faults, rules.work, key, state, population)
    return await_cohort(_crew(rules, key, population), key, state, population)


def _attempts(
    rules: Rules, chosen: Plan, key: Key, state: State, population: Population, present: Cohort
) -> Callable[[jax.Array, jax.Array], Result]:
    """The cohort's local training, for whoever of it takes part: it may be tried again without the unsound."""
    clients, aggregator, transform = present.clients, rules.uplink.aggregator, rules.uplink.transform
    noise = None if transform is None else transform_keys(present, key, state.round)

    def attempt(alive: jax.Array, watched: jax.Array) -> Result:
        start = (state.server, state.private, clients, alive)
        places: Any = {"lanes": chosen.lanes, "mesh": rules.mesh, "noise": noise, "memory": state.memory}
        share = share_of(aggregator, state.known, clients.id, alive & (clients.num_examples > 0))
        places |= {"watched": watched, "limit": present.limit, "share": share}
        return run_cohort(rules.work, rules.uplink, population, *start, **places, versions=present.versions)

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


def init_private(model: Model, key: Key, num_clients: int, server: Server) -> PyTree:
    """Every client's private leaves at the start: each from its own key, and those with which all start alike.

    Args:
        model: how parameters start.
        key: the run's key.
        num_clients: N.
        server: the global model.

    Returns:
        leaves [N, ...].

    Example:
        >>> from fedjax_rec.algorithms.fedmf import matrix_factorisation
        >>> model = matrix_factorisation(4, 0.1, item_bias=True, ratings=False)
        >>> init_private(model, jax.random.key(0), 3, Server({}, {}))["vector"].shape
        (3, 4)
    """
    start = stream(key, "private")
    own = jax.vmap(lambda i: model.init_private(jax.random.fold_in(start, i)))(jnp.arange(num_clients))
    if model.init_alike is None:
        return own
    alike = model.init_alike(start, server)
    return own | jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), alike)


def init_memory(transform: Transform | None, num_clients: int, server: Server) -> PyTree:
    """What every client's transform remembers at the start: alike for all.

    Args:
        transform: of each client's update; None for none.
        num_clients: N.
        server: the global model, for its shapes.

    Returns:
        leaves [N, ...]; () where nothing is remembered.

    Example:
        >>> init_memory(None, 3, Server({}, {}))
        ()
    """
    if transform is None or transform.init is None:
        return ()
    one = transform.init(server)
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (num_clients, *x.shape)), one)
