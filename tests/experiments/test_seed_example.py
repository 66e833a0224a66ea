"""The seed example follows its rule: the library's rounds equal plain numpy, forward and backward by hand."""

import runpy
import sys

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from experiments.seed_example import run as seed_example
from experiments.seed_example.by_hand import (
    Network,
    distance,
    gradient,
    mean_loss,
    train,
    train_in_sequence,
)

Trained = tuple[Network, Network, fr.training.History]


@pytest.fixture(scope="module")
def trained() -> Trained:
    """M(0), M(100) and the history."""
    return seed_example.run()


def test_equals_numpy(trained: Trained):
    """After 100 rounds, weights and all losses are those of numpy."""
    start, end, history = trained
    devices = seed_example.draw_devices(seed_example.SEED)
    by_hand, losses = train(start, devices, seed_example.RATE, seed_example.ROUNDS)
    assert distance(end, by_hand) < 1e-5
    np.testing.assert_allclose(history.rounds.loss, losses[:-1], rtol=1e-5)
    np.testing.assert_allclose(mean_loss(end, devices), losses[-1], rtol=1e-5)


def test_numpy_gradient_is_right(trained: Trained):
    """The backward pass by hand agrees with central differences of the forward pass."""
    model, device = trained[0], seed_example.draw_devices(seed_example.SEED)[1]
    slope = gradient(model, device)[1]
    for part, array in enumerate(model):
        for place in np.ndindex(array.shape):
            nudge = np.zeros_like(array)
            nudge[place] = 1e-6
            above, below = (
                gradient(
                    Network(*(a + sign * nudge if i == part else a for i, a in enumerate(model))), device
                )[0]
                for sign in (1, -1)
            )
            np.testing.assert_allclose((above - below) / 2e-6, slope[part][place], rtol=1e-5, atol=1e-7)


def test_improves_and_compiles_once(trained: Trained):
    """A tenth of the first loss is left, it falls in every tenth round, and one program served all rounds."""
    history = trained[2]
    assert history.rounds.loss[-1] < 0.12 * history.rounds.loss[0]
    assert (np.diff(history.rounds.loss[::10]) < 0).all()
    assert history.num_compilations == 1
    assert (np.asarray(history.rounds.clients) == len(seed_example.SIZES)).all()


def test_either_side_may_hold_the_rate(trained: Trained):
    """Local rate 0.01 with server rate 1 is the same rule, for there is one local step."""
    population = seed_example.to_population(seed_example.draw_devices(seed_example.SEED))
    swapped = seed_example.make_algorithm(
        population.max_examples, local_rate=seed_example.RATE, server_rate=1.0
    )
    state, _ = fr.simulate(swapped, population, rounds=seed_example.ROUNDS, seed=seed_example.SEED)
    assert distance(seed_example.to_numpy(state.server), trained[1]) < 1e-5


def test_order_of_devices_matters_only_to_the_original(trained: Trained):
    """The rule's sum has no order; one model that visits the devices in turn depends on it."""
    devices = seed_example.draw_devices(seed_example.SEED)
    forth, _ = train(trained[0], devices, seed_example.RATE, seed_example.ROUNDS)
    back, _ = train(trained[0], devices[::-1], seed_example.RATE, seed_example.ROUNDS)
    assert distance(forth, back) < 1e-9
    visited = [
        train_in_sequence(trained[0], order, seed_example.RATE, seed_example.ROUNDS)
        for order in (devices, devices[::-1])
    ]
    assert distance(*visited) > 0.01


def test_devices_in_another_order_give_the_same_model(trained: Trained):
    """The library's sum has no order either."""
    population = seed_example.to_population(seed_example.draw_devices(seed_example.SEED)[::-1])
    algorithm = seed_example.make_algorithm(population.max_examples)
    run = jax.jit(lambda key: fr.training.train(key, algorithm, population, seed_example.ROUNDS)[0].server)
    assert distance(seed_example.to_numpy(run(jax.random.key(seed_example.SEED))), trained[1]) < 1e-5


def test_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """`python -m experiments.seed_example.run` prints the loss of every tenth round and the comparison."""
    monkeypatch.delitem(sys.modules, "experiments.seed_example.run")  # runpy warns of a second copy
    runpy.run_module("experiments.seed_example.run", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr().out
    table = [line.split() for line in printed.splitlines()[1:12]]
    assert [int(t) for t, _ in table] == list(range(0, 101, 10))
    assert float(table[-1][1]) < 0.3
    assert "largest relative difference from plain numpy" in printed
