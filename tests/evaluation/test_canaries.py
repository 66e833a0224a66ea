"""Canaries: what is known in advance about every sound evaluation, and that each of them sings.

A canary is a check that passes on the evaluation as it is, and raises once a fault is planted.
"""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.client.batches import positives_per_batch, with_negatives
from fedjax_rec.client.population import build, contains
from fedjax_rec.data import splits
from fedjax_rec.data.interactions import Dataset, Heldout, Interactions
from fedjax_rec.evaluation import metrics, ranking
from fedjax_rec.evaluation.ranking import MidRanks, count_rivals, make_ranker, rank_split
from fedjax_rec.federation.blocks import run_block

pytestmark = pytest.mark.as_compiled  # it compiles little and runs long, which optimised programs do sooner

K = 10


@cache
def synthetic_split(num_users: int = 1000, num_items: int = 1200):
    """The embedded population, or a smaller one."""
    return fr.leave_one_out(fr.data.synthetic(num_users, num_items))


def score_at_random(num_items: int):
    """Independent scores for each user and item."""
    key = jax.random.key(7)
    return jax.vmap(lambda user: jax.random.uniform(jax.random.fold_in(key, user), (num_items,)))


def check_chance(mid_ranks, rivals, slack: float = 4.0) -> None:
    """HR@10 is 10 / (rivals + 1) of each user, within `slack` standard errors of a mean of coin tosses."""
    held = ~np.isnan(np.asarray(mid_ranks))
    chance = np.minimum(1, K / (np.broadcast_to(rivals, held.shape)[held] + 1))
    error = np.sqrt((chance * (1 - chance)).sum()) / held.sum()
    found = fr.evaluation.metrics_from_ranks(mid_ranks, [K])[f"hr@{K}"]
    assert abs(found - chance.mean()) <= slack * error + 1e-6, (
        f"HR@{K} {found:.4f}, chance {chance.mean():.4f}"
    )


def test_a_random_scorer_gets_chance():
    """It is right once in ten; half the candidates, or one of them 99 times over, would make it look better."""
    split = synthetic_split()
    ranks = rank_split(score_at_random(split.num_items), split)
    check_chance(ranks.sampled, 99)
    check_chance(ranks.full, count_rivals(split).full)
    halved = np.where(np.arange(99) < 49, split.candidates_test, -1)
    repeated = np.repeat(split.candidates_test[:, :1], 99, axis=1)
    for fault in (halved, repeated):
        shown = split._replace(candidates_test=fault.astype(np.int32))
        with pytest.raises(AssertionError, match="chance"):
            check_chance(rank_split(score_at_random(split.num_items), shown).sampled, 99)


def test_a_constant_scorer_gets_chance(monkeypatch):
    """Exactly, by the tie rule; ties that count for nothing, or against the positive, are both found."""
    split = synthetic_split()

    def check() -> None:
        ranks = rank_split(lambda users: jnp.zeros((len(users), split.num_items)), split)
        check_chance(ranks.sampled, 99, slack=0)
        check_chance(ranks.full, count_rivals(split).full, slack=0)

    check()
    count = ranking.count_better_and_tied

    def friendly(scores, positive):
        better, tied = count(scores, positive)
        return better, 0 * tied

    def hostile(scores, positive):
        better, tied = count(scores, positive)
        return better + tied, 0 * tied

    for fault in (friendly, hostile):
        monkeypatch.setattr(ranking, "count_better_and_tied", fault)
        with pytest.raises(AssertionError, match="chance"):
            check()


def local_only(num_items: int) -> fr.types.Algorithm:
    """A private bias for each item and no shared leaf: what a client learns from others is nothing."""
    positives = positives_per_batch(64, 4)

    def loss(params, batch):
        score = params.private.at[batch.ids].get(mode="fill", fill_value=0.0)
        label = (jnp.arange(len(score)) < positives).astype(jnp.float32)
        mask = batch.data["mask"]
        return (mask * optax.sigmoid_binary_cross_entropy(score, label)).sum(), mask.sum()

    model = fr.Model(
        init_private=lambda _: jnp.zeros(num_items),
        init_server=lambda _key, _population: fr.Server({}, {}),
        score=lambda private, _server: private,
    )
    work = fr.local_training(loss, optax.sgd(0.1), with_negatives(64, 4))
    return fr.federate(model, work, sampler=fr.samplers.everyone(), aggregator=fr.server.total())


