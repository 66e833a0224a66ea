"""A state, and the clients and the catalogue that it is to meet."""

import jax

from fedjax_rec.errors import check_not_used_up
from fedjax_rec.types import PyTree, State


def check_clients(state: State, num_clients: int, whose: str) -> None:
    """Refuse a state of another number of clients.

    Args:
        state: of a run; its private leaves have an axis of clients.
        num_clients: N.
        whose: named in the error.

    Raises:
        ValueError: naming both numbers; or if the state is used up.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> check_clients(run(fr.fedmf(dim=2), tiny_population()), 7, "the split")
        Traceback (most recent call last):
        ValueError: the state holds leaves of 24 clients, but the split has 7; ...
    """
    check_not_used_up(state)
    _check_axis(state.private, num_clients, whose, "leaves of {} clients", "these clients")


def check_items(state: State, num_items: int, whose: str) -> None:
    """Refuse a state of another catalogue.

    Args:
        state: of a run; its server's tables have a row for each item.
        num_items: I.
        whose: named in the error.

    Raises:
        ValueError: naming both numbers; or if the state is used up.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> check_items(run(fr.fedmf(dim=2), tiny_population()), 7, "the split")
        Traceback (most recent call last):
        ValueError: the state holds rows of 40 items, but the split has 7; ...
    """
    check_not_used_up(state)
    _check_axis(state.server.tables, num_items, whose, "rows of {} items", "this catalogue")


def _check_axis(leaves: PyTree, size: int, whose: str, what: str, on: str) -> None:
    """Refuse leaves whose first axis is of another size; `what` they hold is told with that size."""
    others = {leaf.shape[0] for leaf in jax.tree.leaves(leaves)} - {size}
    if others:
        held = what.format(f"{min(others):,}")
        raise ValueError(f"the state holds {held}, but {whose} has {size:,}; give the state of a run on {on}")
