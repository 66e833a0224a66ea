"""Local batches: what a client trains on in a round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.client.batches import catalogue, rated, with_negatives
from fedjax_rec.client.keys import name_clients
from fedjax_rec.client.population import build, contains
from fedjax_rec.testing import tiny_population


def _all_ids(batches, population, client_id, key=0):
    client = jax.tree.map(
        lambda x: x[0], name_clients(jax.random.key(key), jnp.array([client_id]), population)
    )
    count = int(batches.num_batches(client.num_examples))
    return [batches.batch(client, population, jnp.int32(t)) for t in range(count)]


def _own(population, client_id):
    start, end = np.asarray(population.offsets)[client_id : client_id + 2]
    return np.asarray(population.examples["items"])[start:end]


@pytest.mark.parametrize("bitmap", [True, False])
def test_positives_once_and_negatives_outside_train(bitmap):
    """Every positive stands once, negatives are distinct, and exclude the client's training items only."""
    base = tiny_population()
    population = build(
        np.asarray(base.offsets), np.asarray(base.examples["items"]), None, base.num_items, bitmap=bitmap
    )
    drawn = set()
    for client in range(population.num_clients):
        own = _own(population, client)
        for key in range(4):
            blocks = [np.asarray(b.ids) for b in _all_ids(with_negatives(10, 4), population, client, key)]
            positives = np.concatenate([b[:2] for b in blocks]) if blocks else np.zeros(0, int)
            negatives = np.concatenate([b[2:] for b in blocks]) if blocks else np.zeros(0, int)
            assert sorted(positives[positives < population.num_items]) == sorted(own)
            drawn_items = negatives[negatives < population.num_items]
            assert len(set(drawn_items)) == len(drawn_items)
            assert not set(drawn_items) & set(own)
            drawn |= {(client, item) for item in drawn_items}
    for client in range(population.num_clients):
        if len(_own(population, client)) > 8:  # enough draws to see every unseen item in four rounds
            unseen = set(range(population.num_items)) - set(_own(population, client))
            missed = unseen - {item for who, item in drawn if who == client}
            assert not missed, "an untrained item, such as a held-out one, is never drawn"


@pytest.mark.parametrize("seed", range(3))
def test_bitmap_and_buckets_agree(seed):
    """Both membership tests say the same, for clients with and without data."""
    base = tiny_population(seed=seed)
    offsets = np.asarray(base.offsets)
    items = np.asarray(base.examples["items"])
    one, other = (build(offsets, items, None, base.num_items, bitmap=flag) for flag in (True, False))
    ids = jnp.arange(base.num_items + 1)
    for client in range(base.num_clients):
        expected = np.isin(np.arange(base.num_items + 1), _own(base, client))
        for population in (one, other):
            np.testing.assert_array_equal(contains(population, jnp.int32(client), ids), expected)


def test_ratings_stay_with_their_items():
    """A shuffled rated batch keeps each item's own rating, and masks empty slots."""
    population = tiny_population()
    own = dict(zip(_own(population, 0), np.asarray(population.examples["ratings"]), strict=False))
    seen: dict[int, float] = {}
    for batch in _all_ids(rated(4), population, 0):
        mask = np.asarray(batch.data["mask"]) > 0
        seen |= dict(zip(np.asarray(batch.ids)[mask], np.asarray(batch.data["rating"])[mask], strict=True))
        assert (np.asarray(batch.data["rating"])[~mask] == 0).all()
    assert seen == own


def test_a_client_holds_an_item_once():
    """Duplicate items within one client are refused."""
    with pytest.raises(ValueError, match="same item twice"):
        build(np.array([0, 2]), np.array([1, 1]), None, 3)


def test_catalogue_holds_what_the_batches_hold():
    """The same positives and negatives as `with_negatives` draws, in places 0, 1, ... of an order of their own."""
    population = tiny_population()
    orders = []
    for client in range(population.num_clients):
        for key in range(3):
            cut = [np.asarray(b.ids) for b in _all_ids(with_negatives(10, 4), population, client, key)]
            batches = _all_ids(catalogue(4), population, client, key)
            assert len(batches) == (len(cut) > 0)
            if not batches:
                continue
            ids = np.asarray(batches[0].ids)
            data = jax.tree.map(np.asarray, batches[0].data)
            np.testing.assert_array_equal(ids, np.arange(population.num_items))
            examples = np.unique(np.concatenate(cut))
            examples = examples[examples < population.num_items]
            np.testing.assert_array_equal(np.flatnonzero(data["label"]), np.sort(_own(population, client)))
            np.testing.assert_array_equal(np.flatnonzero(data["mask"]), examples)
            assert sorted(data["order"][examples]) == list(range(len(examples)))
            outside = np.setdiff1d(ids, examples)
            assert (data["order"][outside] == population.num_items).all()
            orders.append(np.corrcoef(examples, data["order"][examples])[0, 1] if len(examples) > 9 else 0)
    assert abs(np.mean(orders)) < 0.1, "the order follows the items' numbers"
    assert np.ptp(orders) > 0.3, "the order is not drawn anew"


def test_catalogue_spares_held_out_items_only_where_they_leak():
    """Held-out items are no labels, and drawn unless the population was built with the leak."""
    also = np.full((24, 1), 5)
    base = tiny_population()
    offsets = np.asarray(base.offsets)
    items = np.asarray(base.examples["items"])
    leaky = build(offsets, items, None, base.num_items, extra_items=also)
    drawn = {True: 0, False: 0}
    for client in range(24):
        if 5 in _own(base, client):
            continue
        for leak, population in ((False, base), (True, leaky)):
            for batch in _all_ids(catalogue(4), population, client):
                assert batch.data["label"][5] == 0
                drawn[leak] += int(batch.data["mask"][5])
    assert drawn[True] == 0 < drawn[False]
