"""What is known of each client's items is the same, however many clients are looked at together."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.client import membership
from fedjax_rec.client.membership import client_chunks, holds, make_membership
from fedjax_rec.client.population import build

NUM_ITEMS = 70


@pytest.fixture
def clients():
    """Offsets and items of 30 clients with none to 60 items, and one more item of some."""
    rng = np.random.default_rng(0)
    owned = [rng.permutation(NUM_ITEMS)[:count] for count in rng.integers(0, 60, 30) * (rng.random(30) < 0.7)]
    extra = np.array([[np.setdiff1d(np.arange(NUM_ITEMS), own)[0]] for own in owned])
    extra[::3] = -1
    return np.concatenate([[0], np.cumsum([len(own) for own in owned])]), np.concatenate(owned), extra


def test_chunks_are_all_clients_in_order(clients, monkeypatch):
    """Every client once, at least one a chunk, and few examples unless one client has more."""
    offsets, _, _ = clients
    for events, at_once in ((1, 5), (100, 7), (100, 1), (10**6, 10**6)):
        monkeypatch.setattr(membership, "CHUNK", events)
        chunks = list(client_chunks(offsets, at_once))
        assert [first for first, _ in chunks] == [0, *(stop for _, stop in chunks[:-1])]
        assert chunks[-1][1] == len(offsets) - 1
        for first, stop in chunks:
            assert 1 <= stop - first <= at_once
            assert stop == first + 1 or offsets[stop] - offsets[first] <= events
    assert list(client_chunks(np.array([0]))) == []


@pytest.mark.parametrize("bitmap", [True, False])
def test_chunks_change_nothing(clients, monkeypatch, bitmap):
    """The same structure in one chunk and in many, and it answers as sets do, items besides included."""
    offsets, items, extra = clients
    whole = make_membership(offsets, items, NUM_ITEMS, extra_items=extra, bitmap=bitmap)
    monkeypatch.setattr(membership, "CHUNK", 50)
    monkeypatch.setattr(membership, "_MAX_CELLS", 3 * NUM_ITEMS)
    chunked = make_membership(offsets, items, NUM_ITEMS, extra_items=extra, bitmap=bitmap)
    for one, other in zip(whole, chunked, strict=True):
        np.testing.assert_array_equal(one, other)
    ids = jnp.arange(NUM_ITEMS + 1)
    everyone = jnp.arange(len(offsets) - 1)
    found = jax.vmap(lambda client: holds(chunked, client, ids, NUM_ITEMS))(everyone)
    for client, answer in enumerate(np.asarray(found)):
        own = {*items[offsets[client] : offsets[client + 1]], *extra[client]} - {-1}
        assert set(np.flatnonzero(answer)) == own


def test_a_repeated_item_is_found_in_any_chunk(clients, monkeypatch):
    """Once a client; the same item of two clients is nothing."""
    offsets, items, _ = clients
    monkeypatch.setattr(membership, "CHUNK", 50)
    build(offsets, items, None, NUM_ITEMS)
    for client in np.flatnonzero(np.diff(offsets) > 1):
        twice = items.copy()
        twice[offsets[client]] = twice[offsets[client + 1] - 1]
        with pytest.raises(ValueError, match="same item twice"):
            build(offsets, twice, None, NUM_ITEMS)
    with pytest.raises(ValueError, match="offsets end at"):
        build(offsets, items[:-1], None, NUM_ITEMS)
