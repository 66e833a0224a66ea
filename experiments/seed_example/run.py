"""The seed's own example: four devices train one small network by M(t+1) = M(t) + a * sum_i delta_i.

    python -m experiments.seed_example.run        # about 6 s on two CPU cores; needs no data

Roles: delta_i = -grad L_i(M(t)), the change that one full-batch SGD epoch with local rate 1 makes on device i, and
the server's rate is a = alpha = 0.01. With a single local step this equals local rate alpha and server rate 1, for
the step is linear in either; `make_algorithm` takes both rates, and the test runs both ways.

Expected: loss 2.2787 at M(0) and 0.2243 at M(100), where the weights equal plain numpy's to 1e-5.
See the README beside this file for the numbers of every tenth round and for what the original did otherwise.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import fedjax_rec as fr
from experiments.seed_example.by_hand import Device, Network, distance, mean_loss, train, train_in_sequence
from fedjax_rec.types import Batch, Client, Key, LocalBatches

SIZES = (8, 16, 32, 64)  # examples on each of the N = 4 devices
NUM_FEATURES = 5
RATE = 0.01  # alpha
ROUNDS = 100
SEED = 0

NETWORK = nn.Sequential([nn.Dense(10), nn.relu, nn.Dense(1)])


def draw_devices(seed: int, sizes: Sequence[int] = SIZES) -> list[Device]:
    """Draw a linear regression per device: its own mean of the features, its own slope around a common one.

    Args:
        seed: decides everything.
        sizes: number of examples of each device.

    Returns:
        the devices' data, features [n, 5] and targets [n].
    """
    rng = np.random.default_rng(seed)
    common = rng.normal(size=NUM_FEATURES)
    devices = []
    for size in sizes:
        mean, slope = rng.normal(size=NUM_FEATURES), common + 0.3 * rng.normal(size=NUM_FEATURES)
        features = mean + rng.normal(size=(size, NUM_FEATURES))
        targets = features @ slope + 0.1 * rng.normal(size=size)
        devices.append(Device(features.astype(np.float32), targets.astype(np.float32)))
    return devices


def to_population(devices: Sequence[Device]) -> fr.Population:
    """Lay the devices' data back to back.

    Args:
        devices: N of them.

    Returns:
        a population with examples "features" [M, d] and "targets" [M], and no items.
    """
    examples = {
        "features": np.concatenate([device.features for device in devices]),
        "targets": np.concatenate([device.targets for device in devices]),
    }
    return fr.Population.from_arrays(examples, np.array([len(device.targets) for device in devices]))


def full_batch(size: int) -> LocalBatches:
    """One batch an epoch: all of the client's examples, padded to `size` with a mask.

    Args:
        size: examples of the largest client.

    Returns:
        local batches with data "features" [size, d], "targets" [size] and "mask" [size]; they touch no item row.
    """

    def batch(client: Client, population: fr.Population, t: jax.Array) -> Batch:
        del t  # always 0
        slot = jnp.arange(size)
        held = slot < client.num_examples
        place = jnp.where(held, client.offset + slot, population.offsets[-1])
        data = {
            name: leaf.at[place].get(mode="fill", fill_value=0) for name, leaf in population.examples.items()
        }
        no_rows = jnp.zeros(0, jnp.int32)
        return Batch(no_rows, {**data, "mask": held.astype(jnp.float32)})

    return LocalBatches(lambda num_examples: -(-num_examples // size), batch)


def mean_squared_error(params: fr.Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """The mean over one device's examples; it counts as one example, so that reports average over devices.

    Args:
        params: of which `shared` is the network.
        batch: of `full_batch`.

    Returns:
        the loss float32[], and 1.
    """
    mask = batch.data["mask"]
    output: Any = NETWORK.apply(params.shared, batch.data["features"])
    error = output[:, 0] - batch.data["targets"]
    return (mask * error**2).sum() / mask.sum(), jnp.float32(1)


def make_algorithm(size: int, *, local_rate: float = 1.0, server_rate: float = RATE) -> fr.types.Algorithm:
    """State the rule as values of `federate`: everyone takes part, the server adds a times the sum.

    Args:
        size: examples of the largest client.
        local_rate: of the devices' one SGD step.
        server_rate: a.

    Returns:
        the algorithm.
    """

    def init_server(key: Key, population: fr.Population) -> fr.Server:
        example = population.examples["features"][:1]
        return fr.Server(NETWORK.init(key, example), {})

    return fr.federate(
        fr.Model(lambda key: {}, init_server),  # noqa: ARG005 - a client keeps nothing private
        fr.local_training(mean_squared_error, optax.sgd(local_rate), full_batch(size)),
        sampler=fr.samplers.everyone(),
        aggregator=fr.server.total(),
        server_optimizer=fr.server.fedavg(server_rate),
    )


def to_numpy(server: fr.Server) -> Network:
    """The network's arrays in float64, for `by_hand`.

    Args:
        server: the global model.

    Returns:
        the four arrays.
    """
    hidden, out = (server.shared["params"][layer] for layer in ("layers_0", "layers_2"))
    arrays = (hidden["kernel"], hidden["bias"], out["kernel"], out["bias"])
    return Network(*(np.asarray(array, np.float64) for array in arrays))


def run(seed: int = SEED, rounds: int = ROUNDS) -> tuple[Network, Network, fr.training.History]:
    """Train by the library.

    Args:
        seed: of data and network.
        rounds: T.

    Returns:
        M(0), M(T) and the history, whose `rounds.loss[t]` is the mean of the devices' losses at M(t).
    """
    population = to_population(draw_devices(seed))
    algorithm = make_algorithm(population.max_examples)
    start = to_numpy(algorithm.init(jax.random.key(seed), population).server)
    state, history = fr.simulate(algorithm, population, rounds=rounds, seed=seed, eval_every=10)
    return start, to_numpy(state.server), history


def main() -> None:
    """Print the loss of every tenth round, the comparison with numpy, and the original's dependence on order."""
    devices = draw_devices(SEED)
    start, end, history = run()
    print("round  loss (mean over devices)")
    for t in range(0, ROUNDS, 10):
        print(f"{t:5d}  {history.rounds.loss[t]:.4f}")
    print(f"{ROUNDS:5d}  {mean_loss(end, devices):.4f}")
    by_hand, _ = train(start, devices, RATE, ROUNDS)
    print(f"largest relative difference from plain numpy: {distance(end, by_hand):.1e}")
    visit = partial(train_in_sequence, start, rate=RATE, rounds=ROUNDS)
    forth, back = visit(devices=devices), visit(devices=devices[::-1])
    print("the original, one model in sequence:")
    print(f"  devices 0 1 2 3: loss {mean_loss(forth, devices):.4f}")
    print(f"  devices 3 2 1 0: loss {mean_loss(back, devices):.4f}")
    print(f"  largest relative difference of their weights: {distance(back, forth):.0%}")


if __name__ == "__main__":
    main()
