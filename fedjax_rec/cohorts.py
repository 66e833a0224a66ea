"""Who takes part in a round, with all that their training needs: a drawn cohort, or those who arrive unasked."""

from typing import Any, NamedTuple

import jax

from fedjax_rec.asynchronous import Crew, Flight, land, staleness_scale
from fedjax_rec.clients import client_keys, keys_since, name_clients, stream
from fedjax_rec.faults import Faults, strike
from fedjax_rec.knowledge import draw_cohort
from fedjax_rec.population import Population
from fedjax_rec.schedules import Versions
from fedjax_rec.types import Client, ClientWork, Key, Sampler, State


class Cohort(NamedTuple):
    """The clients of a round."""

    clients: Client  # leaves [C, ...]
    drawn: jax.Array  # bool[C], slots that are taken
    alive: jax.Array  # bool[C], who takes part
    limit: jax.Array | None  # int32[C], local batches that each does at most
    births: jax.Array | None = None  # int32[C], rounds in which they started, where these differ
    versions: Versions | None = None  # the models that they were sent, where these differ
    flight: Any = ()  # `Flight`: who is still under way
    thrown: jax.Array | int = 0  # int32[], who came too late to be looked at


def gather_cohort(
    sampler: Sampler,
    faults: Faults | None,
    work: ClientWork,
    key: Key,
    state: State,
    population: Population,
) -> Cohort:
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

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    round_ = state.round
    cohort_key = jax.random.fold_in(stream(key, "cohort"), round_)
    ids, drawn = draw_cohort(sampler, cohort_key, population, state.known, round_)
    clients = name_clients(jax.random.fold_in(stream(key, "client"), round_), ids, population)
    if faults is None:
        return Cohort(clients, drawn, drawn, None)
    batches, present = work.batches.num_batches(clients.num_examples), drawn & (clients.num_examples > 0)
    alive, limit = strike(faults, stream(key, "faults"), round_, ids, present, batches, work.epochs)
    return Cohort(clients, drawn, alive, limit)


def await_cohort(crew: Crew, key: Key, state: State, population: Population) -> Cohort:
    """Wait until the buffer is full: those who arrive are the cohort.

    Args:
        crew: the rounds and the clients.
        key: the run's.
        state: before the round.
        population: N clients.

    Returns:
        the cohort in order of arrival, each client with the keys of the round in which it started.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    flight: Flight = state.flight
    (ids, births, _, thrown), after = land(crew, flight, state.round)
    clients = name_clients(stream(key, "client"), ids, population)
    clients = clients._replace(key=keys_since(stream(key, "client"), births, ids))
    drawn, staleness, size = (
        ids < population.num_clients,
        state.round - births,
        crew.fedbuff.max_staleness + 1,
    )
    versions = Versions(flight.models, births % size, staleness_scale(staleness, crew.fedbuff.exponent))
    return Cohort(clients, drawn, drawn, None, births, versions, after, thrown)


def transform_keys(cohort: Cohort, key: Key, round_: jax.Array) -> jax.Array:
    """Keys of the clients' transforms.

    Args:
        cohort: of the round.
        key: the run's.
        round_: int32[], its number.

    Returns:
        uint32[C, 2].

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    if cohort.births is None:
        return client_keys(jax.random.fold_in(stream(key, "noise"), round_), cohort.clients.id)
    return keys_since(stream(key, "noise"), cohort.births, cohort.clients.id)
