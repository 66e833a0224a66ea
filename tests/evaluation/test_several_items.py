"""Several held-out items a user: splits, ranks and metrics against plain oracles, laws, canaries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.client.population import contains
from fedjax_rec.data.fake_users import exclude_from_evaluation, with_fake_users
from fedjax_rec.data.heldout import PARTS, heldout_events
from fedjax_rec.data.splits import append_users, known_items, leave_one_out, merge_validation
from fedjax_rec.data.splitters import ratio, strong_generalisation
from fedjax_rec.evaluation import make_recommender, pair_ranking
from fedjax_rec.evaluation.exposure import exposure_ratio
from fedjax_rec.evaluation.metrics import as_pairs, metrics_from_ranks, user_metric, user_metrics
from fedjax_rec.evaluation.multi_positive import list_metrics, multi_positive_metrics
from fedjax_rec.evaluation.pair_metrics import PAIR_METRICS, pair_metrics
from fedjax_rec.evaluation.pair_ranking import PairRanks, make_pair_ranker
from fedjax_rec.evaluation.ranking import MidRanks, count_rivals, rank_split
from fedjax_rec.evaluation.reference_ranks import rank_common_scores
from fedjax_rec.evaluation.summary import result_metrics, rivals_of, summarise
from tests.data.test_splits import make_dataset, make_random
from tests.references import several_items

KS = (1, 3, 10)


def make_split(rng, num_users=12, num_items=14, **options):
    """5 to 9 events a user, 2 or more of them tested."""
    users = np.repeat(np.arange(num_users), rng.integers(5, 10, num_users))
    items = np.concatenate([rng.permutation(num_items)[: (users == user).sum()] for user in range(num_users)])
    dataset = make_dataset(users, items, num_items=num_items)
    options = {"validation_share": 0.3, "test_share": 0.4, "num_candidates": 3} | options
    return ratio(dataset, order="file", **options)


@pytest.fixture(scope="module")
def split():
    """A small one."""
    return make_split(np.random.default_rng(0))


def make_scores(rng, split):
    """Few levels, so that most items tie, and some NaN."""
    scores = rng.integers(0, 4, (split.num_users, split.num_items)).astype(np.float32)
    return np.where(rng.random(scores.shape) < 0.1, np.nan, scores)


def rank(scores, split, which="test", **options):
    """Full and sampled ranks of a matrix of scores."""
    found = make_pair_ranker(split, lambda matrix, users: matrix[users], which=which, **options)(
        jnp.asarray(scores)
    )
    return jax.tree.map(np.asarray, found)


def rows(events):
    """The items of each user."""
    return np.split(events.items, events.offsets[1:-1])


def rivals_by_user(split, which):
    """All that is neither met nor a positive, by user."""
    train = np.split(split.items, split.offsets[1:-1])
    met = [set(own) for own in train]
    for part in PARTS if which == "test" else ("validation",):
        met = [own | set(more) for own, more in zip(met, rows(heldout_events(split, part)), strict=True)]
    return [set(range(split.num_items)) - own for own in met]


def test_splits_hold_out_shares(split):
    """All of a share is held out; its first event is what `positives="first"` has, bit for bit."""
    first = make_split(np.random.default_rng(0), positives="first")
    assert first.heldout is None
    for name in split._fields[:-1]:
        if name != "log":
            np.testing.assert_array_equal(getattr(split, name), getattr(first, name))
    assert split.heldout is not None
    assert min(np.diff(split.heldout.test.offsets)) == 2
    counts = sum(np.diff(events.offsets) for events in split.heldout) + np.diff(split.offsets)
    assert counts.min() >= 5
    for which in PARTS:
        np.testing.assert_array_equal(
            getattr(split, which), [own[0] for own in rows(heldout_events(split, which))]
        )
    assert f"{len(split.heldout.test.items)} of 12 test" in split.log[-1]
    with pytest.raises(ValueError, match="positives='some' is unknown; choose one of 'all', 'first'"):
        make_split(np.random.default_rng(0), positives="some")


def test_events_keep_their_user_and_rating():
    """Whatever makes another split of one: a refit, further users, fake ones, fewer."""
    dataset = make_random(np.random.default_rng(8))
    events = dataset.interactions
    split = ratio(dataset, validation_share=0.3, test_share=0.3)
    validation, test = (heldout_events(split, which) for which in PARTS)
    assert events.ratings is not None
    table = {
        (u + 100, i + 1000): r for u, i, r in zip(events.users, events.items, events.ratings, strict=True)
    }
    ids = split.user_ids[test.owners], split.item_ids[test.items]
    np.testing.assert_array_equal(test.ratings, [table[pair] for pair in zip(*ids, strict=True)])

    merged = merge_validation(split)
    for user, (own, more) in enumerate(zip(rows(split), rows(validation), strict=True)):
        np.testing.assert_array_equal(rows(merged)[user], [*own, *more])
    assert not len(heldout_events(merged, "validation").items)
    assert heldout_events(merged, "test") is test
    both = append_users(split, split._replace(user_ids=split.user_ids + 1000))
    np.testing.assert_array_equal(
        heldout_events(both, "test").owners[len(test.items) :], test.owners + split.num_users
    )
    fake = with_fake_users(split, 2)
    assert np.diff(heldout_events(fake, "test").offsets)[-2:].tolist() == [0, 0]
    fewer = exclude_from_evaluation(split, [1])
    assert 1 not in heldout_events(fewer, "test").owners
    assert 1 in test.owners
    assert fewer.test[1] == -1
    _, known = known_items(events, split)
    assert len(known) == sum(len(part.items) for part in (split, validation, test))


@pytest.mark.parametrize("which", PARTS)
def test_ranks_agree_with_a_plain_oracle(which, split):
    """Pair by pair, with ties and NaN, in whatever chunks."""
    scores = make_scores(np.random.default_rng(1), split)
    full, sampled = rank(scores, split, which, block_size=5, chunk=4)
    held = heldout_events(split, which)
    _, candidates = (
        (split.test, split.candidates_test) if which == "test" else (0, split.candidates_validation)
    )
    rivals = rivals_by_user(split, which)
    for pair, (user, item) in enumerate(zip(held.owners, held.items, strict=True)):
        for ranks, among in ((full, rivals[user]), (sampled, {c for c in candidates[user] if c >= 0})):
            own, others = scores[user, item], scores[user, sorted(among)]
            better, tied = (others > own).sum(), (others == own).sum()
            expected = (len(among), 0) if np.isnan(own) else (better + tied / 2, tied)
            assert (ranks.mid[pair], ranks.tied[pair]) == (
                expected if among else (pytest.approx(np.nan, nan_ok=True), 0)
            )
    counts = count_rivals(split, which=which)
    np.testing.assert_array_equal(counts.full, [len(own) for own in rivals])
    for other in (
        rank(scores, split, which, chunk=1),
        rank_split(lambda u: jnp.asarray(scores)[u], split, which=which),
    ):
        np.testing.assert_array_equal(other[0].mid, full.mid)
        np.testing.assert_array_equal(other[1].tied, sampled.tied)


def test_metrics_agree_with_every_list(split):
    """Exact expectations over the orders of tied items, and NaN for who has no rival."""
    scores = make_scores(np.random.default_rng(2), split)
    ranks = rank(scores, split)[0]
    rivals = rivals_by_user(split, "test")
    found = pair_metrics(ranks, KS, rivals=count_rivals(split).full)
    for user, own in enumerate(rows(split.heldout.test)):
        if not rivals[user]:
            assert np.isnan(found["map"][user])
            continue
        for k in (*KS, split.num_items):
            expected = several_items.expected(scores[user], set(own), rivals[user], k)
            if k == split.num_items:
                expected = {"mrr": expected[f"mrr@{k}"], "map": expected[f"map@{k}"]}
            for name, value in expected.items():
                np.testing.assert_allclose(found[name][user], value, rtol=1e-12, err_msg=name)
        np.testing.assert_allclose(found["auc"][user], several_items.auc(scores[user], own, rivals[user]))


def test_without_ties_they_are_those_of_lists():
    """The ranks of pairs give what top-k lists give, and what ranks in the whole list do."""
    rng = np.random.default_rng(3)
    split = make_split(rng, num_users=40, num_items=60, num_candidates=20)
    scores = rng.permuted(np.tile(np.arange(60.0), (40, 1)), axis=1)
    ranks = rank(scores, split)[0]
    lists = np.asarray(
        make_recommender(split, lambda matrix, users: matrix[users], 10)(jnp.asarray(scores)).items
    )
    test = split.heldout.test
    found = pair_metrics(ranks, KS)
    for name, value in list_metrics(lists, test.offsets, test.items, KS).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, err_msg=name)
    own = scores[test.owners, test.items]
    better_positives = [
        ((test.owners == user) & (own > score)).sum() for user, score in zip(test.owners, own, strict=True)
    ]
    whole = multi_positive_metrics(ranks.mid + better_positives, test.owners, 40, KS)
    np.testing.assert_allclose(found["map"], whole["map"], rtol=1e-12)


def test_ranx_agrees():
    """The same numbers as of the field's package, where it is installed."""
    ranx = pytest.importorskip("ranx", reason="ranx is not installed")
    rng = np.random.default_rng(4)
    split = make_split(rng, num_users=40, num_items=60)
    scores = rng.permuted(np.tile(np.arange(60.0), (40, 1)), axis=1)
    ranks = rank(jnp.asarray(scores, jnp.float32), split)[0]
    positives = rows(split.heldout.test)
    rivals = rivals_by_user(split, "test")
    qrels = ranx.Qrels({f"u{u}": {f"i{i}": 1 for i in own} for u, own in enumerate(positives)})
    run = ranx.Run(
        {
            f"u{u}": {f"i{i}": float(scores[u, i]) for i in {*own, *rivals[u]}}
            for u, own in enumerate(positives)
        }
    )
    names = {
        "hit_rate": "hr",
        "precision": "precision",
        "recall": "recall",
        "ndcg": "ndcg",
        "mrr": "mrr",
        "map": "map",
    }
    theirs = ranx.evaluate(qrels, run, [f"{name}@10" for name in names])
    ours = metrics_from_ranks(ranks, [10])
    for name, own in names.items():
        np.testing.assert_allclose(ours[f"{own}@10"], theirs[f"{name}@10"], rtol=1e-9)


