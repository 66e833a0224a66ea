"""FedBuff: buffered asynchronous rounds, in which slow clients hold nobody up.

`federate(..., asynchronous=FedBuff(buffer=K, concurrency=M))` keeps M clients at work at all times. Whoever is
done hands in an update of the model that it was *sent*, and a fresh client starts at once from the newest. A round
is one flush of the buffer: after K arrivals the server takes its step, and its version goes up by one.

    w_(t+1) = w_t + server_optimizer(aggregate_i  s(tau_i) delta_i),    s(tau) = (1 + tau)^-exponent

tau_i counts the rounds of the server that passed while client i trained. s(tau) scales the update and not its
weight: with the aggregator "mean" the aggregate is sum_i s(tau_i) delta_i / K, as in the paper, with "sum" K times
that; K is less where an update is not finite or a slot stayed empty.

Time is counted as in `faults`: a client takes slowness x local batches, its slowness being exp(spread n_i + jitter
n_it). It does not depend on any parameter, so the K arrivals of a round are found by a small loop over M clocks,
and their clients then train side by side as any cohort does, each on the model of its own version. The server
keeps its last S + 1 models for that. All draws are of (seed, version, client) or (seed, round, arrival): what a
client sends is what `client_update` shows for the state that it started from.

Departures from algorithm 1, each so that one round stays one compiled program:

* a client that has arrived starts again in a later round, not in the same one, so that a buffer holds K different
  clients, whose private parameters are well defined. It needs M + K clients or more;
* an update that is more than S = `max_staleness` rounds old is thrown away and takes no slot of the buffer; it is
  counted in `RoundInfo.missing`, and its client keeps the private parameters that it had. About M / K rounds pass
  while a client trains: an S well below that throws most of the work away;
* where nobody is free to start (most clients have no data), a slot stays empty, and asks again after the time of
  one local batch of a median device; such an arrival is of nobody.

Source: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation", algorithm 1; equal arrival
times go by slot.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.client.population import Population
from fedjax_rec.engine.devices import device_bytes
from fedjax_rec.errors import ParameterError, check_arguments
from fedjax_rec.federation.faults import slowness
from fedjax_rec.rows.permutation import domain, permute_index
from fedjax_rec.types import ClientWork, Key, Server

LOOK = 32  # candidates that are looked at together


class FedBuff(NamedTuple):
    """Asynchronous rounds: how many arrivals make one, how many clients are under way, how old an update may be.

    Example:
        >>> import fedjax_rec as fr
        >>> algorithm = fr.fedmf(dim=4, asynchronous=FedBuff(buffer=10, concurrency=50, spread=0.5))
    """

    buffer: int = 10  # K, arrivals of a round
    concurrency: int = 100  # M, clients under way
    max_staleness: int = 20  # S, the most rounds that may have passed while a client trained
    exponent: float = 0.5  # of (1 + tau)^-exponent; 0: old updates count as new ones
    spread: float = 0.0  # standard deviation of the log of a device's slowness
    jitter: float = 0.0  # the same, from one start to the next


class InFlight(NamedTuple):
    """The clients that are training, carried from round to round."""

    ids: jax.Array  # int32[M]; N = nobody
    start_rounds: jax.Array  # int32[M], version of the model that each was sent
    time_left: jax.Array  # float32[M], until each arrives, in local batches of a median device
    models: Any  # Server, leaves [S + 1, ...]; version v is at v % (S + 1)


class Arrivals(NamedTuple):
    """Who arrives in a round, in this order."""

    ids: jax.Array  # int32[K]; N = nobody
    start_rounds: jax.Array  # int32[K]
    num_filled: jax.Array  # int32[], slots of the buffer that are taken
    num_expired: jax.Array  # int32[], who came besides and was too stale


class Dispatcher(NamedTuple):
    """What says how long clients take, and who may start; lives while one function is traced."""

    fedbuff: FedBuff
    work: ClientWork
    start_key: Key  # the run's stream of who starts
    device_key: Key  # the run's stream of faults
    population: Population


def check_fedbuff(fedbuff: FedBuff) -> None:
    """Refuse numbers out of range.

    Args:
        fedbuff: the rounds.

    Raises:
        ParameterError: naming the field and the way out.

    Example:
        >>> check_fedbuff(FedBuff(buffer=0))
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: FedBuff.buffer=0 is out of range; give at least 1 arrival
    """
    check_arguments(FedBuff, fedbuff._asdict())
    for name, least, most, words in (
        ("buffer", 1, float("inf"), "at least 1 arrival"),
        ("concurrency", 1, float("inf"), "at least 1 client"),
        ("max_staleness", 0, float("inf"), "a number of steps of at least 0"),
        ("exponent", 0, float("inf"), "a number of at least 0"),
        ("spread", 0, 10.0, "a number from 0 to 10"),
        ("jitter", 0, 10.0, "a number from 0 to 10"),
    ):
        value = getattr(fedbuff, name)
        if not least <= value <= most:
            raise ParameterError(f"{{FedBuff.{name}}}={value} is out of range; give {words}")


def launch(dispatcher: Dispatcher, server: Server) -> InFlight:
    """Send the model to the first M clients.

    Args:
        dispatcher: the rounds and the clients.
        server: the model at the start.

    Returns:
        M different clients at version 0.

    Raises:
        ValueError: if there are fewer than M + K clients, or the models cannot fit.
    """
    fedbuff = dispatcher.fedbuff
    num_clients = dispatcher.population.num_clients
    if num_clients < fedbuff.concurrency + fedbuff.buffer:
        raise ParameterError(
            f"{fedbuff.concurrency} clients under way and {fedbuff.buffer} that have arrived are more than the "
            f"population of {num_clients}; lower {{FedBuff.concurrency}} or {{FedBuff.buffer}}"
        )
    _check_room(fedbuff.max_staleness + 1, server)
    key = jax.random.fold_in(dispatcher.start_key, 0)

    def start_one(slot: jax.Array, ids: jax.Array) -> jax.Array:
        return ids.at[slot].set(_draw_free(jax.random.fold_in(key, slot), ids, dispatcher.population))

    nobody = jnp.full(fedbuff.concurrency, num_clients, jnp.int32)
    ids = jax.lax.fori_loop(0, fedbuff.concurrency, start_one, nobody)
    start_rounds = jnp.zeros_like(ids)
    models = jax.tree.map(lambda x: jnp.broadcast_to(x, (fedbuff.max_staleness + 1, *x.shape)), server)
    return InFlight(ids, start_rounds, _durations(dispatcher, ids, start_rounds), models)


def _check_room(versions: int, server: Server) -> None:
    need = versions * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(server))
    if need > (room := device_bytes()):
        raise ParameterError(
            f"the last {versions} models that clients may train from need {need / 2**30:,.1f} GiB, the device has "
            f"{room / 2**30:,.1f}; lower {{FedBuff.max_staleness}} or {{dim}}"
        )


def next_arrivals(
    dispatcher: Dispatcher, in_flight: InFlight, version: jax.Array
) -> tuple[Arrivals, InFlight]:
    """The K arrivals of a round, each followed by the start of another client.

    The one after the last arrival starts from the model that the buffer has made.

    Args:
        dispatcher: the rounds and the clients.
        in_flight: who is training.
        version: int32[], of the model.

    Returns:
        who arrives, all of them different, and who trains afterwards; the models stay. It ends: who starts in this
        round is not too stale in it.
    """
    size = dispatcher.fedbuff.buffer
    num_clients = dispatcher.population.num_clients
    oldest = version - dispatcher.fedbuff.max_staleness
    key = jax.random.fold_in(dispatcher.start_key, version + 1)  # 0 is that of the first clients

    def is_left(carry: tuple[Arrivals, InFlight, jax.Array]) -> jax.Array:
        return carry[0].num_filled < size

    def arrive(carry: tuple[Arrivals, InFlight, jax.Array]) -> tuple[Arrivals, InFlight, jax.Array]:
        arrivals, training, _ = carry

        # The next to arrive takes a slot of the buffer, or is too stale.
        slot = jnp.argmin(training.time_left)
        now = training.time_left[slot]
        event = arrivals.num_filled + arrivals.num_expired
        arrivals = _receive(arrivals, training.ids[slot], training.start_rounds[slot], oldest, num_clients)

        # Another client starts in its place, from the newest model.
        taken = jnp.concatenate([training.ids, arrivals.ids])
        fresh = _draw_free(jax.random.fold_in(key, event), taken, dispatcher.population)
        start_round = version + (arrivals.num_filled == size)
        duration = _durations(dispatcher, fresh[None], start_round[None])[0]
        training = InFlight(
            ids=training.ids.at[slot].set(fresh),
            start_rounds=training.start_rounds.at[slot].set(start_round),
            time_left=training.time_left.at[slot].set(now + duration),
            models=(),
        )
        return arrivals, training, now

    nobody = Arrivals(
        ids=jnp.full(size, num_clients, jnp.int32),
        start_rounds=jnp.zeros(size, jnp.int32),
        num_filled=jnp.int32(0),
        num_expired=jnp.int32(0),
    )
    start = (nobody, in_flight._replace(models=()), jnp.float32(0))
    arrivals, training, now = jax.lax.while_loop(is_left, arrive, start)
    return arrivals, training._replace(time_left=training.time_left - now, models=in_flight.models)


def _receive(
    arrivals: Arrivals, client: jax.Array, start_round: jax.Array, oldest: jax.Array, num_clients: int
) -> Arrivals:
    """An arrival: it fills a slot, as nobody's does, or has expired."""
    fills = (start_round >= oldest) | (client == num_clients)
    slot = jnp.where(fills, arrivals.num_filled, arrivals.ids.shape[0])
    return Arrivals(
        ids=arrivals.ids.at[slot].set(client, mode="drop"),
        start_rounds=arrivals.start_rounds.at[slot].set(start_round, mode="drop"),
        num_filled=arrivals.num_filled + fills,
        num_expired=arrivals.num_expired + ~fills,
    )


