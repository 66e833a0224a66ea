"""Top-k lists: a plain oracle, merging of shards, and agreement with the ranks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_rec.evaluation.ranking import make_ranker
from fedjax_rec.evaluation.recommend import TopK, make_recommender, merge_top_k, top_k
from tests.evaluation.test_ranking import INF, NAN, make_random, make_split


def list_plainly(scores, seen, k) -> list[int]:
    """Sort by score, NaN last of all, then by item; -1 where nothing is left."""
    order = sorted(
        set(range(len(scores))) - set(seen),
        key=lambda item: (
            np.isnan(scores[item]),
            -np.nan_to_num(scores[item], posinf=INF, neginf=-INF),
            item,
        ),
    )
    return (order + [-1] * k)[:k]


def draw_scores(rng, shape) -> np.ndarray:
    """Many ties, NaN, infinities and both zeros."""
    return rng.choice([0.0, -0.0, 1, 2, 3, -1, NAN, INF, -INF], shape).astype(np.float32)


@pytest.mark.parametrize("which", ["test", "validation"])
@pytest.mark.parametrize(("k", "block_size"), [(1, None), (10, 7), (35, 1), (50, 60)])
def test_lists_agree_with_a_plain_oracle(which, k, block_size):
    """Seen items are left out, but not the held-out one where it was met before; -1 beyond the last item."""
    rng = np.random.default_rng(k)
    split = make_random(rng)
    scores = draw_scores(rng, (split.num_users, split.num_items))
    recommend = make_recommender(
        split, lambda matrix, users: matrix[users], k, which=which, block_size=block_size
    )
    lists = recommend(jnp.asarray(scores))
    positives = split.test if which == "test" else split.validation
    for user in range(split.num_users):
        seen = {*split.items[split.offsets[user] : split.offsets[user + 1]]}
        seen = (seen | {split.validation[user]} if which == "test" else seen) - {positives[user]}
        expected = list_plainly(scores[user], seen, k)
        assert np.asarray(lists.items[user]).tolist() == expected
        np.testing.assert_array_equal(
            lists.scores[user], [scores[user, item] if item >= 0 else -INF for item in expected]
        )


def test_a_hit_is_a_rank_below_k():
    """Without ties the held-out item is in the list exactly where its rank says so."""
    rng = np.random.default_rng(0)
    split = make_random(rng)
    scores = jnp.asarray(rng.permuted(np.tile(np.arange(35.0), (60, 1)), axis=1), jnp.float32)
    ranks = make_ranker(split, lambda matrix, users: matrix[users])(scores).full
    lists = make_recommender(split, lambda matrix, users: matrix[users], 5)(scores)
    hits = (np.asarray(lists.items) == split.test[:, None]).any(1) & (split.test >= 0)
    np.testing.assert_array_equal(hits, np.asarray(ranks) < 5)


@pytest.mark.parametrize("shards", [1, 2, 5])
def test_merged_shards_are_the_whole_catalogue(shards):
    """Shards of any items, in any order; short ones have empty slots."""
    rng = np.random.default_rng(shards)
    scores = draw_scores(rng, (20, 30))
    k = 9
    parts = np.array_split(rng.permutation(30), shards)
    lists = []
    for part in parts:
        own = top_k(jnp.asarray(scores[:, np.sort(part)]), k)
        lists.append(own._replace(items=jnp.where(own.items >= 0, np.sort(part)[own.items], -1)))
    merged = merge_top_k(TopK(*map(jnp.stack, zip(*lists, strict=True))), k)
    whole = top_k(jnp.asarray(scores), k)
    jax.tree.map(np.testing.assert_array_equal, merged, whole)


def test_catalogues_above_one_chunk():
    """The best items of several chunks, ties over their borders, and a list longer than a chunk's."""
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 50, (3, 70_000)).astype(np.float32)
    for k in (5, 1500):
        expected = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        np.testing.assert_array_equal(top_k(jnp.asarray(scores), k).items, expected)


def test_unknown_arguments_are_errors():
    """One line with the way out."""
    split = make_split([[0, 1, 2]], 4)
    with pytest.raises(ValueError, match="k=0 is out of range; lists have 1 item or more"):
        make_recommender(split, lambda matrix, users: matrix[users], 0)
    with pytest.raises(ValueError, match="k=3 exceeds the shards' lists of 2"):
        merge_top_k(TopK(jnp.zeros((1, 1, 2), jnp.int32), jnp.zeros((1, 1, 2))), 3)
    with pytest.raises(ValueError, match=r"not \(1, 4\)"):
        make_recommender(split, lambda matrix, users: matrix[users, :2], 1)(jnp.zeros((1, 4)))
