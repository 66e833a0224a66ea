"""Fully connected layers as plain pytrees, for algorithms with a network on top of item rows."""

from collections.abc import Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp

from fedjax_rec.types import Key

Layer = dict[str, jax.Array]  # "weights" [in, out], "bias" [out]


def init_layers(key: Key, widths: Sequence[int]) -> list[Layer]:
    """Layers between successive widths: weights normal(0, sqrt(2 / in)), biases 0.

    Args:
        key: consumed.
        widths: of the input and of each layer's output.

    Returns:
        one layer fewer than widths.

    Example:
        >>> [layer["weights"].shape for layer in init_layers(jax.random.key(0), (4, 2, 1))]
        [(4, 2), (2, 1)]

    Source: He et al. 2015, "Delving deep into rectifiers", eq. 10.
    """
    sizes = list(pairwise(widths))
    keys = jax.random.split(key, len(sizes)) if sizes else ()
    return [
        {"weights": (2 / m) ** 0.5 * jax.random.normal(k, (m, n)), "bias": jnp.zeros(n)}
        for k, (m, n) in zip(keys, sizes, strict=True)
    ]


def rectified(layers: Sequence[Layer], x: jax.Array) -> jax.Array:
    """Pass rows through the layers, each followed by a rectifier: x <- max(0, x W + b).

    Args:
        layers: of `init_layers`.
        x: float32[B, in].

    Returns:
        float32[B, out].

    Example:
        >>> layers = [{"weights": jnp.array([[1.0, -1.0]]), "bias": jnp.array([0.5, 0.0])}]
        >>> rectified(layers, jnp.array([[2.0]])).tolist()
        [[2.5, 0.0]]
    """
    for layer in layers:
        x = jax.nn.relu(affine(layer, x))
    return x


def affine(layer: Layer, x: jax.Array) -> jax.Array:
    """One layer without a rectifier: x W + b.

    Args:
        layer: weights [in, out] and bias [out].
        x: float32[B, in].

    Returns:
        float32[B, out].

    Example:
        >>> affine({"weights": jnp.array([[3.0]]), "bias": jnp.array([1.0])}, jnp.array([[2.0]])).tolist()
        [[7.0]]
    """
    return x @ layer["weights"] + layer["bias"][None, :]
