"""Who takes part in a round: a cohort that is drawn, perhaps with faults, or whoever arrives first."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.client.keys import client_keys, keys_since, name_clients, stream
from fedjax_rec.client.population import Population
from fedjax_rec.engine.lane_steps import ModelVersions
from fedjax_rec.federation.asynchronous import (
    Dispatcher,
    InFlight,
    next_arrivals,
    staleness_scale,
)
from fedjax_rec.federation.faults import Faults, apply_faults
from fedjax_rec.samplers.tracking import draw_cohort
from fedjax_rec.types import Client, ClientWork, Key, Sampler, State


class DrawnCohort(NamedTuple):
    """The clients of a round, before they train."""

    clients: Client  # leaves [C, ...]
    drawn: jax.Array  # bool[C], slots that are taken
    alive: jax.Array  # bool[C], who takes part
    batch_limit: jax.Array | None  # int32[C], local batches that each does at most
    start_rounds: jax.Array | None = None  # int32[C], in which they were sent the model, where these differ
    versions: ModelVersions | None = None  # the models that they were sent, where these differ
    in_flight: Any = ()  # `InFlight`: who is still training
    num_expired: jax.Array | int = 0  # int32[], who came too late to be looked at


def sample_cohort(
    sampler: Sampler,
    faults: Faults | None,
    work: ClientWork,
    key: Key,
    state: State,
    population: Population,
) -> DrawnCohort:
    """Draw a cohort; faults say who of it arrives.

    Args:
        sampler: draws.
        faults: of the clients; None for none.
        work: one client's work.
        key: the run's.
        state: before the round.
        population: N clients.

    Returns:
        the cohort.
    """
    cohort_key = jax.random.fold_in(stream(key, "cohort"), state.round)
    ids, drawn = draw_cohort(sampler, cohort_key, population, state.tracked, state.round)
    client_key = jax.random.fold_in(stream(key, "client"), state.round)
    clients = name_clients(client_key, ids, population)
    if faults is None:
        return DrawnCohort(clients, drawn, alive=drawn, batch_limit=None)
    num_batches = work.batches.num_batches(clients.num_examples)
    present = drawn & (clients.num_examples > 0)
    alive, batch_limit = apply_faults(
        faults, stream(key, "faults"), state.round, ids, present, num_batches, work.epochs
    )
    return DrawnCohort(clients, drawn, alive, batch_limit)


def await_cohort(dispatcher: Dispatcher, key: Key, state: State, population: Population) -> DrawnCohort:
    """Wait until the buffer is full: those who arrive are the cohort.

    Args:
        dispatcher: the rounds and the clients.
        key: the run's.
        state: before the round.
        population: N clients.

    Returns:
        the cohort in order of arrival, each client with the keys of the round in which it started.
    """
    before: InFlight = state.in_flight
    arrivals, in_flight = next_arrivals(dispatcher, before, state.round)

    # each client is who it was when it started
    ids = arrivals.ids
    start_rounds = arrivals.start_rounds
    clients = name_clients(stream(key, "client"), ids, population)
    clients = clients._replace(key=keys_since(stream(key, "client"), start_rounds, ids))

    # and trains from the model that it was sent then
    drawn = ids < population.num_clients
    staleness = state.round - start_rounds
    num_models = dispatcher.fedbuff.max_staleness + 1
    scale = staleness_scale(staleness, dispatcher.fedbuff.exponent)
    versions = ModelVersions(before.models, start_rounds % num_models, scale)
    return DrawnCohort(
        clients,
        drawn,
        alive=drawn,
        batch_limit=None,
        start_rounds=start_rounds,
        versions=versions,
        in_flight=in_flight,
        num_expired=arrivals.num_expired,
    )


def transform_keys(cohort: DrawnCohort, key: Key, round_: jax.Array) -> jax.Array:
    """Keys of the clients' transforms.

    Args:
        cohort: of the round.
        key: the run's.
        round_: int32[], its number.

    Returns:
        uint32[C, 2].
    """
    if cohort.start_rounds is None:
        return client_keys(jax.random.fold_in(stream(key, "transform"), round_), cohort.clients.id)
    return keys_since(stream(key, "transform"), cohort.start_rounds, cohort.clients.id)


def of_clients(cohort: DrawnCohort) -> tuple[Any, ...]:
    """What is of single clients, leaves [C, ...]: the first fields of a cohort whose rounds are in step.

    Args:
        cohort: in step.

    Returns:
        the fields.
    """
    return cohort.clients, cohort.drawn, cohort.alive, cohort.batch_limit


def cut_chunk(cohort: DrawnCohort, first_slot: Any, size: int) -> DrawnCohort:
    """A chunk of a cohort in whole chunks.

    Args:
        cohort: in step.
        first_slot: int32[], of the chunk.
        size: S, clients of a chunk.

    Returns:
        the cohort of these clients.
    """

    def cut(x: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice_in_dim(x, first_slot, size)

    return DrawnCohort(*jax.tree.map(cut, of_clients(cohort)))


def locate(clients: Client, population: Population) -> Client:
    """The same clients with their places in a population of themselves alone.

    Args:
        clients: leaves [S, ...].
        population: of S clients, in this order.

    Returns:
        the clients.
    """
    return clients._replace(offset=population.offsets[:-1], place=jnp.arange(population.num_clients))
