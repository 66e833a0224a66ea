"""Malicious clients by their ids: what they send, or train on, is their own affair; the server treats all alike.

An `Adversary` is given to `federate`. `colluding(attack, clients)` makes one of a list of client ids, so that a
drawn cohort has as many of them as it happens to draw: the clients send rows that a `CollusionAttack` crafts, in
place of training. They know the global model before each round, which of them take part, and what the attack
has kept from earlier rounds (`State.adversary` carries it, one copy for all).
`label_flip` makes another, of clients that train as all others do, on the opposite of their labels.

Everything happens inside the compiled round, in the place of a client's work: a malicious client is weighed,
transformed and summed like any other. Its number of examples decides how many rows it has room for: B for each of
its local batches; rows beyond are left out, the last first. Its loss is not reported, and it keeps its private
leaves. Randomness is of (the run's key, round, client id). `client_update`, without poison, shows honest work.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.hidden import hide_data
from fedjax_rec.client.keys import stream
from fedjax_rec.client.population import Population
from fedjax_rec.rows.tables import expand
from fedjax_rec.samplers.tracking import draw_cohort
from fedjax_rec.types import (
    Adversary,
    Algorithm,
    Batch,
    Client,
    ClientWork,
    Context,
    Descent,
    Key,
    Model,
    Params,
    PyTree,
    RoundInfo,
    Rows,
    RowUpload,
    Sampler,
    Server,
    State,
    StepInfo,
)


class AttackerView(NamedTuple):
    """What colluding clients see at the start of a round."""

    keys: Key  # [M], of (round, client id)
    present: jax.Array  # bool[M], who takes part
    model: Model
    server: Server  # before the round
    attack_state: PyTree  # what the attack keeps from round to round


class PoisonedRows(NamedTuple):
    """What M colluding clients send in a round."""

    ids: jax.Array  # int32[M, R], distinct in a row of it; I = empty slot
    rows: PyTree  # their deltas, leaves [M, R, ...]


class CollusionAttack(NamedTuple):
    """What colluding clients do."""

    name: str
    init: Callable[
        [Key, Model, Server, Population, np.ndarray], PyTree
    ]  # the last: their ids -> attack state
    craft: Callable[
        [AttackerView], tuple[PoisonedRows, PyTree]
    ]  # -> what they send, and the new attack state


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["examples", "offsets", "membership", "poison"],
    meta_fields=["num_items", "max_examples", "vocabulary", "stored"],
)
@dataclasses.dataclass(frozen=True)
class PoisonedPopulation(Population):
    """A population with what its malicious clients send in this round."""

    poison: PoisonedRows | None = None


def colluding(attack: CollusionAttack, clients: Sequence[int] | np.ndarray) -> Adversary:
    """Clients that send what an attack crafts, together.

    Args:
        attack: of `fedjax_rec.attacks.promotion`, or one's own.
        clients: int[M], their ids, which need examples to take part (`data.fake_users.with_fake_users` adds such).

    Returns:
        an adversary.

    Raises:
        ValueError: if there is no client, or one twice or below 0; in `federate`, if the clients of the algorithm
            send anything but changes of rows; when a run starts, if the population has not so many.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> attack = colluding(fr.attacks.explicit_boosting([7]), [0, 1])
        >>> algorithms = (fr.fedmf(dim=2, cohort=20, adversary=adversary) for adversary in (None, attack))
        >>> honest, attacked = (run(each, tiny_population()).server.tables["vector"] for each in algorithms)
        >>> bool(abs(attacked[7]).sum() > 2 * abs(honest[7]).sum())
        True
    """
    ids = check_client_ids(clients)
    return Adversary(attack.name, partial(_poison_work, ids), partial(_collude, attack, ids))


def check_client_ids(clients: Sequence[int] | np.ndarray) -> np.ndarray:
    """Check the ids of malicious clients, and sort them.

    Args:
        clients: int[M].

    Returns:
        int32[M], ascending.

    Raises:
        ValueError: if there is no client, or one twice or below 0.

    Example:
        >>> check_client_ids([5, 3]).tolist()
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

    def batch(client: Client, population: Population, t: Any) -> Batch:
        honest = work.batches.batch(client, population, t)
        if not isinstance(population, PoisonedPopulation):
            return honest
        return _poisoned_batch(ids, honest, client, population, t)

    def step(local: PyTree, rows: Rows, batch: Batch, context: Context) -> tuple[PyTree, Rows, StepInfo]:
        if not _is_poisoned(batch):
            return work.step(local, rows, batch, context)
        malicious = batch.data["malicious"][0]
        new_local, rows, info = work.step(local, rows, batch._replace(data=batch.data["honest"]), context)
        local = jax.tree.map(lambda old, new: jnp.where(malicious, old, new), local, new_local)
        return local, rows, jax.tree.map(lambda x: jnp.where(malicious, jnp.float32(0), x), info)

    def send(local: PyTree, rows: Rows, batch: Batch, old: PyTree) -> PyTree:
        del local
        honest = jax.tree.map(jnp.subtract, rows.values, old)
        if not _is_poisoned(batch):
            return honest
        malicious = batch.data["malicious"]
        return jax.tree.map(
            lambda poison, change: jnp.where(expand(malicious, change), poison, change),
            batch.data["rows"],
            honest,
        )

    batches = work.batches._replace(batch=batch)
    return work._replace(batches=batches, step=step, upload=RowUpload(send), descent=_honest(work.descent))


