"""What a run is validated by: the validation items of a split, or of a store's sample, ranked between blocks."""

from collections.abc import Callable

from fedjax_rec.client.population import Population
from fedjax_rec.client.stored import StoredPopulation
from fedjax_rec.data.splits import Split
from fedjax_rec.evaluation.evaluator import EvaluationPoint, make_evaluator
from fedjax_rec.evaluation.summary import name_sampled
from fedjax_rec.training.history import Metrics, Stop, cutoffs_of, measure
from fedjax_rec.types import Algorithm, State


def make_validator(
    algorithm: Algorithm,
    data: Split | Population | StoredPopulation,
    stop: Stop,
    point: EvaluationPoint | None,
) -> Callable[[State], Metrics] | None:
    """Build what validates a run between blocks of rounds.

    Args:
        algorithm: gives `score` for one client.
        data: of the run.
        stop: names the metric.
        point: with which parameters; by default the server's.

    Returns:
        State -> metrics by "full/..." and "sampled99/..."; None where there is nothing to validate on.

    Raises:
        ValueError: if the metric is unknown, or the algorithm's model does not score items.
    """
    cutoffs_of(stop)  # refuses an unknown metric
    if isinstance(data, StoredPopulation):
        of_sample = data.of_sample
        ranked = None if data.split is None else make_validator(algorithm, data.split, stop, point)
        return None if ranked is None else lambda state: ranked(of_sample(state))
    if not isinstance(data, Split) or not (data.validation >= 0).any():
        return None
    rank = make_evaluator(algorithm, data, which="validation", point=point)
    names = {"full": "full", "sampled": name_sampled(data)}

    def evaluate(state: State) -> Metrics:
        metrics: Metrics = {}
        for ranking, ranks in rank(state)._asdict().items():
            values = measure(ranks, stop)
            metrics |= {f"{names[ranking]}/{name}": value for name, value in values.items()}
        return metrics

    return evaluate
