"""Malicious clients by their ids: what they send, or train on, is their own affair; the server treats all alike.

An `Adversary` is given to `federate`. `colluding(attack, clients)` makes one of a list of client ids, so that a
drawn cohort has as many of them as it happens to draw: the clients send rows that an `Attack` crafts, in place of
training. They know the global model before each round, which of them take part, and what the attack has kept from
earlier rounds (`State.memory` carries it, one copy for all, behind what the clients' transforms remember).
`flipping` makes another, of clients that train on flipped labels.

Everything happens inside the compiled round, in the place of a client's work: a malicious client is weighed,
transformed and summed like any other. Its number of examples decides how many rows it has room for: B for each of
its local batches; rows beyond are left out, the last first. Its loss is not reported, and it keeps its private
leaves. Randomness is of (the run's key, round, client id). `client_update`, without poison, shows honest work.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.clients import stream
from fedjax_rec.knowledge import draw_cohort
from fedjax_rec.population import Population
from fedjax_rec.tables import expand
from fedjax_rec.types import (
    Adversary,
    Algorithm,
    Batch,
    Client,
    ClientWork,
    Key,
    Model,
    PyTree,
    RoundInfo,
    Rows,
    Sampler,
    Server,
    State,
    StepInfo,
)


class Sight(NamedTuple):
    """What colluding clients see at the start of a round."""

    keys: Key  # [M], of (round, client id)
    present: jax.Array  # bool[M], who takes part
    model: Model
    server: Server  # before the round
    knowledge: PyTree  # what the attack kept


class Poison(NamedTuple):
    """What M colluding clients send in a round."""

    ids: jax.Array  # int32[M, R], distinct in a row of it; I = empty slot
    rows: PyTree  # their deltas, leaves [M, R, ...]


class Attack(NamedTuple):
    """What colluding clients do."""

    name: str
    init: Callable[[Key, Model, Server, Population, np.ndarray], PyTree]  # the last: their ids -> knowledge
    craft: Callable[[Sight], tuple[Poison, PyTree]]  # -> what they send, and what they know afterwards


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "offsets", "membership", "poison"],
    meta_fields=["num_items", "max_examples", "vocabulary"],
)
@dataclasses.dataclass(frozen=True)
class Poisoned(Population):
    """A population with what its malicious clients send in this round."""

    poison: Poison | None = None


def colluding(attack: Attack, clients: Sequence[int] | np.ndarray) -> Adversary:
    """Clients that send what an attack crafts, together.

    Args:
        attack: of `fedjax_rec.promotion`, or one's own.
        clients: int[M], their ids, which need examples to take part (`data.fakes.with_fakes` adds such).

    Returns:
        an adversary.

    Raises:
        ValueError: if there is no client, or one twice or below 0; in `federate`, if the clients of the algorithm
            send anything but changes of rows; when a run starts, if the population has not so many.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> attack = colluding(fr.promotion.explicit_boosting([7]), [0, 1])
        >>> honest, poisoned = (fr.fedmf(dim=2, cohort=20, adversary=a) for a in (None, attack))
        >>> plain, moved = (run(one, tiny_population()).server.tables["vector"] for one in (honest, poisoned))
        >>> bool(abs(moved[7]).sum() > 2 * abs(plain[7]).sum())
        True
    """
    ids = distinct_ids(clients)
    return Adversary(attack.name, partial(_poison_work, ids), partial(_collude, attack, ids))


def distinct_ids(clients: Sequence[int] | np.ndarray) -> np.ndarray:
    """Check the ids of malicious clients, and sort them.

    Args:
        clients: int[M].

    Returns:
        int32[M], ascending.

    Raises:
        ValueError: if there is no client, or one twice or below 0.

    Example:
        >>> distinct_ids([5, 3]).tolist()
        [3, 5]
    """
    ids = np.asarray(clients, int)
    if not len(ids) or ids.min() < 0 or len(np.unique(ids)) != len(ids):
        raise ValueError(
            f"malicious clients must be distinct ids from 0 up, at least one, not {ids.tolist()}"
        )
    return np.sort(ids).astype(np.int32)


def _poison_work(ids: np.ndarray, work: ClientWork) -> ClientWork:
    """The work of all clients, of which the malicious send what the population's poison says."""
    if work.send is not None:
        raise ValueError(
            "clients of this algorithm send something else than changes of rows, which no attack here crafts"
        )

    def batch(client: Client, population: Population, t: Any) -> Batch:
        own = work.batches.batch(client, population, t)
        if not isinstance(population, Poisoned):
            return own
        return _poisoned_batch(ids, own, client, population, t)

    def step(local: PyTree, rows: Rows, batch: Batch) -> tuple[PyTree, Rows, StepInfo]:
        if not _is_poisoned(batch):
            return work.step(local, rows, batch)
        bad = batch.data["malicious"][0]
        new, rows, info = work.step(local, rows, batch._replace(data=batch.data["own"]))
        local, none = jax.tree.map(lambda old, x: jnp.where(bad, old, x), local, new), jnp.float32(0)
        return local, rows, jax.tree.map(lambda x: jnp.where(bad, none, x), info)

    def send(local: PyTree, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local
        honest = jax.tree.map(jnp.subtract, rows.values, old)
        if not _is_poisoned(batch):
            return honest
        bad = batch.data["malicious"]
        return jax.tree.map(lambda x, d: jnp.where(expand(bad, d), x, d), batch.data["rows"], honest)

    return work._replace(batches=work.batches._replace(batch=batch), step=step, send=send)


def _poisoned_batch(ids: np.ndarray, own: Batch, client: Client, population: Poisoned, t: jax.Array) -> Batch:
    """Batch `t` with the next rows of the client's poison, if it is malicious."""
    size, place = own.ids.shape[0], jnp.searchsorted(jnp.asarray(ids), client.id)
    bad = jnp.isin(client.id, jnp.asarray(ids))
    slots = t * size + jnp.arange(size)

    def read(x: jax.Array, fill: float) -> jax.Array:
        return x.at[place].get(mode="clip").at[slots].get(mode="fill", fill_value=fill)

    assert population.poison is not None  # noqa: S101 - `_collude` gave it; this tells the type checker
    named = jnp.where(bad, read(population.poison.ids, population.num_items), own.ids)
    rows = jax.tree.map(lambda x: read(x, 0), population.poison.rows)
    return Batch(named, {"own": own.data, "malicious": jnp.full(size, bad), "rows": rows})


def _is_poisoned(batch: Batch) -> bool:
    return isinstance(batch.data, dict) and "malicious" in batch.data


def _collude(attack: Attack, ids: np.ndarray, algorithm: Algorithm, sampler: Sampler) -> Algorithm:
    """The algorithm with the attackers' knowledge behind its memory, and their poison in the population."""

    def init(key: Key, population: Population) -> State:
        if ids.max() >= population.num_clients:
            raise ValueError(f"there is no client {ids.max()}; clients are 0..{population.num_clients - 1}")
        state = algorithm.init(key, population)
        known = attack.init(stream(key, "attack"), algorithm.model, state.server, population, ids)
        return state._replace(memory=(state.memory, known))

    def run_round(key: Key, state: State, population: Population) -> tuple[State, RoundInfo]:
        held, known = state.memory
        cohort_key = jax.random.fold_in(stream(key, "cohort"), state.round)
        drawn = draw_cohort(sampler, cohort_key, population, state.known, state.round)  # as the round will
        cohort, alive = drawn
        present = jnp.isin(jnp.asarray(ids), jnp.where(alive, cohort, -1))
        own = jax.random.fold_in(stream(key, "attack"), state.round + 1)  # 0 is that of `init`
        keys = jax.vmap(partial(jax.random.fold_in, own))(jnp.asarray(ids))
        poison, known = attack.craft(Sight(keys, present, algorithm.model, state.server, known))
        parts = {field.name: getattr(population, field.name) for field in dataclasses.fields(Population)}
        state, info = algorithm.round(key, state._replace(memory=held), Poisoned(**parts, poison=poison))
        return state._replace(memory=(state.memory, known)), info

    return algorithm._replace(init=init, round=run_round)
