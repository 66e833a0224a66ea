"""A slow float64 reference of the forward pass of Kang & McAuley 2018, position by position, and of its loss.

Written from the paper's section III; it shares no code with the library. Gradients are not by hand: the test
differentiates a plain twin, which this forward pass checks.
"""

from collections.abc import Sequence
from math import exp, log1p, sqrt
from typing import Any

import numpy as np


def normalise(norm: dict[str, np.ndarray], x: np.ndarray) -> np.ndarray:
    """Layer norm of one position, section III-C."""
    return norm["scale"] * (x - x.mean()) / sqrt(x.var() + 1e-8) + norm["shift"]


def attend(block: Any, xs: Sequence[np.ndarray], position: int, *, causal: bool = True) -> np.ndarray:
    """Eq. 2 to 4: what one position takes from itself and the earlier ones; causal=False is wrong on purpose."""
    seen = range(position + 1) if causal else range(len(xs))
    query = xs[position] @ block["query"]
    logits = [query @ (xs[s] @ block["key"]) / sqrt(len(query)) for s in seen]
    weights = [exp(logit - max(logits)) for logit in logits]
    values = [xs[s] @ block["value"] for s in seen]
    return sum((w * v for w, v in zip(weights, values, strict=True)), np.zeros_like(query)) / sum(weights)


def network(block: Any, x: np.ndarray) -> np.ndarray:
    """Eq. 5: two layers, the same at each position."""
    inner = np.maximum(x @ block["inner"]["weights"] + block["inner"]["bias"], 0.0)
    return inner @ block["outer"]["weights"] + block["outer"]["bias"]


def encode(encoder: Any, vectors: Sequence[np.ndarray], *, causal: bool = True) -> list[np.ndarray]:
    """F of a sequence without empty slots, which takes the last of the learned positions."""
    positions = encoder["position"][len(encoder["position"]) - len(vectors) :]
    xs = [sqrt(len(v)) * v + p for v, p in zip(vectors, positions, strict=True)]
    for block in encoder["blocks"]:
        normed = [normalise(block["before_attention"], x) for x in xs]
        xs = [x + attend(block, normed, t, causal=causal) for t, x in enumerate(xs)]
        xs = [x + network(block, normalise(block["before_network"], x)) for x in xs]
    return [normalise(encoder["norm"], x) for x in xs]


def loss(
    encoder: Any,
    table: np.ndarray,
    sequence: Sequence[int],
    negatives: dict[int, list[int]],
    *,
    causal: bool = True,
) -> float:
    """Eq. 6 without padding: `negatives` of each item that is predicted."""
    encoded = encode(encoder, [table[i] for i in sequence[:-1]], causal=causal)
    value = 0.0
    for state, item in zip(encoded, sequence[1:], strict=True):
        value += log1p(exp(-(state @ table[item])))
        value += sum(log1p(exp(state @ table[j])) for j in negatives[item])
    return value
