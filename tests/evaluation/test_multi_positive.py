"""Metrics of several positives: by hand, against scikit-learn and plain loops, and the documented edge cases."""

import math

import numpy as np
import pytest

from fedjax_rec.evaluation.multi_positive import list_metrics, multi_positive_metrics

KS = (1, 3, 10, 40)


def draw_case(rng, num_users=50, num_items=40):
    """Scores without ties, 0 to 6 positives per user, and the complete lists."""
    scores = rng.normal(size=(num_users, num_items))
    counts = rng.integers(0, 7, num_users)
    relevant = np.argsort(rng.random(scores.shape), axis=1).argsort(axis=1) < counts[:, None]
    users, items = np.nonzero(relevant)
    return scores, relevant, np.concatenate([[0], np.cumsum(counts)]), users, items


def measure_plainly(ranked, k) -> dict[str, float]:
    """One user's metrics from the relevance of the items in order, one rank after the other."""
    n = sum(ranked)
    hits = 0
    gain = 0.0
    precision = 0.0
    first = 0.0
    for rank, relevant in enumerate(ranked[:k]):
        if relevant:
            hits += 1
            gain += 1 / math.log2(rank + 2)
            precision += hits / (rank + 1)
            first = first or 1 / (rank + 1)
    ideal = sum(1 / math.log2(rank + 2) for rank in range(min(k, n)))
    return {
        "hr": float(hits > 0),
        "precision": hits / k,
        "recall": hits / n,
        "truncated_recall": hits / min(k, n),
        "ndcg": gain / ideal,
        "mrr": first,
        "map": precision / n,
    }


def test_by_hand():
    """Positives 1, 2 and 9; the list 5, 2, 1, 7."""
    values = list_metrics(np.array([[5, 2, 1, 7]]), np.array([0, 3]), np.array([9, 1, 2]), ks=[2, 4])
    expected = {
        "hr@2": 1,
        "precision@2": 1 / 2,
        "recall@2": 1 / 3,
        "truncated_recall@2": 1 / 2,
        "ndcg@2": (1 / math.log2(3)) / (1 + 1 / math.log2(3)),
        "mrr@2": 1 / 2,
        "map@2": (1 / 2) / 3,
        "hr@4": 1,
        "precision@4": 2 / 4,
        "recall@4": 2 / 3,
        "truncated_recall@4": 2 / 3,
        "ndcg@4": (1 / math.log2(3) + 1 / 2) / (1 + 1 / math.log2(3) + 1 / 2),
        "mrr@4": 1 / 2,
        "map@4": (1 / 2 + 2 / 3) / 3,
    }
    assert {name: value[0] for name, value in values.items()} == pytest.approx(expected)


def test_agrees_with_plain_loops():
    """Lists and ranks give the same numbers; users without a positive are NaN."""
    scores, relevant, offsets, users, items = draw_case(np.random.default_rng(0))
    lists = np.argsort(-scores, axis=1)
    ranks = lists.argsort(axis=1)[users, items]
    by_list = list_metrics(lists, offsets, items, KS)
    by_rank = multi_positive_metrics(ranks, users, len(scores), KS)
    for k in KS:
        for user in range(len(scores)):
            ranked = relevant[user, lists[user]].tolist()
            if any(ranked):
                for name, number in measure_plainly(ranked, k).items():
                    assert by_list[f"{name}@{k}"][user] == pytest.approx(number)
            else:
                assert np.isnan(by_list[f"hr@{k}"][user])
    for name, value in by_list.items():
        np.testing.assert_allclose(by_rank[name], value, rtol=1e-12)
    np.testing.assert_allclose(by_rank["map"], by_rank["map@40"])


