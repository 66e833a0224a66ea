"""The pointwise loss of positives and negatives, and what goes with it, for several algorithms."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.client.local_training import Loss
from fedjax_rec.types import Batch, Params


def binary_cross_entropy(
    score: Callable[[Params], jax.Array], positives: int | None, regularisation: float | jax.Array = 0.0
) -> Loss:
    """Binary cross-entropy of a batch of `with_negatives`, summed over its examples, with L2.

    L = sum_i [-y_i log sigmoid(s_i) - (1 - y_i) log sigmoid(-s_i) + lambda / 2 (|row_i|^2 + |private|^2)]; shared
    leaves are free. A sum and not a mean, so that a row's step does not depend on how many rows share its batch.

    Args:
        score: (params) -> logits float32[B] of the batch's rows.
        positives: P, the slots at the front of a batch whose label is 1; None reads `data["label"]`.
        regularisation: lambda, on each row visited and, as often, on the private leaves.

    Returns:
        the loss, for `local_training`.

    Example:
        >>> loss = binary_cross_entropy(lambda params: params.tables, 1)
        >>> batch = Batch(jnp.array([3, 5]), {"mask": jnp.ones(2)})
        >>> value, examples = loss(Params((), (), jnp.zeros(2)), batch)
        >>> round(float(value), 4), float(examples)
        (1.3863, 2.0)

    Source: He et al. 2017, "Neural collaborative filtering", eq. 7.
    """

    def loss(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        mask = batch.data["mask"]
        label = batch.data["label"] if positives is None else 1.0 * (jnp.arange(mask.shape[0]) < positives)
        value = (mask * optax.sigmoid_binary_cross_entropy(score(params), label)).sum()
        return value + 0.5 * regularisation * squares(params, mask), mask.sum()

    return loss


def squares(params: Params, mask: jax.Array) -> jax.Array:
    """Squared norms that L2 counts: of each row visited and, as often, of the private leaves.

    Args:
        params: one client's view, tables [B, ...].
        mask: float32[B], 1 for a row that is visited.

    Returns:
        sum_i mask_i (|row_i|^2 + |private|^2), float32[].

    Example:
        >>> float(squares(Params(jnp.array([2.0]), (), jnp.array([[3.0], [1.0]])), jnp.array([1.0, 0.0])))
        13.0
    """
    rows = sum((mask * (x**2).reshape(x.shape[0], -1).sum(1)).sum() for x in jax.tree.leaves(params.tables))
    private = sum((x**2).sum() for x in jax.tree.leaves(params.private))
    return rows + mask.sum() * private


def scaled(
    *, private: float | jax.Array = 1.0, shared: float | jax.Array = 1.0
) -> optax.GradientTransformation:
    """Scale the gradients of private and shared leaves, which every example of a batch moves, and not the rows'.

    A batch's summed loss moves a row by one example and a network by all: one rate would not serve both. Put it
    before an optimizer whose steps follow the gradient's size, such as SGD.

    Args:
        private: factor of the private leaves.
        shared: factor of the shared leaves.

    Returns:
        a gradient transformation over `Params`.

    Example:
        >>> grads = Params(jnp.array(1.0), jnp.array(1.0), jnp.array([1.0]))
        >>> rule = scaled(shared=0.5)
        >>> float(rule.update(grads, rule.init(grads))[0].shared)
        0.5
    """

    def scale(grads: Params, params: Params | None = None) -> Params:
        del params
        scaled_private = jax.tree.map(lambda g: private * g, grads.private)
        scaled_shared = jax.tree.map(lambda g: shared * g, grads.shared)
        return Params(scaled_private, scaled_shared, grads.tables)

    return optax.stateless(scale)


def at_least(minimum: int, **settings: float | jax.Array) -> None:
    """Refuse settings that are too small; values that are being traced pass.

    Args:
        minimum: the bound.
        settings: value by name.

    Raises:
        ValueError: naming the first that is too small.

    Example:
        >>> at_least(1, dim=0)
        Traceback (most recent call last):
        ValueError: dim must be at least 1, not 0
    """
    for name, value in settings.items():
        if isinstance(value, (int, float)) and not value >= minimum:
            raise ValueError(f"{name} must be at least {minimum}, not {value}")


def above_zero(**settings: float | jax.Array) -> None:
    """Refuse settings that are not above 0; values that are being traced pass.

    Args:
        settings: value by name.

    Raises:
        ValueError: naming the first that is not.

    Example:
        >>> above_zero(learning_rate=0.0)
        Traceback (most recent call last):
        ValueError: learning_rate must be above 0, not 0.0
    """
    for name, value in settings.items():
        if isinstance(value, (int, float)) and not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}")
