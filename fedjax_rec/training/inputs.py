"""What a simulation is given: a split, a bare population, or anything that holds events."""

from fedjax_rec.client.population import Population, check_same, population_of
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.data.frames import Frame
from fedjax_rec.data.splits import Split
from fedjax_rec.data.splitters import as_split


def clients_of(
    data: Split | Population | StoredPopulation | Frame, population: Population | None
) -> tuple[Split | Population | StoredPopulation, Population]:
    """The clients to train: those of a split are made once.

    Args:
        data: a split, a population, one in a store, or a frame or data set, which `leave_one_out` divides.
        population: the split's clients, if they have been made.

    Returns:
        the split, or the population that `data` is, and the clients; of those in a store the directory.

    Raises:
        ValueError: if the data are of no such kind or cannot be divided, or the population is another's.
    """
    if isinstance(data, Population | StoredPopulation):
        if population is not None:
            raise ValueError(
                "population= goes with a split, and the data are a population already; leave it out"
            )
        return data, data.directory if isinstance(data, StoredPopulation) else data
    split = as_split(data, "simulate", name="data")
    if population is None:
        return split, population_of(split)
    check_same(population, split)
    return split, population


def check_ranges(rounds: int, eval_every: int, keep: str) -> None:
    """Refuse numbers of rounds that cannot be.

    Args:
        rounds: of the run.
        eval_every: rounds between two validations.
        keep: "best" or "last".

    Raises:
        ValueError: naming the value.

    Example:
        >>> check_ranges(10, 0, "best")
        Traceback (most recent call last):
        ValueError: eval_every must be at least 1, not 0
    """
    if not 0 <= rounds < 2**31:
        raise ValueError(f"rounds must be at least 0 and below 2^31, not {rounds}")
    if eval_every < 1:
        raise ValueError(f"eval_every must be at least 1, not {eval_every}")
    if keep not in ("best", "last"):
        raise ValueError(f"keep={keep!r} is unknown; choose one of 'best', 'last'")
