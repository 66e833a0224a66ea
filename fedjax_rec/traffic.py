"""Communication: how many bytes a client sends and receives in a round."""

import math
from typing import NamedTuple

import jax
import numpy as np

from fedjax_rec.tables import num_rows
from fedjax_rec.types import RoundInfo, Server

VALUE_BITS = 32


class Traffic(NamedTuple):
    """Means per participating client and round, in bytes."""

    up: float  # touched rows with their ids, and dense deltas
    down: float  # the rows asked for, and dense parameters


def count_traffic(server: Server, rounds: RoundInfo) -> Traffic:
    """Count what an average participant sends and receives.

    A row costs 32 bits a value, and on the way up ceil(log2 I) bits for its id; dense leaves cost 32 bits a value
    each way. (On the way down the client names the rows it wants, so that no ids come back.)

    Args:
        server: the global model, for the sizes of its leaves.
        rounds: leaves [T], of which `rows` and `clients` are used.

    Returns:
        bytes up and down.

    Example:
        >>> info = RoundInfo(*[np.zeros(1)] * 8)._replace(rows=np.array([6.0]), clients=np.array([3]))
        >>> count_traffic(Server({}, np.zeros((1024, 4))), info)
        Traffic(up=34.5, down=32.0)
    """
    width = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(server.tables))
    dense = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(server.shared))
    rows = float(np.sum(rounds.rows)) / max(float(np.sum(rounds.clients)), 1.0)
    id_bits = math.ceil(math.log2(max(num_rows(server.tables), 2)))
    values = (rows * width + dense) * VALUE_BITS
    return Traffic((values + rows * id_bits) / 8, values / 8)