def make_local_trainer(split):
    """A function of (negatives, rounds): ranks of the local-only model, trained on the split's own batches."""
    algorithm = local_only(split.num_items)
    key = jax.random.key(0)
    block = jax.jit(partial(run_block, algorithm, 60))
    rank = fr.make_evaluator(algorithm, split)
    populations = {
        # without its vocabulary, which is compared by identity, both share one compiled program
        name: dataclasses.replace(fr.population_of(split._replace(negatives=name)), vocabulary=None)
        for name in ("train", "paper-leaky")
    }

    def train(negatives: str, rounds: int):
        population = populations[negatives]
        state, _ = block(key, algorithm.init(key, population), population, jnp.int32(rounds))
        return rank(state)

    return train


def check_local_only(ranks, split) -> None:
    """A model without collaboration is at chance, in both rankings."""
    check_chance(ranks.sampled, 99)
    check_chance(ranks.full, count_rivals(split).full)


def hit_rate(mid_ranks) -> float:
    """HR@10."""
    return fr.evaluation.metrics_from_ranks(mid_ranks, [K])[f"hr@{K}"]


def test_a_local_model_gets_chance_and_sings_when_training_leaks():
    """The leak detector: at chance when clean; with paper-leaky the held-out item alone is never pushed down."""
    split = synthetic_split()
    train = make_local_trainer(split)
    for rounds in (5, 20, 60):
        check_local_only(train("train", rounds), split)
        with pytest.raises(AssertionError, match="chance"):
            check_local_only(train("paper-leaky", rounds), split)
    assert hit_rate(train("paper-leaky", 20).sampled) > 0.8


@pytest.mark.thorough("a figure of a whole real set; on small data the same canary sings")
def test_a_local_model_on_ml_100k(shared_data):
    """The known figures: .107 when clean; .31, .73 and 1.00 after 5, 20 and 60 rounds with the leak.

    The engine's negatives are distinct within a round, so that they reach more items than independent draws do and
    the leak shows a little earlier: .42, .77, 1.00.
    """
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    train = make_local_trainer(split)
    check_local_only(train("train", 20), split)
    leaky = [train("paper-leaky", rounds) for rounds in (5, 20, 60)]
    for ranks in leaky:
        with pytest.raises(AssertionError, match="chance"):
            check_local_only(ranks, split)
    found = [hit_rate(ranks.sampled) for ranks in leaky]
    assert found == pytest.approx([0.42, 0.77, 1.0], abs=0.03)


def test_the_leak_marks_held_out_items_and_adds_no_examples():
    """Membership holds train, validation and test items; examples are train items; both structures agree."""
    split = synthetic_split(60, 90)
    leaky = split._replace(negatives="paper-leaky")
    clean_population = fr.population_of(split)
    population = fr.population_of(leaky)
    np.testing.assert_array_equal(population.examples["items"], split.items)
    also = np.stack([split.validation, split.test], axis=1)
    searched = build(split.offsets, split.items, None, split.num_items, bitmap=False, extra_items=also)
    everything = jnp.arange(split.num_items)
    for user in range(0, 60, 7):
        train = split.items[split.offsets[user] : split.offsets[user + 1]].tolist()
        held = [int(split.validation[user]), int(split.test[user])]
        for found, expected in (
            (clean_population, train),
            (population, train + held),
            (searched, train + held),
        ):
            own = np.flatnonzero(contains(found, jnp.int32(user), everything))
            assert own.tolist() == sorted(expected)
    with pytest.raises(ValueError, match="negatives='all' is unknown; choose one of 'train', 'paper-leaky'"):
        fr.population_of(split._replace(negatives="all"))


def check_knows_no_more_than_popularity(algorithm, state, split) -> None:
    """NDCG@10 is at most that of Popularity, up to 4 standard errors of the paired difference."""
    ranks = fr.make_evaluator(algorithm, split)(state)
    values = [
        metrics.user_metrics(one.full, [K])[f"ndcg@{K}"]
        for one in (ranks, fr.evaluation.popularity_ranks(split))
    ]
    gap = values[0] - values[1]
    gap = gap[~np.isnan(gap)]
    error = gap.std(ddof=1) / np.sqrt(len(gap))
    assert gap.mean() <= 4 * error, f"above Popularity by {gap.mean():.4f} +- {error:.4f}"


