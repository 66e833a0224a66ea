"""Ranking by counting: hand-made cases, a plain oracle, compilation, and the canaries of chance."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.data.interactions import Dataset, Interactions, Truth
from fedjax_rec.data.splits import Split, leave_one_out, merge_validation
from fedjax_rec.data.splitters import ratio
from fedjax_rec.engine.devices import replicate
from fedjax_rec.evaluation import evaluator
from fedjax_rec.evaluation.metrics import metrics_from_ranks, standard_errors, user_metrics
from fedjax_rec.evaluation.ranking import MidRanks, Ranks, count_rivals, make_ranker, rank_split
from fedjax_rec.evaluation.reference_ranks import popularity_ranks, popularity_scores, truth_of, truth_ranks
from fedjax_rec.evaluation.user_blocks import make_user_blocks
from fedjax_rec.federation.blocks import Compilations

NAN = np.nan
INF = np.inf


def make_dataset(rows, num_items, truth=None) -> Dataset:
    """A data set of each user's items in order of time."""
    users = np.repeat(np.arange(len(rows), dtype=np.int32), [len(row) for row in rows])
    items = np.concatenate(rows).astype(np.int32)
    table = Interactions(users, items, None, None, np.arange(len(rows)), np.arange(num_items))
    return Dataset("made", table, truth=truth)


def make_split(rows, num_items, num_candidates=99) -> Split:
    """Its leave-one-out split."""
    return leave_one_out(make_dataset(rows, num_items), order="file", num_candidates=num_candidates)


def make_random(rng, num_users=60, num_items=35, num_candidates=8) -> Split:
    """3 to 20 events per user, repeated items and users without a positive among them."""
    rows = [rng.integers(0, num_items, rng.integers(3, 21)) for _ in range(num_users)]
    split = make_split(rows, num_items, num_candidates)
    split.test[::7] = -1
    split.validation[::5] = -1
    return split


def rank_matrix(scores, split: Split, which="test", block_size=None) -> Ranks:
    """Ranks of a score matrix [N, I], through a ranker that takes it as its parameters."""
    ranker = make_ranker(split, lambda matrix, users: matrix[users], which=which, block_size=block_size)
    return jax.tree.map(np.asarray, ranker(jnp.asarray(scores, jnp.float32)))


def rank_plainly(scores, positive, rivals) -> tuple[float, int]:
    """The definition, one rival after the other: rank and number of ties."""
    if positive < 0 or not rivals:
        return NAN, 0
    if np.isnan(scores[positive]):
        return len(rivals), 0
    better = sum(scores[rival] > scores[positive] for rival in rivals)
    tied = sum(scores[rival] == scores[positive] for rival in rivals)
    return better + tied / 2, tied


