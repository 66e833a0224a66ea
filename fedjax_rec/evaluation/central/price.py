"""The price of federation: what is left of a central result when the data stays on the devices.

For each metric it is the federated value over the best central one. 1 says that federation costs nothing; above
1 the federated model is the better one, which says as much about the tuning of the central ones.
"""

import math
from collections.abc import Mapping
from typing import Any

from fedjax_rec.evaluation.central.methods import NAMES

Price = dict[str, dict[str, dict[str, Any]]]


def price_of_federation(federated: Mapping[str, Any], centrals: Mapping[str, Any]) -> Price:
    """Divide a federated result by the best central one, metric by metric.

    Args:
        federated: a result of `fedjax-rec run`: its "protocol_id" and "metrics" {"test": {part: {metric: value}}}.
        centrals: a result of `fedjax-rec baselines`, or of the same run: its "protocol_id" and "baselines"
            {name: {part: {metric: value}}}. Names that are no central methods, such as "best_reachable", are left
            out. Both are read as `result.json` holds them.

    Returns:
        {part: {metric: {"ratio": federated / best, "best": name}}} for the parts "full", "sampled99" and their
        metrics; the ratio is None where it is undefined: the best central value is 0, or a value is missing.

    Raises:
        ValueError: if the protocols differ (a refit is part of the protocol), or there is no central result.

    Example:
        >>> federated = {"protocol_id": "a", "metrics": {"test": {"full": {"hr@10": 0.12}}}}
        >>> centrals = {"protocol_id": "a", "baselines": {"ease": {"full": {"hr@10": 0.16}}}}
        >>> price_of_federation(federated, centrals)
        {'full': {'hr@10': {'ratio': 0.75, 'best': 'ease'}}}
    """
    ours, theirs = federated.get("protocol_id"), centrals.get("protocol_id")
    if not ours or ours != theirs:
        raise ValueError(
            f"the federated result has protocol {ours} and the central ones {theirs}; a price of federation needs "
            "one protocol: the same data, filters, candidates and --refit for both"
        )
    baselines = {name: parts for name, parts in centrals["baselines"].items() if name in NAMES}
    if not baselines:
        raise ValueError(f"there is no central result to compare with; run some of {', '.join(NAMES)}")
    return {
        part: {
            metric: _divide(value, {name: parts[part].get(metric) for name, parts in baselines.items()})
            for metric, value in values.items()
        }
        for part, values in federated["metrics"]["test"].items()
        if all(part in parts for parts in baselines.values())
    }


def _divide(value: float | None, centrals: Mapping[str, float | None]) -> dict[str, Any]:
    known = {name: found for name, found in centrals.items() if _is_number(found)}
    best = max(known, key=lambda name: known[name] or 0.0, default=None)
    bound = None if best is None else known[best]
    defined = _is_number(value) and bound is not None and bound > 0
    return {"ratio": float(value) / bound if defined else None, "best": best}  # type: ignore[arg-type, operator]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
