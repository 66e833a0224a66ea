"""Nothing is narrowed in silence: numbers of more than 32 bits are taken whole, or refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.client.batches import with_negatives
from fedjax_rec.client.keys import key_of, name_clients
from fedjax_rec.client.membership import make_membership
from fedjax_rec.client.population import MOST, build, check_sizes
from fedjax_rec.testing import tiny_population


def test_seeds_of_64_bits_are_runs_of_their_own():
    """Seeds below 2^32 are what they were, larger ones are not the seeds of their lower half."""
    for seed in (0, 3, 2**31, 2**32 - 1):
        assert key_of(seed) == jax.random.key(seed)
    many = [3, 2**32 + 3, 2**33 + 3, 2**64 - 1, 2**32 - 1]
    assert len({tuple(np.asarray(jax.random.key_data(key_of(seed))).tolist()) for seed in many}) == len(many)
    for seed in (-1, 2**64):
        with pytest.raises(ValueError, match=f"seed={seed} is out of range"):
            key_of(seed)
    population = tiny_population()
    algorithm = fr.fedmf(dim=2)
    small, large = (
        fr.simulate(algorithm, population, rounds=1, seed=seed)[0].server.tables["vector"]
        for seed in (3, 2**32 + 3)
    )
    assert not np.array_equal(small, large)


def test_draws_past_32_bits():
    """A client with more draws than 2^31 gets every item that it does not have once, and nothing twice."""
    num_events, num_items, num_negatives = 1025, 1200, 2**22
    population = build(np.array([0, num_events]), np.arange(num_events), None, num_items)
    client = jax.tree.map(lambda x: x[0], name_clients(jax.random.key(0), jnp.array([0]), population))
    batches = with_negatives(1, num_negatives)
    assert batches.num_batches(client.num_examples) == num_events
    times = (0, 1, 512, 1024)  # the last two by 2^22 are 2^31 and 2^32
    drawn = [np.asarray(batches.batch(client, population, jnp.int32(t)).ids)[1:] for t in times]
    assert sorted(drawn[0][drawn[0] < num_items]) == list(range(num_events, num_items))
    for later in drawn[1:]:
        assert (later == num_items).all()


def test_populations_that_32_bits_do_not_hold():
    """Too many examples, codes and numbers beyond what the device keeps, counts that are none."""
    from_arrays = fr.Population.from_arrays
    with pytest.raises(ValueError, match="2,147,483,648 examples are too many"):
        from_arrays({}, np.array([2**30, 2**30]))
    with pytest.raises(ValueError, match="examples are too many"):
        build(np.array([0, 2**31]), np.zeros(0, int), None, 5)
    with pytest.raises(ValueError, match="items are too many"):
        build(np.array([0, 1]), np.array([1]), None, 2**31)
    with pytest.raises(ValueError, match=r"examples\['x'\] has 4294967296, which does not fit int32"):
        from_arrays({"x": np.array([1, 2**32])}, np.array([2]))
    with pytest.raises(ValueError, match=r"examples\['x'\] has 1e\+39, which does not fit float32"):
        from_arrays({"x": np.array([1, 1e39])}, np.array([2]))
    for counts in (np.array([1.5, 0.5]), np.array([3, -1]), np.array([[2]])):
        with pytest.raises(ValueError, match="counts must be one whole number from 0"):
            from_arrays({"x": np.zeros(2)}, counts)
    kept = from_arrays({"x": np.array([0.1, np.nan]), "y": np.array([1, -(2**31)])}, np.array([1, 1]))
    assert kept.examples["y"].tolist() == [1, -(2**31)]
    frame = pd.DataFrame({"user": [0, 0], "item": [0, 1], "rating": [1.0, 1e300]})
    with pytest.raises(ValueError, match="rating"):
        fr.Population.from_frame(frame)
    with pytest.raises(ValueError, match="whole number a client"):
        fr.server.agnostic(groups=np.array([0.5, 1.5]))


def test_sizes_on_paper(tmp_path):
    """Each number at its bound, and a file of more than 2^31 events, which is refused before a byte is read."""
    check_sizes(MOST - 1, MOST - 1, MOST - 1)
    for sizes in ((MOST, 1, 1), (1, MOST, 1), (1, 1, MOST)):
        with pytest.raises(ValueError, match=r"2,147,483,647 .* are too many.*; (take fewer|drop rare)"):
            check_sizes(*sizes)
    num_events = 2**31 + 5
    items = np.memmap(tmp_path / "sparse", np.int32, "w+", shape=num_events)
    with pytest.raises(ValueError, match="2,147,483,653 examples are too many"):
        build(np.array([0, num_events]), items, None, 5)
    nobody = np.array([], "i4")
    table = fr.Interactions(items, items, None, None, np.array([0]), np.array([0]))
    with pytest.raises(ValueError, match="2,147,483,653 examples are too many"):
        fr.Population.from_interactions(table)
    offsets = np.zeros(2**16 + 1, int)
    with pytest.raises(ValueError, match=r"2,147,483,648 words, more than 32 bits .*; use bitmap=False"):
        make_membership(offsets, nobody, 2**20, bitmap=True)


def test_more_rounds_than_are_counted():
    """The round is a number of 32 bits."""
    with pytest.raises(ValueError, match=r"below 2\^31"):
        fr.simulate(fr.fedmf(dim=2), tiny_population(), rounds=2**31)


def test_item_codes_are_whole_numbers():
    """Halves would be cut off, and whole floats are more likely ids than codes."""
    with pytest.raises(ValueError, match=r"items must be whole numbers, codes of 0\.\.2, not float"):
        fr.Population.from_arrays({"items": np.array([0.5, 1.0])}, np.array([2]), num_items=3)
