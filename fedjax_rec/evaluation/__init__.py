"""Evaluation: one leak-free protocol, ranking on device, metrics and baselines."""

from fedjax_rec.evaluation.baselines import popularity_ranks, popularity_scores, truth_of, truth_ranks
from fedjax_rec.evaluation.metrics import metrics_from_ranks, standard_errors, user_metrics
from fedjax_rec.evaluation.protocol import Protocol, protocol_id
from fedjax_rec.evaluation.ranking import Ranks, Rivals, count_rivals, make_ranker, rank_split

__all__ = [
    "Protocol",
    "Ranks",
    "Rivals",
    "count_rivals",
    "make_ranker",
    "metrics_from_ranks",
    "popularity_ranks",
    "popularity_scores",
    "protocol_id",
    "rank_split",
    "standard_errors",
    "truth_of",
    "truth_ranks",
    "user_metrics",
]
