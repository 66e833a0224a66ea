"""Plain-numpy gradients, example by example, of the networks of FedNCF and FedPer.

He et al. 2017, "Neural collaborative filtering", eqs. 8 to 12, and Arivazhagan et al. 2019, figure 1. A layer is
{"weights" [in, out], "bias" [out]}; the chain rule is written out.
"""

from typing import Any

import numpy as np

from tests.references.rounds import Batch, Tree, combine, sigmoid


def forward(layers: list[Tree], x: np.ndarray) -> list[np.ndarray]:
    """The input and every layer's rectified output."""
    passed = [x]
    for layer in layers:
        passed.append(np.maximum(passed[-1] @ layer["weights"] + layer["bias"], 0.0))
    return passed


def backward(
    layers: list[Tree], passed: list[np.ndarray], slope: np.ndarray, grads: list[Tree]
) -> np.ndarray:
    """Add the layers' gradients to `grads`; return the derivative in the input."""
    for layer, grad, x, out in reversed(list(zip(layers, grads, passed[:-1], passed[1:], strict=True))):
        slope = np.where(out > 0, slope, 0.0)
        grad["weights"] += np.outer(x, slope)
        grad["bias"] += slope
        slope = layer["weights"] @ slope
    return slope


def neural_factorisation(user: Tree, shared: Tree, items: Tree, batch: Batch) -> tuple[Tree, Tree, Tree]:
    """FedNCF: s = w . [p_g * q_g, tower([p_m, q_m])] + b."""
    own, dense, rows = (combine(np.zeros_like, tree) for tree in (user, shared, items))
    output, grad = shared["output"], dense["output"]
    for item, label in zip(*batch, strict=True):
        features: list[Any] = []
        if "gmf" in user:
            features += list(user["gmf"] * items["gmf"][item])
        if "mlp" in user:
            passed = forward(shared["tower"], np.concatenate([user["mlp"], items["mlp"][item]]))
            features += list(passed[-1])
        slope = sigmoid(np.array(features) @ output["weights"][:, 0] + output["bias"][0]) - label
        grad["weights"][:, 0] += slope * np.array(features)
        grad["bias"] += slope
        back = slope * output["weights"][:, 0]
        if "gmf" in user:
            width = len(user["gmf"])
            own["gmf"] += back[:width] * items["gmf"][item]
            rows["gmf"][item] += back[:width] * user["gmf"]
            back = back[width:]
        if "mlp" in user:
            pair = backward(shared["tower"], passed, back, dense["tower"])
            own["mlp"] += pair[: len(user["mlp"])]
            rows["mlp"][item] += pair[len(user["mlp"]) :]
    return own, dense, rows


def personalised(private: Tree, shared: Tree, items: Tree, batch: Batch) -> tuple[Tree, Tree, Tree]:
    """FedPer: s = head(base(q_i)), both of rectified layers, but for the head's last."""
    own, dense, rows = (combine(np.zeros_like, tree) for tree in (private, shared, items))
    *hidden, last = private["head"]
    *hidden_grads, last_grad = own["head"]
    for item, label in zip(*batch, strict=True):
        below = forward(shared["base"], items["vector"][item])
        above = forward(hidden, below[-1])
        slope = sigmoid(above[-1] @ last["weights"][:, 0] + last["bias"][0]) - label
        last_grad["weights"][:, 0] += slope * above[-1]
        last_grad["bias"] += slope
        back = backward(hidden, above, slope * last["weights"][:, 0], hidden_grads)
        rows["vector"][item] += backward(shared["base"], below, back, dense["base"])
    return own, dense, rows
