"""The seed example in plain numpy, forward and backward by hand: what the federated run is compared with.

Nothing here knows of jax. The network is dense(10) -> relu -> dense(1), its loss on one device the mean squared
error over that device's examples. All arithmetic is in float64.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np


class Device(NamedTuple):
    """One device's data."""

    features: np.ndarray  # float32[n, d]
    targets: np.ndarray  # float32[n]


class Network(NamedTuple):
    """The four arrays of the network, float64; also its gradient, which has the same shapes."""

    hidden: np.ndarray  # [d, 10]
    hidden_bias: np.ndarray  # [10]
    out: np.ndarray  # [10, 1]
    out_bias: np.ndarray  # [1]


def gradient(model: Network, device: Device) -> tuple[float, Network]:
    """Loss and gradient of the mean squared error on one device.

    With h = relu(x W + b), y = h v + c and e = y - target over n examples:
    dL/dy = 2 e / n, dL/dv = h' dL/dy, dL/dW = x' ((dL/dy v') * [x W + b > 0]), and biases sum over examples.

    Args:
        model: M.
        device: its data.

    Returns:
        the loss, and its gradient.
    """
    before = device.features @ model.hidden + model.hidden_bias
    hidden = np.maximum(before, 0.0)
    error = (hidden @ model.out + model.out_bias)[:, 0] - device.targets
    d_output = 2.0 * error[:, None] / len(error)
    d_before = (d_output @ model.out.T) * (before > 0)
    slope = Network(device.features.T @ d_before, d_before.sum(0), hidden.T @ d_output, d_output.sum(0))
    return float(np.mean(error**2)), slope


def step(model: Network, deltas: Iterable[Network], rate: float) -> Network:
    """M + a * sum_i delta_i.

    Args:
        model: M(t).
        deltas: of the devices.
        rate: a.

    Returns:
        M(t+1).
    """
    total = [sum(parts) for parts in zip(*deltas, strict=True)]
    return Network(*(m + rate * d for m, d in zip(model, total, strict=True)))


def train(model: Network, devices: Sequence[Device], rate: float, rounds: int) -> tuple[Network, list[float]]:
    """Follow the rule: every device answers to the same M(t), and the server adds up the answers.

    Args:
        model: M(0).
        devices: all take part in every round.
        rate: a.
        rounds: T.

    Returns:
        M(T), and the mean of the devices' losses at M(0), ..., M(T).
    """
    losses = [mean_loss(model, devices)]
    for _ in range(rounds):
        slopes = [gradient(model, device)[1] for device in devices]
        model = step(model, [_negative(slope) for slope in slopes], rate)
        losses.append(mean_loss(model, devices))
    return model, losses


def train_in_sequence(model: Network, devices: Sequence[Device], rate: float, rounds: int) -> Network:
    """What the original script did: one model visits the devices in turn; nothing is aggregated.

    Args:
        model: the model before the first device.
        devices: in the order of the visits.
        rate: of gradient descent.
        rounds: visits to each device.

    Returns:
        the model after the last visit; it depends on the order.
    """
    for _ in range(rounds):
        for device in devices:
            model = step(model, [_negative(gradient(model, device)[1])], rate)
    return model


def mean_loss(model: Network, devices: Sequence[Device]) -> float:
    """The mean of the devices' losses, every device counting alike.

    Args:
        model: M.
        devices: any number.

    Returns:
        the mean.
    """
    return float(np.mean([gradient(model, device)[0] for device in devices]))


def distance(model: Network, other: Network) -> float:
    """Largest difference between two networks, array by array relative to the array's largest entry.

    Args:
        model: compared.
        other: the reference.

    Returns:
        the largest over the four arrays.
    """
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(model, other, strict=True))


def _negative(slope: Network) -> Network:
    return Network(*(-part for part in slope))
