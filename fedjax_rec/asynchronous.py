"""FedBuff: buffered asynchronous rounds, in which slow clients hold nobody up.

`federate(..., asynchronous=FedBuff(buffer=K, concurrency=M))` keeps M clients at work at all times. Whoever is
done hands in an update of the model that it was *sent*, and a fresh client starts at once from the newest. A round
is one flush of the buffer: after K arrivals the server takes its step, and its version goes up by one.

    w_(t+1) = w_t + server_optimizer(aggregate_i  s(tau_i) delta_i),    s(tau) = (1 + tau)^-exponent

tau_i counts the rounds of the server that passed while client i trained. s(tau) scales the update and not its
weight: with the aggregator "mean" the aggregate is sum_i s(tau_i) delta_i / K, as in the paper, with "sum" K times
that; K is less where an update is not finite or a place stayed empty.

Time is counted as in `faults`: a client takes slowness x local batches, its slowness being exp(spread n_i + jitter
n_it). It does not depend on any parameter, so the K arrivals of a round are found by a small loop over M clocks,
and their clients then train side by side as any cohort does, each on the model of its own version. The server
keeps its last S + 1 models for that. All draws are of (seed, version, client) or (seed, round, arrival): what a
client sends is what `client_update` shows for the state that it started from.

Departures from algorithm 1, each so that one round stays one compiled program:

* a client that has arrived starts again in a later round, not in the same one, so that a buffer holds K different
  clients, whose private parameters are well defined. It needs M + K clients or more;
* an update that is more than S = `max_staleness` rounds old is thrown away and takes no place in the buffer; it is
  counted in `RoundInfo.missing`, and its client keeps the private parameters that it had. About M / K rounds pass
  while a client trains: an S well below that throws most of the work away;
* where nobody is free to start (most clients have no data), a place stays empty, and asks again after the time of
  one local batch of a median device; such an arrival is of nobody.

Source: Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation", algorithm 1; equal arrival
times go by place.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.faults import slowness
from fedjax_rec.permutation import domain, scatter_index
from fedjax_rec.plan import device_bytes
from fedjax_rec.population import Population
from fedjax_rec.types import Aggregator, ClientWork, Key, Server

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


class Flight(NamedTuple):
    """What is carried from round to round."""

    ids: jax.Array  # int32[M], who is under way; N = nobody
    births: jax.Array  # int32[M], version of the model that each was sent
    left: jax.Array  # float32[M], time until each arrives, in local batches of a median device
    models: Any  # Server, leaves [S + 1, ...]; version v is at v % (S + 1)


class Landed(NamedTuple):
    """Who arrived in a round, in this order."""

    ids: jax.Array  # int32[K]; N = nobody
    births: jax.Array  # int32[K]
    filled: jax.Array  # int32[], places of the buffer that are taken
    thrown: jax.Array  # int32[], who came besides and was too stale


class Crew(NamedTuple):
    """What tells how long clients take, and who may start."""

    fedbuff: FedBuff
    work: ClientWork
    starts: Key  # the run's stream of who starts
    devices: Key  # the run's stream of faults
    population: Population


def check_fedbuff(fedbuff: FedBuff, aggregator: Aggregator, **others: object) -> None:
    """Refuse numbers out of range, and what asynchronous rounds cannot be combined with.

    Args:
        fedbuff: the rounds.
        aggregator: of the updates.
        others: by name, what else `federate` was given; None where nothing was.

    Raises:
        ValueError: naming the field and the way out.

    Example:
        >>> from fedjax_rec.aggregators import mean
        >>> check_fedbuff(FedBuff(buffer=0), mean())
        Traceback (most recent call last):
        ValueError: FedBuff.buffer=0 is out of range; give at least 1 arrival
    """
    for name, most, words in (
        ("buffer", float("inf"), "at least 1 arrival"),
        ("concurrency", float("inf"), "at least 1 client"),
        ("max_staleness", float("inf"), "a number of steps of at least 0"),
        ("exponent", float("inf"), "a number of at least 0"),
        ("spread", 10.0, "a number from 0 to 10"),
        ("jitter", 10.0, "a number from 0 to 10"),
    ):
        value = getattr(fedbuff, name)
        if not (name in ("buffer", "concurrency")) <= value <= most:
            raise ValueError(f"FedBuff.{name}={value} is out of range; give {words}")
    given = others | {"noise": aggregator.noise, "stacked": aggregator.stacked or None}
    given["losses"] = aggregator.hears_losses or None
    given["coarse"] = (aggregator.fixed is not None and aggregator.fixed.modulus < 32) or None
    for name, (what, way_out) in REFUSED.items():
        if given.get(name) is not None:
            raise ValueError(f"asynchronous rounds cannot have {what}; {way_out}")


REFUSED = {  # what else `federate` was given: why it cannot be, and the way out
    "sampler": (
        "a sampler, since who arrives takes part",
        "leave it out, and say with FedBuff.concurrency how many clients are under way",
    ),
    "cohort": (
        "a cohort, since nobody waits for one",
        "leave it out for FedBuff.buffer, arrivals of a round",
    ),
    "faults": (
        "faults, which are of a cohort and its deadline",
        "leave them out for FedBuff.spread and FedBuff.jitter, the slowness of devices",
    ),
    "exchange": ("an algorithm that answers a whole cohort at once", "choose another, such as pfedrec"),
    "send": (
        "an algorithm whose clients send something else than changes of the model, which must not be scaled",
        "choose another, such as fedmf",
    ),
    "join": ("malicious clients that plan for the cohort of a round", "leave the adversary out"),
    "noise": (
        "a server that adds noise, for no accountant covers clients who take part as they arrive",
        "train without noise",
    ),
    "coarse": (
        "sums of few bits, for what is stale is scaled after it was rounded without bias",
        "use a modulus of 32 bits, or sums of floats such as aggregator='mean'",
    ),
    "losses": (
        "an aggregator that goes by losses, for here they are of different models",
        "use a sum or a mean, such as aggregator='mean'",
    ),
    "stacked": (
        "an aggregator that compares updates, for here they change different models",
        "use a sum or a mean, such as aggregator='mean'",
    ),
}


def take_off(crew: Crew, server: Server) -> Flight:
    """Send the first M clients on their way.

    Args:
        crew: the rounds and the clients.
        server: the model at the start.

    Returns:
        M different clients at version 0.

    Raises:
        ValueError: if there are fewer than M + K clients, or the models cannot fit.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    fedbuff, many = crew.fedbuff, crew.population.num_clients
    if many < fedbuff.concurrency + fedbuff.buffer:
        raise ValueError(
            f"{fedbuff.concurrency} clients under way and {fedbuff.buffer} that have arrived are more than the "
            f"population of {many}; lower FedBuff.concurrency or FedBuff.buffer"
        )
    _check_room(fedbuff.max_staleness + 1, server)
    key = jax.random.fold_in(crew.starts, 0)

    def send(place: jax.Array, ids: jax.Array) -> jax.Array:
        return ids.at[place].set(_choose(jax.random.fold_in(key, place), ids, crew.population))

    ids = jax.lax.fori_loop(0, fedbuff.concurrency, send, jnp.full(fedbuff.concurrency, many, jnp.int32))
    births = jnp.zeros_like(ids)
    models = jax.tree.map(lambda x: jnp.broadcast_to(x, (fedbuff.max_staleness + 1, *x.shape)), server)
    return Flight(ids, births, _durations(crew, ids, births), models)