def test_permuted_labels_get_at_most_popularity():
    """With test items dealt anew among the users, a trained model knows nothing of them; with theirs, it does."""
    split = synthetic_split()
    algorithm = fr.fedmf(dim=8)
    state, _ = fr.simulate(algorithm, split, rounds=120, eval_every=20)
    dealt = np.random.default_rng(0).permutation(split.test)
    met = np.isin(np.arange(split.num_users) * split.num_items + dealt, splits.seen_codes(events_of(split)))
    permuted = split._replace(test=np.where(met, np.int32(-1), dealt))
    check_knows_no_more_than_popularity(algorithm, state, permuted)
    with pytest.raises(AssertionError, match="above Popularity"):
        check_knows_no_more_than_popularity(algorithm, state, split)


def events_of(split) -> Interactions:
    """A split's training and held-out events."""
    users = np.arange(split.num_users, dtype=np.int32)
    rows = np.repeat(users, np.diff(split.offsets))
    return Interactions(
        np.concatenate([rows, users, users]),
        np.concatenate([split.items, split.validation, split.test]),
        None,
        None,
        split.user_ids,
        split.item_ids,
    )


def check_popularity_on_ml_1m(split) -> None:
    """The published anchor, .4531 / .2542, as computed from the counts of all but the test item."""
    found = fr.evaluation.metrics_from_ranks(
        fr.evaluation.popularity_ranks(fr.data.merge_validation(split)).sampled, [K]
    )
    assert [found[f"hr@{K}"], found[f"ndcg@{K}"]] == pytest.approx([0.4538, 0.2545], abs=0.001)


def test_popularity_on_ml_1m(shared_data):
    """With fresh candidates instead of the official ones, or counts that hold the test items, it is missed."""
    dataset = fr.load_dataset("ml-1m-loo", data_dir=shared_data)
    split = fr.leave_one_out(dataset)
    check_popularity_on_ml_1m(split)
    assert dataset.test is not None
    fresh = dataset._replace(test=dataset.test._replace(candidates=None))
    counted = fr.data.merge_validation(split)._replace(validation=split.test)
    for fault in (fr.leave_one_out(fresh), counted):
        with pytest.raises(AssertionError):
            check_popularity_on_ml_1m(fault)


def check_bounds() -> None:
    """No metric leaves 0..1, the first place is worth 1, and NDCG never exceeds HR."""
    ranks = np.random.default_rng(0).integers(0, 40, 500).astype(np.float64)
    ranks[0] = 0
    tied = MidRanks(jnp.asarray(ranks + 1, jnp.float32), jnp.full(500, 2))
    for mid_ranks in (ranks, tied):
        found = metrics.user_metrics(mid_ranks, [1, K, 60])
        for values in found.values():
            assert values.min() >= 0, "below 0"
            assert values.max() <= 1 + 1e-12, "above 1"
        assert (found[f"ndcg@{K}"] <= found[f"hr@{K}"] + 1e-12).all(), "above HR"
    assert metrics.user_metrics(ranks, [K])[f"ndcg@{K}"][0] == 1, "the first place is worth 1"


def test_ndcg_is_never_above_one(monkeypatch):
    """Discounts that begin at another place are found."""
    check_bounds()
    for shift in (1.5, 3):
        monkeypatch.setitem(metrics.GAINS, "ndcg", lambda place, shift=shift: 1 / np.log2(place + shift))
        with pytest.raises(AssertionError, match=r"above|first"):
            check_bounds()


def check_large_cutoffs(split) -> None:
    """A k above the number of items finds everything, and NDCG is that of the whole list."""
    ranks = rank_split(score_at_random(split.num_items), split).full
    found = fr.evaluation.metrics_from_ranks(ranks, [split.num_items, 10 * split.num_items])
    whole = (1 / np.log2(np.asarray(ranks) + 2)).mean()
    for k in (split.num_items, 10 * split.num_items):
        assert found[f"hr@{k}"] == 1
        assert found[f"ndcg@{k}"] == pytest.approx(whole)


