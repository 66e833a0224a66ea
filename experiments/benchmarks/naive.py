"""The naive peer: vmap over clients, each with a dense copy of the item table, padded to the longest history."""

import time

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.task import NEGATIVES, POSITIVES, RATE, Draws, Task, algorithm
from fedjax_rec.types import Client

CHUNK = 100  # a cohort at once: each client holds the whole table twice


def measure(task: Task, draws: Draws, clients: int) -> tuple[list[float], np.ndarray]:
    """Clients per second over `clients` clients of the first round, after compilation.

    Args:
        task: the data.
        draws: cohorts and keys.
        clients: how many of the first cohort, in chunks of 100.

    Returns:
        clients per second [1], and an empty table (a part of a round has no checksum).
    """
    population = task.population
    batches = algorithm(1, 1).work.batches
    longest = int(batches.num_batches(int(np.diff(task.offsets).max())))
    label = jnp.arange(POSITIVES * (1 + NEGATIVES)) < POSITIVES

    def loss(params: tuple[jax.Array, jax.Array], ids: jax.Array) -> jax.Array:
        vector, table = params
        score = table.at[ids].get(mode="fill", fill_value=0) @ vector
        entropy = jnp.logaddexp(0.0, score) - label * score
        return jnp.where(ids < task.num_items, entropy, 0.0).sum()

    def train(client: Client, vector: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        def step(t: jax.Array, params: tuple) -> tuple:
            ids = batches.batch(client, population, t).ids
            ids = jnp.where(t < batches.num_batches(client.num_examples), ids, task.num_items)
            return jax.tree.map(lambda p, g: p - RATE * g, params, jax.grad(loss)(params, ids))

        vector, local = jax.lax.fori_loop(0, longest, step, (vector, table))
        return vector, local - table

    @jax.jit
    def chunk(clients: Client, vectors: jax.Array, table: jax.Array) -> tuple[jax.Array, jax.Array]:
        new, deltas = jax.vmap(train, in_axes=(0, 0, None))(clients, vectors, table)
        return new, deltas.sum(0)

    counts = np.diff(task.offsets)
    table, seconds = jnp.asarray(draws.table), 0.0
    for start in range(-CHUNK, clients, CHUNK):  # the first chunk compiles
        ids = draws.cohorts[0, max(start, 0) :][:CHUNK]
        keys = jnp.asarray(draws.keys[0, max(start, 0) :][:CHUNK])
        who = Client(
            jnp.asarray(ids),
            jnp.asarray(task.offsets[ids], jnp.int32),
            jnp.asarray(counts[ids], jnp.int32),
            keys,
        )
        tick = time.perf_counter()
        jax.block_until_ready(chunk(who, jnp.asarray(draws.vectors[ids]), table))
        seconds += (time.perf_counter() - tick) * (start >= 0)
    return [clients / seconds], np.zeros(0)
