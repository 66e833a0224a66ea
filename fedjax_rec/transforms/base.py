"""What a transform is, what it costs to send, and what is known of a client's contribution after it."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from fedjax_rec.types import Key, PyTree, Server, Update


class Wire(NamedTuple):
    """What one client's update costs to send; rows may be a mean over clients."""

    rows: float  # table rows that are sent
    row_values: float  # numbers in a row
    dense_values: float  # numbers outside of tables
    value_bits: float = 32.0  # of a number
    id_bits: float = 0.0  # of a row's id; 0 where all rows are sent, in order
    header_bits: float = 0.0  # scales, norms and seeds

    @property
    def bits(self) -> float:
        """All of it."""
        values = self.rows * self.row_values + self.dense_values
        return values * self.value_bits + self.rows * self.id_bits + self.header_bits


class Bound(NamedTuple):
    """What is known of one client's contribution, whatever its data: what an accountant may rely on."""

    norm: float | None = None  # L2, over all rows and dense leaves; None: not bounded
    grid: float | None = None  # of which every number is a multiple, a power of 2; None: of nothing known
    deviation: float = 0.0  # of the Gaussian noise that the client has added to every number that it sends
    noised_norm: float | None = None  # the norm that an update had at most when noise was first added
    after: tuple[str, ...] = ()  # names of the elements so far
    coded_by: str = ""  # the element that coded numbers for good, so that none may change them again
    sparsified_by: str = ""  # the element that left numbers out, which none may fill
    hidden_by: str = ""  # the element that added rows to hide the own ones, which none may leave out again


class Transform(NamedTuple):
    """What a client does to its whole update before it sends it, written for ONE client."""

    name: str
    update: Callable[[Key, Update, Server], Update]  # (key, update, global model) -> what is sent
    # squared norm -> factor, for transforms that only scale by the norm: then no whole update is put together
    scale: Callable[[jax.Array], jax.Array] | None = None
    wire: Callable[[Wire], Wire] | None = None  # what it does to the cost; None: nothing
    # what it does to what is known of the norm, refusing what is unsound; None: nothing is known afterwards
    bound: Callable[[Bound], Bound] | None = None
    # one client's state between its rounds, of the global model's shapes, and (key, update, state, global model)
    # -> (what is sent, state); None: it has none
    init: Callable[[Server], PyTree] | None = None
    update_with_state: Callable[[Key, Update, PyTree, Server], tuple[Update, PyTree]] | None = None
