"""Anchors on real data: Popularity, trained on all but the test item, as published and as computed before."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.data.splits import leave_one_out, merge_validation
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.reference_ranks import popularity_ranks


@pytest.fixture(scope="module")
def ml_100k(shared_data) -> Dataset:
    """MovieLens 100K."""
    frame = pd.read_csv(
        shared_data / "ml-100k" / "u.data", sep="\t", names=["user", "item", "rating", "time"]
    )
    (users, user_ids) = pd.factorize(frame["user"])
    (items, item_ids) = pd.factorize(frame["item"])
    ratings = frame["rating"].to_numpy(np.float32)
    times = frame["time"].to_numpy()
    table = Interactions(
        users.astype(np.int32),
        items.astype(np.int32),
        ratings,
        times,
        np.asarray(user_ids),
        np.asarray(item_ids),
    )
    return Dataset("ml-100k", table)


@pytest.fixture(scope="module")
def ml_1m(shared_data) -> Dataset:
    """MovieLens 1M as split by He et al. 2017, with the official test items and candidates."""
    train, test, negatives = (
        read_table(shared_data / "ml-1m-loo", name) for name in ("train", "test", "negatives")
    )
    lists = np.array(
        [row.split() for row in negatives.set_index("user")["items"].loc[test["user"]]], np.int64
    )
    user_ids = pd.Index(test["user"])
    item_ids = pd.Index(np.union1d(train["item"], test["item"]))
    table = Interactions(
        users=user_ids.get_indexer(pd.Index(train["user"])).astype(np.int32),
        items=item_ids.get_indexer(pd.Index(train["item"])).astype(np.int32),
        ratings=None,
        timestamps=None,
        user_ids=user_ids.to_numpy(),
        item_ids=item_ids.to_numpy(),
    )
    candidates = item_ids.get_indexer(pd.Index(lists.ravel())).reshape(lists.shape).astype(np.int32)
    test_items = item_ids.get_indexer(pd.Index(test["item"])).astype(np.int32)
    return Dataset("ml-1m-loo", table, Heldout(test_items, candidates))


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """One of the compressed tables."""
    return pd.read_csv(folder / f"{name}.tsv.gz", sep="\t")


def test_popularity_on_ml_100k(ml_100k):
    """Full ranking exactly; the sampled anchor holds for another draw of candidates."""
    split = leave_one_out(ml_100k)
    assert split.validation_ratings is not None
    assert (split.num_users, split.num_items, len(split.items)) == (943, 1682, 100_000 - 2 * 943)
    ranks = popularity_ranks(merge_validation(split))
    full, sampled = (metrics_from_ranks(rank) for rank in ranks)
    assert [full["hr@10"], full["ndcg@10"]] == pytest.approx([0.0859, 0.0443], abs=0.001)
    assert [sampled["hr@10"], sampled["ndcg@10"]] == pytest.approx([0.4115, 0.2230], abs=0.02)


def test_popularity_on_ml_1m_with_official_candidates(ml_1m):
    """156 official lists hold the positive, and lose it; none holds an item that the user has met."""
    split = leave_one_out(ml_1m)
    assert (split.num_users, split.num_items, len(split.items)) == (6040, 3706, 994_169 - 6040)
    assert ((split.candidates_test < 0).sum(axis=1) > 0).sum() == 156
    full, sampled = (metrics_from_ranks(rank) for rank in popularity_ranks(merge_validation(split)))
    assert [full["hr@10"], full["ndcg@10"]] == pytest.approx([0.0414, 0.0204], abs=0.001)
    assert [sampled["hr@10"], sampled["ndcg@10"]] == pytest.approx([0.4538, 0.2545], abs=0.001)


def test_permuted_labels_get_at_most_popularity(ml_100k):
    """With test items dealt anew among the users, counts know no more than before."""
    split = merge_validation(leave_one_out(ml_100k))
    dealt = split._replace(test=np.random.default_rng(0).permutation(split.test))
    real, permuted = (metrics_from_ranks(popularity_ranks(one).full)["ndcg@10"] for one in (split, dealt))
    assert permuted < real + 0.02
