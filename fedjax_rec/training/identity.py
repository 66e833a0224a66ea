"""What decides a run, by which its checkpoints, and a ledger of privacy, know it again."""

import json
from typing import Any

import jax
import numpy as np

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import StoredPopulation, paper_cohort
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluator import EvaluationPoint
from fedjax_rec.federation.initial import init_private
from fedjax_rec.training.checkpoints.leaves import digest, to_arrays
from fedjax_rec.training.checkpoints.manager import Checkpoints, RunIdentity, fingerprint
from fedjax_rec.training.history import Stop
from fedjax_rec.types import Algorithm, Key, Plan, State


def what_must_match(
    seed: int | Key,
    eval_every: int,
    keep: str,
    stop: Stop,
    data: Split | Population | StoredPopulation,
    population: Population,
) -> dict[str, Any]:
    """What decides a run, besides the algorithm, by name.

    Args:
        seed: as of `simulate`; so are the others.
        eval_every: rounds of a block.
        keep: "best" or "last".
        stop: the stopping rules.
        data: a split or a population, in memory or in a store.
        population: the clients.

    Returns:
        plain values by name.
    """
    leaves: Any = data._asdict() if isinstance(data, Split) else jax.tree.leaves(population)
    if isinstance(data, StoredPopulation):
        leaves = [np.frombuffer(bytes.fromhex(data.store.data_hash), np.uint8)]
        leaves += [] if data.split is None else jax.tree.leaves(data.split._asdict())
    arrays = [np.asarray(leaf) for leaf in jax.tree.leaves(leaves) if hasattr(leaf, "dtype")]
    is_number = isinstance(seed, (int, np.integer))
    return {
        "negatives": data.negatives if isinstance(data, Split) else None,
        "clients": population.num_clients,
        "items": population.num_items,
        "data hash": digest(arrays)[:12],
        # with what is no negative, which no array of a split says
        "population": digest([np.asarray(leaf) for leaf in jax.tree.leaves(population)])[:12],
        "seed": int(seed) if is_number else np.asarray(jax.random.key_data(seed)).tolist(),
        "eval_every": eval_every,
        "keep": keep,
        **{name: value for name, value in stop._asdict().items() if name != "seconds"},
    }


def identify_run(
    checkpoint: Checkpoints, must_match: dict[str, Any], plan: Plan, values: str, program: str
) -> RunIdentity:
    """A run as its checkpoints know it.

    Args:
        checkpoint: where it is saved.
        must_match: of `what_must_match`; the checkpoint's own values are added.
        plan: the engine's choices.
        values: digest of what the algorithm computes, of `digest_values`.
        program: digest of the compiled rounds.

    Returns:
        the identity.
    """
    names = ("devices", "lanes", "schedule", "row_update", "stream_clients", "table_shards")
    server_rows = "all" if plan.touched_rows is None else "touched"
    return RunIdentity(
        must_match=json.loads(json.dumps(dict(checkpoint.must_match) | must_match, default=str)),
        plan={name: getattr(plan, name) for name in names} | {"server_rows": server_rows},
        values=values,
        program=program,
    )


def name_point(point: EvaluationPoint | None) -> str:
    """Which point selects the round; one without a name is told by that of its function.

    Args:
        point: of `simulate`; None for the server's parameters.

    Returns:
        its name.

    Example:
        >>> name_point(None)
        'server'
    """
    if point is None:
        return "server"
    return point.name or f"{point.score.__module__}.{point.score.__qualname__}"


def digest_values(algorithm: Algorithm, key: Key, state: State, population: Population) -> str:
    """The digest of what an algorithm computes, from its start to its scores, whatever the engine's plan.

    Args:
        algorithm: of the run.
        key: the run's.
        state: of its shapes; so are the clients.
        population: the clients.

    Returns:
        12 hexadecimal digits; empty for an algorithm without `plain_round`.

    Example:
        >>> import fedjax_rec as fr
        >>> from fedjax_rec.testing import tiny_population
        >>> population, key = tiny_population(), jax.random.key(0)
        >>> state = fr.fedmf(dim=2).init(key, population)
        >>> one, other = fr.fedmf(dim=2, lanes=2), fr.fedmf(dim=2, lanes=2, learning_rate=0.5)
        >>> found = [digest_values(each, key, state, population) for each in (fr.fedmf(dim=2), one, other)]
        >>> found[0] == found[1], found[0] == found[2]
        (True, False)
    """
    one_round = algorithm.plain_round
    if one_round is None:
        return ""
    model = algorithm.model

    def compute(key: Key, state: State, population: Population) -> Any:
        server = model.init_server(key, population)
        private = init_private(model, key, population.num_clients, server)
        own = jax.tree.map(lambda leaf: leaf[0], state.private)
        scores = () if algorithm.score is None else algorithm.score(own, state.server)
        return server, private, scores, one_round(key, state, population)

    if population.stored:
        population = paper_cohort(population, population.num_clients)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (key, state, population))
    # lowered for one kind of device on all machines
    return fingerprint(jax.jit(compute).trace(*shapes).lower(lowering_platforms=("cpu",)).as_text())


def name_of(algorithm: Algorithm, key: Key, state: State, population: Population, data: Any = None) -> str:
    """What tells a run from others: its noise, which is its key's, and what hides in it: data, rounds, start.

    Args:
        algorithm: of the run.
        key: the run's key.
        state: at its start; one of later rounds does not tell the start.
        population: the clients.
        data: what was given; of a population in a store its histories count too, which no leaf here holds.

    Returns:
        a name for the ledger: noise, data, rounds and, where it is known, start.
    """
    values = digest_values(algorithm, key, state, population)
    noise = [np.asarray(jax.random.key_data(key))]
    clients = [np.asarray(leaf) for leaf in jax.tree.leaves(population)]
    histories = data.store.data_hash[:12] if isinstance(data, StoredPopulation) else ""
    start = [digest(to_arrays(state))[:12]] if int(state.round) == 0 else []
    return "-".join([digest(noise)[:12], digest(clients)[:12] + histories, values, *start])


def describe_leaf(leaf: Any) -> jax.ShapeDtypeStruct:
    """All of a leaf that a program's text depends on.

    Args:
        leaf: an array of the state.

    Returns:
        its shape, dtype and, where it was put, sharding.
    """
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
