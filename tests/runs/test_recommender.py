"""Stored models: scored as they were evaluated, everything known left out, every array checked."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.algorithms.registry import ENTRIES, accepted
from fedjax_rec.runs.build import make_algorithm
from fedjax_rec.runs.experiment import run_experiment
from fedjax_rec.runs.lists import rows_of
from fedjax_rec.runs.recommender import model_arrays, read_model
from fedjax_rec.runs.settings import Settings
from fedjax_rec.testing import tiny_population
from fedjax_rec.testing.lists import split_of

SMALL: dict[str, Any] = {"num_candidates": 9, "devices": 1}


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    """A small file of events; a low rating in three."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{user}", item, 1 + (step % 3) * 2, step)
        for user in range(40)
        for step, item in enumerate(rng.choice(50, 12, replace=False))
    ]
    path = tmp_path_factory.mktemp("data") / "events.csv"
    pd.DataFrame(rows, columns=["user", "item", "rating", "timestamp"]).to_csv(path, index=False)
    return str(path)


def stored(settings):
    """The outcome of a run, and its model as a run folder gives it back."""
    outcome = run_experiment(settings)
    arrays = model_arrays(outcome.users, outcome.known, outcome.state, outcome.scored_leaves)
    return outcome, read_model(outcome.settings, jax.tree.map(np.asarray, arrays)), arrays


def hit_rate(model, k=10):
    """HR@k of the lists of `top_k`, among the candidates of the evaluation."""
    test = model.item_ids[model.split.test]
    lists = [[item for item, _ in fr.top_k(model, user, k, which="test")] for user in model.user_ids]
    return np.mean([item in own for item, own in zip(test, lists, strict=True)])


def test_lists_hit_what_the_evaluation_hit(events):
    """Where clients are ranked by tables of their own, too; `testing.check_lists` tries every algorithm."""
    settings = Settings(
        dataset=events,
        rounds=1,
        eval_every=1,
        dim=4,
        evaluation_point="local",
        negatives="paper-leaky",
        **SMALL,
    )
    outcome, model, _ = stored(settings)
    assert hit_rate(model) == pytest.approx(outcome.metrics["test"]["full"]["hr@10"])
    assert hit_rate(model) > 0


@pytest.mark.parametrize("name", sorted(ENTRIES))
def test_every_model_comes_back_in_its_structure(name):
    """Lists of layers are lists again, and every leaf has its bits."""
    population = tiny_population()
    split = split_of(population)
    own: dict[str, Any] = {
        setting: value for setting, value in {"dim": 16}.items() if setting in accepted(name)
    }
    settings = Settings(algorithm=name, **own, **SMALL)
    shapes = jax.eval_shape(make_algorithm(settings).init, jax.random.key(0), population)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    arrays = model_arrays(split, (split.offsets, split.items), state, state.private)
    model = read_model(settings, arrays)
    for one, other in ((state.server, model.server), (state.private, model.private)):
        jax.tree.map(np.testing.assert_array_equal, one, other)  # of one structure, or this fails


@pytest.fixture(scope="module")
def run(events):
    """A run on what is rated 2 or better."""
    return stored(Settings(dataset=events, rounds=1, eval_every=1, dim=2, min_rating=2, **SMALL))


def test_nothing_known_is_recommended(events, run):
    """Neither training nor held-out items, nor those of events that a filter dropped."""
    _, model, _ = run
    table = pd.read_csv(events)
    for user in ("u0", "u7"):
        owned = set(table.item[table.user == user])
        found = [item for item, _ in fr.top_k(model, user, 50)]
        assert sorted(found) == sorted(set(model.item_ids.tolist()) - owned)


def _replaced(name, change):
    return lambda arrays: arrays | {name: change(arrays[name].copy())}


def _set(index, value):
    def change(array):
        array[index] = value
        return array

    return change


BAD = {
    "offsets beyond the items": (_replaced("offsets", _set(-1, 10**6)), "offsets of model.npz must ascend"),
    "offsets that descend": (_replaced("offsets", _set(3, 0)), "offsets of model.npz must ascend"),
    "an item beyond the catalogue": (_replaced("items", _set(0, 50)), r"must be codes of 0\.\.49"),
    "an item twice": (lambda a: _replaced("items", _set(1, a["items"][0]))(a), "twice for one user"),
    "known items beyond": (_replaced("known_items", _set(0, -1)), "known_items of model.npz must be codes"),
    "a test item beyond": (_replaced("test", _set(0, -2)), "test of model.npz must be codes"),
    "too few test items": (
        _replaced("test", lambda a: a[1:]),
        r"must have the shape \[40\], not int32\[39\]",
    ),
    "a user twice": (_replaced("user_ids", _set(1, "u0")), "one or more ids, each once"),
    "a rating": (_replaced("ratings", _set(0, np.nan)), "ratings of model.npz must be finite"),
    "other rows": (
        _replaced("params/server/tables/vector", lambda a: a[1:]),
        r"vector of model.npz must be float32\[50, 2\], not float32\[49, 2\]",
    ),
    "other clients": (_replaced("params/private/vector", lambda a: a[:7]), r"must be float32\[40, 2\]"),
    "words for numbers": (_replaced("params/private/vector", lambda a: a.astype(str)), "must be float32"),
    "no leaf": (lambda a: {n: x for n, x in a.items() if "private" not in n}, "has no params/private"),
    "a leaf more": (lambda a: a | {"params/private/more": np.zeros(2)}, "holds params/private/more"),
    "an older version": (lambda a: {n: x for n, x in a.items() if n != "test"}, "has no test; train the run"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_is_refused(run, case):
    """Each array is checked before it is believed; the error names it."""
    outcome, _, arrays = run
    change, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        read_model(outcome.settings, change(arrays))


def test_another_width_is_refused(run):
    """The configuration and the arrays are of one run."""
    outcome, _, arrays = run
    with pytest.raises(ValueError, match=r"must be float32\[40, 3\], not float32\[40, 2\]"):
        read_model(dataclasses.replace(outcome.settings, dim=3), arrays)


def test_whole_numbers_are_ids_whatever_their_type(run):
    """pandas makes floats of integers where one of a column is missing."""
    _, model, _ = run
    numbered = model._replace(split=model.split._replace(user_ids=np.arange(40)))
    assert rows_of(numbered, [5.0, "7", np.float32(9)]).tolist() == [5, 7, 9]
    assert fr.top_k(numbered, 5.0, 3) == fr.top_k(numbered, 5, 3)
