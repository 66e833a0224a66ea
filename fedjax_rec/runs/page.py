"""One page about runs, that stands alone: `fedjax-rec report`. Its numbers are those of the folders."""

import contextlib
import dataclasses
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_rec.errors import printable
from fedjax_rec.runs import plots
from fedjax_rec.runs.compare import Comparison, ComparisonRow, compare_runs, read_runs
from fedjax_rec.runs.comparison_formats import NOTE, significance_stars
from fedjax_rec.runs.folders import read_json
from fedjax_rec.runs.markup import escape, number, page, svg_of, table
from fedjax_rec.runs.plots.sources import (
    RunRecord,
    bytes_until,
    groups_of,
    merge_seeds,
    record_of,
    records_of,
)
from fedjax_rec.runs.seeds import central_baselines
from fedjax_rec.runs.settings import Settings

SPREAD = {
    "p10": "tenth percentile of clients",
    "median": "median client",
    "worst_decile": "worst tenth of clients",
}
NO_NOISE = "No noise was added: the model and all that was sent are without a guarantee."


def report_page(
    runs: Sequence[str | Path],
    *,
    metrics: Sequence[str] | None = None,
    ranking: str = "full",
    group_seeds: bool = False,
) -> str:
    """Write the page of one run, or of several of one protocol.

    Args:
        runs: folders as `compare_runs` takes them; one of them at least is that of a federated run. Their central
            baselines are rows of the table, too.
        metrics: of the table; figures show the first. By default ndcg@10 and hr@10, or recall@10 where users have
            several test items.
        ranking: "full", or "sampled99" by the protocol's number of candidates.
        group_seeds: whether runs that differ in their seed alone are one row, column and curve, with a band.

    Returns:
        HTML: style and figures are in it, it asks for nothing else, and runs nothing.

    Raises:
        ValueError: if there is no federated run, protocols differ, or something is unknown.

    Example:
        >>> report_page([])
        Traceback (most recent call last):
        ValueError: a report needs the folder of a federated run; none was given
    """
    stored = [each for source in runs for each in read_runs(source)]
    federated = [each for each in stored if not each.method]
    if not federated:
        found = f"{', '.join(map(str, runs))} has none" if runs else "none was given"
        raise ValueError(f"a report needs the folder of a federated run; {found}")
    records = records_of([record_of(each.folder) for each in federated], None)
    if metrics is None:
        metrics = ("ndcg@10", "recall@10" if "test_offsets" in federated[0].users else "hr@10")
    given = {run.method for run in stored}
    every = [*stored, *central_baselines(federated, given, group_seeds=group_seeds)]
    names = {run.name: record.label for run, record in zip(federated, records, strict=True)}
    names |= {run.name: f"{run.method} (central)" for run in every if run.method}
    comparison = compare_runs(
        [run.name for run in every], metrics=metrics, ranking=ranking, group_seeds=group_seeds
    )
    merged = merge_seeds(records) if group_seeds else records
    title = merged[0].label if len(merged) == 1 else f"{len(merged)} runs"
    sections = [
        _heading(title, merged, comparison),
        _scores(comparison, names),
        _figures(merged, metrics[0], ranking),
        _groups(merged),
        _costs(merged),
        _privacy(records),
        "<h2>What was run</h2>" + "".join(map(_repeat, records)),
    ]
    return page(f"{title}: report", "\n".join(sections))


def write_report(
    runs: Sequence[str | Path],
    file: str | Path | None = None,
    *,
    metrics: Sequence[str] | None = None,
    ranking: str = "full",
    group_seeds: bool = False,
) -> Path:
    """Write the page of runs into a file, whole or not at all.

    Args:
        runs: as of `report_page`.
        file: a new one; by default `report.html` in the first run's folder, which is replaced.
        metrics: as of `report_page`.
        ranking: as of `report_page`.
        group_seeds: as of `report_page`.

    Returns:
        the file.

    Raises:
        ValueError: as `report_page`.
        OSError: if a file that was named exists, or it cannot be written.
    """
    if file is not None and Path(file).exists():
        raise FileExistsError(f"{file} exists; name a new file")
    text = report_page(runs, metrics=metrics, ranking=ranking, group_seeds=group_seeds)
    path = Path(read_runs(runs[0])[0].folder) / "report.html" if file is None else Path(file).expanduser()
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name[:40]}-", delete=False, encoding="utf-8"
    ) as draft:
        draft.write(text)
    os.chmod(draft.name, 0o644)  # noqa: PTH101 - a temporary file is its owner's alone
    return Path(draft.name).replace(path)


