"""Evaluation: one leak-free protocol, ranking and lists on device, metrics, statistics and baselines."""

from fedjax_rec.evaluation.baselines import popularity_ranks, popularity_scores, truth_of, truth_ranks
from fedjax_rec.evaluation.catalogue import beyond_accuracy
from fedjax_rec.evaluation.exposure import exposure, make_exposure
from fedjax_rec.evaluation.groups import distribution, group_means
from fedjax_rec.evaluation.lists import list_metrics, place_metrics
from fedjax_rec.evaluation.metrics import metrics_from_ranks, standard_errors, user_metrics
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Places, Ranks, Rivals, count_rivals, make_ranker, rank_split
from fedjax_rec.evaluation.ratings import rating_errors
from fedjax_rec.evaluation.recommend import TopK, make_recommender, merge_top_k, top_k
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
    "Places",
    "Protocol",
    "Ranks",
    "Rivals",
    "TopK",
    "beyond_accuracy",
    "bootstrap_interval",
    "count_rivals",
    "distribution",
    "exposure",
    "group_means",
    "holm",
    "list_metrics",
    "make_exposure",
    "make_ranker",
    "make_recommender",
    "merge_top_k",
    "metrics_from_ranks",
    "paired_interval",
    "permutation_test",
    "place_metrics",
    "popularity_ranks",
    "popularity_scores",
    "protocol_id",
    "rank_split",
    "rating_errors",
    "seed_interval",
    "standard_errors",
    "top_k",
    "truth_of",
    "truth_ranks",
    "user_metrics",
    "wilcoxon_test",
]
