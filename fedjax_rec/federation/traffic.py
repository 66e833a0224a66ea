"""Communication: how many bytes a client sends and receives in a round."""

import math
from typing import NamedTuple

import jax
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.engine.lane_steps import client_shapes, upload_shapes
from fedjax_rec.federation.checks import check_clients, check_items
from fedjax_rec.rows.tables import num_rows
from fedjax_rec.transforms.base import Transform, Wire
from fedjax_rec.types import Algorithm, RoundInfo, Server, State

VALUE_BITS = 32


class Traffic(NamedTuple):
    """Means per participating client and round, in bytes."""

    up: float  # touched rows with their ids, and dense deltas
    down: float  # the rows asked for, and dense parameters


def count_traffic(
    server: Server, rounds: RoundInfo, upload: Server | None = None, transform: Transform | None = None
) -> Traffic:
    """Count what an average participant sends and receives.

    A row costs 32 bits a value, and on the way up ceil(log2 I) bits for its id; dense leaves cost 32 bits a value
    each way. (On the way down the client names the rows it wants, so that no ids come back.)

    Args:
        server: the global model, for the sizes of its leaves.
        rounds: leaves [T], of which `rows` and `clients` are used.
        upload: a sum of updates, tables [I, ...], or its shapes (`upload_of`), where what clients
            send has a structure of its own; by default that of the model.
        transform: of each client's update; what it declares (`Transform.wire`) is what is counted.

    Returns:
        bytes up and down.

    Example:
        >>> info = RoundInfo(*[np.zeros(1)] * 12)._replace(rows=np.array([6.0]), clients=np.array([3]))
        >>> count_traffic(Server({}, np.zeros((1024, 4))), info)
        Traffic(up=34.5, down=32.0)
        >>> count_traffic(Server({}, np.zeros((1024, 4))), info, Server({}, np.zeros((1024, 1))))
        Traffic(up=10.5, down=32.0)
    """
    sent = server if upload is None else upload
    rows = float(np.sum(rounds.rows)) / max(float(np.sum(rounds.clients)), 1.0)
    id_bits = math.ceil(math.log2(max(num_rows(server.tables), 2)))
    plain = _wire(sent, rows)._replace(id_bits=id_bits)
    coded = plain if transform is None or transform.wire is None else transform.wire(plain)
    return Traffic(coded.bits / 8, _wire(server, rows).bits / 8)


def upload_of(algorithm: Algorithm, population: Population, state: State) -> Server:
    """Shapes of a sum of what the clients send.

    Args:
        algorithm: as `federate` returns it.
        population: the clients.
        state: of a run.

    Returns:
        shapes, tables [I, ...].

    Raises:
        ValueError: if the state is of other clients or items than the population.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> algorithm, population = fr.colr(dim=8, rank=2), tiny_population()
        >>> upload_of(algorithm, population, run(algorithm, population)).tables["factor"].shape
        (40, 2)
    """
    check_clients(state, population.num_clients, "the population")
    check_items(state, population.num_items, "the population")
    return upload_shapes(algorithm.work, population, state.server, client_shapes(state.private))


def _wire(server: Server, rows: float) -> Wire:
    """So many table rows and all dense leaves, as they are."""
    width = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(server.tables))
    dense = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(server.shared))
    return Wire(rows, width, dense, VALUE_BITS)
