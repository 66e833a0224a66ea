"""Evaluation: one leak-free protocol, ranking and lists on device, metrics, statistics and central baselines.

`evaluator` and `evaluation_points` say with which parameters users are scored; `ranking` and `recommend` rank
every item on device, in the blocks of `user_blocks`, and `reference_ranks` has floor and ceiling. `metrics` (one
held-out item per user), `multi_positive` (several), `groups`, `catalogue` and `exposure` are what is made of ranks
and lists, `summary` what a result holds of them; `statistics` has intervals and tests, `protocol` names how a
number came about, and `central` fits methods that see all data at once. May import `federation` and all below it;
knows no algorithm by name.
"""

from fedjax_rec.evaluation.catalogue import beyond_accuracy
from fedjax_rec.evaluation.central import price_of_federation, run_baselines
from fedjax_rec.evaluation.evaluation_points import after_fold_in, after_local_training
from fedjax_rec.evaluation.evaluator import make_evaluator, make_rating_predictor, make_top_k
from fedjax_rec.evaluation.exposure import exposure_ratio, make_exposure_ratio
from fedjax_rec.evaluation.groups import distribution, group_means
from fedjax_rec.evaluation.metrics import metrics_from_ranks, rating_errors, standard_errors, user_metrics
from fedjax_rec.evaluation.multi_positive import list_metrics, multi_positive_metrics
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import MidRanks, Ranks, RivalCounts, count_rivals, make_ranker, rank_split
from fedjax_rec.evaluation.recommend import TopK, make_recommender, merge_top_k, top_k
from fedjax_rec.evaluation.reference_ranks import popularity_ranks, popularity_scores, truth_of, truth_ranks
from fedjax_rec.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    holm,
    paired_interval,
    permutation_test,
    seed_interval,
    wilcoxon_test,
)

__all__ = [
    "Interval",
    "MidRanks",
    "Protocol",
    "Ranks",
    "RivalCounts",
    "TopK",
    "after_fold_in",
    "after_local_training",
    "beyond_accuracy",
    "bootstrap_interval",
    "count_rivals",
    "distribution",
    "exposure_ratio",
    "group_means",
    "holm",
    "list_metrics",
    "make_evaluator",
    "make_exposure_ratio",
    "make_ranker",
    "make_rating_predictor",
    "make_recommender",
    "make_top_k",
    "merge_top_k",
    "metrics_from_ranks",
    "multi_positive_metrics",
    "paired_interval",
    "permutation_test",
    "popularity_ranks",
    "popularity_scores",
    "price_of_federation",
    "protocol_id",
    "rank_split",
    "rating_errors",
    "run_baselines",
    "seed_interval",
    "standard_errors",
    "top_k",
    "truth_of",
    "truth_ranks",
    "user_metrics",
    "wilcoxon_test",
]
