"""The protocol: data, budgets, and how a variant becomes an algorithm."""

from pathlib import Path
from typing import Any, NamedTuple

import fedjax_rec as fr
from experiments.honest_benchmark.spaces import VARIANTS
from fedjax_rec.algorithms.registry import ENTRIES, accepted, factory_of
from fedjax_rec.data.defaults import default_cohort
from fedjax_rec.data.interactions import Dataset
from fedjax_rec.data.splits import Split
from fedjax_rec.engine.chunks import on_devices_that_fit
from fedjax_rec.engine.devices import choose_devices
from fedjax_rec.runs.inputs import load_split, protocol_of
from fedjax_rec.runs.settings import Settings
from fedjax_rec.server.optimizers import SERVERS

SEEDS = (0, 1, 2)
VALIDATIONS = 20  # in every run
PATIENCE = 6  # validations without a better one end it
DATASETS = ("synthetic", "ml-100k", "ml-1m-loo")


class Budget(NamedTuple):
    """What every algorithm gets: no more, and no less."""

    trials: int  # on validation
    rounds: int  # of the default cohort: an algorithm whose rounds have more clients has fewer rounds
    patience: int = PATIENCE


class Task(NamedTuple):
    """One data set and its budget."""

    dataset: str
    source: Dataset
    split: Split
    population: fr.Population  # of its training events
    settings: Settings  # of data and protocol
    protocol_id: str
    budget: Budget
    carry: str | None = None  # the data set whose best settings are tried first


BUDGETS = {  # trials of ml-1m-loo come on top of those of ml-100k, whose best are carried over
    "synthetic": Budget(12, 300),
    "ml-100k": Budget(12, 400),
    "ml-1m-loo": Budget(4, 400),
}
CARRY = {"ml-1m-loo": "ml-100k"}
SMOKE = Budget(2, 4)


def load_task(dataset: str, data_dir: str | Path | None, budget: Budget) -> Task:
    """Read one data set.

    Args:
        dataset: registered name.
        data_dir: folder of the real data.
        budget: of every algorithm on it.

    Returns:
        the task.

    Raises:
        ValueError: if the data is missing.
    """
    place = None if data_dir is None or dataset == "synthetic" else str(data_dir)
    settings = Settings(dataset=dataset, data_dir=place, refit=True)
    source, split = load_split(settings)
    identity = fr.evaluation.protocol_id(protocol_of(settings, source, split))
    population, carry = fr.population_of(split), CARRY.get(dataset)
    return Task(dataset, source, split, population, settings, identity, budget, carry)


def make(name: str, **settings: Any) -> fr.types.Algorithm:
    """Make a variant with some settings; `server_optimizer` and `server_learning_rate` name the server's rule.

    Args:
        name: in `VARIANTS`.
        **settings: of its factory.

    Returns:
        the algorithm.
    """
    variant = VARIANTS[name]
    given = variant.fixed | settings
    rule = SERVERS[given.pop("server_optimizer", "fedavg")]
    rate = given.pop("server_learning_rate", None)
    if rate is not None:
        given["server_optimizer"] = rule.make(rate)
    return factory_of(variant.algorithm)(**given)


def make_on_devices(name: str, population: fr.Population, settings: dict[str, Any]) -> fr.types.Algorithm:
    """The same, with its clients split over all devices, or on one where so many copies do not fit.

    Args:
        name: in `VARIANTS`.
        population: its clients.
        settings: of its factory.

    Returns:
        the algorithm.
    """
    if "mesh" not in accepted(VARIANTS[name].algorithm):
        return make(name, **settings)
    devices = choose_devices(default_cohort(population.num_clients))
    return on_devices_that_fit(
        lambda count: make(name, **settings, mesh=fr.client_mesh(count)), devices, population
    )


def rounds_of(name: str, algorithm: fr.types.Algorithm, task: Task) -> tuple[int, int]:
    """How many rounds a run has, and after how many it is validated: as many local trainings for all.

    Args:
        name: in `VARIANTS`.
        algorithm: whose sampler says how large a cohort is.
        task: the data and the budget, which counts rounds of the default cohort.

    Returns:
        rounds and eval_every.
    """
    if ENTRIES[VARIANTS[name].algorithm].rounds == 1:
        return 1, 1  # a closed form: more rounds would only repeat it
    cohort = algorithm.plan(task.population).cohort
    rounds = max(1, task.budget.rounds * default_cohort(task.split.num_users) // cohort)
    return rounds, max(1, -(-rounds // VALIDATIONS))
