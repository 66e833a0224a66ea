"""Task FedMF-1M: the one piece of work that every side of the benchmark does.

MovieLens-1M's interactions (6,040 clients, 3,706 items, 1,000,209 positives), D = 64, 4 sampled negatives per
positive, batches of 13 positives and 52 negatives, SGD on the sum of a batch's binary cross-entropies, no item
bias, no regularisation, private user vectors, the mean of the updates added to the item table.
"""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_rec as fr
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import build

DIM, NEGATIVES, POSITIVES, RATE, SEED = 64, 4, 13, 0.05, 0
# Lengths of ML-1M's histories: (share of the 6,040 clients, at most so many items), read off the data.
SHARES = (0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1)
LENGTHS = (20, 23, 27, 38, 51, 70, 96, 126, 173, 253, 400, 556, 784, 906, 1045, 1343, 2314)


class Task(NamedTuple):
    """The data on the host."""

    name: str
    offsets: np.ndarray  # int64[N + 1]
    items: np.ndarray  # int32[M]
    num_items: int

    @property
    def population(self) -> fr.Population:
        """The same on device."""
        return build(self.offsets, self.items, None, self.num_items)


def load(data_dir: str | None) -> Task:
    """Read ML-1M from `data_dir`, or draw histories with its lengths.

    Args:
        data_dir: folder that holds `ml-1m-loo`; None draws.

    Returns:
        the task.
    """
    if data_dir is None:
        return draw(6040, 3706)
    dataset = fr.load_dataset("ml-1m-loo", data_dir=Path(data_dir))
    events, test = dataset.interactions, dataset.test
    users = np.concatenate([events.users, np.arange(events.num_users)])
    items = np.concatenate([events.items, test.items if test is not None else []]).astype(np.int32)
    order = np.argsort(users, kind="stable")
    counts = np.bincount(users, minlength=events.num_users)
    return Task("ml-1m", np.concatenate([[0], np.cumsum(counts)]), items[order], events.num_items)


def draw(num_clients: int, num_items: int, seed: int = SEED) -> Task:
    """Draw histories with ML-1M's distribution of lengths over a long-tailed catalogue.

    Args:
        num_clients: N.
        num_items: I.
        seed: of the draw.

    Returns:
        the task; a client's items are distinct, popular items frequent.
    """
    rng = np.random.default_rng(seed)
    lengths = np.interp(rng.random(num_clients), SHARES, LENGTHS).astype(int)
    lengths = np.minimum(lengths, num_items // 2)
    owners = np.repeat(np.arange(num_clients), lengths)
    pairs = np.unique(owners * num_items + _popular(rng, len(owners), num_items))
    while len(pairs) < lengths.sum():  # replace what was drawn twice
        held = np.bincount(pairs // num_items, minlength=num_clients)
        more = np.repeat(np.arange(num_clients), lengths - held)
        pairs = np.unique(np.concatenate([pairs, more * num_items + _popular(rng, len(more), num_items)]))
    items = (pairs % num_items).astype(np.int32)
    return Task(f"drawn, {num_items:,} items", np.concatenate([[0], np.cumsum(lengths)]), items, num_items)


def _popular(rng: np.random.Generator, size: int, num_items: int) -> np.ndarray:
    """Item ids whose density falls along the catalogue: id = I u^3."""
    return np.minimum((num_items * rng.random(size) ** 3).astype(np.int64), num_items - 1)


def algorithm(cohort: int, epochs: int, **changes: Any) -> fr.types.Algorithm:
    """The engine's side of the task.

    Args:
        cohort: C.
        epochs: E.
        **changes: other settings of `fr.fedmf`: lanes, mesh, transform, ...

    Returns:
        the algorithm.
    """
    settings: dict[str, Any] = {
        "dim": DIM,
        "num_negatives": NEGATIVES,
        "batch_size": POSITIVES * (1 + NEGATIVES),
        "local_epochs": epochs,
        "learning_rate": RATE,
        "regularisation": 0.0,
        "item_bias": False,
        "cohort": None if "sampler" in changes else cohort,  # a sampler has its own
        "aggregator": "mean",
    }
    return fr.fedmf(**settings | changes)


class Draws(NamedTuple):
    """The random draws of some rounds, for the sides that share them."""

    cohorts: np.ndarray  # int32[T, C]
    keys: np.ndarray  # uint32[T, C, 2]
    table: np.ndarray  # float32[I, D], at the start
    vectors: np.ndarray  # float32[N, D], at the start


def share_draws(task: Task, cohort: int, rounds: int) -> Draws:
    """Repeat the engine's draws on the host.

    Args:
        task: the data.
        cohort: C.
        rounds: T.

    Returns:
        the draws of rounds 0..T-1 and the first parameters.
    """
    key, population = jax.random.key(SEED), task.population
    state = algorithm(cohort, 1).init(key, population)

    @jax.jit
    def one(t: jax.Array) -> tuple[jax.Array, jax.Array]:
        ids, _ = fr.samplers.uniform(cohort)(
            jax.random.fold_in(stream(key, "cohort"), t), population.num_clients
        )
        clients = name_clients(jax.random.fold_in(stream(key, "client"), t), ids, population)
        return clients.id, clients.key

    ids, keys = zip(*(one(jnp.int32(t)) for t in range(rounds)), strict=True)
    return Draws(
        np.stack(ids).astype(np.int32),
        np.stack(keys),
        np.array(state.server.tables["vector"]),
        np.array(state.private["vector"]),
    )


def checksum(table: np.ndarray) -> dict[str, float]:
    """Norm and a fixed random projection of the global table: equal for sides that did the same work.

    Args:
        table: float32[I, D].

    Returns:
        both numbers.
    """
    probe = np.random.default_rng(1).normal(size=table.shape)
    return {
        "norm": float(np.linalg.norm(table.astype(np.float64))),
        "projection": float((probe * table).sum()),
    }
