"""Causal self-attention over a client's sequence of items, as plain pytrees."""

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.common.networks import affine, init_layers
from fedjax_rec.types import Key, PyTree

_MASKED = -1e9  # the logit of what must not be attended to
_EPSILON = 1e-8  # added to variances


def init_encoder(key: Key, dim: int, length: int, blocks: int, scale: float | jax.Array) -> PyTree:
    """Parameters of `encode`: learned positions, blocks, and the last layer norm.

    Args:
        key: consumed.
        dim: D.
        length: L, positions.
        blocks: of attention and feed-forward layers.
        scale: positions start as normal(0, scale); matrices as in `init_layers`.

    Returns:
        {"position" [L, D], "blocks": one dictionary each, "norm"}.

    Example:
        >>> init_encoder(jax.random.key(0), 4, 10, 1, 0.1)["position"].shape
        (10, 4)
    """
    position_key, *keys = jax.random.split(key, 1 + blocks)
    position = scale * jax.random.normal(position_key, (length, dim))
    return {"position": position, "blocks": [_init_block(k, dim) for k in keys], "norm": _init_norm(dim)}


def _init_block(key: Key, dim: int) -> PyTree:
    attention, network = jax.random.split(key)
    names = ("query", "key", "value")
    matrices = jax.random.normal(attention, (3, dim, dim)) / dim**0.5
    block = dict(zip(names, matrices, strict=True))
    inner, outer = init_layers(network, (dim, dim, dim))
    norms = {"before_attention": _init_norm(dim), "before_network": _init_norm(dim)}
    return {**block, "inner": inner, "outer": outer, **norms}


def _init_norm(dim: int) -> PyTree:
    return {"scale": jnp.ones(dim), "shift": jnp.zeros(dim)}


def encode(encoder: PyTree, vectors: jax.Array, mask: jax.Array) -> jax.Array:
    """What a sequence says at each of its positions of what comes next; no position sees a later one.

    x = sqrt(D) vectors + positions; in each block x <- x + attention(norm(x)), x <- x + network(norm(x)), with
    attention(y) = softmax(y Wq (y Wk)^T / sqrt(D)) y Wv over earlier positions and network(y) = max(0, y W1 + b1)
    W2 + b2; at the end norm(x).

    Args:
        encoder: of `init_encoder`.
        vectors: float32[L, D], item vectors in order of time.
        mask: float32[L], 0 for an empty slot, which nothing attends to.

    Returns:
        float32[L, D]; of no meaning in an empty slot.

    Example:
        >>> encoder = init_encoder(jax.random.key(0), 4, 3, 2, 0.1)
        >>> encode(encoder, jnp.ones((3, 4)), jnp.ones(3)).shape
        (3, 4)

    Source: Kang & McAuley 2018, "Self-attentive sequential recommendation", section III.
    """
    length, dim = vectors.shape
    allowed = jnp.tril(jnp.ones((length, length), bool)) & (mask > 0)[None, :]
    x = (vectors * dim**0.5 + encoder["position"]) * mask[:, None]
    for block in encoder["blocks"]:
        x = x + _attend(block, _normalise(block["before_attention"], x), allowed)
        inner = jax.nn.relu(affine(block["inner"], _normalise(block["before_network"], x)))
        x = x + affine(block["outer"], inner)
    return _normalise(encoder["norm"], x)


def _attend(block: PyTree, x: jax.Array, allowed: jax.Array) -> jax.Array:
    """Attention of one head, each position to the allowed ones; [L, D] -> [L, D]."""
    logits = (x @ block["query"]) @ (x @ block["key"]).T / x.shape[1] ** 0.5
    weights = jax.nn.softmax(jnp.where(allowed, logits, _MASKED), axis=1)
    return weights @ (x @ block["value"])


def _normalise(norm: PyTree, x: jax.Array) -> jax.Array:
    """Layer norm of each position: mean 0 and variance 1, then scale and shift."""
    centred = x - x.mean(1, keepdims=True)
    unit = centred * jax.lax.rsqrt((centred**2).mean(1, keepdims=True) + _EPSILON)
    return unit * norm["scale"][None, :] + norm["shift"][None, :]
