"""Held-out clients through the whole run: divided, trained without, folded in, tested, written down."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation.evaluation_points import after_fold_in
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.evaluation.reference_ranks import popularity_ranks
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.inputs import load_inputs, load_split, protocol_of
from fedjax_rec.runs.run_folder import save
from fedjax_rec.runs.settings import Settings

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
    assert fr.evaluation.protocol_id(other) != fr.evaluation.protocol_id(protocol)


def test_popularity_counts_the_training_clients(outcome):
    """What the server could know: nobody's history among the held-out."""
    counts = np.bincount(outcome.split.items, minlength=outcome.split.num_items)
    user = int(np.flatnonzero(outcome.tested.test >= 0)[0])
    seen = outcome.tested.items[outcome.tested.offsets[user] : outcome.tested.offsets[user + 1]]
    rivals = np.delete(counts, np.append(seen, outcome.tested.test[user]))
    bar = counts[outcome.tested.test[user]]
    assert outcome.popularity.full.mid[user] == (rivals > bar).sum() + (rivals == bar).sum() / 2


def test_run_folder_lists_the_held_out_users(outcome, tmp_path):
    """A row a tested user; the model knows the training users, then these, and lists as they were ranked."""
    folder = save(outcome, tmp_path / "run")
    with np.load(folder / "per_user.npz", allow_pickle=False) as rows:
        assert rows["user_ids"].tolist() == outcome.tested.user_ids.tolist()
        assert rows["rank_full"].shape == (200,)
    model = fr.load(folder)
    assert model.user_ids.tolist() == [*outcome.split.user_ids, *outcome.tested.user_ids]
    ranks = fr.make_evaluator(model.algorithm, model.split, point=model.point)(model.state).full
    np.testing.assert_array_equal(ranks.mid[800:], outcome.test.full.mid)
    user = int(np.flatnonzero(np.asarray(ranks.mid[800:]) == 0)[0])
    best = fr.top_k(model, outcome.tested.user_ids[user], 1, which="test")
    assert best[0][0] == outcome.tested.item_ids[outcome.tested.test[user]]
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


def test_time_is_not_guessed(tmp_path):
    """Lines sorted by plays hold out anything, and not each user's least played item; the protocol says what."""
    rng = np.random.default_rng(0)
    lines = []
    for user in range(150):  # popular items are played most, and so stand first
        items = np.sort(rng.choice(60, 12, replace=False, p=np.arange(60, 0, -1) / 1830))
        lines += [f"u{user},{item},{500 - item}" for item in items]
    shuffled = rng.permutation(lines).tolist()
    found = {}
    for name, rows, order in (
        ("sorted", lines, None),
        ("shuffled", shuffled, None),
        ("as lines", lines, "file"),
        ("timed", [f"{row},{n}" for n, row in enumerate(lines)], None),
    ):
        header = "user,item,plays,timestamp" if name == "timed" else "user,item,plays"
        (tmp_path / "plays.csv").write_text("\n".join([header, *rows]))
        settings = Settings(dataset=str(tmp_path / "plays.csv"), order=order)
        dataset, split = load_split(settings)
        ranks = popularity_ranks(split).full.mid
        found[name] = float((ranks < 10).mean()), protocol_of(settings, dataset, split).to_json().get("order")
    assert found["as lines"] == (found["timed"][0], "file")
    assert found["timed"] == (0, None)  # as in results older than the field
    assert (found["sorted"][1], found["shuffled"][1]) == ("random", "random")
    assert abs(found["sorted"][0] - found["shuffled"][0]) < 4 * (0.5 / 150) ** 0.5
    assert min(found["sorted"][0], found["shuffled"][0]) > 0.2
