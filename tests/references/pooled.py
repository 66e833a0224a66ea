"""A slow float64 reference of one client of `fedgnn` and of `fedtwotower`, item by item, with gradients by hand.

Written from He et al. 2020, "LightGCN", eq. 3 (one layer on a star) and Ning et al. 2021, "Learning federated
representations and recommendations with limited negatives", section 2; it shares no code with the library. A local
step is one step of gradient descent on the client's whole loss, which is not cut into batches here.
"""

from collections.abc import Callable, Sequence
from math import exp, log1p
from typing import NamedTuple

import numpy as np

Values = dict[str, np.ndarray]
# (values, h) -> (the user's vector e, what turns dL/de into gradients by name, "pooled" for that in h)
Encode = Callable[[Values, np.ndarray], tuple[np.ndarray, Callable[[np.ndarray], Values]]]


class Setting(NamedTuple):
    """All that a client's work needs besides its data."""

    encode: Encode
    rate: float
    power: float
    strength: float  # of L2 on rows visited, and as often on the vector "user"
    spreadout: float = 0.0
    epochs: int = 1
    averaged: tuple[str, ...] = ()  # leaves of which the server averages the updates instead of summing them
    through_history: bool = True  # False is wrong on purpose: the history's rows feel no gradient through h


def mixed(mix: float) -> Encode:
    """`fedgnn`: e = (1 - mix) p + mix h."""

    def encode(values: Values, h: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], Values]]:
        e = (1 - mix) * values["user"] + mix * h
        return e, lambda slope: {"user": (1 - mix) * slope, "pooled": mix * slope}

    return encode


def tower(values: Values, h: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], Values]]:
    """`fedtwotower`: e = h + max(0, h W + b) V + c, and its chain rule."""
    before = h @ values["W"] + values["b"]
    inner = np.maximum(before, 0.0)

    def back(slope: np.ndarray) -> Values:
        into = (values["V"] @ slope) * (before > 0)
        return {
            "V": np.outer(inner, slope),
            "c": slope,
            "W": np.outer(h, into),
            "b": into,
            "pooled": slope + values["W"] @ into,
        }

    return h + inner @ values["V"] + values["c"], back


def gradient(
    setting: Setting, values: Values, positives: Sequence[int], batches: Sequence[Sequence[int]]
) -> tuple[Values, float]:
    """Gradient and value of the loss of one client, whose batches hold its positives and negatives."""
    share = len(positives) ** -setting.power
    h = sum((share * values["item"][i] for i in positives), np.zeros(values["item"].shape[1]))
    e, back = setting.encode(values, h)
    grads, value, slope = {name: np.zeros_like(x) for name, x in values.items()}, 0.0, np.zeros_like(h)
    for item in (i for batch in batches for i in batch):
        row, bias, label = values["item"][item], values["item_bias"][item], float(item in positives)
        score = row @ e + bias
        value += log1p(exp(-score)) if label else log1p(exp(score))
        error = 1 / (1 + exp(-score)) - label
        slope += error * row
        grads["item"][item] += error * e + setting.strength * row
        grads["item_bias"][item] += error + setting.strength * bias
        value += 0.5 * setting.strength * (row @ row + bias**2)
        if "user" in values:
            value += 0.5 * setting.strength * (values["user"] @ values["user"])
            grads["user"] += setting.strength * values["user"]
    for batch in batches:
        for i in batch:
            for j in batch:
                if i != j:
                    product = values["item"][i] @ values["item"][j]
                    value += 0.5 * setting.spreadout * product**2
                    grads["item"][i] += 2 * setting.spreadout * product * values["item"][j]
    chained = back(slope)
    through = chained.pop("pooled")
    grads = {name: grads[name] + chained.get(name, 0.0) for name in grads}
    if setting.through_history:
        for i in positives:
            grads["item"][i] += share * through
    return grads, float(value)


def train(
    setting: Setting, values: Values, positives: Sequence[int], batches: Sequence[Sequence[int]]
) -> tuple[Values, float]:
    """E steps of gradient descent; what the client then holds, and its summed loss."""
    loss = 0.0
    for _ in range(setting.epochs):
        grads, value = gradient(setting, values, positives, batches)
        values = {name: x - setting.rate * grads[name] for name, x in values.items()}
        loss += value
    return values, loss