def store_model(in_flight: InFlight | tuple[()], server: Server, version: jax.Array) -> InFlight | tuple[()]:
    """Put a new model in the place of the oldest.

    Args:
        in_flight: with the models so far; () where rounds are not asynchronous.
        server: the new one.
        version: int32[], its number.

    Returns:
        the same with the last S + 1 models.

    Example:
        >>> old = InFlight((), (), (), jnp.arange(3.0))
        >>> store_model(old, jnp.float32(7), jnp.int32(4)).models.tolist()
        [0.0, 7.0, 2.0]
    """

    def put(models: jax.Array, new: jax.Array) -> jax.Array:
        return models.at[version % models.shape[0]].set(new)

    if not isinstance(in_flight, InFlight):
        return in_flight
    return in_flight._replace(models=jax.tree.map(put, in_flight.models, server))


def staleness_scale(staleness: jax.Array, exponent: float) -> jax.Array:
    """What an update is multiplied by: s(tau) = (1 + tau)^-exponent.

    Args:
        staleness: int32[...], tau, at least 0.
        exponent: 0 or more.

    Returns:
        float32[...].

    Example:
        >>> staleness_scale(jnp.array([0, 3]), 0.5).tolist()
        [1.0, 0.5]
    """
    return (1.0 + staleness.astype(jnp.float32)) ** -exponent


