"""The price of federation: what is left of a central result when the data stays on the devices.

For each metric it is the federated value over the best central one. 1 says that federation costs nothing; above
1 the federated model is the better one, which says as much about the tuning of the central ones. How many settings
each side has tried on validation is part of the price: below 1 it may be the price of having tuned one side alone.
"""

import math
from collections.abc import Mapping
from typing import Any

from fedjax_rec.errors import ParameterError
from fedjax_rec.evaluation.central.registry import METHOD_NAMES

Price = dict[str, dict[str, dict[str, Any]]]


def price_of_federation(federated: Mapping[str, Any], central: Mapping[str, Any]) -> Price:
    """Divide a federated result by the best central one, metric by metric.

    Args:
        federated: a result of `fedjax-rec run`: its "protocol_id" and "metrics"
            {"test": {ranking: {metric: value}}}; if it was tuned, "trials" says how many settings were tried.
        central: a result of `fedjax-rec baselines`, or of the same run: its "protocol_id" and "baselines"
            {name: {ranking: {metric: value}}}. Names that are no central methods, such as "best_reachable", are
            left out. Where its "details" have the trials of a method, so has the price. Both are read as
            `result.json` holds them.

    Returns:
        {ranking: {metric: {"ratio": federated / best, "best": name}}} for the rankings "full", "sampled99" and
        their metrics; the ratio is None where it is undefined: the best central value is 0, or a value is missing.
        With "details", also "settings_tried": {"federated": 1, "central": 3}, those of the best central method,
        and "tuned_alike", whether these are as many.

    Raises:
        ValueError: if the protocols differ (a refit is part of the protocol), or there is no central result.

    Example:
        >>> federated = {"protocol_id": "a", "metrics": {"test": {"full": {"hr@10": 0.12}}}}
        >>> central = {"protocol_id": "a", "baselines": {"ease": {"full": {"hr@10": 0.16}}}}
        >>> price_of_federation(federated, central)
        {'full': {'hr@10': {'ratio': 0.75, 'best': 'ease'}}}
    """
    federated_id = federated.get("protocol_id")
    central_id = central.get("protocol_id")
    if not federated_id or federated_id != central_id:
        raise ParameterError(
            "the federated result has protocol {federated_id} and the central ones {central_id}; a price of "
            "federation needs one protocol: the same data, filters, candidates and {refit} for both",
            federated_id=federated_id,
            central_id=central_id,
        )
    baselines = {name: found for name, found in central["baselines"].items() if name in METHOD_NAMES}
    if not baselines:
        raise ValueError(f"there is no central result to compare with; run some of {', '.join(METHOD_NAMES)}")
    tried = _settings_tried(federated, central)
    return {
        ranking: {
            metric: _divide(
                value, {name: found[ranking].get(metric) for name, found in baselines.items()}, tried
            )
            for metric, value in metrics.items()
        }
        for ranking, metrics in federated["metrics"]["test"].items()
        if all(ranking in found for found in baselines.values())
    }


def _settings_tried(federated: Mapping[str, Any], central: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """How many settings each side has tried, by central method: one, where nothing was chosen."""
    own = int(federated.get("trials", 1))
    return {
        name: {"federated": own, "central": max(len(found.get("trials", ())), 1)}
        for name, found in central.get("details", {}).items()
    }


def _divide(
    value: float | None, baselines: Mapping[str, float | None], tried: Mapping[str, dict[str, int]]
) -> dict[str, Any]:
    finite = {name: found for name, found in baselines.items() if _is_number(found)}
    best = max(finite, key=lambda name: finite[name] or 0.0, default=None)
    bound = None if best is None else finite[best]
    defined = _is_number(value) and bound is not None and bound > 0
    ratio = float(value) / bound if defined else None  # type: ignore[arg-type, operator]
    price = {"ratio": ratio, "best": best}
    return (
        price
        if best is None or best not in tried
        else price | {"settings_tried": tried[best], "tuned_alike": len(set(tried[best].values())) == 1}
    )


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