def _honest(descent: Descent | None) -> Descent | None:
    """The same descent, whose loss looks at the honest data of a batch."""
    if descent is None:
        return None
    inner = descent.loss

    @wraps(inner)  # it may want a key
    def loss(params: Params, batch: Batch, **key: Key) -> tuple[jax.Array, jax.Array]:
        data = batch.data["honest"] if _is_poisoned(batch) else batch.data
        return inner(params, batch._replace(data=data), **key)

    return descent._replace(loss=loss)


def _poisoned_batch(
    ids: np.ndarray, honest: Batch, client: Client, population: PoisonedPopulation, t: jax.Array
) -> Batch:
    """Batch `t` with the next rows of the client's poison, if it is malicious."""
    assert population.poison is not None  # noqa: S101 - `_collude` gave it; this tells the type checker
    size = honest.ids.shape[0]
    attacker = jnp.searchsorted(jnp.asarray(ids), client.id)  # its index among the attackers, if it is one
    malicious = jnp.isin(client.id, jnp.asarray(ids))
    slots = t * size + jnp.arange(size)

    def read(x: jax.Array, fill: float) -> jax.Array:
        return x.at[attacker].get(mode="clip").at[slots].get(mode="fill", fill_value=fill)

    batch_ids = jnp.where(malicious, read(population.poison.ids, population.num_items), honest.ids)
    rows = jax.tree.map(lambda x: read(x, 0), population.poison.rows)
    return Batch(batch_ids, {"honest": honest.data, "malicious": jnp.full(size, malicious), "rows": rows})


def _is_poisoned(batch: Batch) -> bool:
    return isinstance(batch.data, dict) and "malicious" in batch.data


def _has_noise(algorithm: Algorithm) -> bool:
    """Whether clients are hidden: what malicious clients know of the data by other ways is then known to all."""
    mechanism = algorithm.mechanism
    return mechanism is not None and (mechanism.noise is not None or mechanism.client_noise > 0)


def _collude(attack: CollusionAttack, ids: np.ndarray, algorithm: Algorithm, sampler: Sampler) -> Algorithm:
    """The algorithm with the attack's state in its own, and their poison in the population."""

    def init(key: Key, population: Population) -> State:
        if ids.max() >= population.num_clients:
            raise ValueError(f"there is no client {ids.max()}; clients are 0..{population.num_clients - 1}")
        state = algorithm.init(key, population)
        seen = hide_data(population) if _has_noise(algorithm) else population
        attack_state = attack.init(stream(key, "attack"), algorithm.model, state.server, seen, ids)
        return state._replace(adversary=attack_state)

    def poison_round(
        honest: Callable[[Key, State, Population], tuple[State, RoundInfo]],
        key: Key,
        state: State,
        population: Population,
    ) -> tuple[State, RoundInfo]:
        attack_state = state.adversary

        # Who of the attackers will take part: the cohort is drawn as the round will draw it.
        cohort_key = jax.random.fold_in(stream(key, "cohort"), state.round)
        cohort, alive = draw_cohort(sampler, cohort_key, population, state.tracked, state.round)
        present = jnp.isin(jnp.asarray(ids), jnp.where(alive, cohort, -1))

        # What they send, from the model as it is before the round.
        round_key = jax.random.fold_in(stream(key, "attack"), state.round + 1)  # 0 is that of `init`
        keys = jax.vmap(partial(jax.random.fold_in, round_key))(jnp.asarray(ids))
        view = AttackerView(keys, present, algorithm.model, state.server, attack_state)
        poison, attack_state = attack.craft(view)

        # The round itself, in which their batches name the poisoned rows.
        fields = {field.name: getattr(population, field.name) for field in dataclasses.fields(Population)}
        poisoned = PoisonedPopulation(**fields, poison=poison)
        state, info = honest(key, state, poisoned)
        return state._replace(adversary=attack_state), info

    round_ = partial(poison_round, algorithm.round)
    mechanism = algorithm.mechanism
    if mechanism is not None:  # what honest clients send is hidden as before
        mechanism = mechanism._replace(made_for=(init, round_, algorithm.streaming))
    return algorithm._replace(
        init=init,
        round=round_,
        mechanism=mechanism,
        plain_round=None if algorithm.plain_round is None else partial(poison_round, algorithm.plain_round),
    )