def test_agrees_with_scikit_learn():
    """NDCG, average precision and AUC of each user; AUC with ties too."""
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(1)
    scores, relevant, offsets, users, items = draw_case(rng)
    held = np.flatnonzero(relevant.any(axis=1))
    lists = np.argsort(-scores, axis=1)
    values = list_metrics(lists, offsets, items, KS)
    for k in KS:
        expected = [metrics.ndcg_score(relevant[[user]], scores[[user]], k=k) for user in held]
        np.testing.assert_allclose(values[f"ndcg@{k}"][held], expected, rtol=1e-12)
    precise = [metrics.average_precision_score(relevant[user], scores[user]) for user in held]
    np.testing.assert_allclose(values["map@40"][held], precise, rtol=1e-12)
    rough = np.round(scores)
    mid = (rough[:, None, :] > rough[:, :, None]).sum(2) + (
        (rough[:, None, :] == rough[:, :, None]).sum(2) - 1
    ) / 2
    rivals = (~relevant).sum(axis=1)
    for given, ranks in ((scores, lists.argsort(axis=1)), (rough, mid)):
        auc = multi_positive_metrics(ranks[users, items], users, len(scores), rivals=rivals)["auc"]
        expected = [metrics.roc_auc_score(relevant[user], given[user]) for user in held]
        np.testing.assert_allclose(auc[held], expected, rtol=1e-12)
        assert np.isnan(np.delete(auc, held)).all()


def test_one_positive_is_the_simple_case():
    """HR, NDCG and MRR are those of a rank; both recalls are HR."""
    from fedjax_rec.evaluation.metrics import user_metrics

    rank = np.array([0.0, 4, 9, 10, 30])
    values = multi_positive_metrics(rank, np.arange(5), 5, [10], rivals=40)
    for name, value in user_metrics(rank, [10], rivals=40).items():
        np.testing.assert_allclose(values[name], value)
    np.testing.assert_array_equal(values["recall@10"], values["hr@10"])
    np.testing.assert_array_equal(values["truncated_recall@10"], values["hr@10"])


def test_duplicates_count_once():
    """In the list at the better rank, among the positives once."""
    once = list_metrics(np.array([[4, 1, 6]]), np.array([0, 2]), np.array([1, 4]), ks=[3])
    twice = list_metrics(np.array([[4, 1, 4]]), np.array([0, 4]), np.array([1, 4, 4, 1]), ks=[3])
    assert {name: value.tolist() for name, value in twice.items()} == {
        name: value.tolist() for name, value in once.items()
    }


def test_short_lists_and_large_k():
    """Empty slots are never relevant but count in precision; k above the items is as good as all of them."""
    lists = np.array([[2, 0, 1, -1, -1, -1], [-1] * 6])
    values = list_metrics(lists, np.array([0, 2, 3]), np.array([0, 1, 0]), ks=[3, 6])
    assert values["recall@6"].tolist() == [1, 0]
    assert values["precision@6"].tolist() == [2 / 6, 0]
    assert values["ndcg@6"][0] == values["ndcg@3"][0] < 1
    assert values["hr@3"].tolist() == [1, 0]


def test_bounds():
    """Between 0 and 1, and 1 exactly where the positives lead the list."""
    scores, relevant, offsets, _, items = draw_case(np.random.default_rng(2))
    values = list_metrics(np.argsort(-scores, axis=1), offsets, items, KS)
    assert all(np.nanmin(value) >= 0 and np.nanmax(value) <= 1 for value in values.values())
    best = list_metrics(np.argsort(-(scores + 100 * relevant), axis=1), offsets, items, KS)
    for name in ("hr", "ndcg", "mrr", "truncated_recall"):
        assert np.nanmin(best[f"{name}@3"]) == 1


def test_unknown_cut_offs_are_errors():
    """Below 1, and beyond the lists."""
    with pytest.raises(ValueError, match="k=4 exceeds the lists of 3; make lists of 4 or lower k"):
        list_metrics(np.zeros((1, 3), int), np.array([0, 1]), np.array([0]), ks=[4])
    with pytest.raises(ValueError, match="k=0 is out of range"):
        multi_positive_metrics(np.zeros(1), np.zeros(1, int), 1, ks=[0])