def _draw_free(key: Key, taken: jax.Array, population: Population) -> jax.Array:
    """int32[], a client with data that is not taken, uniformly: the first of a keyed permutation; N for nobody."""
    num_clients = population.num_clients
    words = jax.random.key_data(key).astype(jnp.uint32)
    span = domain(num_clients)

    def is_searching(search: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (search[0] < span) & (search[1] == num_clients)

    def look(search: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids = permute_index(words, search[0] + jnp.arange(LOOK), num_clients)
        free = ~(ids[:, None] == taken[None, :]).any(1)
        fits = free & (population.offsets[ids + 1] > population.offsets[ids])  # N, outside, has no data
        return search[0] + LOOK, jnp.where(fits.any(), ids[jnp.argmax(fits)], num_clients)

    return jax.lax.while_loop(is_searching, look, (jnp.int32(0), jnp.int32(num_clients)))[1]


def _durations(dispatcher: Dispatcher, ids: jax.Array, start_rounds: jax.Array) -> jax.Array:
    """float32[n], how long clients take that started at these versions; nobody takes one local batch."""
    population = dispatcher.population
    fedbuff = dispatcher.fedbuff
    own = jax.vmap(lambda i: jax.random.fold_in(dispatcher.device_key, i))(ids)
    now = jax.vmap(lambda one, t: jax.random.fold_in(one, t + 1))(own, start_rounds)
    slow = slowness(own, now, spread=fedbuff.spread, jitter=fedbuff.jitter)
    examples = population.offsets[ids + 1] - population.offsets[ids]
    batches = dispatcher.work.batches.num_batches(examples) * dispatcher.work.epochs
    return jnp.where(ids < population.num_clients, slow * batches, 1.0).astype(jnp.float32)