def _check_room(versions: int, server: Server) -> None:
    need = versions * sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(server))
    if need > (room := device_bytes()):
        raise ValueError(
            f"the last {versions} models that clients may train from need {need / 2**30:,.1f} GiB, the device has "
            f"{room / 2**30:,.1f}; lower --max-staleness (FedBuff.max_staleness) or --dim"
        )


def land(crew: Crew, flight: Flight, version: jax.Array) -> tuple[Landed, Flight]:
    """The K arrivals of a round, each followed by the start of another client.

    The one after the last arrival starts from the model that the buffer has made.

    Args:
        crew: the rounds and the clients.
        flight: who is under way.
        version: int32[], of the model.

    Returns:
        who arrived, all of them different, and who is under way afterwards; the models stay. It ends: who starts
        in this round is not too stale in it.

    Example:
        see `fedjax_rec.federate.federate`, which calls it.
    """
    size, many = crew.fedbuff.buffer, crew.population.num_clients
    key = jax.random.fold_in(crew.starts, version + 1)  # 0 is that of the first clients

    def arrive(carry: tuple[Landed, Flight, jax.Array]) -> tuple[Landed, Flight, jax.Array]:
        landed, under, _ = carry
        place = jnp.argmin(under.left)
        now, client, event = under.left[place], under.ids[place], landed.filled + landed.thrown
        landed = _receive(landed, client, under.births[place], version - crew.fedbuff.max_staleness, many)
        taken = jnp.concatenate([under.ids, landed.ids])
        fresh = _choose(jax.random.fold_in(key, event), taken, crew.population)
        birth = version + (landed.filled == size)
        time = _durations(crew, fresh[None], birth[None])[0]
        ids, births = under.ids.at[place].set(fresh), under.births.at[place].set(birth)
        return landed, Flight(ids, births, under.left.at[place].set(now + time), ()), now

    nobody = jnp.full(size, many, jnp.int32), jnp.zeros(size, jnp.int32)
    start = (Landed(*nobody, jnp.int32(0), jnp.int32(0)), flight._replace(models=()), jnp.float32(0))
    landed, under, now = jax.lax.while_loop(lambda carry: carry[0].filled < size, arrive, start)
    return landed, under._replace(left=under.left - now, models=flight.models)