def _heading(title: str, records: Sequence[RunRecord], comparison: Comparison) -> str:
    first = records[0].result
    data = escape(Path(str(first.get("dataset", ""))).name)
    return (
        f"<h1>{escape(title)}</h1><p>{data}, {number(first.get('users'), ',')} clients, "
        f"{number(first.get('items'), ',')} items; {number(comparison.num_users, ',')} users are tested, "
        f"{escape(comparison.ranking)} ranking, protocol {escape(comparison.protocol_id)}.</p>"
    )


def _scores(comparison: Comparison, names: Mapping[str, str]) -> str:
    metrics = list(dict.fromkeys(row.metric for row in comparison.rows))
    labels = [_label(row, names) for row in comparison.rows if row.metric == metrics[0]]
    of_seeds = any(row.seed_deviation is not None for row in comparison.rows)
    header = ["run"]
    body: list[list[str]] = [[escape(label)] for label in labels]
    for metric in metrics:
        header += [escape(metric), "95 % interval", *["deviation over seeds"] * of_seeds, "against the first"]
        rows = [row for row in comparison.rows if row.metric == metric]
        for cells, row in zip(body, rows, strict=True):
            cells.extend([number(row.mean), f"{number(row.low)} to {number(row.high)}"])
            cells.extend([number(row.seed_deviation)] * of_seeds)
            cells.append(_difference(row))
    notes = "".join(f'<p class="note">{escape(line)}</p>' for line in (NOTE, *comparison.warnings))
    picture = _figure(
        lambda: plots.scores(comparison, labels=labels), "scores", "Means and 95 % intervals over users."
    )
    return f'<h2>Scores on test</h2>{table(header, body)}{notes}<div class="figures">{picture}</div>'


def _label(row: ComparisonRow, names: Mapping[str, str]) -> str:
    """What a row is called: the run's name on this page, and how many seeds it stands for."""
    count = f" ({len(row.seeds)} seeds)" if row.seed_deviation is not None else ""
    name = row.run.removesuffix(count) if count else row.run
    return f"{names.get(name, name)}{count.replace(' (', ', ').rstrip(')') if name in names else ''}"


def _difference(row: ComparisonRow) -> str:
    if row.difference is None:
        return "-"
    stars = significance_stars(row.p)
    return f"{number(row.difference, '+.4f')} {stars} <small>p {number(row.p)}</small>"


def _figure(draw: Callable[[], Any], name: str, caption: str) -> str:
    """A figure with what it shows; one that cannot be drawn says why, and costs no page."""
    from fedjax_rec.runs.plots.canvas import INK

    try:
        inside = svg_of(draw(), name, INK)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as problem:
        reason = (str(problem).strip().splitlines() or [type(problem).__name__])[0]
        inside = f"<p>Not drawn: {escape(reason)}</p>"
    return f"<figure>{inside}<figcaption>{escape(caption)}</figcaption></figure>"


def _figures(records: Sequence[RunRecord], metric: str, ranking: str) -> str:
    drawn = [
        _figure(
            lambda: plots.learning_curves(*records, metrics=[metric], ranking=ranking),
            "learning curves",
            "Validation by round; the selected round is ringed, a band goes from least to most of several seeds. "
            "Lines are baselines and the best reachable score on test, stars the runs' own scores on test.",
        ),
        _figure(
            lambda: plots.learning_curves(*records, metrics=[], loss=True), "training loss", "Training loss."
        ),
        _figure(
            lambda: plots.client_distribution(*records, metric=metric, ranking=ranking),
            "distribution over clients",
            "Which share of the clients has at least so much on test.",
        ),
        _figure(
            lambda: plots.groups(*records, metric=metric),
            "groups",
            "Groups of clients by their number of training events, and those whose test item is among the "
            "popular head or the tail.",
        ),
        _figure(
            lambda: plots.communication(*records, metric=metric, ranking=ranking),
            "communication",
            "Validation against what all clients together had sent and received.",
        ),
        _figure(
            lambda: plots.lane_occupancy(*records),
            "lane occupancy",
            "How much of the engine's lanes trained somebody, by round: a matter of speed, not of results.",
        ),
    ]
    return f'<h2>Figures</h2><div class="figures">{"".join(drawn)}</div>'


def _groups(records: Sequence[RunRecord]) -> str:
    """Clients and items, ndcg@10 of full ranking: what `result.json` says besides means."""
    tests = [record.result["metrics"].get("test", {}) for record in records]
    groups = [groups_of(record, "ndcg@10") for record in records]
    rows = [
        [escape(name), *(number(each.get(name)) for each in groups)]
        for name in dict.fromkeys(name for each in groups for name in each)
    ]
    spread = [test.get("distribution", {}) for test in tests]
    rows += [
        [text, *(number(each.get(name)) for each in spread)]
        for name, text in SPREAD.items()
        if any(name in each for each in spread)
    ]
    beyond = [test.get("beyond_accuracy@10", {}) for test in tests]
    rows += [
        [escape(f"{name.replace('_', ' ')} of the lists of 10"), *(number(each.get(name)) for each in beyond)]
        for name in dict.fromkeys(name for each in beyond for name in each)
    ]
    if not rows:
        return ""
    header = ["ndcg@10, full ranking", *(escape(record.label) for record in records)]
    return f"<h2>Clients and items</h2>{table(header, rows)}"