def test_one_item_is_a_special_case():
    """With one item a user the ranks are those of leave-one-out bit for bit, and the metrics the same."""
    split = leave_one_out(fr.data.synthetic(40, 90), num_candidates=5)
    scores = make_scores(np.random.default_rng(5), split)
    alone = rank_split(lambda users: jnp.asarray(scores)[users], split)
    pairs = rank(scores, split)
    rivals = count_rivals(split)
    for ranking, own, of_pairs in zip(alone._fields, alone, pairs, strict=True):
        assert isinstance(own, MidRanks)
        np.testing.assert_array_equal(own.mid, of_pairs.mid)
        np.testing.assert_array_equal(own.tied, of_pairs.tied)
        one = user_metrics(own, KS, rivals=getattr(rivals, ranking))
        several = user_metrics(of_pairs, KS, rivals=getattr(rivals, ranking))
        for name, value in one.items():
            np.testing.assert_allclose(several[name], value, rtol=1e-12, err_msg=name)
        np.testing.assert_array_equal(user_metric(own, "recall@3"), user_metric(as_pairs(own), "hr@3"))
    with pytest.raises(ValueError, match="unknown metric 'recall'; known: hr@k, precision@k, recall@k"):
        user_metric(alone.full, "recall")


def test_common_scores_are_ranked_on_the_host(split):
    """As the device ranks them."""
    scores = np.random.default_rng(6).integers(0, 5, split.num_items).astype(np.float32)
    host = rank_common_scores(scores, split)
    device = rank(np.tile(scores, (split.num_users, 1)), split)
    for own, other in zip(host, device, strict=True):
        for name in ("mid", "tied", "owners"):
            np.testing.assert_array_equal(getattr(own, name), getattr(other, name))


