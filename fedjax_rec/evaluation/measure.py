"""The metrics that a result holds, of one ranking of all users: full and sampled."""

from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.metrics import metrics_from_ranks
from fedjax_rec.evaluation.ranking import Ranks, count_rivals

KS = (1, 5, 10, 20, 50)
Metrics = dict[str, float]


def measure(
    ranks: Ranks, split: Split, sampled: str | None = None, which: str = "test"
) -> dict[str, Metrics]:
    """Metrics of full and of sampled ranking.

    Args:
        ranks: of all users.
        split: says how many rivals each positive had (for AUC).
        sampled: name of the sampled part; by default that of the split, such as "sampled99".
        which: "test" or "validation".

    Returns:
        {"full": {"hr@10": ..., ...}, sampled: {...}}.

    Example:
        >>> from fedjax_rec.evaluation.baselines import popularity_ranks
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> found = measure(popularity_ranks(tiny_split()), tiny_split())
        >>> sorted(found), found["full"]["hr@1"]
        (['full', 'sampled2'], 0.0)
    """
    rivals = count_rivals(split, which=which)
    return {
        "full": metrics_from_ranks(ranks.full, KS, rivals=rivals.full),
        sampled or name_sampled(split): metrics_from_ranks(ranks.sampled, KS, rivals=rivals.sampled),
    }


def name_sampled(split: Split) -> str:
    """Name the sampled ranking after the size of its candidate lists.

    Args:
        split: the split.

    Returns:
        such as "sampled99".

    Example:
        >>> from fedjax_rec.evaluation.central.example import tiny_split
        >>> name_sampled(tiny_split(num_candidates=2))
        'sampled2'
    """
    return f"sampled{split.candidates_test.shape[1]}"