def label_flip(
    clients: Sequence[int] | np.ndarray,
    *,
    num_negatives: int | None = None,
    scale: tuple[float, float] = (1.0, 5.0),
) -> Adversary:
    """Label flip: clients that train honestly on the opposite of their labels.

    * ratings: r becomes least + most - r;
    * batches of the whole catalogue: a label y of an example becomes 1 - y;
    * batches of P positives with n negatives each: every positive changes places with the first of its negatives.
      The other n - 1 negatives are left out: as positives, which they became, a batch has no room for them.

    Args:
        clients: int[M], their ids.
        num_negatives: n, of algorithms with sampled negatives, the same as theirs.
        scale: the least and the most rating.

    Returns:
        an adversary.

    Raises:
        ValueError: if there is no client, or one twice or below 0; in the first round, if batches are of sampled
            negatives and `num_negatives` is missing or does not fit.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import run, tiny_population
        >>> algorithm = fr.fedmf(dim=2, cohort=9, num_negatives=4, adversary=label_flip([0], num_negatives=4))
        >>> int(run(algorithm, tiny_population()).round)
        2

    Source: Biggio et al. 2012, "Poisoning attacks against support vector machines"; as an attack on federated
    learning, Tolpegin et al. 2020, "Data poisoning attacks against federated learning systems".
    """
    ids = check_client_ids(clients)

    def wrap(work: ClientWork) -> ClientWork:
        def batch(client: Client, population: Population, t: Any) -> Batch:
            honest = work.batches.batch(client, population, t)
            flipped = _flip(honest, population.num_items, num_negatives, scale)
            malicious = jnp.isin(client.id, jnp.asarray(ids))
            return jax.tree.map(lambda new, old: jnp.where(malicious, new, old), flipped, honest)

        upload = None if work.upload is None else work.upload.without_shortcut()
        return work._replace(batches=work.batches._replace(batch=batch), upload=upload)

    return Adversary("label_flip", wrap)


def _flip(batch: Batch, num_items: int, num_negatives: int | None, scale: tuple[float, float]) -> Batch:
    """The batch with the opposite labels."""
    data = batch.data
    if "rating" in data:
        return batch._replace(data=data | {"rating": (sum(scale) - data["rating"]) * data["mask"]})
    if "label" in data:
        return batch._replace(data=data | {"label": (1.0 - data["label"]) * data["mask"]})
    size = batch.ids.shape[0]
    if num_negatives is None or size % (1 + num_negatives):
        raise ValueError(
            f"num_negatives={num_negatives} does not divide a batch of {size} into positives and their negatives; "
            "give the algorithm's own"
        )

    # Positives [P] and their negatives [P, n]; a pair swaps where both are there, and I is an empty slot.
    num_positives = size // (1 + num_negatives)
    positives = batch.ids[:num_positives]
    negatives = batch.ids[num_positives:].reshape(num_positives, num_negatives)
    both = (positives < num_items) & (negatives[:, 0] < num_items)
    new_positives = jnp.where(both, negatives[:, 0], num_items)
    new_negatives = jnp.full_like(negatives, num_items).at[:, 0].set(jnp.where(both, positives, num_items))
    ids = jnp.concatenate([new_positives, new_negatives.reshape(-1)])
    return Batch(ids, data | {"mask": (ids < num_items).astype(jnp.float32)})