def check_chance(ranks, split):
    """Of a constant scorer every metric is that of a random order: recall k / L, precision n / L, of L items."""
    rivals = count_rivals(split).full
    n = np.diff(split.heldout.test.offsets)
    found = pair_metrics(ranks, [3], rivals=rivals)
    ranked = rivals > 0
    length = (rivals + n)[ranked]
    assert ranked.sum() > 5
    np.testing.assert_allclose(found["recall@3"][ranked], np.minimum(3 / length, 1))
    np.testing.assert_allclose(found["precision@3"][ranked], n[ranked] * np.minimum(3 / length, 1) / 3)
    np.testing.assert_allclose(found["auc"][ranked], 0.5)


def test_a_constant_scorer_gets_chance(split, monkeypatch):
    """And the canary sings where ties count for nothing, or against the positives."""
    constant = np.zeros((split.num_users, split.num_items), np.float32)
    check_chance(rank(constant, split)[0], split)
    count = pair_ranking.count_better_and_tied
    for fault in (lambda better, tied: (better, 0 * tied), lambda better, tied: (better + tied, 0 * tied)):
        monkeypatch.setattr(pair_ranking, "count_better_and_tied", lambda *given, f=fault: f(*count(*given)))
        with pytest.raises(AssertionError):
            check_chance(rank(constant, split)[0], split)


