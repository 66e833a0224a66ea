"""FedBuff in plain numpy, one arrival after another: slow, short, and written from the paper; an oracle.

Nguyen et al. 2022, "Federated learning with buffered asynchronous aggregation", algorithm 1. The paper's server

    repeat:
        start clients, so that M are at work                      # each is handed a copy of the model as it is now
        upon the next arrival, of client i:
            buffer <- buffer + s(tau_i) delta_i                   # s(tau) = (1 + tau)^-exponent
            if it is the K-th since the last step:
                w <- w + eta * aggregate(buffer);  t <- t + 1;  buffer <- 0

A client trains *when it starts*, on the very model that it is handed, and its result is laid by until it arrives:
no ring of old models, no staleness but the difference of two counts. Time, who starts, and training are functions
that the caller gives; here is only the order of events.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

Values = dict[str, np.ndarray]


class Trip(NamedTuple):
    """One client on its way."""

    client: int
    birth: int  # the server's steps when it started
    arrives: float
    kept: Any  # private parameters after training
    delta: Values


class World(NamedTuple):
    """What the order of events does not know."""

    order: Callable[
        [int, int], list[int]
    ]  # (start number, of which: see `run`) -> clients in order of preference
    duration: Callable[[int, int], float]  # (client, birth)
    train: Callable[[int, int, Any, Values], tuple[Any, Values]]  # (client, birth, private, w) -> kept, delta
    busy: Callable[[int], bool]  # whether a client has data


class Arrival(NamedTuple):
    """What is written down of each."""

    step: int
    client: int
    birth: int
    time: float
    counted: bool


class Rules(NamedTuple):
    """The setting."""

    buffer: int
    concurrency: int
    max_staleness: int
    exponent: float
    rate: float
    mean: bool  # divide by the arrivals that count


def run(
    rules: Rules, world: World, server: Values, private: list[Any], steps: int
) -> tuple[list[Values], list[Any], list[Arrival], list[Trip]]:
    """The models, the private store, all arrivals in order, and who is still under way.

    `world.order(0, place)` chooses the first clients, `world.order(t + 1, k)` whoever follows the k-th arrival
    before step t. Who is too stale is thrown away, and takes no place in the buffer.
    """
    under: list[Trip] = []
    private, log, models = list(private), [], [server]
    for place in range(rules.concurrency):
        under.append(start(world, 0, place, under, [], 0, 0.0, private, server))
    buffer: list[tuple[Trip, float]] = []
    met: list[int] = []
    step = turn = 0
    while step < steps:
        place = int(np.argmin([trip.arrives for trip in under]))
        trip = under[place]
        staleness = step - trip.birth
        counted = staleness <= rules.max_staleness
        if counted:
            buffer.append((trip, (1.0 + staleness) ** -rules.exponent))
            private[trip.client] = trip.kept
            met.append(trip.client)
        log.append(Arrival(step, trip.client, trip.birth, trip.arrives, counted))
        before, made, event = list(met), step, turn
        turn += 1
        if len(met) == rules.buffer:
            share = 1.0 / max(len(buffer), 1) if rules.mean else 1.0
            server = {
                name: value
                + rules.rate * share * sum((s * one.delta[name] for one, s in buffer), np.zeros(()))
                for name, value in server.items()
            }
            models.append(server)
            step, turn, buffer, met = step + 1, 0, [], []
        under[place] = start(world, made + 1, event, under, before, step, trip.arrives, private, server)
    return models, private, log, under


def start(
    world: World,
    number: int,
    turn: int,
    under: list[Trip],
    met: list[int],
    step: int,
    now: float,
    private: list[Any],
    server: Values,
) -> Trip:
    """Send the first client in order of preference that has data, is not under way and was not just met."""
    away = {trip.client for trip in under} | set(met)
    client = next(i for i in world.order(number, turn) if i not in away and world.busy(i))
    kept, delta = world.train(client, step, private[client], server)
    return Trip(client, step, now + world.duration(client, step), kept, delta)
