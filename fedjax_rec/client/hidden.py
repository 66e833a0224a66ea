"""A population whose data cannot be read: for what is made before noise could hide it."""

import dataclasses
from typing import Any

from fedjax_rec.client.population import Population
from fedjax_rec.errors import ParameterError


class _Hidden:
    """An array's shape and dtype, and nothing else."""

    def __init__(self, name: str, array: Any) -> None:
        self.name = name
        self.shape = array.shape
        self.dtype = array.dtype

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") and attribute not in ("__array__", "__jax_array__"):
            raise AttributeError(attribute)
        self._refuse()

    def __getitem__(self, index: Any) -> Any:
        self._refuse()

    def _refuse(self) -> None:
        raise ParameterError(
            "the model starts from the clients' {name}, which noise on updates does not hide; start from "
            "constants and the key, or train without noise",
            name=self.name,
        )


def hide_data(population: Population) -> Population:
    """The same numbers of clients and items, of whose data whatever is read is refused.

    Args:
        population: the clients.

    Returns:
        a population to look at from Python; no program takes it.

    Example:
        >>> from fedjax_rec.testing import tiny_population
        >>> hidden = hide_data(tiny_population())
        >>> hidden.num_clients, hidden.num_items, "items" in hidden.examples
        (24, 40, True)
        >>> hidden.examples["items"].mean()
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: the model starts from the clients' items, which noise on updates does ...
    """
    examples: Any = {name: _Hidden(name, leaf) for name, leaf in population.examples.items()}
    offsets: Any = _Hidden("numbers of examples", population.offsets)
    membership: Any = _Hidden("items", population.offsets)
    longest: Any = None  # that of one client
    return dataclasses.replace(
        population, examples=examples, offsets=offsets, membership=membership, max_examples=longest
    )