def test_leaks_spare_all_that_is_held_out(split):
    """Clean training may draw every held-out item as a negative; leaky training none of them."""
    for negatives, spared in (("train", False), ("paper-leaky", True)):
        population = fr.population_of(split._replace(negatives=negatives))
        for which in PARTS:
            held = heldout_events(split, which)
            pairs = jnp.asarray(held.owners, jnp.int32), jnp.asarray(held.items)[:, None]
            assert (np.asarray(jax.vmap(contains, (None, 0, 0))(population, *pairs)) == spared).all()


def test_summary_and_lists(split):
    """Groups, rivals and exposure count all held-out items; head and tail are ranked apart."""
    ranks = rank_split(lambda users: jnp.asarray(make_scores(np.random.default_rng(7), split))[users], split)
    recommend = make_recommender(split, lambda _, users: jnp.zeros((len(users), 14)), 14)
    lists = np.asarray(recommend(None).items)
    seen = [
        set(own) | set(more) for own, more in zip(rows(split), rows(split.heldout.validation), strict=True)
    ]
    assert all(not set(own) & met for own, met in zip(lists.tolist(), seen, strict=True))
    assert all(
        set(own) <= set(mine) for own, mine in zip(rows(split.heldout.test), lists.tolist(), strict=True)
    )
    rivals = rivals_of(split)
    counts = count_rivals(split).full
    assert rivals.full == (counts[counts > 0].min(), counts.max())
    summary = summarise(ranks, split, lists[:, :10], sampled="sampled3")
    assert set(summary["intervals"]["full"]) == {"recall@10", "ndcg@10", "hr@10"}
    groups = summary["groups"]["item_popularity"]
    assert groups.keys() == {"head", "tail"}
    assert 0 < groups["head"]["recall@10"] <= 1
    assert result_metrics(ranks, split)["full"].keys() >= {f"{name}@20" for name in PAIR_METRICS}
    met = rivals_by_user(split, "test")
    share = np.mean([0 in own for own in lists[[0 in own for own in met]]])
    assert exposure_ratio(lists, split, [0], ks=[10])["er@10"] == pytest.approx(share)


def test_ranks_of_another_split_are_refused():
    """A rank beyond the rivals is of other data."""
    ranks = PairRanks(jnp.array([3.0]), jnp.array([0]), jnp.array([0]), 1)
    with pytest.raises(ValueError, match="no array by user"):
        np.asarray(ranks)
    with pytest.raises(ValueError, match="of another split"):
        pair_metrics(ranks, [1], rivals=2)
    with pytest.raises(ValueError, match="k=0 is out of range"):
        pair_metrics(ranks, [0])


def test_held_out_clients_look_for_shares():
    """They fold in the start of their histories, and all that follows counts; the fold-in ranks every pair."""
    dataset = fr.data.synthetic(30, 60)
    training, heldout = strong_generalisation(dataset, test_share=0.3, heldout_share=0.4, num_candidates=5)
    _, last = strong_generalisation(dataset, test_share=0.3, num_candidates=5)
    assert training.heldout is None
    test = heldout_events(heldout, "test")
    counts = np.diff(last.offsets) + 1
    np.testing.assert_array_equal(np.diff(heldout.offsets), np.maximum(1, (counts * 0.6 + 1e-9).astype(int)))
    for own, history, more in zip(rows(last), rows(heldout), rows(test), strict=True):
        np.testing.assert_array_equal([*own], [*history, *more][:-1])
    assert [own[-1] for own in rows(test)] == last.test.tolist()

    algorithm = fr.fedals(dim=2)
    state = algorithm.init(jax.random.key(0), fr.population_of(training))
    point = fr.evaluation.after_fold_in(algorithm, fr.population_of(heldout), jax.random.key(0))
    ranks = fr.make_evaluator(algorithm, heldout, point=point)(state).full
    assert np.isfinite(user_metric(ranks, "recall@10")).all()
    both = append_users(training, heldout).heldout
    assert both is not None
    np.testing.assert_array_equal(both.validation.items, training.validation)
    np.testing.assert_array_equal(both.test.owners, test.owners + training.num_users)
    with pytest.raises(ValueError, match=r"heldout_share=1.0 must be above 0 and below 1"):
        strong_generalisation(dataset, heldout_share=1.0)