def _receive(landed: Landed, client: jax.Array, birth: jax.Array, oldest: jax.Array, many: int) -> Landed:
    """An arrival: it fills a place, as nobody's does, or is thrown away."""
    fills = (birth >= oldest) | (client == many)
    place = jnp.where(fills, landed.filled, landed.ids.shape[0])
    return Landed(
        landed.ids.at[place].set(client, mode="drop"),
        landed.births.at[place].set(birth, mode="drop"),
        landed.filled + fills,
        landed.thrown + ~fills,
    )


def keep_model(flight: Flight | tuple[()], server: Server, version: jax.Array) -> Flight | tuple[()]:
    """Put a new model in the place of the oldest.

    Args:
        flight: with the models so far; () where rounds are not asynchronous.
        server: the new one.
        version: int32[], its number.

    Returns:
        the flight with the last S + 1 models.

    Example:
        >>> old = Flight((), (), (), jnp.arange(3.0))
        >>> keep_model(old, jnp.float32(7), jnp.int32(4)).models.tolist()
        [0.0, 7.0, 2.0]
    """

    def put(models: jax.Array, new: jax.Array) -> jax.Array:
        return models.at[version % models.shape[0]].set(new)

    if not isinstance(flight, Flight):
        return flight
    return flight._replace(models=jax.tree.map(put, flight.models, server))


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


def _choose(key: Key, taken: jax.Array, population: Population) -> jax.Array:
    """int32[], a client with data that is not taken, uniformly: the first of a keyed permutation; N for nobody."""
    many, words = population.num_clients, jax.random.key_data(key).astype(jnp.uint32)
    span = domain(many)

    def searching(search: tuple[jax.Array, jax.Array]) -> jax.Array:
        return (search[0] < span) & (search[1] == many)

    def look(search: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        ids = scatter_index(words, search[0] + jnp.arange(LOOK), many)
        free = ~(ids[:, None] == taken[None, :]).any(1)
        fits = free & (population.offsets[ids + 1] > population.offsets[ids])  # N, outside, has no data
        return search[0] + LOOK, jnp.where(fits.any(), ids[jnp.argmax(fits)], many)

    return jax.lax.while_loop(searching, look, (jnp.int32(0), jnp.int32(many)))[1]


def _durations(crew: Crew, ids: jax.Array, births: jax.Array) -> jax.Array:
    """float32[n], how long clients take that started at these versions; nobody takes one local batch."""
    own = jax.vmap(lambda i: jax.random.fold_in(crew.devices, i))(ids)
    now = jax.vmap(lambda one, t: jax.random.fold_in(one, t + 1))(own, births)
    slow = slowness(own, now, spread=crew.fedbuff.spread, jitter=crew.fedbuff.jitter)
    examples = crew.population.offsets[ids + 1] - crew.population.offsets[ids]
    batches = crew.work.batches.num_batches(examples) * crew.work.epochs
    return jnp.where(ids < crew.population.num_clients, slow * batches, 1.0).astype(jnp.float32)
