"""States, splits, populations and fitted models of different data are refused where they meet."""

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation import make_ranker, make_rating_predictor, make_top_k
from fedjax_rec.evaluation.central.scorers import make_item_scorer
from fedjax_rec.evaluation.evaluation_points import after_fold_in, after_local_training
from fedjax_rec.evaluation.evaluator import server_parameters
from fedjax_rec.evaluation.exposure import exposure_ratio
from fedjax_rec.evaluation.reference_ranks import popularity_ranks, rank_common_scores, truth_of
from fedjax_rec.evaluation.summary import result_metrics, summarise
from fedjax_rec.federation.federate import client_update
from fedjax_rec.federation.traffic import upload_of

KEY = jax.random.key(0)


def _split(num_users=30, num_items=90, seed=0):
    return fr.leave_one_out(fr.data.synthetic(num_users, num_items, seed=seed), num_candidates=5)


SPLIT = _split()
OTHERS = {"other clients": _split(num_users=40), "other items": _split(num_items=100)}
RENAMED = SPLIT._replace(user_ids=SPLIT.user_ids[::-1])


def _state(algorithm, split):
    shapes = jax.eval_shape(algorithm.init, KEY, fr.population_of(split))
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


@pytest.mark.parametrize("other", OTHERS)
def test_states_and_splits(other):
    """The state of fewer clients or items is not ranked on a split of more, nor the other way round."""
    message = f"the state holds .* {other.split()[1]}, but"
    for algorithm in (fr.fedmf(dim=2), fr.fedals(dim=2)):
        for state_of, split in ((SPLIT, OTHERS[other]), (OTHERS[other], SPLIT)):
            state = _state(algorithm, state_of)
            for make in (fr.make_evaluator, make_top_k, make_rating_predictor):
                with pytest.raises(ValueError, match=message):
                    make(algorithm, split)(state)
            population = fr.population_of(split)
            with pytest.raises(ValueError, match="the state holds"):
                client_update(algorithm, KEY, state, population, 0)
            with pytest.raises(ValueError, match="the state holds"):
                upload_of(algorithm, population, state)
            with pytest.raises(ValueError, match="the state holds"):
                jax.eval_shape(algorithm.round, KEY, state, population)


@pytest.mark.parametrize("other", [*OTHERS.values(), RENAMED], ids=[*OTHERS, "other names"])
def test_populations_and_splits(other):
    """Points of another population, and a population of another split in `simulate`."""
    population = fr.population_of(other)
    algorithm = fr.fedmf(dim=2)
    represented = fr.fedals(dim=2)
    points = {
        "server": (represented, server_parameters(represented, population)),
        "local": (algorithm, after_local_training(algorithm, population, KEY)),
        "fold in": (algorithm, after_fold_in(algorithm, population, KEY)),
    }
    for own, point in points.values():
        with pytest.raises(ValueError, match="the population is not that of"):
            fr.make_evaluator(own, SPLIT, point=point)
    with pytest.raises(ValueError, match="the population is not that of"):
        fr.simulate(algorithm, SPLIT, population=population, rounds=1)


def test_points_and_states():
    """A point looks at the state that it is given."""
    other = _state(fr.fedmf(dim=2), OTHERS["other clients"])
    point = after_local_training(fr.fedmf(dim=2), fr.population_of(SPLIT), KEY)
    with pytest.raises(ValueError, match="leaves of 40 clients, but the population has 30"):
        point.prepare(other)
    other = _state(fr.fedmf(dim=2), OTHERS["other items"])
    point = after_fold_in(fr.fedmf(dim=2), fr.population_of(SPLIT), KEY)
    with pytest.raises(ValueError, match=r"rows of \d+ items, but the population has \d+"):
        point.prepare(other)


def test_a_population_where_clients_represent_themselves():
    """Without one they would be ranked by whatever leaves they happen to have."""
    with pytest.raises(ValueError, match="represent themselves by their data to be scored; give population="):
        server_parameters(fr.fedals(dim=2))


def test_ranks_lists_and_splits():
    """What was made for other users is not averaged over these."""
    other = OTHERS["other clients"]
    ranks = popularity_ranks(other)
    lists = np.zeros((other.num_users, 10), int)
    for measure in (
        lambda: result_metrics(ranks, SPLIT),
        lambda: summarise(ranks, SPLIT, lists),
        lambda: summarise(popularity_ranks(SPLIT), SPLIT, lists),
        lambda: exposure_ratio(lists, SPLIT, [1]),
    ):
        with pytest.raises(ValueError, match="of 40 users do not go with synthetic, which has 30"):
            measure()
    with pytest.raises(ValueError, match=r"exclude names users outside of 0\.\.29"):
        exposure_ratio(lists[:30], SPLIT, [1], exclude=[-1])
    with pytest.raises(ValueError, match="not one for each of the"):
        rank_common_scores(np.zeros(SPLIT.num_items + 1), SPLIT)


def test_fitted_models_and_splits():
    """Central models know how many users they were fitted to; true preferences whose they are."""
    other = OTHERS["other clients"]
    scorer = make_item_scorer(other, np.zeros((other.num_items, other.num_items)))
    with pytest.raises(ValueError, match="parameters of 40 users do not go with synthetic"):
        make_ranker(SPLIT, scorer.score_block)(scorer.params)
    stranger = SPLIT._replace(user_ids=np.array([f"x{user}" for user in range(30)]))
    with pytest.raises(ValueError, match="has users that 'synthetic' does not have"):
        truth_of(fr.data.synthetic(30, 90), stranger)


def test_states_of_other_algorithms():
    """Leaves of other names are told, not looked for."""
    state = _state(fr.fedmf(dim=2), SPLIT)
    with pytest.raises(ValueError, match="the state is not that of this algorithm"):
        fr.make_evaluator(fr.fedncf(dim=2), SPLIT)(state)