def _costs(records: Sequence[RunRecord]) -> str:
    """What each run sent, and how long it took."""
    rows: dict[str, list[str]] = {}
    for record in records:
        result = record.result
        up, down = (result.get(f"bytes_{way}_per_client") for way in ("up", "down"))
        known = up is not None and down is not None
        for name, value in {
            "algorithm": escape(result.get("algorithm")),
            "seed": _seeds(record),
            "rounds": number(result.get("rounds"), ",d"),
            "selected round": number(result.get("selected_round"), ",d"),
            "ended by": escape(_ended_by(record)),
            "bytes up, a client and round": number(up, ",.0f"),
            "bytes down, a client and round": number(down, ",.0f"),
            "bytes of all clients and rounds": number(float(bytes_until(record)[-1]), ",.0f")
            if known
            else "-",
            "clients that did not arrive": number(result.get("missing_clients"), ",d"),
            "clients trained in a second": number(result.get("clients_per_second"), ",.0f"),
            "lanes in use": number(result.get("lane_efficiency"), ".1%"),
            "seconds, all": number(result.get("seconds"), ".1f"),
            "seconds, compiling": number(result.get("compile_seconds"), ".1f"),
        }.items():
            rows.setdefault(name, [name]).append(value)
    header = ["", *(escape(record.label) for record in records)]
    return f"<h2>Communication and time</h2>{table(header, list(rows.values()))}"


def _ended_by(record: RunRecord) -> str:
    """What ended the training, and whether its last validation was the best one; of several seeds, of how many."""
    ends = []
    for each in record.seeds or (record,):
        stopped = str(each.result.get("stopped", "-"))
        ends.append(f"{stopped}, still improving" if each.result.get("still_improving") is True else stopped)
    if len(set(ends)) == 1:
        return ends[0]
    return "; ".join(f"{end} ({ends.count(end)} of {len(ends)} seeds)" for end in dict.fromkeys(ends))


def _seeds(record: RunRecord) -> str:
    return ", ".join(number(each.result.get("seed"), "d") for each in record.seeds or (record,))


def _privacy(records: Sequence[RunRecord]) -> str:
    parts = []
    for record in records:
        spent = record.result.get("privacy")
        parts.append(f"<h3>{escape(record.label)}</h3>" if len(records) > 1 else "")
        if not isinstance(spent, dict):
            parts.append(f"<p>{NO_NOISE}</p>")
            continue
        uncovered = spent.get("not_covered") or []
        rows = [
            [escape(name.replace("_", " ")), number(value, ".6g")]
            for name, value in spent.items()
            if name != "not_covered"
        ]
        items = "".join(f"<li>{escape(each)}</li>" for each in uncovered)
        parts.append(table(["ledger", ""], rows))
        parts.append(f"<p>What this epsilon does not cover:</p><ul>{items}</ul>" if items else "")
    return f"<h2>Privacy</h2>{''.join(parts)}"


def _repeat(record: RunRecord) -> str:
    """How a run is repeated, and what it was made with."""
    result = record.result
    config = record.stored.config if record.stored is not None else {}
    command = result.get("command")
    how = (
        f"<pre>{escape(printable(str(command)))}</pre>"
        if command
        else "<p>Its algorithm was given in Python, and no command leads to it.</p>"
    )
    defaults = {field.name: field.default for field in dataclasses.fields(Settings)}
    used = {name: value for name, value in config.items() if name in defaults and value != defaults[name]}
    told = {f"rule: {name}": value for name, value in (_dict(config.get("rules"))).items()}
    tuned = _tuned(record)
    told |= {f"{name} (won on validation)": value for name, value in tuned.items()}
    told |= {name: value for name, value in used.items() if name not in ("out", *tuned)}
    told |= {f"version of {name}": value for name, value in _dict(result.get("versions")).items()}
    told["commit"] = result.get("commit") or "none"
    rows = [[escape(name), escape(value)] for name, value in told.items()]
    details = f"<details><summary>Settings, rules and versions</summary>{table(['', ''], rows)}</details>"
    return f"<h3>{escape(record.label)}</h3>{how}{details}"


def _tuned(record: RunRecord) -> dict[str, Any]:
    """The settings that won a search, of its file; the config has those that the command has, too."""
    if record.stored is None or not (record.stored.folder / "tuning.json").is_file():
        return {}
    with contextlib.suppress(ValueError, OSError):  # a file that is damaged costs no page
        return _dict(read_json(record.stored.folder / "tuning.json").get("best"))
    return {}


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
