"""Populations that are drawn: functions of (seed, id), with the lengths, popularity and tastes that they say."""

from typing import Any

import numpy as np
import pytest

from fedjax_rec.data.errors import DataError
from fedjax_rec.data.store import drawn
from fedjax_rec.data.store.drawn import Preferences, preferences_of, synthesise


def test_a_client_is_a_function_of_seed_and_id():
    """Whoever is drawn beside it; other seeds and ids are others; no client takes an item twice."""
    preferences = Preferences(3, 500, 12.0)
    ids = np.arange(300)
    lengths, items = preferences.lengths(ids), preferences.histories(ids)
    ends = np.cumsum(lengths)
    histories = np.split(items, ends[:-1])
    for client in (0, 17, 299):
        np.testing.assert_array_equal(preferences.histories(np.array([client])), histories[client])
    assert all(len(set(own.tolist())) == len(own) for own in histories)
    assert (items >= 0).all()
    assert (items < 500).all()
    assert len({own.tobytes() for own in histories}) == 300
    assert not np.array_equal(preferences._replace(seed=4).histories(ids)[:20], items[:20])


def test_a_store_is_its_clients(tmp_path, monkeypatch):
    """However many are made together; in the order of their ids."""
    settings: dict[str, Any] = {"clients": 400, "items": 300, "events_per_client": 10.0, "seed": 5}
    store = synthesise(tmp_path / "whole", **settings)
    monkeypatch.setattr(drawn, "_TASK", 300)
    monkeypatch.setattr(drawn, "_EVENTS", 100)
    monkeypatch.setattr(drawn, "_CLIENTS", 7)
    pieces = synthesise(tmp_path / "pieces", **settings)
    assert pieces.data_hash == store.data_hash
    preferences = preferences_of(**settings)
    np.testing.assert_array_equal(np.diff(store.offsets), preferences.lengths(np.arange(400)))
    np.testing.assert_array_equal(store.column("items"), preferences.histories(np.arange(400)))


def test_lengths_and_popularity_have_long_tails():
    """The mean is what was asked for, the longest many times that, and a tenth of the items takes almost half."""
    preferences = preferences_of(clients=20_000, items=20_000, events_per_client=40.0)
    lengths = preferences.lengths(np.arange(20_000))
    assert abs(lengths.mean() / 40 - 1) < 0.03
    assert np.median(lengths) < 30
    assert lengths.max() > 400
    assert lengths.min() == drawn.SHORTEST
    counts = np.sort(np.bincount(preferences.histories(np.arange(20_000)), minlength=20_000))[::-1]
    assert 0.4 < counts[:2000].sum() / counts.sum() < 0.52


def test_events_follow_the_preferences():
    """In all places of time alike: the last event is a draw from the scores, as far as their likelihood tells."""
    preferences = Preferences(1, 2000, 8.0)
    ids = np.arange(2000)
    lengths, items = preferences.lengths(ids), preferences.histories(ids)
    ends = np.cumsum(lengths)
    scores = preferences.scores(ids)
    assert np.allclose(np.exp(scores).sum(1), 1, atol=1e-4)
    expected = np.where(np.isfinite(scores), np.exp(scores) * scores, 0).sum(1).mean()
    for at in (ends - 1, ends - lengths):
        found = scores[ids, items[at]]
        assert np.isfinite(found).all()
        assert abs(found.mean() - expected) < 0.1
        assert found.mean() > np.log(1 / 2000) + 1  # chance
    for shared in (scores[1:], scores.mean(0)[None]):  # and not from those of others
        others = np.broadcast_to(shared, (len(ids) - 1, 2000))[np.arange(len(ids) - 1), items[ends[:-1] - 1]]
        assert np.mean(np.where(np.isfinite(others), others, -20)) < expected - 0.1


@pytest.mark.parametrize("items", [30, 31, 64, 97, 191, 192])
def test_small_catalogues(items):
    """Every item may be taken, and clients of all of a genre are clients."""
    preferences = preferences_of(clients=3000, items=items, events_per_client=6.0)
    taken = preferences.histories(np.arange(3000))
    assert np.array_equal(np.unique(taken), np.arange(items))


def test_sizes_are_refused(tmp_path):
    """With the numbers, and before anything is written."""
    for settings, told in (
        ({"items": 29}, "items=29 must be 30 to"),
        ({"clients": 2**31}, "clients=2,147,483,648 must be 1 to"),
        ({"events_per_client": 2.0}, "events_per_client=2 must be at least 5"),
        ({"events_per_client": 90.0}, "is more than 100 items allow, which is 33"),
        ({"seed": -1}, "seed=-1"),
    ):
        given: dict[str, Any] = {"clients": 5, "items": 100, "events_per_client": 10.0}
        with pytest.raises(DataError, match=told):
            synthesise(tmp_path / "s", **(given | settings))
    assert list(tmp_path.iterdir()) == []
