"""Held-out clients through the whole run: divided, trained without, folded in, tested, written down."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.experiment import run_experiment
from fedjax_rec.inputs import load_inputs
from fedjax_rec.points import after_fold_in
from fedjax_rec.run_folder import save
from fedjax_rec.settings import Settings

STRONG = Settings(splitter="strong", test_share=0.2, dim=8, rounds=120, eval_every=40)


@pytest.fixture(scope="module")
def outcome():
    return run_experiment(STRONG)


def test_held_out_clients_never_train(outcome):
    """The model holds nothing of them; the ranks are theirs alone."""
    assert not set(outcome.split.user_ids) & set(outcome.tested.user_ids)
    assert (outcome.split.num_users, outcome.tested.num_users) == (800, 200)
    assert jax.tree.leaves(outcome.state.private)[0].shape[0] == 800
    assert outcome.test.full.mid.shape == (200,)
    assert outcome.validation.full.mid.shape == (800,)
    assert (outcome.split.test == -1).all()


def test_folding_in_finds_their_taste(outcome):
    """Well above Popularity with their histories, and not without them."""
    popular = outcome.baselines["popularity"]["full"]["ndcg@10"]
    assert outcome.metrics["test"]["full"]["ndcg@10"] > 2 * popular
    strangers = run_experiment(dataclasses.replace(STRONG, fold_in_epochs=0))
    assert strangers.metrics["test"]["full"]["ndcg@10"] < 1.5 * popular


def test_the_protocol_says_so(outcome):
    """Its id covers the point and the passes; a run of another number of passes is another protocol."""
    protocol = outcome.protocol
    assert (protocol.point, protocol.fold_in_epochs, protocol.validation_share) == ("fold-in", 10, None)
    other = dataclasses.replace(protocol, fold_in_epochs=3)
    assert fr.protocol_id(other) != fr.protocol_id(protocol)


def test_popularity_counts_the_training_clients(outcome):
    """What the server could know: nobody's history among the held-out."""
    counts = np.bincount(outcome.split.items, minlength=outcome.split.num_items)
    user = int(np.flatnonzero(outcome.tested.test >= 0)[0])
    seen = outcome.tested.items[outcome.tested.offsets[user] : outcome.tested.offsets[user + 1]]
    rivals = np.delete(counts, np.append(seen, outcome.tested.test[user]))
    bar = counts[outcome.tested.test[user]]
    assert outcome.popularity.full.mid[user] == (rivals > bar).sum() + (rivals == bar).sum() / 2


def test_run_folder_lists_the_held_out_users(outcome, tmp_path):
    """A row a tested user; the model's vocabulary is that of the training users."""
    folder = save(outcome, tmp_path / "run")
    with np.load(folder / "per_user.npz", allow_pickle=False) as rows:
        assert rows["user_ids"].tolist() == outcome.tested.user_ids.tolist()
        assert rows["rank_full"].shape == (200,)
    assert len(fr.load(folder).user_ids) == 800
    assert json.loads((folder / "protocol.json").read_text())["fold_in_epochs"] == 10


def test_clients_that_represent_themselves_need_no_descent():
    """Folding in is the same solve that training clients make before they are scored."""
    split = load_inputs(Settings()).split
    algorithm, population = fr.fedals(dim=4), fr.population_of(split)
    state = algorithm.init(jax.random.key(0), population)
    folded = after_fold_in(algorithm, population, jax.random.key(1)).prepare(state)
    usual = server_parameters(algorithm, population).prepare(state)
    np.testing.assert_array_equal(folded[0]["vector"], usual[0]["vector"])
    assert np.abs(folded[0]["vector"]).max() > 0
