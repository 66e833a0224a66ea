"""The FedJAX peer: `fedjax.for_each_client` with the jit backend, each client with its own copy of the item table.

Run by the benchmark in its own environment, with a file of batches that share the engine's random draws:

    python fedjax_peer.py work.npz       # prints one line of JSON

Two ways to write the client's step are measured. `rates` are of the way of FedJAX's own algorithms: the gradient
of all parameters given to `fedjax.optimizers.sgd`. `rows` is the best that we could write by hand in it: only the
rows a batch names are updated, in place because the backend itself donates a client's state. Threads are left as
jax sets them.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import fedjax
import jax
import jax.numpy as jnp
import numpy as np


def entropy(rows: jax.Array, vector: jax.Array, valid: jax.Array, positives: int) -> jax.Array:
    """Sum of binary cross-entropies over a batch's valid slots, the first `positives` of which are labelled 1."""
    score = rows @ vector
    label = jnp.arange(len(rows)) < positives
    return jnp.where(valid, jnp.logaddexp(0.0, score) - label * score, 0.0).sum()


def by_rows(rate: float, positives: int) -> tuple[Callable, Callable, Callable]:
    """Init, step and final of a client that updates only the rows a batch names."""

    def step(state: tuple, batch: dict[str, jax.Array]) -> tuple:
        (table, vector), ids = state, batch["ids"]
        rows = table.at[ids].get(mode="fill", fill_value=0.0)
        slopes = jax.grad(entropy, (0, 1))(rows, vector, ids < len(table), positives)
        return table.at[ids].add(-rate * slopes[0], mode="drop"), vector - rate * slopes[1]

    return (
        lambda start, vector: (start, vector),
        step,
        lambda start, state: (state[0] - start, state[1]),
    )


def dense(rate: float, positives: int) -> tuple[Callable, Callable, Callable]:
    """Init, step and final of a client as in `fedjax.algorithms`: full gradients and the library's SGD."""
    optimizer = fedjax.optimizers.sgd(rate)

    def loss(params: dict[str, jax.Array], ids: jax.Array) -> jax.Array:
        rows = params["table"].at[ids].get(mode="fill", fill_value=0.0)
        return entropy(rows, params["vector"], ids < len(params["table"]), positives)

    def init(start: jax.Array, vector: jax.Array) -> dict[str, Any]:
        params = {"table": start, "vector": vector}
        return {"params": params, "optimizer": optimizer.init(params)}

    def step(state: dict[str, Any], batch: dict[str, jax.Array]) -> dict[str, Any]:
        slopes = jax.grad(loss)(state["params"], batch["ids"])
        inner, params = optimizer.apply(slopes, state["optimizer"], state["params"])
        return {"params": params, "optimizer": inner}

    return init, step, lambda start, state: (state["params"]["table"] - start, state["params"]["vector"])


def measure(work: dict[str, np.ndarray], way: Callable) -> tuple[list[float], np.ndarray, np.ndarray]:
    """Train the clients of the file once to warm up and `repeats` times on the clock.

    Args:
        work: arrays and settings of the file.
        way: `by_rows` or `dense`.

    Returns:
        clients per second of every repeat, the sum of the clients' updates [I, D], their new vectors [C, D].
    """
    ids, offsets, vectors = work["ids"], work["offsets"], work["vectors"]
    train = fedjax.for_each_client(*way(float(work["rate"]), int(work["positives"])))
    start, epochs = jnp.asarray(work["table"]), int(work["epochs"])
    rates, total, private = [], None, {}

    def clients() -> Iterator[tuple[int, list[dict[str, np.ndarray]], np.ndarray]]:
        for client, vector in enumerate(vectors):
            yield client, [{"ids": b} for b in ids[offsets[client] : offsets[client + 1]]] * epochs, vector

    def updates() -> Iterator[jax.Array]:
        for client, (delta, vector) in train(start, clients()):
            private[client] = vector
            yield delta

    for _ in range(1 + int(work["repeats"])):
        tick = time.perf_counter()
        total = fedjax.tree_util.tree_sum(updates())
        jax.block_until_ready((total, private))
        rates.append(len(vectors) / (time.perf_counter() - tick))
    return rates[1:], np.asarray(total), np.stack([private[client] for client in range(len(vectors))])


def main(path: str) -> None:
    """Measure both ways and print rates, norms and versions."""
    fedjax.set_for_each_client_backend("jit")
    work = dict(np.load(path, allow_pickle=False))
    found = []
    for way in (dense, by_rows):
        rates, total, _ = measure(work, way)
        found.append({"rates": rates, "norm": float(np.linalg.norm(total.astype(np.float64)))})
    versions = {"version": version("fedjax"), "jax": jax.__version__, "backend": "jit"}
    print(json.dumps(found[0] | versions | {"rows": found[1]}))


if __name__ == "__main__":
    main(sys.argv[1])