def rank_all_plainly(scores, split: Split, which) -> Ranks:
    """The oracle: full and sampled ranks, user by user, with sets."""
    full = []
    sampled = []
    positives = split.test
    candidates = split.candidates_test
    if which == "validation":
        positives = split.validation
        candidates = split.candidates_validation
    for user in range(split.num_users):
        seen = {*split.items[split.offsets[user] : split.offsets[user + 1]], positives[user]}
        seen |= {split.validation[user]} if which == "test" else set()
        rivals = set(range(split.num_items)) - seen
        full.append(rank_plainly(scores[user], positives[user], rivals))
        sampled.append(rank_plainly(scores[user], positives[user], {c for c in candidates[user] if c >= 0}))
    return Ranks(*(MidRanks(*map(np.array, zip(*part, strict=True))) for part in (full, sampled)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("scores", "rank"),
    [
        ([9, 9, 4, 3, 2, 1], 0),  # best; the seen items 0 and 1 are masked
        ([0, 0, 2, 3, 4, 1], 2),
        ([0, 0, 2, 2, 2, 1], 1),  # half of two ties
        ([0, 0, 2, 3, 2, 1], 1.5),
        ([5, 5, 5, 5, 5, 5], 1.5),  # a constant scorer: the middle
        ([0, 0, NAN, 1, 2, 3], 3),  # a NaN positive ranks last
        ([NAN] * 6, 3),
        ([0, 0, 1, NAN, NAN, 2], 1),  # NaN rivals rank below any number
        ([0, 0, -INF, NAN, NAN, NAN], 0),
        ([0, 0, -INF, -INF, 0, NAN], 1.5),
        ([NAN, NAN, INF, INF, 1, 2], 0.5),
    ],
)
def test_hand_made_scores(scores, rank):
    """User 0 has met 0 and 1 and is tested on 2; the rivals, and the candidates, are 3, 4 and 5."""
    split = make_split([[0, 1, 2]], 6)
    assert sorted(split.candidates_test[0, :3]) == [3, 4, 5]
    assert [mid_ranks.mid.tolist() for mid_ranks in rank_matrix([scores], split)] == [[rank], [rank]]


def test_test_masks_train_and_validation_and_validation_masks_train():
    """The test item stays a rival of the validation item, and the validation item none of the test item."""
    split = make_split([[0, 1, 2]], 4, num_candidates=1)
    scores = [[9.0, 5.0, 1.0, 7.0]]
    assert rank_matrix(scores, split, "test").full.mid.tolist() == [1]  # rival 3
    assert rank_matrix(scores, split, "validation").full.mid.tolist() == [1]  # rivals 2 and 3
    assert count_rivals(split, which="test").full.tolist() == [1]
    assert count_rivals(split, which="validation").full.tolist() == [2]


@pytest.mark.parametrize("which", ["test", "validation"])
@pytest.mark.parametrize("block_size", [None, 1, 7, 60, 999])
def test_ranks_agree_with_a_plain_oracle(which, block_size):
    """Random scores with many ties, NaN and infinities; repeated items; every size of blocks."""
    rng = np.random.default_rng(block_size)
    split = make_random(rng)
    scores = rng.choice([0, 1, 2, 3, 4, NAN, INF, -INF], (split.num_users, split.num_items)).astype(
        np.float32
    )
    ranks = rank_matrix(scores, split, which, block_size)
    expected = rank_all_plainly(scores, split, which)
    jax.tree.map(np.testing.assert_array_equal, ranks, expected)
    rivals = count_rivals(split, which=which)
    for mid_ranks, number in zip(ranks, rivals, strict=True):
        present = ~np.isnan(mid_ranks.mid)
        assert (mid_ranks.mid + mid_ranks.tied / 2 <= number)[present].all()


def test_users_without_a_positive_or_a_rival_have_no_rank():
    """NaN, so that neither an absent item nor an empty list counts as a success."""
    merged = merge_validation(make_split([[0, 1, 2], [1, 2, 3]], 5))
    assert np.isnan(rank_matrix(np.zeros((2, 5)), merged, "validation").full.mid).all()
    no_candidates = rank_matrix(np.zeros((2, 5)), make_split([[0, 1, 2], [1, 2, 3]], 5, num_candidates=0))
    assert np.isnan(no_candidates.sampled).all()
    assert not np.isnan(no_candidates.full).any()
    alone = rank_matrix(np.zeros((1, 3)), make_split([[0, 1, 2]], 3))
    assert np.isnan([alone.full.mid, alone.sampled.mid]).all()


def test_a_catalogue_of_one_item():
    """Met three times: nothing to rank, and no error."""
    ranks = rank_matrix(np.zeros((1, 1)), make_split([[0, 0, 0]], 1))
    assert np.isnan([ranks.full.mid, ranks.sampled.mid]).all()
    assert np.isnan(metrics_from_ranks(ranks.full)["hr@10"])


def test_a_repeated_item_is_ranked_though_it_was_seen():
    """A positive that the user has met before is not masked."""
    split = make_split([[2, 1, 2]], 4)
    assert rank_matrix([[0.0, 9.0, 1.0, 2.0]], split).full.mid.tolist() == [1]


def test_half_precision_scores_are_compared_as_they_are():
    """bfloat16 scores tie where they are equal in bfloat16."""
    split = make_split([[0, 1, 2]], 4)
    scores = jnp.array([[0, 0, 1, 1 + 2**-10]], jnp.bfloat16)
    assert rank_split(lambda users: scores[users], split).full.mid.tolist() == [0.5]


def test_changing_parameters_do_not_compile_again():
    """One trace serves any number of calls; `vmap` over parameters gives the same ranks."""
    split = make_random(np.random.default_rng(0))
    traces = []

    def score(params, users):
        traces.append(users.shape)
        return params["user"][users] @ params["item"].T

    ranker = make_ranker(split, score, block_size=16)
    keys = jax.random.split(jax.random.key(0), 3)
    params = [
        {"user": jax.random.normal(key, (60, 4)), "item": jax.random.normal(key, (35, 4))} for key in keys
    ]
    ranks = [ranker(param) for param in params]
    assert len(traces) == 1
    assert not np.array_equal(ranks[0].full.mid, ranks[1].full.mid, equal_nan=True)
    batched = jax.vmap(ranker)(jax.tree.map(lambda *leaves: jnp.stack(leaves), *params))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *ranks)
    for one, other in zip(jax.tree.leaves(batched), jax.tree.leaves(stacked), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_allclose(one, other, atol=1)  # batched products may round otherwise
        assert np.nanmean(one != other) < 0.3


def test_blocks_look_up_about_equally_much():
    """Padding stays small under a power law of activity, so that memory grows with the number of events."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(500)[: 3 + int(count)] for count in np.minimum(rng.pareto(1, 2000) * 3, 400)]
    split = make_split(rows, 500, num_candidates=1)
    blocks = make_user_blocks(split, "test", 100).blocks
    masked = sum(map(len, rows))
    assert masked <= blocks.segment_items.size < 1.1 * masked
    assert blocks.users.shape == (20, 100)


def test_unknown_arguments_are_errors():
    """One line with the choices."""
    split = make_split([[0, 1, 2]], 4)
    with pytest.raises(ValueError, match="which='train' is unknown; choose one of 'test', 'validation'"):
        rank_matrix(np.zeros((1, 4)), split, "train")
    with pytest.raises(ValueError, match="block_size=0 is out of range; choose 1 or more"):
        rank_matrix(np.zeros((1, 4)), split, block_size=0)


def test_random_scores_get_chance():
    """HR@10 of 1 + 99 candidates is .100, and AUC .5, within 4 standard errors."""
    rng = np.random.default_rng(0)
    split = make_split([rng.permutation(300)[:5] for _ in range(3000)], 300)
    ranks = rank_matrix(rng.normal(size=(3000, 300)), split)
    metrics = metrics_from_ranks(ranks.sampled, rivals=99)
    errors = standard_errors(ranks.sampled, rivals=99)
    assert abs(metrics["hr@10"] - 0.1) < 4 * errors["hr@10"]
    assert abs(metrics["auc"] - 0.5) < 4 * errors["auc"]
    full = metrics_from_ranks(ranks.full, rivals=count_rivals(split).full)
    assert abs(full["hr@10"] - 10 / 296) < 4 * standard_errors(ranks.full)["hr@10"]


def test_a_constant_scorer_gets_the_middle():
    """AUC of exactly one half; all rivals tie."""
    split = make_random(np.random.default_rng(0))
    ranks = rank_matrix(np.ones((60, 35)), split)
    for mid_ranks, rivals in zip(ranks, count_rivals(split), strict=True):
        present = ~np.isnan(mid_ranks.mid)
        np.testing.assert_array_equal(mid_ranks.mid[present], rivals[present] / 2)
        np.testing.assert_array_equal(mid_ranks.tied[present], rivals[present])
        assert metrics_from_ranks(mid_ranks, rivals=rivals)["auc"] == 0.5


def test_a_constant_scorer_gets_chance():
    """Exactly: HR@k is k over the number of items, NDCG@k and MRR@k the mean gain of a random place."""
    split = make_random(np.random.default_rng(0))
    gains = {"hr": np.ones(10), "ndcg": 1 / np.log2(np.arange(10) + 2), "mrr": 1 / (np.arange(10) + 1)}
    for mid_ranks, rivals in zip(
        rank_matrix(np.full((60, 35), 7.0), split), count_rivals(split), strict=True
    ):
        values = user_metrics(mid_ranks, [10])
        present = ~np.isnan(mid_ranks.mid)
        for name, gain in gains.items():
            chance = [gain[: number + 1].sum() / (number + 1) for number in rivals[present]]
            np.testing.assert_allclose(values[f"{name}@10"][present], chance, rtol=1e-12)


def test_scores_of_another_shape_are_an_error():
    """A model that scores too few items is refused; nothing is read past its end."""
    split = make_split([[0, 1, 2]], 4)
    with pytest.raises(ValueError, match=r"scored 1 users with shape \(1, 3\), not \(1, 4\)"):
        rank_split(lambda users: jnp.zeros((len(users), 3)), split)


def test_catalogues_above_one_chunk():
    """More items than one sweep counts, nearly all of them tied."""
    split = make_split([[0, 40_000, 69_999], [1, 2, 3]], 70_000, num_candidates=5)
    scores = np.zeros((2, 70_000), np.float32)
    scores[0, 32_760:32_775] = 1
    scores[1, 5:11] = -1
    full = rank_matrix(scores, split).full
    assert full.tied.tolist() == [69_997 - 15, 69_997 - 6]
    assert full.mid.tolist() == [15 + (69_997 - 15) / 2, (69_997 - 6) / 2]


@pytest.mark.parametrize("which", ["test", "validation"])
def test_popularity_is_the_count_of_training_events(which):
    """Held-out items do not count, until they are merged."""
    split = make_random(np.random.default_rng(1))
    counts = popularity_scores(split)
    assert counts.dtype == np.float32
    assert counts.sum() == len(split.items)
    matrix = np.broadcast_to(counts, (split.num_users, split.num_items))
    jax.tree.map(
        np.testing.assert_array_equal, popularity_ranks(split, which=which), rank_matrix(matrix, split, which)
    )
    assert (
        popularity_scores(merge_validation(split)).sum() == len(split.items) + (split.validation >= 0).sum()
    )


def make_synthetic(rng) -> Dataset:
    """400 users who take 8 of 60 items each, without replacement, by Gumbel noise on their true logits."""
    factors = [rng.normal(size=(count, 4)).astype(np.float32) for count in (400, 60)]
    truth = Truth(factors[0], factors[1], rng.normal(size=60).astype(np.float32))
    noisy = truth.scores(np.arange(400)) + rng.gumbel(size=(400, 60))
    rows = list(np.argsort(-noisy, axis=1)[:, :8])
    rows[0] = rows[0][:2]  # too few events
    return make_dataset(rows, 60, truth)


def test_truth_is_above_popularity_and_popularity_above_chance():
    """On a synthetic population, through a filter that moves the codes."""
    dataset = make_synthetic(np.random.default_rng(0))
    split = leave_one_out(dataset, min_user_events=3, order="file")
    best, popular = (
        metrics_from_ranks(ranks.full)["ndcg@10"]
        for ranks in (truth_ranks(dataset, split), popularity_ranks(split))
    )
    chance = np.sum(1 / np.log2(np.arange(10) + 2)) / 53
    assert best > popular + 0.1
    assert popular > chance
    truth = truth_of(dataset, split)
    assert dataset.truth is not None
    np.testing.assert_array_equal(truth.user_factors, dataset.truth.user_factors[1:])
    np.testing.assert_array_equal(truth.item_bias, dataset.truth.item_bias[split.item_ids])
    expected = rank_matrix(truth.scores(np.arange(399)), split).full.mid
    assert np.mean(truth_ranks(dataset, split).full.mid != expected) < 0.02  # products may round otherwise


def test_truth_needs_synthetic_data():
    """A real data set has none."""
    dataset = make_dataset([[0, 1, 2]], 4)
    with pytest.raises(
        ValueError, match="true preferences of 'made' are unknown; only synthetic data has them"
    ):
        truth_ranks(dataset, leave_one_out(dataset, order="file"))


def test_validation_test_and_a_later_run_share_a_program():
    """What ranks a model is compiled once, however often it is asked for; what lists, once for either mask."""
    split = fr.leave_one_out(fr.data.synthetic(60, 90), num_candidates=5)
    algorithm = fr.fedmf(dim=3, item_bias=False)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    rankings, lists = Compilations("rank"), Compilations("recommend")
    with rankings, lists:
        for which in ("validation", "test", "validation"):
            fr.make_evaluator(algorithm, split, which=which)(state)
            fr.evaluation.make_top_k(algorithm, split, 5, which=which)(state)
    assert rankings.count == 1
    assert lists.count <= 2


def test_clients_that_represent_themselves_do_so_by_one_program():
    """For every evaluator of an algorithm, and predictions of ratings by one too."""
    split = fr.leave_one_out(fr.data.synthetic(30, 90), num_candidates=5)
    algorithm = fr.fedals(dim=2)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    represented, rated = Compilations("_represent"), Compilations("rate")
    with represented, rated:
        for _ in range(2):
            fr.make_evaluator(algorithm, split)(state)
            fr.evaluation.make_rating_predictor(algorithm, split)(state)
    assert (represented.count, rated.count) == (1, 1)


def test_networks_score_in_groups_of_users(monkeypatch):
    """However few users fit in a cache at once, the scores are those of the client alone."""
    split = fr.leave_one_out(fr.data.synthetic(60, 90), num_candidates=5)
    algorithm = fr.fedncf(dim=4, layers=2)
    state = algorithm.init(jax.random.key(0), fr.population_of(split))
    assert algorithm.score is not None
    expected = jax.vmap(algorithm.score, in_axes=(0, None))(state.private, state.server)
    for most, together in ((2**20, 256), (4000, 11), (1, 1)):
        monkeypatch.setattr(evaluator, "_MAX_BETWEEN", most)
        evaluator._score_blocks.cache_clear()
        point = evaluator.server_parameters(algorithm)
        scores = point.score(point.prepare(state), jnp.arange(60))
        np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-6)
        found = evaluator._users_together(algorithm.score, state.private, state.server)
        assert found == together


DEVICES = 3  # which blocks of users do not divide over


def count_blocks(monkeypatch) -> list[int]:
    """Have every block of users note that it was scored, on whatever device."""
    blocks: list[int] = []
    of_model = evaluator._score_blocks.__wrapped__

    def score_blocks(score):
        score_block = of_model(score)

        def score_and_note(params, users):
            jax.debug.callback(lambda users: blocks.append(len(users)), users)
            return score_block(params, users)

        return score_and_note

    monkeypatch.setattr(evaluator, "_score_blocks", score_blocks)
    return blocks


@pytest.mark.parametrize(
    "measure",
    [
        fr.make_evaluator,
        partial(fr.make_evaluator, which="validation"),
        partial(evaluator.make_top_k, k=7),
        evaluator.make_rating_predictor,
    ],
    ids=["test", "validation", "lists", "ratings"],
)
@pytest.mark.parametrize("several", [False, True])
def test_devices_share_the_users(monkeypatch, measure, several):
    """Several devices give what one gives, bit for bit, and none scores what another does."""
    monkeypatch.setattr("fedjax_rec.evaluation.user_blocks._MAX_BLOCK_USERS", 16)
    blocks = count_blocks(monkeypatch)
    data = fr.data.synthetic(130, 90)
    split = ratio(data, test_share=0.3) if several else fr.leave_one_out(data)
    population = fr.population_of(split)
    found, scored = [], []
    for mesh in (None, fr.client_mesh(DEVICES)):
        algorithm = fr.fedmf(dim=4, mesh=mesh)
        state = replicate(algorithm.init(jax.random.key(0), population), mesh)
        blocks.clear()
        found.append(jax.block_until_ready(measure(algorithm, split)(state)))
        jax.effects_barrier()
        scored.append(len(blocks))
    jax.tree.map(np.testing.assert_array_equal, *found)
    one, shared = scored
    assert one > DEVICES
    assert shared == one + -one % DEVICES


def test_what_is_on_one_device_is_ranked_there():
    """Parameters that a mesh does not hold, such as those of a file, are ranked where they are."""
    split = fr.leave_one_out(fr.data.synthetic(40, 90))
    population = fr.population_of(split)
    algorithm = fr.fedmf(dim=4, mesh=fr.client_mesh(DEVICES))
    state = algorithm.init(jax.random.key(0), population)
    there = jax.device_put(state, jax.devices()[1])
    on_host = jax.tree.map(np.asarray, state)
    expected = np.asarray(fr.make_evaluator(algorithm, split)(replicate(state, algorithm.mesh)).full)
    for placed in (state, there, on_host):
        np.testing.assert_array_equal(np.asarray(fr.make_evaluator(algorithm, split)(placed).full), expected)


def test_evaluators_go_into_programs():
    """A mesh shares what is called from outside; in somebody's own program it is left to that."""
    split = fr.leave_one_out(fr.data.synthetic(40, 90))
    population = fr.population_of(split)
    algorithm = fr.fedals(dim=4, mesh=fr.client_mesh(DEVICES))
    state = replicate(algorithm.init(jax.random.key(0), population), algorithm.mesh)
    for measure in (fr.make_evaluator, evaluator.make_top_k, evaluator.make_rating_predictor):
        evaluate = measure(algorithm, split)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-5), jax.jit(evaluate)(state), evaluate(state)
        )
