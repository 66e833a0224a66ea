"""Whether features go together, by the table; and the table as docs/compatibility.md shows it."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet

from fedjax_rec.compatibility.features import AnyFeature, Feature, Features
from fedjax_rec.compatibility.table import NEEDS, PAIRS, Need, Pair
from fedjax_rec.errors import ParameterError


def check_together(features: Features) -> None:
    """Refuse features that do not go together, and those that lack what they need.

    Args:
        features: those that are there, each with what texts show of it; None and False stand for one that is not.

    Raises:
        ParameterError: of the first row of the table that applies.

    Example:
        >>> check_together({Feature.STREAMED: 5, Feature.EXCHANGE: True})
        Traceback (most recent call last):
        fedjax_rec.errors.ParameterError: stream_clients=5 takes cohorts apart, but an exchange between ...
    """
    there = _present(features)
    for need in NEEDS:
        if need.one in there and not there.intersection(need.others):
            raise ParameterError(text_of(need), one=features[need.one])
    for pair in _conflicts(there):
        raise ParameterError(text_of(pair), one=features[pair.one], other=features[pair.other])


def goes_with(feature: AnyFeature, features: Features) -> bool:
    """Whether no feature is in the way of another one.

    Args:
        feature: that may be added.
        features: those that are there.

    Returns:
        True or False.

    Example:
        >>> goes_with(Feature.STREAMED, {Feature.EXCHANGE: True}), goes_with(Feature.STREAMED, {})
        (False, True)
    """
    pairs = _conflicts({feature, *_present(features)})
    return not any(feature in (pair.one, pair.other) for pair in pairs)


def text_of(row: Pair | Need) -> str:
    """The template of a row's error.

    Args:
        row: of the table.

    Returns:
        why, and the way out.
    """
    return f"{row.why}; {row.way_out}" if row.way_out else row.why


def _present(features: Features) -> set[AnyFeature]:
    return {feature for feature, shown in features.items() if shown is not None and shown is not False}


def _conflicts(there: AbstractSet[AnyFeature]) -> Iterator[Pair]:
    return (pair for pair in PAIRS if pair.one in there and pair.other in there)


def as_markdown() -> str:
    """The table of docs/compatibility.md, without the reasons, which errors give: each pair stands there once.

    Returns:
        three tables in Markdown: of algorithms, of runs, and of settings that need others.
    """
    of_algorithms: dict[AnyFeature, list[str]] = {}
    of_runs: dict[AnyFeature, list[str]] = {}
    for pair in PAIRS:
        within = isinstance(pair.one, Feature) and isinstance(pair.other, Feature)
        (of_algorithms if within else of_runs).setdefault(pair.one, []).append(pair.other.title)
    needs: dict[tuple[AnyFeature, ...], list[str]] = {}
    for need in NEEDS:
        needs.setdefault(need.others, []).append(need.one.title)
    conflicts = [
        [(_described(one), ", ".join(others)) for one, others in listed.items()]
        for listed in (of_algorithms, of_runs)
    ]
    wanted = [(", ".join(ones), " or ".join(o.title for o in others)) for others, ones in needs.items()]
    return "\n\n".join(
        [
            _as_table(("of an algorithm", "does not go with"), conflicts[0]),
            _as_table(("of a run", "does not go with"), conflicts[1]),
            _as_table(("of a run", "needs"), wanted),
        ]
    )


def _as_table(head: tuple[str, str], lines: list[tuple[str, str]]) -> str:
    left, right = head
    body = [f"| {one} | {others} |" for one, others in lines]
    return "\n".join([f"| {left} | {right} |", "|---|---|", *body])


def _described(feature: AnyFeature) -> str:
    return f"{feature.title}: {feature.meaning}" if feature.meaning else feature.title
