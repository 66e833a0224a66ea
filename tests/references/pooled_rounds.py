"""Rounds of an algorithm that pools histories, and the same rounds by the numpy reference."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import Population
from fedjax_rec.types import Algorithm, State
from tests.references import pooled as ref

KEY = 5
# a program is compiled for a few milliseconds of work: spare LLVM's optimiser
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
Read = Callable[[State], tuple[ref.Values, list[ref.Values]]]  # float64, by the reference's names
Outcome = tuple[ref.Values, list[ref.Values], float]


def draw(algorithm: Algorithm, population: Population, turn: int) -> list[tuple[list[int], list[list[int]]]]:
    """Each client's positives, and the items of its batches in this round."""
    key, batches = jax.random.fold_in(stream(jax.random.key(KEY), "client"), turn), algorithm.work.batches
    most = int(batches.num_batches(population.max_examples))

    @jax.jit
    def name(number: jax.Array) -> jax.Array:
        client = jax.tree.map(lambda x: x[0], name_clients(key, number[None], population))
        return jax.vmap(lambda t: batches.batch(client, population, t).ids)(jnp.arange(most))

    offsets, items = np.asarray(population.offsets), np.asarray(population.examples["items"])
    drawn = []
    for n in range(population.num_clients):
        own = items[offsets[n] : offsets[n + 1]].tolist()
        cut = np.asarray(name(jnp.int32(n)))[: batches.num_batches(len(own))].tolist()
        drawn.append((own, [[i for i in ids if i < population.num_items] for ids in cut]))
    return drawn


def run_library(algorithm: Algorithm, population: Population, read: Read, rounds: int = 2) -> list[Outcome]:
    """(server's leaves, each client's leaves, mean loss per example) after each round of all clients."""
    key, found = jax.random.key(KEY), []
    state, one_round = algorithm.init(key, population), jax.jit(algorithm.round, compiler_options=QUICK)
    for _ in range(rounds):
        state, info = one_round(key, state, population)
        found.append((*read(state), float(info.loss)))
    return found


def run_reference(
    algorithm: Algorithm, population: Population, read: Read, setting: ref.Setting, rounds: int = 2
) -> list[Outcome]:
    """The same by the reference, from the algorithm's first leaves and with its batches; updates are summed.

    Leaves of the server's that `setting.averaged` names are averaged over the clients instead.
    """
    server, private = read(algorithm.init(jax.random.key(KEY), population))
    found = []
    for turn in range(rounds):
        deltas, private, losses, examples = [], list(private), 0.0, 0
        for n, (positives, batches) in enumerate(draw(algorithm, population, turn)):
            if positives:
                new, loss = ref.train(setting, {**server, **private[n]}, positives, batches)
                deltas.append({name: new[name] - server[name] for name in server})
                private[n] = {name: new[name] for name in private[n]}
                losses, examples = losses + loss, examples + setting.epochs * sum(map(len, batches))
        for name in server:
            by = len(deltas) if name in setting.averaged else 1
            server = {**server, name: server[name] + sum(delta[name] for delta in deltas) / by}
        found.append((server, private, losses / examples))
    return found


def deviation(got: Any, wanted: Any) -> float:
    """Largest difference of any leaf, relative to the leaf's largest number."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3)) for a, b in pairs)
