"""The objective of additive personalisation, and its gradient in closed form: a private table beside a common one.

With rows d_i of the client's own table D_u, rows c_i of the common table C and a head (w, b), an item's score is
s_i = w . (d_i + c_i) + b, and the loss of a mini-batch B

    mean over B of BCE(sigmoid(s_i)) - lambda mean (d_i - c_i)^2 + mu mean |c_i|.

L2 pulls on all leaves besides, rows outside B included: so whole tables are passed, and `chosen` says which rows
are of B.

Source: Li et al. 2024, "Federated recommendation with additive personalization" (ICLR), eq. 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_rec.algorithms.pfedrec import cross_entropy_of_sigmoid


class View(NamedTuple):
    """One client's parameters, or their gradient."""

    own: jax.Array  # [I, D], D_u
    common: jax.Array  # [I, D], C
    head: dict[str, jax.Array]  # "weights" [D], "bias" []


class Objective(NamedTuple):
    """Weights of what is added to the cross-entropy."""

    independence: float | jax.Array  # lambda
    sparsity: float | jax.Array  # mu
    regularisation: float | jax.Array  # L2
    curriculum: bool  # whether lambda and mu grow with tanh(round / 10)

    def growth(self, round_: jax.Array) -> jax.Array | float:
        """Factor of lambda and mu in a round, float32[]."""
        return jnp.tanh(round_ / 10) if self.curriculum else 1.0

    def scaled(self, growth: jax.Array | float) -> "Objective":
        """Lambda and mu times a factor; a lambda of 0 stays a plain 0, which costs nothing."""
        independence = 0.0 if _is_zero(self.independence) else self.independence * growth
        return self._replace(independence=independence, sparsity=self.sparsity * growth)


def additive_logits(view: View) -> jax.Array:
    """Score all items.

    Args:
        view: of one client.

    Returns:
        s, float32[I].

    Example:
        >>> head = {"weights": jnp.ones(2), "bias": jnp.array(0.5)}
        >>> additive_logits(View(jnp.ones((3, 2)), jnp.zeros((3, 2)), head)).tolist()
        [2.5, 2.5, 2.5]
    """
    return (view.own + view.common) @ view.head["weights"] + view.head["bias"]


def additive_gradient(
    objective: Objective, view: View, chosen: jax.Array, label: jax.Array
) -> tuple[jax.Array, View]:
    """The loss of a mini-batch and how its mean changes with each parameter.

    Args:
        objective: the weights of this round.
        view: where the client is.
        chosen: float32[I], 1 for the rows of the mini-batch.
        label: float32[I], 1 for positives.

    Returns:
        the loss summed over the mini-batch without L2, float32[], and the gradient of its mean with L2.

    Example:
        >>> view = View(jnp.ones((3, 2)), jnp.zeros((3, 2)), {"weights": jnp.ones(2), "bias": jnp.array(-2.0)})
        >>> plain, first = Objective(0.0, 0.0, 0.0, False), jnp.array([1.0, 0.0, 0.0])
        >>> loss, grads = additive_gradient(plain, view, first, jnp.ones(3))
        >>> round(float(loss), 4), grads.own[:, 0].tolist()
        (0.6931, [-0.5, 0.0, 0.0])
    """
    # losses and slopes in the logits [I], and what a row and one of its numbers weigh in the means
    losses, slope = cross_entropy_of_sigmoid(additive_logits(view), label)
    share = chosen / jnp.maximum(chosen.sum(), 1.0)
    entry = share[:, None] / view.own.shape[1]
    # the gradient of the cross-entropy, and of mu |c| in the common table
    penalty = objective.sparsity * jnp.abs(view.common)
    sparse = objective.sparsity * entry * jnp.sign(view.common)
    fit = jnp.outer(share * slope, view.head["weights"])
    head = {"weights": (share * slope) @ (view.own + view.common), "bias": (share * slope).sum()}
    grads = View(fit, fit + sparse, head)
    # that of -lambda (d - c)^2; without the test, passes over both tables for zeros that the compiler keeps
    if not _is_zero(objective.independence):
        difference = view.own - view.common
        pull = 2 * objective.independence * entry * difference
        penalty = penalty - objective.independence * difference**2
        grads = grads._replace(own=fit - pull, common=fit + pull + sparse)
    grads = jax.tree.map(lambda g, p: g + objective.regularisation * p, grads, view)
    return (chosen * (losses + penalty.mean(1))).sum(), grads


def _is_zero(weight: float | jax.Array) -> bool:
    return isinstance(weight, (int, float)) and weight == 0


def descend(view: View, grads: View, table_rate: jax.Array, head_rate: jax.Array) -> View:
    """One step of gradient descent, the head at a rate of its own.

    Args:
        view: where the client is.
        grads: of `additive_gradient`.
        table_rate: of both tables, float32[].
        head_rate: float32[].

    Returns:
        where it is then.

    Example:
        >>> one = View(jnp.ones((1, 1)), jnp.ones((1, 1)), {"weights": jnp.ones(1), "bias": jnp.array(1.0)})
        >>> float(descend(one, one, jnp.float32(0.5), jnp.float32(0.0)).own[0, 0])
        0.5
    """
    head = jax.tree.map(lambda p, g: p - head_rate * g, view.head, grads.head)
    return View(view.own - table_rate * grads.own, view.common - table_rate * grads.common, head)
