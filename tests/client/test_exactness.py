"""Which optimizers may train touched rows only, and what is refused."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client.exactness import try_optimizer
from fedjax_rec.testing import check_dense, tiny_population

VIEW = fr.Params(
    {"vector": jnp.zeros(3)}, {"w": jnp.zeros(2)}, {"vector": jnp.zeros((5, 3)), "bias": jnp.zeros(5)}
)


def _by_bias(params: Any) -> Any:
    """Adam for what is one number a row, SGD for the rest."""
    return jax.tree.map_with_path(
        lambda path, _: "b" if "bias" in jax.tree_util.keystr(path) else "v", params
    )


RESTING = {
    "sgd": optax.sgd(0.1),
    "adagrad": optax.adagrad(0.1),
    "clipped sgd": optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1)),
}
MOVING = {
    "momentum": optax.sgd(0.05, momentum=0.9),
    "adam": optax.adam(0.05),
    "adamw": optax.adamw(0.05),
    "rmsprop": optax.rmsprop(0.05, centered=True),
    "schedule": optax.sgd(optax.linear_schedule(0.1, 0.0, 20)),
    "late pull": optax.chain(fr.client.proximal(0.5), optax.sgd(lambda t: jnp.where(t < 4, 0.0, 0.05))),
    "every third step": optax.chain(optax.apply_every(3), optax.sgd(0.05)),
    "two rules": optax.multi_transform({"b": optax.adam(0.05), "v": optax.sgd(0.05)}, _by_bias),
    "clipped adam": optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.05)),
}
COUPLED = {
    "lamb": optax.lamb(0.1),
    "adafactor": optax.adafactor(0.1, min_dim_size_to_factor=2),
    "adam, then a global norm": optax.chain(optax.scale_by_adam(), optax.clip_by_global_norm(0.1)),
    "block norm": optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", RESTING)
def test_resting_rules(name):
    """These leave a row alone under a zero gradient, so nothing is replayed."""
    assert try_optimizer(RESTING[name], VIEW).rests


@pytest.mark.parametrize("name", MOVING)
def test_moving_rules(name):
    """These move rows, or may do so later, and the replay equals dense training."""
    assert not try_optimizer(MOVING[name], VIEW).rests


@pytest.mark.parametrize("name", ["late pull", "every third step", "two rules", "clipped adam"])
def test_moving_rules_equal_dense_training(name):
    """Law 5 for rules whose need of a replay is easy to overlook."""
    make = partial(fr.fedmf, dim=3, batch_size=10, local_epochs=2, local_optimizer=MOVING[name])
    check_dense(make, tiny_population())


@pytest.mark.parametrize("name", COUPLED)
def test_coupled_rules_are_refused(name):
    """A rule that looks across rows would train something else; the error says so."""
    with pytest.raises(ValueError, match="looks across item rows"):
        try_optimizer(COUPLED[name], VIEW)
