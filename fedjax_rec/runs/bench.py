"""How fast rounds are on this machine: a few standard shapes on drawn histories, each for some seconds."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.algorithms.registry import factory_of
from fedjax_rec.client.population import Population, build
from fedjax_rec.engine.devices import choose_devices, client_mesh, replicate
from fedjax_rec.errors import ParameterError
from fedjax_rec.federation.blocks import run_block

MOST_ROUNDS = 64  # in a repeat
LEAST_REPEATS = 3
_SIGMA = 0.9  # of the logarithm of a client's events: a tail as long as MovieLens's


class BenchShape(NamedTuple):
    """What is trained."""

    name: str
    clients: int = 6040
    items: int = 3706
    events: float = 166.0  # of a client, mean: all as in MovieLens 1M
    dim: int = 64
    cohort: int = 1000
    epochs: int = 1


SHAPES = (
    BenchShape("one epoch"),
    BenchShape("small cohort", cohort=100),
    BenchShape("five epochs", epochs=5),
)


class Measured(NamedTuple):
    """What came of a shape; seconds are those of a round, one for each repeat."""

    shape: BenchShape
    seconds: tuple[float, ...]
    events: float  # of a client, as drawn
    devices: int
    lanes: int
    compile_seconds: float

    @property
    def median(self) -> float:
        """Of the seconds of a round."""
        return median(self.seconds)

    @property
    def clients_per_second(self) -> float:
        """Trained, in the median repeat."""
        return self.shape.cohort / self.median

    @property
    def examples_per_second(self) -> float:
        """Positives that were trained on, in each local epoch again."""
        return self.clients_per_second * self.events * self.shape.epochs


def draw(shape: BenchShape, seed: int = 0) -> Population:
    """Histories of a long tail over a catalogue with popular items.

    Args:
        shape: says how many and how long.
        seed: of the draw.

    Returns:
        the population.

    Example:
        >>> draw(BenchShape("tiny", clients=10, items=40, events=5)).num_clients
        10
    """
    sizes = shape.clients, shape.items, shape.events
    return draw_histories(sizes, sigma=_SIGMA, tilt=2, longest=shape.items // 2, seed=seed)


def draw_histories(
    sizes: tuple[int, int, float], *, sigma: float, tilt: int, longest: int, seed: int
) -> Population:
    """Lognormal lengths, and items of number I u^tilt, u uniform; what a client draws twice counts once.

    Args:
        sizes: clients, items, and mean events of a client.
        sigma: standard deviation of the logarithm of lengths.
        tilt: how popular the first items are; 1 for all alike.
        longest: events of a client at most, before repeats are dropped.
        seed: of the draw.

    Returns:
        the population.

    Example:
        >>> draw_histories((10, 40, 5), sigma=0.5, tilt=2, longest=20, seed=0).num_items
        40
    """
    clients, items, events = sizes
    rng = np.random.default_rng(seed)
    lengths = rng.lognormal(np.log(events) - sigma**2 / 2, sigma, clients)
    counts = np.clip(lengths, 2, longest).astype(np.int64)
    owners = np.repeat(np.arange(clients), counts)
    drawn = np.minimum((items * rng.random(len(owners)) ** tilt).astype(np.int64), items - 1)
    pairs = np.unique(owners * items + drawn)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs // items, minlength=clients))])
    return build(offsets, (pairs % items).astype(np.int32), None, items)


def run_bench(
    shapes: Sequence[BenchShape] = SHAPES,
    *,
    seconds: float = 3.0,
    on_shape: Callable[[str], Any] | None = None,
) -> list[Measured]:
    """Train each shape for some seconds.

    Args:
        shapes: what is trained.
        seconds: of each, compilation apart; at least three repeats.
        on_shape: called with the name of a shape when it is done.

    Returns:
        what came of each.

    Raises:
        ValueError: if the seconds are not above 0.

    Example:
        >>> tiny = BenchShape("tiny", clients=10, items=40, events=5, dim=2, cohort=4)
        >>> len(run_bench([tiny], seconds=0.01)[0].seconds) >= 3
        True
    """
    if not 0 < seconds < float("inf"):
        raise ParameterError("{seconds} must be above 0, not {value}", value=seconds)
    found = []
    for shape in shapes:
        found.append(_measure(shape, seconds))
        if on_shape is not None:
            on_shape(shape.name)
    return found


def _measure(shape: BenchShape, seconds: float) -> Measured:
    population = draw(shape)
    algorithm = factory_of("fedmf")(
        dim=shape.dim,
        cohort=shape.cohort,
        local_epochs=shape.epochs,
        mesh=client_mesh(choose_devices(shape.cohort)),
    )
    plan = algorithm.plan(population)
    events = population.size.num_events / shape.clients
    population = replicate(population, algorithm.mesh)
    key = jax.random.key(0)
    block = jax.jit(partial(run_block, algorithm, MOST_ROUNDS), donate_argnums=1)
    state = jax.jit(algorithm.init)(key, population)
    tick = time.perf_counter()
    state, _ = jax.block_until_ready(block(key, state, population, jnp.int32(0)))
    compile_seconds = time.perf_counter() - tick
    rounds = 1
    spent: list[float] = []
    begin = time.perf_counter()
    while len(spent) < LEAST_REPEATS or time.perf_counter() - begin < seconds:
        tick = time.perf_counter()
        state, _ = jax.block_until_ready(block(key, state, population, jnp.int32(rounds)))
        now = time.perf_counter() - tick
        if now < seconds / 16 and rounds < MOST_ROUNDS:  # the first ones say how many rounds a repeat needs
            rounds, spent = rounds * 4, []
            continue
        spent.append(now / rounds)
    return Measured(shape, tuple(spent), events, plan.devices, plan.lanes, compile_seconds)
