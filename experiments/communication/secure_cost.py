"""What secure aggregation costs to send, and what sending few rows in the clear would cost instead.

For n clients, of whom each deals with k others (all n - 1 in Bonawitz et al. 2017; a few in Bell et al. 2020), and
a vector of m numbers in b bits, one client's bits up and down together are

    2 (k + 1) a_K + (5 (k + 1) - 4) a_S + m b

with a_K bits for a public key and a_S for an (encrypted) share of a secret. Counted are the rounds of the
protocol against an honest but curious server: advertise keys, share keys, masked input, unmask. Signatures,
headers and the model that is sent down are not.

Sources: Bonawitz et al. 2017, "Practical secure aggregation for privacy-preserving machine learning", section 7;
Bell et al. 2020, "Secure single-server aggregation with (poly)logarithmic overhead", section 3.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

KEY_BITS = SHARE_BITS = 256


class Cost(NamedTuple):
    """What one client that stays to the end sends and receives for a secure sum, in bytes."""

    keys_up: float  # two public keys
    shares_up: float  # a pair of encrypted shares for each other, later a share of each other and of itself
    vector_up: float  # m numbers in b bits
    keys_down: float  # two public keys of each other
    shares_down: float  # a pair of encrypted shares from each other

    @property
    def up(self) -> float:
        """All that is sent."""
        return self.keys_up + self.shares_up + self.vector_up

    @property
    def down(self) -> float:
        """All that is received, besides the model."""
        return self.keys_down + self.shares_down


class Trade(NamedTuple):
    """One number of touched rows: what a client sends in the two ways, in bytes."""

    rows: int
    sparse: float  # the rows with their ids, in the clear
    secure: float  # the whole table, masked, with keys and shares
    times: float  # secure / sparse


def bits_for(clients: int, value_bits: int) -> int:
    """Bits of a number in a sum that cannot wrap: ceil(log2(n (2^v - 1) + 1)).

    Args:
        clients: n.
        value_bits: v, bits of one client's number.

    Returns:
        b.

    Raises:
        ValueError: if a count is below 1.

    Example:
        >>> bits_for(2**10, 16), bits_for(100, 16)
        (26, 23)
    """
    if clients < 1 or value_bits < 1:
        raise ValueError(f"clients={clients} and value_bits={value_bits} must be at least 1")
    return (clients * (2**value_bits - 1)).bit_length()


def secure_cost(
    clients: int,
    numbers: int,
    modulus: int = 32,
    *,
    neighbours: int | None = None,
    key_bits: int = KEY_BITS,
    share_bits: int = SHARE_BITS,
) -> Cost:
    """What a secure sum costs each client to send and to receive.

    Args:
        clients: n, of a round.
        numbers: m, of a vector: all rows and dense leaves, touched or not.
        modulus: b, bits of a number.
        neighbours: k, others that each client deals with; by default all (Bonawitz). Bell et al. need O(log n),
            and their section 3 says how many for given shares of colluding and failing clients.
        key_bits: of a public key.
        share_bits: of a share, encrypted or not.

    Returns:
        bytes, by what they are.

    Raises:
        ValueError: if a count is out of range.

    Example:
        >>> cost = secure_cost(100, 3706 * 32, 24)
        >>> round(cost.vector_up), round(cost.up - cost.vector_up), round(cost.down)
        (355776, 9600, 12672)
        >>> few = secure_cost(100, 3706 * 32, 24, neighbours=20)
        >>> round(few.up - few.vector_up), round(few.down)
        (2016, 2560)
    """
    others = clients - 1 if neighbours is None else neighbours
    if clients < 1 or numbers < 0 or modulus < 1 or not 0 <= others < clients:
        raise ValueError(
            f"clients={clients}, numbers={numbers}, modulus={modulus} or neighbours={neighbours} is out of range; "
            "each client has at most n - 1 neighbours"
        )
    return Cost(
        keys_up=2 * key_bits / 8,
        shares_up=(2 * others + others + 1) * share_bits / 8,
        vector_up=numbers * modulus / 8,
        keys_down=2 * others * key_bits / 8,
        shares_down=2 * others * share_bits / 8,
    )


def sparse_bytes(rows: float, items: int, width: int, *, value_bits: float = 32.0) -> float:
    """What touched rows cost in the clear: R (ceil(log2 I) + v d) bits.

    Args:
        rows: R, that a client touched.
        items: I.
        width: d, numbers in a row.
        value_bits: v, bits of a number.

    Returns:
        bytes.

    Example:
        >>> sparse_bytes(695, 3706, 32)
        90002.5
    """
    return rows * (math.ceil(math.log2(max(items, 2))) + value_bits * width) / 8


def secure_or_sparse(
    rows: Sequence[int],
    *,
    items: int,
    width: int,
    clients: int,
    modulus: int = 32,
    neighbours: int | None = None,
    value_bits: float = 32.0,
) -> list[Trade]:
    """The trade between hiding an update in a sum and sending few rows of it, as a table.

    Args:
        rows: touched rows, a line for each.
        items: I.
        width: d.
        clients: n, of a round.
        modulus: b, of the secure sum.
        neighbours: as for `secure_cost`.
        value_bits: of a number that is sent in the clear.

    Returns:
        a line for each number of rows, in their order.

    Raises:
        ValueError: if a number of rows is not between 1 and I.

    Example:
        >>> for line in secure_or_sparse([100, 695, 3706], items=3706, width=32, clients=100, modulus=24):
        ...     print(line.rows, round(line.sparse), round(line.secure), round(line.times, 1))
        100 12950 365376 28.2
        695 90002 365376 4.1
        3706 479927 365376 0.8
    """
    if any(not 1 <= touched <= items for touched in rows):
        raise ValueError(f"rows={list(rows)} must all be between 1 and the {items} items")
    secure = secure_cost(clients, items * width, modulus, neighbours=neighbours).up
    sparse = [sparse_bytes(touched, items, width, value_bits=value_bits) for touched in rows]
    return [Trade(touched, cost, secure, secure / cost) for touched, cost in zip(rows, sparse, strict=True)]


def crossover(
    *,
    items: int,
    width: int,
    clients: int,
    modulus: int = 32,
    neighbours: int | None = None,
    value_bits: float = 32.0,
) -> int | None:
    """The least number of touched rows from which the secure sum is no dearer than rows in the clear.

    Args:
        items: as for `secure_or_sparse`, with all others.
        width: d.
        clients: n.
        modulus: b.
        neighbours: k.
        value_bits: v.

    Returns:
        R, at most I; None if it is dearer even than all rows.

    Example:
        >>> crossover(items=3706, width=32, clients=100, modulus=24)
        2822
        >>> crossover(items=3706, width=32, clients=100, modulus=24, value_bits=8)
    """
    secure = secure_cost(clients, items * width, modulus, neighbours=neighbours).up
    found = math.ceil(secure / sparse_bytes(1, items, width, value_bits=value_bits))
    return found if found <= items else None