def test_a_cutoff_above_the_number_of_items(monkeypatch):
    """It is no error and no other number; dividing by k, or a list that ends early, is found."""
    split = synthetic_split(60, 90)
    check_large_cutoffs(split)
    expect = metrics._expect
    for fault in (
        lambda gain, mid, tied, k: expect(gain, mid, tied, min(k, 20)),
        lambda gain, mid, tied, k: expect(gain, mid, tied, k) * min(1, split.num_items / k),
    ):
        monkeypatch.setattr(metrics, "_expect", fault)
        with pytest.raises(AssertionError):
            check_large_cutoffs(split)


def check_absent_positives(split, read) -> None:
    """Users without a test item change neither the others' ranks nor any mean."""
    some = np.arange(split.num_users) % 3 > 0
    thinned = split._replace(test=np.where(some, split.test, np.int32(-1)))
    whole, part = (rank_split(score_at_random(split.num_items), read(one)).full for one in (split, thinned))
    assert np.isnan(np.asarray(part)[~some]).all(), "a rank without a positive"
    expected = fr.evaluation.metrics_from_ranks(np.asarray(whole)[some], [K])
    assert fr.evaluation.metrics_from_ranks(np.asarray(part), [K]) == expected


def test_users_without_a_positive():
    """They are left out; -1 read as the last item, or as the first, is found."""
    split = synthetic_split(60, 90)
    check_absent_positives(split, lambda one: one)
    for fault in (split.num_items - 1, 0):
        with pytest.raises(AssertionError, match="without a positive"):
            check_absent_positives(
                split,
                lambda one, item=fault: one._replace(test=np.where(one.test < 0, np.int32(item), one.test)),
            )


def check_candidates(split) -> None:
    """A user's candidates are distinct and none of them is an item that the user has met."""
    seen = splits.seen_codes(events_of(split))
    for candidates in (split.candidates_test, split.candidates_validation):
        rows, _ = np.nonzero(candidates >= 0)
        codes = rows * split.num_items + candidates[candidates >= 0]
        assert len(np.unique(codes)) == len(codes), "a repeated candidate"
        assert not np.isin(codes, seen).any(), "a candidate that was met"


def test_duplicates(monkeypatch):
    """Official lists lose repeated candidates and the positive itself; without that they are found."""
    dataset = fr.data.synthetic(60, 90)
    first = fr.leave_one_out(dataset, num_candidates=5)
    table = events_of(first)._replace(users=np.repeat(np.arange(60, dtype=np.int32), np.diff(first.offsets)))
    table = table._replace(items=first.items)
    doubled = np.concatenate([first.candidates_test, first.candidates_test[:, :1]], axis=1)
    for candidates in (doubled, np.concatenate([doubled[:, :5], first.test[:, None]], axis=1)):
        official = Dataset("official", table, Heldout(first.test, candidates))
        check_candidates(fr.leave_one_out(official))
        with monkeypatch.context() as fault:
            fault.setattr(splits, "dedupe", lambda candidates, positives: candidates)  # noqa: ARG005
            with pytest.raises(AssertionError, match="candidate"):
                check_candidates(fr.leave_one_out(official))
    with pytest.raises(ValueError, match="twice"):
        fr.population_of(first._replace(items=np.zeros_like(first.items)))


def check_ties(read) -> None:
    """Scores of three values only: metrics are the mean over random orders of the tied items."""
    split = synthetic_split(60, 90)
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 3, (60, 90)).astype(np.float32)
    found = fr.evaluation.metrics_from_ranks(
        read(rank_split(lambda users: jnp.asarray(coarse)[users], split).full), [K]
    )
    rank = make_ranker(split, lambda scores, users: scores[users])
    noises = rng.random((60, *coarse.shape), np.float32)
    orders = [hit_rate(rank(jnp.asarray(coarse + 0.5 * noise)).full) for noise in noises]
    error = np.std(orders) / np.sqrt(len(orders))
    assert abs(found[f"hr@{K}"] - np.mean(orders)) <= 4 * error, "not the mean over orders"


def test_ties_count_as_the_mean_over_their_orders():
    """Ties that all go one way are found."""
    check_ties(lambda mid_ranks: mid_ranks)
    for side in (-1, 1):
        with pytest.raises(AssertionError, match="not the mean"):
            check_ties(
                lambda mid_ranks, side=side: np.asarray(mid_ranks.mid) + side * np.asarray(mid_ranks.tied) / 2
            )
