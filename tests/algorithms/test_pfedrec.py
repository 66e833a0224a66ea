"""PFedRec against its numpy reference, its loss against automatic differentiation's order, and real data."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.pfedrec import cross_entropy_of_sigmoid
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.client.population import build
from fedjax_rec.evaluation.evaluation_points import after_local_training
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.settings import Settings
from tests.references import pfedrec as ref

KEY = jax.random.key(3)
ITEMS = 23
POSITIVES = 2
EPOCHS = 2
ROUNDS = 3
HISTORIES = (9, 1, 5, 0, 3, 7)  # client 3 has no data
RATES = ref.Rates(0.2, 0.2 * 1.5 * ITEMS)


@pytest.fixture(scope="module")
def population():
    """Six clients, the longest of whom asks for more negatives than there are."""
    random = np.random.default_rng(0)
    items = np.concatenate([random.permutation(ITEMS)[:n] for n in HISTORIES])
    return build(np.concatenate([[0], np.cumsum(HISTORIES)]), items, None, ITEMS)


def _batches(algorithm, population, round_) -> dict[int, list[ref.Batch]]:
    """Each client's batches of a round as the library cuts them: the randomness that both sides share."""
    ids = jnp.array([n for n, length in enumerate(HISTORIES) if length])
    clients = name_clients(jax.random.fold_in(stream(KEY, "client"), round_), ids, population)
    cut = jax.jit(algorithm.work.batches.batch)
    found = {}
    for slot, n in enumerate(ids.tolist()):
        client = jax.tree.map(lambda x, slot=slot: x[slot], clients)
        batches = [cut(client, population, jnp.int32(t)) for t in range(-(-HISTORIES[n] // POSITIVES))]
        found[n] = [_read(batch) for batch in batches]
    return found


def _read(batch) -> ref.Batch:
    present = np.asarray(batch.ids) < ITEMS
    assert (np.asarray(batch.data["mask"]) == present).all()
    return list(
        zip(np.asarray(batch.ids)[present].tolist(), np.asarray(batch.data["label"])[present], strict=True)
    )


@pytest.fixture(scope="module")
def rounds(population):
    """The library's states and losses, and the batches of each round."""
    algorithm = fr.pfedrec(
        dim=3, num_negatives=3, batch_size=8, local_epochs=EPOCHS, learning_rate=0.2, item_factor=1.5, lanes=2
    )
    states = [algorithm.init(KEY, population)]
    losses = []
    batches = []
    one_round = jax.jit(algorithm.round)
    for round_ in range(ROUNDS):
        state, info = one_round(KEY, states[-1], population)
        states.append(state)
        losses.append(float(info.loss))
        batches.append(_batches(algorithm, population, round_))
    return states, losses, batches


def _start(state) -> tuple[list[ref.Head], np.ndarray]:
    weights, bias = (np.asarray(state.private[name], np.float64) for name in ("weights", "bias"))
    heads = [ref.Head(w, float(b)) for w, b in zip(weights, bias, strict=True)]
    return heads, np.asarray(state.server.tables["vector"], np.float64)


def _differences(rounds, rates=RATES) -> list[float]:
    """Largest difference of any leaf after each round, and of the losses, relative to how far training moved."""
    states, losses, batches = rounds
    heads, table = _start(states[0])
    moved = np.abs(_start(states[-1])[1] - table).max()
    found = []
    for state, loss, clients in zip(states[1:], losses, batches, strict=True):
        heads, table, expected = ref.run_round(heads, table, clients, rates, EPOCHS)
        others, other = _start(state)
        apart = [np.abs(one.weights - two.weights).max() for one, two in zip(heads, others, strict=True)]
        apart += [abs(one.bias - two.bias) for one, two in zip(heads, others, strict=True)]
        found.append(max(np.abs(table - other).max() / moved, *apart, abs(loss - expected)))
    return found


def test_heads_start_alike(rounds):
    """Every client has the same head, which is not zero."""
    heads, _ = _start(rounds[0][0])
    assert all(np.array_equal(head.weights, heads[0].weights) for head in heads)
    assert np.abs(heads[0].weights).min() > 0


def test_rounds_equal_the_reference(rounds):
    """Heads, table and loss, with a client without data, and examples that run out of negatives."""
    assert max(_differences(rounds)) < 1e-5


def test_a_wrong_reference_disagrees(rounds, monkeypatch):
    """Rows that move through the old head, and a rate that is a tenth too large."""
    assert min(_differences(rounds, RATES._replace(rows=1.1 * RATES.rows))) > 1e-3
    step = ref.step_head

    def stays(head, table, batch, rate):
        monkeypatch.setattr(ref, "step_table", lambda _, *rest: table_step(head, *rest))
        return step(head, table, batch, rate)

    table_step = ref.step_table
    monkeypatch.setattr(ref, "step_head", stays)
    assert min(_differences(rounds)) > 1e-3


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_slope_vanishes_where_the_32_bit_sigmoid_is_0_or_1(label):
    """p - y up to a logit of 16, exactly 0 from 17.5 on, and fading between a sigmoid of 1e-12 and none."""
    logits = jnp.array([-120.0, -35.0, -16.0, -1.0, 0.0, 3.0, 16.0, 17.5, 40.0])
    losses, slopes = (np.asarray(x) for x in cross_entropy_of_sigmoid(logits, jnp.full(9, label)))
    plain = 1 / (1 + np.exp(-np.asarray(logits, np.float64))) - label
    np.testing.assert_allclose(slopes[2:7], plain[2:7], rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(slopes[[0, 7, 8]], 0.0)
    assert abs(slopes[1]) < 1e-3
    assert np.isfinite(losses).all()
    assert losses[0] == (100.0 if label else 0.0)


def test_evaluation_point_is_a_setting_of_the_run():
    """Each client's own table ranks otherwise than the server's, under another protocol."""
    small: Any = {"algorithm": "pfedrec", "rounds": 4, "eval_every": 2, "dim": 4, "batch_size": 64}
    server, local = (run_experiment(Settings(**small, evaluation_point=p)) for p in ("server", "local"))
    assert (server.protocol.point, local.protocol.point) == ("server", "local-training")
    assert replace(local.protocol, point="server") == server.protocol
    for which in ("test", "validation"):
        assert server.metrics[which]["full"]["ndcg@10"] != local.metrics[which]["full"]["ndcg@10"]
    np.testing.assert_array_equal(server.history.rounds.loss, local.history.rounds.loss)


def test_refused_settings():
    """One line each."""
    with pytest.raises(ValueError, match="item_factor must be at least 0, not -1"):
        fr.pfedrec(item_factor=-1)
    with pytest.raises(ValueError, match="did you mean 'local'"):
        Settings(evaluation_point="locally")


@pytest.mark.thorough("a figure of a whole real set; on small data evaluation/test_canaries finds the leak")
def test_the_leak_pays_the_local_table(shared_data):
    """ML-100K, 30 rounds: sparing held-out items lifts each client's own table by far, as in published numbers."""
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    algorithm = fr.pfedrec()
    found = {}
    for negatives in ("train", "paper-leaky"):
        variant = split._replace(negatives=negatives)
        state, _ = fr.simulate(algorithm, fr.population_of(variant), rounds=30, eval_every=30)
        point = after_local_training(algorithm, fr.population_of(variant), jax.random.key(0))
        ranks = fr.make_evaluator(algorithm, variant, point=point)(state)
        found[negatives] = fr.evaluation.metrics_from_ranks(ranks.sampled, [10])["hr@10"]
    assert 0.4 < found["train"] < found["paper-leaky"] - 0.05
